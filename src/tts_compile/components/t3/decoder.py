"""The Llama decoder as plain tensor functions: one block of new positions against a cache.

A block may be a whole prompt, a single token or a few; rows are sequences (two with classifier-free guidance).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...execution import native
from .weights import LayerWeights


class Operators(NamedTuple):
    """How to do the two heavy parts."""

    products: Callable[[Tensor, Sequence[Any]], list[Tensor]]  # (x, matrices) -> [x @ matrix.T, ...]
    attention: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # as native.attention


def _products(x: Tensor, matrices: Sequence[Tensor]) -> list[Tensor]:
    return [F.linear(x, matrix) for matrix in matrices]


def _attention(query: Tensor, keys: Tensor, values: Tensor, positions: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG001
    attended = mask.shape[1]
    return F.scaled_dot_product_attention(query, keys[:, :, :attended], values[:, :, :attended], attn_mask=mask)


TORCH = Operators(_products, _attention)
NATIVE = Operators(native.products, native.attention)


def decoder_layer(
    operators: Operators,
    eps: float,
    x: Tensor,  # (rows, count, width)
    cos: Tensor,  # (count, head_dim)
    sin: Tensor,
    positions: Tensor,  # int64 (count,)
    mask: Tensor,  # bool (count, attended)
    keys: Tensor,  # (rows, heads, capacity, head_dim), written at `positions`
    values: Tensor,
    weights: LayerWeights,
) -> Tensor:
    """One layer: attention over the cache, then the gated MLP; returns (rows, count, width)."""
    rows, count, width = x.shape
    heads, head_dim = keys.shape[1], keys.shape[3]
    products, attention = operators

    h = rms_norm(x, weights.attention_norm, eps)
    query, key, value = (
        projected.view(rows, count, heads, head_dim).transpose(1, 2)
        for projected in products(h, (weights.query, weights.key, weights.value))
    )
    keys.index_copy_(2, positions, rotate(key, cos, sin))
    values.index_copy_(2, positions, value)
    mixed = attention(rotate(query, cos, sin), keys, values, positions, mask)
    (update,) = products(mixed.transpose(1, 2).reshape(rows, count, width), (weights.output,))
    x = x + update

    h = rms_norm(x, weights.mlp_norm, eps)
    gate, up = products(h, (weights.gate, weights.up))
    (update,) = products(F.silu(gate) * up, (weights.down,))
    return x + update


def head(operators: Operators, eps: float, x: Tensor, norm: Tensor, weight: Any) -> Tensor:
    """Final norm and projection: (rows, count, width) to logits (rows, count, vocabulary)."""
    (logits,) = operators.products(rms_norm(x, norm, eps), (weight,))
    return logits


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension, in fp32 as ``LlamaRMSNorm`` does it."""
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return weight * h.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (..., count, head_dim), halves layout, as transformers' Llama has it."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
