"""The reference report, redone: every table of it, measured here, beside the figures that it gave."""

from .parts import Settings, run
from .result import ReportResult

__all__ = ["ReportResult", "Settings", "run"]
