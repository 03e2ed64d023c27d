"""What every component offers to ``compile_model``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..config import ComponentPolicy
from ..fallback import FallbackManager
from ..report import ComponentReport
from .seam import Seam, attach_all, detach_all, not_its_own


class Component(Protocol):
    """A part of the model that can be attached, warmed up, reported on and detached."""

    def attach(self) -> None:
        """Replace the seam on the model instance."""

    def detach(self) -> None:
        """Give the seam back."""

    def release(self) -> None:
        """Give back memory that only a compiled model needs."""

    def warm_up(self) -> None:
        """Compile whatever later calls may need."""

    def report(self) -> ComponentReport:
        """What was asked, what ran, and the counts that prove it."""


class StockComponent:
    """A component that stays as ``chatterbox-tts`` ships it, by choice or because nothing else fits the model.

    Args:
        name: the component's.
        policy: what was asked for.
        fallback_policy: see :class:`tts_compile.FallbackManager`.
        missing: why there is nothing to accelerate, if that is so.
    """

    def __init__(self, name: str, policy: ComponentPolicy, fallback_policy: str, missing: str = "") -> None:
        self._policy = policy
        self._missing = missing
        self._fallback = FallbackManager(name, ["stock"], fallback_policy)
        if policy.execution not in ("stock", "auto"):
            self._fallback.note("attach", missing, "nothing to run")

    def attach(self) -> None:
        """Nothing to replace."""

    def detach(self) -> None:
        """Nothing to give back."""

    def release(self) -> None:
        """Nothing to give back."""

    def warm_up(self) -> None:
        """Nothing to compile."""

    def report(self) -> ComponentReport:
        """A row that says "stock"."""
        events = tuple(self._fallback.events)
        return ComponentReport(self._policy.execution, "stock", fallbacks=events, note=self._missing)


class EagerComponent:
    """A component that does stock's work with less around it; there is nothing in it to compile.

    Attributes:
        calls: calls that the component has answered itself.
        left_to_stock: calls that it has passed on.
    """

    def __init__(self, name: str, policy: ComponentPolicy, fallback_policy: str, nothing_to_compile: str) -> None:
        self._asked = policy.execution
        self._fallback = FallbackManager(name, ["eager"], fallback_policy)
        self._seams: list[Seam] = []
        self.calls = 0
        self.left_to_stock = 0
        if policy.execution in ("inductor", "cuda_graph"):
            self._fallback.note("attach", nothing_to_compile, "eager instead")
        if policy.dtype != "model":
            self._fallback.note("attach", f"this version has no {policy.dtype} weights for {name}", "the model's dtype")

    def attach(self) -> None:
        """Replace the seams."""
        attach_all(self._seams)

    def detach(self) -> None:
        """Give the seams back."""
        detach_all(self._seams)

    def release(self) -> None:
        """Nothing to give back."""

    def warm_up(self) -> None:
        """Nothing to compile."""

    def report(self) -> ComponentReport:
        """Calls answered; none of them compiled."""
        return ComponentReport(
            asked=self._asked,
            ran="eager" if self.calls else "stock",
            calls=self.calls,
            fallbacks=tuple(self._fallback.events),
            note="; ".join(self._notes()),
        )

    def _notes(self) -> list[str]:
        notes = [] if self.calls or self.left_to_stock else ["it has not been reached yet"]
        return [*notes, f"calls left to stock: {self.left_to_stock}"] if self.left_to_stock else notes

    def _replace(self, owner: object, name: str, replacement: Callable[..., Any], package: str = "chatterbox") -> bool:
        """Make a seam, and say so, where the method is the one that this component was written for."""
        if reason := not_its_own(owner, name, package):
            self._fallback.note("attach", reason, "left as it is")
            return False
        self._seams.append(Seam(owner, name, replacement))
        return True
