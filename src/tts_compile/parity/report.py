"""The result of a comparison with stock."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from ..utils.tables import format_table
from .thresholds import Thresholds

_SHOWN = 32  # characters of a text


@dataclass(frozen=True)
class TensorParity:
    """One tensor of one call.

    Attributes:
        name: the method and the tensor's position in its result.
        signal_to_error_db: infinite for equal tensors; None for tensors that cannot be compared.
        whole: whether the tensor holds whole numbers.
        unlike: the reason why it cannot be compared: missing, or another shape, dtype or device.
    """

    name: str
    signal_to_error_db: float | None
    whole: bool
    unlike: str = ""


@dataclass(frozen=True)
class TokenParity:
    """The speech tokens of one call.

    Attributes:
        count, stock_count: their numbers.
        same: share of positions with equal tokens.
        first_difference: the first position with different tokens; None where all are equal.
        logit_gap: at this position, stock's guided logit of its own token minus that of the other token; None where
            it is not known.
    """

    count: int
    stock_count: int
    same: float
    first_difference: int | None
    logit_gap: float | None


@dataclass(frozen=True)
class ComponentParity:
    """One component on the recorded inputs of stock.

    Attributes:
        ran: see :attr:`tts_compile.ComponentReport.ran`.
        calls: the number of recorded calls.
        stock_calls: calls that stock answered in its place, so that nothing was compared.
        failures: a sentence for everything outside the thresholds.
        notes: a sentence for everything that was not compared.
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
        """Returns whether everything is within the thresholds."""
        return not self.failures

    @property
    def signal_to_error_db(self) -> float | None:
        """Returns the lowest ratio, nan before all others; None without a ratio."""
        ratios = [t.signal_to_error_db for t in self.tensors if t.signal_to_error_db is not None]
        return min(ratios, key=lambda ratio: -math.inf if math.isnan(ratio) else ratio, default=None)


@dataclass(frozen=True)
class WaveParity:
    """One whole utterance.

    Attributes:
        text: the text, or the recording that was converted.
        signal_to_error_db: None where lengths differ.
        log_mel_db, loudness_lu: see :mod:`tts_compile.parity.metrics`; None for waves that are too short.
        speaker_similarity: cosine; None without a voice encoder.
        words: rates of misheard words in stock's wave and in the other one; None where words were not compared.
        failures: a sentence for everything outside the thresholds.
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
        """Returns whether everything is within the thresholds."""
        return not self.failures


@dataclass(frozen=True)
class ParityReport:
    """A comparison with stock; ``str()`` is a table, :meth:`to_dict` is JSON-able.

    Attributes:
        components: the components that have replaced a method, by name.
        waves: one for each text.
        thresholds: the limits, by component, and by ``"wave"`` for the waves.
        notes: a sentence for everything that was not measured.
        left_to_stock: names of components that were asked for and have replaced nothing.
        given_up: the failures of those among them that stay stock because something failed, by name.
    """

    components: dict[str, ComponentParity]
    waves: tuple[WaveParity, ...]
    thresholds: dict[str, Thresholds]
    notes: tuple[str, ...] = ()
    left_to_stock: tuple[str, ...] = ()
    given_up: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Returns whether everything asked for was compared and is within the thresholds.

        A component that the model does not have may be missing from the comparison, unless nothing is left to compare.
        """
        compared = bool(self.components or not self.left_to_stock)
        return compared and not self.failures and not self.given_up

    @property
    def failures(self) -> list[str]:
        """Returns a sentence for everything outside the thresholds, with its component or text."""
        failures = [f"{name}: {failure}" for name, part in self.components.items() for failure in part.failures]
        return failures + [f"{_short(wave.text)}: {failure}" for wave in self.waves for failure in wave.failures]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values; the infinite ratio of equal tensors is the text ``"inf"``, nan is ``"nan"``."""
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
            generators = "as stock's" if part.generators else "differ"
            ratio = _db(part.signal_to_error_db)
            rows.append((name, part.ran, str(part.calls), ratio, tokens, generators, _verdict(part.passed)))
        spoken: list[tuple[str, ...]] = [
            ("text", "signal to error", "log-mel, dB", "loudness, LU", "speaker", "words, stock and ours", "verdict")
        ]
        for wave in self.waves:
            words = "" if wave.words is None else f"{wave.words[0]:.1%}, {wave.words[1]:.1%}"
            numbers = [_number(n) for n in (wave.log_mel_db, wave.loudness_lu, wave.speaker_similarity)]
            spoken.append((_short(wave.text), _db(wave.signal_to_error_db), *numbers, words, _verdict(wave.passed)))
        parts = [format_table(rows)]
        if self.waves:
            parts.append("\n" + format_table(spoken))
        notes = [f"{name}: {note}" for name, part in self.components.items() for note in part.notes]
        given_up = [f"{name}: left to stock for good: {why}" for name, why in self.given_up.items()]
        return "\n".join([*parts, *self.failures, *given_up, *notes, *self.notes])


def _plain(value: Any) -> Any:
    """Returns the value with numbers that JSON cannot hold as text."""
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
