"""T3, the language model that turns text and a voice into speech tokens."""

from ...families.english import check_text, text_tokens
from .component import T3Component
from .sampling import SAMPLING, SamplingSettings
from .scheduler import Request

__all__ = [
    "SAMPLING",
    "Request",
    "SamplingSettings",
    "T3Component",
    "check_text",
    "text_tokens",
]
