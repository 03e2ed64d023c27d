"""Choice of the next token from logits and random numbers, with stock's semantics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...families.sampling import SamplingSettings


def guide(logits: Tensor, cfg_weight: Tensor, guided: bool) -> Tensor:
    """Combines rows by classifier-free guidance: (2 * n, ..., vocabulary) become n rows; unguided rows stay.

    Conditional and unconditional rows alternate. ``cfg_weight`` is 0-dimensional, of the logits' dtype: a number would
    be part of a compiled graph.
    """
    if not guided:
        return logits
    conditional, unconditional = logits[0::2], logits[1::2]
    return conditional + cfg_weight * (conditional - unconditional)


def probabilities(
    logits: Tensor, seen: Tensor, settings: SamplingSettings, numbers: Sequence[float | Tensor] | None = None
) -> Tensor:
    """Returns next-token probabilities after all processors that can change them, in stock's order.

    Args:
        logits: (utterances, vocabulary).
        seen: int64 (utterances, n), the tokens that the repetition penalty applies to.
        settings: the processors and their values.
        numbers: what the processors compute with; None takes the settings' own.
    """
    for processor, number, key in zip(settings.processors, numbers or settings.numbers(), settings.keys()):
        if key is not None:
            logits = processor.apply(logits, seen, number)
    return logits.softmax(-1)


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
