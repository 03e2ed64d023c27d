"""Chunks on their way through T3, flow, vocoder and watermark."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ..components.compiled_component import CompiledComponent as EngineComponent
from ..components.flow import FlowComponent
from ..components.t3 import Request, T3Component
from ..errors import InputError, TTSCompileError
from ..families.english import text_tokens
from ..families.family import SpeechCall
from ..families.sampling import SamplingSettings
from ..timing.blocks import timed
from ..utils.device import is_out_of_memory, release_memory
from .chunk import Chunk

# Stock's ``generate`` asks T3 for that many speech tokens at most.
BUDGET = 1000
# Utterances whose flow is solved together. A CPU is busy with one; a GPU is not.
FLOW_GROUP = {"cpu": 1, "cuda": 8}


class BatchJob:
    """Speaks chunks that have been checked, with a voice that is in place.

    T3 speaks many at a time; whoever has come to an end goes on to flow and vocoder, while T3 waits, and from there to
    the watermark, for which nobody waits.

    Args:
        tts: the model.
        t3: its token loop.
        flow: its flow.
        chunks: all of them; those with an error are left alone.
        settings: of all.
        max_batch: chunks that T3 speaks at a time at most; None leaves it to the free memory.
        report: told after every chunk.
    """

    def __init__(
        self,
        tts: Any,
        t3: T3Component,
        flow: FlowComponent | None,
        chunks: Sequence[Chunk],
        settings: SamplingSettings,
        max_batch: int | None,
        report: Callable[[], None],
    ) -> None:
        self._tts = tts
        self._voice = tts.conds  # of all: what a callback speaks meanwhile may have another
        self._t3 = t3
        self._flow = flow
        self._chunks = chunks
        self._settings = settings
        self._max_batch = max_batch
        self._report = report
        self._group = FLOW_GROUP.get(torch.device(tts.device).type, 1) if flow else 1
        self._marking: list[tuple[Chunk, Future[Tensor]]] = []

    def run(self) -> list[Chunk]:
        with self._t3.runtime.lock(), self._t3.runtime.entered():
            return self._run()

    def _run(self) -> list[Chunk]:
        """Give every chunk its wave or its error.

        Returns:
            Those that T3 could not speak together with others, from random numbers as they were: alone, they have
            levels to fall back to.

        Raises:
            ModelStateError: when T3 cannot speak at all, before anything has been spoken.
        """
        requests = self._requests()
        if not requests:
            return []
        left: list[Chunk] = []
        try:
            with timed("t3"):
                batch = self._t3.schedule(requests, self._max_batch)
        except TTSCompileError:
            raise
        except Exception as error:
            return self._alone(self._t3, [self._chunks[request.index] for request in requests], error)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="watermark") as aside:
            spoken: list[tuple[Chunk, Tensor]] = []
            while batch.left:
                try:
                    with timed("t3"):  # until an utterance ends: a block for each token would be many
                        while batch.left and not (ended := batch.advance()):
                            pass
                except Exception as error:  # what is complete is worth keeping
                    left += self._alone(self._t3, [self._chunks[request.index] for request in batch.abandon()], error)
                    break
                for request, utterance in ended:
                    chunk = self._chunks[request.index]
                    if utterance.error:
                        utterance.noise.rewind()
                        left += self._alone(self._t3, [chunk], utterance.error)
                        continue
                    try:
                        spoken.append((chunk, _heard(self._tts, utterance.tokens)))
                    except Exception as error:  # of this chunk; the others are spoken all the same
                        self._failed(chunk, error)
                for group in self._ready(spoken, all_of_them=not batch.left):
                    self._synthesise(group, aside)
            for group in self._ready(spoken, all_of_them=True):
                self._synthesise(group, aside)
            self._collect(wait=True)
        self._t3.mark_warm_once()
        return left

    def _requests(self) -> list[Request]:
        guided = self._settings.cfg_weight > 0
        requests = []
        for chunk in self._chunks:
            if chunk.error is None:
                try:
                    tokens = text_tokens(self._tts, chunk.text, guided)
                except Exception as error:  # of this chunk; the tokenizer may be the user's own
                    self._failed(chunk, error)
                else:
                    requests.append(
                        Request(
                            chunk.index,
                            SpeechCall(self._voice.t3, tokens, self._settings, BUDGET),
                            chunk.random.generator,
                        )
                    )
        return requests

    def _ready(self, spoken: list[tuple[Chunk, Tensor]], all_of_them: bool) -> list[list[tuple[Chunk, Tensor]]]:
        """Groups of similar length, taken out of ``spoken``; a group that is not full waits for more."""
        if len(spoken) < self._group and not all_of_them:
            return []
        spoken.sort(key=lambda pair: len(pair[1]))
        groups = [spoken[at : at + self._group] for at in range(0, len(spoken), self._group)]
        if not all_of_them and len(groups[-1]) < self._group:
            spoken[:] = groups.pop()
        else:
            spoken.clear()
        return groups

    def _synthesise(self, group: list[tuple[Chunk, Tensor]], aside: ThreadPoolExecutor) -> None:
        """Waves of a group, each with its own random numbers; the mel frames together where there are several."""
        mels: list[Tensor | None] = [None] * len(group)
        if len(group) > 1:
            assert self._flow is not None
            before = [chunk.random.state() for chunk, _ in group]
            try:
                mels[:] = self._mels([(tokens, self._noise(chunk, tokens)) for chunk, tokens in group])
            except Exception as error:
                if not self._alone(self._flow, [chunk for chunk, _ in group], error):
                    return
                for (chunk, _), state in zip(group, before):
                    chunk.random.rewind(state)
        for (chunk, tokens), mel in zip(group, mels):
            try:
                with chunk.random.as_global(), torch.inference_mode():
                    wave = self._wave(tokens, mel)
            except Exception as error:  # of this chunk; the others are spoken all the same
                self._failed(chunk, error)
                continue
            inside = contextvars.copy_context()  # so that its time is part of this batch's
            self._marking.append((chunk, aside.submit(inside.run, _marked, self._tts, wave)))
            self._collect(wait=False)

    def _wave(self, tokens: Tensor, mel: Tensor | None) -> Tensor:
        """As the second half of stock's ``generate``; from mel frames where they are there already."""
        s3gen = self._tts.s3gen
        if mel is None:
            wave, _ = s3gen.inference(speech_tokens=tokens, ref_dict=self._voice.gen)
        else:
            wave, _ = s3gen.hift_inference(mel.to(dtype=s3gen.dtype))
            wave[:, : len(s3gen.trim_fade)] *= s3gen.trim_fade
        result: Tensor = wave.squeeze(0).detach().cpu()
        return result

    def _noise(self, chunk: Chunk, tokens: Tensor) -> Tensor:
        """What the flow would draw for this chunk alone."""
        assert self._flow is not None
        with chunk.random.as_global():
            return self._flow.noise(tokens, self._voice.gen)

    def _mels(self, group: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Mel frames (1, 80, frames) from tokens and noise, solved together as far as the memory goes."""
        assert self._flow is not None
        try:
            return self._flow.together(group, self._voice.gen)
        except Exception as error:
            if len(group) == 1 or not is_out_of_memory(error):
                raise
            self._flow.ran_out_of_memory(error, len(group))
        release_memory()
        half = len(group) // 2
        return self._mels(group[:half]) + self._mels(group[half:])

    def _collect(self, wait: bool) -> None:
        """Take in what has been marked meanwhile."""
        pending = []
        for chunk, future in self._marking:
            if not wait and not future.done():
                pending.append((chunk, future))
                continue
            try:
                chunk.wave = future.result()
            except Exception as error:
                self._failed(chunk, error)
            else:
                self._report()
        self._marking = pending

    def _alone(self, component: EngineComponent, chunks: list[Chunk], error: Exception) -> list[Chunk]:
        """Chunks that have failed together and may be tried alone, where a component has levels to fall back to."""
        if component.may_try_alone(error, len(chunks)):
            return chunks
        for chunk in chunks:
            self._failed(chunk, error)
        return []

    def _failed(self, chunk: Chunk, error: Exception) -> None:
        chunk.fail(error)
        self._report()


def _heard(tts: Any, tokens: list[int]) -> Tensor:
    """The tokens that mean a sound, as stock picks them."""
    from chatterbox.models.s3tokenizer import SPEECH_VOCAB_SIZE, drop_invalid_tokens

    kept = drop_invalid_tokens(torch.tensor(tokens))
    heard: Tensor = kept[kept < SPEECH_VOCAB_SIZE].to(tts.device)
    if not len(heard):
        raise InputError("T3 chose no speech token for it")
    return heard


def _marked(tts: Any, wave: Tensor) -> Tensor:
    with torch.inference_mode():
        marked = tts.watermarker.apply_watermark(wave.numpy(), sample_rate=tts.sr)
    return torch.from_numpy(marked)[None]
