"""Choosing the next token, with the semantics of the transformers processors that stock T3 uses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import InputError
from ...utils.arguments import finite_number

# The settings' names, which are those of stock's arguments.
SAMPLING = ("temperature", "top_p", "min_p", "repetition_penalty", "cfg_weight")


class Numbers(NamedTuple):
    """What the processors compute with: numbers, or 0-dimensional tensors where they may vary in recorded launches."""

    repetition_penalty: float | Tensor
    temperature: float | Tensor
    min_p: float | Tensor
    tail: float | Tensor  # what top-p may drop


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of one utterance, checked when made.

    Attributes:
        temperature: divides the logits; finite, above 0.
        top_p: smallest set of tokens whose probabilities reach it is kept; 0 to 1.
        min_p: tokens below this share of the most probable one's probability are dropped; 0 to 1.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen; finite, above 0.
        cfg_weight: strength of classifier-free guidance; finite.

    Raises:
        InputError: lists every setting that is out of range.
    """

    temperature: float = 0.8
    top_p: float = 1.0
    min_p: float = 0.05
    repetition_penalty: float = 1.2
    cfg_weight: float = 0.5

    def __post_init__(self) -> None:
        mistakes = []
        for name in SAMPLING:
            try:
                number = finite_number(name, getattr(self, name))
            except InputError as error:
                mistakes.append(str(error))
                continue
            if name in ("top_p", "min_p") and not 0 <= number <= 1:
                mistakes.append(f"{name} must be from 0 to 1, got {number}")
            elif name in ("temperature", "repetition_penalty") and number <= 0:
                mistakes.append(f"{name} must be above 0, got {number}")
            object.__setattr__(self, name, number)
        if mistakes:
            raise InputError("; ".join(mistakes))

    def numbers(self) -> Numbers:
        """Those of the processors."""
        return Numbers(self.repetition_penalty, self.temperature, self.min_p, 1 - self.top_p)

    def kinds(self) -> tuple[bool, bool, bool]:
        """Which of temperature, min-p and top-p can change the probabilities."""
        return self.temperature != 1.0, self.min_p > 0, self.top_p < 1


def guide(logits: Tensor, cfg_weight: Tensor, guided: bool) -> Tensor:
    """Classifier-free guidance: (2 * n, ..., vocabulary), conditional and unconditional rows in turn, become n rows.

    Not ``guided``, the rows are returned as they are: there is nothing to combine. ``cfg_weight`` is 0-dimensional, of
    the logits' dtype: a number would be part of a compiled graph.
    """
    if not guided:
        return logits
    conditional, unconditional = logits[0::2], logits[1::2]
    return conditional + cfg_weight * (conditional - unconditional)


def probabilities(logits: Tensor, seen: Tensor, settings: SamplingSettings, numbers: Numbers | None = None) -> Tensor:
    """Next-token probabilities after penalty, temperature, min-p and top-p, in stock's order.

    Args:
        logits: (utterances, vocabulary).
        seen: int64 (utterances, n), tokens that the repetition penalty applies to; repeats count once.
        settings: say which processors there are.
        numbers: what they compute with; None takes the settings' own.

    A processor that cannot change the probabilities is skipped: min-p of 0 and top-p of 1 remove only tokens of
    probability 0, so the sort of the vocabulary that stock does at every step is needed for ``top_p < 1`` alone.
    """
    penalty, temperature, min_p, tail = numbers or settings.numbers()
    divides, drops_small, drops_tail = settings.kinds()
    picked = logits.gather(1, seen)
    penalised = torch.where(picked < 0, _multiplied(picked, penalty), _divided(picked, penalty))
    logits = logits.scatter(1, seen, penalised)
    if divides:
        logits = _divided(logits, temperature)
    if drops_small:
        shares = logits.softmax(-1)
        logits = logits.masked_fill(shares < _multiplied(shares.amax(-1, keepdim=True), min_p), -math.inf)
    if drops_tail:
        ascending, order = logits.sort(descending=False)
        dropped = ascending.softmax(-1).cumsum(-1) <= tail
        dropped[..., -1] = False  # the most probable token always stays
        logits = logits.masked_fill(dropped.scatter(1, order, dropped), -math.inf)
    return logits.softmax(-1)


def _divided(x: Tensor, by: float | Tensor) -> Tensor:
    """On a GPU, torch divides by a number as a product with its reciprocal; with a tensor, this gives the same bits."""
    return _multiplied(x, by.reciprocal()) if isinstance(by, Tensor) else x / by


def _multiplied(x: Tensor, by: float | Tensor) -> Tensor:
    """By a tensor as by a number, which is never rounded to half precision first."""
    return (x.float() * by).to(x.dtype) if isinstance(by, Tensor) else x * by


def choose(weights: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens (utterances,) that ``torch.multinomial(weights, 1)`` gives for the same noise, and which to trust.

    ``multinomial`` with one sample is ``argmax(p / q)`` for exponential ``q`` (ATen's native multinomial). Not to be
    trusted are those from probabilities that hold nan, which stems from non-finite logits.
    """
    best, token = (weights / noise).max(-1)
    return token, ~best.isnan()
