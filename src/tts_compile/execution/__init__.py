"""How a step is run, and the proof that it was; knows nothing of speech."""

from .region import Region

__all__ = ["Region"]
