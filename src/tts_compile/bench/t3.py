"""T3, stock against compiled: alternating in one process, on one model, with equal seeds."""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import _compat
from ..api import compile_model
from ..config import CompileConfig
from ..errors import InputError, TTSCompileError
from ..handle import CompiledTTS
from . import machine, memory
from .models import Progress, describe, generator_states, load, only, t3_inputs, timed_call
from .stats import Ratio, Spread, markdown_table, ratio_of_medians, spread, yes

TEXT = "The quick brown fox jumps over the lazy dog, and then it takes a long nap in the warm sun."
_LENGTHS = [round(1 + i * 399 / 29) for i in range(30)]  # characters
_SHORT = 8  # speech tokens for each of the texts of these lengths


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    device: str = "cpu"
    repeats: int = 5
    tokens: int = 64
    text: str = TEXT
    seed: int = 0
    memory: bool = True


@dataclass
class Side:
    """One side's raw seconds, a value per repeat.

    Attributes:
        tokens: speech tokens of the long call.
        wasted_steps: decoder steps that each call runs beyond those that its tokens need. Stock feeds the last
            token back although nothing is sampled from it any more.
        first: of a call for one token.
        full: of a call for ``tokens`` tokens.
    """

    tokens: int
    wasted_steps: int
    first: list[float] = field(default_factory=list)
    full: list[float] = field(default_factory=list)

    @property
    def step(self) -> list[float]:
        """Seconds of one decoder step; what both calls waste alike cancels out."""
        return [(full - first) / (self.tokens - 1) for first, full in zip(self.first, self.full)]

    @property
    def rate(self) -> list[float]:
        """Decoded tokens per second, the prompt not counted."""
        return [1 / step for step in self.step]

    @property
    def prefill(self) -> list[float]:
        """Seconds from the call to the first token."""
        return [first - self.wasted_steps * step for first, step in zip(self.first, self.step)]


@dataclass(frozen=True)
class T3Result:
    """Everything measured; :meth:`to_dict` is JSON-able, ``str()`` a table.

    Attributes:
        tokens_identical, generator_identical: in every repeat, for both lengths of call.
        first_call_seconds: ``compile_model`` and the first compiled call of all, with an empty compile cache.
        warmup_seconds: :meth:`CompiledTTS.warmup` after it.
        later_graphs: graphs compiled while speaking 30 texts of 1 to 400 characters after the warm-up.
        peaks: peak memory in bytes of fresh processes by side, None where not measured.
        report: the execution report as plain values.
    """

    settings: Settings
    model: dict[str, Any]
    machine: dict[str, Any]
    config: dict[str, Any]
    stock: Side
    compiled: Side
    tokens_identical: bool
    generator_identical: bool
    first_call_seconds: float
    warmup_seconds: float
    later_graphs: int
    peaks: dict[str, dict[str, Any]] | None
    report: dict[str, Any]

    @property
    def compile_seconds(self) -> float:
        """What the first call costs beyond a later one."""
        return self.first_call_seconds - statistics.median(self.compiled.full)

    @property
    def passed(self) -> bool:
        """Whether the compiled side did what stock does; speed is no part of it."""
        return self.tokens_identical and self.generator_identical and self.later_graphs == 0

    @property
    def gains(self) -> dict[str, Ratio]:
        """How many times better the compiled side is."""
        pairs = {
            "decode": (self.compiled.rate, self.stock.rate),
            "prefill": (self.stock.prefill, self.compiled.prefill),
            "call": (self.stock.full, self.compiled.full),
        }
        return {name: ratio_of_medians(*pair, seed=self.settings.seed) for name, pair in pairs.items()}

    def to_dict(self) -> dict[str, Any]:
        """Raw values and what follows from them."""
        plain = asdict(self)
        for name, side in (("stock", self.stock), ("compiled", self.compiled)):
            plain[name] |= {
                "decode_tokens_per_s": asdict(Spread.of(side.rate)),
                "prefill_s": asdict(Spread.of(side.prefill)),
                "call_s": asdict(Spread.of(side.full)),
            }
        plain["gains"] = {name: {**asdict(gain), "verdict": gain.verdict} for name, gain in self.gains.items()}
        return {"bench": "t3", "passed": self.passed, "compile_seconds": self.compile_seconds, **plain}

    def __str__(self) -> str:
        gains, n = self.gains, self.settings.tokens
        stock, compiled = self.stock, self.compiled
        rows = [
            ("T3, median (min to max)", "stock", "compiled", "gain (95% interval)"),
            ("decode, tokens/s", spread(stock.rate), spread(compiled.rate), str(gains["decode"])),
            ("prompt to first token, s", spread(stock.prefill), spread(compiled.prefill), str(gains["prefill"])),
            (f"call of {n} tokens, s", spread(stock.full), spread(compiled.full), str(gains["call"])),
        ]
        rows += memory.table_rows(self.peaks)
        rows += [
            ("first call's extra, cold, s", "", f"{self.compile_seconds:.1f}", ""),
            (f"graphs compiled by {len(_LENGTHS)} later texts", "", str(self.later_graphs), ""),
            ("tokens identical", "", yes(self.tokens_identical), f"{self.settings.repeats} repeats"),
            ("generator state identical", "", yes(self.generator_identical), ""),
        ]
        ran = self.report["components"]["t3"]
        about, versions = self.machine, self.machine["versions"]
        model = f"{self.model['t3_layers']} layers, {self.model['t3_parameters'] / 1e6:.0f} M parameters"
        return "\n".join([
            markdown_table(rows),
            "",
            f"{model}, {self.model['dtype']}, {self.model['device']}; {about['cpu']}, "
            f"{about['torch_threads']} threads; torch {versions['torch']}, "
            f"chatterbox-tts {versions['chatterbox-tts']}; ran: {ran['ran']}{'; ' * bool(ran['note'])}{ran['note']}",
        ])  # fmt: skip


