"""The stages of an utterance, timed at the calls that stock ``generate`` makes, in the same way on both sides."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..components.seam import Replacement
from ..measuring.interleaved import timed_call
from ..utils.patch import patched

STAGES = ("T3", "flow", "vocoder", "watermark", "rest")


@dataclass
class Made:
    """The results of one measured call.

    Attributes:
        audio: mel frames or a wave, on the CPU; several waves for several texts.
        tokens: speech tokens of each call of T3.
        seconds: by stage, without the rest; the device's queue is emptied around every stage.
    """

    audio: list[Tensor] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES[:-1], 0.0))


@contextlib.contextmanager
def watched(tts: Any) -> Iterator[Made]:
    """Yields the tokens of ``tts``, stock or compiled, and the seconds of its stages inside the block."""
    found = Made()
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
