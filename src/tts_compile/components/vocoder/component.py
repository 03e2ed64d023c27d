"""The vocoder as a component: from policy to engine, seam and report."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...config import CompileConfig
from ...errors import UnsupportedModelError
from ..compiled_component import CopyingComponent
from ..operators import choose_operators
from ..runtime import Shared
from .engine import VocoderEngine
from .supported import another_make


class VocoderComponent(CopyingComponent):
    """Replaces ``s3gen.mel2wav.inference`` by the engine's.

    Raises:
        UnsupportedModelError: for a vocoder of another make than the released ones.
        OutOfMemoryError: when copies of its weights would exceed the limit.
    """

    def __init__(self, s3gen: Any, config: CompileConfig, shared: Shared) -> None:
        vocoder = s3gen.mel2wav
        if reason := another_make(vocoder):
            raise UnsupportedModelError(reason)
        shared.memory.check(sum(parameter.nbytes for parameter in vocoder.parameters()))  # of the copies
        super().__init__("vocoder", config, vocoder, "inference", dataclasses.replace(shared, graphs=None))
        self.engine = VocoderEngine(
            vocoder,
            self.fallback,
            choose_operators(vocoder.parameters(), True, self.fallback, config.cache_dir),
            config.cache_dir,
            **self._compile_options,
        )
