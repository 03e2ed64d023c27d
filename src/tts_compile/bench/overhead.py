"""The cost of a timed block, against the limits that :mod:`tts_compile.timing.blocks` promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..measuring.stats import yes
from ..timing.blocks import Stopwatch, Timings, timed
from .result import Result, Section, option

# Nanoseconds; memory has no limit: the system's files are read and written for it.
OFF, ON = 2_000, 10_000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the benchmark of timed blocks; with memory, a hundredth of the blocks is timed."""

    repeats: int = option(21, "of each kind of block", least=1)
    blocks: int = option(2_000, "blocks in a repeat", least=1)


@dataclass(frozen=True)
class Cost:
    """The cost of one kind of block.

    Attributes:
        median: nanoseconds a block, of the repeats, the loop around it included.
        limit: exclusive; None for none.
    """

    median: float
    limit: int | None

    @property
    def passed(self) -> bool:
        """Returns whether the median is below the limit."""
        return self.limit is None or self.median < self.limit


@dataclass(frozen=True, kw_only=True)
class OverheadResult(Result):
    """The costs of timed blocks; no model is called."""

    subject = "overhead"
    title = "The cost of a timed block"
    promise = "every limit is kept"
    method = "Median cost of timed blocks of every kind, measured in turn"

    costs: dict[str, Cost]

    @property
    def kept(self) -> bool:
        """Returns whether every cost is below its limit."""
        return all(cost.passed for cost in self.costs.values())

    @property
    def shortfalls(self) -> list[str]:
        """Returns nothing."""
        return []

    def follows(self) -> dict[str, Any]:
        """Returns nothing: the costs are the raw figures."""
        return {}

    def sections(self) -> list[Section]:
        """Returns one table."""
        rows = [("a timed block", "median, ns", "limit, ns", "kept")]
        for name, cost in self.costs.items():
            kept = "" if cost.limit is None else yes(cost.passed)
            rows.append((name, f"{cost.median:.0f}", "" if cost.limit is None else f"{cost.limit}", kept))
        about = f"{self.settings.repeats} repeats of {self.settings.blocks} blocks"
        return [Section(rows, [f"{about}; {self.machine['cpu']}"])]


def run(settings: Settings) -> OverheadResult:
    """Measures every kind in turn, so that a busy moment of the machine meets all of them."""
    kinds: dict[str, tuple[Callable[[int], float], int, int | None]] = {
        "off": (_lone, 1, OFF),
        "on": (_in_a_row, 1, ON),
        "on, inside another": (_inside, 1, ON),
        "decorator, off": (_decorated_off, 1, OFF),
        "decorator, on": (_decorated, 1, ON),
        "with memory": (_with_memory, 100, None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(settings.repeats):
        for name, (measure, fewer, _) in kinds.items():
            count = max(1, settings.blocks // fewer)
            seconds[name].append(measure(count) / count)
    costs = {name: Cost(float(np.median(seconds[name])) * 1e9, limit) for name, (_, _, limit) in kinds.items()}
    return OverheadResult(settings=settings, costs=costs)


def _lone(count: int) -> float:
    with Stopwatch() as watch:
        for _ in range(count):
            with timed("block"):
                pass
    return watch.seconds


def _in_a_row(count: int, memory: bool = False) -> float:
    timings = Timings(memory=memory)
    with Stopwatch() as watch:
        for _ in range(count):
            with timed("block", timings):
                pass
    return watch.seconds


def _with_memory(count: int) -> float:
    return _in_a_row(count, memory=True)


def _inside(count: int) -> float:
    with timed("outer", Timings()):
        return _lone(count)


def _decorated(count: int, on: bool = True) -> float:
    @timed("block", Timings() if on else None)
    def nothing() -> None:
        pass

    with Stopwatch() as watch:
        for _ in range(count):
            nothing()
    return watch.seconds


def _decorated_off(count: int) -> float:
    return _decorated(count, on=False)
