"""A function that runs compiled or eagerly and counts its calls inside itself, and a limit on compiling."""

from __future__ import annotations

import contextlib
import functools
import itertools
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from .. import _compat
from ..fallback import FallbackManager
from ..timing.blocks import Stopwatch, mark_compile

_serial = itertools.count()
_WITHOUT_GRAPHS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}


@dataclass(frozen=True)
class CompileOptions:
    """Settings of a region.

    Attributes:
        backend, mode, dynamic: passed to ``torch.compile``.
        fuse: compile at the level ``"cuda_graph"`` too; the launches are then captured, so that modes with CUDA graphs
            of their own lose those.
    """

    backend: str = "inductor"
    mode: str = "default"
    dynamic: bool | None = None
    fuse: bool = False

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of ``torch.compile``."""
        found: dict[str, Any] = {"fullgraph": True, "backend": self.backend, "dynamic": self.dynamic}
        mode = _WITHOUT_GRAPHS.get(self.mode, self.mode) if self.fuse else self.mode
        if mode != "default":  # backends other than inductor have no modes, not even the default
            found["mode"] = mode
        return found


class CompileBudget:
    """Seconds that the components of one model may spend on compiling, together.

    The budget is checked before a function is called: a graph that has begun is finished. Once it is spent, compiled
    code goes on being used, and everything else runs eagerly.

    Args:
        seconds: None for any number.

    Attributes:
        limited: whether there is a limit.
        spent: seconds so far.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = seconds
        self.limited = seconds is not None
        self.spent = 0.0
        self._recorded: set[str] = set()

    def enforced(self, fallback: FallbackManager) -> AbstractContextManager[object]:
        """Returns a block inside which nothing is compiled once the budget is spent; a component's event says so once.

        Raises:
            CompilationError: then, where the policy is ``"raise"``.
        """
        if self._seconds is None or self.spent < self._seconds:
            return contextlib.nullcontext()
        if fallback.component not in self._recorded:
            spent = f"{self.spent:.1f} s were spent on compiling, the budget is {self._seconds:g} s"
            fallback.note("compile", spent, "what is not compiled yet runs eagerly")
            self._recorded.add(fallback.component)
        return _compat.no_new_graphs()


class Region:
    """A tensor function that is compiled at the fallback manager's level ``"inductor"`` and eager below it.

    The counts are taken by code of the region itself: ``torch.compiler.is_compiling()`` is true only while dynamo
    traces, so that the traced graph adds to one slot and the function run by the Python interpreter to the other.
    A region that is never reached, or that torch quietly runs eagerly, shows zero compiled calls.

    After a failed compilation the same arguments run eagerly, so the function must give the same result when it
    runs twice.

    Args:
        name: for messages and reports.
        function: takes and returns tensors; compiled with ``fullgraph=True``.
        fallback: decides the level; shared by the regions of one component.
        device: where the counts live.
        options: of compiling.
        budget: of time for compiling; None for any.
    """

    execution = "inductor"

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        fallback: FallbackManager,
        device: torch.device,
        options: CompileOptions | None = None,
        budget: CompileBudget | None = None,
    ) -> None:
        self.name = name
        self.calls = 0
        self.graphs = 0
        self.graph_breaks = 0
        self._fallback = fallback
        self._options = options or CompileOptions()
        self._fuse = self._options.fuse
        self._budget = budget or CompileBudget()
        self._function = function
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)  # [compiled, eager]
        self._uncounted = torch.zeros_like(self._counts)  # of calls inside captured graphs

        def counted(counts: torch.Tensor, *args: Any) -> Any:
            counts[0 if torch.compiler.is_compiling() else 1] += 1
            return function(*args)

        self._eager = _with_own_code(counted)

    @property
    def compiled_calls(self) -> int:
        """Returns the calls counted inside compiled code; waits for the device."""
        return int(self._counts[0])

    @property
    def eager_calls(self) -> int:
        """Returns the calls counted while the Python interpreter ran the function."""
        return int(self._counts[1])

    def __call__(self, *args: Any) -> Any:
        if self._fallback.level == "cuda_graph":
            return self._recorded(*args)
        self.calls += 1
        if self._fallback.level != "inductor":
            return self._eager(self._counts, *args)
        try:
            return self._run_compiled(self._counts, *args)
        except Exception as error:
            if not _compat.is_compile_failure(error):
                raise
            failure = error
        result = self._eager(self._counts, *args)  # raises by itself where the arguments are at fault
        self._fallback.fall("compile", failure)
        return result

    def _recorded(self, *args: Any) -> Any:
        """Runs inside a captured graph, which counts its own replays."""
        if self._fuse:
            try:
                return self._run_compiled(self._uncounted, *args)
            except Exception as error:
                if not _compat.is_compile_failure(error):
                    raise
                self._fuse = False
                self._fallback.note("compile", f"{self.name}: {error}", "torch's own kernels inside the CUDA graph")
        return self._function(*args)

    def _run_compiled(self, counts: torch.Tensor, *args: Any) -> Any:
        graphs, breaks = _compat.graph_counts()
        failed = False
        budget = self._budget.enforced(self._fallback) if self._budget.limited else contextlib.nullcontext()
        with budget, Stopwatch() as watch:
            try:
                return self._compiled(counts, *args)
            except Exception as error:
                failed = _compat.is_compile_failure(error)
                raise
            finally:
                graphs_after, breaks_after = _compat.graph_counts()
                self.graphs += graphs_after - graphs
                self.graph_breaks += breaks_after - breaks
                if graphs_after > graphs or failed:  # no other call has compiled anything
                    self._budget.spent += watch.seconds
                    mark_compile(self.name, watch.seconds)

    @functools.cached_property
    def _compiled(self) -> Callable[..., Any]:
        return torch.compile(self._eager, **self._options.arguments())


def dynamic(x: torch.Tensor, *dims: int) -> torch.Tensor:
    """Makes compiled code serve any size of some dimensions of a tensor; returns the tensor."""
    for dim in dims:
        torch._dynamo.maybe_mark_dynamic(x, dim)
    return x


def _with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the same closure with a code object of its own.

    torch limits recompilations per code object, and all closures of one ``def`` share theirs: without this, the
    regions of a process would use up each other's limit.
    """
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_serial)}")
    return types.FunctionType(code, function.__globals__, None, function.__defaults__, function.__closure__)
