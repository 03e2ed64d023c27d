"""The state of torch's random generators, kept and restored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor


def generators_kept(device: torch.device) -> AbstractContextManager[None]:
    """Keeps the global generators that a model on ``device`` draws from; no other device is touched."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


class RandomState:
    """The current state of the global generators that a model on ``device`` draws from."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cpu = torch.get_rng_state()
        self._gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Sets the global generators back to this state."""
        torch.set_rng_state(self._cpu)
        if self._gpu is not None:
            torch.cuda.set_rng_state(self._gpu, self.device)

    def same_as(self, other: RandomState) -> bool:
        """Returns whether both states are equal."""
        if self._gpu is not None and other._gpu is not None and not torch.equal(self._gpu, other._gpu):
            return False
        return torch.equal(self._cpu, other._cpu)


class RandomNumbers:
    """Generators of one utterance, which give the numbers that the global ones give after ``torch.manual_seed``.

    Args:
        seed: an argument of ``torch.manual_seed``.
        device: the model's device.

    Attributes:
        generator: the generator for tensors on the device.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.Generator().manual_seed(seed)
        self.generator = torch.Generator(device).manual_seed(seed) if device.type == "cuda" else self._cpu

    def state(self) -> list[Tensor]:
        """Returns the current state, for :meth:`rewind`."""
        return [generator.get_state() for generator in (self._cpu, self.generator)]

    def rewind(self, state: list[Tensor]) -> None:
        """Sets the generators back to an earlier state."""
        for generator, before in zip((self._cpu, self.generator), state):
            generator.set_state(before)

    @contextlib.contextmanager
    def as_global(self) -> Iterator[None]:
        """Puts these generators in the place of the global ones for the duration of the block."""
        on_gpu = self.generator is not self._cpu
        with generators_kept(self._device):
            torch.set_rng_state(self._cpu.get_state())
            if on_gpu:
                torch.cuda.set_rng_state(self.generator.get_state(), self._device)
            try:
                yield
            finally:
                self._cpu.set_state(torch.get_rng_state())
                if on_gpu:
                    self.generator.set_state(torch.cuda.get_rng_state(self._device))
