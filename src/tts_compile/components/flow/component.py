"""The flow as a component: from policy to engine, seam and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ...config import CompileConfig
from ...errors import UnsupportedModelError
from ...execution.native import transformer_block as transformer
from ...fallback import reason
from ...timing.blocks import timed
from ..compiled_component import CopyingComponent
from ..operators import choose_operators
from ..runtime import Shared
from .engine import FlowEngine
from .supported import another_make


class FlowComponent(CopyingComponent):
    """Replaces ``s3gen.flow.inference`` by the engine's.

    Raises:
        UnsupportedModelError: for a flow of another make than the released ones.
        OutOfMemoryError: when copies of its weights would exceed the limit.
    """

    engine: FlowEngine

    def __init__(self, s3gen: Any, config: CompileConfig, shared: Shared) -> None:
        flow = s3gen.flow
        if reason := another_make(flow):
            raise UnsupportedModelError(reason)
        shared.memory.check(sum(parameter.nbytes for parameter in flow.decoder.estimator.parameters()))  # of the copies
        super().__init__("flow", config, flow, "inference", shared)
        operators = choose_operators(flow.parameters(), _native_applies(flow), self.fallback, config.cache_dir)
        self.engine = FlowEngine(
            flow,
            self.fallback,
            operators,
            shared.graphs,
            config.cache_dir,
            **self._compile_options,
        )

    def noise(self, token: Tensor, reference: Mapping[str, Any]) -> Tensor:
        """As :meth:`FlowEngine.noise`."""
        return self.engine.noise(len(token), reference)

    def together(self, given: Sequence[tuple[Tensor, Tensor]], reference: Mapping[str, Any]) -> list[Tensor]:
        """As :meth:`FlowEngine.together`; :meth:`left_to_stock` comes first."""
        with timed("flow", self._timings):
            return self.engine.together(given, reference)

    def ran_out_of_memory(self, error: Exception, group: int) -> None:
        """Tell the report that a group has to be split."""
        self.fallback.record("memory", reason(error), f"{group // 2} at a time instead of {group}")


def _native_applies(flow: Any) -> bool:
    attention, mlp = (part := flow.decoder.estimator.mid_blocks[0][1][0]).attn1, part.ff.net[0]
    heads, width = attention.heads, attention.to_q.in_features
    return transformer.fits(width, heads, attention.to_q.out_features // heads, mlp.proj.out_features)
