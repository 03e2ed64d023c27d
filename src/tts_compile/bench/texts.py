"""Whole texts on both sides: work for a second of speech by the text's length, and what the time is spent on."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..api import compile_model
from ..audio.reading import digest
from ..config import CompileConfig
from ..handle import CompiledTTS
from ..measuring import interleaved as alternation
from ..measuring import machine, stats
from ..measuring.interleaved import Call
from ..measuring.stats import Ratio, median_of, ratio_of_medians, spread, yes
from ..parity.metrics import lowest_db
from ..sample_text import prose
from . import stages
from .models import Progress, describe, graphs, load
from .plots import Lines, Plot, Ratios
from .section import Cell, Result, Section, ran, where
from .stages import STAGES, by_stage, listening

SIDES = ("stock", "compiled")
_Way = tuple[list[Tensor], dict[str, float], list[list[int]]]  # waves; seconds by stage; tokens
LEAST_DB = 60.0  # of signal to error against stock


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        texts: each is spoken by itself.
        batch: have ``generate_batch`` speak all of them at once too.
        seed: of every call; in a batch, of every text.
    """

    texts: tuple[str, ...]
    device: str = "cpu"
    repeats: int = 5
    seed: int = 0
    batch: bool = False

    @property
    def steps(self) -> int:
        """Of the progress."""
        return 2 + self.repeats * (2 * len(self.texts) + self.batch)


@dataclass
class Spoken:
    """A text on one side.

    Attributes:
        seconds: of the whole call, a value per repeat.
        stages: of them, in each stage.
        audio_seconds: of the wave.
        identical: waves of later repeats that are the first one's bit for bit.
    """

    seconds: list[float]
    stages: dict[str, list[float]]
    audio_seconds: float
    identical: int

    @property
    def factors(self) -> list[float]:
        """Real-time factors: seconds of work for a second of speech."""
        return [seconds / self.audio_seconds for seconds in self.seconds]


