"""What T3, flow and vocoder have in common as components: levels, the seam, what is left to stock, the report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .. import _compat
from ..config import ComponentPolicy
from ..execution.cuda_graph import GraphCache
from ..fallback import FallbackManager
from ..report import ComponentReport
from .seam import Seam, not_its_own
from .weights import Copies


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
        policy: what to run.
        fallback_policy: see :class:`tts_compile.FallbackManager`.
        owner: the stock module.
        method: of the owner, to be replaced.
        graphs: for CUDA graphs, in whose keys ``name`` comes first; None where there are none.
    """

    def __init__(
        self,
        name: str,
        policy: ComponentPolicy,
        fallback_policy: str,
        owner: Any,
        method: str,
        graphs: GraphCache | None = None,
    ) -> None:
        self._name = name
        self._recordings = graphs
        self._asked = policy.execution
        fuse = graphs is not None and (_compat.has_triton() if policy.fuse is None else policy.fuse)
        self._compile_options: dict[str, Any] = {
            "backend": policy.backend,
            "mode": policy.mode,
            "dynamic": policy.dynamic,
            "fuse": fuse,
        }
        self._backend = policy.backend
        self._owner = owner
        levels = ["eager"] if policy.execution == "eager" else ["inductor", "eager"]
        if graphs is not None and policy.execution in ("auto", "cuda_graph"):
            levels.insert(0, "cuda_graph")
        self._fallback = FallbackManager(name, levels, fallback_policy)
        if policy.execution == "cuda_graph" and graphs is None:
            self._fallback.note("attach", f"there are no CUDA graphs for {name} here", f"{levels[0]} instead")
        if policy.dtype != "model":
            self._fallback.note("attach", f"this version has no {policy.dtype} weights for {name}", "the model's dtype")
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
        if not (self._replaced or self._customised()):
            self._warm_up_engine()
            self._mark_warm()

    def attach(self) -> None:
        """Replace the method on this instance; a patch that is there goes on being called."""
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
            recompiles_after_warmup=0 if self._warm_graphs is None else self._graphs - self._warm_graphs,
            fallbacks=tuple(self._fallback.events),
            note="; ".join(notes),
        )

    @property
    def reached(self) -> bool:
        """Whether nobody has put anything in front of this component."""
        return self._seam.stands

    def left_to_stock(self) -> str | None:
        """Why a call would be left to the stock method now, if so; an event says so once."""
        reason = self._replaced or self._customised()
        if reason and all(event.error != reason for event in self._fallback.events):  # not for every chunk of a book
            self._fallback.note("call", reason, "stock for such calls")
        return reason

    def mark_warm_once(self) -> None:
        """Without a warm-up, the first utterance is one: every graph from now on is a recompilation."""
        if self._warm_graphs is None:
            self._mark_warm()

    def _mark_warm(self) -> None:
        self._warm_graphs = self._graphs

    @property
    def _graphs(self) -> int:
        return sum(part.graphs for part in self.parts)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        if self.left_to_stock():
            self._left_to_stock += 1
            return self._stock(*args, **kwargs)
        result = self._engine_call(*args, **kwargs)
        self.mark_warm_once()
        return result


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
