"""The Llama decoder as plain tensor functions: one block of new positions against a cache.

A block may be a whole prompt, a single token or a few; an utterance with classifier-free guidance has two sequences.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .weights import LayerWeights


def decoder_layer(
    eps: float,
    x: Tensor,  # (sequences, count, width)
    cos: Tensor,  # (sequences, 1, count, head_dim)
    sin: Tensor,
    positions: Tensor,  # int64 (sequences, count)
    mask: Tensor,  # bool (sequences, 1, count, attended)
    keys: Tensor,  # (at least sequences, heads, capacity, head_dim), written at `positions`
    values: Tensor,
    weights: LayerWeights,
) -> Tensor:
    """One layer: attention over the cache, then the gated MLP; returns (sequences, count, width)."""
    sequences, count, width = x.shape
    attended = mask.shape[3]
    heads, head_dim = keys.shape[1], keys.shape[3]

    h = rms_norm(x, weights.attention_norm, eps)
    query, key, value = (
        F.linear(h, matrix).view(sequences, count, heads, head_dim).transpose(1, 2)
        for matrix in (weights.query, weights.key, weights.value)
    )
    own = torch.arange(sequences, device=x.device)[:, None, None]
    places = own, torch.arange(heads, device=x.device)[:, None], positions[:, None]
    keys.index_put_(places, rotate(key, cos, sin))
    values.index_put_(places, value)
    mixed = F.scaled_dot_product_attention(
        rotate(query, cos, sin),
        keys[:sequences, :, :attended],
        values[:sequences, :, :attended],
        attn_mask=mask,
    )
    x = x + F.linear(mixed.transpose(1, 2).reshape(sequences, count, width), weights.output)

    h = rms_norm(x, weights.mlp_norm, eps)
    gated = F.silu(F.linear(h, weights.gate)) * F.linear(h, weights.up)
    return x + F.linear(gated, weights.down)


def head(eps: float, x: Tensor, norm: Tensor, weight: Tensor) -> Tensor:
    """Final norm and projection: (sequences, count, width) to logits (sequences, count, vocabulary)."""
    return F.linear(rms_norm(x, norm, eps), weight)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension, in fp32 as ``LlamaRMSNorm`` does it."""
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return weight * h.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (..., count, head_dim), halves layout, as transformers' Llama has it."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
