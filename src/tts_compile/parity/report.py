"""What a comparison with stock has found."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..utils.tables import format_table
from .thresholds import Thresholds

_SHOWN = 32  # characters of a text


@dataclass(frozen=True)
class TensorParity:
    """One tensor of one call.

    Attributes:
        name: method, and where in its result the tensor stood.
        signal_to_error_db: infinite where all is equal; None where that cannot be told.
        whole: whether it holds whole numbers.
        unlike: why it cannot: missing, or of another shape, dtype or device.
    """

    name: str
    signal_to_error_db: float | None
    whole: bool
    unlike: str = ""


@dataclass(frozen=True)
class TokenParity:
    """The speech tokens of one call.

    Attributes:
        count, stock_count: how many there are.
        same: share of positions with the same token.
        first_difference: the first position without.
        logit_gap: there, by how much stock's guided logit of its token is above that of the other one; None where it
            is not known.
    """

    count: int
    stock_count: int
    same: float
    first_difference: int | None
    logit_gap: float | None


@dataclass(frozen=True)
class ComponentParity:
    """One component on the inputs that stock's gave it.

    Attributes:
        ran: as in the execution report.
        calls: that it was given.
        stock_calls: of them, those that stock answered in its place, so that nothing was compared.
        failures: what is not within the thresholds, in words.
        notes: what was not compared, and why.
    """

    ran: str
    calls: int
    stock_calls: int
    tensors: tuple[TensorParity, ...]
    tokens: tuple[TokenParity, ...]
    generators: bool
    failures: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all is within the thresholds."""
        return not self.failures

    @property
    def signal_to_error_db(self) -> float | None:
        """The lowest, nan before all; None where there is none."""
        ratios = [t.signal_to_error_db for t in self.tensors if t.signal_to_error_db is not None]
        return min(ratios, key=lambda ratio: -math.inf if math.isnan(ratio) else ratio, default=None)


@dataclass(frozen=True)
class WaveParity:
    """One whole utterance.

    Attributes:
        text: what was spoken.
        signal_to_error_db: None where lengths differ.
        log_mel_db, loudness_lu: see :mod:`tts_compile.parity.metrics`; None for waves too short.
        speaker_similarity: cosine; None without a voice encoder.
        words: rate of misheard words in stock's wave and in the other one; None where nobody listened.
        failures: what is not within the thresholds, in words.
    """

    text: str
    signal_to_error_db: float | None
    log_mel_db: float | None
    loudness_lu: float | None
    speaker_similarity: float | None
    words: tuple[float, float] | None
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether all is within the thresholds."""
        return not self.failures


@dataclass(frozen=True)
class ParityReport:
    """What was found; ``str()`` is a table, :meth:`to_dict` is JSON-able.

    Attributes:
        components: by name; those that have replaced nothing are not in it.
        waves: for each text.
        thresholds: that components and waves were held to, by component, and by ``"wave"``.
        notes: what was not measured, and why.
    """

    components: dict[str, ComponentParity]
    waves: tuple[WaveParity, ...]
    thresholds: dict[str, Thresholds]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all components and waves are within the thresholds."""
        return all(part.passed for part in self.components.values()) and all(wave.passed for wave in self.waves)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; an infinite ratio, of what is identical, is the text ``"inf"``, nan is ``"nan"``."""
        plain: dict[str, Any] = _plain(asdict(self))
        for name, component in self.components.items():
            plain["components"][name]["passed"] = component.passed
        return {"passed": self.passed, **plain}

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("component", "ran", "calls", "signal to error", "tokens as stock's", "generators", "verdict")
        ]
        for name, part in self.components.items():
            tokens = f"{min(t.same for t in part.tokens):.0%}" if part.tokens else ""
            left = "as stock's" if part.generators else "differ"
            ratio = _db(part.signal_to_error_db)
            rows.append((name, part.ran, str(part.calls), ratio, tokens, left, _verdict(part.passed)))
        spoken: list[tuple[str, ...]] = [
            ("text", "signal to error", "log-mel, dB", "loudness, LU", "speaker", "words, stock and ours", "verdict")
        ]
        for wave in self.waves:
            words = "" if wave.words is None else f"{wave.words[0]:.1%}, {wave.words[1]:.1%}"
            numbers = [_number(n) for n in (wave.log_mel_db, wave.loudness_lu, wave.speaker_similarity)]
            spoken.append((_short(wave.text), _db(wave.signal_to_error_db), *numbers, words, _verdict(wave.passed)))
        failures = [f"{name}: {failure}" for name, part in self.components.items() for failure in part.failures]
        failures += [f"{_short(wave.text)}: {failure}" for wave in self.waves for failure in wave.failures]
        parts = [format_table(rows)]
        if self.waves:
            parts.append("\n" + format_table(spoken))
        notes = [f"{name}: {note}" for name, part in self.components.items() for note in part.notes]
        return "\n".join([*parts, *failures, *notes, *self.notes])


def _plain(value: Any) -> Any:
    """The same with numbers that JSON does not know as text."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _db(ratio: float | None) -> str:
    if ratio is None:
        return "none"
    return "identical" if ratio == math.inf else f"{ratio:.1f} dB"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _verdict(passed: bool) -> str:
    return "passed" if passed else "FAILED"
