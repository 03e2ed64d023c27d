"""Speech recognition for comparing words, where the extra ``quality`` is installed."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..audio.reading import resample
from ..errors import InputError
from ..fallback import reason
from ..families import Family

Transcriber = Callable[[Tensor, int], str]  # returns the text of a wave (1, samples) with a rate in Hz

RECOGNISER = "openai/whisper-base.en"
_RATE = 16_000  # Hz, of the recogniser's input


class Words(NamedTuple):
    """The transcriber of a comparison.

    Attributes:
        transcribe: the transcriber; None where words are not compared.
        note: the reason why they are not, for the report; empty where that was asked for.
    """

    transcribe: Transcriber | None = None
    note: str = ""


NO_WORDS = Words()


def chosen(transcribe: Transcriber | bool, family: Family) -> Words:
    """Returns the transcriber that was asked for; True asks for a recogniser where one is installed."""
    if family.speech is None:
        return Words(note="words were not compared: the words of the recording are not known")
    if callable(transcribe):
        return Words(transcribe)
    if not transcribe:
        return NO_WORDS
    if importlib.util.find_spec("jiwer") is None:
        return Words(note="words were not compared: the extra tts-compile[quality] is not installed")
    try:
        return Words(recogniser())
    except InputError as error:
        return Words(note=f"words were not compared: {error}")


@functools.lru_cache(maxsize=1)
def recogniser(model: str = RECOGNISER) -> Transcriber:
    """Returns a transcriber that runs a model of the Hugging Face hub.

    Raises:
        InputError: when the model cannot be loaded.
    """
    from transformers import pipeline

    try:
        recognise: Any = pipeline("automatic-speech-recognition", model=model)
    except (OSError, ValueError) as error:  # from the hub: no network, no such model
        raise InputError(f"the recogniser {model} cannot be loaded: {reason(error)}") from error

    def transcribe(wave: Tensor, rate: int) -> str:
        samples = resample(wave.detach().to(torch.float32).cpu().reshape(-1).numpy(), rate, _RATE)
        return str(recognise({"raw": samples, "sampling_rate": _RATE})["text"])

    return transcribe
