"""Many texts: stock and compiled one after the other, and ``generate_batch``, on one model, with equal seeds."""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..components.seam import Replacement
from ..components.t3.scheduler import Scheduler
from ..handle import CompiledTTS
from ..measuring import interleaved
from ..measuring.interleaved import Call, timed_call
from ..measuring.progress import Step
from ..measuring.stats import Ratio, median_of, ratio_of_medians, spread, yes
from ..parity.metrics import lowest_db
from ..sample_text import prose
from ..utils.patch import patched
from .models import common, compiled_model, new_graphs
from .plots import Lines, Plot
from .result import INTERVAL, LEAST_DB, Repeated, Result, Row, Section, decibels, option, ran
from .stages import Made, watched

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

    @property
    def rest(self) -> list[float]:
        """Returns the seconds of everything but T3, a value per repeat."""
        return [total - t3 for total, t3 in zip(self.total, self.t3)]


@dataclass(frozen=True, kw_only=True)
class BatchResult(Result):
    """The figures of many texts.

    Attributes:
        sides: by the keys of :data:`SIDES`.
        by_size: by the number of texts that T3 speaks at a time; on a CPU their ``total`` is without synthesis.
        audio_seconds: of all texts together.
        signal_to_error_db: of the batch's waves against those of the first side, the lowest of all texts and repeats;
            None where lengths differ.
        later_graphs: graphs compiled or captured after the warm-up.
    """

    subject = "batch"
    title = "Many texts"

    sides: dict[str, Side]
    by_size: dict[int, Side]
    audio_seconds: float
    reference_seconds: float
    signal_to_error_db: float | None
    later_graphs: int

    @property
    def others(self) -> list[str]:
        """Returns the sides beside the batch."""
        return [name for name in self.sides if name != "batch"]

    @property
    def identical(self) -> dict[str, int]:
        """Returns the number of texts whose tokens equal the batch's, by side, and by size of T3 alone."""
        found = {name: self.sides[name] for name in self.others}
        found |= {f"{size} at a time": side for size, side in self.by_size.items()}
        batch = self.sides["batch"].tokens
        return {name: sum(a == b for a, b in zip(side.tokens, batch)) for name, side in found.items()}

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
        sizes = [(str(size), spread(side.rates)) for size, side in self.by_size.items()]
        return [Section(self.side_table()), Section([("T3, texts at a time", "tokens/s"), *sizes], self.notes())]

    def side_table(self) -> list[Row]:
        """Returns the titles and the rows of all sides."""
        title = f"{self.settings.chunks} texts, {self.audio_seconds:.0f} s of speech, median {INTERVAL}"
        sides, nothing = self.sides.values(), [""] * len(self.others)
        speech = [[self.audio_seconds / seconds for seconds in side.total] for side in sides]
        return [
            (title, *(SIDES[name] for name in self.sides), *(f"batch over {SIDES[name]}" for name in self.others)),
            ("seconds", *(spread(side.total) for side in sides), *(self.gain(over) for over in self.others)),
            ("seconds of speech a second", *map(spread, speech), *nothing),
            ("T3, s", *(spread(side.t3) for side in sides), *(self.gain(over, "t3") for over in self.others)),
            ("T3, tokens/s", *(spread(side.rates) for side in sides), *nothing),
            ("flow, vocoder and watermark, s", *(spread(side.rest) for side in sides), *nothing),
        ]

    def notes(self) -> list[str]:
        """Returns the proof, the texts, the machine and what ran."""
        s = self.settings
        same = ", ".join(f"{count} of {s.chunks} ({name})" for name, count in self.identical.items())
        proof = (
            f"tokens identical to the batch's: {same}; least signal to error {decibels(self.signal_to_error_db)}; "
            f"graphs compiled after the warm-up: {self.later_graphs}; all as stock: {yes(self.passed)}"
        )
        about = (
            f"texts of {min(s.chars)} to {max(s.chars)} characters, {self.reference_seconds:.0f} s reference, "
            f"{self.about}; {ran(self.report)}"
        )
        return [*self.few, proof, about]

    def plots(self) -> list[Plot]:
        """Returns ratios, and T3's rate over the number of texts."""
        return [*super().plots(), *([rates(self.sides, self.by_size)] if self.by_size else [])]


