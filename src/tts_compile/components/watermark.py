"""The watermark: always applied, by perth's own network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..audio.reading import Samples, resample
from ..errors import InputError, UnsupportedModelError
from .component import EagerComponent
from .runtime import Runtime
from .seam import own_method


class WatermarkComponent(EagerComponent):
    """A component that replaces ``tts.watermarker.apply_watermark`` and resamples around it.

    perth resamples to its own rate and back through librosa, whose imports the first utterance would wait for.

    Raises:
        UnsupportedModelError: for a watermarker that is not perth's network.
    """

    def __init__(self, watermarker: Any, runtime: Runtime) -> None:
        reason = "it takes a hundredth of an utterance's time: there is nothing to gain from compiling it"
        super().__init__("watermark", runtime, reason)
        self._watermarker = watermarker
        if not hasattr(watermarker, "perth_net"):
            raise UnsupportedModelError(f"a {type(watermarker).__name__} has no network to prepare a wave for")
        self._stock: Callable[..., Samples] = own_method(watermarker, "apply_watermark")
        self._replace(watermarker, "apply_watermark", self._apply_watermark, package="perth")

    def _load(self) -> None:
        """Marks a second of silence at another rate than perth's."""
        if self.seams:
            self._mark(np.zeros(24_000, dtype=np.float32), 24_000)

    def _apply_watermark(self, signal: Any, sample_rate: float, **others: Any) -> Samples:
        if not (isinstance(signal, np.ndarray) and signal.ndim == 1 and np.issubdtype(signal.dtype, np.floating)):
            return self._leave(self._stock, signal, sample_rate, **others)
        if not np.isfinite(signal).all():
            raise InputError("the wave to be watermarked holds samples that are not finite")
        hp = self._watermarker.perth_net.hp
        # perth's transform mirrors half a window at each end.
        if math.ceil(signal.size * hp.sample_rate / sample_rate) <= hp.n_fft // 2:
            seconds, needed = signal.size / sample_rate, (hp.n_fft // 2 + 1) / hp.sample_rate
            raise InputError(f"the wave to be watermarked is {seconds:.4f} s long, a watermark needs {needed:.4f} s")
        return self._run(self._mark, self._stock, signal, sample_rate, **others)

    def _mark(self, signal: Samples, sample_rate: float, **_others: Any) -> Samples:
        own = self._watermarker.perth_net.hp.sample_rate
        marked = self._stock(resample(signal, sample_rate, own), own)
        return resample(marked, own, sample_rate)
