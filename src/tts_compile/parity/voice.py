"""The voice that a model speaks with, put aside and given back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

_WHERE = ("conds", "ref_dict")  # of a model, of a voice converter


class Voice:
    """Of one model."""

    def __init__(self, tts: Any) -> None:
        self._tts = tts

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever is done to the voice inside, it is the same one at the end."""
        before = self._now()
        # generate exchanges a part of it when it is asked for another exaggeration
        parts = [(voice, dict(vars(voice))) for voice in before.values() if hasattr(voice, "__dict__")]
        try:
            yield
        finally:
            self._set(before)
            for voice, attributes in parts:
                vars(voice).update(attributes)

    def prepare(self, recording: str) -> None:
        """Read a recording as the model does; its voice is kept only where the model has none."""
        before = self._now()
        read = self._tts.prepare_conditionals if hasattr(self._tts, "t3") else self._tts.set_target_voice
        read(recording)
        if any(voice is not None for voice in before.values()):
            self._set(before)

    def _now(self) -> dict[str, Any]:
        return {name: vars(self._tts)[name] for name in _WHERE if name in vars(self._tts)}

    def _set(self, voice: dict[str, Any]) -> None:
        for name, value in voice.items():
            setattr(self._tts, name, value)
