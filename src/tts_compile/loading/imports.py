"""Imports chatterbox while garbage collection is paused."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedModelError
from ..families import families
from ..utils.gc_pause import gc_paused


def stock_class(name: str) -> Any:
    """Imports and returns a stock class by its name, such as ``"ChatterboxTTS"``.

    It is faster than ``from chatterbox.tts import ChatterboxTTS``, since garbage collection is paused.

    Raises:
        UnsupportedModelError: for an unknown name.
    """
    for family in families():
        if name == family.class_name:
            with gc_paused(long_lived=True):
                return family.load_class()
    known = ", ".join(family.class_name for family in families())
    raise UnsupportedModelError(f"there is no {name!r}; known classes: {known}")
