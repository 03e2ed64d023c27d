"""The attribute in which a model keeps its voice, and the method that sets it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InputError


@dataclass(frozen=True)
class VoiceSlot:
    """Names of a family's voice.

    Attributes:
        attribute: of the model; None there means that the model has no voice.
        method: of the model; reads a recording and sets the attribute.
        argument: of ``generate``; a recording to speak with.
        read: does what ``method`` does, with the same arguments, but through a cache of the last results; its first
            arguments are a :class:`tts_compile.components.voice.ReferenceComponent` and the model. None leaves
            ``method`` to stock.
        modules: names of the modules whose ``method`` is the one that ``read`` was written for.
    """

    attribute: str
    method: str
    argument: str
    read: Callable[..., None] | None = None
    modules: tuple[str, ...] = ()

    def of(self, tts: Any) -> Any:
        """Returns the model's voice, or None."""
        return getattr(tts, self.attribute, None)

    def check(self, tts: Any, recording: object) -> None:
        """Raises where the model has no voice and no recording is given.

        Raises:
            InputError: then.
        """
        if not recording and self.of(tts) is None:
            raise InputError(f"the model has no voice: pass a reference or call {self.method} first")

    def prepare(self, tts: Any, recording: str) -> None:
        """Reads a recording as the model does; keeps its voice only where the model had none."""
        before = self.of(tts)
        getattr(tts, self.method)(recording)
        if before is not None:
            setattr(tts, self.attribute, before)

    def move(self, tts: Any, device: Any) -> None:
        """Moves the voice's tensors to a device."""
        voice = self.of(tts)
        if isinstance(voice, dict):
            moved = {name: value.to(device) if torch.is_tensor(value) else value for name, value in voice.items()}
            setattr(tts, self.attribute, moved)
        elif voice is not None:
            voice.to(device)

    @contextlib.contextmanager
    def kept(self, tts: Any) -> Iterator[None]:
        """Restores the voice at the end of the block, whatever was done to it inside."""
        before = self.of(tts)
        # generate exchanges a part of the voice when it is asked for another exaggeration
        parts = dict(vars(before)) if hasattr(before, "__dict__") else {}
        try:
            yield
        finally:
            setattr(tts, self.attribute, before)
            if parts:
                vars(before).update(parts)
