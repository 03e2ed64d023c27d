"""Comparison with the stock model in layers: results of each component, tokens, waves, words."""

from .measure import TEXTS, compare, measure
from .report import ComponentParity, ParityReport, TensorParity, TokenParity, WaveParity
from .thresholds import Thresholds
from .transcription import Transcriber

__all__ = [
    "TEXTS",
    "ComponentParity",
    "ParityReport",
    "TensorParity",
    "Thresholds",
    "TokenParity",
    "Transcriber",
    "WaveParity",
    "compare",
    "measure",
]
