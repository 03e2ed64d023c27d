"""Mel spectrogram to wave."""

from .component import VocoderComponent

__all__ = ["VocoderComponent"]
