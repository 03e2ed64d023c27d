"""Sampling with stock's semantics: settings, the processors that they belong to, and the choice of the next token."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
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

    def probabilities(self, logits: Tensor, seen: Tensor, numbers: Sequence[float | Tensor] | None = None) -> Tensor:
        """Returns next-token probabilities after all processors that can change them, in stock's order.

        Args:
            logits: (utterances, vocabulary).
            seen: int64 (utterances, n), the tokens that the repetition penalty applies to.
            numbers: what the processors compute with; None takes the settings' own.
        """
        for processor, number, key in zip(self.processors, numbers or self.numbers(), self.keys()):
            if key is not None:
                logits = processor.apply(logits, seen, number)
        return logits.softmax(-1)


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


def guide(logits: Tensor, cfg_weight: Tensor, guided: bool) -> Tensor:
    """Combines rows by classifier-free guidance: (2 * n, ..., vocabulary) become n rows; unguided rows stay.

    Conditional and unconditional rows alternate. ``cfg_weight`` is 0-dimensional, of the logits' dtype: a number would
    be part of a compiled graph.
    """
    if not guided:
        return logits
    conditional, unconditional = logits[0::2], logits[1::2]
    return conditional + cfg_weight * (conditional - unconditional)


def choose(weights: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the tokens (utterances,) that ``torch.multinomial(weights, 1)`` gives, and which of them are valid.

    ``multinomial`` with one sample is ``argmax(p / q)`` for exponential ``q`` (ATen's native multinomial). A token is
    not valid where the probabilities hold nan, which stems from non-finite logits.
    """
    best, token = (weights / noise).max(-1)
    return token, ~best.isnan()


class NoiseStream:
    """Exponential noise for each token, by default from the global generator of the model's device.

    ``torch.multinomial(p, 1)`` is ``argmax(p / q)`` with ``q`` exponential, one draw for each probability (ATen's
    native multinomial), so that one (1, vocabulary) draw a token keeps the generator in step with stock. Guessing
    needs draws ahead of time; :meth:`settle` undoes those that no token has used.
    """

    def __init__(self, like: Tensor, generator: torch.Generator | None = None) -> None:
        self._like = like  # (1, vocabulary)
        if generator is not None:
            self._generator = generator
        elif like.is_cuda:
            self._generator = torch.cuda.default_generators[like.get_device()]
        else:
            self._generator = torch.default_generator
        self._drawn: dict[int, tuple[Tensor, Tensor]] = {}  # token index -> generator state before, noise
        self._next = 0
        self._first = self._generator.get_state()

    def __getitem__(self, index: int) -> Tensor:
        """Returns the noise (1, vocabulary) of token ``index``; settled indices are gone."""
        while self._next <= index:
            before = self._generator.get_state()
            noise = torch.empty_like(self._like).exponential_(1, generator=self._generator)
            self._drawn[self._next] = before, noise
            self._next += 1
        return self._drawn[index][1]

    def release(self, below: int) -> None:
        """Forgets the noise of tokens below an index: their choice is final."""
        for index in [index for index in self._drawn if index < below]:
            del self._drawn[index]

    def rewind(self) -> None:
        """Leaves the generator as if nothing had been drawn, and begins anew."""
        self._generator.set_state(self._first)
        self._drawn.clear()
        self._next = 0

    def settle(self, used: int) -> None:
        """Leaves the generator as if noise had been drawn for the first ``used`` tokens only."""
        if used in self._drawn:
            self._generator.set_state(self._drawn[used][0])
        self._drawn.clear()
        self._next = used
