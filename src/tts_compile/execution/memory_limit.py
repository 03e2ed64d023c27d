"""How much memory may be taken, and what is held of it."""

from __future__ import annotations

import torch

from ..errors import OutOfMemoryError
from ..utils.device import free_memory, held_memory

_GIB = 2**30


class MemoryLimit:
    """A ceiling on what a process holds on one device, asked before something is taken that could be done without.

    Args:
        device: of the model. On a CPU the resident memory of the process counts, on a GPU what torch has allocated.
        gib: None for as much as there is.
    """

    def __init__(self, device: torch.device, gib: float | None = None) -> None:
        self._device = device
        self._gib = gib

    def room(self) -> int:
        """Bytes that may still be taken; negative above the limit."""
        free = free_memory(self._device)
        return free if self._gib is None else min(free, int(self._gib * _GIB) - held_memory(self._device))

    def refused(self, size: int) -> str | None:
        """Why ``size`` bytes may not be taken, if so; there is no reason without a limit."""
        if self._gib is None or size <= self.room():
            return None
        held = held_memory(self._device) / _GIB
        return f"{size / _GIB:.2f} GiB more would exceed the limit of {self._gib:g} GiB: {held:.2f} GiB are held"

    def check(self, size: int = 0) -> None:
        """Raise before the limit is hit.

        Raises:
            OutOfMemoryError: when ``size`` bytes may not be taken.
        """
        if why := self.refused(size):
            raise OutOfMemoryError(why)
