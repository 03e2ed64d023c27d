"""What one utterance's time is spent on, heard at the calls that stock ``generate`` makes, the same on both sides."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..components.seam import Seam, attach_all, detach_all
from ..measuring.stats import Ratio, median_of, ratio_of_medians, spread
from .models import timed_call
from .plots import Stages
from .section import Cell

STAGES = ("T3", "flow", "vocoder", "watermark", "rest")


@dataclass
class Heard:
    """Of the calls inside a block.

    Attributes:
        seconds: by stage, the rest not counted; the device's queue is emptied around every stage.
        tokens: speech tokens of each call of T3.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES[:-1], 0.0))
    tokens: list[list[int]] = field(default_factory=list)


@contextlib.contextmanager
def listening(tts: Any) -> Iterator[Heard]:
    """Hear what ``tts`` does inside the block, stock or compiled, as it stands when the block is entered."""
    heard = Heard()
    device = str(tts.device)

    def tap(stage: str, owner: Any, method: str) -> Seam:
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            result, seconds = timed_call(device, lambda: inner(*args, **kwargs))
            heard.seconds[stage] += seconds
            if stage == "T3":
                heard.tokens.append(result[0].tolist())
            return result

        return Seam(owner, method, timed)

    taps = [
        tap("T3", tts.t3, "inference"),
        tap("flow", tts.s3gen.flow, "inference"),
        tap("vocoder", tts.s3gen.mel2wav, "inference"),
        tap("watermark", tts.watermarker, "apply_watermark"),
    ]
    attach_all(taps)
    try:
        yield heard
    finally:
        detach_all(taps)


def by_stage(splits: Iterable[dict[str, float]], totals: Iterable[float]) -> dict[str, list[float]]:
    """Seconds in every stage, the rest of each total included; a value per repeat."""
    whole = [{**split, STAGES[-1]: total - sum(split.values())} for split, total in zip(splits, totals)]
    return {stage: [split[stage] for split in whole] for stage in STAGES}


Seconds = Mapping[str, Sequence[float]]  # by stage, a value per repeat


def gains(stock: Seconds, compiled: Seconds, seed: int) -> dict[str, Ratio]:
    """How many times faster each stage is that took any time; the rest is no stage of its own."""
    both = {stage: (stock[stage], compiled[stage]) for stage in STAGES[:-1] if min(compiled[stage]) > 0}
    return {stage: ratio_of_medians(*pair, seed=seed) for stage, pair in both.items()}


def rows(stock: Seconds, compiled: Seconds, seed: int) -> list[tuple[Cell, ...]]:
    """Of a table with a column for each side and one for gains."""
    found = gains(stock, compiled, seed)
    return [(f"in {s}, s", spread(stock[s]), spread(compiled[s]), found.get(s, "")) for s in STAGES]


def plot(title: str, sides: Mapping[str, Seconds]) -> Stages:
    """Medians, as bars."""
    return Stages(
        title, {side: {stage: median_of(parts[stage]).value for stage in STAGES} for side, parts in sides.items()}
    )
