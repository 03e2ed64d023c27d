"""One thread of a process at a time, and no process but the one that a model was compiled in."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from ..errors import ModelStateError

# For all models together: torch's generators are global, dynamo and inductor are made for one thread, and a GPU's
# generators draw nothing while another thread records.
_lock = threading.RLock()


class Turn:
    """Entered for every utterance; may be nested.

    Raises:
        ModelStateError: in a process that was forked since this was made: threads of compiled code are not forked
            along, and whoever waits for them waits for ever.
    """

    def __init__(self) -> None:
        self._process = os.getpid()

    @property
    def forked(self) -> bool:
        """Whether this is another process than the one that it was made in."""
        return os.getpid() != self._process

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        if self.forked:
            raise ModelStateError(
                f"this model was compiled in process {self._process}, from which process {os.getpid()} was forked: "
                "compiled code does not survive that; start processes with 'spawn', or load and compile in each"
            )
        with alone():
            yield


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """A turn for what a fork does no harm."""
    with _lock:
        yield


def _unlocked() -> None:
    """A lock that another thread held is held for ever in a fork."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlocked)
