"""Writing down what a wave says, where the extra ``quality`` is installed."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..audio.reading import resample
from ..errors import InputError

RECOGNISER = "openai/whisper-base.en"
_RATE = 16_000  # Hz, that speech recognisers hear at


def listener() -> tuple[Callable[[Tensor, int], str] | None, str]:
    """A recogniser where words can be compared, and otherwise why they cannot."""
    if importlib.util.find_spec("jiwer") is None:
        return None, "words were not compared: the extra tts-compile[quality] is not installed"
    try:
        return recogniser(), ""
    except InputError as error:
        return None, f"words were not compared: {error}"


@functools.lru_cache(maxsize=1)
def recogniser(model: str = RECOGNISER) -> Callable[[Tensor, int], str]:
    """A function that writes down a wave (1, samples) of a rate in Hz; the model comes from the Hugging Face hub.

    Raises:
        InputError: when the model cannot be had.
    """
    from transformers import pipeline

    try:
        listen: Any = pipeline("automatic-speech-recognition", model=model)
    except (OSError, ValueError) as error:  # of the hub: no network, no such model
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise InputError(f"the recogniser {model} cannot be loaded: {reason}") from error

    def write_down(wave: Tensor, rate: int) -> str:
        heard = resample(wave.detach().to(torch.float32).cpu().reshape(-1).numpy(), rate, _RATE)
        return str(listen({"raw": heard, "sampling_rate": _RATE})["text"])

    return write_down
