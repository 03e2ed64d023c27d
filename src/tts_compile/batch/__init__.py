"""Generates speech for many texts at once, through the components that generate one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..attachment import Attachment
from ..components.seam import not_its_own
from ..timing.blocks import Stopwatch
from ..utils.random_state import RandomNumbers
from .chunk import Chunk, collect
from .pipeline import BatchPipeline
from .progress import BatchProgress, progress_display

__all__ = ["BatchProgress", "Chunk", "collect", "generate_chunks"]


def generate_chunks(
    attachment: Attachment,
    texts: Sequence[Any],
    seeds: Sequence[int],
    *,
    given: Mapping[str, Any],
    max_batch: int | None,
    progress: bool | Callable[[BatchProgress], object],
) -> list[Chunk]:
    """Returns a chunk with a wave or an error for every text.

    Args:
        attachment: of the model, whose family has a speech model.
        texts: the texts, not checked yet.
        seeds: one for each.
        given: all arguments of ``generate`` beside the text.
        max_batch, progress: see :meth:`tts_compile.CompiledTTS.generate_batch`.
    """
    tts, family = attachment.tts, attachment.family
    speech = family.speech
    assert speech is not None
    # Another program's generate, or method that generate calls, is called for each text: it may do anything.
    own = not_its_own(tts, "generate", family.package) is None
    t3 = _engine(attachment, "t3") if own else None
    flow = _engine(attachment, "flow") if t3 is not None and _flow_can_group(attachment) else None
    device = family.device(tts)
    chunks = [Chunk(index, text, RandomNumbers(seed, device)) for index, (text, seed) in enumerate(zip(texts, seeds))]
    for chunk in chunks:
        with chunk.own_errors():
            speech.check_text(tts, chunk.text)
    with Stopwatch() as watch, progress_display(progress, chunks, watch, tts.sr) as report:
        report()
        family.set_voice(tts, given)
        rest: Iterable[Chunk] = chunks
        if t3 is not None:
            pipeline = BatchPipeline(attachment, t3, flow, chunks, report)
            rest = pipeline.run(speech.settings(given), max_batch)
        _one_by_one(rest, functools.partial(tts.generate, **{**given, family.voice.argument: None}), report)
    return chunks


def _engine(attachment: Attachment, name: str) -> Any:
    """Returns a component if it can work on several utterances now."""
    engine = attachment.components.engines.get(name)
    return engine if engine is not None and engine.speaks_together else None


def _flow_can_group(attachment: Attachment) -> bool:
    """Returns whether mel frames of several utterances may be solved together and turned into waves one by one."""
    family = attachment.family
    synthesis = family.synthesis
    if synthesis.attribute is None or synthesis.mel_wave is None:
        return False
    return not_its_own(getattr(attachment.tts, synthesis.attribute), "inference", family.package) is None


def _one_by_one(chunks: Iterable[Chunk], generate: Callable[[str], Tensor], report: Callable[[], None]) -> None:
    for chunk in chunks:
        if chunk.error is None:
            with chunk.own_errors(), chunk.random.as_global():
                chunk.wave = generate(chunk.text)
            report()
