"""Timed blocks and what they add up to."""

from .blocks import Timings, timed

__all__ = ["Timings", "timed"]
