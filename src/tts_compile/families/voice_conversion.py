"""``ChatterboxVC``: a recording spoken in another voice, through S3Gen alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..audio.reading import Recording
from . import s3gen
from .checkpoint_files import checkpoint_files
from .family import Family, Synthesis, VoiceSlot


def _check(tts: Any, given: Mapping[str, Any]) -> None:  # noqa: ARG001 - a family's signature
    if isinstance(given["audio"], (str, os.PathLike)):
        Recording(given["audio"])  # raises where there is none


def _read_voice(reference: Any, tts: Any, wav_fpath: Any) -> None:
    """Does what ``set_target_voice`` does, with the results of the last recordings kept."""
    recording = Recording(wav_fpath)
    key = ("target", recording.digest, tts.DEC_COND_LEN)
    tts.ref_dict = reference.answer(key, tts.device, lambda: reference.embedded(recording)[1])


VOICE_CONVERSION = Family(
    name="voice conversion",
    stock_class="chatterbox.vc.ChatterboxVC",
    files=checkpoint_files(s3gen="s3gen.safetensors"),
    modules=("s3gen",),
    watermarker="watermarker",
    voice=VoiceSlot("ref_dict", "set_target_voice", "target_voice_path", read=_read_voice, modules=("chatterbox.vc",)),
    synthesis=Synthesis(s3gen.valid_tokens, s3gen.wave, s3gen.watermark, attribute="s3gen"),
    subject="audio",
    check=_check,
)
