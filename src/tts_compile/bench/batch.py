"""Many texts: stock and compiled one after the other, and ``generate_batch``, on one model, with equal seeds."""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..batch.pipeline import FLOW_GROUP
from ..components.flow.engine import TOKENS
from ..components.seam import Seam
from ..components.t3.scheduler import Scheduler
from ..handle import CompiledTTS
from ..measuring import interleaved
from ..measuring.interleaved import Call, timed_call
from ..measuring.progress import Progress, Step
from ..measuring.stats import Ratio, median_of, ratio_of_medians, spread, yes
from ..parity.metrics import lowest_db
from ..sample_text import prose
from ..utils.patch import patched
from .models import common, compile_cache, compiled_model, new_graphs
from .plots import Lines, Plot, Ratios
from .result import INTERVAL, LEAST_DB, Repeated, Result, Row, Section, decibels, option, ran
from .stages import watched

SIDES = {"stock": "stock, in a row", "row": "compiled, in a row", "batch": "batch"}


@dataclass(frozen=True, kw_only=True)
class Settings(Repeated):
    """Settings of the benchmark of many texts; the seed is that of the first text, and the next ones count up."""

    chunks: int = option(8, "texts", least=1)
    chars: tuple[int, int] = option((60, 120), "fewest and most characters of a text", least=1, count=2)
    sizes: tuple[int, ...] = option((1, 2, 4, 8), "numbers of texts that T3 speaks at a time", least=1)
    stock: bool = option(True, "leave stock out, which takes longest")
    tokens: int = option(150, "a synthetic model stops after about this many for 90 characters", least=8)

    @property
    def reference(self) -> str:
        """Returns the side that the batch's tokens and waves are compared with."""
        return "stock" if self.stock else "row"

    @property
    def synthesis_by_size(self) -> bool:
        """Returns whether every size makes waves too; on a CPU, their time does not depend on it."""
        return self.device != "cpu"

    @property
    def texts(self) -> list[str]:
        """Returns the texts, shortest first."""
        shortest, longest = sorted(self.chars)
        step = (longest - shortest) / max(self.chunks - 1, 1)
        return [prose(shortest + round(step * i), start=7 * i) for i in range(self.chunks)]

    @property
    def seeds(self) -> list[int]:
        """Returns a seed for each text."""
        return [self.seed + i for i in range(self.chunks)]


@dataclass
class Side:
    """One way to speak all texts.

    Attributes:
        total: seconds for all texts, a value per repeat.
        t3: of them, in the token loop, prompts included.
        tokens: speech tokens of each text.
    """

    total: list[float] = field(default_factory=list)
    t3: list[float] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Returns speech tokens a second in the token loop, a value per repeat."""
        return [sum(map(len, self.tokens)) / seconds if seconds else math.nan for seconds in self.t3]


@dataclass(frozen=True, kw_only=True)
class BatchResult(Result):
    """The figures of many texts.

    Attributes:
        sides: by the keys of :data:`SIDES`.
        by_size: by the number of texts that T3 speaks at a time; see :attr:`Settings.synthesis_by_size`.
        audio_seconds: of all texts together.
        signal_to_error_db: of the batch's waves against the reference's, the lowest of all texts and repeats;
            None where lengths differ.
        padding: share of the flow's frames that is padding, the reference included.
        later_graphs: graphs compiled or captured after the warm-up.
    """

    subject = "batch"
    title = "Many texts"

    sides: dict[str, Side]
    by_size: dict[int, Side]
    audio_seconds: float
    reference_seconds: float
    signal_to_error_db: float | None
    padding: float
    later_graphs: int

    @property
    def others(self) -> list[str]:
        """Returns the sides beside the batch."""
        return [name for name in self.sides if name != "batch"]

    @property
    def identical(self) -> dict[str, int]:
        """Returns the number of texts whose tokens equal the batch's, by side, and by size of T3 alone."""
        found = {name: self.sides[name].tokens for name in self.others}
        found |= {f"{size} at a time": side.tokens for size, side in self.by_size.items()}
        batch = self.sides["batch"].tokens
        return {name: sum(a == b for a, b in zip(tokens, batch)) for name, tokens in found.items()}

    @property
    def kept(self) -> bool:
        """Returns whether the batch spoke what stock speaks."""
        alike = all(count == self.settings.chunks for count in self.identical.values())
        ratio = self.signal_to_error_db
        return alike and ratio is not None and ratio >= LEAST_DB and self.later_graphs == 0

    def gain(self, over: str, part: str = "total") -> Ratio:
        """Returns how many times faster the batch is than another side, in all or in one part."""
        other, batch = (getattr(self.sides[name], part) for name in (over, "batch"))
        return ratio_of_medians(other, batch, seed=self.settings.seed)

    @property
    def gains(self) -> dict[str, Ratio]:
        """Returns how many times faster the batch is than each other side."""
        return {f"{part} over {over}": self.gain(over, part) for over in self.others for part in ("total", "t3")}

    def follows(self) -> dict[str, Any]:
        """Returns gains, and the number of identical texts."""
        return {**super().follows(), "identical": self.identical}

    def sections(self) -> list[Section]:
        """Returns a table of all sides and one of the sizes."""
        s = self.settings
        same = ", ".join(f"{count} of {s.chunks} ({name})" for name, count in self.identical.items())
        proof = (
            f"tokens identical to the batch's: {same}; least signal to error {decibels(self.signal_to_error_db)}; "
            f"{self.padding:.1%} of the flow's frames are padding; graphs compiled after the warm-up: "
            f"{self.later_graphs}; all as stock: {yes(self.passed)}"
        )
        about = (
            f"texts of {min(s.chars)} to {max(s.chars)} characters, {self.reference_seconds:.0f} s reference, "
            f"{self.about}; {ran(self.report)}"
        )
        return [Section(self._side_rows()), Section(self._size_rows(), [*self.few, proof, about])]

    def _side_rows(self) -> list[Row]:
        s, sides, others = self.settings, self.sides.values(), self.others
        nothing = [""] * len(others)
        title = f"{s.chunks} texts, {self.audio_seconds:.0f} s of speech, median {INTERVAL}"
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

    def _size_rows(self) -> list[Row]:
        sizes = self.by_size.items()
        if not self.settings.synthesis_by_size:
            return [("T3 alone, texts at a time", "tokens/s"), *((str(n), spread(side.rates)) for n, side in sizes)]
        return [
            ("texts at a time", "T3, tokens/s", "seconds of speech a second"),
            *((str(n), spread(side.rates), _per_second(self.audio_seconds, side)) for n, side in sizes),
        ]

    def plots(self) -> list[Plot]:
        """Returns ratios, and T3's rate over the number of texts."""
        gains = {
            f"{what}, over {SIDES[over]}": self.gain(over, part)
            for over in self.others
            for part, what in (("total", "all"), ("t3", "T3"))
        }
        found: list[Plot] = [Ratios("How many times faster the batch is", gains)]
        return found + [rates(self.sides, self.by_size)] * bool(self.by_size)


