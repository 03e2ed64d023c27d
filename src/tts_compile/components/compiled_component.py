"""What T3, flow and vocoder have in common as components: levels, the seam, what is left to stock, the report."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from .. import _compat, cache
from ..config import CompileConfig, ComponentPolicy
from ..errors import CompilationError, NonFiniteError
from ..execution.process_lock import Turn
from ..fallback import FallbackManager, reason
from ..report import ComponentReport
from ..timing.blocks import timed
from ..utils.device import is_out_of_memory
from ..utils.gc_pause import gc_paused
from ..utils.random_state import RandomState
from .cpu_fallback import CPU, on_cpu
from .runtime import Shared
from .seam import Seam, not_its_own
from .weight_watch import Copies

T = TypeVar("T")


class Counted(Protocol):
    """A compiled function, or several that are called together, with its counts; a Region is one."""

    @property
    def execution(self) -> str:
        """What it ran as if it ran compiled."""

    @property
    def calls(self) -> int:
        """How often it was asked for."""

    @property
    def compiled_calls(self) -> int:
        """How often it ran compiled, counted from inside."""

    @property
    def graphs(self) -> int:
        """Graphs that torch compiled for it."""

    @property
    def graph_breaks(self) -> int:
        """Graph breaks while doing so."""


class EngineComponent(ABC):
    """A component that replaces one stock method by an engine's, or leaves the call to stock.

    Args:
        name: the component's.
        config: the component's policy, and what holds for all.
        owner: the stock module.
        method: of the owner, to be replaced.
        shared: what the model's components have in common; ``name`` comes first in the keys of recordings.
    """

    dtype = "model"  # this version has no other weights

    def __init__(
        self,
        name: str,
        config: CompileConfig,
        owner: Any,
        method: str,
        shared: Shared,
    ) -> None:
        policy: ComponentPolicy = getattr(config, name)
        graphs = shared.graphs
        self._name = name
        self._recordings = graphs
        self._timings = shared.timings
        self._asked = policy.execution
        fuse = graphs is not None and (_compat.has_triton() if policy.fuse is None else policy.fuse)
        self._compile_options: dict[str, Any] = {
            "backend": policy.backend,
            "mode": policy.mode,
            "dynamic": policy.dynamic,
            "fuse": fuse,
            "budget": shared.budget,
        }
        self._backend = policy.backend
        self._cache_dir = config.cache_dir
        self._owner = owner
        levels = ["eager"] if policy.execution == "eager" else ["inductor", "eager"]
        if graphs is not None and policy.execution in ("auto", "cuda_graph"):
            levels.insert(0, "cuda_graph")
        levels.append("stock")
        if config.cpu_fallback and next(owner.parameters()).device != CPU:
            levels.append("cpu")
        self.fallback = FallbackManager(name, levels, config.fallback, config.max_failures, release=self.release)
        self._turn = Turn()
        if levels[0] != "eager":
            try:
                cache.made(config.cache_dir)
            except CompilationError as error:
                while self.fallback.level != "eager":
                    self.fallback.fall("compile", error)
        if policy.execution == "cuda_graph" and graphs is None:
            self.fallback.note("attach", f"there are no CUDA graphs for {name} here", f"{levels[0]} instead")
        if policy.dtype != "model":
            self.fallback.note("attach", f"this version has no {policy.dtype} weights for {name}", "the model's dtype")
        self._max_failures = config.max_failures
        self._failed_together = 0
        self._warm_graphs: int | None = None
        self._left_to_stock = 0
        self._method = method
        self._replaced: str | None = None
        self._stock: Callable[..., Any] = getattr(owner, method)
        self._seam = Seam(owner, method, self._call)

    @property
    @abstractmethod
    def parts(self) -> Sequence[Counted]:
        """What is counted; a step of each counts as one call."""

    @abstractmethod
    def _engine_call(self, *args: Any, **kwargs: Any) -> Any: ...

    @abstractmethod
    def _warm_up_engine(self) -> None: ...

    @abstractmethod
    def _customised(self) -> str | None:
        """Why the engine would not do what the stock modules do, if so."""

    def notes(self) -> list[str]:
        """Sentences for the report's row."""
        return []

    def warm_up(self) -> None:
        """Compile whatever later calls may need, unless they would be left to stock."""
        if self._replaced or self._customised():
            return
        with self._turn():
            self._run(self._warm_up_engine, lambda: None, phase="warm-up")
        self.mark_warm()

    def mark_warm(self) -> None:
        """Every graph from now on is a recompilation."""
        self._warm_graphs = self._graphs

    @property
    def recompiled(self) -> int:
        """Graphs since then."""
        return 0 if self._warm_graphs is None else self._graphs - self._warm_graphs

    @property
    def stock_calls(self) -> int:
        """Calls that stock has answered, here or on the CPU."""
        return self._left_to_stock

    @property
    def seams(self) -> Sequence[Seam]:
        """The one that it replaces."""
        return (self._seam,)

    def attach(self) -> None:
        """Replace the method on this instance; a patch that is there goes on being called."""
        if not self._seam.attached:
            self._replaced = not_its_own(self._owner, self._method)
            self._stock = getattr(self._owner, self._method)
        self._seam.attach()

    def detach(self) -> None:
        """Give the stock method back."""
        self._seam.detach()

    def release(self) -> None:
        """Give back the memory of what was recorded."""
        if self._recordings is not None:
            self._recordings.drop(lambda key: key[0] == self._name)

    def report(self) -> ComponentReport:
        """Calls asked for, and those counted inside compiled code."""
        calls = sum(part.calls for part in self.parts)
        compiled = sum(min(part.calls, part.compiled_calls) for part in self.parts)
        notes = []
        if calls == 0:
            ran = "stock"
            if not self._left_to_stock:
                notes.append("the engine has not been reached yet")
        elif compiled == calls:
            kinds = {part.execution for part in self.parts if part.calls}
            ran = kinds.pop() if len(kinds) == 1 else "inductor"
            if ran == "inductor" and self._backend != "inductor":
                notes.append(f"through the torch.compile backend {self._backend!r}")
        else:
            ran = "eager"
            notes.append(f"{calls - compiled} of {calls} passes ran outside compiled code")
        notes += self.notes()
        if self._left_to_stock:
            notes.append(f"utterances left to stock: {self._left_to_stock}")
        return ComponentReport(
            asked=self._asked,
            ran=ran,
            calls=calls,
            compiled_calls=compiled,
            graphs=self._graphs,
            graph_breaks=sum(part.graph_breaks for part in self.parts),
            recompiles_after_warmup=self.recompiled,
            fallbacks=tuple(self.fallback.events),
            note="; ".join(notes),
        )

    @property
    def speaks_together(self) -> bool:
        """Whether several utterances may be given to it, past the method that it has replaced."""
        level_is_ours = self.fallback.level not in ("stock", "cpu")
        trusted = self._failed_together < self._max_failures
        return self._seam.stands and level_is_ours and trusted and not self.left_to_stock()

    def left_to_stock(self) -> str | None:
        """Why a call would be left to the stock method now, if so; an event says so once."""
        reason = self._replaced or self._customised()
        if reason and all(event.error != reason for event in self.fallback.events):  # not for every chunk of a book
            self.fallback.note("call", reason, "stock for such calls")
        return reason

    def may_try_alone(self, error: Exception, count: int) -> bool:
        """Tell the report that ``count`` utterances could not be spoken together; whether each may be alone."""
        if self.fallback.policy == "raise":
            return False
        counts = not isinstance(error, NonFiniteError)  # which is one utterance's own
        self._failed_together += counts
        phase = "memory" if is_out_of_memory(error) else "call"
        action = f"one by one what was spoken together: {count}"
        if counts and self._failed_together == self._max_failures:
            action += f", from now on: {self._max_failures} failures"
        self.fallback.record(phase, reason(error), action)
        return True

    def mark_warm_once(self) -> None:
        """Without a warm-up, the first utterance is one: every graph from now on is a recompilation."""
        if self._warm_graphs is None:
            self.mark_warm()

    @property
    def _for_cpu(self) -> bool:
        """Whether inductor generates C++ for it."""
        return self._backend == "inductor" and next(self._owner.parameters()).device == CPU

    @property
    def _graphs(self) -> int:
        return sum(part.graphs for part in self.parts)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        with self._turn(), timed(self._name, self._timings):
            if self.left_to_stock():
                return self._stock_call(*args, **kwargs)
            result = self._run(self._engine_call, self._stock_call, *args, **kwargs)
            self.mark_warm_once()
            return result

    def _stock_call(self, *args: Any, **kwargs: Any) -> Any:
        result = self._stock(*args, **kwargs)
        self._left_to_stock += 1
        return result

    def _cpu_call(self, *args: Any, **kwargs: Any) -> Any:
        result = on_cpu(self._owner, self._method, *args, **kwargs)
        self._left_to_stock += 1
        return result

    def _run(
        self, ours: Callable[..., T], stock: Callable[..., T], *args: Any, phase: str = "call", **kwargs: Any
    ) -> T:
        """The engine, and after a failure at one level the next one's, from the same random numbers on."""
        ways = {level: stock if level == "stock" else ours for level in self.fallback.chain}
        if "cpu" in ways:
            ways["cpu"] = self._cpu_call
        again = RandomState(next(self._owner.parameters()).device)
        compiles = self._warm_graphs is None
        if compiles and self.fallback.level == "inductor" and self._for_cpu:
            cache.know_vectors(self._cache_dir)
        with gc_paused() if compiles else contextlib.nullcontext():  # compiling makes very many objects
            return self.fallback.run(ways, *args, phase=phase, begin_again=again.restore, **kwargs)


class CopyingEngine(Protocol):
    """An engine that reads copies of a module's weights."""

    copies: Copies[Any]

    @property
    def parts(self) -> Sequence[Counted]:
        """Every function that is compiled."""

    def inference(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the stock method."""

    def warm_up(self) -> None:
        """Compile every function; the global generators are left as they were."""


class CopyingComponent(EngineComponent):
    """A component whose engine keeps copies; a subclass makes the engine."""

    engine: CopyingEngine

    @property
    def parts(self) -> Sequence[Counted]:
        """The engine's compiled functions."""
        return self.engine.parts

    def _warm_up_engine(self) -> None:
        self.engine.warm_up()

    def _engine_call(self, *args: Any, **kwargs: Any) -> Any:
        return self.engine.inference(*args, **kwargs)

    def _customised(self) -> str | None:
        return self.engine.copies.unfit()
