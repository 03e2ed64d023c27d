"""The second half of Chatterbox's ``generate``: S3Gen and the watermark."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError


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
