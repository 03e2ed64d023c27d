"""Timed blocks, their sums, and the highest memory of each."""

from .blocks import Stopwatch, Timings, mark_compile, timed

__all__ = ["Stopwatch", "Timings", "mark_compile", "timed"]
