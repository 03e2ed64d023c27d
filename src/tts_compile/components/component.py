"""A component: a part of the model whose methods are replaced; and the kinds of component that compile nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from ..fallback import FallbackManager
from ..report import ComponentReport
from ..timing.blocks import timed
from .runtime import Runtime
from .seam import Seam, attach_all, detach_all, not_its_own

T = TypeVar("T")


class Component(ABC):
    """A part of the model that can be attached, warmed up, reported on and detached.

    Args:
        name: of the component.
        runtime: of the model.
        fallback: the component's levels and events.

    Attributes:
        seams: the methods that the component replaces.
        stock_calls: calls that stock has answered instead.
        dtype: of the weights that the component reads: this version has no other than the model's.
    """

    dtype = "model"

    def __init__(self, name: str, runtime: Runtime, fallback: FallbackManager) -> None:
        self.fallback = fallback
        self.seams: list[Seam] = []
        self.stock_calls = 0
        self._name = name
        policy = getattr(runtime.config, name)
        self._asked: str = policy.execution
        if policy.dtype != "model" and fallback.level != "stock":
            fallback.note("attach", f"this version has no {policy.dtype} weights for {name}", "the model's dtype")

    def attach(self) -> None:
        """Replaces the methods on the model's instances."""
        attach_all(self.seams)

    def detach(self) -> None:
        """Puts the stock methods back."""
        detach_all(self.seams)

    def release(self) -> None:  # noqa: B027 - a component may hold nothing
        """Gives back memory that only a compiled model needs."""

    def warm_up(self) -> None:  # noqa: B027 - nor need anything
        """Compiles or loads whatever later calls may need."""

    @abstractmethod
    def report(self) -> ComponentReport:
        """Returns what was asked, what ran, and the counts that prove it."""


class StockComponent(Component):
    """A component that stays as its own package ships it, by choice or because nothing else fits the model.

    Args:
        name: of the component.
        runtime: of the model.
        missing: why there is nothing to accelerate, where that is so.
        failed: the phase in which a failure was found; empty where the model has nothing to accelerate.
    """

    def __init__(self, name: str, runtime: Runtime, missing: str = "", failed: str = "") -> None:
        super().__init__(name, runtime, FallbackManager(name, ["stock"], runtime.config.fallback))
        self._missing = missing
        if failed or self._asked not in ("stock", "auto"):
            self.fallback.note(failed or "attach", missing, "stock")

    def report(self) -> ComponentReport:
        """Returns a row that says "stock"."""
        return ComponentReport(self._asked, "stock", fallbacks=tuple(self.fallback.events), note=self._missing)


class EagerComponent(Component):
    """A component that computes what stock computes with less work around it; there is nothing to compile.

    Args:
        name: of the component.
        runtime: of the model.
        nothing_to_compile: why that is so.

    Attributes:
        calls: calls that the component has answered itself.
    """

    def __init__(self, name: str, runtime: Runtime, nothing_to_compile: str) -> None:
        config = runtime.config
        levels = ["eager", "stock"]
        super().__init__(
            name, runtime, FallbackManager(name, levels, config.fallback, config.max_failures, release=self.release)
        )
        self.calls = 0
        self._timed = timed(name, runtime.timings)
        if self._asked in ("inductor", "cuda_graph"):
            self.fallback.note("attach", nothing_to_compile, "eager instead")

    def warm_up(self) -> None:
        """Loads what the first call would load."""
        self.fallback.run({"eager": self._load, "stock": lambda: None}, phase="warm-up")

    @abstractmethod
    def _load(self) -> None:
        """Loads libraries, and runs once."""

    def report(self) -> ComponentReport:
        """Returns the calls answered; none of them is compiled."""
        return ComponentReport(
            asked=self._asked,
            ran="eager" if self.calls else "stock",
            calls=self.calls,
            fallbacks=tuple(self.fallback.events),
            note="; ".join(self._notes()),
        )

    def _notes(self) -> list[str]:
        if self.stock_calls:
            return [f"calls left to stock: {self.stock_calls}"]
        return [] if self.calls else ["it has not been reached yet"]

    def _run(self, ours: Callable[..., T], stock: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Runs ours; after a failure, stock's."""

        def answered() -> T:
            result = ours(*args, **kwargs)
            self.calls += 1
            return result

        return self.fallback.run({"eager": answered, "stock": lambda: self._leave(stock, *args, **kwargs)})

    def _leave(self, stock: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Leaves a call to stock."""
        self.stock_calls += 1
        return stock(*args, **kwargs)

    def _replace(self, owner: object, name: str, replacement: Callable[..., Any], package: str) -> bool:
        """Makes a seam where the method is its package's own; returns whether it is."""
        if reason := not_its_own(owner, name, package):
            self.fallback.note("attach", reason, "left as it is")
            return False
        self.seams.append(Seam(owner, name, self._timed(replacement)))
        return True
