"""A stock model with fast components: speak through it, ask what ran, and let go of it again."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from . import background
from .batch import BatchProgress, delivered
from .batch import speak as speak_batch
from .components.compiled_component import CompiledComponent as EngineComponent
from .components.component_set import ComponentSet
from .components.seam import not_its_own
from .config import CompileConfig
from .errors import InputError, ModelStateError, ParityError
from .execution.process_lock import DeviceLock
from .execution.process_lock import locked as alone
from .families import family_of
from .families.english import check_text
from .parity import TEXTS, ParityReport, Thresholds, Transcriber, measure
from .parity import transcription as quality
from .report import ExecutionReport, WarmupReport
from .timing.blocks import Timings, timed
from .utils.arguments import checked_seeds, checked_texts
from .utils.proxy import Proxy
from .utils.random_state import RandomNumbers
from .validation import check_request, check_settings, check_voice, checked_inputs
from .warmup import sample_texts, warm_up

logger = logging.getLogger(__name__)

HANDLE = "_tts_compile_handle"  # the attribute of a compiled model


class CompiledTTS(Proxy):
    """A stock model with fast components attached; made by :func:`tts_compile.compile_model`.

    Attributes that it does not have itself are the wrapped model's, read and written. As a context manager it
    restores the model on exit.

    Attributes:
        wrapped: the model.
        config: what was asked for.
        parity: what ``compile_model(..., validate=True)`` has found; None without.
        timings: how long the last calls have taken, stage by stage, and their real-time factor.
    """

    wrapped: Any
    config: CompileConfig
    parity: ParityReport | None
    timings: Timings

    def __init__(self, tts: Any, config: CompileConfig) -> None:
        own = vars(self)  # plain assignment would reach the wrapped model
        own["wrapped"] = tts
        own["config"] = config
        own["parity"] = None
        own["timings"] = Timings(next(tts.s3gen.parameters()).device)
        own["_earlier"] = {}
        own["_process"] = DeviceLock(torch.device("cpu"))
        own["_attached"] = False
        own["_suspended"] = False
        own["generate"] = functools.wraps(tts.generate)(lambda *args, **kwargs: self._checked_generate(*args, **kwargs))
        own["_signature"] = inspect.signature(tts.generate)
        own["_background"] = background.start(tts, config)
        try:
            first = background.meanwhile(config) if own["_background"] else config
            own["_components"] = ComponentSet(tts, family_of(type(tts)), first, self.timings)
            own["_turn"] = own["_components"].lock
            self._attach()
        except BaseException:
            if own["_background"] is not None:
                own["_background"].stop()
            raise

    def generate(self, text: str, *args: Any, **kwargs: Any) -> Tensor:
        """Speak ``text``; signature and return of the wrapped class: float32 (1, samples) on the CPU.

        Raises:
            InputError: for text, voice or settings that the model cannot speak with, before any work is done.
            ModelStateError: for a model in training mode, or a process that was forked from the one that compiled it.
            NonFiniteError: for a model whose logits are not finite.
            OutOfMemoryError: when memory has run out at every level.
        """
        # An instance attribute with the wrapped method's signature stands in front of this one.
        return self._checked_generate(text, *args, **kwargs)

    def _checked_generate(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._attached:
            given = self._signature.bind(*args, **kwargs)
            given.apply_defaults()
            check_request(self.wrapped, given.arguments)
        with self._turns():
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
        """Speak many texts; waves as :meth:`generate` gives them, in input order.

        What a text sounds like depends on the text, its seed and the settings alone, not on the texts around it: the
        speech tokens are those of ``torch.manual_seed(seed)`` and :meth:`generate`, up to rounding. T3 speaks many
        texts at a time. A model that is restored, whose T3 is left to stock, or whose ``generate`` is not chatterbox's
        own speaks them one after the other.

        Args:
            texts: what to speak; :func:`tts_compile.split_text` makes chunks of a long text.
            seeds: one for each text; None draws them from torch's global generator. Otherwise the global generators
                are left as they are.
            max_batch: texts that T3 speaks at a time at most; None leaves it to the free memory.
            progress: True shows a bar; a function is called with a :class:`BatchProgress` after every text.
            on_error: what happens when some texts fail, after the others have been spoken: ``"raise"`` raises, and
                ``"skip"`` leaves None in their places.
            generate_kwargs: as of :meth:`generate`, for all texts.

        Raises:
            BatchError: naming the texts that failed; it holds the waves of the others.
            InputError: for settings that the model cannot speak with, before any work is done.
            ModelStateError: for a model in training mode.
        """
        texts = checked_texts(texts)
        if max_batch is not None and (isinstance(max_batch, bool) or not isinstance(max_batch, int) or max_batch < 1):
            raise InputError(f"max_batch must be a whole number from 1 or None, got {max_batch!r}")
        if on_error not in ("raise", "skip"):
            raise InputError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        if not hasattr(self.wrapped, "t3"):
            raise InputError(f"{type(self.wrapped).__name__} speaks no texts")
        bound = self._signature.bind("", **generate_kwargs)
        bound.apply_defaults()
        given = {name: value for name, value in bound.arguments.items() if name != "text"}
        check_settings(self.wrapped, given)
        with self._turns():
            seeds = checked_seeds(seeds, len(texts))  # which may draw them
            self._switch()
            # What was put in the way of generate and of what it calls is honoured, in a row.
            t3 = self._engine("t3") if not_its_own(self.wrapped, "generate") is None else None
            flow = self._engine("flow") if not_its_own(self.wrapped.s3gen, "inference") is None else None
            with self._timed("generate_batch") as block:
                chunks = speak_batch(
                    self.wrapped, t3, flow, self.wrapped.generate, given, texts, seeds, max_batch, progress
                )
                block.audio_seconds = self._seconds([chunk.wave for chunk in chunks])
        return delivered(chunks, on_error)

    def _timed(self, name: str, phase: str | None = None) -> timed:
        """What stock speaks is no part of the timings."""
        return timed(name, self.timings if self._attached else None, phase=phase)

    def _seconds(self, waves: Iterable[Tensor | None]) -> float:
        """Of speech; somebody's own ``generate`` may give anything."""
        samples = sum(wave.shape[-1] for wave in waves if isinstance(wave, Tensor) and wave.ndim)
        return samples / float(self.wrapped.sr)

    def _engine(self, name: str) -> Any:
        """The component, where it speaks by itself now."""
        component = self._components[name]
        if not isinstance(component, EngineComponent) or not component.speaks_together:
            return None
        return component

    def warmup(
        self, texts: Iterable[str] | None = None, progress: bool | Callable[[str], object] = False
    ) -> WarmupReport:
        """Compile, or record, every shape that later calls may need, and speak to see that nothing is missing.

        The global random generators and the model's voice are left as they were.

        Args:
            texts: spoken to their ends; the voice must be set then. None has the first speech tokens of
                ``config.warmup_samples`` built-in texts spoken, where the model speaks texts and has a voice.
            progress: True shows a bar; a function is told each step as it begins.

        Raises:
            InputError: for texts without a voice, one that cannot be spoken, a single text in place of a list, or a
                model that speaks none; before anything is compiled.
        """
        if isinstance(texts, str):
            raise InputError("texts must be a list of texts, not a single one")
        samples: list[str] = []
        if texts is not None:
            if not hasattr(self.wrapped, "t3"):
                raise InputError(f"{type(self.wrapped).__name__} speaks no texts")
            check_voice(self.wrapped, None)
            texts = checked_texts(texts)
            for text in texts:
                check_text(self.wrapped, text)
        elif self._attached and self._components.engines and getattr(self.wrapped, "conds", None) is not None:
            longest = self.wrapped.t3.hp.max_text_tokens // 2  # room for two tokens a character
            samples = sample_texts(self.config.buckets, self.config.warmup_samples, longest)
        with self._turns():
            self._switch(wait=True)
            with self._timed("warmup", "warm-up"):
                speak = self._checked_generate
                return warm_up(
                    self.wrapped, self._components, speak, texts or (), samples, progress, compiles=self._attached
                )

    @contextlib.contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Alone among the threads that speak, with torch's generators as ``torch.manual_seed(seed)`` leaves them.

        Afterwards they are as before. Calls from several threads take turns in any case; but ``torch.manual_seed`` is
        global, and another thread may draw between it and :meth:`generate`.

        >>> def speak(fast, text, seed):  # doctest: +SKIP
        ...     with fast.seeded(seed):
        ...         return fast.generate(text)  # the same from every thread, at any time

        Raises:
            InputError: for what is no seed.
        """
        (seed,) = checked_seeds([seed], 1)
        with self._turns(), RandomNumbers(seed, torch.device(self.wrapped.device)).as_global():
            yield

    @contextlib.contextmanager
    def stock(self) -> Iterator[Any]:
        """The wrapped model with stock behaviour, inside a ``with`` block; what was compiled is kept meanwhile.

        Raises:
            ModelStateError: at the end of the block, when the model was compiled again inside it.

        >>> def compare(fast, text):  # doctest: +SKIP
        ...     with fast.stock() as tts:
        ...         return tts.generate(text), fast.generate(text)  # both stock
        """
        if not self._attached:
            yield self.wrapped
            return
        with self._turn(), self._detached():
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
        """Compare with stock: tensors and tokens of each component on stock's own inputs, then whole utterances.

        The voice and the global generators are left as they were.

        Args:
            texts: what is spoken; None takes :data:`tts_compile.parity.TEXTS`. A voice converter converts the
                recording instead.
            seed: of the first text; the next ones count up.
            recording: of a voice, for the components that read one; None makes one. A model without a voice speaks
                with it.
            transcribe: writes down a wave (1, samples) of a rate in Hz, so that words are compared too; True takes a
                speech recogniser where the extra ``quality`` is installed.
            step: told what is being done.

        Raises:
            InputError: for texts or a recording that the model cannot speak with.
            ModelStateError: for a model that has been restored.
        """
        texts = checked_inputs(self.wrapped, TEXTS if texts is None else texts, recording)
        note = ""
        listener = transcribe if callable(transcribe) else None
        if not hasattr(self.wrapped, "t3"):
            note, listener = "words were not compared: what a recording says is not known", None
        elif transcribe is True:
            listener, note = quality.listener()
        with self._turns():
            if not self._attached:
                raise ModelStateError("this model is not compiled: there is nothing to compare with stock")
            self._switch()
            components = {name: self._components[name] for name in self._components}
            with self._timed("validate"):
                found = measure(
                    self.wrapped,
                    components,
                    {name: Thresholds.of(component.dtype) for name, component in components.items()},
                    self.stock,
                    self._checked_generate,
                    texts,
                    seed=seed,
                    recording=recording,
                    transcribe=listener,
                    step=step,
                )
        return dataclasses.replace(found, notes=(*found.notes, note) if note else found.notes)

    def keep_what_passes(self) -> None:
        """Give up every component that does not give what stock gives; the report has an event for each.

        Raises:
            ParityError: instead, where the policy is ``"raise"``; the model is stock then.
        """
        with self._turns():
            first = found = self.validate(TEXTS[:1], transcribe=False)
            while not found.passed:
                failed = {name: part.failures[0] for name, part in found.components.items() if not part.passed}
                if not failed:  # each is well alone, and not all together
                    (wave,) = found.waves
                    failed = dict.fromkeys(found.components, f"whole utterances: {wave.failures[0]}")
                if self.config.fallback == "raise":
                    self.restore()
                    raise ParityError("; ".join(f"{name}: {why}" for name, why in failed.items()), found)
                for name, why in failed.items():
                    self._components.give_up(name, why)
                if not failed:
                    break  # stock differs from itself
                found = self.validate(TEXTS[:1], transcribe=False)  # do the others speak well without them?
            vars(self)["parity"] = first

    def report(self) -> ExecutionReport:
        """What was asked, what ran, and the counts that prove it; waits for the device."""
        rows = self._components.report()
        if self._background is not None:
            rows = {name: row.meanwhile(getattr(self.config, name).execution) for name, row in rows.items()}
        for name, row in self._earlier.items():
            rows[name] = rows[name].after(row, "while another process compiled")
        return ExecutionReport(self._attached, rows)

    def restore(self) -> None:
        """Give the model back as it was; the handle then passes everything through. Doing it twice is harmless.

        Waits for an utterance that another thread is speaking.

        Raises:
            ModelStateError: when a replaced method was replaced again by somebody else.
        """
        with alone() if self._process.forked else self._turn():
            vars(self)["_suspended"] = False
            if self._attached:
                self._detach()
            self._components.release()
            if self._background is not None:
                self._background.stop()
                vars(self)["_background"] = None

    def _switch(self, wait: bool = False) -> None:
        """Use what another process has compiled, once it has; between two utterances, and while attached."""
        running = self._background
        if running is None or not self._attached or (running.running and not wait):
            return
        own = vars(self)
        running.wait()
        earlier = self._components.report()
        try:
            with self._detached():
                own["_components"], own["_earlier"] = (
                    ComponentSet(self.wrapped, family_of(type(self.wrapped)), self.config, self.timings),
                    earlier,
                )
        except ModelStateError as error:  # somebody stands in front of a component, which can only stay then
            logger.warning("what was compiled in the background is not used: %s", error)
        own["_background"] = None
        if self.parity is not None:
            self.keep_what_passes()

    def _turns(self) -> contextlib.AbstractContextManager[None]:
        """Utterances take turns, those of a model that is stock again too; only compiled code minds a fork."""
        return self._turn() if self._attached else alone()

    # An interrupt may come between any two of these lines: what says that the model is compiled is set before it is and
    # taken away after it is not, and all of it can be done twice.

    @contextlib.contextmanager
    def _detached(self) -> Iterator[None]:
        """Stock inside the block and attached after it, unless it was restored in it."""
        try:
            try:
                vars(self)["_suspended"] = True
                self._detach()
                yield
            finally:
                self._resume()
        except BaseException:
            self._resume()  # the rest of it, where an interrupt came in the middle
            raise

    def _resume(self) -> None:
        if self._suspended:
            self._attach()
            vars(self)["_suspended"] = False

    def _detach(self) -> None:
        self._components.detach()
        vars(self.wrapped).pop(HANDLE, None)
        vars(self)["_attached"] = False

    def _attach(self) -> None:
        if vars(self.wrapped).get(HANDLE) not in (None, self):  # a copied model has None
            vars(self)["_suspended"] = False
            raise ModelStateError("the model was compiled again meanwhile; call restore() on that handle first")
        vars(self)["_attached"] = True
        setattr(self.wrapped, HANDLE, self)
        try:
            self._components.attach()
        except BaseException:
            self._detach()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def __repr__(self) -> str:
        state = "attached" if self._attached else "restored"
        return f"<CompiledTTS around {type(self.wrapped).__name__}, {state}>"
