"""The flow encoder: a conformer that doubles the frame rate half-way, on (batch, positions, features).

Stock's look-ahead convolution reads three positions beyond the end, which are zero only where there is no padding;
here the padding is set to zero in front of it. Everything else looks back or is masked.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...execution import dynamic
from ...execution.operators import before
from ..runtime import ComponentRuntime

Linear = tuple[Tensor, Tensor]  # weight and bias of a linear layer, (out, in) and (out,), or of a norm


class LayerWeights(NamedTuple):
    """A conformer layer without convolution module."""

    attention_norm: Linear
    query: Linear
    key: Linear
    value: Linear
    position: Tensor  # (out, in)
    content_bias: Tensor  # (heads, features)
    position_bias: Tensor  # (heads, features)
    output: Linear
    mlp_norm: Linear
    up: Linear
    down: Linear

    @classmethod
    def of(cls, layer: Any) -> LayerWeights:
        """Returns a stock layer's tensors where they are."""
        attention, mlp = layer.self_attn, layer.feed_forward
        inputs = layer.norm_mha, attention.linear_q, attention.linear_k, attention.linear_v
        position = attention.linear_pos.weight, attention.pos_bias_u, attention.pos_bias_v
        outputs = attention.linear_out, layer.norm_ff, mlp.w_1, mlp.w_2
        parts: list[Any] = [*map(_linear, inputs), *position, *map(_linear, outputs)]
        return cls(*parts)


def _linear(module: Any) -> Linear:
    return module.weight, module.bias


class PositionEncodings(NamedTuple):
    """Stock's position encodings before and after the frame rate is doubled, with tables of their own.

    A call enlarges the table or moves it to the input's device. Stock's modules keep theirs.
    """

    before: Any
    after: Any

    @classmethod
    def of(cls, encoder: Any) -> PositionEncodings:
        """Returns copies that share nothing that a call changes."""
        return cls(copy.copy(encoder.embed.pos_enc), copy.copy(encoder.up_embed.pos_enc))


class Encoder:
    """A stock encoder, run from its weights; a layer is compiled once and reused.

    Args:
        eps: of the layers' norms.
        runtime: of the component.
    """

    def __init__(self, eps: float, runtime: ComponentRuntime) -> None:
        def layer(x: Tensor, positions: Tensor, seen: Tensor, weights: tuple[Any, ...]) -> Tensor:
            return conformer_layer(x, positions, seen, LayerWeights(*weights), eps)

        self._layer = runtime.region("encoder layer", layer)
        self.regions = [self._layer]

    def __call__(self, encoder: Any, encodings: PositionEncodings, x: Tensor, lengths: Tensor) -> Tensor:
        """Encodes.

        Args:
            encoder: the stock module.
            encodings: of the encoder.
            x: (batch, positions, 512), embedded tokens.
            lengths: int64 (batch,), positions that count.

        Returns:
            (batch, 2 * positions, 512).
        """
        seen = before(lengths, x.shape[1])
        x, positions = encodings.before(encoder.embed.out(x))
        x = encoder.pre_lookahead_layer(x * seen[..., None])
        x = self._run(encoder.encoders, x, positions, seen)
        x, lengths = encoder.up_layer(x.transpose(1, 2).contiguous(), lengths)
        x = x.transpose(1, 2).contiguous()
        seen = before(lengths, x.shape[1])
        x, positions = encodings.after(encoder.up_embed.out(x))
        x = self._run(encoder.up_encoders, x, positions, seen)
        encoded: Tensor = encoder.after_norm(x)
        return encoded

    def _run(self, layers: Any, x: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        positions = positions.clone()  # a slice of a table that grows: its own storage keeps guards the same
        for layer in layers:
            inputs = (dynamic(tensor, 1) for tensor in (x, positions, seen))
            x = self._layer(*inputs, tuple(LayerWeights.of(layer)))
        return x


def unsupported_encoder(encoder: Any) -> str | None:
    """Returns why :class:`Encoder` would not compute what an encoder of known classes computes, or None."""
    layers = [*encoder.encoders, *encoder.up_encoders]
    if any(layer.conv_module or layer.feed_forward_macaron or not layer.normalize_before for layer in layers):
        return "its encoder has layers of another kind"
    if len({norm.eps for layer in layers for norm in (layer.norm_mha, layer.norm_ff)}) != 1:
        return "the norms of its encoder's layers differ"
    if encoder.static_chunk_size or encoder.use_dynamic_chunk or encoder.global_cmvn:
        return "its encoder attends in chunks or normalises its input"
    return None


def conformer_layer(x: Tensor, positions: Tensor, seen: Tensor, weights: LayerWeights, eps: float) -> Tensor:
    """Computes attention with relative positions (Transformer-XL, arXiv:1901.02860, appendix B), then a SiLU MLP.

    Args:
        x: (batch, n, width).
        positions: (1, 2 * n - 1, width), encodings of the distances n - 1 to 1 - n.
        seen: bool (batch, n), positions that are attended to.
        weights: of the layer.
        eps: of the norms.
    """
    w = weights
    heads = w.content_bias.shape[0]
    normed = F.layer_norm(x, x.shape[2:], *w.attention_norm, eps)
    query = F.linear(normed, *w.query).unflatten(2, (heads, -1))  # (batch, n, heads, features)
    key = F.linear(normed, *w.key).unflatten(2, (heads, -1)).transpose(1, 2)
    value = F.linear(normed, *w.value).unflatten(2, (heads, -1)).transpose(1, 2)
    distance = F.linear(positions, w.position).unflatten(2, (heads, -1)).transpose(1, 2)
    by_distance = (query + w.position_bias).transpose(1, 2) @ distance.transpose(2, 3)
    bias = (shifted(by_distance) * query.shape[3] ** -0.5).masked_fill(~seen[:, None, None], -torch.inf)
    by_content = (query + w.content_bias).transpose(1, 2)
    attended = F.scaled_dot_product_attention(by_content, key, value, attn_mask=bias).transpose(1, 2).flatten(2)
    x = x + F.linear(attended, *w.output)
    normed = F.layer_norm(x, x.shape[2:], *w.mlp_norm, eps)
    return x + F.linear(F.silu(F.linear(normed, *w.up)), *w.down)


def shifted(by_distance: Tensor) -> Tensor:
    """Row i of (..., n, 2 * n - 1) holds distances n - 1 to 1 - n; the result (..., n, n) holds i - j in column j.

    A view: stock's way, through a padded copy, leaves compiled code with a division for every number.
    """
    batch, heads, n, count = by_distance.shape
    strides = (heads * n * count, n * count, count - 1, 1)
    return by_distance.contiguous().as_strided((batch, heads, n, n), strides, n - 1)
