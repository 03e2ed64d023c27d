"""Statistics of a handful of repeated timings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
LEVEL = 95  # per cent
# With five repeats equal sides come out as a gain or a loss in 3 of 100 cases, with four in 7 (simulated).
FEWEST = 5

Interval = tuple[float, float]
_Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Median:
    """The median of repeated values, in their unit.

    Attributes:
        interval: 95% bootstrap interval, or None with fewer than five values. With five it is their whole range: one
            resample in 17 has its median there.
    """

    value: float
    interval: Interval | None

    def __str__(self) -> str:
        if self.interval is None:
            return figure(self.value)
        return f"{figure(self.value)} ({figure(self.interval[0])} to {figure(self.interval[1])})"


@dataclass(frozen=True)
class Ratio:
    """A ratio that is above 1 where the compiled side is better, whichever way the quantity runs.

    Attributes:
        value: ratio of the medians.
        interval: 95% bootstrap interval, or None with fewer than five repeats on a side.
    """

    value: float
    interval: Interval | None

    @property
    def verdict(self) -> str:
        """Returns ``"gain"`` or ``"loss"`` only where the interval excludes 1; ``"no difference"``; ``"unknown"``."""
        if self.interval is None:
            return "unknown"
        low, high = self.interval
        if low > 1:
            return "gain"
        return "loss" if high < 1 else "no difference"

    def to_dict(self) -> dict[str, Any]:
        """Returns value, interval and verdict."""
        return {**asdict(self), "verdict": self.verdict}

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.value:.2f}x (too few repeats for an interval)"
        return f"{self.value:.2f}x ({self.interval[0]:.2f} to {self.interval[1]:.2f}): {self.verdict}"


def median_of(values: Sequence[float], seed: int = 0) -> Median:
    """Returns the median of at least one value, with its interval.

    >>> median_of([3.0, 1.0, 2.0])
    Median(value=2.0, interval=None)
    """
    return Median(*_bootstrap(lambda medians: medians[0], [values], seed))


def ratio_of_medians(above: Sequence[float], below: Sequence[float], seed: int = 0) -> Ratio:
    """Returns ``median(above) / median(below)`` with its interval."""
    return Ratio(*_bootstrap(lambda medians: medians[0] / medians[1], [above, below], seed))


def difference_of_medians(minuend: Sequence[float], subtrahend: Sequence[float], seed: int = 0) -> Median:
    """Returns ``median(minuend) - median(subtrahend)`` with its interval."""
    return Median(*_bootstrap(lambda medians: medians[0] - medians[1], [minuend, subtrahend], seed))


def _bootstrap(
    statistic: Callable[[list[_Array]], _Array], sides: Sequence[Sequence[float]], seed: int
) -> tuple[float, Interval | None]:
    """Returns a statistic of the sides' medians with its percentile bootstrap interval.

    After Efron and Tibshirani 1993, *An Introduction to the Bootstrap*, sections 8.3 and 13.3: every side is resampled
    alone. Resampling pairs, one call of each side, would take out drift that both share, but cannot be 95% sure
    with five of them: equal sides give five ratios on one side of 1 in 2 of 32 cases. Drift within a run makes this
    interval wider, so that it may hide a difference but does not invent one.
    """
    values = [np.asarray(side, dtype=np.float64) for side in sides]
    value = float(statistic([np.median(side, keepdims=True) for side in values])[0])
    if min(map(len, values)) < FEWEST:
        return value, None
    generator = np.random.default_rng(seed)
    medians = [np.median(generator.choice(side, size=(RESAMPLES, len(side))), axis=1) for side in values]
    outside = (100 - LEVEL) / 2
    low, high = np.percentile(statistic(medians), [outside, 100 - outside])
    return value, (float(low), float(high))


def figure(value: float) -> str:
    """Returns a number with three significant digits, and all digits before the point.

    >>> figure(0.012345), figure(12345.6)
    ('0.0123', '12346')
    """
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """Returns median and interval for a table's cell; the median alone of too few values, and nothing of none.

    >>> spread([3.0, 1.0, 2.0])
    '2'
    """
    return str(median_of(values)) if values else ""


def plain(ratios: Mapping[str, Ratio]) -> dict[str, Any]:
    """Returns ratios with their verdicts, for JSON."""
    return {name: ratio.to_dict() for name, ratio in ratios.items()}


def yes(value: bool) -> str:
    """Returns ``"yes"`` or ``"NO"``, for a table's cell that should be true."""
    return "yes" if value else "NO"
