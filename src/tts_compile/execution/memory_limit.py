"""A limit on the memory that a model's process may hold."""

from __future__ import annotations

import torch

from ..errors import OutOfMemoryError
from ..utils.device import free_memory, held_memory

_GIB = 2**30


class MemoryLimit:
    """A limit on the memory of one device, checked before memory is taken that the library can do without.

    Args:
        device: of the model. On a CPU the resident memory of the process counts, on a GPU what torch has allocated.
        gib: None for as much as there is.
    """

    def __init__(self, device: torch.device, gib: float | None = None) -> None:
        self._device = device
        self._gib = gib

    def room(self) -> int:
        """Returns the bytes that may still be taken; negative above the limit."""
        free = free_memory(self._device)
        return free if self._gib is None else min(free, int(self._gib * _GIB) - held_memory(self._device))

    def refused(self, size: int) -> str | None:
        """Returns why ``size`` bytes may not be taken, or None; without a limit there is no reason."""
        if self._gib is None or size <= self.room():
            return None
        held = held_memory(self._device) / _GIB
        return f"{size / _GIB:.2f} GiB more would exceed the limit of {self._gib:g} GiB: {held:.2f} GiB are held"

    def check(self, size: int = 0) -> None:
        """Raises where ``size`` more bytes would exceed the limit.

        Raises:
            OutOfMemoryError: when ``size`` bytes may not be taken.
        """
        if why := self.refused(size):
            raise OutOfMemoryError(why)
