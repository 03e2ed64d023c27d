"""The state of torch's random generators, kept and restored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


class RandomState:
    """Where the global generators that a model on ``device`` draws from stand now."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Have them stand there again."""
        torch.set_rng_state(self._cpu)
        if self._gpu is not None:
            torch.cuda.set_rng_state(self._gpu, self._device)

    def same_as(self, other: RandomState) -> bool:
        """Whether they stood there too when the other was made."""
        if self._gpu is not None and other._gpu is not None and not torch.equal(self._gpu, other._gpu):
            return False
        return torch.equal(self._cpu, other._cpu)


class RandomNumbers:
    """What ``torch.manual_seed`` and one utterance make of torch's generators, beside the global ones.

    Args:
        seed: as of ``torch.manual_seed``.
        device: of the model.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.Generator().manual_seed(seed)
        self.generator = torch.Generator(device).manual_seed(seed) if device.type == "cuda" else self._cpu

    def state(self) -> list[Tensor]:
        """Where they stand; :meth:`rewind` takes it."""
        return [generator.get_state() for generator in (self._cpu, self.generator)]

    def rewind(self, state: list[Tensor]) -> None:
        """Have them stand there again."""
        for generator, before in zip((self._cpu, self.generator), state):
            generator.set_state(before)

    @contextlib.contextmanager
    def as_global(self) -> Iterator[None]:
        """What is drawn from the global generators inside comes from these."""
        on_gpu = self.generator is not self._cpu
        with torch.random.fork_rng(devices=[self._device] if on_gpu else []):
            torch.set_rng_state(self._cpu.get_state())
            if on_gpu:
                torch.cuda.set_rng_state(self.generator.get_state(), self._device)
            try:
                yield
            finally:
                self._cpu.set_state(torch.get_rng_state())
                if on_gpu:
                    self.generator.set_state(torch.cuda.get_rng_state(self._device))