@dataclass(frozen=True)
class TextsResult(Result):
    """Everything measured; :meth:`to_dict` is JSON-able, ``str()`` a table.

    Attributes:
        stock, compiled: what each text came to.
        batch: seconds of all texts at once, a value per repeat; empty where not measured.
        tokens_identical: texts whose speech tokens were stock's in every repeat.
        generator_identical: after every pair of calls.
        signal_to_error_db: the lowest of all pairs of waves; None where lengths differ.
        warmup_seconds: of :meth:`CompiledTTS.warmup`, before any of this.
        later_graphs: compiled or recorded after the warm-up.
        report: the execution report as plain values.
    """

    settings: Settings
    model: dict[str, Any]
    machine: dict[str, Any]
    config: dict[str, Any]
    stock: list[Spoken]
    compiled: list[Spoken]
    batch: list[float]
    tokens_identical: int
    generator_identical: bool
    signal_to_error_db: float | None
    warmup_seconds: float
    later_graphs: int
    report: dict[str, Any]

    @property
    def title(self) -> str:
        """Of the page."""
        return "The whole generate, by length of text"

    @property
    def passed(self) -> bool:
        """Whether the compiled side did what stock does, each time; speed is no part of it."""
        alike = self.signal_to_error_db is not None and self.signal_to_error_db >= LEAST_DB
        every = self.tokens_identical == len(self.settings.texts) and self.generator_identical
        repeated = all(text.identical == self.settings.repeats - 1 for text in self.compiled)
        return alike and every and repeated and self.later_graphs == 0

    def total(self, side: str) -> list[float]:
        """Seconds for all texts, a value per repeat; ``"batch"`` is a side too."""
        if side == "batch":
            return self.batch
        return [sum(together) for together in zip(*(text.seconds for text in getattr(self, side)))]

    @property
    def audio_seconds(self) -> float:
        """Of all texts together."""
        return sum(text.audio_seconds for text in self.compiled)

    def factors(self, side: str) -> list[float]:
        """Seconds of work for a second of speech over all texts, a value per repeat."""
        return [seconds / self.audio_seconds for seconds in self.total(side)]

    def stages(self, side: str) -> dict[str, list[float]]:
        """Seconds in each stage for all texts, a value per repeat."""
        texts = getattr(self, side)
        return {stage: [sum(together) for together in zip(*(text.stages[stage] for text in texts))] for stage in STAGES}

    @property
    def gains(self) -> dict[str, Ratio]:
        """How many times faster the compiled side is, by text, in all, and in each stage."""
        ratio = functools.partial(ratio_of_medians, seed=self.settings.seed)
        texts = zip(self.settings.texts, self.stock, self.compiled)
        found = {f"text {i + 1}, {len(t)} characters": ratio(a.seconds, b.seconds) for i, (t, a, b) in enumerate(texts)}
        found["all texts"] = ratio(self.total("stock"), self.total("compiled"))
        if self.batch:
            found["all texts as a batch"] = ratio(self.total("stock"), self.batch)
        return found

    @property
    def stage_gains(self) -> dict[str, Ratio]:
        """The same of each stage, over all texts."""
        return stages.gains(self.stages("stock"), self.stages("compiled"), self.settings.seed)

    def to_dict(self) -> dict[str, Any]:
        """Raw values and what follows from them; an infinite ratio is None beside ``bit_identical``."""
        plain = asdict(self)
        plain["bit_identical"] = self.signal_to_error_db == math.inf
        if plain["bit_identical"]:
            plain["signal_to_error_db"] = None
        gains = stats.plain(self.gains | self.stage_gains)
        factors = {side: asdict(median_of(self.factors(side))) for side in (*SIDES, *["batch"] * bool(self.batch))}
        return {"bench": "texts", "passed": self.passed, "gains": gains, "real_time_factors": factors, **plain}

    def sections(self) -> list[Section]:
        """Real-time factors and stages."""
        return [
            Section(self._factor_rows(), [*stats.few(self.settings.repeats)]),
            Section(self.stage_rows(), [self.proof, f"{where(self.machine, self.model)}; {ran(self.report)}"]),
        ]

    def _factor_rows(self) -> list[tuple[Cell, ...]]:
        rows: list[tuple[Cell, ...]] = [
            ("work for a second of speech, median (95% interval)", *SIDES, "gain (95% interval)")
        ]
        for (name, gain), stock, compiled in zip(self.gains.items(), self.stock, self.compiled):
            what = f"{name}, {compiled.audio_seconds:.1f} s of speech"
            rows.append((what, spread(stock.factors), spread(compiled.factors), gain))
        rows.append(("all texts", *(spread(self.factors(side)) for side in SIDES), self.gains["all texts"]))
        if self.batch:
            row = ("all texts as a batch", "", spread(self.factors("batch")), self.gains["all texts as a batch"])
            rows.append(row)
        return rows

    def stage_rows(self) -> list[tuple[Cell, ...]]:
        """A table of the stages over all texts."""
        rows: list[tuple[Cell, ...]] = [("seconds in each stage, all texts", *SIDES, "gain (95% interval)")]
        return [*rows, *stages.rows(self.stages("stock"), self.stages("compiled"), self.settings.seed)]

    @property
    def proof(self) -> str:
        """That both sides did the same, in a line."""
        ratio = self.signal_to_error_db
        return (
            f"tokens identical: {self.tokens_identical} of {len(self.settings.texts)} texts in "
            f"{self.settings.repeats} repeats; generator state identical: {yes(self.generator_identical)}; least "
            f"signal to error: {'lengths differ' if ratio is None else f'{ratio:.1f} dB'}; repeated calls bit for bit: "
            f"{yes(all(text.identical == self.settings.repeats - 1 for text in self.compiled))}; graphs after the "
            f"warm-up: {self.later_graphs}; all as stock: {yes(self.passed)}"
        )

    def plots(self) -> list[Plot]:
        """Stages, ratios and real-time factors."""
        lengths = [len(text) for text in self.settings.texts]
        lines = {
            side: [(n, median_of(text.factors)) for n, text in zip(lengths, getattr(self, side))] for side in SIDES
        }
        return [
            stages.plot("What the time is spent on, all texts", {side: self.stages(side) for side in SIDES}),
            Ratios("How many times faster than stock", self.gains | self.stage_gains),
            Lines("Work for a second of speech", "characters of the text", "real-time factor", lines),
        ]