def run(source: str, settings: Settings) -> T3Result:
    """Measure; ``source`` as :func:`tts_compile.bench.models.load` takes it.

    Raises:
        InputError: when the model stops before ``settings.tokens`` tokens.
    """
    with (
        tempfile.TemporaryDirectory(prefix="tts-compile-cache-", ignore_cleanup_errors=True) as cache_dir,
        Progress(5 + settings.repeats) as progress,
    ):
        with progress.step("loading"):
            tts = load(source, settings.device)
        config = only("t3", CompileConfig.from_env()).replace(cache_dir=cache_dir)
        fast, attach_seconds = timed_call(settings.device, functools.partial(compile_model, tts, config))
        with fast:
            result = _measure(tts, fast, settings, config, attach_seconds, progress)
        peaks = None
        with progress.step("memory of fresh processes"):
            del tts, fast
            if settings.memory:
                s = settings
                peaks = {
                    side: memory.measure_in_child(
                        source, side, device=s.device, tokens=s.tokens, text=s.text, seed=s.seed, cache_dir=cache_dir
                    )
                    for side in ("stock", "compiled")
                }
    return T3Result(peaks=peaks, **result)


def _measure(
    tts: Any, fast: CompiledTTS, settings: Settings, config: CompileConfig, attach_seconds: float, progress: Progress
) -> dict[str, Any]:
    n, t3 = settings.tokens, tts.t3
    inputs = t3_inputs(tts, settings.text)
    calls: dict[str, Callable[..., Tensor]] = {
        "stock": lambda **kwargs: type(t3).inference(t3, **kwargs),
        "compiled": t3.inference,
    }
    stock_in_both = "inference" not in vars(t3)  # switched off by configuration
    sides = {"stock": Side(n, wasted_steps=1), "compiled": Side(n, wasted_steps=int(stock_in_both))}

    def call(side: str, tokens: int) -> tuple[Tensor, list[Tensor], float]:
        torch.manual_seed(settings.seed)
        spoken, seconds = timed_call(settings.device, lambda: calls[side](**inputs, max_new_tokens=tokens))
        if spoken.shape[1] != tokens:
            raise InputError(
                f"the model stopped after {spoken.shape[1]} of {tokens} tokens: ask for fewer, or less text"
            )
        return spoken.cpu(), generator_states(), seconds

    with progress.step("first compiled call"):
        call("stock", 1)  # un-timed: pages in the weights for both sides
        _, _, first_call = call("compiled", n)
    with progress.step("warm-up"):
        warmup = fast.warmup()
    tokens_identical = generator_identical = True
    for repeat in range(settings.repeats):
        with progress.step(f"repeat {repeat + 1} of {settings.repeats}"):
            order = ("stock", "compiled") if repeat % 2 == 0 else ("compiled", "stock")  # neither always goes first
            for tokens in (1, n):
                spoken, states = {}, {}
                for name in order:
                    spoken[name], states[name], seconds = call(name, tokens)
                    (sides[name].first if tokens == 1 else sides[name].full).append(seconds)
                tokens_identical &= torch.equal(spoken["stock"], spoken["compiled"])
                generator_identical &= all(map(torch.equal, states["stock"], states["compiled"]))
    for name, side in sides.items():
        if min(side.step) <= 0:
            raise TTSCompileError(f"{name}: {n} tokens took no longer than 1; measure with more tokens")
    with progress.step("texts of other lengths"):
        graphs, _ = _compat.graph_counts()
        prose = (settings.text + " ") * (_LENGTHS[-1] // len(settings.text) + 1)
        for length in _LENGTHS:
            t3.inference(**t3_inputs(tts, prose[:length]), max_new_tokens=_SHORT)
        later_graphs = _compat.graph_counts()[0] - graphs
    return {
        "settings": settings,
        "model": describe(tts),
        "machine": machine.describe(),
        "config": config.replace(cache_dir=None).to_dict(),  # it was a temporary one
        "stock": sides["stock"],
        "compiled": sides["compiled"],
        "tokens_identical": tokens_identical,
        "generator_identical": generator_identical,
        "first_call_seconds": attach_seconds + first_call,
        "warmup_seconds": warmup.total,
        "later_graphs": later_graphs,
        "report": fast.report().to_dict(),
    }
