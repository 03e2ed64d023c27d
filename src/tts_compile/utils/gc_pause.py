"""Pauses of Python's garbage collector while many objects are created."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def gc_paused(long_lived: bool = False) -> Iterator[None]:
    """Pauses garbage collection for the duration of the block.

    The collector examines all objects each time their number has grown by a quarter: 0.3 s for the half million objects
    that exist once chatterbox is imported.

    Args:
        long_lived: marks the objects that the block has created as old, so that the first collection after the block
            does not examine all of them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        if long_lived and not gc.get_freeze_count():  # otherwise unfreezing would undo another caller's freeze
            gc.freeze()
            gc.unfreeze()  # moves the objects into the oldest generation
    finally:
        if was_enabled:
            gc.enable()
