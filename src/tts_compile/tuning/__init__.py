"""A choice of policies made by measuring on this machine, and stored for later processes."""

from .measure import autotune, tune
from .trial import Trial, Tuning

__all__ = ["Trial", "Tuning", "autotune", "tune"]
