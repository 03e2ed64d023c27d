"""``ChatterboxTurboTTS``: its files; its token loop, with a GPT-2 backbone, is not written yet."""

from __future__ import annotations

from .checkpoint_files import checkpoint_files
from .english import CHATTERBOX_VOICE, S3GEN
from .family import Family

TURBO = Family(
    name="turbo",
    stock_class="chatterbox.tts_turbo.ChatterboxTurboTTS",
    files=checkpoint_files(
        "tokenizer_config.json", ve="ve.safetensors", t3="t3_turbo_v1.safetensors", s3gen="s3gen_meanflow.safetensors"
    ),
    modules=("t3", "s3gen", "ve"),
    voice=CHATTERBOX_VOICE,
    synthesis=S3GEN,
    unsupported="this version has no step of its GPT-2",
)
