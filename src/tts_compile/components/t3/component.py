"""T3 as a component: from policy to engine, seam and report."""

from __future__ import annotations

from typing import Any

from ...config import CompileConfig
from ...fallback import FallbackManager
from ...report import ComponentReport
from ..seam import Seam
from .engine import T3Engine


class T3Component:
    """Replaces ``tts.t3.inference`` by the engine's."""

    def __init__(self, t3: Any, config: CompileConfig) -> None:
        policy = config.t3
        levels = ["eager"] if policy.execution == "eager" else ["inductor", "eager"]
        self._asked = policy.execution
        self._fallback = FallbackManager("t3", levels, config.fallback)
        if policy.execution == "cuda_graph":
            self._fallback.note("attach", "this version has no CUDA graphs for t3", f"{levels[0]} instead")
        if policy.dtype != "model":
            self._fallback.note("attach", f"this version has no {policy.dtype} weights for t3", "the model's dtype")
        self.engine = T3Engine(
            t3,
            self._fallback,
            config.cache_dir,
            backend=policy.backend,
            mode=policy.mode,
            dynamic=policy.dynamic,
        )
        self._seam = Seam(t3, "inference", self.engine.inference)

    def attach(self) -> None:
        """Replace the token loop on this instance."""
        self._seam.attach()

    def detach(self) -> None:
        """Give the stock token loop back."""
        self._seam.detach()

    def warm_up(self) -> None:
        """Compile the decode step with and without guidance."""
        for rows in (2, 1):
            self.engine.warm_up(rows)
        self.engine.declare_warm()

    def report(self) -> ComponentReport:
        """Decode steps asked for, and those counted inside compiled code."""
        engine = self.engine
        compiled = engine.compiled_steps
        if engine.steps == 0:
            ran, note = "stock", "the engine has not been reached yet"
        elif compiled == engine.steps:
            ran, note = "inductor", ""
        else:
            ran = "eager"
            note = f"{engine.steps - compiled} of {engine.steps} steps ran outside compiled code" if compiled else ""
        return ComponentReport(
            asked=self._asked,
            ran=ran,
            calls=engine.steps,
            compiled_calls=compiled,
            graphs=engine.graphs,
            graph_breaks=engine.graph_breaks,
            recompiles_after_warmup=engine.graphs_since_warm,
            fallbacks=tuple(self._fallback.events),
            note=note,
        )
