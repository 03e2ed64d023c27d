"""The functions that take a stock model: compile it, compare it with stock, make it stock for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from .attachment import HANDLE
from .config import CompileConfig, switched_off_by_env
from .errors import ConfigError, ModelStateError
from .execution.process_lock import locked
from .families import Family, family_to_compile
from .handle import CompiledTTS
from .parity import ParityReport
from .validation import check_mode


def compile_model(tts: Any, config: CompileConfig | None = None, *, validate: bool = False) -> CompiledTTS:
    """Makes a stock model fast, in place, until :meth:`CompiledTTS.restore`.

    A few methods of this one instance are replaced by instance attributes; classes, modules and weights are not
    changed. On a CPU, T3 drafts tokens with an int8 copy of its weights (a quarter of their fp32 bytes) unless
    ``draft_tokens`` is 0, and flow and vocoder keep a second copy of their matrices in the layout of the native code.
    Calling it again with an equal configuration returns the same handle.

    Args:
        tts: a model of a registered family, such as ``chatterbox.tts.ChatterboxTTS``, in evaluation mode.
        config: what to run and how; None reads the environment (:meth:`CompileConfig.from_env`).
        validate: compare every component with stock on a short sentence. Components whose results differ stay stock,
            and :attr:`CompiledTTS.parity` has the figures.

    Raises:
        UnsupportedModelError: for any other object.
        ConfigError: when ``config`` is no :class:`CompileConfig`.
        ModelStateError: for a model in training mode, one compiled with another configuration, or a shallow copy of
            a compiled one.
        ParityError: for a component whose results differ from stock's, where the policy is ``"raise"``.
    """
    tts, family = _model(tts)
    if config is None:
        config = CompileConfig.from_env()
    if not isinstance(config, CompileConfig):
        raise ConfigError(f"config must be a CompileConfig, got {type(config).__name__}")
    if switched_off_by_env():
        config = CompileConfig.off()
    with locked():
        existing = _handle(tts, family)
        if existing is not None and existing.config != config:
            raise ModelStateError("this model is already compiled with another configuration; call restore() first")
        # Tensors that are made here must be usable outside inference mode too.
        with torch.inference_mode(mode=False), torch.no_grad():
            handle = existing or CompiledTTS(tts, family, config)
            if validate and handle.parity is None:
                try:
                    handle.keep_what_passes()
                except BaseException:
                    if existing is None:
                        handle.restore()
                    raise
        return handle


def validate(
    tts: Any, config: CompileConfig | None = None, texts: Iterable[str] | None = None, **options: Any
) -> ParityReport:
    """Compares a compiled model with stock: tensors and tokens of each component, then waves.

    Args:
        tts: the model, which is stock again afterwards, or a compiled one, which stays compiled.
        config: what to run and how; None takes that of a compiled model, or reads the environment.
        texts: the texts; None takes three sentences.
        options: ``seed``, ``recording``, ``transcribe`` and ``step`` of :meth:`CompiledTTS.validate`.

    Raises:
        InputError: for texts or a recording that the model cannot use.
        ModelStateError, UnsupportedModelError, ConfigError: see :func:`compile_model`.
    """
    tts, family = _model(tts)
    with locked():
        existing = _handle(tts, family)
        if existing is not None and config is None:
            return existing.validate(texts, **options)
        fast = compile_model(tts, config)
        try:
            return fast.validate(texts, **options)
        finally:
            if existing is None:
                fast.restore()


@contextlib.contextmanager
def as_stock(tts: Any) -> Iterator[Any]:
    """Makes a model stock inside the block, compiled or not, while other threads wait; returns the stock model.

    Raises:
        UnsupportedModelError, ModelStateError: see :func:`compile_model`.
    """
    tts, family = _model(tts)
    with locked():
        existing = _handle(tts, family)
        with existing.stock() if existing is not None else contextlib.nullcontext(tts) as stock:
            yield stock


def _model(tts: Any) -> tuple[Any, Family]:
    """Returns a stock model, out of its handle if need be, and its family.

    Raises:
        UnsupportedModelError: for an object that belongs to no family, or to one that cannot be compiled.
    """
    if isinstance(tts, CompiledTTS):
        tts = tts.wrapped
    return tts, family_to_compile(type(tts))


def _handle(tts: Any, family: Family) -> CompiledTTS | None:
    """Returns the handle of a model that is compiled already."""
    existing: CompiledTTS | None = vars(tts).get(HANDLE)
    if existing is None:
        check_mode(tts, family)
    elif existing.wrapped is not tts:
        raise ModelStateError("a shallow copy of a compiled model sets the original's voice; use copy.deepcopy")
    return existing
