"""Matrix products for a few rows on a CPU: ``kernels.cpp``, built once and callable from compiled graphs.

At the 2 to 8 rows of a decode step a matrix product is bound by reading the matrix. General libraries reach the
memory's speed at 1 or 2 rows at best, and inductor cannot express prefetching; these kernels can.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _compat
from ..errors import CompilationError

_SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_BUILD_SECONDS = 120


class Int8Matrix(NamedTuple):
    """A matrix (out, in) in 8 bits: ``values * scales[:, None]``."""

    values: Tensor  # int8 (out, in)
    scales: Tensor  # fp32 (out,)

    @classmethod
    def of(cls, matrix: Tensor) -> Int8Matrix:
        """Round to the nearest of 255 steps, symmetric, with one scale per row."""
        scales = matrix.detach().float().abs().amax(1).clamp(min=1e-12) / 127
        return cls((matrix.detach() / scales[:, None]).round().to(torch.int8), scales)


def linear(x: Tensor, weight: Tensor | Int8Matrix) -> Tensor:
    """``F.linear`` without bias for fp32 ``x`` (..., in) with few rows; needs :func:`load` to have been called."""
    if isinstance(weight, Int8Matrix):
        result: Tensor = torch.ops.tts_compile.rows_int8(x, weight.values, weight.scales)
    else:
        result = torch.ops.tts_compile.rows_f32(x, weight)
    return result


@functools.cache
def load(cache_dir: str | None = None) -> None:
    """Build the kernels if need be and register them as ``torch.ops.tts_compile``.

    Raises:
        CompilationError: when there is no C++ compiler, it fails, or the cache folder is not safe to load from.
    """
    library = ctypes.CDLL(str(_built(Path(cache_dir or _compat.inductor_cache_dir()) / "tts_compile")))
    pointer, long, integer = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    library.tts_rows_f32.argtypes = [pointer] * 3 + [long, long, integer, integer]
    library.tts_rows_int8.argtypes = [pointer] * 4 + [long, long, integer, integer]

    def rows_f32(x: Tensor, weight: Tensor) -> Tensor:
        x, y, rows = _prepared(x, weight)
        if weight.dtype != torch.float32 or library.tts_rows_f32(
            weight.data_ptr(), x.data_ptr(), y.data_ptr(), *weight.shape, rows, torch.get_num_threads()
        ):
            return F.linear(x, weight)
        return y

    def rows_int8(x: Tensor, values: Tensor, scales: Tensor) -> Tensor:
        x, y, rows = _prepared(x, values)
        if library.tts_rows_int8(
            values.data_ptr(),
            scales.data_ptr(),
            x.data_ptr(),
            y.data_ptr(),
            *values.shape,
            rows,
            torch.get_num_threads(),
        ):
            return F.linear(x, values.float() * scales[:, None])
        return y

    _register("rows_f32(Tensor x, Tensor weight) -> Tensor", rows_f32)
    _register("rows_int8(Tensor x, Tensor values, Tensor scales) -> Tensor", rows_int8)


def _prepared(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, int]:
    x = x.contiguous()
    return x, x.new_empty((*x.shape[:-1], weight.shape[0])), x.numel() // x.shape[-1]


_library: torch.library.Library | None = None


def _register(schema: str, implementation: object) -> None:
    global _library
    if _library is None:
        _library = torch.library.Library("tts_compile", "DEF")  # kept alive: ops vanish with their library
    name = schema.split("(")[0]
    _library.define(schema)
    _library.impl(name, implementation, "CPU")
    torch.library.register_fake(
        f"tts_compile::{name}",
        lambda x, weight, *_: x.new_empty((*x.shape[:-1], weight.shape[0])),
        lib=_library,
    )


def _built(folder: Path) -> Path:
    """The shared library for this source, compiler and CPU, built into ``folder`` unless it is there already."""
    compiler = _compat.cpp_compiler()
    if compiler is None:
        raise CompilationError("no C++ compiler found")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_unsafe(folder)
    key = hashlib.sha256()
    for part in (_SOURCE.read_text(), compiler, *_FLAGS, torch.__version__, _compat.cpu_name()):
        key.update(part.encode())
    path = folder / f"kernels-{key.hexdigest()[:16]}.so"
    if path.exists():
        _refuse_unsafe(path)
        return path
    handle, building = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    try:
        command = [compiler, *_FLAGS, str(_SOURCE), "-o", building]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_BUILD_SECONDS)
        os.replace(building, path)  # atomic: another process never loads half a file
    except (OSError, subprocess.SubprocessError) as error:
        Path(building).unlink(missing_ok=True)
        detail = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise CompilationError(f"the C++ compiler failed: {detail[0] if detail else error}") from error
    return path


def _refuse_unsafe(path: Path) -> None:
    """What lies in the folder is run as code, so only its owner may be able to write there."""
    status = path.stat()
    if hasattr(os, "getuid") and (
        status.st_uid not in (os.getuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        raise CompilationError(f"{path} can be written by other users; code is not loaded from there")
