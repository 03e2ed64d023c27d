"""The speech model, which turns text and a voice into speech tokens."""

from .component import T3Component
from .scheduler import Request, Scheduler

__all__ = ["Request", "Scheduler", "T3Component"]
