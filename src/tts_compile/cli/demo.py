"""The same sentence from stock and compiled, side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..api import compile_model
from ..audio.wav import write_wav
from ..bench.models import describe, load
from ..bench.result import Result, Row, Section, decibels, ran
from ..bench.stages import watched
from ..measuring.interleaved import timed_call
from ..measuring.progress import Progress
from ..measuring.stats import yes
from ..parity.metrics import signal_to_error_db

TEXT = "Hello there. This sentence is spoken twice, first by the stock model and then by the compiled one."


@dataclass(frozen=True)
class Spoken:
    """One utterance: speech tokens, T3's seconds, the whole call's seconds, seconds of audio."""

    tokens: int
    t3_seconds: float
    seconds: float
    audio_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Returns the speech tokens per second of T3, its prompt included."""
        return self.tokens / self.t3_seconds

    @property
    def real_time_factor(self) -> float:
        """Returns seconds of work per second of audio: below 1 is faster than speech."""
        return self.seconds / self.audio_seconds

    def to_dict(self) -> dict[str, float]:
        """Returns plain values."""
        rates = {"tokens_per_second": self.tokens_per_second, "real_time_factor": self.real_time_factor}
        return {**asdict(self), **rates}


@dataclass(frozen=True)
class Settings:
    """Settings of the demo."""

    device: str = "cpu"
    text: str = TEXT
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class DemoResult(Result):
    """The figures of the demo.

    Attributes:
        signal_to_error_db: of the compiled wave against stock's; infinite for equal bits, None for other lengths.
        warmup_seconds: the cost of compiling, lower where the compile cache holds the code.
        files: the two waves.
    """

    subject = "demo"
    title = "Stock and compiled"

    stock: Spoken
    compiled: Spoken
    tokens_identical: bool
    signal_to_error_db: float | None
    warmup_seconds: float
    files: tuple[str, str]

    @property
    def kept(self) -> bool:
        """Returns whether both sides spoke the same tokens."""
        return self.tokens_identical

    def follows(self) -> dict[str, Any]:
        """Returns rates of both sides, and what each component ran as."""
        ran = {name: row["ran"] for name, row in self.report["components"].items()}
        return {"stock": self.stock.to_dict(), "compiled": self.compiled.to_dict(), "ran": ran}

    def sections(self) -> list[Section]:
        """Returns one table."""
        stock, compiled = self.stock, self.compiled
        identical = f"{yes(self.tokens_identical)} ({compiled.tokens} of {stock.tokens})"
        rows: list[Row] = [
            ("", "stock", "compiled"),
            ("T3, tokens/s", f"{stock.tokens_per_second:.1f}", f"{compiled.tokens_per_second:.1f}"),
            ("real-time factor", f"{stock.real_time_factor:.2f}", f"{compiled.real_time_factor:.2f}"),
            ("seconds", f"{stock.seconds:.2f}", f"{compiled.seconds:.2f}"),
            ("speech tokens identical", "", identical),
            ("signal-to-error ratio", "", decibels(self.signal_to_error_db)),
            ("first-call cost, seconds", "", f"{self.warmup_seconds:.1f}"),
            ("wave file", *self.files),
        ]
        return [Section(rows, [ran(self.report)])]


def run(source: str, settings: Settings, out: Path) -> DemoResult:
    """Speaks the text on both sides and writes ``stock.wav`` and ``compiled.wav`` to ``out``."""
    text, seed = settings.text, settings.seed
    out.mkdir(parents=True, exist_ok=True)
    with Progress(4) as progress:
        progress("loading")
        tts = load(source, settings.device)
        tts.generate("Hello.")  # not timed: reads the weights into memory and sets up libraries for both sides
        progress("speaking, stock")
        stock, stock_tokens, stock_wave = _speak(tts, tts, text, seed)
        with compile_model(tts) as fast:
            progress("compiling")
            warmup = fast.warmup()
            progress("speaking, compiled")
            compiled, tokens, wave = _speak(fast, tts, text, seed)
            report = fast.report()
    files = [
        str(write_wav(out / f"{name}.wav", samples[0].numpy(), tts.sr))
        for name, samples in (("stock", stock_wave), ("compiled", wave))
    ]
    return DemoResult(
        settings=settings,
        model=describe(tts),
        config=fast.config.to_dict(),
        stock=stock,
        compiled=compiled,
        tokens_identical=stock_tokens == tokens,
        signal_to_error_db=signal_to_error_db(stock_wave, wave),
        warmup_seconds=warmup.total,
        report=report.to_dict(),
        files=(files[0], files[1]),
    )


def _speak(model: Any, tts: Any, text: str, seed: int) -> tuple[Spoken, list[int], Tensor]:
    torch.manual_seed(seed)
    with watched(tts) as found:
        wave, seconds = timed_call(model.device, lambda: model.generate(text))
    (tokens,) = found.tokens
    return Spoken(len(tokens), found.seconds["T3"], seconds, wave.shape[1] / model.sr), tokens, wave
