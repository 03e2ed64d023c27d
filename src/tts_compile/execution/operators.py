"""Convolution and transformer block over time: in C++ for float32 on a CPU, in torch elsewhere.

Torch's convolution, attention and linear layers stay well below a processor's peak at the 500 to 2500 frames of an
utterance. ``native/convolution.cpp`` and ``native/transformer_block.cpp`` keep intermediate results in the CPU's cache.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .native import build
from .region import dynamic

PANEL = 64  # rows of a matrix that lie together
HEAD_DIM = 64  # of the native transformer block


class Block(NamedTuple):
    """The weights of a transformer block; matrices are (out, in), norms and biases (features,)."""

    attention_norm: Tensor
    attention_norm_bias: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    output_bias: Tensor
    mlp_norm: Tensor
    mlp_norm_bias: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor


class PackedBlock(NamedTuple):
    """The arguments of a transformer block for :meth:`Operators.transform`, and the weights that must be kept alive."""

    arguments: tuple[Tensor, ...]
    weights: Block


class Operators:
    """Operators on (batch, time, features), in torch: for every device and dtype."""

    @staticmethod
    def pack(weight: Tensor) -> Tensor:
        """Returns a copy of a kernel (outputs, inputs, taps) in the form that :meth:`convolve` takes."""
        return weight.detach().clone()

    @staticmethod
    def taps(weight: Tensor, inputs: int) -> int:  # noqa: ARG004 - what another form of the kernel needs
        """Returns the number of taps of a packed kernel."""
        return weight.shape[2]

    @staticmethod
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
        """Convolves over time: row t sums kernel[j] times row ``t * stride + j * dilation - left`` over the taps j.

        Args:
            x: (batch, time, inputs); rows outside of it count as 0.
            weight: a kernel that :meth:`pack` has returned.
            bias: (outputs,).
            rows: number of rows of the result.
            left: number of rows of padding at the start.
            dilation: distance between taps in rows of ``x``.
            stride: distance between rows of the result in rows of ``x``.
            residual: (batch, rows, outputs), added to the result.

        Returns:
            (batch, rows, outputs).
        """
        last = (rows - 1) * stride + (weight.shape[2] - 1) * dilation - left  # the last row of x that is read
        padded = F.pad(x.transpose(1, 2), (left, last + 1 - x.shape[1]))
        y: Tensor = F.conv1d(padded, weight, bias, stride=stride, dilation=dilation).transpose(1, 2)
        return y if residual is None else y + residual

    @staticmethod
    def pack_block(block: Block) -> PackedBlock:
        """Returns a transformer block in the form that :meth:`transform` takes."""
        return PackedBlock(tuple(block), block)

    @staticmethod
    def transform(
        x: Tensor,
        lengths: Tensor,
        block: tuple[Tensor, ...],
        heads: int,
        inner: int,  # noqa: ARG004 - the weights have this size
        eps: float,
    ) -> Tensor:
        """Runs a pre-norm transformer block: attention over all positions of each sequence, then an MLP with GELU.

        Args:
            x: (sequences, positions, width).
            lengths: int64 (sequences,), at most ``positions``; later positions are not read and get no attention.
            block: arguments that :meth:`pack_block` has returned; its weights must be kept alive.
            heads: number of attention heads.
            inner: width of the MLP.
            eps: of the layer norms.

        Returns:
            (sequences, positions, width); 0 at positions from a sequence's length on.
        """
        b = Block(*block)
        seen = before(lengths, x.shape[1])
        x = torch.where(seen[..., None], x, 0)  # their attention weights are 0, but 0 times nan is nan

        def split(y: Tensor) -> Tensor:
            by_head: Tensor = y.unflatten(2, (heads, -1)).transpose(1, 2)
            return by_head

        normed = F.layer_norm(x, x.shape[2:], b.attention_norm, b.attention_norm_bias, eps)
        query, key, value = (split(F.linear(normed, matrix)) for matrix in (b.query, b.key, b.value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None])
        x = x + F.linear(attended.transpose(1, 2).flatten(2), b.output, b.output_bias)
        normed = F.layer_norm(x, x.shape[2:], b.mlp_norm, b.mlp_norm_bias, eps)
        x = x + F.linear(F.gelu(F.linear(normed, b.up, b.up_bias)), b.down, b.down_bias)
        return torch.where(seen[..., None], x, 0)


class NativeOperators(Operators):
    """The same operators in C++, for float32 on a CPU; :meth:`load` must have been called."""

    @staticmethod
    def load(cache_dir: str | None = None) -> None:
        """Builds the libraries that are missing in the cache folder and registers the operators.

        Raises:
            CompilationError: when they cannot be built.
        """
        _load_convolution(cache_dir)
        _load_transformer_block(cache_dir)

    @staticmethod
    def pack(weight: Tensor) -> Tensor:
        """Returns a copy of a kernel (outputs, inputs, taps) in the order in which the C++ reads it.

        The number of taps is marked dynamic, so that one compiled graph serves kernels of several sizes.
        """
        return dynamic(panels(weight.detach().transpose(1, 2).flatten(1)), 1)

    @staticmethod
    def taps(weight: Tensor, inputs: int) -> int:
        """Returns the number of taps of a packed kernel."""
        return weight.shape[1] // inputs

    @staticmethod
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
        """Convolves over time; see :meth:`Operators.convolve`."""
        result: Tensor = torch.ops.tts_compile.convolution(
            x, weight, bias, rows=rows, left=left, dilation=dilation, stride=stride, residual=residual
        )
        return result

    @staticmethod
    def fits(width: int, heads: int, head_dim: int, inner: int) -> bool:
        """Returns whether the native transformer block is made for these sizes."""
        return head_dim == HEAD_DIM and not width % PANEL and not inner % PANEL and heads > 0

    @staticmethod
    def pack_block(block: Block) -> PackedBlock:
        """Packs a copy of the weights; the arguments are their addresses, in the order of ``Block`` in the C++."""
        packed = Block(*(panels(part) if part.ndim == 2 else part.detach().clone() for part in block))
        return PackedBlock((torch.tensor([part.data_ptr() for part in packed], dtype=torch.int64),), packed)

    @staticmethod
    def transform(x: Tensor, lengths: Tensor, block: tuple[Tensor, ...], heads: int, inner: int, eps: float) -> Tensor:
        """Runs a block; see :meth:`Operators.transform`."""
        (addresses,) = block
        result: Tensor = torch.ops.tts_compile.transformer_block(x, lengths, addresses, heads, inner, eps)
        return result


def panels(matrix: Tensor) -> Tensor:
    """Returns a copy of a matrix (out, in) as (out / 64, in, 64); zeros fill up the last panel. See ``gemm_tile.h``."""
    out, width = matrix.shape
    count = -(-out // PANEL)
    padded = torch.zeros(count * PANEL, width, dtype=matrix.dtype)
    padded[:out] = matrix
    return padded.view(count, PANEL, width).transpose(1, 2).contiguous()


def before(lengths: Tensor, count: int) -> Tensor:
    """Returns which of ``count`` positions lie before each length, bool (batch, count)."""
    return torch.arange(count, device=lengths.device) < lengths[:, None]


class _Convolution(ctypes.Structure):
    """The struct ``Convolution`` of ``convolution.cpp``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "residual", "y")),
        *((name, ctypes.c_int64) for name in ("sequences", "rows", "inputs", "out_rows", "outputs")),
        *((name, ctypes.c_int64) for name in ("taps", "dilation", "stride", "left", "threads")),
    )


