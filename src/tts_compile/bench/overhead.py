"""What a timed block costs, against the limits that :mod:`tts_compile.timing.blocks` promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..measuring import machine
from ..measuring.stats import yes
from ..timing.blocks import Stopwatch, Timings, timed
from .section import Result, Section

# Nanoseconds; memory has none: the system's files are read and written for it.
OFF, ON = 2_000, 10_000


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        repeats: of each kind, taken in turn.
        blocks: timed in each repeat; a hundredth of them with memory.
    """

    repeats: int = 21
    blocks: int = 2_000


@dataclass(frozen=True)
class Cost:
    """Of one kind of block.

    Attributes:
        median: nanoseconds a block, of the repeats; the loop around it is part of it.
        limit: what it must stay under; None for none.
    """

    median: float
    limit: int | None

    @property
    def passed(self) -> bool:
        """Whether it does."""
        return self.limit is None or self.median < self.limit


@dataclass(frozen=True)
class OverheadResult(Result):
    """Everything measured; :meth:`to_dict` is JSON-able, ``str()`` a table."""

    settings: Settings
    machine: dict[str, Any]
    costs: dict[str, Cost]

    @property
    def title(self) -> str:
        """Of the page."""
        return "What a timed block costs"

    @property
    def passed(self) -> bool:
        """Whether every limit is kept."""
        return all(cost.passed for cost in self.costs.values())

    @property
    def promise(self) -> str:
        """No model speaks here."""
        return "every limit is kept"

    @property
    def method(self) -> str:
        """Neither does stock."""
        return "Median cost of timed blocks of every kind, taken in turn"

    def to_dict(self) -> dict[str, Any]:
        """Nanoseconds and limits."""
        return {"bench": "overhead", "passed": self.passed, **asdict(self)}

    def sections(self) -> list[Section]:
        """One table."""
        rows = [("a timed block", "median, ns", "limit, ns", "kept")]
        for name, cost in self.costs.items():
            kept = "" if cost.limit is None else yes(cost.passed)
            rows.append((name, f"{cost.median:.0f}", "" if cost.limit is None else f"{cost.limit}", kept))
        about = f"{self.settings.repeats} repeats of {self.settings.blocks} blocks"
        return [Section(rows, [f"{about}; {self.machine['cpu']}"])]


def run(settings: Settings) -> OverheadResult:
    """Measure every kind in turn, so that a busy moment of the machine meets all of them."""
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
    return OverheadResult(settings, machine.describe(), costs)


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
