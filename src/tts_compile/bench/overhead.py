"""The cost of a timed block, against the limits that :mod:`tts_compile.timing.blocks` promises."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from ..measuring.stats import yes
from ..timing import blocks
from ..timing.blocks import Timings, timed
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
            limit = ("", "") if cost.limit is None else (str(cost.limit), yes(cost.passed))
            rows.append((name, f"{cost.median:.0f}", *limit))
        about = f"{self.settings.repeats} repeats of {self.settings.blocks} blocks"
        return [Section(rows, [f"{about}; {self.machine['cpu']}"])]


class Kind(NamedTuple):
    """One kind of block, as :mod:`timeit` runs it.

    Attributes:
        statement: runs once a block.
        setup: runs before each repeat.
        limit: see :class:`Cost`.
        fewer: the divisor of the number of blocks.
        inside: makes the block around a whole repeat.
    """

    statement: str
    setup: str = "pass"
    limit: int | None = ON
    fewer: int = 1
    inside: Callable[[], AbstractContextManager[object]] = nullcontext


_KINDS = {
    "off": Kind("with timed('block'): pass", limit=OFF),
    "on": Kind("with timed('block', timings): pass", "timings = Timings()"),
    "on, inside another": Kind("with timed('block'): pass", inside=lambda: timed("outer", Timings())),
    "decorator, off": Kind("nothing()", "nothing = timed('block')(lambda: None)"),
    "decorator, on": Kind("nothing()", "nothing = timed('block', Timings())(lambda: None)"),
    "with memory": Kind("with timed('block', timings): pass", "timings = Timings(memory=True)", limit=None, fewer=100),
}


def run(settings: Settings) -> OverheadResult:
    """Measures every kind in turn, so that a busy moment of the machine meets all of them."""
    costs: dict[str, list[float]] = {name: [] for name in _KINDS}
    names = {"timed": timed, "Timings": Timings}
    for _ in range(settings.repeats):
        for name, kind in _KINDS.items():
            count = max(1, settings.blocks // kind.fewer)
            with kind.inside():
                seconds = timeit.timeit(kind.statement, kind.setup, blocks.read_clock, count, globals=names)
            costs[name].append(seconds * 1e9 / count)
    return OverheadResult(
        settings=settings, costs={name: Cost(median(costs[name]), kind.limit) for name, kind in _KINDS.items()}
    )
