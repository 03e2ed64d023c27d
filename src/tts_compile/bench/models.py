"""Where a command's model comes from, what T3 is asked, and how stock is kept quiet meanwhile."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import torch

from .. import testing
from ..config import COMPONENTS, CompileConfig, ComponentPolicy
from ..errors import InputError, TTSCompileError
from ..families.english import text_tokens
from ..loading import load_model, load_pretrained
from ..timing.blocks import Stopwatch

T = TypeVar("T")

PRETRAINED = "pretrained"
SYNTHETIC = "synthetic"


@contextlib.contextmanager
def checkpoint(model: str, size: str, seed: int, speech_tokens: int, directory: Path | None) -> Iterator[str]:
    """What :func:`load` takes for ``model``; a synthetic checkpoint without a ``directory`` lives as long as the block.

    Args:
        model: ``"synthetic"``, ``"pretrained"`` or a checkpoint folder.
        size: of a synthetic checkpoint, see :func:`tts_compile.testing.write_checkpoint`.
        seed: of its weights.
        speech_tokens: about where it stops.
        directory: where to keep a synthetic checkpoint; one that is already there is used as it is.
    """
    if importlib.util.find_spec("chatterbox") is None:
        raise TTSCompileError("chatterbox-tts is not installed: pip install 'tts-compile[chatterbox]'")
    if model != SYNTHETIC:
        yield model
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is to be fetched for synthetic weights
    if directory is not None:
        if not (directory / "tokenizer.json").is_file():  # the file written last
            testing.write_checkpoint(directory, size=size, seed=seed, speech_tokens=speech_tokens)
        yield str(directory)
        return
    with tempfile.TemporaryDirectory(prefix="tts-compile-") as folder:
        testing.write_checkpoint(folder, size=size, seed=seed, speech_tokens=speech_tokens)
        yield folder


def load(source: str, device: str) -> Any:
    """Load the English model from a checkpoint folder, or the published weights for ``"pretrained"``.

    Raises:
        InputError: when the published weights cannot be had, or the folder is no checkpoint.
    """
    if source != PRETRAINED:
        return testing.load_checkpoint(source, device=device)
    from chatterbox.tts import ChatterboxTTS

    with _published():
        return ChatterboxTTS.from_pretrained(device)


def load_quickly(source: str, device: str, **options: Any) -> Any:
    """The same through :func:`tts_compile.load_model`, which has the options."""
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
    """What the loaded model is, read off the model itself."""
    return {
        "class": type(tts).__name__,
        "device": str(tts.device),
        "dtype": str(tts.t3.speech_head.weight.dtype).removeprefix("torch."),
        "t3_layers": len(tts.t3.tfmr.layers),
        "t3_parameters": sum(p.numel() for p in tts.t3.parameters()),
        "s3gen_parameters": sum(p.numel() for p in tts.s3gen.parameters()),
    }


def only(component: str, config: CompileConfig) -> CompileConfig:
    """The same with every other component stock."""
    stock = ComponentPolicy(execution="stock")
    return config.replace(**{name: stock for name in COMPONENTS if name != component})


def graphs(fast: Any) -> int:
    """That torch has compiled, and CUDA graphs that were recorded, for a compiled model."""
    return sum(row.graphs for row in fast.report().components.values())


def t3_inputs(tts: Any, text: str) -> dict[str, Any]:
    """Arguments of ``T3.inference`` as stock ``generate(text)`` passes them, save for ``max_new_tokens``."""
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


def timed_call(device: str, function: Callable[[], T]) -> tuple[T, float]:
    """The function's result and its seconds, the device's queue emptied before and after."""
    _synchronise(device)
    with Stopwatch() as watch:
        result = function()
        _synchronise(device)
    return result, watch.seconds


def _synchronise(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep other people's progress bars, prints and warnings off the terminal; undone on exit.

    Changes to the environment that are made inside the block are undone too.
    """
    from tqdm import tqdm

    init = tqdm.__init__

    def silent(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("disable", True)  # bars that state it themselves, such as ours, stay as they are
        init(self, *args, **kwargs)

    verbosity = {"TRANSFORMERS_VERBOSITY": "error", **os.environ}  # read when transformers is first imported
    with (
        mock.patch.object(tqdm, "__init__", silent),
        mock.patch.dict(os.environ, verbosity),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


class Progress:
    """Named steps on stderr: a bar on a terminal, elsewhere a line as each begins.

    Args:
        total: how many there will be; None where nobody knows.
    """

    def __init__(self, total: int | None) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            total=total, disable=not sys.stderr.isatty(), leave=False, bar_format="{l_bar}{bar}| {n}/{total}"
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Show ``name`` while the block runs."""
        self._show(name)
        yield
        self._bar.update()

    def tell(self, name: str) -> None:
        """Show ``name`` until the next is told."""
        self._show(name)
        self._bar.update()

    def _show(self, name: str) -> None:
        if self._bar.disable:
            print(f"{name} ...", file=sys.stderr, flush=True)
        else:
            self._bar.set_description(name)
