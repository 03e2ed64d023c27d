"""The stages of an utterance, timed at the calls that stock ``generate`` makes, in the same way on both sides."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..components.seam import Replacement
from ..measuring.interleaved import timed_call
from ..measuring.stats import Ratio, median_of, ratio_of_medians, spread
from ..utils.patch import patched
from .plots import Stages
from .result import Row

STAGES = ("T3", "flow", "vocoder", "watermark", "rest")
Seconds = Mapping[str, Sequence[float]]  # by stage, a value per repeat


@dataclass
class Watched:
    """The calls inside a block.

    Attributes:
        seconds: by stage, without the rest; the device's queue is emptied around every stage.
        tokens: speech tokens of each call of T3.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES[:-1], 0.0))
    tokens: list[list[int]] = field(default_factory=list)


@contextlib.contextmanager
def watched(tts: Any) -> Iterator[Watched]:
    """Times the stages of ``tts``, stock or compiled, inside the block."""
    found = Watched()
    device = str(tts.device)

    def tap(stage: str, owner: Any, method: str) -> None:
        replaced = vars(owner).get(method)
        if isinstance(replaced, Replacement):  # stays, or the module's weights would count as changed
            owner, method = replaced, "function"
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            result, seconds = timed_call(device, lambda: inner(*args, **kwargs))
            found.seconds[stage] += seconds
            if stage == "T3":
                found.tokens.append(result[0].tolist())
            return result

        taps.enter_context(patched(owner, method, timed))

    with contextlib.ExitStack() as taps:
        tap("T3", tts.t3, "inference")
        tap("flow", tts.s3gen.flow, "inference")
        tap("vocoder", tts.s3gen.mel2wav, "inference")
        tap("watermark", tts.watermarker, "apply_watermark")
        yield found


def by_stage(splits: Sequence[Mapping[str, float]], totals: Sequence[float]) -> dict[str, list[float]]:
    """Returns the seconds in every stage, with the rest of each total; a value per repeat."""
    whole = [{**split, STAGES[-1]: total - sum(split.values())} for split, total in zip(splits, totals)]
    return {stage: [split[stage] for split in whole] for stage in STAGES}


def gains(stock: Seconds, compiled: Seconds, seed: int) -> dict[str, Ratio]:
    """Returns how many times faster each stage is that took any time."""
    both = {stage: (stock[stage], compiled[stage]) for stage in STAGES[:-1] if min(compiled[stage]) > 0}
    return {stage: ratio_of_medians(*pair, seed=seed) for stage, pair in both.items()}


def rows(stock: Seconds, compiled: Seconds, seed: int) -> list[Row]:
    """Returns a table's rows with a column for each side and one for gains."""
    found = gains(stock, compiled, seed)
    return [(f"in {s}, s", spread(stock[s]), spread(compiled[s]), found.get(s, "")) for s in STAGES]


def plot(title: str, sides: Mapping[str, Seconds]) -> Stages:
    """Returns bars of the medians."""
    parts = {side: {stage: median_of(seconds[stage]).value for stage in STAGES} for side, seconds in sides.items()}
    return Stages(title, parts)
