"""A choice of policies made by measuring on this machine, and kept for the next process."""

from .measure import autotune, tune
from .trial import Trial, Tuning

__all__ = ["Trial", "Tuning", "autotune", "tune"]
