"""T3 as a component: from policy to engine, seam and report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...config import CompileConfig
from ...errors import CompilationError
from ...execution.cuda_graph import Replays
from ...execution.native import llama_decoder as native
from ..compiled_component import EngineComponent
from ..runtime import Shared
from .engine import T3Engine
from .sampling import SamplingSettings
from .scheduler import Batch, Request
from .step import LayeredPass, NativePass
from .weights import customised, int8_bytes

# Guesses per pass on a CPU.
CPU_GUESSES = 4


class T3Component(EngineComponent):
    """Replaces ``tts.t3.inference`` by the engine's."""

    def __init__(self, t3: Any, config: CompileConfig, shared: Shared) -> None:
        policy = config.t3
        super().__init__("t3", config, t3, "inference", shared)
        use_native = self.fallback.level == "inductor" and _native_applies(t3)
        if use_native:
            try:
                native.load(config.cache_dir)
            except CompilationError as error:
                self.fallback.note("compile", str(error), "torch's own matrix products, no guessing ahead")
                use_native = False
        guesses = CPU_GUESSES if policy.draft_tokens is None else policy.draft_tokens
        if use_native and guesses and (why := shared.memory.refused(int8_bytes(t3))):
            self.fallback.record("memory", why, "no guessing ahead")
            guesses = 0
        self.engine = T3Engine(
            t3,
            self.fallback,
            shared.memory,
            use_native,
            guesses,
            shared.graphs,
            config.cache_dir,
            **self._compile_options,
        )

    @property
    def parts(self) -> list[LayeredPass | NativePass | Replays]:
        """Passes over the decoder."""
        return self.engine.passes

    def notes(self) -> list[str]:
        """How the guesses did."""
        guesses = self.engine.guesses
        return [f"{guesses.verified} of {guesses.made} guessed tokens were verified"] if guesses.made else []

    def _warm_up_engine(self) -> None:
        for guided in (True, False):
            self.engine.warm_up(guided)

    def batch(
        self, requests: Sequence[Request], t3_cond: Any, settings: SamplingSettings, budget: int, slots: int | None
    ) -> Batch:
        """As :meth:`T3Engine.batch`; :meth:`left_to_stock` comes first."""
        return self.engine.batch(requests, t3_cond, settings, budget, slots)

    def _engine_call(self, **kwargs: Any) -> torch.Tensor:
        return self.engine.inference(**kwargs)

    def release(self) -> None:
        """Give the recordings back, and the caches that they use."""
        self.engine.release()
        super().release()  # also has the device take back what is no longer used

    def _customised(self) -> str | None:
        return customised(self._owner)


def _native_applies(t3: Any) -> bool:
    weight, head_dim = t3.speech_head.weight, t3.cfg.hidden_size // t3.cfg.num_attention_heads
    return bool(weight.device.type == "cpu" and weight.dtype == torch.float32 and head_dim == native.HEAD_DIM)
