"""The only place that reads a clock."""

from __future__ import annotations

import time
from types import TracebackType

from typing_extensions import Self


class Stopwatch:
    """Seconds of wall time spent in a ``with`` block, readable inside it and after.

    >>> with Stopwatch() as watch:
    ...     total = sum(range(10))
    >>> watch.seconds >= 0
    True
    """

    def __init__(self) -> None:
        self._started = 0.0
        self._stopped: float | None = None

    def __enter__(self) -> Self:
        self._stopped = None
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall seconds since the block was entered, up to its end where it has ended."""
        end = time.perf_counter() if self._stopped is None else self._stopped
        return end - self._started
