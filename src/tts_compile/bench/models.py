"""The model of a command: its source, its description, and the arguments of T3."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .. import _compat, testing
from ..api import compile_model
from ..config import COMPONENTS, CompileConfig, ComponentPolicy
from ..errors import InputError, TTSCompileError
from ..families.english import text_tokens
from ..handle import CompiledTTS
from ..loading import load_model, load_pretrained
from ..measuring.interleaved import timed_call
from ..measuring.progress import Progress, Step
from ..utils.patch import patched, patched_items

PRETRAINED = "pretrained"
SYNTHETIC = "synthetic"


@contextlib.contextmanager
def checkpoint(model: str, size: str, seed: int, speech_tokens: int, directory: Path | None) -> Iterator[str]:
    """Yields the source of a model for :func:`load`.

    A synthetic checkpoint without a ``directory`` is removed at the end of the block.

    Args:
        model: ``"synthetic"``, ``"pretrained"`` or a checkpoint folder.
        size: of a synthetic checkpoint, see :func:`tts_compile.testing.write_checkpoint`.
        seed: of its weights.
        speech_tokens: number of tokens after which it stops, more or less.
        directory: folder to keep a synthetic checkpoint in; one that exists there is used.
    """
    if importlib.util.find_spec("chatterbox") is None:
        raise TTSCompileError("chatterbox-tts is not installed: pip install 'tts-compile[chatterbox]'")
    if model != SYNTHETIC:
        yield model
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # synthetic weights need no download
    with contextlib.ExitStack() as temporary:
        folder = directory or Path(temporary.enter_context(tempfile.TemporaryDirectory(prefix="tts-compile-")))
        if not (folder / "tokenizer.json").is_file():  # the file written last
            testing.write_checkpoint(folder, size=size, seed=seed, speech_tokens=speech_tokens)
        yield str(folder)


def load(source: str, device: str) -> Any:
    """Loads the English model from a checkpoint folder, or the published weights for ``"pretrained"``.

    Raises:
        InputError: when the published weights cannot be loaded, or the folder is no checkpoint.
    """
    if source != PRETRAINED:
        return testing.load_checkpoint(source, device=device)
    from chatterbox.tts import ChatterboxTTS

    with _published():
        return ChatterboxTTS.from_pretrained(device)


def load_quickly(source: str, device: str, **options: Any) -> Any:
    """Loads the model with :func:`tts_compile.load_model`, which has the options."""
    if source == PRETRAINED:
        with _published():
            return load_pretrained("ChatterboxTTS", device, **options)
    with testing.architecture_of(source):
        return load_model("ChatterboxTTS", source, device, **{"strict": False, **options})


@contextlib.contextmanager
def _published() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub client's errors share no base: HTTP, connection, cache, offline mode
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise InputError(f"the published weights cannot be loaded: {type(error).__name__}: {reason}") from error


def describe(tts: Any) -> dict[str, Any]:
    """Returns class, device, dtype and sizes of a loaded model."""
    return {
        "class": type(tts).__name__,
        "device": str(tts.device),
        "dtype": str(tts.t3.speech_head.weight.dtype).removeprefix("torch."),
        "t3_layers": len(tts.t3.tfmr.layers),
        "t3_parameters": sum(p.numel() for p in tts.t3.parameters()),
        "s3gen_parameters": sum(p.numel() for p in tts.s3gen.parameters()),
    }


def only(component: str, config: CompileConfig) -> CompileConfig:
    """Returns a configuration in which every other component is stock."""
    stock = ComponentPolicy(execution="stock")
    return config.replace(**{name: stock for name in COMPONENTS if name != component})


def new_graphs(fast: Any) -> Callable[[], int]:
    """Returns a function that counts the graphs compiled by torch, or captured for the model, from now on."""

    def counts() -> tuple[int, int]:
        return _compat.graph_counts()[0], sum(row.graphs for row in fast.report().components.values())

    before = counts()
    return lambda: max(now - then for now, then in zip(counts(), before))


def t3_inputs(tts: Any, text: str) -> dict[str, Any]:
    """Returns the arguments that stock ``generate(text)`` passes to ``T3.inference``, without ``max_new_tokens``."""
    if tts.conds is None:
        raise InputError("the model has no voice: the checkpoint lacks conds.pt")
    return {
        "t3_cond": tts.conds.t3,
        "text_tokens": text_tokens(tts, text, guided=True),
        "temperature": 0.8,
        "cfg_weight": 0.5,
        "repetition_penalty": 1.2,
        "min_p": 0.05,
        "top_p": 1.0,
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps progress bars, prints and warnings of other libraries off the terminal inside the block.

    Changes to the environment inside the block are undone too.
    """
    from tqdm import tqdm

    init = tqdm.__init__

    def silent(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("disable", True)  # a bar that sets it, such as ours, is shown
        init(self, *args, **kwargs)

    verbosity = {"TRANSFORMERS_VERBOSITY": "error", **os.environ}  # transformers reads it when it is imported
    with (
        patched(tqdm, "__init__", silent),
        patched_items(os.environ, verbosity),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


class Compiled(NamedTuple):
    """A compiled model, the seconds of ``compile_model``, and the progress of the command."""

    fast: CompiledTTS
    attach_seconds: float
    step: Step


@contextlib.contextmanager
def compiled_model(source: str, device: str, component: str | None = None) -> Iterator[Compiled]:
    """Yields a model that is compiled with an empty compile cache.

    Args:
        source: see :func:`load`.
        device: of the model.
        component: the only one that is not stock; None follows the environment for all of them.
    """
    with compile_cache() as cache_dir, Progress() as progress:
        progress("loading")
        tts = load(source, device)
        config = CompileConfig.from_env().replace(cache_dir=cache_dir)
        if component:
            config = only(component, config)
        fast, seconds = timed_call(device, lambda: compile_model(tts, config))
        with fast:
            yield Compiled(fast, seconds, progress)


def common(fast: CompiledTTS, settings: Any) -> dict[str, Any]:
    """Returns the fields that the results of all benchmarks of one model have."""
    return {
        "settings": settings,
        "model": describe(fast.wrapped),
        "config": fast.config.replace(cache_dir=None).to_dict(),  # the folder was a temporary one
        "report": fast.report().to_dict(),
    }


@contextlib.contextmanager
def compile_cache() -> Iterator[str]:
    """Yields an empty folder for compiled code, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="tts-compile-cache-", ignore_cleanup_errors=True) as folder:
        yield folder
