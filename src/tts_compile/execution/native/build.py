"""Native code for a CPU: built once from the C++ beside this file, and callable as torch operators.

General libraries and inductor leave a factor on the table in three places: decoder steps of a few rows, attention at
speech lengths, and convolutions over time. Each has a source of its own.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch

from ... import _compat, cache
from ...errors import CompilationError
from ...utils import files
from ...utils.device import cpu_name

logger = logging.getLogger(__name__)

# Without the last flag, GCC 12 writes neighbouring rows of an activation back where several threads write them.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-fno-predictive-commoning")
_BUILD_SECONDS = 120
_FOLDER = Path(__file__).parent


@functools.cache
def library(name: str, cache_dir: str | None = None) -> ctypes.CDLL:
    """The shared library made of ``<name>.cpp``, loaded, and built first if need be.

    Raises:
        CompilationError: when there is no C++ compiler, it fails, or the cache folder cannot be used or is not safe
            to load from.
    """
    folder = cache.made(cache_dir) / cache.OURS
    try:
        path = _built(name, folder)
        try:
            if files.sealed(path):  # loading what was cut short may end the process
                return ctypes.CDLL(str(path))
        except OSError:
            logger.warning("%s cannot be loaded", path)  # foreign
        logger.warning("%s is damaged and built again", path)
        path.unlink()
        return ctypes.CDLL(str(_built(name, folder)))
    except OSError as error:
        raise CompilationError(f"the native {name} cannot be kept in or loaded from {folder}: {error}") from error


_operators = torch.library.Library("tts_compile", "DEF")  # kept alive: operators vanish with their library
_registered: set[str] = set()


def register(schema: str, implementation: Callable[..., object], shapes: Callable[..., object]) -> None:
    """Make ``implementation`` the operator ``torch.ops.tts_compile.<name>`` on a CPU, unless there is one already.

    Args:
        schema: the operator's name and types.
        implementation: called with real tensors.
        shapes: called with tensors that have no values, to tell the results' shapes.
    """
    name = schema.split("(")[0]
    if name in _registered:
        return  # from another cache folder: the same code
    _operators.define(schema)
    _operators.impl(name, implementation, "CPU")
    torch.library.register_fake(f"tts_compile::{name}", shapes, lib=_operators)
    _registered.add(name)


def _built(name: str, folder: Path) -> Path:
    """The shared library for this source, compiler and CPU, built into ``folder`` unless it is there already."""
    compiler = _compat.cpp_compiler()
    if compiler is None:
        raise CompilationError("no C++ compiler found")
    files.own_folder(folder)
    source = _FOLDER / f"{name}.cpp"
    texts = [path.read_text(encoding="utf-8") for path in (source, *sorted(_FOLDER.glob("*.h")))]
    key = hashlib.sha256()
    for part in (*texts, compiler, *FLAGS, torch.__version__, cpu_name()):
        key.update(part.encode())
    path = folder / f"{name}-{key.hexdigest()[:16]}.so"
    if path.exists():
        files.refuse_unsafe(path)
        return path
    try:
        with files.replaced(path) as building:
            command = [compiler, *FLAGS, str(source), "-o", str(building)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_BUILD_SECONDS)
            files.seal(building)
    except (OSError, subprocess.SubprocessError) as error:
        detail = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise CompilationError(f"the C++ compiler failed: {detail[0] if detail else error}") from error
    return path
