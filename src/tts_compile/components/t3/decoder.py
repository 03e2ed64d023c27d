"""The Llama decoder as plain tensor functions: one block of new positions against a cache.

A block may be a whole prompt, a single token or a few; rows are sequences (two with classifier-free guidance).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .weights import LayerWeights, Matrix


Linear = Callable[[Tensor, Any], Tensor]  # (x, matrix) -> x @ matrix.T


def decoder_layer(
    linear: Linear,
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

    def split(projected: Tensor) -> Tensor:
        return projected.view(rows, count, heads, head_dim).transpose(1, 2)

    h = rms_norm(x, weights.attention_norm, eps)
    query = rotate(split(linear(h, weights.query)), cos, sin)
    key = rotate(split(linear(h, weights.key)), cos, sin)
    value = split(linear(h, weights.value))
    keys.index_copy_(2, positions, key)
    values.index_copy_(2, positions, value)
    attended = mask.shape[1]
    mixed = F.scaled_dot_product_attention(query, keys[:, :, :attended], values[:, :, :attended], attn_mask=mask)
    x = x + linear(mixed.transpose(1, 2).reshape(rows, count, width), weights.output)

    h = rms_norm(x, weights.mlp_norm, eps)
    return x + linear(F.silu(linear(h, weights.gate)) * linear(h, weights.up), weights.down)


def head(linear: Linear, eps: float, x: Tensor, norm: Tensor, weight: Matrix) -> Tensor:
    """Final norm and projection: (rows, count, width) to logits (rows, count, vocabulary)."""
    return linear(rms_norm(x, norm, eps), weight)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension, in fp32 as ``LlamaRMSNorm`` does it."""
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return weight * h.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (..., count, head_dim), halves layout, as transformers' Llama has it."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
