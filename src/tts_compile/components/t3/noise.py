"""The random numbers of one utterance, drawn as stock draws them, and given back where drawn too early."""

from __future__ import annotations

import torch
from torch import Tensor


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
        """The noise (1, vocabulary) of token ``index``; indices below one that was settled are gone."""
        while self._next <= index:
            before = self._generator.get_state()
            noise = torch.empty_like(self._like).exponential_(1, generator=self._generator)
            self._drawn[self._next] = before, noise
            self._next += 1
        return self._drawn[index][1]

    def release(self, below: int) -> None:
        """Forget the noise of tokens below an index: their choice stands."""
        for index in [index for index in self._drawn if index < below]:
            del self._drawn[index]

    def rewind(self) -> None:
        """Leave the generator as if nothing had been drawn, and begin anew."""
        self._generator.set_state(self._first)
        self._drawn.clear()
        self._next = 0

    def settle(self, used: int) -> None:
        """Leave the generator as if noise had been drawn for the first ``used`` tokens only."""
        if used in self._drawn:
            self._generator.set_state(self._drawn[used][0])
        self._drawn.clear()
        self._next = used