def of_lengths(lengths: list[int]) -> tuple[str, ...]:
    """A text of so many characters for each."""
    return tuple(prose(length) for length in lengths)


def run(source: str, settings: Settings) -> TextsResult:
    """Measure; ``source`` as :func:`tts_compile.bench.models.load` takes it."""
    with (
        tempfile.TemporaryDirectory(prefix="tts-compile-cache-", ignore_cleanup_errors=True) as cache_dir,
        Progress(1 + settings.steps) as progress,
    ):
        with progress.step("loading"):
            tts = load(source, settings.device)
        with compile_model(tts, CompileConfig.from_env().replace(cache_dir=cache_dir)) as fast:
            return measure(fast, settings, progress)


def measure(fast: CompiledTTS, settings: Settings, progress: Progress) -> TextsResult:
    """Measure a compiled model, which is warmed up first."""
    with progress.step("warm-up"):
        warmup = fast.warmup()
    with progress.step("first calls"):  # set up libraries, and page in what both sides read
        for way in (_stock, _compiled):
            way(fast, settings.texts[0])
        if settings.batch:
            _batch(fast, settings)
    before = graphs(fast)
    sides: dict[str, Callable[[], _Way]] = {}
    for number, text in enumerate(settings.texts, 1):
        sides[f"stock {number}"] = functools.partial(_stock, fast, text)
        sides[f"compiled {number}"] = functools.partial(_compiled, fast, text)
    if settings.batch:
        sides["batch"] = functools.partial(_batch, fast, settings)
    calls = alternation.alternate(sides, settings.repeats, progress, device=settings.device, seed=settings.seed)
    spoken = {side: [calls[f"{side} {n}"] for n in range(1, len(settings.texts) + 1)] for side in SIDES}
    waves = [
        (a.result[0][0], b.result[0][0]) for both in zip(spoken["stock"], spoken["compiled"]) for a, b in zip(*both)
    ]
    for repeat, together in enumerate(calls.get("batch", [])):
        waves += [(text[repeat].result[0][0], wave) for text, wave in zip(spoken["stock"], together.result[0])]
    heard = [[call.result[2] for call in stock + compiled] for stock, compiled in zip(*spoken.values())]
    return TextsResult(
        settings=settings,
        model=describe(fast.wrapped),
        machine=machine.describe(),
        config=fast.config.replace(cache_dir=None).to_dict(),  # it was a temporary one
        **{side: [_spoken(text, fast.sr) for text in texts] for side, texts in spoken.items()},
        batch=alternation.seconds(calls.get("batch", [])),
        tokens_identical=sum(all(tokens == text[0] for tokens in text) for text in heard),
        generator_identical=all(alternation.same_states(*both) for both in zip(*spoken.values())),
        signal_to_error_db=lowest_db(waves),
        warmup_seconds=warmup.total,
        later_graphs=graphs(fast) - before,
        report=fast.report().to_dict(),
    )


def _spoken(calls: list[Call[_Way]], rate: int) -> Spoken:
    waves = [call.result[0][0] for call in calls]
    digests = [digest(wave.numpy()) for wave in waves]
    return Spoken(
        seconds=alternation.seconds(calls),
        stages=by_stage((call.result[1] for call in calls), alternation.seconds(calls)),
        audio_seconds=waves[0].shape[1] / rate,
        identical=sum(later == digests[0] for later in digests[1:]),
    )


def _stock(fast: CompiledTTS, text: str) -> _Way:
    with fast.stock() as tts, listening(tts) as heard:
        return [tts.generate(text)], heard.seconds, heard.tokens


def _compiled(fast: CompiledTTS, text: str) -> _Way:
    with listening(fast.wrapped) as heard:
        return [fast.generate(text)], heard.seconds, heard.tokens


def _batch(fast: CompiledTTS, settings: Settings) -> _Way:
    waves = fast.generate_batch(settings.texts, [settings.seed] * len(settings.texts))
    return [wave for wave in waves if wave is not None], {}, []
