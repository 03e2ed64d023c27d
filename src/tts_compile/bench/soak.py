"""Many calls in one process, of mixed lengths and voices: whether anything grows, slows down or drifts."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..api import compile_model
from ..audio.reading import digest
from ..config import CompileConfig
from ..handle import CompiledTTS
from ..measuring import machine
from ..measuring.stats import Ratio, ratio_of_medians, spread, yes
from ..testing import make_reference_wav
from ..utils.device import held_memory
from .models import Progress, describe, graphs, load, timed_call
from .section import Cell, Result, Section, where

TEXTS = (
    "Yes.",
    "The rain had stopped by noon.",
    "Seven wizards jog past the old mill, and nobody asks them why.",
    "It was late; the lamps were lit one by one, and the street grew quiet, save for a dog that barked at nothing.",
)
VOICES = 3
ROUND = len(TEXTS) * VOICES
_MIB = 2**20
# Memory may move by the allocator's own caches; a leak of one wave a call would come to more than this in 500.
_MOST_GROWTH = 64 * _MIB
# Rounds: waves, graphs and hooks are compared with the first one's, memory between two that come after it.
_COMPARED, _GROWN = 2, 3
TOO_FEW = "too few rounds"


@dataclass(frozen=True)
class Settings:
    """What to do.

    Attributes:
        device: where the model runs.
        calls: how many, rounded up to whole rounds of every text with every voice; memory needs three of them.
        seed: of every call.
    """

    device: str = "cpu"
    calls: int = 500
    seed: int = 0

    @property
    def rounds(self) -> int:
        """Of every text with every voice."""
        return -(-self.calls // ROUND)


@dataclass(frozen=True)
class SoakResult(Result):
    """Everything measured; :meth:`to_dict` is JSON-able, ``str()`` is a table.

    Attributes:
        seconds: of each round.
        held: bytes of memory held after each round.
        hooks: on any module, after the first round and after the last.
        graphs: compiled or recorded after the first round.
        drifted: calls whose wave was not bit for bit that of the first round.
        events: of the report.
    """

    settings: Settings
    model: dict[str, Any]
    machine: dict[str, Any]
    seconds: list[float]
    held: list[int]
    hooks: tuple[int, int]
    graphs: int
    drifted: int
    events: list[dict[str, str]]

    @property
    def title(self) -> str:
        """Of the page."""
        return "Many calls in one process"

    @property
    def growth(self) -> int | None:
        """Bytes by which the memory held in the last quarter of the rounds is above that of the second.

        None with fewer than three rounds: the first one, which fills caches, is left out.
        """
        if len(self.held) < _GROWN:
            return None
        quarter = len(self.held) // 4 or 1
        return min(self.held[-quarter:]) - min(self.held[quarter : 2 * quarter])

    @property
    def pace(self) -> Ratio | None:
        """Speed of the later half of the rounds over that of the earlier, the first left out; None below three."""
        later = self.seconds[1:]
        half = len(later) // 2
        return ratio_of_medians(later[:half], later[half:]) if half else None

    @property
    def promise(self) -> str:
        """What :attr:`passed` says, which depends on the rounds there are to compare."""
        if len(self.seconds) < _COMPARED:
            return "no failures; whether anything grew or drifted was not looked at"
        if self.growth is None:
            return "no wave drifted, no graphs or hooks were added, no failures; memory was not looked at"
        return "nothing grew or drifted, no failures"

    @property
    def method(self) -> str:
        """Stock is no part of it."""
        return "Many calls of the compiled side, compared with one another"

    @property
    def passed(self) -> bool:
        """Whether :attr:`promise` is kept; how long a call takes depends on the machine and is shown only."""
        grown = self.hooks[1] - self.hooks[0] or self.graphs or self.drifted or self.events
        return not grown and (self.growth is None or self.growth <= _MOST_GROWTH)

    def to_dict(self) -> dict[str, Any]:
        """Raw values and what follows from them."""
        followed = {"growth": self.growth, "pace": None if self.pace is None else self.pace.to_dict()}
        return {"bench": "soak", "passed": self.passed, "promise": self.promise, **followed, **asdict(self)}

    @property
    def gained(self) -> str:
        """The growth in MiB, for a table's cell."""
        return TOO_FEW if self.growth is None else f"{self.growth / _MIB:.1f}"

    def later(self, value: object) -> str:
        """A table's cell for what is compared with the first round."""
        return str(value) if len(self.seconds) >= _COMPARED else TOO_FEW

    def sections(self) -> list[Section]:
        """One table."""
        calls = len(self.seconds) * ROUND
        rows: list[tuple[Cell, ...]] = [
            (f"{calls} calls, {len(TEXTS)} texts, {VOICES} voices", "found"),
            ("seconds a round of 12 calls", spread(self.seconds[1:] or self.seconds)),
            ("speed of the later half over the earlier", TOO_FEW if self.pace is None else self.pace),
            ("memory held at the end, GiB", f"{self.held[-1] / 2**30:.2f}"),
            ("memory gained, MiB", self.gained),
            ("hooks, first round and last", self.later(f"{self.hooks[0]}, {self.hooks[1]}")),
            ("graphs compiled or recorded after the first round", self.later(self.graphs)),
            ("waves that differ from the first round's", self.later(self.drifted)),
            ("fallback events", str(len(self.events))),
            (self.promise, yes(self.passed)),
        ]
        return [Section(rows, [f"{self.model['t3_layers']} layers of T3, {where(self.machine, self.model)}"])]


