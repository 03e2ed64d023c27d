"""An ordered chain of ways to do one thing, and a record of every step down it."""

from __future__ import annotations

import functools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any, TypeVar

from .errors import CompilationError, InputError, NonFiniteError, OutOfMemoryError, TTSCompileError
from .utils.arguments import is_int, mistaken_choice, raise_all
from .utils.device import is_out_of_memory, memory_summary, release_memory

logger = logging.getLogger(__name__)

T = TypeVar("T")

POLICIES = ("fallback", "raise")
# Failures at a level, other than of compiling, after which it is not tried again.
MAX_FAILURES = 3


@dataclass(frozen=True)
class FallbackEvent:
    """One step down, or one request that could not be granted.

    Attributes:
        component: the component's name.
        phase: ``"attach"``, ``"compile"``, ``"validate"``, ``"warm-up"``, ``"call"``, ``"memory"``, ``"reuse"`` (of
            copies of weights) or ``"restore"``.
        error: the failure, as text.
        action: the replacement that was used.
        at: the time in UTC, ISO 8601.
    """

    component: str
    phase: str
    error: str
    action: str
    at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="milliseconds"))

    def to_dict(self) -> dict[str, str]:
        """Returns the event as plain strings."""
        return asdict(self)


class FallbackManager:
    """A component's level in an ordered chain, from the fastest to the safest.

    >>> def fast(x):
    ...     raise RuntimeError("no such instruction")
    >>> manager = FallbackManager("resampler", ["fast", "plain"])
    >>> manager.run({"fast": fast, "plain": lambda x: x + 1}, 1)
    2
    >>> print(manager.events[0].error, "->", manager.events[0].action)
    RuntimeError: no such instruction -> plain instead of fast

    Args:
        component: the name that events carry.
        chain: different levels, fastest first; at least one.
        policy: ``"fallback"`` steps down; ``"raise"`` raises instead.
        max_failures: after this many failures at a level, it is not tried again. A level whose code cannot be compiled
            is given up at once, since every attempt would cost the same wait.
        release: frees memory that the component does not need; called when memory has run out, before the next attempt.

    Attributes:
        level: the level that runs now.
        events: all events, oldest first.

    Raises:
        ConfigError: lists every mistake in the chain, the policy and the number of failures.
    """

    def __init__(
        self,
        component: str,
        chain: Sequence[str],
        policy: str = "fallback",
        max_failures: int = MAX_FAILURES,
        release: Callable[[], object] | None = None,
    ) -> None:
        mistakes = []
        if isinstance(chain, str) or not chain or not all(isinstance(level, str) and level for level in chain):
            mistakes.append(f"the chain of {component} must be a list of at least one level's name, got {chain!r}")
        elif len({*chain}) < len(chain):
            mistakes.append(f"the chain of {component} must name each level once, got {chain!r}")
        mistakes += mistaken_choice("policy", policy, POLICIES)
        if not is_int(max_failures) or max_failures < 1:
            mistakes.append(f"max_failures must be a whole number from 1, got {max_failures!r}")
        raise_all(mistakes)
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
        """Calls the function of the current level, and after a failure those of the next levels, until one succeeds.

        A failure is counted, and recorded as an event, once a later level has succeeded: where all levels fail, the
        arguments are at fault, and the error is raised to the caller. A shortage of memory is always recorded; after
        the first one, the memory that can be spared is released and the same level is tried once more. Only one thread
        at a time runs a level.

        Args:
            ways: a function for each level of the chain.
            args, kwargs: passed to the function.
            phase: recorded in the events.
            begin_again: undoes the effects of a failed attempt; called before every attempt but the first.

        Raises:
            InputError: names the levels that have no function; nothing has run then.
            OutOfMemoryError: where memory has run out at the last level too; its message has the numbers.
            Exception: any other error of the last level; the first error where the policy is ``"raise"``; and every
                error that this library has raised about the caller's input.
        """
        if missing := [level for level in self.chain if not callable(ways.get(level))]:
            raise InputError(
                f"{self.component}: there is no function for {', '.join(missing)}; "
                f"each of the levels {', '.join(self.chain)} needs one"
            )
        attempts = {level: functools.partial(ways[level], *args, **kwargs) for level in self.chain}
        with self._lock:
            return self._run(attempts, phase, begin_again)

    def _run(self, attempts: Mapping[str, Callable[[], T]], phase: str, begin_again: Callable[[], object] | None) -> T:
        before = self.level
        self.level = self._usable(before)
        failures: list[tuple[str, str, str]] = []  # phase, error and level of every one so far
        own: TTSCompileError | None = None  # the first error that this library has raised itself
        released = False
        try:
            while True:
                try:
                    result = attempts[self.level]()
                    break
                except Exception as error:
                    short = is_out_of_memory(error)
                    below = self._below()
                    # On a GPU, stock would draw a token from non-finite values, which makes the context unusable.
                    hopeless = isinstance(error, NonFiniteError) and below[:1] == ("stock",)
                    if self.policy == "raise" or _is_about_arguments(error) or hopeless:
                        raise
                    if short and not released:
                        self.record("memory", reason(error), f"{self.level} again, after releasing memory")
                    elif below:
                        failures.append(("memory" if short else phase, reason(error), self.level))
                        self.level = below[0]
                    elif short:
                        raise OutOfMemoryError(
                            f"{self.component}: out of memory, at level {self.level} too: {reason(error)}; "
                            f"{memory_summary()}"
                        ) from error
                    elif own is not None:
                        raise own from error
                    else:
                        raise
                    released = released or short
                    if isinstance(error, TTSCompileError) and own is None:
                        own = error.with_traceback(None)  # whose frames hold objects of the failed attempt
                if short:  # after the handler, when the error no longer holds objects of the failed attempt
                    if self._release is not None:
                        self._release()
                    release_memory()
                if begin_again is not None:
                    begin_again()
            for failure in failures:
                self._count(*failure)
            return result
        finally:
            self.level = self._usable(before)

    def note(self, phase: str, error: str, action: str) -> None:
        """Records an event that leaves the level as it is.

        Raises:
            CompilationError: when the policy is ``"raise"``.
        """
        if self.policy == "raise":
            raise CompilationError(f"{self.component}: {phase} failed: {error}")
        self.record(phase, error, action)

    def record(self, phase: str, error: str, action: str) -> None:
        """Records an event under either policy."""
        event = FallbackEvent(self.component, phase, error, action)
        self.events.append(event)
        logger.warning("%s: %s failed (%s): %s", event.component, event.phase, event.error, event.action)

    def fall(self, phase: str, error: Exception) -> str:
        """Gives up the current level after ``error``, and returns the next one.

        Raises:
            CompilationError: from ``error``, when the policy is ``"raise"`` or no level is left.
        """
        below = self._below()
        why = reason(error)
        if self.policy == "raise" or not below:
            raise CompilationError(f"{self.component}: {phase} at level {self.level} failed: {why}") from error
        self.note(phase, why, f"{below[0]} instead of {self.level}")
        self.level = below[0]
        self._first = max(self._first, self.chain.index(self.level))
        return self.level

    def _below(self) -> tuple[str, ...]:
        """Returns the levels after the current one."""
        return self.chain[self.chain.index(self.level) + 1 :]

    def _usable(self, level: str) -> str:
        """Returns ``level``, or the first one that has not been given up."""
        return self.chain[max(self._first, self.chain.index(level))]

    def _count(self, phase: str, why: str, level: str) -> None:
        """Counts a failure of a level where a later one has succeeded; gives the level up after too many."""
        self._failures[level] += 1
        after = self.chain.index(level) + 1
        action = f"{self.chain[after]} instead of {level}"
        if self._failures[level] >= self._max_failures and after > self._first:
            self._first = after
            action += f", from now on: {self._failures[level]} failures"
        self.record(phase, why, action)


def reason(error: BaseException) -> str:
    """Returns type and first line of an error; of a failed compilation, those of the error that torch has wrapped."""
    inner = getattr(error, "inner_exception", None)
    if isinstance(inner, BaseException):
        return f"{type(error).__name__}: {reason(inner)}"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def _is_about_arguments(error: Exception) -> bool:
    """Returns whether another level would refuse the same input, configuration or model too."""
    of_one_level = (CompilationError, NonFiniteError, OutOfMemoryError)
    return isinstance(error, TTSCompileError) and not isinstance(error, of_one_level)
