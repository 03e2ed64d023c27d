"""Writes WAV files with the standard library."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..utils.files import replaced


def write_wav(path: str | Path, samples: npt.NDArray[np.float32], sample_rate: int) -> Path:
    """Writes mono float samples (samples,) as a 16-bit WAV; clips values outside of [-1, 1]."""
    path = Path(path)
    pcm = (np.clip(samples, -1.0, 1.0) * 32767).astype("<i2")
    with replaced(path) as beside, wave.open(str(beside), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(pcm.tobytes())
    return path
