"""Many calls in one process, of mixed lengths and voices: whether anything grows, slows down or drifts."""

from __future__ import annotations

import gc
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..api import compile_model
from ..audio.reading import digest
from ..audio.synthetic_voice import make_reference_wav
from ..config import CompileConfig
from ..handle import CompiledTTS
from ..measuring import proof
from ..measuring.progress import Progress, Step
from ..measuring.stats import Ratio, ratio_of_medians, spread, yes
from ..timing.blocks import Stopwatch
from ..utils.device import held_memory
from .models import common, load, new_graphs
from .result import Result, Row, Section, option

TEXTS = (
    "Yes.",
    "The rain had stopped by noon.",
    "Seven wizards jog past the old mill, and nobody asks them why.",
    "It was late; the lamps were lit one by one, and the street grew quiet, save for a dog that barked at nothing.",
)
VOICES = 3
ROUND = len(TEXTS) * VOICES
_MIB = 2**20
# Memory may move by the allocator's own caches; a leak of one wave a call would be more than this in 500 calls.
_MOST_GROWTH = 64 * _MIB
# Waves, graphs and hooks are compared with the first round's, memory and speed between rounds that come after it.
_LEAST_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the benchmark of many calls; the seed is that of every call.

    ``calls`` is rounded up to whole rounds of every text with every voice, and to three of them.
    """

    device: str = "cpu"
    seed: int = 0
    calls: int = option(500, f"calls, rounded up to whole rounds of {ROUND}, three or more", least=ROUND + 1)
    tokens: int = option(30, "a synthetic model stops after about this many for 90 characters", least=8)

    @property
    def rounds(self) -> int:
        """Returns the number of rounds."""
        return max(_LEAST_ROUNDS, math.ceil(self.calls / ROUND))


@dataclass(frozen=True, kw_only=True)
class SoakResult(Result):
    """The figures of many calls.

    Attributes:
        seconds: of each round.
        held: bytes of memory held after each round.
        hooks: on any module, after the first round and after the last.
        graphs: compiled or captured after the first round.
        drifted: calls whose wave differs from that of the first round.
    """

    subject = "soak"
    title = "Many calls in one process"
    promise = "nothing grew or drifted, no failures"
    method = "Many calls of the compiled side, compared with one another"
    called = proof.ALL

    seconds: list[float]
    held: list[int]
    hooks: tuple[int, int]
    graphs: int
    drifted: int

    @property
    def growth(self) -> int:
        """Returns the bytes by which the last quarter of the rounds holds more memory than the second.

        The first quarter, which fills caches, is left out.
        """
        quarter = len(self.held) // 4 or 1
        return min(self.held[-quarter:]) - min(self.held[quarter : 2 * quarter])

    @property
    def pace(self) -> Ratio:
        """Returns the later half's speed over the earlier half's, without the first round."""
        later = self.seconds[1:]
        half = len(later) // 2
        return ratio_of_medians(later[:half], later[half:])

    @property
    def kept(self) -> bool:
        """Returns whether nothing grew or drifted; the seconds of a call depend on the machine and are only shown."""
        before, after = self.hooks
        return before == after and not self.graphs and not self.drifted and self.growth <= _MOST_GROWTH

    def follows(self) -> dict[str, Any]:
        """Returns plain values that follow from the raw ones."""
        return {"promise": self.promise, "growth": self.growth, "pace": self.pace.to_dict()}

    def sections(self) -> list[Section]:
        """Returns one table."""
        calls = len(self.seconds) * ROUND
        rows: list[Row] = [
            (f"{calls} calls, {len(TEXTS)} texts, {VOICES} voices", "found"),
            (f"seconds a round of {ROUND} calls", spread(self.seconds[1:])),
            ("speed of the later half over the earlier", self.pace),
            ("memory held at the end, GiB", f"{self.held[-1] / 2**30:.2f}"),
            ("memory gained, MiB", f"{self.growth / _MIB:.1f}"),
            ("hooks, first round and last", f"{self.hooks[0]}, {self.hooks[1]}"),
            ("graphs compiled or captured after the first round", str(self.graphs)),
            ("waves that differ from the first round's", str(self.drifted)),
            (self.promise, yes(self.passed)),
        ]
        return [Section(rows, [f"{self.model['t3_layers']} layers of T3, {self.about}"])]


def run(source: str, settings: Settings, config: CompileConfig | None = None) -> SoakResult:
    """Measures; ``source`` is that of :func:`tts_compile.bench.models.load`."""
    with (
        tempfile.TemporaryDirectory(prefix="tts-compile-soak-") as folder,
        Progress(2 + settings.rounds) as progress,
    ):
        progress("loading")
        tts = load(source, settings.device)
        with compile_model(tts, config or CompileConfig.from_env()) as fast:
            progress("warm-up")
            fast.warmup()
            return measure(fast, settings, Path(folder), progress)


def measure(fast: CompiledTTS, settings: Settings, folder: Path, step: Step) -> SoakResult:
    """Measures a compiled and warmed-up model, with a step for each round; recordings go to ``folder``."""
    voices = [str(make_reference_wav(folder / f"{n}.wav", seconds=2 + n)) for n in range(VOICES)]
    seconds: list[float] = []
    held: list[int] = []
    hooks: list[int] = []
    waves: list[list[str]] = []

    def speak(text: str, voice: str) -> str:
        torch.manual_seed(settings.seed)
        return digest(fast.generate(text, audio_prompt_path=voice).numpy())

    for number in range(settings.rounds):
        step(f"round {number + 1} of {settings.rounds}")
        with Stopwatch() as watch:
            waves.append([speak(text, voice) for voice in voices for text in TEXTS])
        gc.collect()
        seconds.append(watch.seconds)
        held.append(held_memory(torch.device(settings.device)))
        hooks.append(_hooks(fast.wrapped))
        if number == 0:
            later_graphs = new_graphs(fast)
    return SoakResult(
        **common(fast, settings),
        seconds=seconds,
        held=held,
        hooks=(hooks[0], hooks[-1]),
        graphs=later_graphs(),
        drifted=sum(a != b for found in waves for a, b in zip(waves[0], found)),
    )


def _hooks(tts: Any) -> int:
    modules = [module for part in (tts.t3, tts.s3gen, tts.ve) for module in part.modules()]
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)
