"""Settings of sampling, and the processors that they belong to."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..utils.arguments import finite_number


@dataclass(frozen=True)
class Processor:
    """A change of the logits by one setting, as a transformers logits processor makes it.

    Attributes:
        name: the setting's name, which is the name of stock's argument.
        default: the value where stock's call gives none.
        apply: returns changed logits (utterances, vocabulary) for logits, the tokens seen, int64 (utterances, n), and
            ``number``, which may be a 0-dimensional tensor.
        mistake: returns why a value is out of range, or None.
        neutral: returns whether a value leaves all probabilities as they are, so that the processor can be skipped.
        number: returns what ``apply`` computes with.
        key: returns what a captured graph depends on besides ``number``, where the processor is not skipped.
    """

    name: str
    default: float
    apply: Callable[[Tensor, Tensor, float | Tensor], Tensor]
    mistake: Callable[[float], str | None]
    neutral: Callable[[float], bool] = lambda _: False
    number: Callable[[float], float] = lambda value: value
    key: Callable[[float], Hashable] = lambda _: True


@dataclass(frozen=True)
class SamplingSettings:
    """Checked sampling settings of one utterance.

    Attributes:
        processors: the family's, in stock's order.
        values: a value for each processor.
        cfg_weight: strength of classifier-free guidance; 0 for none.
    """

    processors: tuple[Processor, ...]
    values: tuple[float, ...]
    cfg_weight: float = 0.0

    @classmethod
    def checked(
        cls, processors: tuple[Processor, ...], given: Mapping[str, object], guidance: str | None = None
    ) -> SamplingSettings:
        """Returns the settings among ``given`` arguments; a missing argument has the processor's default.

        Args:
            processors: the family's.
            given: arguments by name; names that are no settings are ignored.
            guidance: the name of the argument that holds the strength of guidance; None for no guidance.

        Raises:
            InputError: lists every setting that is no number, not finite or out of range.
        """
        mistakes: list[str] = []

        def number(name: str, default: float) -> float:
            try:
                return finite_number(name, given.get(name, default))
            except InputError as error:
                mistakes.append(str(error))
                return math.nan

        values = []
        for processor in processors:
            value = number(processor.name, processor.default)
            if not math.isnan(value) and (mistake := processor.mistake(value)):
                mistakes.append(f"{processor.name} {mistake}, got {value}")
            values.append(value)
        cfg_weight = number(guidance, 0.0) if guidance else 0.0
        if mistakes:
            raise InputError("; ".join(mistakes))
        return cls(processors, tuple(values), cfg_weight)

    def numbers(self) -> tuple[float, ...]:
        """Returns what each processor computes with."""
        return tuple(processor.number(value) for processor, value in zip(self.processors, self.values))

    def keys(self) -> tuple[Hashable, ...]:
        """Returns what a captured graph depends on, for each processor: None where it is skipped."""
        pairs = zip(self.processors, self.values)
        return tuple(None if processor.neutral(value) else processor.key(value) for processor, value in pairs)


def divided(x: Tensor, by: float | Tensor) -> Tensor:
    """Divides by a number or a tensor with the same bits: on a GPU torch multiplies by a number's reciprocal."""
    return multiplied(x, by.reciprocal()) if isinstance(by, Tensor) else x / by


def multiplied(x: Tensor, by: float | Tensor) -> Tensor:
    """Multiplies by a number or a tensor with the same bits: torch never rounds a number to half precision first."""
    return (x.float() * by).to(x.dtype) if isinstance(by, Tensor) else x * by


def _penalise(logits: Tensor, seen: Tensor, penalty: float | Tensor) -> Tensor:
    picked = logits.gather(1, seen)
    return logits.scatter(1, seen, torch.where(picked < 0, multiplied(picked, penalty), divided(picked, penalty)))


def _cool(logits: Tensor, _seen: Tensor, temperature: float | Tensor) -> Tensor:
    return divided(logits, temperature)


def _drop_small(logits: Tensor, _seen: Tensor, share: float | Tensor) -> Tensor:
    shares = logits.softmax(-1)
    return logits.masked_fill(shares < multiplied(shares.amax(-1, keepdim=True), share), -math.inf)


def _drop_tail(logits: Tensor, _seen: Tensor, tail: float | Tensor) -> Tensor:
    ascending, order = logits.sort(descending=False)
    dropped = ascending.softmax(-1).cumsum(-1) <= tail
    dropped[..., -1] = False  # the most probable token always stays
    return logits.masked_fill(dropped.scatter(1, order, dropped), -math.inf)


def _positive(value: float) -> str | None:
    return None if value > 0 else "must be above 0"


def _share(value: float) -> str | None:
    return None if 0 <= value <= 1 else "must be from 0 to 1"


# Divides positive and multiplies negative logits of tokens seen; repeats count once.
REPETITION_PENALTY = Processor("repetition_penalty", 1.2, _penalise, _positive)
# Divides the logits.
TEMPERATURE = Processor("temperature", 0.8, _cool, _positive, neutral=lambda value: value == 1)
# Drops tokens below this share of the most probable token's probability; 0 would drop only tokens of probability 0.
MIN_P = Processor("min_p", 0.05, _drop_small, _share, neutral=lambda value: value == 0)
# Keeps the smallest set of tokens whose probabilities reach the value. At 1 stock drops only tokens of probability 0,
# so that its sort of the vocabulary at every step is needed below 1 alone.
TOP_P = Processor("top_p", 1.0, _drop_tail, _share, neutral=lambda value: value == 1, number=lambda value: 1 - value)
