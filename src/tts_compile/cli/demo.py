"""The same sentence from stock and compiled, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..api import compile_model
from ..audio.wav import write_wav
from ..bench.models import describe, load
from ..bench.result import SIDES, Result, Row, Section, decibels, ran
from ..bench.stages import Made, watched
from ..measuring.interleaved import timed_call
from ..measuring.progress import Progress
from ..measuring.stats import yes
from ..parity.metrics import signal_to_error_db

TEXT = "Hello there. This sentence is spoken twice, first by the stock model and then by the compiled one."


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

    tokens_identical: bool
    signal_to_error_db: float | None
    warmup_seconds: float
    files: tuple[str, str]

    @property
    def kept(self) -> bool:
        """Returns whether both sides spoke the same tokens."""
        return self.tokens_identical

    def follows(self) -> dict[str, Any]:
        """Returns what each component ran as."""
        return {"ran": {name: row["ran"] for name, row in self.report["components"].items()}}

    def sections(self) -> list[Section]:
        """Returns one table."""
        sides = self.sides.values()
        tokens = " of ".join(str(side["tokens"]) for side in reversed(sides))
        rows: list[Row] = [
            ("", *self.sides),
            ("T3, tokens/s", *(f"{side['tokens_per_second']:.1f}" for side in sides)),
            ("real-time factor", *(f"{side['real_time_factor']:.2f}" for side in sides)),
            ("seconds", *(f"{side['seconds']:.2f}" for side in sides)),
            ("speech tokens identical", "", f"{yes(self.tokens_identical)} ({tokens})"),
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
        stock = _speak(tts, tts, text, seed)
        with compile_model(tts) as fast:
            progress("compiling")
            warmup = fast.warmup()
            progress("speaking, compiled")
            compiled = _speak(fast, tts, text, seed)
            report = fast.report()
    waves = [made.audio[0] for made, _ in (stock, compiled)]
    files = [str(write_wav(out / f"{side}.wav", wave[0].numpy(), tts.sr)) for side, wave in zip(SIDES, waves)]
    return DemoResult(
        settings=settings,
        model=describe(tts),
        config=fast.config.to_dict(),
        sides={side: _figures(*spoken, tts.sr) for side, spoken in zip(SIDES, (stock, compiled))},
        tokens_identical=stock[0].tokens == compiled[0].tokens,
        signal_to_error_db=signal_to_error_db(*waves),
        warmup_seconds=warmup.total,
        report=report.to_dict(),
        files=(files[0], files[1]),
    )


def _speak(model: Any, tts: Any, text: str, seed: int) -> tuple[Made, float]:
    torch.manual_seed(seed)
    with watched(tts) as made:
        wave, seconds = timed_call(model.device, lambda: model.generate(text))
    made.audio.append(wave)
    return made, seconds


def _figures(made: Made, seconds: float, rate: int) -> dict[str, float]:
    """Returns the figures of one utterance: tokens and seconds, tokens a second of T3, seconds of work a second."""
    tokens, t3_seconds, audio_seconds = len(made.tokens[0]), made.seconds["T3"], made.audio[0].shape[1] / rate
    return {
        "tokens": tokens,
        "t3_seconds": t3_seconds,
        "seconds": seconds,
        "audio_seconds": audio_seconds,
        "tokens_per_second": tokens / t3_seconds,
        "real_time_factor": seconds / audio_seconds,
    }
