"""The vocoder as a component: from policy to engine, seam and report."""

from __future__ import annotations

from typing import Any

from ...errors import UnsupportedModelError
from ...families.family import Family
from ..compiled_component import CompiledComponent
from ..runtime import Runtime
from .engine import VocoderEngine
from .supported import unsupported


class VocoderComponent(CompiledComponent):
    """A component that replaces ``s3gen.mel2wav.inference``.

    Raises:
        UnsupportedModelError: for a vocoder of another make than the released ones.
        OutOfMemoryError: when copies of its weights would exceed the limit.
    """

    engine: VocoderEngine

    def __init__(self, s3gen: Any, family: Family, runtime: Runtime) -> None:
        vocoder = s3gen.mel2wav
        if why := unsupported(vocoder):
            raise UnsupportedModelError(why)
        runtime.memory.check(sum(parameter.nbytes for parameter in vocoder.parameters()))  # the copies
        super().__init__("vocoder", runtime, vocoder, "inference", family.package, captures=False)
        self.engine = VocoderEngine(vocoder, self.runtime.operators(vocoder.parameters(), True), self.runtime)
