"""Locks for work that one thread may do at a time; compiled code also refuses forked processes."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import defaultdict
from collections.abc import Iterator

import torch

from ..errors import ModelStateError

# Models on one device share a lock, since torch's generators, caches and CUDA graphs of a device are for one thread.
# The CPU's lock also guards what torch keeps once for a process: the CPU's generator, and dynamo and inductor while
# they compile. A thread that holds a GPU's lock may take the CPU's, never the other way round.
_CPU = "cpu"
_locks: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)


class DeviceLock:
    """The lock of a device, entered for whole utterances; may be nested.

    Args:
        device: of the model.

    Raises:
        ModelStateError: when entered in a process that was forked since this object was made: threads of compiled code
            are not forked along, and whoever waits for them waits for ever.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = os.getpid()

    @property
    def forked(self) -> bool:
        """Returns whether this is another process than the one that the lock was made in."""
        return os.getpid() != self._process

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        if self.forked:
            raise ModelStateError(
                f"this model was compiled in process {self._process}, from which process {os.getpid()} was forked: "
                "compiled code does not survive that; start processes with 'spawn', or load and compile in each"
            )
        with locked(self._device):
            yield


@contextlib.contextmanager
def locked(device: torch.device | None = None) -> Iterator[None]:
    """Holds the lock of a device; None means what torch keeps once for a process. A fork does no harm."""
    on_gpu = device is not None and device.type == "cuda"
    with _locks[str(device) if on_gpu else _CPU]:
        yield


def _unlock() -> None:
    """Replaces the locks: a lock that another thread held would be held for ever in a forked process."""
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)