def _load_convolution(cache_dir: str | None) -> None:
    """Registers the operator ``torch.ops.tts_compile.convolution``."""
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


class _TransformerBlock(ctypes.Structure):
    """The struct ``TransformerBlock`` of ``transformer_block.cpp``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("block", "x", "lengths", "y")),
        *((name, ctypes.c_int64) for name in ("sequences", "capacity", "width", "heads", "inner", "threads")),
        ("eps", ctypes.c_double),
    )


def _load_transformer_block(cache_dir: str | None) -> None:
    """Registers the operator ``torch.ops.tts_compile.transformer_block``."""
    library = build.load_library("transformer_block", cache_dir)

    def run(x: Tensor, lengths: Tensor, addresses: Tensor, heads: int, inner: int, eps: float) -> Tensor:
        sequences, capacity, width = x.shape
        if x.dtype != torch.float32 or lengths.dtype != torch.int64 or lengths.shape != (sequences,):
            raise ValueError(f"need float32 x and {sequences} int64 lengths, got {x.dtype}, {lengths.shape}")
        if width % PANEL or inner % PANEL or addresses.shape != (len(Block._fields),):
            raise ValueError(f"no native block for width {width}, inner width {inner}, {len(addresses)} weights")
        if sequences and not 0 <= int(lengths.min()) <= int(lengths.max()) <= capacity:
            raise ValueError(f"lengths {lengths.tolist()} do not fit {capacity} positions")
        x, lengths = x.contiguous(), lengths.contiguous()
        y = torch.empty_like(x)
        pointers = (addresses.data_ptr(), x.data_ptr(), lengths.data_ptr(), y.data_ptr())
        sizes = (sequences, capacity, width, heads, inner, torch.get_num_threads())
        library.tts_transformer_block(ctypes.byref(_TransformerBlock(*pointers, *sizes, eps)))
        return y

    build.register(
        "transformer_block(Tensor x, Tensor lengths, Tensor addresses, int heads, int inner, float eps) -> Tensor",
        run,
        lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format),
    )
