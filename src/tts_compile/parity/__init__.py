"""Comparison with the stock model in layers: what each component gives, tokens, waves, words."""

from .measure import TEXTS, Transcriber, compare, measure
from .report import ComponentParity, ParityReport, TensorParity, TokenParity, WaveParity
from .thresholds import Thresholds
from .voice import Voice

__all__ = [
    "TEXTS",
    "ComponentParity",
    "ParityReport",
    "TensorParity",
    "Thresholds",
    "TokenParity",
    "Transcriber",
    "Voice",
    "WaveParity",
    "compare",
    "measure",
]
