"""T3, the language model that turns text and a voice into speech tokens."""

from .component import T3Component
from .sampling import SamplingSettings, finite_number
from .text import check_text

__all__ = ["SamplingSettings", "T3Component", "check_text", "finite_number"]
