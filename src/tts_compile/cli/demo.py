"""The same sentence from stock and compiled, side by side."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..api import compile_model
from ..audio.wav import write_wav
from ..bench.models import Progress, describe, load, timed_call
from ..bench.stages import listening
from ..parity.metrics import signal_to_error_db
from ..utils.tables import format_table

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
        """Speech tokens per second of T3, its prompt included."""
        return self.tokens / self.t3_seconds

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of audio: below 1 is faster than speech."""
        return self.seconds / self.audio_seconds

    def to_dict(self) -> dict[str, float]:
        """Plain values."""
        rates = {"tokens_per_second": self.tokens_per_second, "real_time_factor": self.real_time_factor}
        return {**asdict(self), **rates}


@dataclass(frozen=True)
class DemoResult:
    """What the demo found; :meth:`to_dict` is JSON-able, ``str()`` is the table.

    Attributes:
        signal_to_error_db: of the compiled wave against stock's; infinite for equal bits, None for other lengths.
        warmup_seconds: what the first call pays for compiling, less where the compile cache holds the code.
        ran: what each component ran as, by the report's counts.
    """

    text: str
    seed: int
    model: dict[str, Any]
    stock: Spoken
    compiled: Spoken
    tokens_identical: bool
    signal_to_error_db: float | None
    warmup_seconds: float
    ran: dict[str, str]
    report: dict[str, Any]
    files: tuple[str, str]

    @property
    def passed(self) -> bool:
        """Whether both spoke the same tokens."""
        return self.tokens_identical

    def to_dict(self) -> dict[str, Any]:
        """Plain values; ``signal_to_error_db`` is None beside ``bit_identical``, as JSON has no infinity."""
        plain = {**asdict(self), "stock": self.stock.to_dict(), "compiled": self.compiled.to_dict()}
        bit_identical = self.signal_to_error_db == math.inf
        if bit_identical:
            plain["signal_to_error_db"] = None
        return {"passed": self.passed, "bit_identical": bit_identical, **plain}

    def __str__(self) -> str:
        stock, compiled = self.stock, self.compiled
        ratio = self.signal_to_error_db
        identical = f"{'yes' if self.tokens_identical else 'NO'} ({compiled.tokens} of {stock.tokens})"
        fast = ", ".join(f"{name}: {how}" for name, how in self.ran.items() if how != "stock") or "nothing"
        rows: list[tuple[str, ...]] = [
            ("", "stock", "compiled"),
            ("T3, tokens/s", f"{stock.tokens_per_second:.1f}", f"{compiled.tokens_per_second:.1f}"),
            ("real-time factor", f"{stock.real_time_factor:.2f}", f"{compiled.real_time_factor:.2f}"),
            ("seconds", f"{stock.seconds:.2f}", f"{compiled.seconds:.2f}"),
            ("speech tokens identical", "", identical),
            ("signal-to-error ratio", "", "lengths differ" if ratio is None else f"{ratio:.1f} dB"),
            ("first-call cost, seconds", "", f"{self.warmup_seconds:.1f}"),
            ("ran compiled", "", fast),
            ("wave file", *self.files),
        ]
        return format_table(rows)


def run(source: str, device: str, text: str, seed: int, out: Path) -> DemoResult:
    """Speak ``text`` both ways and write ``stock.wav`` and ``compiled.wav`` to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    with Progress(4) as progress:
        with progress.step("loading"):
            tts = load(source, device)
            # Un-timed: the first call pages in the weights and sets up libraries, whoever makes it.
            tts.generate("Hello.")
        with progress.step("speaking, stock"):
            stock, stock_tokens, stock_wave = _speak(tts, tts, text, seed)
        with compile_model(tts) as fast:
            with progress.step("compiling"):
                warmup = fast.warmup()
            with progress.step("speaking, compiled"):
                compiled, tokens, wave = _speak(fast, tts, text, seed)
            report = fast.report()
    files = [
        str(write_wav(out / f"{name}.wav", samples[0].numpy(), tts.sr))
        for name, samples in (("stock", stock_wave), ("compiled", wave))
    ]
    return DemoResult(
        text=text,
        seed=seed,
        model=describe(tts),
        stock=stock,
        compiled=compiled,
        tokens_identical=stock_tokens == tokens,
        signal_to_error_db=signal_to_error_db(stock_wave, wave),
        warmup_seconds=warmup.total,
        ran={name: row.ran for name, row in report.components.items()},
        report=report.to_dict(),
        files=(files[0], files[1]),
    )


def _speak(model: Any, tts: Any, text: str, seed: int) -> tuple[Spoken, list[int], Tensor]:
    torch.manual_seed(seed)
    with listening(tts) as heard:
        wave, seconds = timed_call(model.device, lambda: model.generate(text))
    (tokens,) = heard.tokens
    return Spoken(len(tokens), heard.seconds["T3"], seconds, wave.shape[1] / model.sr), tokens, wave
