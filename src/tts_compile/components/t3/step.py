"""One pass over a set of weights: the unit that is compiled."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ...execution import Region
from ...fallback import FallbackManager
from .cache import KVCache
from .decoder import Operators, decoder_layer, head
from .weights import DecoderWeights


class DecoderPass:
    """Feeds a block of embeddings through every layer; one layer and the head are compiled and reused.

    A graph of all layers would hold the same code once per layer and take as many times longer to compile.

    Args:
        name: for messages.
        weights: what to read; several passes may share a cache but not a region.
        operators: how to do products and attention.
        fallback: decides between compiled and eager.
        compile_options: ``backend``, ``mode`` and ``dynamic`` for ``torch.compile``.
    """

    def __init__(
        self,
        name: str,
        weights: DecoderWeights,
        operators: Operators,
        fallback: FallbackManager,
        **compile_options: Any,
    ) -> None:
        self.calls = 0
        self._weights = weights
        device = weights.final_norm.device
        layer_function = functools.partial(decoder_layer, operators, weights.eps)
        head_function = functools.partial(head, operators, weights.eps)
        self._layer = Region(f"{name} layer", layer_function, fallback, device, **compile_options)
        self._head = Region(f"{name} head", head_function, fallback, device, **compile_options)

    def __call__(self, x: Tensor, rotary: tuple[Tensor, Tensor], start: int, cache: KVCache) -> Tensor:
        """Embeddings (rows, count, width) at positions from ``start``; logits (rows, count, vocabulary)."""
        self.calls += 1
        x = run_layers(self._layer, self._weights, x, rotary, start, cache)
        logits: Tensor = self._head(x, self._weights.final_norm, self._weights.head)
        return logits

    @property
    def compiled_calls(self) -> int:
        """Passes in which every call was counted inside compiled code."""
        return min(self._layer.compiled_calls // len(self._weights.layers), self._head.compiled_calls)

    @property
    def graphs(self) -> int:
        """Graphs that torch compiled for this pass."""
        return self._layer.graphs + self._head.graphs

    @property
    def graph_breaks(self) -> int:
        """Graph breaks met while compiling."""
        return self._layer.graph_breaks + self._head.graph_breaks


def run_layers(
    layer: Any,
    weights: DecoderWeights,
    x: Tensor,  # (rows, count, width)
    rotary: tuple[Tensor, Tensor],  # (positions, head_dim) each
    start: int,
    cache: KVCache,
) -> Tensor:
    """Every layer over a block of positions from ``start``, writing its keys and values into the cache."""
    count = x.shape[1]
    positions, mask = cache.attend(start, count)
    cos, sin = (table[start : start + count] for table in rotary)
    for layer_weights, keys, values in zip(weights.layers, cache.keys, cache.values):
        x = layer(x, cos, sin, positions, mask, keys, values, layer_weights)
    return x


def embedded(tokens: list[int], first_position: int, weights: DecoderWeights, rows: int) -> Tensor:
    """Speech tokens at consecutive speech positions, the same for every row: (rows, count, width)."""
    device = weights.final_norm.device
    limit = len(weights.speech_positions) - 1  # only guesses beyond the last token can lie above it
    positions = torch.arange(first_position, first_position + len(tokens), device=device).clamp(max=limit)
    block = weights.speech_embedding[torch.tensor(tokens, device=device)] + weights.speech_positions[positions]
    return block.expand(rows, -1, -1).contiguous()
