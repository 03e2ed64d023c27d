"""Mel spectrogram to wave."""

from .engine import VocoderComponent

__all__ = ["VocoderComponent"]
