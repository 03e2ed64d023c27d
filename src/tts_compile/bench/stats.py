"""What a handful of repeated timings allows to be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
# Three equal pairs come out fully apart in 2 of 20 orders, four in 2 of 70: below four an interval would be a pretence.
FEWEST = 4


@dataclass(frozen=True)
class Spread:
    """Median and range of repeated values, in the unit of the values."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value.

        >>> Spread.of([3.0, 1.0, 2.0])
        Spread(median=2.0, low=1.0, high=3.0)
        """
        return cls(float(np.median(values)), min(values), max(values))


@dataclass(frozen=True)
class Ratio:
    """How many times better the compiled side is: above 1 is better, whichever way the quantity runs.

    Attributes:
        value: ratio of the medians.
        interval: 95% bootstrap interval, or None with fewer than four repeats on a side.
    """

    value: float
    interval: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """``"gain"`` or ``"loss"`` only where the interval excludes 1; ``"no difference"``; ``"unknown"``."""
        if self.interval is None:
            return "unknown"
        low, high = self.interval
        if low > 1:
            return "gain"
        return "loss" if high < 1 else "no difference"

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.value:.2f}x (too few repeats for an interval)"
        return f"{self.value:.2f}x ({self.interval[0]:.2f} to {self.interval[1]:.2f}): {self.verdict}"


def ratio_of_medians(above: Sequence[float], below: Sequence[float], seed: int = 0) -> Ratio:
    """``median(above) / median(below)`` with its percentile bootstrap interval (Efron 1979), sides drawn apart."""
    value = float(np.median(above) / np.median(below))
    if min(len(above), len(below)) < FEWEST:
        return Ratio(value, None)
    generator = np.random.default_rng(seed)
    medians = [
        np.median(generator.choice(np.asarray(side, dtype=np.float64), size=(RESAMPLES, len(side))), axis=1)
        for side in (above, below)
    ]
    low, high = np.percentile(medians[0] / medians[1], [2.5, 97.5])
    return Ratio(value, (float(low), float(high)))


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table that reads well on a terminal and in Markdown; the first row holds the titles."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def spread(values: Sequence[float]) -> str:
    """Median and range for a table's cell; a single value stands alone.

    >>> spread([3.0, 1.0, 2.0])
    '2 (1 to 3)'
    """
    s = Spread.of(values)
    return f"{s.median:.3g} ({s.low:.3g} to {s.high:.3g})" if len(values) > 1 else f"{s.median:.3g}"


def yes(value: bool) -> str:
    """For a table's cell: what should be true and is not stands out."""
    return "yes" if value else "NO"
