"""Many texts at once, through the components that speak one."""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from typing_extensions import Self

from . import _compat
from .components.flow import FlowComponent
from .components.t3 import SAMPLING, Request, SamplingSettings, T3Component, check_text, text_tokens
from .errors import BatchError, InputError
from .timing import Stopwatch

logger = logging.getLogger(__name__)

# Stock's ``generate`` asks T3 for that many speech tokens at most.
BUDGET = 1000
# Utterances whose flow is solved together. A CPU is busy with one; a GPU is not.
FLOW_GROUP = {"cpu": 1, "cuda": 8}


@dataclass(frozen=True)
class BatchProgress:
    """How far a batch has come.

    Attributes:
        done: chunks that are complete or have failed.
        total: chunks.
        audio_seconds: of speech in the complete ones.
        seconds: since the batch began.
    """

    done: int
    total: int
    audio_seconds: float
    seconds: float

    @property
    def audio_per_second(self) -> float:
        """Seconds of speech made in a second."""
        return self.audio_seconds / self.seconds if self.seconds else 0.0


class RandomNumbers:
    """What ``torch.manual_seed`` and one utterance make of torch's generators, beside the global ones.

    Args:
        seed: as of ``torch.manual_seed``.
        device: of the model.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.Generator().manual_seed(seed)
        self.generator = torch.Generator(device).manual_seed(seed) if device.type == "cuda" else self._cpu

    @contextlib.contextmanager
    def as_global(self) -> Iterator[None]:
        """What is drawn from the global generators inside comes from these."""
        on_gpu = self.generator is not self._cpu
        with torch.random.fork_rng(devices=[self._device] if on_gpu else []):
            torch.set_rng_state(self._cpu.get_state())
            if on_gpu:
                torch.cuda.set_rng_state(self.generator.get_state(), self._device)
            try:
                yield
            finally:
                self._cpu.set_state(torch.get_rng_state())
                if on_gpu:
                    self.generator.set_state(torch.cuda.get_rng_state(self._device))


@dataclass(eq=False)
class Chunk:
    """One text of a batch.

    Attributes:
        index: its place among the inputs.
        text: as it was given.
        random: its random numbers.
        wave: float32 (1, samples) on the CPU, once it is complete.
        error: why there is none.
    """

    index: int
    text: Any
    random: RandomNumbers
    wave: Tensor | None = None
    error: Exception | None = None


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
        self._t3 = t3
        self._flow = flow
        self._chunks = chunks
        self._settings = settings
        self._max_batch = max_batch
        self._report = report
        self._group = FLOW_GROUP.get(torch.device(tts.device).type, 1) if flow else 1
        self._marking: list[tuple[Chunk, Future[Tensor]]] = []

    def run(self) -> None:
        """Give every chunk its wave or its error.

        Raises:
            ModelStateError: when T3 cannot speak at all, before anything has been spoken.
        """
        todo = [chunk for chunk in self._chunks if chunk.error is None]
        if not todo:
            return
        guided = self._settings.cfg_weight > 0
        requests = [
            Request(chunk.index, text_tokens(self._tts, chunk.text, guided), chunk.random.generator) for chunk in todo
        ]
        batch = self._t3.batch(requests, self._tts.conds.t3, self._settings, BUDGET, self._max_batch)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="watermark") as aside:
            spoken: list[tuple[Chunk, Tensor]] = []
            while batch.left:
                try:
                    ended = batch.advance()
                except Exception as error:  # what is complete is worth keeping
                    self._give_up(batch.unfinished(), error)
                    break
                for request, utterance in ended:
                    chunk = self._chunks[request.index]
                    tokens = _heard(self._tts, utterance.tokens)
                    if utterance.error:
                        self._failed(chunk, utterance.error)
                    elif not len(tokens):
                        self._failed(chunk, InputError("T3 chose no speech token for it"))
                    else:
                        spoken.append((chunk, tokens))
                for group in self._ready(spoken, all_of_them=not batch.left):
                    self._synthesise(group, aside)
            for group in self._ready(spoken, all_of_them=True):
                self._synthesise(group, aside)
            self._collect(wait=True)
        self._t3.mark_warm_once()

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
            try:
                mels[:] = self._mels([(tokens, self._noise(chunk, tokens)) for chunk, tokens in group])
            except Exception as error:
                for chunk, _ in group:
                    self._failed(chunk, error)
                return
        for (chunk, tokens), mel in zip(group, mels):
            try:
                with chunk.random.as_global(), torch.inference_mode():
                    wave = self._wave(tokens, mel)
            except Exception as error:  # of this chunk; the others are spoken all the same
                self._failed(chunk, error)
                continue
            self._marking.append((chunk, aside.submit(_marked, self._tts, wave)))
            self._collect(wait=False)

    def _wave(self, tokens: Tensor, mel: Tensor | None) -> Tensor:
        """As the second half of stock's ``generate``; from mel frames where they are there already."""
        s3gen = self._tts.s3gen
        if mel is None:
            wave, _ = s3gen.inference(speech_tokens=tokens, ref_dict=self._tts.conds.gen)
        else:
            wave, _ = s3gen.hift_inference(mel.to(dtype=s3gen.dtype))
            wave[:, : len(s3gen.trim_fade)] *= s3gen.trim_fade
        result: Tensor = wave.squeeze(0).detach().cpu()
        return result

    def _noise(self, chunk: Chunk, tokens: Tensor) -> Tensor:
        """What the flow would draw for this chunk alone."""
        assert self._flow is not None
        with chunk.random.as_global():
            return self._flow.noise(tokens, self._tts.conds.gen)

    def _mels(self, group: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Mel frames (1, 80, frames) from tokens and noise, solved together as far as the memory goes."""
        assert self._flow is not None
        try:
            return self._flow.together(group, self._tts.conds.gen)
        except Exception as error:
            if len(group) == 1 or not _compat.is_out_of_memory(error):
                raise
            self._flow.ran_out_of_memory(error, len(group))
        _compat.release_memory()
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

    def _failed(self, chunk: Chunk, error: Exception) -> None:
        chunk.error = error
        self._report()

    def _give_up(self, requests: Sequence[Request], error: Exception) -> None:
        for request in requests:
            self._failed(self._chunks[request.index], error)


def checked_texts(texts: Iterable[str]) -> list[Any]:
    """A list of them; each is checked when it is spoken.

    Raises:
        InputError: for a single text.
    """
    if isinstance(texts, (str, bytes)):
        raise InputError("texts must be a list of texts, not a single one")
    return list(texts)


def checked_seeds(seeds: Iterable[int] | None, count: int) -> list[int]:
    """One for each of ``count`` texts; None draws them from torch's global generator.

    Raises:
        InputError: for another number of them, or what ``torch.manual_seed`` does not take.
    """
    if seeds is None:
        return torch.randint(2**63 - 1, (count,)).tolist()
    try:
        found = [operator.index(seed) for seed in seeds]
    except TypeError:
        raise InputError(f"seeds must be whole numbers, one for each text, got {seeds!r}") from None
    if len(found) != count:
        raise InputError(f"there are {len(found)} seeds for {count} texts")
    if wrong := [seed for seed in found if not -(2**63) <= seed < 2**64]:
        raise InputError(f"torch takes seeds from -2**63 to 2**64 - 1, got {wrong[0]}")
    return found


def delivered(chunks: Sequence[Chunk], on_error: str) -> list[Tensor | None]:
    """The waves, in input order; None for those that failed.

    Raises:
        BatchError: where some failed, unless ``on_error`` is ``"skip"``.
    """
    waves = [chunk.wave for chunk in chunks]
    errors = {chunk.index: chunk.error for chunk in chunks if chunk.error is not None}
    named = [f"chunk {i} ({_shortened(chunks[i].text)}): {type(e).__name__}: {e}" for i, e in errors.items()]
    if errors and on_error == "raise":
        message = f"{len(errors)} of {len(chunks)} chunks failed: " + "; ".join(named)
        raise BatchError(message, waves, errors) from next(iter(errors.values()))
    for name in named:
        logger.warning("left out: %s", name)
    return waves


def _shortened(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."


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
        except InputError as error:
            chunk.error = error
    with Stopwatch() as watch, _Shown(progress, chunks, watch, tts.sr) as shown:
        shown()
        _set_voice(tts, given["audio_prompt_path"], given["exaggeration"])
        if t3 is not None:
            settings = SamplingSettings(**{name: given[name] for name in SAMPLING})
            BatchJob(tts, t3, flow, chunks, settings, max_batch, shown).run()
        else:
            _in_a_row(chunks, functools.partial(generate, **{**given, "audio_prompt_path": None}), shown)
    return chunks


def _in_a_row(chunks: Sequence[Chunk], generate: Callable[[str], Tensor], report: Callable[[], None]) -> None:
    for chunk in chunks:
        if chunk.error is None:
            try:
                with chunk.random.as_global():
                    chunk.wave = generate(chunk.text)
            except Exception as error:  # of this chunk; the others are spoken all the same
                chunk.error = error
            report()


class _Shown:
    """Tells how far a batch has come: on a bar, to a function, or to nobody."""

    def __init__(
        self,
        progress: bool | Callable[[BatchProgress], object],
        chunks: Sequence[Chunk],
        watch: Stopwatch,
        sample_rate: int,
    ) -> None:
        self._tell = progress if callable(progress) else None
        self._bar = tqdm(total=len(chunks), unit="chunk", dynamic_ncols=True) if progress is True else None
        self._chunks = chunks
        self._watch = watch
        self._sample_rate = sample_rate

    def __call__(self) -> None:
        waves = [chunk.wave for chunk in self._chunks if chunk.wave is not None]
        failed = sum(chunk.error is not None for chunk in self._chunks)
        audio = sum(wave.shape[-1] for wave in waves) / self._sample_rate
        now = BatchProgress(len(waves) + failed, len(self._chunks), audio, self._watch.seconds)
        if self._tell:
            self._tell(now)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{now.audio_per_second:.2f} s of speech a second", refresh=False)
            self._bar.update(now.done - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


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


def _heard(tts: Any, tokens: list[int]) -> Tensor:
    """The tokens that mean a sound, as stock picks them."""
    from chatterbox.models.s3tokenizer import SPEECH_VOCAB_SIZE, drop_invalid_tokens

    kept = drop_invalid_tokens(torch.tensor(tokens))
    heard: Tensor = kept[kept < SPEECH_VOCAB_SIZE].to(tts.device)
    return heard


def _marked(tts: Any, wave: Tensor) -> Tensor:
    with torch.inference_mode():
        marked = tts.watermarker.apply_watermark(wave.numpy(), sample_rate=tts.sr)
    return torch.from_numpy(marked)[None]
