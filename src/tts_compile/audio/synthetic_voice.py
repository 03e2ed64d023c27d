"""Synthesises a recording that sounds roughly like a voice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from .wav import write_wav


def make_reference_wav(path: str | Path, seconds: float = 10.0, sample_rate: int = 24_000) -> Path:
    """Writes a mono 16-bit WAV that sounds roughly like a voice: pitched pulses through three moving formants.

    Raises:
        InputError: for a length that is not positive.
    """
    if not seconds > 0:
        raise InputError(f"seconds must be positive, got {seconds}")
    t = np.arange(int(seconds * sample_rate)) / sample_rate
    pitch = 120 + 25 * np.sin(2 * np.pi * 0.4 * t) + 8 * np.sin(2 * np.pi * 5 * t)  # Hz
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    wave = np.zeros_like(t)
    for harmonic in range(1, 40):
        frequency = harmonic * pitch
        gain = np.zeros_like(t)
        for centre, swing, width in ((600, 200, 120), (1500, 500, 200), (2600, 300, 300)):
            formant = centre + swing * np.sin(2 * np.pi * 1.3 * t + centre)
            gain += np.exp(-(((frequency - formant) / width) ** 2))
        wave += gain * np.sin(harmonic * phase) / harmonic**0.5
    syllables = np.clip(np.sin(2 * np.pi * 2.1 * t) + 0.6, 0, None)
    wave = 0.5 * wave * syllables / np.abs(wave * syllables).max()
    return write_wav(path, wave.astype(np.float32), sample_rate)
