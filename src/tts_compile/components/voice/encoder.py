"""The voice encoder as a component: waves to speaker embeddings, through librosa's spectrogram without librosa."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from ...audio.reading import Samples
from ...errors import InputError
from ...families.family import Family
from ..component import EagerComponent
from ..runtime import Runtime
from ..seam import own_method

# librosa.effects.trim's defaults, in samples.
_TRIM_FRAME = 2048
_TRIM_HOP = 512
_AMIN = 1e-5  # librosa.amplitude_to_db's

Floats = npt.NDArray[np.float32]


class VoiceEncoderComponent(EagerComponent):
    """A component that replaces ``tts.ve.embeds_from_wavs``: no librosa for trimming and spectrogram."""

    def __init__(self, encoder: Any, family: Family, runtime: Runtime) -> None:
        super().__init__("voice_encoder", runtime, "nn.LSTM breaks torch.compile's graphs")
        self._encoder = encoder
        self._replace(encoder, "embeds_from_wavs", self._embeds_from_wavs, family.package)

    def _load(self) -> None:
        """Encodes a second of a tone."""
        rate = self._encoder.hp.sample_rate
        if plain(self._encoder.hp):
            self._embed([tone(rate)], 20, {"rate": 1.3})

    def _notes(self) -> list[str]:
        return ["eager by design: its LSTM would break a compiled graph", *super()._notes()]

    def _embeds_from_wavs(
        self,
        wavs: Iterable[npt.NDArray[Any]],
        sample_rate: float,
        as_spk: bool = False,
        batch_size: int = 32,
        trim_top_db: float | None = 20,
        **kwargs: Any,
    ) -> Floats:
        hp = self._encoder.hp
        waves = list(wavs)  # stock reads them once: they may come from a generator
        stock: Callable[..., Floats] = own_method(self._encoder, "embeds_from_wavs")
        given = (waves, sample_rate, as_spk, batch_size, trim_top_db)
        if not (plain(hp) and sample_rate == hp.sample_rate and all(map(_is_plain_wave, waves))):
            return self._leave(stock, *given, **kwargs)
        for wave in waves:
            if not (wave.size and np.isfinite(wave).all()):
                raise InputError("the voice encoder was given a wave that is empty or not finite")
        settings = {"rate": 1.3, "as_spk": as_spk, "batch_size": batch_size, **kwargs}  # stock's rate
        return self._run(lambda *_, **__: self._embed(waves, trim_top_db, settings), stock, *given, **kwargs)

    def _embed(self, wavs: list[npt.NDArray[Any]], trim_top_db: float | None, settings: dict[str, Any]) -> Floats:
        if trim_top_db:
            wavs = [trim(wave, trim_top_db) for wave in wavs]
        mels = [mel_spectrogram(wave, self._encoder.hp).T for wave in wavs]
        embeds: Floats = self._encoder.embeds_from_mels(mels, **settings)
        return embeds


def tone(rate: int, seconds: float = 1.0) -> Floats:
    """Returns a quiet tone of 220 Hz, (samples,), for a warm-up."""
    times = np.arange(int(rate * seconds)) / rate
    wave: Floats = (0.1 * np.sin(2 * np.pi * 220 * times)).astype(np.float32)
    return wave


def _is_plain_wave(wave: object) -> bool:
    return isinstance(wave, np.ndarray) and wave.ndim == 1 and wave.dtype == np.float32


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
