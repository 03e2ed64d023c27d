"""Many chunks: stock and compiled one after the other, and ``generate_batch``, on one model, with equal seeds."""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from .. import _compat
from ..api import compile_model
from ..batch.pipeline import FLOW_GROUP
from ..components.flow.engine import TOKENS
from ..components.seam import Seam
from ..components.t3.scheduler import Scheduler as Batch
from ..config import CompileConfig
from ..handle import CompiledTTS
from ..measuring import interleaved as alternation
from ..measuring import machine, stats
from ..measuring.interleaved import Call
from ..measuring.stats import Ratio, median_of, ratio_of_medians, spread, yes
from ..parity.metrics import lowest_db
from ..sample_text import prose
from .models import Progress, describe, load, timed_call
from .plots import Lines, Plot, Ratios
from .section import Cell, Result, Section, ran, where
from .stages import listening

LEAST_DB = 60.0  # of signal to error against stock
SIDES = {"stock": "stock, in a row", "row": "compiled, in a row", "batch": "batch"}


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        device: where the model runs.
        repeats: of every side.
        chunks: how many texts.
        shortest, longest: characters of a text; the others lie evenly between.
        sizes: numbers of texts that T3 speaks at a time, each measured by itself.
        seed: of the first text; the next ones count up.
        stock: whether stock speaks them too.
    """

    device: str = "cpu"
    repeats: int = 5
    chunks: int = 8
    shortest: int = 60
    longest: int = 120
    sizes: tuple[int, ...] = (1, 2, 4, 8)
    seed: int = 0
    stock: bool = True

    @property
    def reference(self) -> str:
        """The side that the batch's tokens and waves are compared with."""
        return "stock" if self.stock else "row"

    @property
    def synthesis_by_size(self) -> bool:
        """Whether every size makes waves too; on a CPU, their time does not depend on it."""
        return self.device != "cpu"

    @property
    def texts(self) -> list[str]:
        """The texts, shortest first."""
        step = (self.longest - self.shortest) / max(self.chunks - 1, 1)
        return [prose(self.shortest + round(step * i), start=7 * i) for i in range(self.chunks)]

    @property
    def seeds(self) -> list[int]:
        """One for each."""
        return [self.seed + i for i in range(self.chunks)]


