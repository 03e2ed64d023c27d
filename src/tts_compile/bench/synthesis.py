"""Flow, vocoder, or the whole ``generate``, stock against compiled: alternating, on one model, with equal seeds."""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .. import _compat
from ..api import compile_model
from ..config import CompileConfig
from ..errors import InputError
from ..handle import CompiledTTS
from ..measuring import interleaved as alternation
from ..measuring import machine, stats
from ..measuring.interleaved import same_states
from ..measuring.stats import Ratio, ratio_of_medians, spread, yes
from ..parity.metrics import lowest_db
from ..sample_text import TEXT
from . import fresh, stages
from .models import Progress, describe, load, only, timed_call
from .plots import Plot, Ratios
from .section import Cell, Result, Section, ran, where

SUBJECTS = ("flow", "vocoder", "e2e")
LEAST_DB = 60.0  # of signal to error against stock
_LENGTHS = [4 + 13 * i for i in range(20)]  # speech tokens
_FRAMES_PER_TOKEN = 2


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        subject: one of :data:`SUBJECTS`.
        device: where the model runs.
        repeats: of both sides.
        tokens: speech tokens, 25 a second; for ``"e2e"`` the model decides.
        text: what is spoken, ``"e2e"`` only.
        seed: of every call.
        memory: measure it in fresh processes, ``"e2e"`` only.
    """

    subject: str
    device: str = "cpu"
    repeats: int = 5
    tokens: int = 125
    text: str = TEXT
    seed: int = 0
    memory: bool = True


@dataclass(frozen=True)
class SynthesisResult(Result):
    """Everything measured; :meth:`to_dict` is JSON-able, ``str()`` a table.

    Attributes:
        stock, compiled: seconds of a call, a value per repeat.
        audio_seconds: what a call makes.
        reference_seconds: of the voice.
        signal_to_error_db: the lowest of the repeats, of mel frames (flow) or the wave; None where shapes differ.
        generator_identical: in every repeat.
        tokens_identical: in every repeat; None where no tokens are spoken.
        first_call_seconds: ``compile_model`` and the first call of all, with an empty compile cache.
        warmup_seconds: :meth:`CompiledTTS.warmup` after it.
        later_graphs: graphs compiled for 20 other lengths after the warm-up; None for ``"e2e"``.
        stages: seconds in each stage by side, a value per repeat; ``"e2e"`` only.
        peaks: peak memory in bytes of fresh processes by side, None where not measured.
        report: the execution report as plain values.
    """

    settings: Settings
    model: dict[str, Any]
    machine: dict[str, Any]
    config: dict[str, Any]
    stock: list[float]
    compiled: list[float]
    audio_seconds: float
    reference_seconds: float
    signal_to_error_db: float | None
    generator_identical: bool
    tokens_identical: bool | None
    first_call_seconds: float
    warmup_seconds: float
    later_graphs: int | None
    report: dict[str, Any]
    stages: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    peaks: dict[str, dict[str, Any]] | None = None

    @property
    def title(self) -> str:
        """Of the page."""
        return {"flow": "Flow", "vocoder": "Vocoder", "e2e": "The whole generate"}[self.settings.subject]

    @property
    def compile_seconds(self) -> float:
        """What the first call costs beyond a later one."""
        return self.first_call_seconds - statistics.median(self.compiled)

    @property
    def gain(self) -> Ratio:
        """How many times faster the compiled side is."""
        return ratio_of_medians(self.stock, self.compiled, seed=self.settings.seed)

    @property
    def passed(self) -> bool:
        """Whether the compiled side did what stock does; speed is no part of it."""
        alike = self.signal_to_error_db is not None and self.signal_to_error_db >= LEAST_DB
        return alike and self.generator_identical and self.tokens_identical is not False and not self.later_graphs

    def to_dict(self) -> dict[str, Any]:
        """Raw values and what follows from them; an infinite ratio is None beside ``bit_identical``."""
        plain = asdict(self)
        plain["bit_identical"] = self.signal_to_error_db == math.inf
        if plain["bit_identical"]:
            plain["signal_to_error_db"] = None
        derived = {"compile_seconds": self.compile_seconds, "gain": self.gain.to_dict()}
        return {"bench": self.settings.subject, "passed": self.passed, **derived, **plain}

    def sections(self) -> list[Section]:
        """One table."""
        what = {"flow": "tokens to mel", "vocoder": "mel to wave", "e2e": "text to wave"}[self.settings.subject]
        title = f"{what}, {self.audio_seconds:.2f} s of speech, median (95% interval)"
        ratio = self.signal_to_error_db
        rows: list[tuple[Cell, ...]] = [
            (title, "stock", "compiled", "gain (95% interval)"),
            ("seconds", spread(self.stock), spread(self.compiled), self.gain),
            *(stages.rows(self.stages["stock"], self.stages["compiled"], self.settings.seed) if self.stages else ()),
            *fresh.peak_rows(self.peaks),
            ("first call's extra, cold, s", "", f"{self.compile_seconds:.1f}", ""),
            ("signal to error", "", "shapes differ" if ratio is None else f"{ratio:.1f} dB", ""),
            ("generator state identical", "", yes(self.generator_identical), f"{self.settings.repeats} repeats"),
        ]
        if self.tokens_identical is not None:
            rows.append(("tokens identical", "", yes(self.tokens_identical), f"{self.settings.repeats} repeats"))
        if self.later_graphs is not None:
            rows.append((f"graphs compiled for {len(_LENGTHS)} other lengths", "", str(self.later_graphs), ""))
        model = self.model
        about = (
            f"T3 {model['t3_parameters'] / 1e6:.0f} M, S3Gen {model['s3gen_parameters'] / 1e6:.0f} M parameters, "
            f"{self.reference_seconds:.0f} s reference, {where(self.machine, model)}; {ran(self.report)}"
        )
        return [Section(rows, [*stats.few(self.settings.repeats), about])]

    def plots(self) -> list[Plot]:
        """Ratios, and stages where there are any."""
        whole = {self.title: self.gain}
        if not self.stages:
            return [Ratios("How many times faster than stock", whole)]
        parts = stages.gains(self.stages["stock"], self.stages["compiled"], self.settings.seed)
        return [
            stages.plot("What the time is spent on", self.stages),
            Ratios("How many times faster than stock", whole | parts),
        ]


@dataclass
class _Subject:
    """How to call what is measured.

    Attributes:
        call: on one side, to mel frames or a wave.
        audio_seconds: of its last result.
        tokens: spoken in each call, where any are.
        vary: makes calls of other lengths on the compiled side.
        stages: seconds in each stage of each call by side, where a call has stages.
    """

    call: Callable[[str], Tensor]
    audio_seconds: Callable[[Tensor], float]
    tokens: list[tuple[int, ...]] = field(default_factory=list)
    vary: Callable[[], None] | None = None
    stages: dict[str, list[dict[str, float]]] = field(default_factory=dict)


def run(source: str, settings: Settings) -> SynthesisResult:
    """Measure; ``source`` as :func:`tts_compile.bench.models.load` takes it."""
    if settings.subject not in SUBJECTS:
        raise InputError(f"unknown subject {settings.subject!r}; there are {', '.join(SUBJECTS)}")
    with (
        tempfile.TemporaryDirectory(prefix="tts-compile-cache-", ignore_cleanup_errors=True) as cache_dir,
        Progress(5 + 2 * settings.repeats) as progress,
    ):
        with progress.step("loading"):
            tts = load(source, settings.device)
        config = CompileConfig.from_env().replace(cache_dir=cache_dir)
        if settings.subject != "e2e":
            config = only(settings.subject, config)
        fast, attach_seconds = timed_call(settings.device, functools.partial(compile_model, tts, config))
        with fast:
            result = _measure(tts, fast, settings, config, attach_seconds, progress)
        if settings.subject != "e2e" or not settings.memory:
            return result
        del tts, fast
        with progress.step("memory of fresh processes"):
            s = settings
            peaks = fresh.peaks(source, device=s.device, tokens=None, text=s.text, seed=s.seed, cache_dir=cache_dir)
        return replace(result, peaks=peaks)


def _measure(
    tts: Any, fast: CompiledTTS, settings: Settings, config: CompileConfig, attach_seconds: float, progress: Progress
) -> SynthesisResult:
    subject = {"flow": _flow, "vocoder": _vocoder, "e2e": _e2e}[settings.subject](tts, fast, settings)

    def call(side: str) -> Tensor:
        return subject.call(side).cpu()

    with progress.step("first calls"):
        call("stock")  # un-timed: pages in the weights and sets up libraries for both sides
        first_call = alternation.call(functools.partial(call, "compiled"), settings.device, settings.seed)
    with progress.step("warm-up"):
        warmup = fast.warmup()
    subject.tokens.clear()
    for splits in subject.stages.values():
        splits.clear()
    ways = {side: functools.partial(call, side) for side in ("stock", "compiled")}
    calls = alternation.alternate(ways, settings.repeats, progress, device=settings.device, seed=settings.seed)
    seconds = {side: alternation.seconds(done) for side, done in calls.items()}
    later_graphs = None
    with progress.step("other lengths"):
        if subject.vary:
            graphs, _ = _compat.graph_counts()
            subject.vary()
            later_graphs = _compat.graph_counts()[0] - graphs
    return SynthesisResult(
        settings=settings,
        model=describe(tts),
        machine=machine.describe(),
        config=config.replace(cache_dir=None).to_dict(),  # it was a temporary one
        stock=seconds["stock"],
        compiled=seconds["compiled"],
        audio_seconds=subject.audio_seconds(calls["stock"][-1].result),
        reference_seconds=tts.conds.gen["prompt_feat"].shape[1] / (25 * _FRAMES_PER_TOKEN),
        signal_to_error_db=lowest_db((a.result, b.result) for a, b in zip(*calls.values())),
        generator_identical=same_states(*calls.values()),
        tokens_identical=len(set(subject.tokens)) == 1 if subject.tokens else None,
        first_call_seconds=attach_seconds + first_call.seconds,
        warmup_seconds=warmup.total,
        later_graphs=later_graphs,
        report=fast.report().to_dict(),
        stages={side: stages.by_stage(splits, seconds[side]) for side, splits in subject.stages.items()},
    )


def _sides(module: Any) -> dict[str, Callable[..., Any]]:
    return {"stock": functools.partial(type(module).inference, module), "compiled": module.inference}


def _flow(tts: Any, fast: CompiledTTS, settings: Settings) -> _Subject:  # noqa: ARG001 - as the others
    inference = _sides(tts.s3gen.flow)

    def speak(side: str, count: int, steps: int) -> Tensor:
        generator = torch.Generator().manual_seed(settings.seed)
        token = torch.randint(0, tts.s3gen.flow.vocab_size, (1, count), generator=generator).to(tts.device)
        length = torch.tensor([count], device=tts.device)
        with torch.inference_mode():
            mel: Tensor
            mel, _ = inference[side](token=token, token_len=length, finalize=True, n_timesteps=steps, **tts.conds.gen)
            return mel

    def vary() -> None:
        for count in _LENGTHS:
            speak("compiled", count, 1)  # one solver step has the shapes of ten

    return _Subject(
        lambda side: speak(side, settings.tokens, 10), lambda mel: mel.shape[2] / (25 * _FRAMES_PER_TOKEN), vary=vary
    )


def _vocoder(tts: Any, fast: CompiledTTS, settings: Settings) -> _Subject:  # noqa: ARG001 - as the others
    inference = _sides(tts.s3gen.mel2wav)
    prompt = tts.conds.gen["prompt_feat"].transpose(1, 2)

    def speak(side: str, tokens: int) -> Tensor:
        frames = tokens * _FRAMES_PER_TOKEN
        mel = prompt.repeat(1, 1, -(-frames // prompt.shape[2]))[..., :frames].contiguous()
        with torch.inference_mode():
            wave: Tensor
            wave, _ = inference[side](speech_feat=mel, cache_source=torch.zeros(1, 1, 0, device=mel.device))
            return wave

    def vary() -> None:
        for count in _LENGTHS:
            speak("compiled", count)

    return _Subject(lambda side: speak(side, settings.tokens), lambda wave: wave.shape[1] / tts.sr, vary=vary)


def _e2e(tts: Any, fast: CompiledTTS, settings: Settings) -> _Subject:
    spoken: list[tuple[int, ...]] = []
    heard: dict[str, list[dict[str, float]]] = {"stock": [], "compiled": []}

    def speak(side: str) -> Tensor:
        with fast.stock() if side == "stock" else contextlib.nullcontext(fast) as model, stages.listening(tts) as call:
            wave: Tensor = model.generate(settings.text)
        spoken.extend(tuple(tokens) for tokens in call.tokens)
        heard[side].append(call.seconds)
        return wave

    return _Subject(speak, lambda wave: wave.shape[1] / tts.sr, tokens=spoken, stages=heard)
