"""What every component offers to ``compile_model``."""

from __future__ import annotations

from typing import Protocol

from ..config import ComponentPolicy
from ..fallback import FallbackManager
from ..report import ComponentReport


class Component(Protocol):
    """A part of the model that can be attached, warmed up, reported on and detached."""

    def attach(self) -> None:
        """Replace the seam on the model instance."""

    def detach(self) -> None:
        """Give the seam back."""

    def warm_up(self) -> None:
        """Compile whatever later calls may need."""

    def report(self) -> ComponentReport:
        """What was asked, what ran, and the counts that prove it."""


class StockComponent:
    """A component that stays as ``chatterbox-tts`` ships it, by choice or because nothing better is there yet."""

    def __init__(self, name: str, policy: ComponentPolicy, fallback_policy: str) -> None:
        self._policy = policy
        self._fallback = FallbackManager(name, ["stock"], fallback_policy)
        if policy.execution not in ("stock", "auto"):
            self._fallback.note("attach", f"this version has no {policy.execution!r} execution for {name}", "stock")

    def attach(self) -> None:
        """Nothing to replace."""

    def detach(self) -> None:
        """Nothing to give back."""

    def warm_up(self) -> None:
        """Nothing to compile."""

    def report(self) -> ComponentReport:
        """A row that says "stock"."""
        note = "not accelerated in this version" if self._policy.execution != "stock" else ""
        return ComponentReport(self._policy.execution, "stock", fallbacks=tuple(self._fallback.events), note=note)
