"""Checks of a request, made before any work is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .audio.reading import Recording
from .errors import InputError, ModelStateError
from .families import Family
from .utils.arguments import as_list


def check_request(tts: Any, family: Family, given: Mapping[str, Any]) -> None:
    """Raises for arguments of ``generate`` that the model cannot use, before it reads a recording or sets a voice."""
    if family.speech is not None:
        family.speech.check_text(tts, given[family.subject])
    check_settings(tts, family, given)


def check_settings(tts: Any, family: Family, given: Mapping[str, Any]) -> None:
    """Raises for arguments of ``generate`` that the model cannot use, the text left aside."""
    if family.speech is not None:
        family.speech.settings(given)
    family.check(tts, given)
    family.voice.check(tts, given[family.voice.argument])
    check_mode(tts, family)


def checked_inputs(tts: Any, family: Family, texts: Iterable[str], recording: object = None) -> list[str]:
    """Returns the texts of a comparison with stock as a list.

    Raises:
        InputError: for no texts, one that the model cannot speak, or a recording that cannot be read.
    """
    found = _checked_texts(tts, family, texts)
    if not found:
        raise InputError("there are no texts to speak")
    if recording is not None:
        Recording(recording)  # raises if it cannot be read
    return found


def checked_warmup_texts(tts: Any, family: Family, texts: Iterable[str]) -> list[str]:
    """Returns the texts of a warm-up as a list.

    Raises:
        InputError: for a model that speaks no texts or has no voice, a single text, or one that cannot be spoken.
    """
    if family.speech is None:
        raise InputError(f"{type(tts).__name__} speaks no texts")
    found = _checked_texts(tts, family, texts)
    family.voice.check(tts, None)
    return found


def _checked_texts(tts: Any, family: Family, texts: Iterable[str]) -> list[str]:
    found = as_list("texts", texts)
    if family.speech is not None:
        for text in found:
            family.speech.check_text(tts, text)
    return found


def check_mode(tts: Any, family: Family) -> None:
    """Raises for a model in training mode."""
    modules = {name: getattr(tts, name, None) for name in family.modules}
    training = [name for name, module in modules.items() if module is not None and module.training]
    if training:
        raise ModelStateError(f"the model is in training mode; call .eval() on {', '.join(training)} first")
