"""What runs after a failure: an ordered chain of levels, and a record of every step down it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone

from .errors import CompilationError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FallbackEvent:
    """One step down, or one wish that could not be granted.

    Attributes:
        component: the component's name, such as ``"t3"``.
        phase: ``"attach"``, ``"compile"``, ``"call"`` or ``"memory"``.
        error: what went wrong, as text.
        action: what was done instead.
        at: when, in UTC, ISO 8601.
    """

    component: str
    phase: str
    error: str
    action: str
    at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="milliseconds"))

    def to_dict(self) -> dict[str, str]:
        """The event as plain strings."""
        return asdict(self)


class FallbackManager:
    """Holds a component's level in an ordered chain, from the fastest to the safest.

    >>> manager = FallbackManager("t3", ["inductor", "eager"])
    >>> manager.fall("compile", RuntimeError("no compiler"))
    'eager'
    >>> manager.events[0].action
    'eager instead of inductor'

    Args:
        component: the name that events carry.
        chain: levels, fastest first; at least one.
        policy: ``"fallback"`` steps down; ``"raise"`` raises :class:`CompilationError` instead.
    """

    def __init__(self, component: str, chain: Sequence[str], policy: str = "fallback") -> None:
        self.component = component
        self.chain = tuple(chain)
        self.policy = policy
        self.level = self.chain[0]
        self.events: list[FallbackEvent] = []

    def note(self, phase: str, error: str, action: str) -> None:
        """Record an event that leaves the level as it is.

        Raises:
            CompilationError: when the policy is ``"raise"``.
        """
        if self.policy == "raise":
            raise CompilationError(f"{self.component}: {phase} failed: {error}")
        self.record(phase, error, action)

    def record(self, phase: str, error: str, action: str) -> None:
        """Record an event that is no failure to compile, whatever the policy."""
        event = FallbackEvent(self.component, phase, error, action)
        self.events.append(event)
        logger.warning("%s: %s failed (%s): %s", event.component, event.phase, event.error, event.action)

    def fall(self, phase: str, error: Exception) -> str:
        """Step down one level after ``error`` and return the new level.

        Raises:
            CompilationError: from ``error``, when the policy is ``"raise"`` or no level is left.
        """
        remaining = self.chain[self.chain.index(self.level) + 1 :]
        why = reason(error)
        if self.policy == "raise" or not remaining:
            raise CompilationError(f"{self.component}: {phase} at level {self.level} failed: {why}") from error
        self.note(phase, why, f"{remaining[0]} instead of {self.level}")
        self.level = remaining[0]
        return self.level


def reason(error: BaseException) -> str:
    """Type and first line of an error; torch wraps the cause of a failed compilation, whose own line says more."""
    inner = getattr(error, "inner_exception", None)
    if isinstance(inner, BaseException):
        return f"{type(error).__name__}: {reason(inner)}"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
