"""T3, stock against compiled: alternating in one process, on one model, with equal seeds."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from ..errors import InputError, TTSCompileError
from ..measuring.interleaved import seconds
from ..measuring.stats import median_of
from ..sample_text import TEXT
from . import pairs
from .models import Compiled, compiled_model, t3_inputs
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


def figures(first: list[float], full: list[float], tokens: int, wasted_steps: int) -> dict[str, Any]:
    """Returns the figures of one side, by the names of :attr:`T3Result.titles`, with the raw ones.

    Args:
        first: seconds of calls for one token.
        full: seconds of calls for ``tokens`` tokens.
        tokens: speech tokens of the long call.
        wasted_steps: decoder steps that each call runs beyond those that its tokens need: stock feeds the last token
            back, although it samples nothing after it. Those of both calls cancel out.
    """
    steps = [(long - short) / (tokens - 1) for short, long in zip(first, full)]
    if min(steps) <= 0:
        raise TTSCompileError(f"{tokens} tokens took no longer than 1; measure with more tokens")
    return {
        "tokens": tokens,
        "wasted_steps": wasted_steps,
        "first": first,
        "full": full,
        "decode": [1 / step for step in steps],
        "prefill": [short - wasted_steps * step for short, step in zip(first, steps)],
        "call": full,
    }


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

    @property
    def heading(self) -> str:
        """Returns the number of tokens."""
        return f"T3, {self.settings.tokens} tokens"

    def follows(self) -> dict[str, Any]:
        """Returns gains, raw values and medians."""
        plain = {**super().follows(), "tokens_identical": self.tokens_identical == 2}
        for name, side in self.sides.items():
            medians = {"decode_tokens_per_s": "decode", "prefill_s": "prefill", "call_s": "call"}
            plain[name] = side | {key: asdict(median_of(side[value])) for key, value in medians.items()}
        return plain


def run(source: str, settings: Settings) -> T3Result:
    """Measures; ``source`` is that of :func:`tts_compile.bench.models.load`.

    Raises:
        InputError: when the model stops before ``settings.tokens`` tokens.
    """
    with compiled_model(source, settings.device, "t3") as model:
        return _measure(model, settings)


def _measure(model: Compiled, settings: Settings) -> T3Result:
    n, tts = settings.tokens, model.fast.wrapped
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
    done = pairs.call_in_turn(model, settings, work)
    sides = {}
    for side, (first, full) in done.sides.items():
        sides[side] = figures(seconds(first), seconds(full), n, wasted_steps[side])
    return T3Result(**done.figures, sides=sides)
