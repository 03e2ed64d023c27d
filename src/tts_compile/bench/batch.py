"""Many chunks: stock and compiled one after the other, and ``generate_batch``, on one model, with equal seeds."""

from __future__ import annotations

import contextlib
import functools
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from .. import _compat
from ..api import compile_model
from ..batch.job import FLOW_GROUP
from ..components.flow.engine import TOKENS
from ..components.seam import Seam
from ..components.t3.batch import Batch
from ..config import CompileConfig
from ..handle import CompiledTTS
from ..timing import Stopwatch
from . import machine
from .models import Progress, describe, load, timed_call
from .stats import Ratio, markdown_table, ratio_of_medians, spread, yes
from .wave import signal_to_error_db

LEAST_DB = 60.0  # of signal to error against stock
SIDES = {"stock": "stock, in a row", "row": "compiled, in a row", "batch": "batch"}
_PROSE = (
    "The quick brown fox jumps over the lazy dog, and then it takes a long nap in the warm sun. Seven wizards jog "
    "past the old mill and vex five bold gnomes, who would rather have been left alone with their tea. "
)


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
        prose = _PROSE * (2 + (self.longest + 7 * self.chunks) // len(_PROSE))
        return [prose[7 * i :][: self.shortest + round(step * i)] for i in range(self.chunks)]

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
class BatchResult:
    """Everything measured; :meth:`to_dict` is JSON-able, with None for an infinite ratio; ``str()`` is a table.

    Attributes:
        sides: by the keys of :data:`SIDES`.
        by_size: by how many texts T3 speaks at a time; see :attr:`Settings.synthesis_by_size`.
        audio_seconds: of all texts together.
        signal_to_error_db: of the batch's waves against the reference's, the lowest of all texts and repeats.
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
    signal_to_error_db: float
    padding: float
    later_graphs: int
    report: dict[str, Any]

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
        return alike and self.signal_to_error_db >= LEAST_DB and self.later_graphs == 0

    def gain(self, over: str, part: str = "total") -> Ratio:
        """How many times faster the batch is than another side, in all or in one part."""
        other, batch = (getattr(self.sides[name], part) for name in (over, "batch"))
        return ratio_of_medians(other, batch, seed=self.settings.seed)

    def to_dict(self) -> dict[str, Any]:
        """Raw values and what follows from them."""
        gains = {
            f"{part} over {over}": {**asdict(self.gain(over, part)), "verdict": self.gain(over, part).verdict}
            for over in self.sides
            if over != "batch"
            for part in ("total", "t3")
        }
        plain = {"bench": "batch", "passed": self.passed, "gains": gains, "identical": self.identical, **asdict(self)}
        plain["bit_identical"] = self.signal_to_error_db == math.inf
        if plain["bit_identical"]:
            plain["signal_to_error_db"] = None
        return plain

    def __str__(self) -> str:
        s, sides = self.settings, self.sides.values()
        others = [name for name in self.sides if name != "batch"]

        def gains(part: str) -> list[str]:
            return [str(self.gain(over, part)) for over in others]

        nothing = [""] * len(others)
        title = f"{s.chunks} texts, {self.audio_seconds:.0f} s of speech, median (min to max)"
        rest = [[total - t3 for total, t3 in zip(side.total, side.t3)] for side in sides]
        rows = [
            (title, *(SIDES[name] for name in self.sides), *(f"batch over {SIDES[name]}" for name in others)),
            ("seconds", *(spread(side.total) for side in sides), *gains("total")),
            ("texts a minute", *(_per_second(60 * s.chunks, side) for side in sides), *nothing),
            ("seconds of speech a second", *(_per_second(self.audio_seconds, side) for side in sides), *nothing),
            ("T3, s", *(spread(side.t3) for side in sides), *gains("t3")),
            ("T3, tokens/s", *(spread(side.rates) for side in sides), *nothing),
            ("flow, vocoder and watermark, s", *(spread(seconds) for seconds in rest), *nothing),
        ]
        sizes: list[tuple[str, ...]]
        if s.synthesis_by_size:
            sizes = [("texts at a time", "T3, tokens/s", "seconds of speech a second")]
            sizes += [
                (str(size), spread(side.rates), _per_second(self.audio_seconds, side))
                for size, side in self.by_size.items()
            ]
        else:
            sizes = [("T3 alone, texts at a time", "tokens/s")]
            sizes += [(str(size), spread(side.rates)) for size, side in self.by_size.items()]
        about, versions = self.machine, self.machine["versions"]
        same = ", ".join(f"{count} of {s.chunks} ({name})" for name, count in self.identical.items())
        return "\n".join([
            markdown_table(rows),
            "",
            markdown_table(sizes),
            "",
            f"tokens identical to the batch's: {same}; least signal to error {self.signal_to_error_db:.1f} dB; "
            f"{self.padding:.1%} of the flow's frames are padding; graphs compiled after the warm-up: "
            f"{self.later_graphs}; all as stock: {yes(self.passed)}",
            "",
            f"texts of {s.shortest} to {s.longest} characters, {self.model['dtype']}, {self.model['device']}, "
            f"{self.reference_seconds:.0f} s reference; {about['cpu']}, {about['torch_threads']} threads; "
            f"torch {versions['torch']}, chatterbox-tts {versions['chatterbox-tts']}",
        ])  # fmt: skip


def _per_second(amount: float, side: Side) -> str:
    return spread([amount / seconds for seconds in side.total])


def run(source: str, settings: Settings) -> BatchResult:
    """Measure; ``source`` as :func:`tts_compile.bench.models.load` takes it."""
    steps = settings.repeats * (len(SIDES) + len(settings.sizes))
    with (
        tempfile.TemporaryDirectory(prefix="tts-compile-cache-", ignore_cleanup_errors=True) as cache_dir,
        Progress(3 + steps) as progress,
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
    sides = {name: Side() for name in SIDES if name != "stock" or settings.stock}
    by_size = {size: Side() for size in settings.sizes}
    waves: dict[str, list[Tensor]] = {}
    ratios = []
    ways: dict[str, Callable[[Side], list[Tensor]]] = {
        "stock": functools.partial(_stock, fast, texts, seeds),
        "row": functools.partial(_row, fast, texts, seeds),
        "batch": functools.partial(_batch, fast, texts, seeds),
    }
    for repeat in range(settings.repeats):
        for name in list(sides) if repeat % 2 == 0 else reversed(list(sides)):  # none always goes first
            with progress.step(f"repeat {repeat + 1} of {settings.repeats}: {SIDES[name]}"):
                side = sides[name]
                waves[name], seconds = timed_call(settings.device, functools.partial(ways[name], side))
                side.total.append(seconds)
        found = [signal_to_error_db(a, b) for a, b in zip(waves[settings.reference], waves["batch"])]
        ratios += [-math.inf if ratio is None else ratio for ratio in found]  # None: of another length
        for size, side in by_size.items():
            with progress.step(f"repeat {repeat + 1} of {settings.repeats}: {size} at a time"):
                _of_size(fast, texts, seeds, size, side, settings.synthesis_by_size)
    before = tts.conds.gen["prompt_token"].shape[1]
    return BatchResult(
        settings=settings,
        model=describe(tts),
        machine=machine.describe(),
        config=config.replace(cache_dir=None).to_dict(),  # it was a temporary one
        sides=sides,
        by_size=by_size,
        audio_seconds=sum(wave.shape[1] for wave in waves["batch"]) / tts.sr,
        reference_seconds=before / 25,
        signal_to_error_db=min(ratios),
        padding=_padding([before + len(tokens) for tokens in sides["batch"].tokens], tts.device),
        later_graphs=_compat.graph_counts()[0] - graphs,
        report=fast.report().to_dict(),
    )


def _padding(lengths: list[int], device: str) -> float:
    """Share of what the flow solves for that is padding; in tokens, as it is in frames."""
    group = FLOW_GROUP.get(torch.device(device).type, 1)
    ordered = sorted(lengths)
    solved = 0
    for first in range(0, len(ordered), group):
        together = ordered[first : first + group]
        solved += len(together) * TOKENS.capacity(together[-1])
    return 1 - sum(lengths) / solved


def _stock(fast: CompiledTTS, texts: list[str], seeds: list[int], side: Side) -> list[Tensor]:
    with fast.stock() as tts:
        return _one_by_one(tts, tts.generate, texts, seeds, side)


def _row(fast: CompiledTTS, texts: list[str], seeds: list[int], side: Side) -> list[Tensor]:
    return _one_by_one(fast.wrapped, fast.generate, texts, seeds, side)


def _one_by_one(
    tts: Any, generate: Callable[[str], Tensor], texts: list[str], seeds: list[int], side: Side
) -> list[Tensor]:
    inner, device = tts.t3.inference, str(tts.device)
    tokens: list[list[int]] = []
    spent = []

    def timed(**kwargs: Any) -> Tensor:
        found: Tensor
        found, seconds = timed_call(device, lambda: inner(**kwargs))
        spent.append(seconds)
        tokens.append(found[0].tolist())
        return found

    tap = Seam(tts.t3, "inference", timed)
    tap.attach()
    waves = []
    try:
        for text, seed in zip(texts, seeds):
            torch.manual_seed(seed)
            waves.append(generate(text))
    finally:
        tap.detach()
    side.tokens = tokens
    side.t3.append(sum(spent))
    return waves


def _batch(fast: CompiledTTS, texts: list[str], seeds: list[int], side: Side) -> list[Tensor]:
    with _t3_watched(len(texts), side):
        return [wave for wave in fast.generate_batch(texts, seeds) if wave is not None]


def _of_size(fast: CompiledTTS, texts: list[str], seeds: list[int], size: int, side: Side, synthesis: bool) -> None:
    def silence(**_: Any) -> tuple[Tensor, None]:
        return torch.zeros(1, fast.sr), None

    tap = Seam(fast.s3gen, "inference", silence)
    if not synthesis:
        tap.attach()
    try:
        with _t3_watched(len(texts), side), Stopwatch() as watch:
            fast.generate_batch(texts, seeds, max_batch=size)
        side.total.append(watch.seconds)
    finally:
        tap.detach()  # harmless where it was not attached


@contextlib.contextmanager
def _t3_watched(count: int, side: Side) -> Iterator[None]:
    """Seconds and tokens of the batch inside."""
    advance = Batch.advance
    spent: list[float] = []
    tokens: list[list[int]] = [[] for _ in range(count)]

    def timed(self: Batch) -> Any:
        ended, seconds = timed_call(str(next(iter(self.unfinished())).generator.device), lambda: advance(self))
        spent.append(seconds)
        for request, utterance in ended:
            tokens[request.index] = utterance.tokens
        return ended

    with mock.patch.object(Batch, "advance", timed):
        yield
    side.tokens = tokens
    side.t3.append(sum(spent))
