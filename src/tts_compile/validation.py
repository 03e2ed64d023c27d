"""What can be said against a request before any work is done."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from .audio.reading import Recording
from .errors import InputError, ModelStateError
from .families import family_of
from .families.english import check_text
from .utils.arguments import checked_texts, finite_number


def check_request(tts: Any, given: dict[str, Any]) -> None:
    """Raise before a reference is read or a voice replaced, so that a bad request costs nothing."""
    if hasattr(tts, "t3"):
        check_text(tts, given["text"])
        check_settings(tts, given)
    else:
        check_voice(tts, given["target_voice_path"])
        if isinstance(given["audio"], (str, os.PathLike)):
            Recording(given["audio"])  # raises where there is none
        check_mode(tts)


def checked_inputs(tts: Any, texts: Iterable[str], recording: object = None) -> list[str]:
    """Texts for a comparison with stock; and whether a recording is one, where one is given.

    Raises:
        InputError: for no texts, one that the model cannot speak, or a recording that cannot be read.
    """
    found = checked_texts(texts)
    if not found:
        raise InputError("there are no texts to speak")
    if hasattr(tts, "t3"):
        for text in found:
            check_text(tts, text)
    if recording is not None:
        Recording(recording)  # raises where there is none
    return found


def check_settings(tts: Any, given: dict[str, Any]) -> None:
    """The same for everything but the text."""
    family_of(type(tts)).speech.settings(given)
    finite_number("exaggeration", given["exaggeration"])
    check_voice(tts, given["audio_prompt_path"])
    check_mode(tts)


def check_voice(tts: Any, reference: object) -> None:
    """Raise where there is no voice and none is given."""
    attribute, method = ("conds", "prepare_conditionals") if hasattr(tts, "t3") else ("ref_dict", "set_target_voice")
    if not reference and getattr(tts, attribute) is None:
        raise InputError(f"the model has no voice: pass a reference or call {method} first")


def check_mode(tts: Any) -> None:
    """Raise for a model in training mode."""
    training = [name for name in ("t3", "s3gen", "ve") if hasattr(tts, name) and getattr(tts, name).training]
    if training:
        raise ModelStateError(f"the model is in training mode; call .eval() on {', '.join(training)} first")
