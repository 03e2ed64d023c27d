"""How close to stock is close enough."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import Self


@dataclass(frozen=True)
class Thresholds:
    """What a component and a wave are held to, against stock.

    Attributes:
        signal_to_error_db: of every tensor that a component gives for stock's own inputs, T3's guided logits among
            them, at least. Whole numbers must be equal.
        tokens: share of T3's tokens that are stock's, at least.
        generators: whether the random generators must be left as stock leaves them.
        wave_db: signal to error of whole utterances, at least; None where their tokens may differ.
        length: by what share whole utterances may be longer or shorter.
        log_mel_db: log-spectral distance of whole utterances, at most; None where their tokens may differ.
        loudness_lu: difference in loudness, at most.
        speaker_similarity: cosine of the two voices in the model's own voice encoder, at least.
        words: by how much the rate of misheard words may be above that of stock's wave.
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
        """Of components in the model's own dtype: the promise of the preset ``exact``."""
        return cls(60.0, 1.0, True, 60.0, 0.0, 0.5, 0.1, 0.999, 0.0)

    @classmethod
    def fast(cls) -> Self:
        """Of components in lower precision: the same voice saying the same words, with other tokens perhaps."""
        return cls(25.0, 0.0, False, None, 0.25, None, 1.0, 0.95, 0.02)

    @classmethod
    def of(cls, dtype: str) -> Self:
        """Of a component that reads weights as they are (``"model"``) or in lower precision."""
        return cls.exact() if dtype == "model" else cls.fast()
