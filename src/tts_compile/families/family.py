"""One declaration for each model class: everything that depends on the class and is not a step of its transformer."""

from __future__ import annotations

import contextlib
import importlib
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backbones.backbone import Backbone
from ..errors import InputError
from .checkpoint_files import NO_FILES, CheckpointFiles
from .sampling import Processor, SamplingSettings


class SpeechCall(NamedTuple):
    """One call of a speech model.

    Attributes:
        voice: what the model is conditioned on, as stock passes it.
        text_tokens: int64 (rows, n); two rows with guidance, the unconditional one last.
        settings: of sampling.
        limit: speech tokens at most; None for the model's own limit.
        start_tokens: int64 (rows, n) in place of the start token; None for that one.
    """

    voice: Any
    text_tokens: Tensor
    settings: SamplingSettings
    limit: int | None = None
    start_tokens: Tensor | None = None


@dataclass(frozen=True)
class SpeechModel:
    """The autoregressive part of a family: from text to speech tokens.

    Attributes:
        attribute: the speech model's name on the model.
        method: its method with the token loop, which the library replaces.
        limit: the argument of ``method`` that bounds the number of speech tokens.
        budget: the bound that stock's ``generate`` passes.
        backbone: the step of the transformer.
        call: reads and checks the arguments of ``method``, defaults included.
        prompt: returns the embeddings (rows, n, width) that stock feeds before the first token is sampled.
        text_tokens: returns the text tokens of a text, as stock's ``generate`` passes them; the last argument says
            whether there is guidance.
        check_text: raises InputError for a text that the model cannot speak.
        start, stop: the start and the stop token of a speech model.
        processors: in stock's order.
        guidance: the argument with the strength of classifier-free guidance; None for a model without guidance.
        start_counts_as_seen: whether the start token counts for the repetition penalty.
        keeps_stop: whether stock's ``method`` returns the stop token.
        voice: what of the model's voice ``method`` is conditioned on.
        longest_text: text tokens at most.
        head: the name of the module whose output are the logits; parity compares them.
    """

    attribute: str
    method: str
    limit: str
    budget: int
    backbone: Backbone
    call: Callable[[Any, Mapping[str, Any]], SpeechCall]
    prompt: Callable[[Any, SpeechCall], Tensor]
    text_tokens: Callable[[Any, str, bool], Tensor]
    start: Callable[[Any], int]
    stop: Callable[[Any], int]
    processors: tuple[Processor, ...]
    check_text: Callable[[Any, object], None] = lambda *_: None
    guidance: str | None = None
    start_counts_as_seen: bool = True
    keeps_stop: bool = True
    voice: Callable[[Any], Any] = lambda voice: voice
    longest_text: Callable[[Any], int] = lambda _: 1000
    head: str = "speech_head"

    def of(self, tts: Any) -> Any:
        """Returns the speech model of a model."""
        return getattr(tts, self.attribute)

    def settings(self, given: Mapping[str, Any]) -> SamplingSettings:
        """Returns the sampling settings among the arguments of ``generate``.

        Raises:
            InputError: lists every setting that is out of range.
        """
        settings = SamplingSettings.checked(self.processors, given, self.guidance)
        if settings.cfg_weight < 0:
            raise InputError(f"{self.guidance} must be at least 0, got {settings.cfg_weight}")
        return settings


@dataclass(frozen=True)
class Synthesis:
    """The second half of a family's ``generate``: from speech tokens to a wave.

    Attributes:
        finish_tokens: returns the tokens (n,) that stock passes on, on the model's device, of those that were sampled.
        wave: returns the wave (1, samples), on the CPU, of a model, finished tokens and a voice; draws random numbers
            as stock does.
        watermark: returns the watermarked wave (1, samples) of a model and a wave.
        attribute: the name of the module with flow and vocoder, where they are S3Gen's; None for another synthesis.
        solver_steps: of the flow, in stock's ``generate``.
        mel_wave: as ``wave``, from mel frames (1, 80, frames) instead of tokens.
        reference: what of a voice the flow is conditioned on.
    """

    finish_tokens: Callable[[Any, list[int]], Tensor]
    wave: Callable[[Any, Tensor, Any], Tensor]
    watermark: Callable[[Any, Tensor], Tensor] = lambda _, wave: wave
    attribute: str | None = None
    solver_steps: int = 10
    mel_wave: Callable[[Any, Tensor], Tensor] | None = None
    reference: Callable[[Any], Mapping[str, Any]] = operator.attrgetter("gen")


