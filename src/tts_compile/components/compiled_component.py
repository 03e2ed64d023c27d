"""The common part of T3, flow and vocoder: seam, levels, calls left to stock, and the report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from ..config import CompileConfig
from ..errors import NonFiniteError
from ..fallback import reason
from ..report import ComponentReport
from ..timing.blocks import timed
from ..utils.device import is_out_of_memory
from ..utils.gc_pause import gc_paused
from ..utils.random_state import RandomState
from .cpu_fallback import on_cpu
from .runtime import ComponentRuntime, Runtime
from .seam import Seam, not_its_own

T = TypeVar("T")


class Counted(Protocol):
    """A compiled function, or several that are called together, with its counts; a Region is one."""

    @property
    def execution(self) -> str:
        """Returns what it ran as if it ran compiled."""

    @property
    def calls(self) -> int:
        """Returns the number of calls."""

    @property
    def compiled_calls(self) -> int:
        """Returns the number of calls that ran compiled, counted inside the compiled code."""

    @property
    def graphs(self) -> int:
        """Returns the number of graphs that torch compiled for it."""

    @property
    def graph_breaks(self) -> int:
        """Returns the number of graph breaks in these graphs."""


class Engine(Protocol):
    """The library's own version of one stock method."""

    @property
    def parts(self) -> Sequence[Counted]:
        """Returns every function that is compiled or captured."""

    def inference(self, *args: Any, **kwargs: Any) -> Any:
        """Computes what the stock method computes."""

    def warm_up(self) -> None:
        """Compiles every function; leaves the global generators as they were."""

    def unfit(self) -> str | None:
        """Returns why the engine would not compute what the stock modules compute now, or None."""

    def notes(self) -> list[str]:
        """Returns sentences for the report."""

    def release(self) -> None:
        """Gives back memory that can be spared."""


