"""The operator ``convolution``: a convolution over time on a CPU, with ``convolution.cpp`` behind it."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from . import build
from .packing import PANEL, panels


def pack(weight: Tensor) -> Tensor:
    """Returns a kernel (outputs, inputs, taps) in the order in which :func:`convolve` reads it.

    The number of taps is marked dynamic, so that one compiled graph serves kernels of several sizes.
    """
    packed = panels(weight.detach().transpose(1, 2).flatten(1))
    torch._dynamo.maybe_mark_dynamic(packed, 1)
    return packed


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    rows: int,
    left: int,
    dilation: int = 1,
    stride: int = 1,
    residual: Tensor | None = None,
) -> Tensor:
    """Convolves over time: row t is the sum over taps j of kernel[j] times row ``t * stride + j * dilation - left``.

    :func:`load` must have been called.

    Args:
        x: fp32 (batch, time, inputs); rows outside of it count as 0.
        weight: a kernel that :func:`pack` has returned.
        bias: fp32 (outputs,).
        rows: number of rows of the result.
        left: number of rows of padding at the start.
        dilation: distance between taps in rows of ``x``.
        stride: distance between rows of the result in rows of ``x``.
        residual: fp32 (batch, rows, outputs), added to the result.

    Returns:
        fp32 (batch, rows, outputs).
    """
    result: Tensor = torch.ops.tts_compile.convolution(
        x, weight, bias, rows=rows, left=left, dilation=dilation, stride=stride, residual=residual
    )
    return result


class _Convolution(ctypes.Structure):
    """The struct ``Convolution`` of ``convolution.cpp``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "residual", "y")),
        *((name, ctypes.c_int64) for name in ("sequences", "rows", "inputs", "out_rows", "outputs")),
        *((name, ctypes.c_int64) for name in ("taps", "dilation", "stride", "left", "threads")),
    )


def load(cache_dir: str | None = None) -> None:
    """Builds the library if it is missing and registers the operator ``torch.ops.tts_compile.convolution``.

    Raises:
        CompilationError: when the library cannot be built or loaded; see
            :func:`tts_compile.execution.native.build.load_library`.
    """
    library = build.load_library("convolution", cache_dir)

    def run(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        *,
        rows: int,
        left: int,
        dilation: int,
        stride: int,
        residual: Tensor | None,
    ) -> Tensor:
        batch, time, inputs = x.shape
        outputs, taps = len(bias), weight.shape[1] // inputs
        given = [x, weight, bias] + ([] if residual is None else [residual])
        if any(tensor.dtype != torch.float32 for tensor in given):
            raise ValueError("the native convolution reads and writes float32 only")
        if weight.shape[1] != taps * inputs or weight.shape[2] != PANEL or weight.shape[0] * PANEL < outputs:
            raise ValueError(f"weights {tuple(weight.shape)} are not made for {inputs} inputs and {outputs} outputs")
        if residual is not None and residual.shape != (batch, rows, outputs):
            raise ValueError(f"residual {tuple(residual.shape)} is not {(batch, rows, outputs)}")
        y = x.new_empty(batch, rows, outputs)
        held = [None if t is None else t.contiguous() for t in (x, weight, bias, residual)]
        pointers = [None if t is None else t.data_ptr() for t in held]
        sizes = (batch, time, inputs, rows, outputs, taps, dilation, stride, left, torch.get_num_threads())
        library.tts_convolution(ctypes.byref(_Convolution(*pointers, y.data_ptr(), *sizes)))
        return y

    build.register(
        "convolution(Tensor x, Tensor weight, Tensor bias, *, SymInt rows, SymInt left, SymInt dilation, "
        "SymInt stride, Tensor? residual) -> Tensor",
        run,
        lambda x, _, bias, *, rows, **__: x.new_empty(x.shape[0], rows, bias.shape[0]),
    )
