"""The flow as a component: from policy to engine, seam and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ...errors import UnsupportedModelError
from ...execution.operators import NativeOperators
from ...fallback import reason
from ...families.family import Family
from ...timing.blocks import timed
from ..compiled_component import CompiledComponent
from ..runtime import Runtime
from .engine import FlowEngine
from .supported import unsupported


class FlowComponent(CompiledComponent):
    """A component that replaces ``s3gen.flow.inference``.

    Raises:
        UnsupportedModelError: for a flow of another make than the released ones.
        OutOfMemoryError: when copies of its weights would exceed the limit.
    """

    engine: FlowEngine

    def __init__(self, s3gen: Any, family: Family, runtime: Runtime) -> None:
        flow = s3gen.flow
        if why := unsupported(flow):
            raise UnsupportedModelError(why)
        runtime.memory.check(sum(parameter.nbytes for parameter in flow.decoder.estimator.parameters()))  # the copies
        super().__init__("flow", runtime, flow, "inference", family.package)
        operators = self.runtime.operators(flow.parameters(), _native_fits(flow))
        self.engine = FlowEngine(flow, family.synthesis, operators, self.runtime)

    def noise(self, token: Tensor, reference: Mapping[str, Any]) -> Tensor:
        """Draws an utterance's random numbers; see :meth:`FlowEngine.noise`."""
        return self.engine.noise(len(token), reference)

    def together(self, given: Sequence[tuple[Tensor, Tensor]], reference: Mapping[str, Any]) -> list[Tensor]:
        """Solves several utterances; see :meth:`FlowEngine.together`. :meth:`left_to_stock` comes first."""
        with self.runtime.lock(), self.runtime.entered(), timed("flow", self.runtime.timings):
            return self.engine.together(given, reference)

    def ran_out_of_memory(self, error: Exception, group: int) -> None:
        """Records that a group has to be split."""
        self.fallback.record("memory", reason(error), f"{group // 2} at a time instead of {group}")


def _native_fits(flow: Any) -> bool:
    attention, mlp = (part := flow.decoder.estimator.mid_blocks[0][1][0]).attn1, part.ff.net[0]
    heads, width = attention.heads, attention.to_q.in_features
    return NativeOperators.fits(width, heads, attention.to_q.out_features // heads, mlp.proj.out_features)
