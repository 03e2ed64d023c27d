"""The handle of a compiled model: it generates speech, reports what ran, and restores the model."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import Self

from .attachment import Attachment
from .batch import BatchProgress, collect, generate_chunks
from .config import CompileConfig
from .errors import InputError, ModelStateError, ParityError
from .families import Family
from .parity import TEXTS, ParityReport, Transcriber, gate, measure, transcription
from .report import ExecutionReport, WarmupReport
from .timing.blocks import Timings, timed
from .utils.arguments import as_list, checked_seeds, whole_number
from .utils.proxy import Proxy
from .utils.random_state import RandomNumbers
from .validation import check_request, check_settings, checked_inputs, checked_warmup_texts
from .warmup import warm_up


class CompiledTTS(Proxy):
    """A stock model with fast components attached; made by :func:`tts_compile.compile_model`.

    Attributes that the handle does not have itself are the wrapped model's, for reading and for writing. Used as a
    context manager, the handle restores the model on exit.

    Attributes:
        wrapped: the model.
        config: the configuration that was asked for.
        parity: the comparison with stock made by ``compile_model(..., validate=True)``; None without.
        timings: the durations of the last calls, stage by stage, and their real-time factor.
    """

    wrapped: Any
    config: CompileConfig
    parity: ParityReport | None
    timings: Timings
    _attachment: Attachment

    def __init__(self, tts: Any, family: Family, config: CompileConfig) -> None:
        own = vars(self)  # plain assignment would reach the wrapped model
        own["wrapped"] = tts
        own["config"] = config
        own["parity"] = None
        own["timings"] = Timings(family.device(tts))
        own["generate"] = functools.wraps(tts.generate)(lambda *args, **kwargs: self._checked_generate(*args, **kwargs))
        own["_family"] = family
        own["_signature"] = inspect.signature(tts.generate)
        own["_attachment"] = Attachment(self, tts, family, config, self.timings)

    def generate(self, text: str, *args: Any, **kwargs: Any) -> Tensor:
        """Generates speech for ``text``; signature and return of the wrapped class: float32 (1, samples) on the CPU.

        Raises:
            InputError: for a text, a voice or settings that the model cannot use, before any work is done.
            ModelStateError: for a model in training mode, or in a process that was forked from the one that compiled
                the model.
            NonFiniteError: for a model whose logits are not finite.
            OutOfMemoryError: when memory runs out at every level.
        """
        # An instance attribute with the wrapped method's signature hides this method.
        return self._checked_generate(text, *args, **kwargs)

    def _checked_generate(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._attachment.attached:
            check_request(self.wrapped, self._family, self._arguments(*args, **kwargs))
        with self._attachment.lock():
            self._switch()
            with self._timed("generate") as block:
                wave: Tensor = self.wrapped.generate(*args, **kwargs)
                block.audio_seconds = self._seconds([wave])
        return wave

    def generate_batch(
        self,
        texts: Iterable[str],
        seeds: Iterable[int] | None = None,
        max_batch: int | None = None,
        progress: bool | Callable[[BatchProgress], object] = False,
        *,
        on_error: str = "raise",
        **generate_kwargs: Any,
    ) -> list[Tensor | None]:
        """Generates speech for many texts; returns waves like those of :meth:`generate`, in input order.

        The speech of a text depends on the text, its seed and the settings alone, not on the other texts: the speech
        tokens are those of ``torch.manual_seed(seed)`` and :meth:`generate`, up to rounding. T3 works on many texts at
        a time. A model that is restored, whose T3 is left to stock, or whose ``generate`` is not its package's own
        works on one text after the other.

        Args:
            texts: the texts; :func:`tts_compile.split_text` makes chunks of a long text.
            seeds: one for each text; None draws them from torch's global generator. Otherwise the global generators
                are left unchanged.
            max_batch: texts that T3 works on at a time at most; None chooses by the free memory.
            progress: True shows a bar; a function is called with a :class:`BatchProgress` after every text.
            on_error: what happens when some texts fail, after the others are complete: ``"raise"`` raises, and
                ``"skip"`` returns None in their positions.
            generate_kwargs: further arguments of :meth:`generate`, for all texts.

        Raises:
            BatchError: lists the texts that failed; it holds the waves of the others.
            InputError: for settings that the model cannot use, before any work is done.
            ModelStateError: for a model in training mode.
        """
        texts = as_list("texts", texts)
        if max_batch is not None:
            max_batch = whole_number("max_batch", max_batch, 1)
        if on_error not in ("raise", "skip"):
            raise InputError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        if self._family.speech is None:
            raise InputError(f"{type(self.wrapped).__name__} speaks no texts")
        given = self._arguments("", **generate_kwargs)
        del given[self._family.subject]
        check_settings(self.wrapped, self._family, given)
        with self._attachment.lock():
            seeds = checked_seeds(seeds, len(texts))  # may draw them
            self._switch()
            with self._timed("generate_batch") as block:
                chunks = generate_chunks(
                    self._attachment, texts, seeds, given=given, max_batch=max_batch, progress=progress
                )
                block.audio_seconds = self._seconds([chunk.wave for chunk in chunks])
        return collect(chunks, on_error)

    def warmup(
        self, texts: Iterable[str] | None = None, progress: bool | Callable[[str], object] = False
    ) -> WarmupReport:
        """Compiles, or captures, every shape that later calls may need, and generates speech to check that.

        The global random generators and the model's voice are left unchanged.

        Args:
            texts: generated in full; the model must have a voice then. None generates the first speech tokens of
                ``config.warmup_samples`` built-in texts, if the model speaks texts and has a voice.
            progress: True shows a bar; a function is called with the name of each step as it begins.

        Raises:
            InputError: for texts without a voice, one that the model cannot speak, a single text in place of a list,
                or a model that speaks none; before anything is compiled.
        """
        checked = None if texts is None else checked_warmup_texts(self.wrapped, self._family, texts)
        with self._attachment.lock():
            self._switch(wait=True)
            with self._timed("warmup", "warm-up"):
                return warm_up(self._attachment, self._checked_generate, checked, progress)

    @contextlib.contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Holds the model for this thread, with torch's generators as ``torch.manual_seed(seed)`` leaves them.

        Afterwards they are as before. Calls from several threads wait for each other in any case; but
        ``torch.manual_seed`` is global, and another thread may draw between it and :meth:`generate`.

        >>> def speak(fast, text, seed):  # doctest: +SKIP
        ...     with fast.seeded(seed):
        ...         return fast.generate(text)  # equal from every thread, at any time

        Raises:
            InputError: for anything but a seed.
        """
        (seed,) = checked_seeds([seed], 1)
        with self._attachment.lock(), RandomNumbers(seed, self._family.device(self.wrapped)).as_global():
            yield

    @contextlib.contextmanager
    def stock(self) -> Iterator[Any]:
        """Makes the wrapped model stock inside a ``with`` block, and returns it; compiled code is kept.

        Raises:
            ModelStateError: at the end of the block, when the model was compiled again inside it.

        >>> def compare(fast, text):  # doctest: +SKIP
        ...     with fast.stock() as tts:
        ...         return tts.generate(text), fast.generate(text)  # both stock
        """
        with self._attachment.suspended():
            yield self.wrapped

    def validate(
        self,
        texts: Iterable[str] | None = None,
        *,
        seed: int = 0,
        recording: str | Path | None = None,
        transcribe: Transcriber | bool = True,
        step: Callable[[str], object] = lambda _: None,
    ) -> ParityReport:
        """Compares with stock: tensors and tokens of each component on stock's own inputs, then whole utterances.

        The voice and the global generators are left unchanged.

        Args:
            texts: the texts; None takes :data:`tts_compile.parity.TEXTS`. A voice converter converts the recording
                instead.
            seed: of the first text; the next texts count up.
            recording: of a voice, for the components that read one; None makes one. A model without a voice speaks
                with it.
            transcribe: returns the text of a wave (1, samples) with a rate in Hz, so that words are compared too; True
                takes a speech recogniser if the extra ``quality`` is installed.
            step: called with the name of each step.

        Raises:
            InputError: for texts or a recording that the model cannot use.
            ModelStateError: for a model that has been restored.
        """
        texts = checked_inputs(self.wrapped, self._family, TEXTS if texts is None else texts, recording)
        words = transcription.chosen(transcribe, self._family)
        with self._attachment.lock():
            if not self._attachment.attached:
                raise ModelStateError("this model is not compiled: there is nothing to compare with stock")
            self._switch()
            with self._timed("validate"):
                return measure(self._attachment, texts, seed=seed, recording=recording, words=words, step=step)

    def keep_what_passes(self) -> None:
        """Leaves every component to stock whose results differ from stock's, with an event; sets :attr:`parity`.

        Raises:
            ParityError: instead, where the policy is ``"raise"``; the model is stock then.
        """
        with self._attachment.lock(), self._timed("validate"):
            try:
                vars(self)["parity"] = gate.keep_what_passes(self._attachment)
            except ParityError:
                self.restore()
                raise

    def report(self) -> ExecutionReport:
        """Returns what was asked, what ran, and the counts that prove it; waits for the device."""
        return self._attachment.report()

    def restore(self) -> None:
        """Makes the model stock again; the handle then forwards everything to it. A second call does nothing.

        Waits for an utterance that another thread is generating.

        Raises:
            ModelStateError: when another program has replaced a method again.
        """
        self._attachment.restore()

    def _arguments(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns the arguments of a call of ``generate`` by name, defaults included."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    def _switch(self, wait: bool = False) -> None:
        if self._attachment.switch(wait) and self.parity is not None:
            self.keep_what_passes()

    def _timed(self, name: str, phase: str | None = None) -> timed:
        """Returns a block that is timed unless the model is stock."""
        return timed(name, self.timings if self._attachment.attached else None, phase=phase)

    def _seconds(self, waves: Iterable[Tensor | None]) -> float:
        """Returns the length of waves; another program's ``generate`` may return anything."""
        samples = sum(wave.shape[-1] for wave in waves if isinstance(wave, Tensor) and wave.ndim)
        return samples / float(self.wrapped.sr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def __repr__(self) -> str:
        state = "attached" if self._attachment.attached else "restored"
        return f"<CompiledTTS around {type(self.wrapped).__name__}, {state}>"
