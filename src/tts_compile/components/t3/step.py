"""One pass over a set of weights, from tokens to guided logits: the unit that is compiled."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ...execution import Region, native
from ...fallback import FallbackManager
from .cache import KVCache
from .decoder import decoder_layer, head
from .sampling import guide
from .weights import DecoderWeights


class LayeredPass:
    """Torch operators; one layer and the head are compiled and reused.

    A graph of all layers would hold the same code once per layer and take as many times longer to compile.

    Args:
        name: for messages.
        weights: what to read.
        fallback: decides between compiled and eager.
        compile_options: of :class:`tts_compile.execution.Region`.

    Attributes:
        layer: :func:`decoder_layer`, compiled or not.
        head: :func:`head` likewise.
    """

    execution = "inductor"

    def __init__(self, name: str, weights: DecoderWeights, fallback: FallbackManager, **compile_options: Any) -> None:
        self.calls = 0
        self._weights = weights
        device = weights.final_norm.device
        layer_function = functools.partial(decoder_layer, weights.eps)
        head_function = functools.partial(head, weights.eps)
        self.layer = Region(f"{name} layer", layer_function, fallback, device, **compile_options)
        self.head = Region(f"{name} head", head_function, fallback, device, **compile_options)

    def __call__(
        self, tokens: Tensor, speech_position: int, rotary: Tensor, start: int, cache: KVCache, cfg_weight: Tensor
    ) -> Tensor:
        """Speech tokens at consecutive positions, the same for every sequence of the cache.

        Args:
            tokens: int64 (count,).
            speech_position: of the first among the speech tokens.
            rotary: (2, positions, head_dim), cosines and sines.
            start: the first token's position in the cache.
            cache: written from ``start``.
            cfg_weight: strength of guidance, 0-dimensional.

        Returns:
            Logits (count, vocabulary), guided where the cache has two sequences.
        """
        self.calls += 1
        weights = self._weights
        x = embedded(weights.speech_embedding, weights.speech_positions, tokens, speech_position, cache.sequences)
        x = run_layers(self.layer, weights, x, rotary, start, cache)
        return guide(self.head(x, weights.final_norm, weights.head), cfg_weight)

    @property
    def compiled_calls(self) -> int:
        """Passes in which every call was counted inside compiled code."""
        return min(self.layer.compiled_calls // len(self._weights.layers), self.head.compiled_calls)

    @property
    def graphs(self) -> int:
        """Graphs that torch compiled for it."""
        return self.layer.graphs + self.head.graphs

    @property
    def graph_breaks(self) -> int:
        """Graph breaks while doing so."""
        return self.layer.graph_breaks + self.head.graph_breaks


class NativePass:
    """The whole step in one compiled graph, with the native decoder inside; on a CPU.

    :meth:`ready` comes before the first call of an utterance; the calls are :class:`LayeredPass`'s.

    Args:
        name: for messages.
        weights: the model's, for the embeddings.
        decoder_weights: what the decoder reads.
        fallback: decides between compiled and eager.
        compile_options: of :class:`tts_compile.execution.Region`.
    """

    execution = "inductor"

    def __init__(
        self,
        name: str,
        weights: DecoderWeights,
        decoder_weights: native.Weights,
        fallback: FallbackManager,
        **compile_options: Any,
    ) -> None:
        self.calls = 0
        self._weights = weights
        self._native = decoder_weights
        self._addresses = torch.empty(0, dtype=torch.int64)
        function = functools.partial(native_step, decoder_weights.inner, decoder_weights.vocabulary, weights.eps)
        self._step = Region(name, function, fallback, torch.device("cpu"), **compile_options)

    def ready(self) -> bool:
        """Look up where the weights lie; False where they are no longer what the native decoder reads."""
        if not self._native.fit:
            return False
        self._addresses = self._native.addresses()
        return True

    def __call__(
        self, tokens: Tensor, speech_position: int, rotary: Tensor, start: int, cache: KVCache, cfg_weight: Tensor
    ) -> Tensor:
        """As :meth:`LayeredPass.__call__`."""
        self.calls += 1
        weights = self._weights
        positions = torch.arange(start, start + len(tokens))
        logits: Tensor = self._step(
            weights.speech_embedding,
            weights.speech_positions,
            tokens,
            torch.tensor(speech_position),
            rotary,
            positions,
            cache.keys,
            cache.values,
            self._addresses,
            cfg_weight,
        )
        return logits

    @property
    def compiled_calls(self) -> int:
        """Passes counted inside compiled code."""
        return self._step.compiled_calls

    @property
    def graphs(self) -> int:
        """Graphs that torch compiled for it."""
        return self._step.graphs

    @property
    def graph_breaks(self) -> int:
        """Graph breaks while doing so."""
        return self._step.graph_breaks


DecoderPass = LayeredPass | NativePass


def native_step(
    inner: int,
    vocabulary: int,
    eps: float,
    speech_embedding: Tensor,
    speech_positions: Tensor,
    tokens: Tensor,
    speech_position: Tensor,
    rotary: Tensor,
    positions: Tensor,
    keys: Tensor,
    values: Tensor,
    addresses: Tensor,
    cfg_weight: Tensor,
) -> Tensor:
    """Embedding, native decoder and guidance: logits (count, vocabulary)."""
    x = embedded(speech_embedding, speech_positions, tokens, speech_position, keys.shape[1])
    cos, sin = rotary[:, positions]
    logits = native.decode(x, cos, sin, positions, keys, values, addresses, inner, vocabulary, eps)
    return guide(logits, cfg_weight)


def run_layers(
    layer: Any,
    weights: DecoderWeights,
    x: Tensor,  # (sequences, count, width)
    rotary: Tensor,  # (2, positions, head_dim)
    start: int,
    cache: KVCache,
) -> Tensor:
    """Every layer over a block of positions from ``start``, writing its keys and values into the cache."""
    count = x.shape[1]
    positions, mask = cache.attend(start, count)
    cos, sin = rotary[:, start : start + count]
    for layer_weights, keys, values in zip(weights.layers, cache.layer_keys, cache.layer_values):
        x = layer(x, cos, sin, positions, mask, keys, values, layer_weights)
    return x


def embedded(
    speech_embedding: Tensor, speech_positions: Tensor, tokens: Tensor, first: int | Tensor, sequences: int
) -> Tensor:
    """Speech tokens (count,) at consecutive speech positions: (sequences, count, width)."""
    limit = len(speech_positions) - 1  # only guesses beyond the last token can lie above it
    positions = (first + torch.arange(len(tokens), device=tokens.device)).clamp(max=limit)
    block = speech_embedding[tokens] + speech_positions[positions]
    return block.expand(sequences, -1, -1).contiguous()
