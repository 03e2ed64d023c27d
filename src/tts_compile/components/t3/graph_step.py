"""Steps of several utterances on a GPU: a pass over the model is one CUDA graph, sampling the tokens is not."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ...bucketing import ChunkBucketer
from ...errors import CompilationError
from ...execution.cuda_graph import Replays
from ..runtime import ComponentRuntime
from .cache import KVCache, visible
from .graph_loop import RUNGS, address_of, drop_graphs
from .step import Block, LayeredPass

# Utterances of a captured graph; those beyond the ones that exist decode into free slots.
UTTERANCES = ChunkBucketer.from_ladder((1, 2, 4, 8, 16, 24, 32, 48, 64))


class GraphedPass:
    """Captured passes for several utterances; the logits are overwritten by the next replay.

    Args:
        layered: the pass that is captured, and that runs once nothing can be captured.
        replays: the component's captured graphs.
        make_cache: makes a cache for a number of slots, guided or not, of a length.
        runtime: of the component.
    """

    def __init__(
        self,
        layered: LayeredPass,
        replays: Replays,
        make_cache: Callable[[int, bool, int], KVCache],
        runtime: ComponentRuntime,
    ) -> None:
        self._replays = replays
        self._layered = layered
        self._make_cache = make_cache
        self._runtime = runtime
        self._cache: KVCache | None = None

    def cache(self, slots: int, guided: bool, length: int) -> KVCache:
        """Returns an empty cache for at least ``length`` positions: the last one, where it is of that kind."""
        cache, self._cache = self._cache, None
        if cache is None or (cache.slots, cache.guided) != (slots, guided) or cache.capacity < length:
            if cache is not None:
                drop_graphs(self._replays, cache)
            cache = None  # gone before there is another
            cache = self._make_cache(slots, guided, length)
        cache.clear()
        self._cache = cache
        return cache

    @property
    def held(self) -> int:
        """Returns the bytes of the cache that is kept."""
        return self._cache.keys.nbytes + self._cache.values.nbytes if self._cache else 0

    def release(self) -> None:
        """Gives the cache back; its captured graphs must not be used any more."""
        self._cache = None

    def __call__(self, block: Block, cache: KVCache, cfg_weight: Tensor) -> Tensor:
        """Runs the pass; see :class:`DecoderPass`."""
        if self._runtime.captures:
            try:
                return self._replayed(block, cache, cfg_weight)
            except CompilationError as error:
                self._runtime.fallback.fall("compile", error)
        return self._layered(block, cache, cfg_weight)

    def _replayed(self, block: Block, cache: KVCache, cfg_weight: Tensor) -> Tensor:
        utterances, count = block.tokens.shape
        slots = min(UTTERANCES.capacity(utterances), cache.slots)
        tokens = block.tokens.new_zeros(slots, count)
        tokens[:utterances] = block.tokens
        free = [0] * (slots - utterances)
        numbers = torch.tensor([[*block.spoken, *free], [*block.starts, *free]], device=tokens.device)
        rung = min(RUNGS.capacity(max(block.starts) + count), cache.capacity)
        key = (*address_of(cache), slots, count, rung)
        return self._replays(key, functools.partial(self._step, rung, cache), (tokens, numbers, cfg_weight))[
            :utterances
        ]

    def _step(self, rung: int, cache: KVCache, tokens: Tensor, numbers: Tensor, cfg_weight: Tensor) -> Tensor:
        spoken, starts = numbers
        positions = starts[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        positions = positions.repeat_interleave(cache.per_slot, 0)
        return self._layered.logits(tokens, spoken, positions, visible(positions, rung), cache, cfg_weight)
