"""S3Gen as Chatterbox uses it: from speech tokens to a watermarked wave, and from a recording to a voice."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..audio.reading import Recording, Samples
from ..errors import InputError
from ..utils.arguments import finite_number

# The speaker encoder's statistics need two of its frames, which are three of its fbank's: a window of 25 ms and two
# steps of 10 ms. With less, stock gives nan, or fails in a padding.
_FEWEST = 720  # samples at 16 kHz
_FBANK_RATE = 16_000


def valid_tokens(tts: Any, tokens: list[int]) -> Tensor:
    """Returns the tokens between start and stop that stand for audio, as English ``generate`` selects them.

    Raises:
        InputError: when there are none.
    """
    from chatterbox.models.s3tokenizer import SPEECH_VOCAB_SIZE, drop_invalid_tokens

    kept = drop_invalid_tokens(torch.tensor(tokens))
    found: Tensor = kept[kept < SPEECH_VOCAB_SIZE].to(tts.device)
    if not len(found):
        raise InputError("the speech model sampled no token that stands for audio")
    return found


def wave(tts: Any, tokens: Tensor, voice: Any) -> Tensor:
    """Returns the wave (1, samples) of speech tokens (n,)."""
    found, _ = tts.s3gen.inference(speech_tokens=tokens, ref_dict=voice.gen)
    return _on_cpu(found)


def mel_wave(tts: Any, mel: Tensor) -> Tensor:
    """Returns the wave (1, samples) of mel frames (1, 80, frames), as the end of ``S3Token2Wav.inference``."""
    s3gen = tts.s3gen
    found, _ = s3gen.hift_inference(mel.to(dtype=s3gen.dtype))
    found[:, : len(s3gen.trim_fade)] *= s3gen.trim_fade
    return _on_cpu(found)


def watermark(tts: Any, found: Tensor) -> Tensor:
    """Returns a wave (1, samples) with the model's watermark."""
    marked = tts.watermarker.apply_watermark(found[0].numpy(), sample_rate=tts.sr)
    return torch.from_numpy(marked)[None]


def _on_cpu(found: Tensor) -> Tensor:
    result: Tensor = found.detach().cpu()
    return result


def voice_modules(s3gen: Any) -> list[nn.Module]:
    """Returns the modules that ``S3Gen.embed_ref`` runs, the last of which embeds the speaker."""
    return [s3gen.tokenizer, s3gen.speaker_encoder]


def voice_settings(s3gen: Any) -> tuple[Hashable, ...]:
    """Returns what else the result of ``S3Gen.embed_ref`` depends on."""
    return s3gen.dtype, s3gen.mel_extractor


def reference_wave(tts: Any, recording: Recording) -> tuple[Samples, Samples, int]:
    """Returns a recording (samples,), its beginning that stock passes to ``embed_ref``, and the rate of both.

    Raises:
        InputError: for a beginning from which stock would make a meaningless voice.
    """
    from chatterbox.models.s3gen import S3GEN_SR

    wave = recording.samples(S3GEN_SR)
    start = wave[: tts.DEC_COND_LEN]
    check_wave(start, S3GEN_SR, recording.name)
    return wave, start, S3GEN_SR


def check_wave(wave: Any, rate: Any, name: str) -> None:
    """Refuses a reference from which stock would make a meaningless voice.

    Args:
        wave: (samples,) or (references, samples), an array or tensor.
        rate: in Hz.
        name: for the message.
    """
    if not isinstance(wave, (np.ndarray, Tensor)):
        raise InputError(f"{name} must be an array or a tensor, got {type(wave).__name__}")
    if wave.ndim not in (1, 2):
        raise InputError(f"{name} must be (samples,) or (references, samples), got the shape {tuple(wave.shape)}")
    if not finite_number("the sample rate", rate) > 0:
        raise InputError(f"the sample rate must be positive, got {rate}")
    if math.ceil(wave.shape[-1] * _FBANK_RATE / rate) < _FEWEST:
        seconds, needed = wave.shape[-1] / rate, _FEWEST / _FBANK_RATE
        hint = "; channels come first" if wave.ndim == 2 and wave.shape[0] > wave.shape[1] else ""
        raise InputError(f"{name} holds {seconds:.4f} s of audio, the model needs at least {needed:.4f} s{hint}")
    rows = torch.as_tensor(wave).detach().reshape(-1, wave.shape[-1])
    if not torch.isfinite(rows).all():
        raise InputError(f"{name} holds samples that are not finite")
    if not rows.any(dim=1).all():
        raise InputError(
            f"{name} is silent: there is no voice in the {wave.shape[-1] / rate:.1f} s that the model reads"
        )
