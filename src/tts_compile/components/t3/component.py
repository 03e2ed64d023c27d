"""T3 as a component: from policy to engine, seam and report."""

from __future__ import annotations

from typing import Any

import torch

from ...config import CompileConfig
from ...errors import CompilationError
from ...execution import native
from ...fallback import FallbackManager
from ...report import ComponentReport
from ..seam import Seam
from .engine import T3Engine
from .weights import customised

# Guesses per pass on a CPU.
CPU_GUESSES = 4


class T3Component:
    """Replaces ``tts.t3.inference`` by the engine's."""

    def __init__(self, t3: Any, config: CompileConfig) -> None:
        policy = config.t3
        self._t3 = t3
        levels = ["eager"] if policy.execution == "eager" else ["inductor", "eager"]
        self._asked = policy.execution
        self._backend = policy.backend
        self._fallback = FallbackManager("t3", levels, config.fallback)
        if policy.execution == "cuda_graph":
            self._fallback.note("attach", "this version has no CUDA graphs for t3", f"{levels[0]} instead")
        if policy.dtype != "model":
            self._fallback.note("attach", f"this version has no {policy.dtype} weights for t3", "the model's dtype")
        use_native = self._fallback.level == "inductor" and _native_applies(t3)
        if use_native:
            try:
                native.load(config.cache_dir)
            except CompilationError as error:
                self._fallback.note("compile", str(error), "torch's own matrix products, no guessing ahead")
                use_native = False
        self._warm_graphs: int | None = None
        self._left_to_stock = 0
        self.engine = T3Engine(
            t3,
            self._fallback,
            use_native,
            CPU_GUESSES if policy.draft_tokens is None else policy.draft_tokens,
            config.cache_dir,
            backend=policy.backend,
            mode=policy.mode,
            dynamic=policy.dynamic,
        )
        self._seam = Seam(t3, "inference", self._inference)

    def attach(self) -> None:
        """Replace the token loop on this instance."""
        self._seam.attach()

    def detach(self) -> None:
        """Give the stock token loop back."""
        self._seam.detach()

    def warm_up(self) -> None:
        """Compile every pass, with and without guidance."""
        for sequences in (2, 1):
            self.engine.warm_up(sequences)
        self._warm_graphs = self._graphs

    def report(self) -> ComponentReport:
        """Passes over the decoder asked for, and those counted inside compiled code."""
        engine = self.engine
        calls = sum(p.calls for p in engine.passes)
        compiled = sum(min(p.calls, p.compiled_calls) for p in engine.passes)
        if calls == 0:
            ran, note = "stock", "" if self._left_to_stock else "the engine has not been reached yet"
        elif compiled == calls:
            ran, note = "inductor", ""
        else:
            ran, note = "eager", f"{calls - compiled} of {calls} passes ran outside compiled code"
        if ran == "inductor" and self._backend != "inductor":
            note = f"through the torch.compile backend {self._backend!r}"
        notes = [note] if note else []
        if engine.guessed:
            notes.append(f"{engine.accepted} of {engine.guessed} guessed tokens were verified")
        if self._left_to_stock:
            notes.append(f"utterances left to stock: {self._left_to_stock}")
        return ComponentReport(
            asked=self._asked,
            ran=ran,
            calls=calls,
            compiled_calls=compiled,
            graphs=self._graphs,
            graph_breaks=sum(region.graph_breaks for p in engine.passes for region in p.regions),
            recompiles_after_warmup=0 if self._warm_graphs is None else self._graphs - self._warm_graphs,
            fallbacks=tuple(self._fallback.events),
            note="; ".join(notes),
        )

    def _inference(self, **kwargs: Any) -> torch.Tensor:
        if reason := customised(self._t3):
            if all(event.error != reason for event in self._fallback.events):  # once, not for every chunk of a book
                self._fallback.note("call", reason, "stock for such calls")
            self._left_to_stock += 1
            stock: torch.Tensor = type(self._t3).inference(self._t3, **kwargs)
            return stock
        tokens = self.engine.inference(**kwargs)
        if self._warm_graphs is None:  # without a warm-up, the first utterance is one
            self._warm_graphs = self._graphs
        return tokens

    @property
    def _graphs(self) -> int:
        return sum(region.graphs for p in self.engine.passes for region in p.regions)


def _native_applies(t3: Any) -> bool:
    weight, head_dim = t3.speech_head.weight, t3.cfg.hidden_size // t3.cfg.num_attention_heads
    return bool(weight.device.type == "cpu" and weight.dtype == torch.float32 and head_dim == native.HEAD_DIM)