@dataclass(frozen=True)
class VoiceSlot:
    """Names of a family's voice.

    Attributes:
        attribute: of the model; None there means that the model has no voice.
        method: of the model; reads a recording and sets the attribute.
        argument: of ``generate``; a recording to speak with.
        read: does what ``method`` does, with the same arguments, but through a cache of the last results; its first
            arguments are a :class:`tts_compile.components.voice.ReferenceComponent` and the model. None leaves
            ``method`` to stock.
        modules: names of the modules whose ``method`` is the one that ``read`` was written for.
    """

    attribute: str
    method: str
    argument: str
    read: Callable[..., None] | None = None
    modules: tuple[str, ...] = ()

    def of(self, tts: Any) -> Any:
        """Returns the model's voice, or None."""
        return getattr(tts, self.attribute, None)

    def check(self, tts: Any, recording: object) -> None:
        """Raises where the model has no voice and no recording is given.

        Raises:
            InputError: then.
        """
        if not recording and self.of(tts) is None:
            raise InputError(f"the model has no voice: pass a reference or call {self.method} first")

    def prepare(self, tts: Any, recording: str) -> None:
        """Reads a recording as the model does; keeps its voice only where the model had none."""
        before = self.of(tts)
        getattr(tts, self.method)(recording)
        if before is not None:
            setattr(tts, self.attribute, before)

    def move(self, tts: Any, device: Any) -> None:
        """Moves the voice's tensors to a device."""
        voice = self.of(tts)
        if isinstance(voice, dict):
            moved = {name: value.to(device) if torch.is_tensor(value) else value for name, value in voice.items()}
            setattr(tts, self.attribute, moved)
        elif voice is not None:
            voice.to(device)

    @contextlib.contextmanager
    def kept(self, tts: Any) -> Iterator[None]:
        """Restores the voice at the end of the block, whatever was done to it inside."""
        before = self.of(tts)
        # generate exchanges a part of the voice when it is asked for another exaggeration
        parts = dict(vars(before)) if hasattr(before, "__dict__") else {}
        try:
            yield
        finally:
            setattr(tts, self.attribute, before)
            if parts:
                vars(before).update(parts)


@dataclass(frozen=True, eq=False)
class Family:
    """The declaration of one model class.

    Attributes:
        name: for messages and the command line.
        stock_class: module and name of the class; subclasses belong to the family too.
        voice: where the model keeps its voice.
        synthesis: from speech tokens to a wave.
        speech: from text to speech tokens; None for a voice converter.
        package: the top-level package whose own methods may be replaced.
        files: of a published checkpoint; none for a class that :func:`tts_compile.load_model` does not load.
        voice_encoder, watermarker: names of the model's attributes; None where there is none.
        modules: names of all of the model's modules.
        subject: the first argument of ``generate``.
        check: raises InputError for arguments of ``generate`` besides text, voice and sampling settings.
        set_voice: does what stock's ``generate`` does to the voice, given its arguments, before it speaks.
        neutral: returns arguments of ``generate`` with which the voice stays as it is.
        unsupported: why :func:`tts_compile.compile_model` refuses the class; empty where it does not.
    """

    name: str
    stock_class: str
    voice: VoiceSlot
    synthesis: Synthesis
    speech: SpeechModel | None = None
    package: str = "chatterbox"
    files: CheckpointFiles = NO_FILES
    voice_encoder: str | None = None
    watermarker: str | None = None
    modules: tuple[str, ...] = ()
    subject: str = "text"
    check: Callable[[Any, Mapping[str, Any]], None] = lambda *_: None
    set_voice: Callable[[Any, Mapping[str, Any]], None] = lambda *_: None
    neutral: Callable[[Any], Mapping[str, Any]] = lambda _: {}
    unsupported: str = ""

    @property
    def module_name(self) -> str:
        """Returns the name of the module that defines the class."""
        return self.stock_class.rpartition(".")[0]

    @property
    def class_name(self) -> str:
        """Returns the name of the class."""
        return self.stock_class.rpartition(".")[2]

    def load_class(self) -> Any:
        """Imports and returns the class."""
        return getattr(importlib.import_module(self.module_name), self.class_name)

    def device(self, tts: Any) -> torch.device:
        """Returns the device of the model's first module."""
        weight: Tensor = next(getattr(tts, self.modules[0]).parameters())
        return weight.device
