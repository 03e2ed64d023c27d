"""The protocol of a component, and the components that compile nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from ..fallback import FallbackManager
from ..report import ComponentReport
from ..timing.blocks import timed
from .runtime import Runtime
from .seam import Seam, attach_all, detach_all, not_its_own

T = TypeVar("T")


class Component(Protocol):
    """A part of the model that can be attached, warmed up, reported on and detached."""

    fallback: FallbackManager
    dtype: str  # of the weights that it reads: "model", or what a policy may ask for

    @property
    def stock_calls(self) -> int:
        """Returns the number of calls that stock has answered instead."""

    @property
    def seams(self) -> Sequence[Seam]:
        """Returns the methods that the component replaces."""

    def attach(self) -> None:
        """Replaces the methods on the model's instances."""

    def detach(self) -> None:
        """Puts the stock methods back."""

    def release(self) -> None:
        """Gives back memory that only a compiled model needs."""

    def warm_up(self) -> None:
        """Compiles whatever later calls may need."""

    def report(self) -> ComponentReport:
        """Returns what was asked, what ran, and the counts that prove it."""


class StockComponent:
    """A component that stays as its own package ships it, by choice or because nothing else fits the model.

    Args:
        name: of the component.
        runtime: of the model.
        missing: why there is nothing to accelerate, where that is so.
        failed: the phase in which a failure was found; empty where the model has nothing to accelerate.
    """

    dtype = "model"
    stock_calls = 0

    def __init__(self, name: str, runtime: Runtime, missing: str = "", failed: str = "") -> None:
        self._asked = getattr(runtime.config, name).execution
        self._missing = missing
        self.fallback = FallbackManager(name, ["stock"], runtime.config.fallback)
        if failed or self._asked not in ("stock", "auto"):
            self.fallback.note(failed or "attach", missing, "stock")

    @property
    def seams(self) -> Sequence[Seam]:
        """Returns nothing: no method is replaced."""
        return ()

    def attach(self) -> None:
        """Does nothing."""

    def detach(self) -> None:
        """Does nothing."""

    def release(self) -> None:
        """Does nothing."""

    def warm_up(self) -> None:
        """Does nothing."""

    def report(self) -> ComponentReport:
        """Returns a row that says "stock"."""
        events = tuple(self.fallback.events)
        return ComponentReport(self._asked, "stock", fallbacks=events, note=self._missing)


class EagerComponent:
    """A component that computes what stock computes with less work around it; there is nothing to compile.

    Args:
        name: of the component.
        runtime: of the model.
        nothing_to_compile: why that is so.

    Attributes:
        seams: the methods that it replaces.
        calls: calls that the component has answered itself.
        left_to_stock: calls that stock has answered.
    """

    dtype = "model"  # this version has no other weights

    def __init__(self, name: str, runtime: Runtime, nothing_to_compile: str) -> None:
        config = runtime.config
        policy = getattr(config, name)
        self._timed = timed(name, runtime.timings)
        self._asked = policy.execution
        self.fallback = FallbackManager(
            name, ["eager", "stock"], config.fallback, config.max_failures, release=self.release
        )
        self.seams: list[Seam] = []
        self.calls = 0
        self.left_to_stock = 0
        if policy.execution in ("inductor", "cuda_graph"):
            self.fallback.note("attach", nothing_to_compile, "eager instead")
        if policy.dtype != "model":
            self.fallback.note("attach", f"this version has no {policy.dtype} weights for {name}", "the model's dtype")

    @property
    def stock_calls(self) -> int:
        """Returns the number of calls that stock has answered."""
        return self.left_to_stock

    def attach(self) -> None:
        """Replaces the methods."""
        attach_all(self.seams)

    def detach(self) -> None:
        """Puts the stock methods back."""
        detach_all(self.seams)

    def release(self) -> None:
        """Does nothing."""

    def warm_up(self) -> None:
        """Loads what the first call would load."""
        self.fallback.run({"eager": self._load, "stock": lambda: None}, phase="warm-up")

    def _load(self) -> None:
        """Loads libraries, and runs once; a subclass does it."""

    def report(self) -> ComponentReport:
        """Returns the calls answered; none of them is compiled."""
        return ComponentReport(
            asked=self._asked,
            ran="eager" if self.calls else "stock",
            calls=self.calls,
            fallbacks=tuple(self.fallback.events),
            note="; ".join(self._notes()),
        )

    def _run(self, ours: Callable[..., T], stock: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Runs ours; after a failure, stock's."""

        def counted(*args: Any, **kwargs: Any) -> T:
            self.left_to_stock += 1
            return stock(*args, **kwargs)

        return self.fallback.run({"eager": ours, "stock": counted}, *args, **kwargs)

    def _notes(self) -> list[str]:
        notes = [] if self.calls or self.left_to_stock else ["it has not been reached yet"]
        return [*notes, f"calls left to stock: {self.left_to_stock}"] if self.left_to_stock else notes

    def _replace(self, owner: object, name: str, replacement: Callable[..., Any], package: str) -> bool:
        """Makes a seam where the method is its package's own; returns whether it is."""
        if reason := not_its_own(owner, name, package):
            self.fallback.note("attach", reason, "left as it is")
            return False
        self.seams.append(Seam(owner, name, self._timed(replacement)))
        return True
