"""Sparing Python's garbage collector work that finds nothing."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def not_collected() -> Iterator[None]:
    """No garbage collection meanwhile, for work that makes very many objects.

    The collector goes through all objects again each time their number has grown by a quarter: 0.3 s for the half
    million that are there once chatterbox is imported.
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
    """The same for work whose objects stay: they count as old afterwards, and are not looked through at once."""
    with not_collected():
        yield
        if not gc.get_freeze_count():  # otherwise somebody else keeps objects away from the collector
            gc.freeze()
            gc.unfreeze()  # puts them into the oldest generation
