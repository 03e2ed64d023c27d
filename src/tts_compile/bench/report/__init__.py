"""The reference report, redone: every table of it, measured here, beside the figures that it gave."""

from .result import ReportResult
from .run import Settings, run

__all__ = ["ReportResult", "Settings", "run"]
