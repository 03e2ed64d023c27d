"""Pauses of Python's garbage collector while many objects are created."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def not_collected() -> Iterator[None]:
    """Pauses garbage collection for the duration of the block.

    The collector examines all objects each time their number has grown by a quarter: 0.3 s for the half million objects
    that exist once chatterbox is imported.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def made_to_stay() -> Iterator[None]:
    """Pauses garbage collection, and marks the objects that the block has created as old: they will not be freed soon.

    Without the mark, the first collection after the block would examine all of them.
    """
    with not_collected():
        yield
        if not gc.get_freeze_count():  # otherwise unfreezing would undo another caller's freeze
            gc.freeze()
            gc.unfreeze()  # moves the objects into the oldest generation