@dataclass
class Side:
    """One way to speak all texts; seconds are a value per repeat.

    Attributes:
        total: seconds of the whole job.
        t3: of them, in the token loop, prompts included.
        tokens: that each text came to.
    """

    total: list[float] = field(default_factory=list)
    t3: list[float] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Speech tokens a second in the token loop, a value per repeat."""
        return [sum(map(len, self.tokens)) / seconds for seconds in self.t3]


@dataclass(frozen=True)
class BatchResult(Result):
    """Everything measured; :meth:`to_dict` is JSON-able, with None for an infinite ratio; ``str()`` is a table.

    Attributes:
        sides: by the keys of :data:`SIDES`.
        by_size: by how many texts T3 speaks at a time; see :attr:`Settings.synthesis_by_size`.
        audio_seconds: of all texts together.
        signal_to_error_db: of the batch's waves against the reference's, the lowest of all texts and repeats;
            None where lengths differ.
        padding: share of the flow's frames that is padding, the reference included.
        later_graphs: graphs compiled after the warm-up, by any of this.
        report: the execution report as plain values.
    """

    settings: Settings
    model: dict[str, Any]
    machine: dict[str, Any]
    config: dict[str, Any]
    sides: dict[str, Side]
    by_size: dict[int, Side]
    audio_seconds: float
    reference_seconds: float
    signal_to_error_db: float | None
    padding: float
    later_graphs: int
    report: dict[str, Any]

    @property
    def title(self) -> str:
        """Of the page."""
        return "Many texts"

    @property
    def identical(self) -> dict[str, int]:
        """Texts whose tokens in the batch are those of each other side, and of T3 alone at every size."""
        found = {name: side.tokens for name, side in self.sides.items() if name != "batch"}
        found |= {f"{size} at a time": side.tokens for size, side in self.by_size.items()}
        batch = self.sides["batch"].tokens
        return {name: sum(a == b for a, b in zip(tokens, batch)) for name, tokens in found.items()}

    @property
    def passed(self) -> bool:
        """Whether the batch spoke what stock speaks; speed is no part of it."""
        alike = all(count == self.settings.chunks for count in self.identical.values())
        ratio = self.signal_to_error_db
        return alike and ratio is not None and ratio >= LEAST_DB and self.later_graphs == 0

    def gain(self, over: str, part: str = "total") -> Ratio:
        """How many times faster the batch is than another side, in all or in one part."""
        other, batch = (getattr(self.sides[name], part) for name in (over, "batch"))
        return ratio_of_medians(other, batch, seed=self.settings.seed)

    def to_dict(self) -> dict[str, Any]:
        """Raw values and what follows from them."""
        others = [name for name in self.sides if name != "batch"]
        gains = {f"{part} over {over}": self.gain(over, part).to_dict() for over in others for part in ("total", "t3")}
        plain = {"bench": "batch", "passed": self.passed, "gains": gains, "identical": self.identical, **asdict(self)}
        plain["bit_identical"] = self.signal_to_error_db == math.inf
        if plain["bit_identical"]:
            plain["signal_to_error_db"] = None
        return plain

    def sections(self) -> list[Section]:
        """All sides, and the sizes."""
        s, ratio = self.settings, self.signal_to_error_db
        same = ", ".join(f"{count} of {s.chunks} ({name})" for name, count in self.identical.items())
        proof = (
            f"tokens identical to the batch's: {same}; least signal to error "
            f"{'lengths differ' if ratio is None else f'{ratio:.1f} dB'}; {self.padding:.1%} of the flow's "
            f"frames are padding; graphs compiled after the warm-up: {self.later_graphs}; all as stock: "
            f"{yes(self.passed)}"
        )
        about = (
            f"texts of {s.shortest} to {s.longest} characters, {self.reference_seconds:.0f} s reference, "
            f"{where(self.machine, self.model)}; {ran(self.report)}"
        )
        return [Section(self._side_rows()), Section(self._size_rows(), [*stats.few(s.repeats), proof, about])]

    def _side_rows(self) -> list[tuple[Cell, ...]]:
        s, sides = self.settings, self.sides.values()
        others = [name for name in self.sides if name != "batch"]
        nothing = [""] * len(others)
        title = f"{s.chunks} texts, {self.audio_seconds:.0f} s of speech, median (95% interval)"
        rest = [[total - t3 for total, t3 in zip(side.total, side.t3)] for side in sides]
        return [
            (title, *(SIDES[name] for name in self.sides), *(f"batch over {SIDES[name]}" for name in others)),
            ("seconds", *(spread(side.total) for side in sides), *(self.gain(over) for over in others)),
            ("texts a minute", *(_per_second(60 * s.chunks, side) for side in sides), *nothing),
            ("seconds of speech a second", *(_per_second(self.audio_seconds, side) for side in sides), *nothing),
            ("T3, s", *(spread(side.t3) for side in sides), *(self.gain(over, "t3") for over in others)),
            ("T3, tokens/s", *(spread(side.rates) for side in sides), *nothing),
            ("flow, vocoder and watermark, s", *(spread(seconds) for seconds in rest), *nothing),
        ]

    def _size_rows(self) -> list[tuple[Cell, ...]]:
        if not self.settings.synthesis_by_size:
            rates = [(str(size), spread(side.rates)) for size, side in self.by_size.items()]
            return [("T3 alone, texts at a time", "tokens/s"), *rates]
        return [
            ("texts at a time", "T3, tokens/s", "seconds of speech a second"),
            *(
                (str(size), spread(side.rates), _per_second(self.audio_seconds, side))
                for size, side in self.by_size.items()
            ),
        ]

    def plots(self) -> list[Plot]:
        """Ratios, and T3's rate over the number of texts."""
        gains = {
            f"{what}, over {SIDES[over]}": self.gain(over, part)
            for over in self.sides
            if over != "batch"
            for part, what in (("total", "all"), ("t3", "T3"))
        }
        return [
            Ratios("How many times faster the batch is", gains),
            *([rates(self.sides, self.by_size)] if self.by_size else []),
        ]


def rates(sides: Mapping[str, Side], by_size: Mapping[int, Side]) -> Lines:
    """T3's speech tokens a second over the number of texts at a time."""
    points = [(size, median_of(side.rates)) for size, side in by_size.items()]
    levels = {SIDES[name]: statistics.median(side.rates) for name, side in sides.items() if name != "batch"}
    return Lines("T3", "texts at a time", "speech tokens a second", {"batch": points}, levels)


def _per_second(amount: float, side: Side) -> str:
    return spread([amount / seconds for seconds in side.total])


def run(source: str, settings: Settings) -> BatchResult:
    """Measure; ``source`` as :func:`tts_compile.bench.models.load` takes it."""
    sides = len(SIDES) - (not settings.stock) + len(settings.sizes)
    with (
        tempfile.TemporaryDirectory(prefix="tts-compile-cache-", ignore_cleanup_errors=True) as cache_dir,
        Progress(2 + sides * settings.repeats) as progress,
    ):
        with progress.step("loading"):
            tts = load(source, settings.device)
        config = CompileConfig.from_env().replace(cache_dir=cache_dir)
        with compile_model(tts, config) as fast:
            return _measure(tts, fast, settings, config, progress)


