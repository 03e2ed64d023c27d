"""Sparing Python's garbage collector work that finds nothing."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def not_collected() -> Iterator[None]:
    """No garbage collection meanwhile, for work that makes very many objects that stay.

    The collector goes through all objects again each time their number has grown by a quarter: 0.3 s for the million
    that chatterbox and torch's compiler leave.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
