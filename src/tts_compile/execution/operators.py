"""Convolution and transformer block in C++ and in torch behind one protocol, so that a component is written once."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .native import convolution
from .native import transformer_block as transformer
from .native.transformer_block import Block


class PackedBlock(NamedTuple):
    """The arguments of a transformer block for :meth:`Operators.transform`, and the weights that must be kept alive."""

    arguments: tuple[Tensor, ...]
    weights: Block


class Operators(Protocol):
    """Convolution and transformer block on (batch, time, features), and functions that pack their weights."""

    def pack(self, weight: Tensor) -> Tensor:
        """Returns a copy of a kernel (outputs, inputs, taps) in the form that :meth:`convolve` takes."""

    def taps(self, weight: Tensor, inputs: int) -> int:
        """Returns the number of taps of a packed kernel."""

    def convolve(
        self,
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
        """Convolves over time; see :func:`tts_compile.execution.native.convolution.convolve`."""

    def pack_block(self, block: Block) -> PackedBlock:
        """Packs the weights of a transformer block for :meth:`transform`."""

    def transform(
        self, x: Tensor, lengths: Tensor, block: tuple[Tensor, ...], heads: int, inner: int, eps: float
    ) -> Tensor:
        """Runs a block; see :func:`tts_compile.execution.native.transformer_block.transform`."""


class NativeOperators:
    """Operators in C++, for float32 on a CPU; :meth:`load` must have been called."""

    @staticmethod
    def load(cache_dir: str | None = None) -> None:
        """Builds the libraries that are missing in the cache folder and registers the operators.

        Raises:
            CompilationError: when they cannot be built.
        """
        convolution.load(cache_dir)
        transformer.load(cache_dir)

    pack = staticmethod(convolution.pack)
    convolve = staticmethod(convolution.convolve)

    def taps(self, weight: Tensor, inputs: int) -> int:
        """Returns the number of taps of a packed kernel."""
        return weight.shape[1] // inputs

    def pack_block(self, block: Block) -> PackedBlock:
        """Packs a copy of the weights; :meth:`transform` reads it by its addresses."""
        packed = block.packed()
        return PackedBlock((packed.addresses(),), packed)

    def transform(
        self, x: Tensor, lengths: Tensor, block: tuple[Tensor, ...], heads: int, inner: int, eps: float
    ) -> Tensor:
        """Runs a block; see :func:`tts_compile.execution.native.transformer_block.transform`."""
        return transformer.transform(x, lengths, block[0], heads, inner, eps)


class TorchOperators:
    """Operators in torch, for every device and dtype."""

    def pack(self, weight: Tensor) -> Tensor:
        """Returns a copy of a kernel (outputs, inputs, taps)."""
        return weight.detach().clone()

    def taps(self, weight: Tensor, inputs: int) -> int:  # noqa: ARG002
        """Returns the number of taps of a kernel."""
        return weight.shape[2]

    def convolve(
        self,
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
        """Convolves over time; see :func:`tts_compile.execution.native.convolution.convolve`."""
        last = (rows - 1) * stride + (weight.shape[2] - 1) * dilation - left  # the last row of x that is read
        padded = F.pad(x.transpose(1, 2), (left, last + 1 - x.shape[1]))
        y: Tensor = F.conv1d(padded, weight, bias, stride=stride, dilation=dilation).transpose(1, 2)
        return y if residual is None else y + residual

    def pack_block(self, block: Block) -> PackedBlock:
        """Returns the tensors of a block without copying them."""
        return PackedBlock(tuple(block), block)

    def transform(
        self,
        x: Tensor,
        lengths: Tensor,
        block: tuple[Tensor, ...],
        heads: int,
        inner: int,  # noqa: ARG002 - the weights have this size
        eps: float,
    ) -> Tensor:
        """Runs a block; see :func:`tts_compile.execution.native.transformer_block.transform`."""
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


def before(lengths: Tensor, count: int) -> Tensor:
    """Returns which of ``count`` positions lie before each length, bool (batch, count)."""
    return torch.arange(count, device=lengths.device) < lengths[:, None]
