"""A lock for work that one thread of a process may do at a time; compiled code also refuses forked processes."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from ..errors import ModelStateError

# One lock for all models and devices, since an utterance uses what torch keeps once for a process: the vocoder draws
# from the CPU's generator on a GPU too (stock's SineGen), dynamo puts the global generators back after it has traced,
# inductor compiles for one thread, and torch captures CUDA graphs for one thread at a time.
_lock = threading.RLock()


class ProcessLock:
    """The lock of a compiled model, entered for whole utterances; may be nested.

    Raises:
        ModelStateError: when entered in a process that was forked since this object was made: threads of compiled code
            are not forked along, and whoever waits for them waits for ever.
    """

    def __init__(self) -> None:
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
        with locked():
            yield


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Holds the lock for work that a fork does not harm."""
    with _lock:
        yield


def _replace_lock() -> None:
    """Replaces the lock: one that another thread held would be held for ever in a forked process."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_lock)
