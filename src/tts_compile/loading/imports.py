"""Importing chatterbox with less waiting."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

from ..errors import UnsupportedModelError
from ..layout import LAYOUTS


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """No garbage collection meanwhile: importing and building make a million objects that stay.

    Going through all of them again and again takes a quarter of the time that importing chatterbox takes.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def stock_class(name: str) -> Any:
    """Import chatterbox, and give the class of that name, such as ``"ChatterboxTTS"``.

    The same as ``from chatterbox.tts import ChatterboxTTS``, save that no garbage is collected meanwhile.

    Raises:
        UnsupportedModelError: for an unknown name.
    """
    for layout in LAYOUTS.values():
        if name == layout.name:
            with without_collections():
                return layout.stock_class()
    known = ", ".join(layout.name for layout in LAYOUTS.values())
    raise UnsupportedModelError(f"there is no {name!r}; known classes: {known}")
