"""One pass over a set of weights, from tokens to guided logits: the unit that is compiled."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ...execution import Region
from ...execution.native import llama_decoder as native
from ...fallback import FallbackManager
from .cache import KVCache, Part
from .llama import decoder_layer, head
from .sampling import guide
from .weights import DecoderWeights


class DecoderPass(Protocol):
    """One pass; see :meth:`LayeredPass.__call__`."""

    def __call__(
        self,
        tokens: Tensor,
        spoken: Sequence[int],
        rotary: Tensor,
        places: Sequence[int],
        cache: KVCache,
        cfg_weight: Tensor,
    ) -> Tensor:
        """Guided logits after each of some new tokens."""


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
        self,
        tokens: Tensor,
        spoken: Sequence[int],
        rotary: Tensor,
        places: Sequence[int],
        cache: KVCache,
        cfg_weight: Tensor,
    ) -> Tensor:
        """Speech tokens at consecutive positions, for the utterances in the first slots of a cache.

        Args:
            tokens: int64 (utterances, count).
            spoken: for each utterance, the first one's position among its speech tokens.
            rotary: (2, positions, head_dim), cosines and sines.
            places: for each utterance, the first one's position in the cache.
            cache: written from there.
            cfg_weight: strength of guidance, 0-dimensional.

        Returns:
            Logits (utterances, count, vocabulary), guided where the cache is.
        """
        self.calls += 1
        weights = self._weights
        first = torch.tensor(spoken, device=tokens.device)
        x = embedded(weights.speech_embedding, weights.speech_positions, tokens, first, cache.per_slot)
        x = run_layers(self.layer, weights, x, rotary, _by_sequence(places, cache), cache)
        return guide(self.head(x, weights.final_norm, weights.head), cfg_weight, cache.guided)

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
        self,
        tokens: Tensor,
        spoken: Sequence[int],
        rotary: Tensor,
        places: Sequence[int],
        cache: KVCache,
        cfg_weight: Tensor,
    ) -> Tensor:
        """As :meth:`LayeredPass.__call__`."""
        self.calls += 1
        weights = self._weights
        positions = torch.tensor(_by_sequence(places, cache))[:, None] + torch.arange(tokens.shape[1])
        logits: Tensor = self._step(
            weights.speech_embedding,
            weights.speech_positions,
            _several(tokens),
            _several(torch.tensor(spoken)),
            rotary,
            _several(positions),
            cache.keys,
            cache.values,
            self._addresses,
            cfg_weight,
            cache.guided,
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


def native_step(
    inner: int,
    vocabulary: int,
    eps: float,
    speech_embedding: Tensor,
    speech_positions: Tensor,
    tokens: Tensor,
    spoken: Tensor,
    rotary: Tensor,
    positions: Tensor,
    keys: Tensor,
    values: Tensor,
    addresses: Tensor,
    cfg_weight: Tensor,
    guided: bool,
) -> Tensor:
    """Embedding, native decoder and guidance: logits (utterances, count, vocabulary)."""
    x = embedded(speech_embedding, speech_positions, tokens, spoken, 2 if guided else 1)
    cos, sin = rotary[:, positions]
    logits = native.decode(
        x, cos, sin, positions, keys, values, addresses=addresses, inner=inner, vocabulary=vocabulary, eps=eps
    )
    return guide(logits, cfg_weight, guided)


def run_layers(
    layer: Any,
    weights: DecoderWeights,
    x: Tensor,  # (sequences, count, width)
    rotary: Tensor,  # (2, positions, head_dim)
    starts: Sequence[int],
    cache: KVCache | Part,
) -> Tensor:
    """Every layer over a block of positions of each of the cache's first sequences, which it writes there.

    ``starts`` says for each sequence where its positions begin.
    """
    return through_layers(layer, weights, x, rotary, *cache.attend(starts, x.shape[1]), cache)


def through_layers(
    layer: Any,
    weights: DecoderWeights,
    x: Tensor,  # (sequences, count, width)
    rotary: Tensor,  # (2, positions, head_dim)
    positions: Tensor,  # (sequences, count)
    mask: Tensor,  # (sequences, 1, count, rung)
    cache: KVCache | Part,
) -> Tensor:
    """As :func:`run_layers`, with positions on the device and what they may see."""
    cos, sin = rotary[:, positions][:, :, None]
    for layer_weights, keys, values in zip(weights.layers, cache.layer_keys, cache.layer_values):
        x = layer(_several(x), cos, sin, positions, mask, keys, values, layer_weights)
    return x


def embedded(
    speech_embedding: Tensor, speech_positions: Tensor, tokens: Tensor, first: Tensor, per_slot: int
) -> Tensor:
    """Speech tokens (utterances, count) at consecutive speech positions from ``first`` (utterances,) on.

    Returns:
        (utterances * per_slot, count, width).
    """
    limit = len(speech_positions) - 1  # only guesses beyond the last token can lie above it
    positions = (first[:, None] + torch.arange(tokens.shape[1], device=tokens.device)).clamp(max=limit)
    block = speech_embedding[tokens] + speech_positions[positions]
    return block.repeat_interleave(per_slot, 0)


def _by_sequence(values: Sequence[int], cache: KVCache) -> list[int]:
    """One for each sequence, from one for each utterance."""
    return [value for value in values for _ in range(cache.per_slot)]


def _several(x: Tensor) -> Tensor:
    """Compiled code serves any number of utterances."""
    torch._dynamo.maybe_mark_dynamic(x, 0)
    return x