class CompiledComponent:
    """A component that replaces one stock method by an engine's, or leaves the call to stock.

    A subclass makes the engine.

    Args:
        name: of the component.
        runtime: of the model.
        owner: the stock module.
        method: of the owner, to be replaced.
        package: whose method is replaced; another package's is left alone.
        captures: whether the component captures CUDA graphs where there are some.

    Attributes:
        engine: made by the subclass.
        fallback: the component's levels and events.
        dtype: of the weights that the engine reads: this version has no other than the model's.
    """

    engine: Engine
    dtype = "model"

    def __init__(
        self, name: str, runtime: Runtime, owner: Any, method: str, package: str, captures: bool = True
    ) -> None:
        self.runtime: ComponentRuntime = runtime.component(name, captures, self.release)
        self.fallback = self.runtime.fallback
        self._config: CompileConfig = runtime.config
        self._name = name
        self._owner = owner
        self._method = method
        self._package = package
        self._failed_together = 0
        self._warm_graphs: int | None = None
        self._left_to_stock = 0
        self._replaced: str | None = None
        self._stock: Callable[..., Any] = getattr(owner, method)
        self._seam = Seam(owner, method, self._call)

    def warm_up(self) -> None:
        """Compiles whatever later calls may need, unless they would be left to stock."""
        if self._replaced or self.engine.unfit():
            return
        with self.runtime.lock():
            self._run(self._warm_up_engine, lambda: None, phase="warm-up")
        self.mark_warm()

    def mark_warm(self) -> None:
        """Counts every graph from now on as a recompilation."""
        self._warm_graphs = self._graphs

    def mark_warm_once(self) -> None:
        """Counts every graph after the first utterance as a recompilation, where there was no warm-up."""
        if self._warm_graphs is None:
            self.mark_warm()

    @property
    def recompiled(self) -> int:
        """Returns the number of graphs since then."""
        return 0 if self._warm_graphs is None else self._graphs - self._warm_graphs

    @property
    def stock_calls(self) -> int:
        """Returns the number of calls that stock has answered, on the model's device or on the CPU."""
        return self._left_to_stock

    @property
    def seams(self) -> Sequence[Seam]:
        """Returns the replaced method."""
        return (self._seam,)

    def attach(self) -> None:
        """Replaces the method on this instance; a patch that another program has put there goes on being called."""
        if not self._seam.attached:
            self._replaced = not_its_own(self._owner, self._method, self._package)
            self._stock = getattr(self._owner, self._method)
        self._seam.attach()

    def detach(self) -> None:
        """Puts the stock method back."""
        self._seam.detach()

    def release(self) -> None:
        """Gives back captured graphs, and the caches that they use."""
        if hasattr(self, "engine"):  # memory may run out before there is one
            self.engine.release()
        self.runtime.drop_graphs()

    def report(self) -> ComponentReport:
        """Returns the calls asked for, and those counted inside compiled code."""
        parts = self.engine.parts
        calls = sum(part.calls for part in parts)
        compiled = sum(min(part.calls, part.compiled_calls) for part in parts)
        notes = []
        if calls == 0:
            ran = "stock"
            if not self._left_to_stock:
                notes.append("the engine has not been reached yet")
        elif compiled == calls:
            kinds = {part.execution for part in parts if part.calls}
            ran = kinds.pop() if len(kinds) == 1 else "inductor"
            if ran == "inductor" and self.runtime.backend != "inductor":
                notes.append(f"through the torch.compile backend {self.runtime.backend!r}")
        else:
            ran = "eager"
            notes.append(f"{calls - compiled} of {calls} passes ran outside compiled code")
        notes += self.engine.notes()
        if self._left_to_stock:
            notes.append(f"utterances left to stock: {self._left_to_stock}")
        return ComponentReport(
            asked=getattr(self._config, self._name).execution,
            ran=ran,
            calls=calls,
            compiled_calls=compiled,
            graphs=self._graphs,
            graph_breaks=sum(part.graph_breaks for part in parts),
            recompiles_after_warmup=self.recompiled,
            fallbacks=tuple(self.fallback.events),
            note="; ".join(notes),
        )

    @property
    def speaks_together(self) -> bool:
        """Returns whether the engine may be given several utterances, past the method that it has replaced."""
        level_is_ours = self.fallback.level not in ("stock", "cpu")
        trusted = self._failed_together < self._config.max_failures
        return self._seam.stands and level_is_ours and trusted and not self.left_to_stock()

    def left_to_stock(self) -> str | None:
        """Returns why a call would be left to the stock method now, or None; records an event the first time."""
        why = self._replaced or self.engine.unfit()
        if why and all(event.error != why for event in self.fallback.events):  # not for every chunk of a book
            self.fallback.note("call", why, "stock for such calls")
        return why

    def may_try_alone(self, error: Exception, count: int) -> bool:
        """Records that ``count`` utterances failed together; returns whether each may be tried alone."""
        if self.fallback.policy == "raise":
            return False
        counts = not isinstance(error, NonFiniteError)  # which is one utterance's own
        self._failed_together += counts
        phase = "memory" if is_out_of_memory(error) else "call"
        action = f"one by one what was spoken together: {count}"
        if counts and self._failed_together == self._config.max_failures:
            action += f", from now on: {self._config.max_failures} failures"
        self.fallback.record(phase, reason(error), action)
        return True

    @property
    def _graphs(self) -> int:
        return sum(part.graphs for part in self.engine.parts)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        with self.runtime.lock(), timed(self._name, self.runtime.timings):
            if self.left_to_stock():
                return self._stock_call(*args, **kwargs)
            result = self._run(self._engine_call, self._stock_call, *args, **kwargs)
            self.mark_warm_once()
            return result

    def _warm_up_engine(self) -> None:
        with self.runtime.entered():
            self.engine.warm_up()

    def _engine_call(self, *args: Any, **kwargs: Any) -> Any:
        with self.runtime.entered():
            return self.engine.inference(*args, **kwargs)

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
        """Runs the engine, and after a failure at one level the next level's, from the same random numbers on."""
        ways = {level: stock if level == "stock" else ours for level in self.fallback.chain}
        if "cpu" in ways:
            ways["cpu"] = self._cpu_call
        again = RandomState(self.runtime.device)
        compiles = self._warm_graphs is None
        with gc_paused() if compiles else contextlib.nullcontext():  # compiling makes very many objects
            return self.fallback.run(ways, *args, phase=phase, begin_again=again.restore, **kwargs)
