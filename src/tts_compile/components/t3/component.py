"""T3 as a component: from policy to engine, seam and report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...families.family import Family, SpeechModel
from ..compiled_component import CompiledComponent
from ..runtime import Runtime
from .engine import T3Engine
from .scheduler import Request, Scheduler

# Draft tokens per pass on a CPU.
CPU_DRAFT_TOKENS = 4


class T3Component(CompiledComponent):
    """A component that replaces the token loop of a speech model, such as ``tts.t3.inference``."""

    engine: T3Engine

    def __init__(self, tts: Any, family: Family, speech: SpeechModel, runtime: Runtime) -> None:
        model = speech.of(tts)
        super().__init__("t3", runtime, model, speech.method, family.package)
        native = speech.backbone.native
        instead = "torch's own matrix products, no draft tokens"
        if native and not (native.applies(model) and self.runtime.native(native.load, instead)):
            native = None
        policy = runtime.config.t3
        draft_tokens = CPU_DRAFT_TOKENS if policy.draft_tokens is None else policy.draft_tokens
        if native is None:
            draft_tokens = 0
        elif draft_tokens and (why := runtime.memory.refused(native.int8_bytes(speech.backbone.weights(model)))):
            self.fallback.record("memory", why, "no draft tokens")
            draft_tokens = 0
        self.engine = T3Engine(model, speech, self.runtime, native, draft_tokens)

    def schedule(self, requests: Sequence[Request], slots: int | None) -> Scheduler:
        """Returns a scheduler as :meth:`T3Engine.schedule`; :meth:`left_to_stock` comes first."""
        return self.engine.schedule(requests, slots)