def run(source: str, settings: Settings, config: CompileConfig | None = None) -> SoakResult:
    """Measure; ``source`` as :func:`tts_compile.bench.models.load` takes it."""
    with (
        tempfile.TemporaryDirectory(prefix="tts-compile-soak-") as folder,
        Progress(2 + settings.rounds) as progress,
    ):
        with progress.step("loading"):
            tts = load(source, settings.device)
        with compile_model(tts, config or CompileConfig.from_env()) as fast:
            with progress.step("warm-up"):
                fast.warmup()
            return measure(fast, settings, Path(folder), progress)


def measure(fast: CompiledTTS, settings: Settings, folder: Path, progress: Progress) -> SoakResult:
    """Measure a compiled and warmed-up model, a step of the progress for each round; recordings go to ``folder``."""
    voices = [make_reference_wav(folder / f"{n}.wav", seconds=2 + n) for n in range(VOICES)]
    seconds: list[float] = []
    held: list[int] = []
    hooks: list[int] = []
    first: list[str] = []
    drifted = at_first = 0
    for number in range(settings.rounds):
        with progress.step(f"round {number + 1} of {settings.rounds}"):
            found: list[str] = []
            spoken = _round(fast, voices, settings.seed, found)
            _, spent = timed_call(settings.device, spoken)
        gc.collect()
        seconds.append(spent)
        held.append(held_memory(torch.device(settings.device)))
        hooks.append(_hooks(fast.wrapped))
        if number == 0:
            first, at_first = found, graphs(fast)
        drifted += sum(a != b for a, b in zip(first, found))
    return SoakResult(
        settings=settings,
        model=describe(fast.wrapped),
        machine=machine.describe(),
        seconds=seconds,
        held=held,
        hooks=(hooks[0], hooks[-1]),
        graphs=graphs(fast) - at_first,
        drifted=drifted,
        events=[event.to_dict() for row in fast.report().components.values() for event in row.fallbacks],
    )


def _round(fast: CompiledTTS, voices: list[Path], seed: int, found: list[str]) -> Callable[[], None]:
    def speak() -> None:
        for voice in voices:
            for text in TEXTS:
                torch.manual_seed(seed)
                found.append(digest(fast.generate(text, audio_prompt_path=str(voice)).numpy()))

    return speak


def _hooks(tts: Any) -> int:
    modules = [module for part in (tts.t3, tts.s3gen, tts.ve) for module in part.modules()]
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)
