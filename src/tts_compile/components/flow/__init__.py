"""Speech tokens to mel spectrogram: the flow encoder, and the solver around the estimator."""

from .engine import FlowComponent

__all__ = ["FlowComponent"]
