"""Recordings to voices in one process, stock and compiled alternating: new ones, and one that comes again."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..handle import CompiledTTS
from ..measuring import interleaved as alternation
from ..measuring.stats import Ratio, ratio_of_medians
from ..testing import make_reference_wav
from .models import Progress
from .voice import digests

KINDS = {"new": "a new recording each time", "again": "the same recording again"}


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        runs: of each side, with new recordings and with the same one.
        seconds: of the recordings, more or less.
    """

    device: str = "cpu"
    runs: int = 10
    seconds: float = 10.0

    @property
    def steps(self) -> int:
        """Of the progress."""
        return 1 + 4 * self.runs


@dataclass(frozen=True)
class EncodingResult:
    """Seconds by kind, a value per run; :meth:`to_dict` is JSON-able.

    Attributes:
        identical: every tensor of the voice, after every pair of calls.
    """

    settings: Settings
    stock: dict[str, list[float]]
    compiled: dict[str, list[float]]
    identical: bool

    def gain(self, kind: str) -> Ratio:
        """How many times faster the compiled side is."""
        return ratio_of_medians(self.stock[kind], self.compiled[kind])

    def to_dict(self) -> dict[str, Any]:
        """Raw values and what follows from them."""
        found: dict[str, Any] = asdict(self)
        for side in ("stock", "compiled"):
            found[f"{side}_average"] = {kind: statistics.mean(values) for kind, values in found[side].items()}
        return {**found, "gains": {kind: self.gain(kind).to_dict() for kind in KINDS}}


def measure(fast: CompiledTTS, settings: Settings, folder: Path, progress: Progress) -> EncodingResult:
    """Measure a compiled model, whose voice is put back; recordings go to ``folder``."""
    voice = fast.conds
    files = [
        make_reference_wav(folder / f"encoding-{i}.wav", seconds=settings.seconds - 0.04 * i)  # whole speech tokens
        for i in range(settings.runs + 2)
    ]
    spare, again, *new = files

    def files_of(kind: str) -> Iterator[Path]:
        return iter(new if kind == "new" else [again] * settings.runs)

    with progress.step("first voices"):  # of either side: sets up libraries, and makes one recording known
        for file in (spare, again):
            _stock(fast, iter([file]))
            _compiled(fast, iter([file]))
    ways: dict[str, Callable[[], Any]] = {
        f"{side} voice, {kind}": functools.partial(way, fast, files_of(kind))
        for kind in KINDS
        for side, way in (("stock", _stock), ("compiled", _compiled))
    }
    try:
        calls = alternation.alternate(ways, settings.runs, progress, device=settings.device)
    finally:
        fast.conds = voice
    seconds = {name: alternation.seconds(done) for name, done in calls.items()}
    return EncodingResult(
        settings,
        stock={kind: seconds[f"stock voice, {kind}"] for kind in KINDS},
        compiled={kind: seconds[f"compiled voice, {kind}"] for kind in KINDS},
        identical=all(
            digests(a.result) == digests(b.result)
            for kind in KINDS
            for a, b in zip(calls[f"stock voice, {kind}"], calls[f"compiled voice, {kind}"])
        ),
    )


def _stock(fast: CompiledTTS, files: Iterator[Path]) -> Any:
    with fast.stock() as tts:
        tts.prepare_conditionals(str(next(files)))
    return fast.conds


def _compiled(fast: CompiledTTS, files: Iterator[Path]) -> Any:
    fast.wrapped.prepare_conditionals(str(next(files)))
    return fast.conds