def _measure(tts: Any, fast: CompiledTTS, settings: Settings, config: CompileConfig, progress: Progress) -> BatchResult:
    texts, seeds = settings.texts, settings.seeds
    with progress.step("warm-up"):
        fast.warmup()
        # Sets up libraries, and pages in what all sides read; CUDA graphs of batches are recorded when first needed.
        if settings.synthesis_by_size:
            for size in (None, *settings.sizes):
                fast.generate_batch(texts, seeds, size)
        else:
            fast.generate_batch(texts[:1], seeds[:1])
    graphs, _ = _compat.graph_counts()
    ways: dict[str, Callable[[], _Spoken]] = {
        "stock": functools.partial(_stock, fast, texts, seeds),
        "row": functools.partial(_row, fast, texts, seeds),
        "batch": functools.partial(_batch, fast, texts, seeds),
    }
    ways = {SIDES[name]: way for name, way in ways.items() if name != "stock" or settings.stock}
    for size in settings.sizes:
        ways[f"{size} at a time"] = functools.partial(_of_size, fast, texts, seeds, size, settings.synthesis_by_size)
    calls = alternation.alternate(ways, settings.repeats, progress, device=settings.device)
    sides = {name: _side(calls[title]) for name, title in SIDES.items() if title in calls}
    reference, batch = calls[SIDES[settings.reference]], calls[SIDES["batch"]]
    before = tts.conds.gen["prompt_token"].shape[1]
    return BatchResult(
        settings=settings,
        model=describe(tts),
        machine=machine.describe(),
        config=config.replace(cache_dir=None).to_dict(),  # it was a temporary one
        sides=sides,
        by_size={size: _side(calls[f"{size} at a time"]) for size in settings.sizes},
        audio_seconds=sum(wave.shape[1] for wave in batch[-1].result.waves) / tts.sr,
        reference_seconds=before / 25,
        signal_to_error_db=lowest_db(
            pair for both in zip(reference, batch) for pair in zip(*(call.result.waves for call in both))
        ),
        padding=_padding([before + len(tokens) for tokens in sides["batch"].tokens], tts.device),
        later_graphs=_compat.graph_counts()[0] - graphs,
        report=fast.report().to_dict(),
    )


class _Spoken(NamedTuple):
    """All texts, spoken once: their waves, seconds in the token loop, and tokens."""

    waves: list[Tensor]
    t3: float
    tokens: list[list[int]]


def _side(calls: list[Call[_Spoken]]) -> Side:
    t3 = [call.result.t3 for call in calls]
    return Side(alternation.seconds(calls), t3, calls[-1].result.tokens)


def _padding(lengths: list[int], device: str) -> float:
    """Share of what the flow solves for that is padding; in tokens, as it is in frames."""
    group = FLOW_GROUP.get(torch.device(device).type, 1)
    ordered = sorted(lengths)
    solved = 0
    for first in range(0, len(ordered), group):
        together = ordered[first : first + group]
        solved += len(together) * TOKENS.capacity(together[-1])
    return 1 - sum(lengths) / solved


def _stock(fast: CompiledTTS, texts: list[str], seeds: list[int]) -> _Spoken:
    with fast.stock() as tts:
        return _one_by_one(tts, tts.generate, texts, seeds)


def _row(fast: CompiledTTS, texts: list[str], seeds: list[int]) -> _Spoken:
    return _one_by_one(fast.wrapped, fast.generate, texts, seeds)


def _one_by_one(tts: Any, generate: Callable[[str], Tensor], texts: list[str], seeds: list[int]) -> _Spoken:
    waves = []
    with listening(tts) as heard:
        for text, seed in zip(texts, seeds):
            torch.manual_seed(seed)
            waves.append(generate(text))
    return _Spoken(waves, heard.seconds["T3"], heard.tokens)


def _batch(fast: CompiledTTS, texts: list[str], seeds: list[int], size: int | None = None) -> _Spoken:
    spent: list[float] = []
    tokens: list[list[int]] = [[] for _ in texts]
    with _t3_watched(spent, tokens):
        waves = fast.generate_batch(texts, seeds, max_batch=size)
    return _Spoken([wave for wave in waves if wave is not None], sum(spent), tokens)


def _of_size(fast: CompiledTTS, texts: list[str], seeds: list[int], size: int, synthesis: bool) -> _Spoken:
    def silence(**_: Any) -> tuple[Tensor, None]:
        return torch.zeros(1, fast.sr), None

    tap = Seam(fast.s3gen, "inference", silence)
    if not synthesis:
        tap.attach()
    try:
        return _batch(fast, texts, seeds, size)
    finally:
        tap.detach()  # harmless where it was not attached


@contextlib.contextmanager
def _t3_watched(spent: list[float], tokens: list[list[int]]) -> Iterator[None]:
    """Collect seconds and tokens of the batch inside."""
    advance = Batch.advance

    def timed(self: Batch) -> Any:
        ended, seconds = timed_call(str(next(iter(self.unfinished())).generator.device), lambda: advance(self))
        spent.append(seconds)
        for request, utterance in ended:
            tokens[request.index] = utterance.tokens
        return ended

    with mock.patch.object(Batch, "advance", timed):
        yield
