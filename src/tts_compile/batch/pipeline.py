"""Moves chunks through the speech model, flow, vocoder and watermark."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ..attachment import Attachment
from ..components.compiled_component import CompiledComponent
from ..components.flow import FlowComponent
from ..components.t3 import Request, T3Component
from ..errors import TTSCompileError
from ..families import SpeechCall
from ..families.sampling import SamplingSettings
from ..timing.blocks import timed
from ..utils.device import is_out_of_memory, release_memory
from .chunk import Chunk

# Utterances whose mel frames are solved together. One keeps a CPU busy, but not a GPU.
FLOW_GROUP = {"cpu": 1, "cuda": 8}


class BatchPipeline:
    """Generates the waves of chunks whose texts were checked, with the voice that the model has now.

    T3 works on many chunks at a time. A chunk that has all its speech tokens goes through flow and vocoder while T3
    waits, and then through the watermark in a second thread.

    Args:
        attachment: of the model.
        t3: its speech model.
        flow: its flow; None where mel frames are solved one by one.
        chunks: all chunks; those with an error are left out.
        report: called after every chunk.
    """

    def __init__(
        self,
        attachment: Attachment,
        t3: T3Component,
        flow: FlowComponent | None,
        chunks: Sequence[Chunk],
        report: Callable[[], None],
    ) -> None:
        self._tts = attachment.tts
        self._family = attachment.family
        self._synthesis = attachment.family.synthesis
        # For all chunks: a function that reports progress may set another voice.
        self._voice = self._family.voice.of(self._tts)
        self._t3 = t3
        self._flow = flow
        self._chunks = chunks
        self._report = report
        self._group = FLOW_GROUP.get(self._family.device(self._tts).type, 1) if flow else 1
        self._watermarking: list[tuple[Chunk, Future[Tensor]]] = []

    def run(self, settings: SamplingSettings, slots: int | None) -> list[Chunk]:
        """Gives every chunk a wave or an error.

        Args:
            settings: for all chunks.
            slots: chunks that T3 works on at a time at most; None chooses by the free memory.

        Returns:
            Chunks that failed together with others, with their random numbers as at first: one by one, they can fall
            back to other levels.

        Raises:
            TTSCompileError: when T3 cannot be used at all, before any work is done.
        """
        requests = self._requests(settings)
        if not requests:
            return []
        left: list[Chunk] = []
        try:
            with self._in_t3():
                scheduler = self._t3.schedule(requests, slots)
        except TTSCompileError:
            raise
        except Exception as error:
            return self._one_by_one(self._t3, self._chunks_of(requests), error)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="watermark") as aside:
            spoken: list[tuple[Chunk, Tensor]] = []
            while scheduler.left:
                try:
                    with self._in_t3():  # until an utterance ends: entering it for each token would take time
                        while scheduler.left and not (ended := scheduler.advance()):
                            pass
                except Exception as error:  # complete chunks are kept
                    left += self._one_by_one(self._t3, self._chunks_of(scheduler.abandon()), error)
                    break
                for request, utterance in ended:
                    chunk = self._chunks[request.index]
                    if utterance.error:
                        utterance.noise.rewind()
                        left += self._one_by_one(self._t3, [chunk], utterance.error)
                        continue
                    with self._own_errors(chunk):
                        spoken.append((chunk, self._synthesis.finish_tokens(self._tts, utterance.tokens)))
                for group in self._ready(spoken, everything=not scheduler.left):
                    self._synthesise(group, aside)
            for group in self._ready(spoken, everything=True):
                self._synthesise(group, aside)
            self._collect(wait=True)
        self._t3.mark_warm_once()
        return left

    @contextlib.contextmanager
    def _in_t3(self) -> Iterator[None]:
        with timed("t3"), self._t3.runtime.lock(), self._t3.runtime.entered():
            yield

    def _requests(self, settings: SamplingSettings) -> list[Request]:
        speech = self._family.speech
        assert speech is not None
        voice = speech.voice(self._voice)
        requests = []
        for chunk in self._chunks:
            if chunk.error is None:
                with self._own_errors(chunk):  # the tokenizer may be the user's own
                    tokens = speech.text_tokens(self._tts, chunk.text, settings.cfg_weight > 0)
                    call = SpeechCall(voice, tokens, settings, limit=speech.budget)
                    requests.append(Request(chunk.index, call, chunk.random.generator))
        return requests

    def _chunks_of(self, requests: Iterable[Request]) -> list[Chunk]:
        return [self._chunks[request.index] for request in requests]

    def _ready(self, spoken: list[tuple[Chunk, Tensor]], everything: bool) -> list[list[tuple[Chunk, Tensor]]]:
        """Takes groups of similar length out of ``spoken``; a group that is not full waits for more chunks."""
        if len(spoken) < self._group and not everything:
            return []
        spoken.sort(key=lambda pair: len(pair[1]))
        groups = [spoken[at : at + self._group] for at in range(0, len(spoken), self._group)]
        if not everything and len(groups[-1]) < self._group:
            spoken[:] = groups.pop()
        else:
            spoken.clear()
        return groups

    def _synthesise(self, group: list[tuple[Chunk, Tensor]], aside: ThreadPoolExecutor) -> None:
        """Makes the waves of a group, each from its own random numbers; several chunks share the flow's passes."""
        mels: list[Tensor | None] = [None] * len(group)
        if len(group) > 1:
            assert self._flow is not None
            before = [chunk.random.state() for chunk, _ in group]
            try:
                mels[:] = self._mels([(tokens, self._noise(chunk, tokens)) for chunk, tokens in group])
            except Exception as error:
                if not self._one_by_one(self._flow, [chunk for chunk, _ in group], error):
                    return
                for (chunk, _), state in zip(group, before):
                    chunk.random.rewind(state)
        for (chunk, tokens), mel in zip(group, mels):
            with self._own_errors(chunk), chunk.random.as_global(), torch.inference_mode():
                if mel is None or self._synthesis.mel_wave is None:
                    wave = self._synthesis.wave(self._tts, tokens, self._voice)
                else:
                    wave = self._synthesis.mel_wave(self._tts, mel)
                inside = contextvars.copy_context()  # so that its time is part of this batch's
                watermark = torch.inference_mode()(self._synthesis.watermark)
                self._watermarking.append((chunk, aside.submit(inside.run, watermark, self._tts, wave)))
            self._collect(wait=False)

    def _noise(self, chunk: Chunk, tokens: Tensor) -> Tensor:
        """Draws the noise that the flow would draw for this chunk alone."""
        assert self._flow is not None
        with chunk.random.as_global():
            return self._flow.noise(tokens, self._synthesis.reference(self._voice))

    def _mels(self, group: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Returns mel frames (1, 80, frames) for tokens and noise, solved together as far as memory suffices."""
        assert self._flow is not None
        try:
            return self._flow.together(group, self._synthesis.reference(self._voice))
        except Exception as error:
            if len(group) == 1 or not is_out_of_memory(error):
                raise
            self._flow.ran_out_of_memory(error, len(group))
        release_memory()
        half = len(group) // 2
        return self._mels(group[:half]) + self._mels(group[half:])

    def _collect(self, wait: bool) -> None:
        """Gives chunks their watermarked waves.

        Args:
            wait: wait for all of them.
        """
        pending = []
        for chunk, future in self._watermarking:
            if not wait and not future.done():
                pending.append((chunk, future))
                continue
            with chunk.own_errors():
                chunk.wave = future.result()
            self._report()
        self._watermarking = pending

    def _one_by_one(self, component: CompiledComponent, chunks: list[Chunk], error: Exception) -> list[Chunk]:
        """Returns chunks that have failed together, if the component may try each alone."""
        if component.may_try_alone(error, len(chunks)):
            return chunks
        for chunk in chunks:
            chunk.fail(error)
            self._report()
        return []

    @contextlib.contextmanager
    def _own_errors(self, chunk: Chunk) -> Iterator[None]:
        """Stores an error of the ``with`` block as the chunk's own and reports it."""
        with chunk.own_errors():
            yield
        if chunk.error is not None:
            self._report()
