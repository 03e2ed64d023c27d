"""The limits of a comparison with stock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from typing_extensions import Self


@dataclass(frozen=True)
class Thresholds:
    """The limits for a component and for whole utterances.

    Attributes:
        signal_to_error_db: at least, for every tensor that a component returns for stock's inputs, and for T3's guided
            logits. Whole numbers must be equal.
        tokens: share of T3's tokens that equal stock's, at least.
        generators: whether the random generators must be left as stock leaves them.
        wave_db: signal to error of whole utterances, at least; None where their tokens may differ.
        length: share by which whole utterances may be longer or shorter.
        log_mel_db: log-spectral distance of whole utterances, at most; None where their tokens may differ.
        loudness_lu: difference in loudness, at most.
        speaker_similarity: cosine of the two voices in the model's own voice encoder, at least.
        words: amount by which the rate of misheard words may exceed that of stock's wave.
    """

    signal_to_error_db: float
    tokens: float
    generators: bool
    wave_db: float | None
    length: float
    log_mel_db: float | None
    loudness_lu: float
    speaker_similarity: float
    words: float

    @classmethod
    def exact(cls) -> Self:
        """Returns the limits for components in the model's own dtype: the promise of the preset ``exact``."""
        return cls(60.0, 1.0, True, 60.0, 0.0, 0.5, 0.1, 0.999, 0.0)

    @classmethod
    def fast(cls) -> Self:
        """Returns the limits for lower precision: the same voice and the same words, perhaps with other tokens."""
        return cls(25.0, 0.0, False, None, 0.25, None, 1.0, 0.95, 0.02)

    @classmethod
    def of(cls, dtype: str) -> Self:
        """Returns the limits for a component with the model's weights (``"model"``) or others of lower precision."""
        return cls.exact() if dtype == "model" else cls.fast()

    @staticmethod
    def loosest(of: Iterable[Thresholds]) -> Thresholds:
        """Returns the limits of the least exact component; those of :meth:`exact` where there are none."""
        return min(of, key=lambda limits: limits.signal_to_error_db, default=Thresholds.exact())
