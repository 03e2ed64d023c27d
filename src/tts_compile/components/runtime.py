"""The surroundings of compiled code: device, cache folder, lock, captured graphs, limits and timings of one model."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import _compat, cache
from ..config import CompileConfig
from ..errors import CompilationError
from ..execution import CompileOptions, Region, cuda_graph
from ..execution.cuda_graph import GraphCache, Replays
from ..execution.memory_limit import MemoryLimit
from ..execution.operators import NativeOperators, Operators
from ..execution.process_lock import ProcessLock
from ..execution.region import CompileBudget
from ..fallback import FallbackManager
from ..timing.blocks import Timings

CPU = torch.device("cpu")


class Runtime:
    """Everything that the components of one model share.

    Args:
        device: of the model.
        config: what to run and how.
        timings: where calls are timed.

    Attributes:
        lock: entered for every call of a component.
        graphs: captured graphs; None where nothing is captured.
        memory: the limit on memory.
        budget: of time for compiling.
    """

    def __init__(self, device: torch.device, config: CompileConfig, timings: Timings) -> None:
        self.device = device
        self.config = config
        self.timings = timings
        self.memory = MemoryLimit(device, config.memory_limit_gb)
        process_lock = ProcessLock()
        self.budget = CompileBudget(config.compile_seconds)
        recorder = cuda_graph.recorder_for(device)
        self.graphs = GraphCache(recorder, process_lock, memory=self.memory) if recorder else None
        self.lock = self.graphs.turn if self.graphs else process_lock

    @functools.cached_property
    def cache_folder(self) -> str:
        """Returns the folder for compiled code."""
        return str(cache.folder(self.config.cache_dir))


class ComponentRuntime:
    """One component's view of the runtime, and the only maker of regions.

    Args:
        runtime: of the model.
        name: of the component.
        captures: whether the component captures CUDA graphs where there are some.
        release: gives back memory that can be spared.

    Attributes:
        fallback: the component's levels.
        backend: of ``torch.compile``.
    """

    def __init__(self, runtime: Runtime, name: str, captures: bool, release: Callable[[], object]) -> None:
        config, graphs = runtime.config, runtime.graphs if captures else None
        policy = getattr(config, name)
        fuse = graphs is not None and (_compat.has_triton() if policy.fuse is None else policy.fuse)
        self.name = name
        self.device = runtime.device
        self.timings = runtime.timings
        self.memory = runtime.memory
        self.graphs = graphs
        self.lock = runtime.lock
        self.backend = policy.backend
        self._runtime = runtime
        self._compiles_cpp = policy.backend == "inductor" and runtime.device == CPU
        self._options = CompileOptions(policy.backend, policy.mode, policy.dynamic, fuse)
        levels = ["eager"] if policy.execution == "eager" else ["inductor", "eager"]
        if graphs is not None and policy.execution in ("auto", "cuda_graph"):
            levels.insert(0, "cuda_graph")
        levels.append("stock")
        if config.cpu_fallback and runtime.device != CPU:
            levels.append("cpu")
        self.fallback = FallbackManager(name, levels, config.fallback, config.max_failures, release=release)
        if levels[0] != "eager":
            try:
                cache.make_folder(config.cache_dir)
            except CompilationError as error:
                while self.fallback.level != "eager":
                    self.fallback.fall("compile", error)
        if policy.execution == "cuda_graph" and graphs is None:
            self.fallback.note("attach", f"there are no CUDA graphs for {name} here", f"{levels[0]} instead")

    @property
    def captures(self) -> bool:
        """Returns whether calls run as captured graphs now."""
        return self.fallback.level == "cuda_graph"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Prepares torch for a call, once for the whole call: cache folder, no gradients, no inference mode.

        Torch cannot compile views of an operator's result in inference mode
        (https://github.com/pytorch/pytorch/issues/169477), and guards tensors made there differently.
        """
        if self._compiles_cpp and self.fallback.level == "inductor":
            cache.reuse_cpu_isa(self._runtime.config.cache_dir)  # before inductor generates C++ for the first time
            self._compiles_cpp = False
        with torch.inference_mode(mode=False), torch.no_grad(), _compat.using_cache_dir(self._runtime.cache_folder):
            yield

    def region(self, name: str, function: Callable[..., Any]) -> Region:
        """Returns a function that runs compiled at the component's level ``"inductor"``."""
        return Region(name, function, self.fallback, self.device, self._options, self._runtime.budget)

    def replays(self) -> Replays | None:
        """Returns the component's captured graphs; None where it captures none."""
        return Replays(self.graphs, self.device) if self.graphs is not None else None

    def drop_graphs(self) -> None:
        """Gives back the component's captured graphs, whose keys begin with its name."""
        if self.graphs is not None:
            self.graphs.drop(lambda key: key[0] == self.name)

    def native(self, load: Callable[[str | None], object], instead: str) -> bool:
        """Loads a native operator where the component compiles; records an event where it cannot be built.

        Args:
            load: builds it if need be, in a cache folder.
            instead: what runs without it; for the event.

        Returns:
            Whether it is loaded.
        """
        if self.fallback.level != "inductor":
            return False
        try:
            load(self._runtime.config.cache_dir)
        except CompilationError as error:
            self.fallback.note("compile", str(error), instead)
            return False
        return True

    def operators(self, parameters: Iterable[Tensor], fit: bool) -> Operators:
        """Returns native operators for fp32 on a CPU, where they can be built; torch's own otherwise.

        Args:
            parameters: of the stock module.
            fit: whether the native operators are made for its sizes.
        """
        fit = fit and all(p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters)
        if fit and self.native(NativeOperators.load, "torch's own products and attention"):
            return NativeOperators()
        return Operators()
