"""The vocoder as a component: from policy to engine, seam and report."""

from __future__ import annotations

from typing import Any

from ...config import CompileConfig
from ...errors import UnsupportedModelError
from ..engine_component import CopyingComponent
from ..operators import choose_operators
from .engine import VocoderEngine
from .supported import another_make


class VocoderComponent(CopyingComponent):
    """Replaces ``s3gen.mel2wav.inference`` by the engine's.

    Raises:
        UnsupportedModelError: for a vocoder of another make than the released ones.
    """

    def __init__(self, s3gen: Any, config: CompileConfig) -> None:
        policy, vocoder = config.vocoder, s3gen.mel2wav
        if reason := another_make(vocoder):
            raise UnsupportedModelError(reason)
        super().__init__("vocoder", policy, config.fallback, vocoder, "inference")
        self.engine = VocoderEngine(
            vocoder,
            self._fallback,
            choose_operators(vocoder.parameters(), True, self._fallback, config.cache_dir),
            config.cache_dir,
            **self._compile_options,
        )