def rates(sides: Mapping[str, Side], by_size: Mapping[int, Side]) -> Lines:
    """Returns a figure of T3's speech tokens a second over the number of texts at a time."""
    points = [(size, median_of(side.rates)) for size, side in by_size.items()]
    levels = {SIDES[name]: statistics.median(side.rates) for name, side in sides.items() if name != "batch"}
    return Lines("T3", "texts at a time", "speech tokens a second", {"batch": points}, levels)


def run(source: str, settings: Settings) -> BatchResult:
    """Measures; ``source`` is that of :func:`tts_compile.bench.models.load`."""
    with compiled_model(source, settings.device) as (fast, _, step):
        return _measure(fast, settings, step)


def _measure(fast: CompiledTTS, settings: Settings, step: Step) -> BatchResult:
    s, tts, texts, seeds = settings, fast.wrapped, settings.texts, settings.seeds

    def in_a_row(generate: Callable[[str], Tensor]) -> Made:
        with watched(tts) as made:
            for text, seed in zip(texts, seeds):
                torch.manual_seed(seed)
                made.audio.append(generate(text))
        return made

    def stock() -> Made:
        with fast.stock():
            return in_a_row(tts.generate)

    def batch(size: int | None = None) -> Made:
        with _t3_watched(len(texts)) as made:
            waves = fast.generate_batch(texts, seeds, max_batch=size)
        made.audio += [wave for wave in waves if wave is not None]
        return made

    def of_size(size: int) -> Made:
        if s.device != "cpu":
            return batch(size)
        # The time of synthesis on a CPU does not depend on the size.
        silence = Replacement(tts.s3gen, "inference", lambda **_: (torch.zeros(1, fast.sr), None))
        with patched(tts.s3gen, "inference", silence):
            return batch(size)

    step("warm-up")
    fast.warmup()
    # Sets up libraries, and reads into memory what all sides need; CUDA graphs of batches are captured on first use.
    fast.generate_batch(texts[:1], seeds[:1])
    for size in () if s.device == "cpu" else (None, *s.sizes):
        batch(size)
    later_graphs = new_graphs(fast)
    ways: dict[str, Callable[[], Made]] = {"row": lambda: in_a_row(fast.generate), "batch": batch}
    if s.stock:
        ways = {"stock": stock, **ways}
    ways |= {str(size): functools.partial(of_size, size) for size in s.sizes}
    calls = interleaved.alternate(ways, s.repeats, step, device=s.device)
    reference, batches = calls["stock" if s.stock else "row"], calls["batch"]
    waves = [pair for a, b in zip(reference, batches) for pair in zip(a.result.audio, b.result.audio)]
    return BatchResult(
        **common(fast, s),
        sides={name: _side(calls[name]) for name in SIDES if name in calls},
        by_size={size: _side(calls[str(size)]) for size in s.sizes},
        audio_seconds=sum(wave.shape[1] for wave in batches[-1].result.audio) / tts.sr,
        reference_seconds=tts.conds.gen["prompt_token"].shape[1] / 25,
        signal_to_error_db=lowest_db(waves),
        later_graphs=later_graphs(),
    )


def _side(calls: list[Call[Made]]) -> Side:
    t3 = [call.result.seconds["T3"] for call in calls]
    return Side(interleaved.seconds(calls), t3, calls[-1].result.tokens)


@contextlib.contextmanager
def _t3_watched(texts: int) -> Iterator[Made]:
    """Yields the tokens of every text, and T3's seconds, of a batch inside the block."""
    made = Made(tokens=[[] for _ in range(texts)])
    advance = Scheduler.advance

    def timed(self: Scheduler) -> Any:
        ended, seconds = timed_call(str(next(iter(self.unfinished())).generator.device), lambda: advance(self))
        made.seconds["T3"] += seconds
        for request, utterance in ended:
            made.tokens[request.index] = utterance.tokens
        return ended

    with patched(Scheduler, "advance", timed):
        yield made
