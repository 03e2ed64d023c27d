"""How a step is run, and the proof that it was; knows nothing of speech."""

from .region import CompileOptions, Region

__all__ = ["CompileOptions", "Region"]
