"""The voice encoder as a component: waves to speaker embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ...families.family import Family
from ..component import EagerComponent
from ..runtime import Runtime
from ..seam import own_method
from .spectrum import mel_spectrogram, plain, trim


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
            self._embed([tone(rate)], trim_top_db=20, rate=1.3)

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
    ) -> npt.NDArray[np.float32]:
        encoder = self._encoder
        wavs = list(wavs)  # stock reads them once: they may come from a generator

        def stock() -> npt.NDArray[np.float32]:
            embeds: npt.NDArray[np.float32] = own_method(encoder, "embeds_from_wavs")(
                wavs, sample_rate, as_spk, batch_size, trim_top_db, **kwargs
            )
            return embeds

        ours = plain(encoder.hp) and sample_rate == encoder.hp.sample_rate and all(map(_is_plain_wave, wavs))
        if not ours:
            self.left_to_stock += 1
            return stock()
        for wave in wavs:
            if not (wave.size and np.isfinite(wave).all()):
                raise InputError("the voice encoder was given a wave that is empty or not finite")

        def embed() -> npt.NDArray[np.float32]:
            settings = {"rate": 1.3, **kwargs}  # stock's default
            embeds = self._embed(wavs, trim_top_db, as_spk=as_spk, batch_size=batch_size, **settings)
            self.calls += 1
            return embeds

        return self._run(embed, stock)

    def _embed(self, wavs: list[npt.NDArray[Any]], trim_top_db: float | None, **kwargs: Any) -> npt.NDArray[np.float32]:
        if trim_top_db:
            wavs = [trim(wave, trim_top_db) for wave in wavs]
        mels = [mel_spectrogram(wave, self._encoder.hp).T for wave in wavs]
        embeds: npt.NDArray[np.float32] = self._encoder.embeds_from_mels(mels, **kwargs)
        return embeds


def tone(rate: int, seconds: float = 1.0) -> npt.NDArray[np.float32]:
    """Returns a quiet tone of 220 Hz, (samples,), for a warm-up."""
    times = np.arange(int(rate * seconds)) / rate
    wave: npt.NDArray[np.float32] = (0.1 * np.sin(2 * np.pi * 220 * times)).astype(np.float32)
    return wave


def _is_plain_wave(wave: object) -> bool:
    return isinstance(wave, np.ndarray) and wave.ndim == 1 and wave.dtype == np.float32
