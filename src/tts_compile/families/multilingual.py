"""``ChatterboxMultilingualTTS``: its files; its token loop, with an alignment analyzer, is not written yet."""

from __future__ import annotations

from .checkpoint_files import checkpoint_files
from .english import CHATTERBOX_VOICE, S3GEN
from .family import Family

MULTILINGUAL = Family(
    name="multilingual",
    stock_class="chatterbox.mtl_tts.ChatterboxMultilingualTTS",
    files=checkpoint_files(
        "grapheme_mtl_merged_expanded_v1.json", ve="ve.pt", t3="t3_mtl23ls_v2.safetensors", s3gen="s3gen.pt"
    ),
    modules=("t3", "s3gen", "ve"),
    voice=CHATTERBOX_VOICE,
    synthesis=S3GEN,
    unsupported="this version has no token loop with its alignment analyzer",
)
