"""The same operators native and in torch, so that a component is written once."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .native import convolution
from .native import transformer_block as transformer
from .native.transformer_block import Block


class PackedBlock(NamedTuple):
    """A transformer block as :meth:`Operators.transform` takes it, and what must live meanwhile."""

    arguments: tuple[Tensor, ...]
    weights: Block


class Operators(Protocol):
    """Convolution over time and transformer blocks on (batch, time, features), and how they want their weights."""

    def pack(self, weight: Tensor) -> Tensor:
        """A kernel (outputs, inputs, taps) as :meth:`convolve` takes it; a copy."""

    def taps(self, weight: Tensor, inputs: int) -> int:
        """Of a packed kernel."""

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
        """As :func:`tts_compile.execution.native.convolution.convolve`."""

    def pack_block(self, block: Block) -> PackedBlock:
        """A transformer block, whose ``arguments`` :meth:`transform` takes."""

    def transform(
        self, x: Tensor, lengths: Tensor, block: tuple[Tensor, ...], heads: int, inner: int, eps: float
    ) -> Tensor:
        """As :func:`tts_compile.execution.native.transformer_block.transform`."""


class NativeOperators:
    """Native code, for float32 on a CPU; :meth:`load` comes first."""

    @staticmethod
    def load(cache_dir: str | None = None) -> None:
        """Build the operators in a cache folder if need be.

        Raises:
            CompilationError: when they cannot be built.
        """
        convolution.load(cache_dir)
        transformer.load(cache_dir)

    pack = staticmethod(convolution.pack)
    convolve = staticmethod(convolution.convolve)

    def taps(self, weight: Tensor, inputs: int) -> int:
        """Of a packed kernel."""
        return weight.shape[1] // inputs

    def pack_block(self, block: Block) -> PackedBlock:
        """A copy, known to :meth:`transform` by its address."""
        packed = block.packed()
        return PackedBlock((packed.addresses(),), packed)

    def transform(
        self, x: Tensor, lengths: Tensor, block: tuple[Tensor, ...], heads: int, inner: int, eps: float
    ) -> Tensor:
        """As :func:`tts_compile.execution.native.transformer_block.transform`."""
        return transformer.transform(x, lengths, block[0], heads, inner, eps)


class TorchOperators:
    """Torch's own operators, for every device and dtype."""

    def pack(self, weight: Tensor) -> Tensor:
        """A copy as it is."""
        return weight.detach().clone()

    def taps(self, weight: Tensor, inputs: int) -> int:  # noqa: ARG002
        """Of a kernel."""
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
        """As :func:`tts_compile.execution.native.convolution.convolve`."""
        last = (rows - 1) * stride + (weight.shape[2] - 1) * dilation - left  # row of x that is read last
        padded = F.pad(x.transpose(1, 2), (left, last + 1 - x.shape[1]))
        y: Tensor = F.conv1d(padded, weight, bias, stride=stride, dilation=dilation).transpose(1, 2)
        return y if residual is None else y + residual

    def pack_block(self, block: Block) -> PackedBlock:
        """Its tensors where they are."""
        return PackedBlock(tuple(block), block)

    def transform(
        self,
        x: Tensor,
        lengths: Tensor,
        block: tuple[Tensor, ...],
        heads: int,
        inner: int,  # noqa: ARG002 - read off the weights
        eps: float,
    ) -> Tensor:
        """As :func:`tts_compile.execution.native.transformer_block.transform`."""
        b = Block(*block)
        seen = before(lengths, x.shape[1])
        x = torch.where(seen[..., None], x, 0)  # attention gives them no weight, but nan times 0 is nan

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
    """Which of ``count`` positions lie before each length, bool (batch, count)."""
    return torch.arange(count, device=lengths.device) < lengths[:, None]
