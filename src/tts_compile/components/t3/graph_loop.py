"""The token loop on a GPU: everything of a step but its random numbers is one CUDA graph.

The host draws the noise of a step, launches the graph, and reads the token a few steps later, so that neither waits
for the other. What was launched beyond the last token is thrown away, and its noise given back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...bucketing import ChunkBucketer
from ...errors import NonFiniteError
from ...execution.cuda_graph import GraphCache, Replays
from .cache import KVCache, visible
from .noise import NoiseStream
from .sampling import Numbers, SamplingSettings, choose, guide, probabilities
from .step import LayeredPass, embedded, through_layers
from .weights import DecoderWeights

# Steps launched before a token is read: long enough for its way to the host, short against an utterance.
AHEAD = 4
# A graph attends to a whole rung. At 128 positions a rung's waste is under 3% of what a step of the full model reads.
RUNGS = ChunkBucketer.regular(step=128, last=16_384)


class Board(NamedTuple):
    """What the steps of an utterance read and write, on the device; it stays where it is."""

    token: Tensor  # int64 (1,), the last one chosen
    place: Tensor  # int64 (1,), where its key and value go
    spoken: Tensor  # int64 (1,), its position among the speech tokens
    history: Tensor  # int64 (1, n), tokens so far, filled up with the start token
    heard: Tensor  # int64 (1,), for the host: the token, or -1 for logits that are not finite
    noise: Tensor  # (1, vocabulary), of the token to be chosen
    numbers: Tensor  # float32 (5,), settings of the utterance

    @classmethod
    def like(cls, weights: DecoderWeights) -> Board:
        """For one utterance of any length."""
        embedding = weights.speech_embedding

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=embedding.device)

        noise = weights.head.new_ones(1, len(weights.head))
        history = zeros(1, len(weights.speech_positions) + AHEAD + 2)
        numbers = torch.zeros(5, device=embedding.device)
        return cls(zeros(1), zeros(1), zeros(1), history, zeros(1), noise, numbers)

    def start(self, token: int, first: int, place: int, settings: SamplingSettings) -> None:
        """Set up after the first token has been chosen.

        Args:
            token: the start token.
            first: the first chosen one.
            place: its position in the cache.
            settings: of the utterance.
        """
        self.token.fill_(first)
        self.place.fill_(place)
        self.spoken.fill_(1)
        self.history.fill_(token)
        self.history[:, 1] = first
        self.numbers.copy_(torch.tensor([settings.cfg_weight, *settings.numbers()], dtype=torch.float64))

    def written(self) -> tuple[Tensor, ...]:
        """What a step changes."""
        return self.token, self.place, self.spoken, self.history, self.heard


class GraphLoop:
    """Steps of one model, replayed.

    Args:
        weights: the model's.
        layered: a layer and the head, as functions of them.
        graphs: where recordings are kept.
        make_cache: of a number of slots, guided or not, and a capacity.

    Attributes:
        replays: the steps, with their counts.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        layered: LayeredPass,
        graphs: GraphCache,
        make_cache: Callable[[int, bool, int], KVCache],
    ) -> None:
        self.replays = Replays(graphs, weights.head.device)
        self._weights = weights
        self._layered = layered
        self._make_cache = make_cache
        self._caches: dict[bool, KVCache] = {}
        self._addresses: tuple[int, ...] = ()
        self._board = Board.like(weights)
        self._readback = _Readback(weights.head.device)

    def ready(self) -> bool:
        """Look up where the weights lie; False where they are of another dtype or on another device than at first."""
        noise = self._board.noise
        if any((w.dtype, w.device) != (noise.dtype, noise.device) for w in self._weights.tensors()):
            return False
        addresses = tuple(weight.data_ptr() for weight in self._weights.tensors())
        if addresses != self._addresses:
            self.replays.recordings.drop(lambda key: key[0] == "t3")
            self._addresses = addresses
        return True

    def cache(self, guided: bool, length: int) -> KVCache:
        """An empty cache for at least ``length`` positions, the same one as long as it is large enough.

        :meth:`speak` exchanges it for a larger one when an utterance goes on beyond its end.
        """
        cache = self._caches.get(guided)
        if cache is not None and cache.capacity < length:
            self._drop(cache)
            cache = None
        if cache is None:
            cache = self._caches[guided] = self._make_cache(1, guided, length)
        cache.clear()
        return cache

    def speak(
        self,
        first: int,
        place: int,
        budget: int,
        rotary: Tensor,
        cache: KVCache,
        noise: NoiseStream,
        settings: SamplingSettings,
        start: int,
    ) -> Iterator[int]:
        """Tokens after the first, up to the budget; the caller decides when to stop.

        Args:
            first: the first token, already chosen.
            place: its position in the cache.
            budget: tokens, the first included.
            rotary: (2, positions, head_dim), for every position that the budget reaches.
            cache: of :meth:`cache`, holding the prompt.
            noise: of the utterance.
            settings: of the utterance.
            start: the token that stands in front of the first.

        Raises:
            CompilationError: when a step cannot be recorded.
            NonFiniteError: for logits that are not finite.
        """
        self._board.start(start, first, place, settings)
        launched = 0
        for index in range(1, budget):
            while launched < min(index + AHEAD - 1, budget - 1):
                if place + launched == cache.capacity:
                    cache = self._grown(cache)
                launched += 1
                self._board.noise.copy_(noise[launched])
                self._launch(place + launched - 1, rotary, cache, settings)
                self._readback.send(launched, self._board.heard)
            token = self._readback.receive(index)
            if token < 0:
                raise NonFiniteError(f"T3 gave non-finite logits at token {index}; the utterance was given up")
            noise.release(index)
            yield token

    def warm_up(self, rotary: Tensor, cache: KVCache) -> None:
        """Record a step for every rung of a cache."""
        settings = SamplingSettings()
        for rung in range(RUNGS.rungs[0], cache.capacity + 1, RUNGS.rungs[0]):
            self._board.start(0, 0, rung - 1, settings)
            self._launch(rung - 1, rotary, cache, settings)

    def release(self) -> None:
        """Give the caches back; their recordings must not be used any more."""
        self._caches.clear()

    def _grown(self, cache: KVCache) -> KVCache:
        larger = self._make_cache(1, cache.guided, cache.capacity + 1)
        larger.take(cache)
        self._caches[cache.guided] = larger
        self._drop(cache)
        return larger

    def _drop(self, cache: KVCache) -> None:
        self.replays.recordings.drop(lambda key: key[:2] == place_of(cache))

    def _launch(self, place: int, rotary: Tensor, cache: KVCache, settings: SamplingSettings) -> None:
        rung = min(RUNGS.capacity(place + 1), cache.capacity)
        key = (*place_of(cache), rung, rotary.data_ptr(), settings.kinds())
        self.replays(key, lambda: self._step(rung, rotary, cache, settings), changed=self._board.written())

    def _step(self, rung: int, rotary: Tensor, cache: KVCache, settings: SamplingSettings) -> None:
        weights, board = self._weights, self._board
        cfg_weight, *numbers = board.numbers.unbind()
        x = embedded(
            weights.speech_embedding, weights.speech_positions, board.token[None], board.spoken, cache.per_slot
        )
        positions = board.place.expand(cache.per_slot, 1)
        x = through_layers(self._layered.layer, weights, x, rotary, positions, visible(positions, rung), cache)
        logits = guide(self._layered.head(x, weights.final_norm, weights.head), cfg_weight.to(x.dtype), cache.guided)
        chances = probabilities(logits[:, 0], board.history, settings, Numbers(*numbers))
        token, finite = choose(chances, board.noise)
        board.token.copy_(token)
        board.heard.copy_(token.masked_fill(~finite, -1))
        board.history.scatter_(1, (board.spoken + 1)[None], token[None])
        board.place.add_(1)
        board.spoken.add_(1)


def place_of(cache: KVCache) -> tuple[str, tuple[int, ...]]:
    """In a recording's key: launches know a cache by its address and shape."""
    return "t3", (cache.keys.data_ptr(), cache.values.data_ptr(), *cache.keys.shape)


class _Readback:
    """Tokens on their way from the device to the host."""

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._device = device
        self._host = torch.empty(AHEAD, dtype=torch.int64, pin_memory=on_gpu)
        self._sent = [torch.cuda.Event() for _ in range(AHEAD)] if on_gpu else []

    def send(self, index: int, token: Tensor) -> None:
        """Copy a token without waiting; at most ``AHEAD`` are under way."""
        slot = index % AHEAD
        self._host[slot : slot + 1].copy_(token, non_blocking=True)
        if self._sent:
            self._sent[slot].record(torch.cuda.current_stream(self._device))

    def receive(self, index: int) -> int:
        """Wait for a token."""
        slot = index % AHEAD
        if self._sent:
            self._sent[slot].synchronize()
        return int(self._host[slot])
