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
from ..measuring import interleaved as alternation
from ..measuring import machine, stats
from ..measuring.interleaved import same_states, seconds
from ..measuring.stats import Ratio, median_of, ratio_of_medians, spread, yes
from ..sample_text import TEXT
from . import fresh
from .models import Progress, describe, load, only, t3_inputs, timed_call
from .plots import Plot, Ratios
from .section import Cell, Result, Section, ran, where

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
class T3Result(Result):
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
    def title(self) -> str:
        """Of the page."""
        return "T3, the token loop"

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
                "decode_tokens_per_s": asdict(median_of(side.rate)),
                "prefill_s": asdict(median_of(side.prefill)),
                "call_s": asdict(median_of(side.full)),
            }
        plain["gains"] = stats.plain(self.gains)
        return {"bench": "t3", "passed": self.passed, "compile_seconds": self.compile_seconds, **plain}

    def sections(self) -> list[Section]:
        """One table."""
        gains, n = self.gains, self.settings.tokens
        stock, compiled = self.stock, self.compiled
        rows: list[tuple[Cell, ...]] = [
            ("T3, median (95% interval)", "stock", "compiled", "gain (95% interval)"),
            ("decode, tokens/s", spread(stock.rate), spread(compiled.rate), gains["decode"]),
            ("prompt to first token, s", spread(stock.prefill), spread(compiled.prefill), gains["prefill"]),
            (f"call of {n} tokens, s", spread(stock.full), spread(compiled.full), gains["call"]),
        ]
        rows += fresh.peak_rows(self.peaks)
        rows += [
            ("first call's extra, cold, s", "", f"{self.compile_seconds:.1f}", ""),
            (f"graphs compiled by {len(_LENGTHS)} later texts", "", str(self.later_graphs), ""),
            ("tokens identical", "", yes(self.tokens_identical), f"{self.settings.repeats} repeats"),
            ("generator state identical", "", yes(self.generator_identical), ""),
        ]
        model = f"{self.model['t3_layers']} layers, {self.model['t3_parameters'] / 1e6:.0f} M parameters"
        note = self.report["components"]["t3"]["note"]
        about = f"{model}, {where(self.machine, self.model)}; {ran(self.report)}{'; ' * bool(note)}{note}"
        return [Section(rows, [*stats.few(self.settings.repeats), about])]

    def plots(self) -> list[Plot]:
        """Ratios."""
        return [Ratios("How many times better than stock", self.gains)]


def run(source: str, settings: Settings) -> T3Result:
    """Measure; ``source`` as :func:`tts_compile.bench.models.load` takes it.

    Raises:
        InputError: when the model stops before ``settings.tokens`` tokens.
    """
    with (
        tempfile.TemporaryDirectory(prefix="tts-compile-cache-", ignore_cleanup_errors=True) as cache_dir,
        Progress(5 + 4 * settings.repeats) as progress,
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
                peaks = fresh.peaks(
                    source, device=s.device, tokens=s.tokens, text=s.text, seed=s.seed, cache_dir=cache_dir
                )
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

    def call(side: str, tokens: int) -> Tensor:
        spoken = calls[side](**inputs, max_new_tokens=tokens)
        if spoken.shape[1] != tokens:
            raise InputError(
                f"the model stopped after {spoken.shape[1]} of {tokens} tokens: ask for fewer, or less text"
            )
        return spoken.cpu()

    with progress.step("first compiled call"):
        call("stock", 1)  # un-timed: pages in the weights for both sides
        first_call = alternation.call(functools.partial(call, "compiled", n), settings.device, settings.seed)
    with progress.step("warm-up"):
        warmup = fast.warmup()
    ways = {f"{side}, {tokens} tokens": functools.partial(call, side, tokens) for tokens in (1, n) for side in sides}
    done = alternation.alternate(ways, settings.repeats, progress, device=settings.device, seed=settings.seed)
    for name, side in sides.items():
        side.first, side.full = (seconds(done[f"{name}, {tokens} tokens"]) for tokens in (1, n))
        if min(side.step) <= 0:
            raise TTSCompileError(f"{name}: {n} tokens took no longer than 1; measure with more tokens")
    pairs = [(done[f"stock, {tokens} tokens"], done[f"compiled, {tokens} tokens"]) for tokens in (1, n)]
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
        "tokens_identical": all(torch.equal(a.result, b.result) for both in pairs for a, b in zip(*both)),
        "generator_identical": all(same_states(*both) for both in pairs),
        "first_call_seconds": attach_seconds + first_call.seconds,
        "warmup_seconds": warmup.total,
        "later_graphs": later_graphs,
        "report": fast.report().to_dict(),
    }
