"""T3, stock against compiled: alternating in one process, on one model, with equal seeds."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from ..errors import InputError, TTSCompileError
from ..handle import CompiledTTS
from ..measuring.interleaved import seconds
from ..measuring.progress import Step
from ..measuring.stats import median_of
from ..sample_text import TEXT
from . import pairs
from .models import t3_inputs
from .pairs import PairResult, Work
from .result import Repeated, option
from .stages import Made

_LENGTHS = [round(1 + i * 399 / 29) for i in range(30)]  # characters
_SHORT = 8  # speech tokens for each of the texts of these lengths


@dataclass(frozen=True, kw_only=True)
class Settings(Repeated):
    """Settings of the benchmark of T3."""

    tokens: int = option(64, "speech tokens", least=8)
    text: str = option(TEXT, "the text to speak")


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
    first: list[float]
    full: list[float]

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
class T3Result(PairResult):
    """The figures of T3, for calls of one token and of many."""

    subject = "t3"
    title = "T3, the token loop"
    called = ("t3",)
    titles: ClassVar[Mapping[str, str]] = {
        "decode": "decode, tokens/s",
        "prefill": "prompt to first token, s",
        "call": "the whole call, s",
    }
    more_is_better = ("decode",)
    varied = f", {len(_LENGTHS)} other texts included"

    stock: Side
    compiled: Side

    @property
    def heading(self) -> str:
        """Returns the number of tokens."""
        return f"T3, {self.settings.tokens} tokens"

    @property
    def values(self) -> dict[str, Sequence[Sequence[float]]]:
        """Returns tokens a second, and the seconds of prompt and call."""
        stock, compiled = self.stock, self.compiled
        return {
            "decode": (stock.rate, compiled.rate),
            "prefill": (stock.prefill, compiled.prefill),
            "call": (stock.full, compiled.full),
        }

    def follows(self) -> dict[str, Any]:
        """Returns gains and medians."""
        plain = {**super().follows(), "tokens_identical": self.tokens_identical == 2}
        for name, side in (("stock", self.stock), ("compiled", self.compiled)):
            plain[name] = {
                **asdict(side),
                "decode_tokens_per_s": asdict(median_of(side.rate)),
                "prefill_s": asdict(median_of(side.prefill)),
                "call_s": asdict(median_of(side.full)),
            }
        return plain


def run(source: str, settings: Settings) -> T3Result:
    """Measures; ``source`` is that of :func:`tts_compile.bench.models.load`.

    Raises:
        InputError: when the model stops before ``settings.tokens`` tokens.
    """
    return pairs.run(source, settings, _measure, "t3")


def _measure(fast: CompiledTTS, settings: Settings, step: Step, attach_seconds: float) -> T3Result:
    n, tts = settings.tokens, fast.wrapped
    inputs, inference = t3_inputs(tts, settings.text), pairs.inference(tts.t3)
    # Where the configuration switches T3 off, the compiled side is stock, and wastes a step too.
    wasted_steps = {"stock": 1, "compiled": int("inference" not in vars(tts.t3))}

    def speak(tokens: int, side: str) -> Made:
        spoken = inference[side](**inputs, max_new_tokens=tokens)
        if spoken.shape[1] != tokens:
            raise InputError(
                f"the model stopped after {spoken.shape[1]} of {tokens} tokens: ask for fewer, or less text"
            )
        return Made(tokens=spoken.tolist())

    def vary() -> None:
        text = (settings.text + " ") * (_LENGTHS[-1] // len(settings.text) + 1)
        for length in _LENGTHS:
            tts.t3.inference(**t3_inputs(tts, text[:length]), max_new_tokens=_SHORT)

    work = Work([functools.partial(speak, tokens) for tokens in (1, n)], vary=vary)
    done = pairs.call_in_turn(fast, settings, step, work, attach_seconds)
    sides: dict[str, Any] = {
        side: Side(n, wasted_steps[side], *map(seconds, calls)) for side, calls in done.sides.items()
    }
    for name, side in sides.items():
        if min(side.step) <= 0:
            raise TTSCompileError(f"{name}: {n} tokens took no longer than 1; measure with more tokens")
    return T3Result(**done.figures, **sides)
