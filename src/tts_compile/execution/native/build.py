"""Builds the C++ files beside this one and registers them as torch operators.

At three tasks general libraries and the code that inductor generates stay far below what a CPU can do: decoder steps of
a few rows, attention over the frames of an utterance, and convolutions over time. Each of them has a C++ file.
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

SOURCES = Path(__file__).parent
# The last flag is for GCC 12: without it, a thread also writes back neighbouring rows that other threads write.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-fno-predictive-commoning")
BUILD_SECONDS = 120


@functools.cache
def load_library(name: str, cache_dir: str | None = None) -> ctypes.CDLL:
    """Loads the shared library made of ``<name>.cpp``; builds it first if it is missing or damaged.

    Raises:
        CompilationError: when there is no C++ compiler, the compiler fails, or the cache folder cannot be used or other
            users can write to it.
    """
    folder = cache.make_folder(cache_dir) / cache.OWN_FOLDER
    try:
        path = built(name, folder)
        try:
            if files.sealed(path):  # loading a file that was cut short can crash the process
                return ctypes.CDLL(str(path))
        except OSError:
            logger.warning("%s cannot be loaded", path)  # made for another system
        logger.warning("%s is damaged and built again", path)
        path.unlink()
        return ctypes.CDLL(str(built(name, folder)))
    except OSError as error:
        raise CompilationError(f"the native {name} cannot be kept in or loaded from {folder}: {error}") from error


def built(name: str, folder: Path) -> Path:
    """Returns the shared library for this source, compiler and CPU; builds it in ``folder`` if it is not there yet.

    Raises:
        CompilationError: when there is no C++ compiler, it fails, or other users can write to the folder or the file.
    """
    compiler = _compat.cpp_compiler()
    if compiler is None:
        raise CompilationError("no C++ compiler found")
    files.own_folder(folder)
    source = SOURCES / f"{name}.cpp"
    texts = [path.read_text(encoding="utf-8") for path in (source, *sorted(SOURCES.glob("*.h")))]
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
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=BUILD_SECONDS)
            files.seal(building)
    except (OSError, subprocess.SubprocessError) as error:
        detail = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise CompilationError(f"the C++ compiler failed: {detail[0] if detail else error}") from error
    return path


_operators = torch.library.Library("tts_compile", "DEF")  # operators vanish with this object
_registered: set[str] = set()


def register(schema: str, implementation: Callable[..., object], shapes: Callable[..., object]) -> None:
    """Makes ``implementation`` the operator ``torch.ops.tts_compile.<name>`` on a CPU, unless there is one already.

    Args:
        schema: name and types of the operator.
        implementation: called with real tensors.
        shapes: called with tensors that have no values; returns a result of the right shape.
    """
    name = schema.split("(")[0]
    if name in _registered:
        return  # registered for another cache folder, with the same code
    _operators.define(schema)
    _operators.impl(name, implementation, "CPU")
    torch.library.register_fake(f"tts_compile::{name}", shapes, lib=_operators)
    _registered.add(name)
