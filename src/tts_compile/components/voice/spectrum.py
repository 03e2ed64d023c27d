"""Trimming and mel spectrogram of the voice encoder, bit for bit as librosa computes both."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ...audio.reading import Samples

# librosa.effects.trim's defaults, in samples.
_TRIM_FRAME = 2048
_TRIM_HOP = 512
_AMIN = 1e-5  # librosa.amplitude_to_db's


def trim(wave: Samples, top_db: float) -> Samples:
    """Returns ``librosa.effects.trim(wave, top_db=top_db)[0]``, without frames ``top_db`` below the loudest.

    Args:
        wave: (samples,), at least one.
    """
    power = np.mean(np.square(_frames(wave, _TRIM_FRAME, _TRIM_HOP, "constant"), dtype=np.float32), axis=-2)
    level = np.sqrt(power)
    loudest = np.max(level)
    decibels = 10.0 * np.log10(np.maximum(_AMIN**2, np.square(level)))
    decibels -= 10.0 * np.log10(np.maximum(_AMIN**2, loudest**2))
    heard = np.flatnonzero(decibels > -top_db)
    if not heard.size:
        return wave[:0]
    return wave[heard[0] * _TRIM_HOP : (heard[-1] + 1) * _TRIM_HOP]


def mel_spectrogram(wave: Samples, hp: Any) -> Samples:
    """Returns ``melspectrogram(wave, hp)`` of chatterbox's voice encoder for settings that :func:`plain` accepts.

    Args:
        wave: (samples,), at least one.
        hp: a ``VoiceEncConfig``.

    Returns:
        (mels, frames)
    """
    import scipy.fft
    import scipy.signal
    from chatterbox.models.voice_encoder.melspec import mel_basis

    window = scipy.signal.get_window("hann", hp.win_size, fftbins=True)
    frames = _frames(wave, hp.n_fft, hp.hop_size, "reflect")
    spectrum = np.zeros((1 + hp.n_fft // 2, frames.shape[1]), dtype=np.complex64, order="F")
    spectrum[:] = scipy.fft.rfft(window[:, None] * frames, axis=0)
    magnitudes = np.abs(spectrum)
    magnitudes **= hp.mel_power
    mel: Samples = np.dot(mel_basis(hp), magnitudes)
    return mel


def plain(hp: Any) -> bool:
    """Returns whether the voice encoder's settings are the released model's wherever this file assumes them."""
    return bool(hp.preemphasis == 0 and hp.mel_type == "amp" and not hp.normalized_mels and hp.win_size == hp.n_fft)


def _frames(wave: Samples, length: int, hop: int, mode: Any) -> Samples:
    """Returns centred frames (length, count) of a padded wave; a view."""
    padded = np.pad(wave, length // 2, mode=mode)
    return sliding_window_view(padded, length)[::hop].T
