"""The operator ``transformer_block``: a pre-norm transformer block on a CPU, with ``transformer_block.cpp`` behind it.

At the 500 to 2500 frames of an utterance, torch's attention and linear layers stay well below the processor's peak. One
operator for projections, attention and MLP keeps the intermediate results in the CPU's cache.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from . import build
from .packing import PANEL, panels

HEAD_DIM = 64


class Block(NamedTuple):
    """The fp32 weights of a transformer block; matrices are (out, in), norms and biases (features,)."""

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

    def packed(self) -> Block:
        """Returns a copy in the order in which the native block reads it."""
        return Block(*(panels(part) if part.ndim == 2 else part.detach().clone() for part in self))

    def addresses(self) -> Tensor:
        """Returns the addresses of a packed block's parts, int64, in the order of ``Block`` in the C++ file."""
        return torch.tensor([part.data_ptr() for part in self], dtype=torch.int64)


def fits(width: int, heads: int, head_dim: int, inner: int) -> bool:
    """Returns whether the native block is made for these sizes."""
    return head_dim == HEAD_DIM and not width % PANEL and not inner % PANEL and heads > 0


def transform(x: Tensor, lengths: Tensor, addresses: Tensor, heads: int, inner: int, eps: float) -> Tensor:
    """Runs the block: attention over all positions of each sequence, then an MLP with GELU.

    :func:`load` must have been called.

    Args:
        x: fp32 (sequences, positions, width).
        lengths: int64 (sequences,), at most ``positions``; later positions are not read and get no attention.
        addresses: those of a packed :class:`Block`, which must be kept alive.
        heads: number of attention heads, of 64 features each.
        inner: width of the MLP.
        eps: of the layer norms.

    Returns:
        fp32 (sequences, positions, width); 0 at positions from a sequence's length on.
    """
    result: Tensor = torch.ops.tts_compile.transformer_block(x, lengths, addresses, heads, inner, eps)
    return result


class _TransformerBlock(ctypes.Structure):
    """The struct ``TransformerBlock`` of ``transformer_block.cpp``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("block", "x", "lengths", "y")),
        *((name, ctypes.c_int64) for name in ("sequences", "capacity", "width", "heads", "inner", "threads")),
        ("eps", ctypes.c_double),
    )


def load(cache_dir: str | None = None) -> None:
    """Builds the library if it is missing and registers the operator ``torch.ops.tts_compile.transformer_block``.

    Raises:
        CompilationError: when the library cannot be built or loaded; see
            :func:`tts_compile.execution.native.build.load_library`.
    """
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
