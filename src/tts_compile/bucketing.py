"""Ladders: the only place that decides which capacities shapes are rounded up to."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from typing_extensions import Self

from .errors import ConfigError, InputError


@dataclass(frozen=True)
class Ladder:
    """An ascending list of capacities.

    >>> ladder = Ladder.regular(step=64, last=256)
    >>> ladder.rungs
    (64, 128, 192, 256)
    >>> ladder.capacity(65)
    128
    """

    rungs: tuple[int, ...]

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.rungs, self.rungs[1:]))
        if not self.rungs or self.rungs[0] < 1 or not ascending:
            raise ConfigError(f"a ladder needs positive, strictly ascending rungs, got {self.rungs}")

    @classmethod
    def regular(cls, step: int, last: int) -> Self:
        """Multiples of ``step`` up to the first that is at least ``last``."""
        if step < 1 or last < 1:
            raise ConfigError(f"step and last must be at least 1, got {step} and {last}")
        return cls(tuple(range(step, last + step, step)))

    def capacity(self, n: int) -> int:
        """The smallest rung that holds ``n`` (n >= 0).

        Raises:
            InputError: when ``n`` is negative or larger than the last rung.
        """
        if not 0 <= n <= self.rungs[-1]:
            raise InputError(f"{n} does not fit a ladder from {self.rungs[0]} to {self.rungs[-1]}")
        return self.rungs[bisect.bisect_left(self.rungs, n)]
