"""Components that read a recording of a speaker."""

from .encoder import VoiceEncoderComponent
from .reference import ReferenceComponent

__all__ = ["ReferenceComponent", "VoiceEncoderComponent"]
