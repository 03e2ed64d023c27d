"""Many texts at once, through the components that speak one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..components.flow import FlowComponent
from ..components.t3 import T3Component
from ..families import family_of
from ..families.english import check_text
from ..timing.blocks import Stopwatch
from ..utils.random_state import RandomNumbers
from .chunk import Chunk, delivered
from .pipeline import BatchJob
from .progress import BatchProgress, Shown

__all__ = ["BatchProgress", "Chunk", "delivered", "speak"]


def speak(
    tts: Any,
    t3: T3Component | None,
    flow: FlowComponent | None,
    generate: Callable[..., Tensor],
    given: dict[str, Any],
    texts: Sequence[Any],
    seeds: Sequence[int],
    max_batch: int | None,
    progress: bool | Callable[[BatchProgress], object],
) -> list[Chunk]:
    """Give every text its wave or its error.

    Args:
        tts: the model.
        t3, flow: its components; None where chunks are to be spoken one after the other.
        generate: speaks one text.
        given: arguments of ``generate`` beside the text, all of them.
        texts: what to speak.
        seeds: one for each.
        max_batch: as :meth:`tts_compile.CompiledTTS.generate_batch`.
        progress: likewise.
    """
    device = torch.device(tts.device)
    chunks = [Chunk(index, text, RandomNumbers(seed, device)) for index, (text, seed) in enumerate(zip(texts, seeds))]
    for chunk in chunks:
        try:
            check_text(tts, chunk.text)
        except Exception as error:  # the tokenizer has errors of its own
            chunk.error = error
    with Stopwatch() as watch, Shown(progress, chunks, watch, tts.sr) as shown:
        shown()
        _set_voice(tts, given["audio_prompt_path"], given["exaggeration"])
        alone = functools.partial(generate, **{**given, "audio_prompt_path": None})
        rest = chunks
        if t3 is not None:
            settings = family_of(type(tts)).speech.settings(given)
            rest = BatchJob(tts, t3, flow, chunks, settings, max_batch, shown).run()
        _in_a_row(rest, alone, shown)
    return chunks


def _in_a_row(chunks: Sequence[Chunk], generate: Callable[[str], Tensor], report: Callable[[], None]) -> None:
    for chunk in chunks:
        if chunk.error is None:
            try:
                with chunk.random.as_global():
                    chunk.wave = generate(chunk.text)
            except Exception as error:  # of this chunk; the others are spoken all the same
                chunk.fail(error)
            report()


def _set_voice(tts: Any, reference: Any, exaggeration: float) -> None:
    """As the beginning of stock's ``generate``."""
    if reference:
        tts.prepare_conditionals(reference, exaggeration=exaggeration)
    voice = tts.conds.t3
    if float(exaggeration) != float(voice.emotion_adv[0, 0, 0]):
        tts.conds.t3 = type(voice)(
            speaker_emb=voice.speaker_emb,
            cond_prompt_speech_tokens=voice.cond_prompt_speech_tokens,
            emotion_adv=exaggeration * torch.ones(1, 1, 1),
        ).to(device=tts.device)
