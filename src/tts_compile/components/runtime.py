"""What the components of one model have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config import CompileConfig
from ..execution import cuda_graph
from ..execution.compile_budget import CompileBudget
from ..execution.cuda_graph import GraphCache
from ..execution.memory_limit import MemoryLimit
from ..timing.blocks import Timings


@dataclass(frozen=True)
class Shared:
    """What they share.

    Attributes:
        graphs: recordings; None where there are none.
        budget: of time for compiling.
        memory: what may be taken of it.
        timings: where their calls are timed.
    """

    graphs: GraphCache | None
    budget: CompileBudget
    memory: MemoryLimit
    timings: Timings

    @classmethod
    def of(cls, device: torch.device, config: CompileConfig, timings: Timings) -> Shared:
        """For a model on a device."""
        recorder = cuda_graph.recorder_for(device)
        memory = MemoryLimit(device, config.memory_limit_gb)
        graphs = GraphCache(recorder, memory=memory) if recorder else None
        return cls(graphs, CompileBudget(config.compile_seconds), memory, timings)
