"""A decode step's heavy parts on a CPU: ``kernels.cpp``, built once and callable from compiled graphs.

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
from collections.abc import Callable, Sequence
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
    sums: Tensor  # int32 (out,), of the values

    @classmethod
    def of(cls, matrix: Matrix) -> Int8Matrix:
        """Round to the nearest of 255 steps, symmetric, with one scale per row."""
        if isinstance(matrix, Int8Matrix):
            return matrix
        matrix = matrix.detach().float()
        scales = matrix.abs().amax(1).clamp(min=1e-12) / 127
        values = (matrix / scales[:, None]).round().to(torch.int8)
        return cls(values, scales, values.sum(1, dtype=torch.int32))


Matrix = Tensor | Int8Matrix


def products(x: Tensor, matrices: Sequence[Matrix]) -> list[Tensor]:
    """``F.linear`` of fp32 ``x`` (..., in) with each of several matrices, all fp32 or all int8.

    Made for few rows of ``x``; with int8 matrices ``x`` may be rounded to 8 bits too. :func:`load` comes first.
    """
    first = matrices[0]
    if isinstance(first, Int8Matrix):
        values, scales, sums = zip(*matrices)
        result: list[Tensor] = torch.ops.tts_compile.rows_int8(x, list(values), list(scales), list(sums))
    else:
        result = torch.ops.tts_compile.rows_f32(x, list(matrices))
    return result


def attention(query: Tensor, keys: Tensor, values: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """Scaled dot-product attention of few positions over a cache, each up to and including its own.

    Args:
        query: fp32 (rows, heads, count, head_dim).
        keys, values: fp32 (rows, heads, capacity, head_dim).
        positions: int64 (count,), ascending.
        mask: bool (count, attended); says the same as ``positions``, for where the kernel does not apply.
    """
    result: Tensor = torch.ops.tts_compile.attention(query, keys, values, positions, mask)
    return result


@functools.cache
def load(cache_dir: str | None = None) -> None:
    """Build the kernels if need be and register them as ``torch.ops.tts_compile``.

    Raises:
        CompilationError: when there is no C++ compiler, it fails, or the cache folder is not safe to load from.
    """
    library = ctypes.CDLL(str(_built(Path(cache_dir or _compat.inductor_cache_dir()) / "tts_compile")))
    if _library is not None:
        return  # another folder, the same code: what is registered stays

    def rows_f32(x: Tensor, matrices: list[Tensor]) -> list[Tensor]:
        x, outputs, rows = _prepared(x, matrices)
        if all(tensor.dtype == torch.float32 for tensor in (x, *matrices)) and not library.tts_rows_f32(
            _pointers(matrices), _pointers(outputs), *_heights(matrices), *_sizes(x, rows)
        ):
            return outputs
        return [F.linear(x, matrix) for matrix in matrices]

    def rows_int8(x: Tensor, values: list[Tensor], scales: list[Tensor], sums: list[Tensor]) -> list[Tensor]:
        x, outputs, rows = _prepared(x, values)
        if x.dtype != torch.float32 or library.tts_rows_int8(
            _pointers(values),
            _pointers(scales),
            _pointers(sums),
            _pointers(outputs),
            *_heights(values),
            *_sizes(x, rows),
        ):
            return [F.linear(x, (v.float() * s[:, None]).to(x.dtype)) for v, s in zip(values, scales)]
        return outputs

    def cache_attention(query: Tensor, keys: Tensor, values: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        rows, heads, count, head_dim = query.shape
        query, mixed = query.contiguous(), query.new_empty(query.shape)
        fits = all(t.dtype == torch.float32 and t.is_contiguous() for t in (query, keys, values))
        if not fits or library.tts_attention(
            *(ctypes.c_void_p(t.data_ptr()) for t in (query, keys, values, mixed, positions)),
            count,
            ctypes.c_long(rows * heads),
            ctypes.c_long(keys.shape[2]),
            ctypes.c_long(head_dim),
            torch.get_num_threads(),
        ):
            length = mask.shape[1]
            return F.scaled_dot_product_attention(query, keys[:, :, :length], values[:, :, :length], attn_mask=mask)
        return mixed

    _register("rows_f32(Tensor x, Tensor[] matrices) -> Tensor[]", rows_f32, _outputs)
    _register("rows_int8(Tensor x, Tensor[] values, Tensor[] scales, Tensor[] sums) -> Tensor[]", rows_int8, _outputs)
    _register(
        "attention(Tensor query, Tensor keys, Tensor values, Tensor positions, Tensor mask) -> Tensor",
        cache_attention,
        lambda query, *_: query.new_empty(query.shape),
    )


def _prepared(x: Tensor, matrices: list[Tensor]) -> tuple[Tensor, list[Tensor], int]:
    x = x.contiguous()
    return x, _outputs(x, matrices), x.numel() // x.shape[-1]


def _outputs(x: Tensor, matrices: list[Tensor], *_: object) -> list[Tensor]:
    return [x.new_empty((*x.shape[:-1], matrix.shape[0])) for matrix in matrices]


def _pointers(tensors: list[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _heights(matrices: list[Tensor]) -> tuple[ctypes.Array[ctypes.c_long], int]:
    return (ctypes.c_long * len(matrices))(*(matrix.shape[0] for matrix in matrices)), len(matrices)


def _sizes(x: Tensor, rows: int) -> tuple[ctypes.c_void_p, ctypes.c_long, int, int]:
    return ctypes.c_void_p(x.data_ptr()), ctypes.c_long(x.shape[-1]), rows, torch.get_num_threads()


_library: torch.library.Library | None = None


def _register(schema: str, implementation: Callable[..., object], shapes: Callable[..., object]) -> None:
    global _library
    if _library is None:
        _library = torch.library.Library("tts_compile", "DEF")  # kept alive: ops vanish with their library
    name = schema.split("(")[0]
    _library.define(schema)
    _library.impl(name, implementation, "CPU")
    torch.library.register_fake(f"tts_compile::{name}", shapes, lib=_library)


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
