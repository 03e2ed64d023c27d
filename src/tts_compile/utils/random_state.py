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
        self._states = _global_states(device)

    def restore(self) -> None:
        """Sets the global generators back to this state."""
        _set_global_states(self.device, self._states)

    def same_as(self, other: RandomState) -> bool:
        """Returns whether both states are equal."""
        return all(map(torch.equal, self._states, other._states))


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
        devices = [torch.device("cpu"), *([device] if device.type == "cuda" else [])]
        self._generators = [torch.Generator(each).manual_seed(seed) for each in devices]
        self.generator = self._generators[-1]

    def state(self) -> list[Tensor]:
        """Returns the current state, for :meth:`rewind`."""
        return [generator.get_state() for generator in self._generators]

    def rewind(self, state: list[Tensor]) -> None:
        """Sets the generators back to an earlier state."""
        for generator, before in zip(self._generators, state):
            generator.set_state(before)

    @contextlib.contextmanager
    def as_global(self) -> Iterator[None]:
        """Puts these generators in the place of the global ones for the duration of the block."""
        with generators_kept(self._device):
            _set_global_states(self._device, self.state())
            try:
                yield
            finally:
                self.rewind(_global_states(self._device))


def _global_states(device: torch.device) -> list[Tensor]:
    """Returns the states of the CPU's generator and, for a GPU, of its own."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_global_states(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)