def rates(sides: Mapping[str, Side], by_size: Mapping[int, Side]) -> Lines:
    """Returns a figure of T3's speech tokens a second over the number of texts at a time."""
    points = [(size, median_of(side.rates)) for size, side in by_size.items()]
    levels = {SIDES[name]: statistics.median(side.rates) for name, side in sides.items() if name != "batch"}
    return Lines("T3", "texts at a time", "speech tokens a second", {"batch": points}, levels)


def _per_second(amount: float, side: Side) -> str:
    return spread([amount / seconds for seconds in side.total])


def run(source: str, settings: Settings) -> BatchResult:
    """Measures; ``source`` is that of :func:`tts_compile.bench.models.load`."""
    sides = len(SIDES) - (not settings.stock) + len(settings.sizes)
    with (
        compile_cache() as cache_dir,
        Progress(2 + sides * settings.repeats) as progress,
        compiled_model(source, settings.device, cache_dir, progress) as (fast, _),
    ):
        return _measure(fast, settings, progress)


def _measure(fast: CompiledTTS, settings: Settings, step: Step) -> BatchResult:
    s, tts, texts, seeds = settings, fast.wrapped, settings.texts, settings.seeds
    step("warm-up")
    fast.warmup()
    # Sets up libraries, and reads into memory what all sides need; CUDA graphs of batches are captured on first use.
    if s.synthesis_by_size:
        for size in (None, *s.sizes):
            fast.generate_batch(texts, seeds, size)
    else:
        fast.generate_batch(texts[:1], seeds[:1])
    later_graphs = new_graphs(fast)
    ways: dict[str, Callable[[], _Spoken]] = {
        SIDES["stock"]: functools.partial(_stock, fast, texts, seeds),
        SIDES["row"]: functools.partial(_one_by_one, tts, fast.generate, texts, seeds),
        SIDES["batch"]: functools.partial(_batch, fast, texts, seeds),
    }
    if not s.stock:
        del ways[SIDES["stock"]]
    for size in s.sizes:
        ways[f"{size} at a time"] = functools.partial(_of_size, fast, texts, seeds, size, s.synthesis_by_size)
    calls = interleaved.alternate(ways, s.repeats, step, device=s.device)
    sides = {name: _side(calls[title]) for name, title in SIDES.items() if title in calls}
    reference, batch = calls[SIDES[s.reference]], calls[SIDES["batch"]]
    before = tts.conds.gen["prompt_token"].shape[1]
    return BatchResult(
        **common(fast, s),
        sides=sides,
        by_size={size: _side(calls[f"{size} at a time"]) for size in s.sizes},
        audio_seconds=sum(wave.shape[1] for wave in batch[-1].result.waves) / tts.sr,
        reference_seconds=before / 25,
        signal_to_error_db=lowest_db(
            pair for both in zip(reference, batch) for pair in zip(*(call.result.waves for call in both))
        ),
        padding=_padding([before + len(tokens) for tokens in sides["batch"].tokens], tts.device),
        later_graphs=later_graphs(),
    )


class _Spoken(NamedTuple):
    """All texts, spoken once: their waves, seconds in the token loop, and tokens."""

    waves: list[Tensor]
    t3: float
    tokens: list[list[int]]


def _side(calls: list[Call[_Spoken]]) -> Side:
    t3 = [call.result.t3 for call in calls]
    return Side(interleaved.seconds(calls), t3, calls[-1].result.tokens)


def _padding(lengths: list[int], device: str) -> float:
    """Returns the share of the flow's input that is padding; in tokens, which equals that in frames."""
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


def _one_by_one(tts: Any, generate: Callable[[str], Tensor], texts: list[str], seeds: list[int]) -> _Spoken:
    waves = []
    with watched(tts) as found:
        for text, seed in zip(texts, seeds):
            torch.manual_seed(seed)
            waves.append(generate(text))
    return _Spoken(waves, found.seconds["T3"], found.tokens)


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
    """Collects seconds and tokens of T3 in batches inside the block."""
    advance = Scheduler.advance

    def timed(self: Scheduler) -> Any:
        ended, seconds = timed_call(str(next(iter(self.unfinished())).generator.device), lambda: advance(self))
        spent.append(seconds)
        for request, utterance in ended:
            tokens[request.index] = utterance.tokens
        return ended

    with patched(Scheduler, "advance", timed):
        yield
