"""T3, stock against compiled: alternating in one process, on one model, with equal seeds."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..api import compile_model
from ..config import CompileConfig
from ..errors import InputError, TTSCompileError
from ..handle import CompiledTTS
from ..measuring import interleaved
from ..measuring.interleaved import same_states, seconds, timed_call
from ..measuring.progress import Progress, Step
from ..measuring.stats import Ratio, median_of, ratio_of_medians, spread, yes
from ..sample_text import TEXT
from . import processes
from .models import compile_cache, describe, load, new_graphs, only, t3_inputs
from .plots import Plot, Ratios
from .result import INTERVAL, Repeated, Result, Row, Section, option, ran

_LENGTHS = [round(1 + i * 399 / 29) for i in range(30)]  # characters
_SHORT = 8  # speech tokens for each of the texts of these lengths


@dataclass(frozen=True, kw_only=True)
class Settings(Repeated):
    """Settings of the benchmark of T3."""

    tokens: int = option(64, "speech tokens", least=8)
    text: str = option(TEXT, "the text to speak")
    memory: bool = option(True, "leave out the memory of two fresh processes")


@dataclass
class Side:
    """The raw seconds of one side, a value per repeat.

    Attributes:
        tokens: speech tokens of the long call.
        wasted_steps: decoder steps that each call runs beyond those that its tokens need: stock feeds the last token
            back, although it samples nothing after it.
        first: of a call for one token.
        full: of a call for ``tokens`` tokens.
    """

    tokens: int
    wasted_steps: int
    first: list[float] = field(default_factory=list)
    full: list[float] = field(default_factory=list)

    @property
    def step(self) -> list[float]:
        """Returns the seconds of one decoder step; steps that both calls waste cancel out."""
        return [(full - first) / (self.tokens - 1) for first, full in zip(self.first, self.full)]

    @property
    def rate(self) -> list[float]:
        """Returns the decoded tokens per second, without the prompt."""
        return [1 / step for step in self.step]

    @property
    def prefill(self) -> list[float]:
        """Returns the seconds from the call to the first token."""
        return [first - self.wasted_steps * step for first, step in zip(self.first, self.step)]


@dataclass(frozen=True, kw_only=True)
class T3Result(Result):
    """The figures of T3.

    Attributes:
        tokens_identical, generator_identical: in every repeat, for both lengths of call.
        first_call_seconds: ``compile_model`` and the first compiled call, with an empty compile cache.
        warmup_seconds: :meth:`CompiledTTS.warmup` after it.
        later_graphs: graphs compiled after the warm-up, also by 30 texts of 1 to 400 characters.
        peaks: peak memory in bytes of fresh processes by side, None where not measured.
    """

    subject = "t3"
    title = "T3, the token loop"
    called = ("t3",)

    stock: Side
    compiled: Side
    tokens_identical: bool
    generator_identical: bool
    first_call_seconds: float
    warmup_seconds: float
    later_graphs: int
    peaks: dict[str, dict[str, Any]] | None = None

    @property
    def compile_seconds(self) -> float:
        """Returns what the first call costs beyond a later one."""
        return self.first_call_seconds - statistics.median(self.compiled.full)

    @property
    def kept(self) -> bool:
        """Returns whether the compiled side did what stock does."""
        return self.tokens_identical and self.generator_identical and self.later_graphs == 0

    @property
    def gains(self) -> dict[str, Ratio]:
        """Returns how many times better the compiled side is."""
        pairs = {
            "decode": (self.compiled.rate, self.stock.rate),
            "prefill": (self.stock.prefill, self.compiled.prefill),
            "call": (self.stock.full, self.compiled.full),
        }
        return {name: ratio_of_medians(*pair, seed=self.settings.seed) for name, pair in pairs.items()}

    def follows(self) -> dict[str, Any]:
        """Returns gains and medians."""
        plain = {**super().follows(), "compile_seconds": self.compile_seconds}
        for name, side in (("stock", self.stock), ("compiled", self.compiled)):
            plain[name] = {
                **asdict(side),
                "decode_tokens_per_s": asdict(median_of(side.rate)),
                "prefill_s": asdict(median_of(side.prefill)),
                "call_s": asdict(median_of(side.full)),
            }
        return plain

    def sections(self) -> list[Section]:
        """Returns one table."""
        gains, stock, compiled = self.gains, self.stock, self.compiled
        rows: list[Row] = [
            (f"T3, median {INTERVAL}", "stock", "compiled", f"gain {INTERVAL}"),
            ("decode, tokens/s", spread(stock.rate), spread(compiled.rate), gains["decode"]),
            ("prompt to first token, s", spread(stock.prefill), spread(compiled.prefill), gains["prefill"]),
            (f"call of {self.settings.tokens} tokens, s", spread(stock.full), spread(compiled.full), gains["call"]),
            *processes.peak_rows(self.peaks),
            ("first call's extra, cold, s", "", f"{self.compile_seconds:.1f}", ""),
            (f"graphs compiled by {len(_LENGTHS)} later texts", "", str(self.later_graphs), ""),
            ("tokens identical", "", yes(self.tokens_identical), f"{self.settings.repeats} repeats"),
            ("generator state identical", "", yes(self.generator_identical), ""),
        ]
        model = f"{self.model['t3_layers']} layers, {self.model['t3_parameters'] / 1e6:.0f} M parameters"
        note = self.report["components"]["t3"]["note"]
        about = f"{model}, {self.about}; {ran(self.report)}{'; ' * bool(note)}{note}"
        return [Section(rows, [*self.few, about])]

    def plots(self) -> list[Plot]:
        """Returns ratios."""
        return [Ratios("How many times better than stock", self.gains)]


def run(source: str, settings: Settings) -> T3Result:
    """Measures; ``source`` is that of :func:`tts_compile.bench.models.load`.

    Raises:
        InputError: when the model stops before ``settings.tokens`` tokens.
    """
    s = settings
    with compile_cache() as cache_dir, Progress(5 + 4 * s.repeats) as progress:
        progress("loading")
        tts = load(source, s.device)
        config = only("t3", CompileConfig.from_env()).replace(cache_dir=cache_dir)
        fast, attach_seconds = timed_call(s.device, functools.partial(compile_model, tts, config))
        with fast:
            result = _measure(fast, s, attach_seconds, progress)
        del tts, fast
        if not s.memory:
            return result
        progress("memory of fresh processes")
        wanted = processes.Wanted(s.device, s.tokens, s.text, s.seed, cache_dir)
        return replace(result, peaks=processes.peaks(source, wanted))


def _measure(fast: CompiledTTS, settings: Settings, attach_seconds: float, step: Step) -> T3Result:
    n, tts = settings.tokens, fast.wrapped
    t3 = tts.t3
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

    step("first compiled call")
    call("stock", 1)  # not timed: reads the weights into memory for both sides
    first_call = interleaved.call(functools.partial(call, "compiled", n), settings.device, settings.seed)
    step("warm-up")
    warmup = fast.warmup()
    later_graphs = new_graphs(fast)
    ways = {f"{side}, {tokens} tokens": functools.partial(call, side, tokens) for tokens in (1, n) for side in sides}
    done = interleaved.alternate(ways, settings.repeats, step, device=settings.device, seed=settings.seed)
    for name, side in sides.items():
        side.first, side.full = (seconds(done[f"{name}, {tokens} tokens"]) for tokens in (1, n))
        if min(side.step) <= 0:
            raise TTSCompileError(f"{name}: {n} tokens took no longer than 1; measure with more tokens")
    pairs = [(done[f"stock, {tokens} tokens"], done[f"compiled, {tokens} tokens"]) for tokens in (1, n)]
    step("texts of other lengths")
    text = (settings.text + " ") * (_LENGTHS[-1] // len(settings.text) + 1)
    for length in _LENGTHS:
        t3.inference(**t3_inputs(tts, text[:length]), max_new_tokens=_SHORT)
    return T3Result(
        settings=settings,
        model=describe(tts),
        config=fast.config.replace(cache_dir=None).to_dict(),  # it was a temporary one
        stock=sides["stock"],
        compiled=sides["compiled"],
        tokens_identical=all(torch.equal(a.result, b.result) for both in pairs for a, b in zip(*both)),
        generator_identical=all(same_states(*both) for both in pairs),
        first_call_seconds=attach_seconds + first_call.seconds,
        warmup_seconds=warmup.total,
        later_graphs=later_graphs(),
        report=fast.report().to_dict(),
    )
