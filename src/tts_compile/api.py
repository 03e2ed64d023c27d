"""Attach to a stock model, and compare what it speaks with stock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from .config import CompileConfig, switched_off_by_env
from .errors import ConfigError, ModelStateError, UnsupportedModelError
from .execution.process_lock import locked as alone
from .handle import HANDLE, CompiledTTS
from .parity import ParityReport
from .validation import check_mode

SUPPORTED = {"chatterbox.tts.ChatterboxTTS", "chatterbox.vc.ChatterboxVC"}


def compile_model(tts: Any, config: CompileConfig | None = None, *, validate: bool = False) -> CompiledTTS:
    """Make a stock model fast, in place, until :meth:`CompiledTTS.restore`.

    A few methods of this one instance are replaced by instance attributes; no class or module is touched, and no
    weight is changed. On a CPU, T3 guesses ahead with an int8 copy of itself (a quarter of its fp32 bytes) unless
    ``draft_tokens`` is 0, and flow and vocoder keep their matrices a second time as native code reads them. Calling
    it again with an equal configuration returns the same handle.

    Args:
        tts: a ``chatterbox.tts.ChatterboxTTS`` or ``chatterbox.vc.ChatterboxVC`` in evaluation mode.
        config: what to run and how; None reads the environment (:meth:`CompileConfig.from_env`).
        validate: compare every component with stock, which speaks a short sentence; those that do not give what it
            gives stay stock, and :attr:`CompiledTTS.parity` has the figures.

    Raises:
        UnsupportedModelError: for any other object.
        ConfigError: when ``config`` is no :class:`CompileConfig`.
        ModelStateError: for a model in training mode, one compiled with another configuration, or a shallow copy of
            a compiled one.
        ParityError: for a component that does not give what stock gives, where the policy is ``"raise"``.
    """
    if isinstance(tts, CompiledTTS):
        tts = tts.wrapped
    check_supported(tts)
    if config is None:
        config = CompileConfig.from_env()
    if not isinstance(config, CompileConfig):
        raise ConfigError(f"config must be a CompileConfig, got {type(config).__name__}")
    if switched_off_by_env():
        config = CompileConfig.off()
    with alone():
        existing = _handle(tts)
        if existing is not None and existing.config != config:
            raise ModelStateError("this model is already compiled with another configuration; call restore() first")
        # What is made here must serve outside inference mode too.
        with torch.inference_mode(mode=False), torch.no_grad():
            handle = existing or CompiledTTS(tts, config)
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
    """Compare a compiled model with stock: tensors and tokens of each component, then waves.

    Args:
        tts: the model, which is stock again afterwards, or a compiled one, which stays as it is.
        config: what to run and how; None takes that of a compiled model, or reads the environment.
        texts: what is spoken; None takes three sentences.
        options: of :meth:`CompiledTTS.validate`: ``seed``, ``recording``, ``transcribe``, ``step``.

    Raises:
        InputError: for texts or a recording that the model cannot speak with.
        ModelStateError, UnsupportedModelError, ConfigError: as :func:`compile_model`.
    """
    if isinstance(tts, CompiledTTS):
        tts = tts.wrapped
    check_supported(tts)
    with alone():
        existing = _handle(tts)
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
    """The model with stock behaviour inside the block, compiled or not, in turn with others that speak.

    Raises:
        UnsupportedModelError, ModelStateError: as :func:`compile_model`.
    """
    if isinstance(tts, CompiledTTS):
        tts = tts.wrapped
    check_supported(tts)
    with alone():
        existing = _handle(tts)
        with existing.stock() if existing is not None else contextlib.nullcontext(tts) as stock:
            yield stock


def check_supported(tts: Any) -> None:
    """Refuse what is no model that this library knows.

    Raises:
        UnsupportedModelError: naming those that it does.
    """
    names = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(tts).__mro__}
    if not names & SUPPORTED:
        raise UnsupportedModelError(
            f"cannot compile {type(tts).__module__}.{type(tts).__qualname__}; supported: {', '.join(sorted(SUPPORTED))}"
        )


def _handle(tts: Any) -> CompiledTTS | None:
    """Of a model that is compiled already."""
    existing: CompiledTTS | None = vars(tts).get(HANDLE)
    if existing is None:
        check_mode(tts)
    elif existing.wrapped is not tts:
        raise ModelStateError("a shallow copy of a compiled model sets the original's voice; use copy.deepcopy")
    return existing
