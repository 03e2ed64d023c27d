"""The voice encoder as a component: waves to speaker embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ...families.family import Family
from ..component import EagerComponent
from ..runtime import Runtime
from ..seam import own_method
from .spectrum import mel_spectrogram, plain, trim

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
            self._embed([tone(rate)], rate)

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
        wavs = list(wavs)  # stock reads them once: they may come from a generator
        stock: Callable[..., Floats] = own_method(self._encoder, "embeds_from_wavs")
        given = (wavs, sample_rate, as_spk, batch_size, trim_top_db)
        if not (plain(hp) and sample_rate == hp.sample_rate and all(map(_is_plain_wave, wavs))):
            return self._leave(stock, *given, **kwargs)
        for wave in wavs:
            if not (wave.size and np.isfinite(wave).all()):
                raise InputError("the voice encoder was given a wave that is empty or not finite")
        return self._run(self._embed, stock, *given, **kwargs)

    def _embed(
        self,
        wavs: list[npt.NDArray[Any]],
        sample_rate: float,  # noqa: ARG002 - the encoder's own
        as_spk: bool = False,
        batch_size: int = 32,
        trim_top_db: float | None = 20,
        rate: float = 1.3,  # stock's default
        **kwargs: Any,
    ) -> Floats:
        if trim_top_db:
            wavs = [trim(wave, trim_top_db) for wave in wavs]
        mels = [mel_spectrogram(wave, self._encoder.hp).T for wave in wavs]
        embeds: Floats = self._encoder.embeds_from_mels(mels, as_spk=as_spk, batch_size=batch_size, rate=rate, **kwargs)
        return embeds


def tone(rate: int, seconds: float = 1.0) -> Floats:
    """Returns a quiet tone of 220 Hz, (samples,), for a warm-up."""
    times = np.arange(int(rate * seconds)) / rate
    wave: Floats = (0.1 * np.sin(2 * np.pi * 220 * times)).astype(np.float32)
    return wave


def _is_plain_wave(wave: object) -> bool:
    return isinstance(wave, np.ndarray) and wave.ndim == 1 and wave.dtype == np.float32
