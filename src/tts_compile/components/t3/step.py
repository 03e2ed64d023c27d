"""A pass over a set of weights, from tokens to guided logits: the unit that is compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ...backbones.backbone import Backbone, NativeDecoder, NativeInputs, NativeWeights, Weights, Where
from ...execution import dynamic
from ...families.sampling import guide
from ..runtime import ComponentRuntime
from .cache import KVCache


class Block(NamedTuple):
    """Speech tokens at consecutive positions, for the utterances in the first slots of a cache."""

    tokens: Tensor  # int64 (utterances, count)
    spoken: Sequence[int]  # for each utterance, the first token's position among its speech tokens
    starts: Sequence[int]  # for each utterance, the first token's position in the cache


class DecoderPass(Protocol):
    """A pass over the weights of a model, of a copy, or of a captured graph."""

    def __call__(self, block: Block, cache: KVCache, cfg_weight: Tensor) -> Tensor:
        """Returns guided logits after each token, and writes keys and values to the cache.

        Args:
            block: the new tokens.
            cache: of the utterances.
            cfg_weight: strength of guidance, 0-dimensional.

        Returns:
            Logits (utterances, count, vocabulary).
        """


class LayeredPass:
    """A pass of torch operators; one layer and the head are compiled and reused.

    A graph of all layers would hold the same code once per layer and take as many times longer to compile.

    Args:
        name: for messages.
        backbone: the step of the transformer.
        weights: of the model; :attr:`weights` may be exchanged for others of the same sizes.
        runtime: of the component.

    Attributes:
        weights: read by the next pass.
        calls: passes so far.
    """

    execution = "inductor"

    def __init__(self, name: str, backbone: Backbone, weights: Weights, runtime: ComponentRuntime) -> None:
        self.calls = 0
        self.weights = weights
        self._backbone = backbone
        self._layer_function = functools.partial(backbone.layer, weights.constants)
        self._head_function = functools.partial(backbone.head, weights.constants)
        self._layer = runtime.region(f"{name} layer", self._layer_function)
        self._head = runtime.region(f"{name} head", self._head_function)

    def __call__(self, block: Block, cache: KVCache, cfg_weight: Tensor) -> Tensor:
        """Runs the pass; see :class:`DecoderPass`."""
        self.calls += 1
        spoken = torch.tensor(block.spoken, device=block.tokens.device)
        positions, mask = cache.attend(by_sequence(block.starts, cache), block.tokens.shape[1])
        return self.logits(block.tokens, spoken, positions, mask, cache, cfg_weight)

    def logits(
        self, tokens: Tensor, spoken: Tensor, positions: Tensor, mask: Tensor, cache: KVCache, cfg_weight: Tensor
    ) -> Tensor:
        """Returns guided logits (utterances, count, vocabulary); launches only, waits for nothing.

        Args:
            tokens: int64 (utterances, count).
            spoken: int64 (utterances,), as of :class:`Block`.
            positions, mask: as of :class:`tts_compile.backbones.backbone.Where`.
            cache: of the utterances.
            cfg_weight: 0-dimensional.
        """
        weights = self.weights
        x = self._backbone.embed(weights, tokens, spoken, positions, cache.per_slot)
        where = Where(_at_positions(cache.tables, positions), positions, mask)
        x = self._through(self._layer, x, where, cache)
        return guide(self._head(x, weights.last), cfg_weight, cache.guided)

    def prefill(self, prompt: Tensor, start: int, cache: KVCache) -> Tensor:
        """Writes a prompt's keys and values; returns the logits (sequences, 1, vocabulary) after its last position.

        Runs eagerly: a prompt is bound by matrix products, which compiling cannot speed up, and every prompt length
        would be a shape of its own. Both rows of an utterance go in together, the voice that they share included: on
        a CPU a product with the voice's 34 rows alone costs more than the rows that it would save.

        Args:
            prompt: embeddings (sequences, count, width).
            start: the first one's position.
            cache: the sequences' part of the cache.
        """
        positions, mask = cache.attend([start] * len(prompt), prompt.shape[1])
        where = Where(_at_positions(cache.tables, positions), positions, mask)
        x = self._through(self._layer_function, prompt, where, cache)
        logits: Tensor = self._head_function(x[:, -1:], self.weights.last)
        return logits

    def _through(self, layer: Callable[..., Tensor], x: Tensor, where: Where, cache: KVCache) -> Tensor:
        by_layer = zip(cache.layer_keys, cache.layer_values)
        caches = by_layer if self.weights.by_layer else [(cache.keys, cache.values)]
        for weights, (keys, values) in zip(self.weights.layers, caches):
            x = layer(dynamic(x, 0), where, keys, values, weights)
        return x

    @property
    def compiled_calls(self) -> int:
        """Returns the number of passes in which every call was counted inside compiled code."""
        return min(self._layer.compiled_calls // len(self.weights.layers), self._head.compiled_calls)

    @property
    def graphs(self) -> int:
        """Returns the number of graphs that torch compiled for it."""
        return self._layer.graphs + self._head.graphs

    @property
    def graph_breaks(self) -> int:
        """Returns the number of graph breaks in these graphs."""
        return self._layer.graph_breaks + self._head.graph_breaks


class NativePass:
    """A pass that is one compiled graph around the native decoder; on a CPU.

    Args:
        name: for messages.
        decoder: the backbone's.
        constants: of the decoder, which are compiled into the graph.
        runtime: of the component.

    Attributes:
        region: the compiled graph.
    """

    def __init__(self, name: str, decoder: NativeDecoder, constants: Any, runtime: ComponentRuntime) -> None:
        self._embeddings: tuple[Tensor, ...] = ()
        self._addresses = torch.empty(0, dtype=torch.int64)

        def native_step(inputs: NativeInputs, cfg_weight: Tensor, guided: bool) -> Tensor:
            return guide(decoder.step(constants, inputs, 2 if guided else 1), cfg_weight, guided)

        self.region = runtime.region(name, native_step)

    def ready(self, weights: Weights, native: NativeWeights) -> bool:
        """Looks up where the weights lie; returns False where the native decoder cannot read them."""
        if not native.fit:
            return False
        self._embeddings = weights.embeddings
        self._addresses = native.addresses()
        return True

    def __call__(self, block: Block, cache: KVCache, cfg_weight: Tensor) -> Tensor:
        """Runs the pass; see :class:`DecoderPass`."""
        starts = torch.tensor(by_sequence(block.starts, cache))
        inputs = NativeInputs(
            embeddings=self._embeddings,
            tokens=dynamic(block.tokens, 0),
            spoken=dynamic(torch.tensor(block.spoken), 0),
            tables=cache.tables,
            positions=dynamic(starts[:, None] + torch.arange(block.tokens.shape[1]), 0),
            keys=cache.keys,
            values=cache.values,
            addresses=self._addresses,
        )
        logits: Tensor = self.region(inputs, cfg_weight, cache.guided)
        return logits


def by_sequence(values: Sequence[int], cache: KVCache) -> list[int]:
    """Returns a value for each sequence, from one for each utterance."""
    return [value for value in values for _ in range(cache.per_slot)]


def _at_positions(tables: Tensor | None, positions: Tensor) -> tuple[Tensor, ...]:
    """Returns the rows of a backbone's tables at some positions, as :class:`Where` holds them."""
    return () if tables is None else tables[:, positions][:, :, None].unbind()
