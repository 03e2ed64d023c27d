"""How long compiling may take."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

from .. import _compat
from ..fallback import FallbackManager


class CompileBudget:
    """Seconds that the components of one model may spend on compiling, together.

    It is looked at before a function is called: a graph that has begun is finished. Once it is spent, what is compiled
    goes on being used, and everything else runs eagerly.

    Args:
        seconds: None for any number.

    Attributes:
        spent: so far.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = seconds
        self.spent = 0.0
        self._told: set[str] = set()

    def enforced(self, fallback: FallbackManager) -> AbstractContextManager[object]:
        """Inside, nothing is compiled once the budget is spent; the component has an event that says so.

        Raises:
            CompilationError: then, where the policy is ``"raise"``.
        """
        if self._seconds is None or self.spent < self._seconds:
            return contextlib.nullcontext()
        if fallback.component not in self._told:
            spent = f"{self.spent:.1f} s were spent on compiling, the budget is {self._seconds:g} s"
            fallback.note("compile", spent, "what is not compiled yet runs eagerly")
            self._told.add(fallback.component)
        return _compat.no_new_graphs()
