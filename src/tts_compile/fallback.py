"""What runs after a failure: an ordered chain of levels, and a record of every step down it."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any, TypeVar

from .errors import CompilationError, NonFiniteError, OutOfMemoryError, TTSCompileError
from .utils.device import is_out_of_memory, memory_summary, release_memory

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Failures at a level, other than of compiling, after which it is not tried again.
MAX_FAILURES = 3


@dataclass(frozen=True)
class FallbackEvent:
    """One step down, or one wish that could not be granted.

    Attributes:
        component: the component's name, such as ``"t3"``.
        phase: ``"attach"``, ``"compile"``, ``"validate"``, ``"warm-up"``, ``"call"``, ``"memory"`` or ``"restore"``.
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

    >>> def fast(x):
    ...     raise RuntimeError("no such instruction")
    >>> manager = FallbackManager("resampler", ["fast", "plain"])
    >>> manager.run({"fast": fast, "plain": lambda x: x + 1}, 1)
    2
    >>> print(manager.events[0].error, "->", manager.events[0].action)
    RuntimeError: no such instruction -> plain instead of fast

    Args:
        component: the name that events carry.
        chain: levels, fastest first; at least one.
        policy: ``"fallback"`` steps down; ``"raise"`` raises instead.
        max_failures: so many failures at a level, and it is not tried again; what does not compile is given up at
            once, since every attempt would cost the same wait.
        release: gives back memory that can be spared; called when it has run out, before the next attempt.

    Attributes:
        level: what runs now.
        events: all of them, oldest first.
    """

    def __init__(
        self,
        component: str,
        chain: Sequence[str],
        policy: str = "fallback",
        max_failures: int = MAX_FAILURES,
        release: Callable[[], object] | None = None,
    ) -> None:
        self.component = component
        self.chain = tuple(chain)
        self.policy = policy
        self.level = self.chain[0]
        self.events: list[FallbackEvent] = []
        self._max_failures = max_failures
        self._release = release
        self._failures: Counter[str] = Counter()
        self._lock = threading.RLock()  # a level is held for the length of a call
        self._first = 0  # levels before this one have been given up

    def run(
        self,
        ways: Mapping[str, Callable[..., T]],
        *args: Any,
        phase: str = "call",
        begin_again: Callable[[], object] | None = None,
        **kwargs: Any,
    ) -> T:
        """Call the way of the current level, and after a failure those of the next levels, until one succeeds.

        A failure counts, and has an event, once a later way has succeeded: where all fail, the mistake is the
        caller's, and so is the error. A shortage of memory has its event in any case; after the first one, the same
        way has another try with what ``release`` has given back. Calls from several threads take turns.

        Args:
            ways: for each level of the chain, what to call.
            args, kwargs: what to call it with.
            phase: of the events.
            begin_again: called before every attempt but the first; undoes what a failed one has left behind.

        Raises:
            OutOfMemoryError: where memory has run out at the last level too; its message has the numbers.
            Exception: any other error of the last way; at the first failure where the policy is ``"raise"``; and at
                once what this library has raised about the caller's input.
        """
        with self._lock:
            return self._run(ways, args, kwargs, phase, begin_again)

    def _run(
        self,
        ways: Mapping[str, Callable[..., T]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        phase: str,
        begin_again: Callable[[], object] | None,
    ) -> T:
        before = self.level
        self.level = self._trusted(before)
        fallen: list[tuple[str, str, str]] = []  # phase, error and level of every failure so far
        first: TTSCompileError | None = None
        spared = False
        try:
            while True:
                try:
                    result = ways[self.level](*args, **kwargs)
                    break
                except Exception as error:
                    short = is_out_of_memory(error)
                    rest = self._rest()
                    # Drawing a token from what is not finite ends a GPU's context: stock is not asked.
                    hopeless = isinstance(error, NonFiniteError) and rest[:1] == ("stock",)
                    if self.policy == "raise" or _is_the_callers(error) or hopeless:
                        raise
                    if short and not spared:
                        self.record("memory", reason(error), f"{self.level} again, with what could be given back")
                    elif rest:
                        fallen.append(("memory" if short else phase, reason(error), self.level))
                        self.level = rest[0]
                    elif short:
                        raise OutOfMemoryError(
                            f"{self.component}: out of memory, at level {self.level} too: {reason(error)}; "
                            f"{memory_summary()}"
                        ) from error
                    elif first is not None:
                        raise first from error
                    else:
                        raise
                    spared = spared or short
                    if isinstance(error, TTSCompileError) and first is None:
                        first = error.with_traceback(None)  # which holds what the failed attempt has made
                if short:  # after the handler: the error is gone, and with it what the failed attempt has made
                    self._give_back()
                if begin_again is not None:
                    begin_again()
            for what, why, level in fallen:
                self._count(what, why, level)
            return result
        finally:
            self.level = self._trusted(before)

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
        """Step down one level after ``error``, for good, and return the new level.

        Raises:
            CompilationError: from ``error``, when the policy is ``"raise"`` or no level is left.
        """
        rest = self._rest()
        why = reason(error)
        if self.policy == "raise" or not rest:
            raise CompilationError(f"{self.component}: {phase} at level {self.level} failed: {why}") from error
        self.note(phase, why, f"{rest[0]} instead of {self.level}")
        self.level = rest[0]
        self._first = max(self._first, self.chain.index(self.level))
        return self.level

    def _rest(self) -> tuple[str, ...]:
        return self.chain[self.chain.index(self.level) + 1 :]

    def _trusted(self, level: str) -> str:
        return self.chain[max(self._first, self.chain.index(level))]

    def _count(self, phase: str, why: str, level: str) -> None:
        """A failure that a later level has made good."""
        self._failures[level] += 1
        after = self.chain.index(level) + 1
        action = f"{self.chain[after]} instead of {level}"
        if self._failures[level] >= self._max_failures and after > self._first:
            self._first = after
            action += f", from now on: {self._failures[level]} failures"
        self.record(phase, why, action)

    def _give_back(self) -> None:
        if self._release is not None:
            self._release()
        release_memory()


def reason(error: BaseException) -> str:
    """Type and first line of an error; torch wraps the cause of a failed compilation, whose own line says more."""
    inner = getattr(error, "inner_exception", None)
    if isinstance(inner, BaseException):
        return f"{type(error).__name__}: {reason(inner)}"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _is_the_callers(error: Exception) -> bool:
    """What this library says about input, configuration or model would be no better at another level."""
    levels_own = (CompilationError, NonFiniteError, OutOfMemoryError)
    return isinstance(error, TTSCompileError) and not isinstance(error, levels_own)
