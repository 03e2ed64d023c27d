"""Steps of several utterances on a GPU: a pass over the model is one CUDA graph, choosing the tokens is not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...bucketing import ChunkBucketer
from ...errors import CompilationError
from ...execution.cuda_graph import GraphCache, Replays
from ...fallback import FallbackManager
from .cache import KVCache, visible
from .graph_loop import RUNGS, place_of
from .sampling import guide
from .step import LayeredPass, embedded, through_layers
from .weights import DecoderWeights

# Utterances of a recording; those beyond the ones that there are decode into free slots.
UTTERANCES = ChunkBucketer.from_ladder((1, 2, 4, 8, 16, 24, 32, 48, 64))


class GraphedPass:
    """:class:`LayeredPass`, replayed; the logits are overwritten by the next replay.

    Args:
        weights: the model's.
        layered: what is recorded, and what runs once nothing can be.
        graphs: where recordings are kept.
        fallback: decides which.
        make_cache: of a number of slots, guided or not, and a capacity.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        layered: LayeredPass,
        graphs: GraphCache,
        fallback: FallbackManager,
        make_cache: Callable[[int, bool, int], KVCache],
    ) -> None:
        self.replays = Replays(graphs, weights.head.device)
        self._weights = weights
        self._layered = layered
        self._fallback = fallback
        self._make_cache = make_cache
        self._cache: KVCache | None = None

    def cache(self, slots: int, guided: bool, length: int) -> KVCache:
        """An empty cache for at least ``length`` positions; the last one, where it is of that kind."""
        last, self._cache = self._cache, None
        like = self._weights.final_norm
        kind = slots, guided, like.dtype, like.device
        if (
            last is None
            or (last.slots, last.guided, last.keys.dtype, last.keys.device) != kind
            or last.capacity < length
        ):
            if last is not None:
                place = place_of(last)
                self.replays.recordings.drop(lambda key: key[:2] == place)
            last = None  # gone before there is another
            last = self._make_cache(slots, guided, length)
        last.clear()
        self._cache = last
        return last

    @property
    def held(self) -> int:
        """Bytes of the cache that is kept."""
        return self._cache.keys.nbytes + self._cache.values.nbytes if self._cache else 0

    def release(self) -> None:
        """Give the cache back; its recordings must not be used any more."""
        self._cache = None

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
        if self._fallback.level == "cuda_graph":
            try:
                return self._replayed(tokens, spoken, rotary, places, cache, cfg_weight)
            except CompilationError as error:
                self._fallback.fall("compile", error)
        return self._layered(tokens, spoken, rotary, places, cache, cfg_weight)

    def _replayed(
        self,
        tokens: Tensor,
        spoken: Sequence[int],
        rotary: Tensor,
        places: Sequence[int],
        cache: KVCache,
        cfg_weight: Tensor,
    ) -> Tensor:
        count, there = tokens.shape[1], len(tokens)
        slots = min(UTTERANCES.capacity(there), cache.slots)
        block = tokens.new_zeros(slots, count)
        block[:there] = tokens
        free = [0] * (slots - there)
        numbers = torch.tensor([[*spoken, *free], [*places, *free]], device=tokens.device)
        rung = min(RUNGS.capacity(max(places) + count), cache.capacity)
        key = (*place_of(cache), slots, count, rung, rotary.data_ptr())
        step = functools.partial(self._step, rung, rotary, cache)
        return self.replays(key, step, (block, numbers, cfg_weight))[:there]

    def _step(
        self, rung: int, rotary: Tensor, cache: KVCache, tokens: Tensor, numbers: Tensor, cfg_weight: Tensor
    ) -> Tensor:
        weights, (spoken, places) = self._weights, numbers
        x = embedded(weights.speech_embedding, weights.speech_positions, tokens, spoken, cache.per_slot)
        positions = places[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        positions = positions.repeat_interleave(cache.per_slot, 0)
        x = through_layers(self._layered.layer, weights, x, rotary, positions, visible(positions, rung), cache)
        return guide(self._layered.head(x, weights.final_norm, weights.head), cfg_weight, cache.guided)
