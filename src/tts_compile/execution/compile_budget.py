"""A limit on the time that compiling may take."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

from .. import _compat
from ..fallback import FallbackManager


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
