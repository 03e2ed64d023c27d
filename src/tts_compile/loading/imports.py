"""Importing chatterbox with less waiting."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedModelError
from ..families.checkpoint_files import LAYOUTS
from ..utils.gc_pause import made_to_stay


def stock_class(name: str) -> Any:
    """Import chatterbox, and give the class of that name, such as ``"ChatterboxTTS"``.

    The same as ``from chatterbox.tts import ChatterboxTTS``, save that no garbage is collected meanwhile.

    Raises:
        UnsupportedModelError: for an unknown name.
    """
    for layout in LAYOUTS.values():
        if name == layout.name:
            with made_to_stay():
                return layout.stock_class()
    known = ", ".join(layout.name for layout in LAYOUTS.values())
    raise UnsupportedModelError(f"there is no {name!r}; known classes: {known}")
