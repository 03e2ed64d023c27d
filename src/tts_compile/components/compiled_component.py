"""The common part of T3, flow and vocoder: seam, levels, calls left to stock, and the report."""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from ..errors import NonFiniteError
from ..fallback import reason
from ..report import ComponentReport
from ..timing.blocks import timed
from ..utils.device import is_out_of_memory
from ..utils.gc_pause import gc_paused
from ..utils.random_state import RandomState
from .component import Component
from .cpu_fallback import on_cpu
from .runtime import ComponentRuntime, Runtime
from .seam import Seam, not_its_own
from .weight_watch import WeightWatch

T = TypeVar("T")
W = TypeVar("W")


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


class Engine(ABC, Generic[W]):
    """The library's own version of one stock method.

    It keeps the stock module's weights in its own form, made anew with an event when they change.

    Args:
        module: the stock module, in evaluation mode.
        watch: over the modules that are read.
        runtime: of the component.
    """

    def __init__(self, module: nn.Module, watch: WeightWatch, runtime: ComponentRuntime) -> None:
        self._module = module
        self._watch = watch
        self._runtime = runtime
        self._made_for = _kinds(module)
        self._made: W | None = None
        self._made_before = False
        watch.look()
        self._mismatch = self._checked()

    @property
    @abstractmethod
    def parts(self) -> Sequence[Counted]:
        """Returns every function that is compiled or captured."""

    @abstractmethod
    def inference(self, *args: Any, **kwargs: Any) -> Any:
        """Computes what the stock method computes."""

    @abstractmethod
    def warm_up(self) -> None:
        """Compiles every function; leaves the global generators as they were."""

    def notes(self) -> list[str]:
        """Returns sentences for the report."""
        return []

    def release(self) -> None:
        """Gives back memory that can be spared; the weights stay, since the next call needs them."""

    def unfit(self) -> str | None:
        """Returns why the engine cannot stand in for the module now, or None; asked before every call."""
        unchanged, obstacle = self._watch.look()
        if not unchanged:
            self._made = None
            self._mismatch = self._checked()
        device = next(self._module.parameters()).device
        autocast = "autocast is on" if torch.is_autocast_enabled(device.type) else None
        return obstacle or self._mismatch or autocast

    def weights(self) -> W:
        """Returns the weights, made now if there are none."""
        if self._made is None:
            self._made = self._make()
            if self._made_before:
                self._runtime.fallback.record("reuse", "weights or modules have changed", "copies are made anew")
            self._made_before = True
        return self._made

    @abstractmethod
    def _make(self) -> W:
        """Returns the weights in the engine's form, made from the module's."""

    @abstractmethod
    def _unsupported(self) -> str | None:
        """Returns why the engine would not compute what the module computes, or None."""

    def _moved(self) -> str | None:
        """Returns that the module has another device or dtype than the engine was made for, or None."""
        return None if _kinds(self._module) == self._made_for else "the model was moved or cast after compile_model"

    def _checked(self) -> str | None:
        try:
            return self._unsupported()
        except Exception as error:  # a part that was exchanged may lack whatever is looked for
            return f"its parts are of another make: {reason(error)}"


def _kinds(module: nn.Module) -> set[tuple[torch.device, torch.dtype]]:
    return {(parameter.device, parameter.dtype) for parameter in module.parameters()}


class CompiledComponent(Component):
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
        runtime: the component's view of it.
    """

    engine: Engine[Any]

    def __init__(
        self, name: str, runtime: Runtime, owner: Any, method: str, package: str, captures: bool = True
    ) -> None:
        self.runtime = ComponentRuntime(runtime, name, captures, self.release)
        super().__init__(name, runtime, self.runtime.fallback)
        self._owner = owner
        self._method = method
        self._package = package
        self._max_failures = runtime.config.max_failures
        self._failed_together = 0
        self._warm_graphs: int | None = None
        self._replaced: str | None = None
        self._stock: Callable[..., Any] = getattr(owner, method)
        self._seam = Seam(owner, method, self._call)
        self.seams = [self._seam]

    def warm_up(self) -> None:
        """Compiles whatever later calls may need, unless they would be left to stock."""
        if self._replaced or self.engine.unfit():
            return
        with self.runtime.lock():
            self._run(self.engine.warm_up, lambda: None, phase="warm-up")
        self._warm_graphs = self._graphs  # every later one is a recompilation

    def mark_warm_once(self) -> None:
        """Counts every graph after the first utterance as a recompilation, where there was no warm-up."""
        if self._warm_graphs is None:
            self._warm_graphs = self._graphs

    @property
    def recompiled(self) -> int:
        """Returns the number of graphs that were compiled or captured since the component was warm."""
        return 0 if self._warm_graphs is None else self._graphs - self._warm_graphs

    def attach(self) -> None:
        """Replaces the method on this instance; a patch that another program has put there goes on being called."""
        if not self._seam.attached:
            self._replaced = not_its_own(self._owner, self._method, self._package)
            self._stock = getattr(self._owner, self._method)
        super().attach()

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
            if not self.stock_calls:
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
        if self.stock_calls:
            notes.append(f"utterances left to stock: {self.stock_calls}")
        return ComponentReport(
            asked=self._asked,
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
        trusted = self._failed_together < self._max_failures
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
        if counts and self._failed_together == self._max_failures:
            action += f", from now on: {self._max_failures} failures"
        self.fallback.record(phase, reason(error), action)
        return True

    @property
    def _graphs(self) -> int:
        return sum(part.graphs for part in self.engine.parts)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        with self.runtime.lock(), timed(self._name, self.runtime.timings):
            if self.left_to_stock():
                return self._by_stock(self._stock, *args, **kwargs)
            stock = functools.partial(self._by_stock, self._stock)
            result = self._run(self.engine.inference, stock, *args, **kwargs)
            self.mark_warm_once()
            return result

    def _by_stock(self, stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = stock(*args, **kwargs)
        self.stock_calls += 1
        return result

    def _run(
        self, ours: Callable[..., T], stock: Callable[..., T], *args: Any, phase: str = "call", **kwargs: Any
    ) -> T:
        """Runs the engine, and after a failure at one level the next level's, from the same random numbers on."""

        def entered(*args: Any, **kwargs: Any) -> T:
            with self.runtime.entered():
                return ours(*args, **kwargs)

        ways: dict[str, Callable[..., T]]
        cpu = functools.partial(self._by_stock, on_cpu, self._owner, self._method)
        ways = {**dict.fromkeys(self.fallback.chain, entered), "stock": stock, "cpu": cpu}
        again = RandomState(self.runtime.device)
        compiles = self._warm_graphs is None
        with gc_paused() if compiles else contextlib.nullcontext():  # compiling makes very many objects
            return self.fallback.run(ways, *args, phase=phase, begin_again=again.restore, **kwargs)
