"""The token loop on a GPU: everything of a step but its random numbers is one CUDA graph.

The host draws the noise of a step, launches the graph, and reads the token a few steps later, so that neither waits
for the other. Steps launched beyond the last token are thrown away, and their noise is given back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...bucketing import ChunkBucketer
from ...errors import NonFiniteError
from ...execution.cuda_graph import Replays
from ...families.sampling import SamplingSettings, choose
from .cache import KVCache, visible
from .decode_loop import Utterance, Vocabulary
from .step import LayeredPass

# Steps launched before a token is read: long enough for its way to the host, short against an utterance.
AHEAD = 4
# A graph attends to a whole rung. At 128 positions a rung's waste is under 3% of what a step of the full model reads.
RUNGS = ChunkBucketer.regular(step=128, last=16_384)


class Board(NamedTuple):
    """The memory on the device that the steps of an utterance read and write; it stays where it is."""

    token: Tensor  # int64 (1,), the last one sampled
    position: Tensor  # int64 (1,), where its key and value go
    spoken: Tensor  # int64 (1,), its position among the speech tokens
    history: Tensor  # int64 (1, n), tokens so far, filled up with one that is seen anyway
    result: Tensor  # int64 (1,), for the host: the token, or -1 for logits that are not finite
    noise: Tensor  # (1, vocabulary), of the token to be sampled
    numbers: Tensor  # float32 (n,), the strength of guidance and the processors' numbers

    @classmethod
    def of(cls, like: Tensor, longest: int, processors: int) -> Board:
        """Returns a board for one utterance.

        Args:
            like: (vocabulary, width), of the logits' dtype and device.
            longest: tokens at most.
            processors: their number.
        """

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=like.device)

        numbers = torch.zeros(1 + processors, device=like.device)
        return cls(zeros(1), zeros(1), zeros(1), zeros(1, longest), zeros(1), like.new_ones(1, len(like)), numbers)

    def start(self, first: int, seen: int, position: int, settings: SamplingSettings) -> None:
        """Sets up after the first token has been sampled.

        Args:
            first: the token.
            seen: a token that counts for the repetition penalty from the beginning.
            position: of the first token in the cache.
            settings: of the utterance.
        """
        self.token.fill_(first)
        self.position.fill_(position)
        self.spoken.fill_(1)
        self.history.fill_(seen)
        self.history[:, 1] = first
        self.numbers.copy_(torch.tensor([settings.cfg_weight, *settings.numbers()], dtype=torch.float64))

    def written(self) -> tuple[Tensor, ...]:
        """Returns the tensors that a step changes."""
        return self.token, self.position, self.spoken, self.history, self.result


class GraphLoop:
    """Captured steps of one model, for one utterance at a time.

    Args:
        layered: the pass that is captured.
        replays: the component's captured graphs.
        make_cache: makes a cache for a number of slots, guided or not, of a length.
        vocabulary: start and stop.
        settings: any; their processors are those of every utterance.
    """

    def __init__(
        self,
        layered: LayeredPass,
        replays: Replays,
        make_cache: Callable[[int, bool, int], KVCache],
        vocabulary: Vocabulary,
        settings: SamplingSettings,
    ) -> None:
        self._replays = replays
        self._layered = layered
        self._make_cache = make_cache
        self._vocabulary = vocabulary
        self._settings = settings
        self._caches: dict[bool, KVCache] = {}
        self._addresses: tuple[int, ...] = ()
        weights = layered.weights
        longest = (weights.speech_positions or RUNGS.rungs[-1]) + AHEAD + 2
        self._board = Board.of(weights.like, longest, len(settings.processors))
        self._readback = _Readback(weights.like.device)

    def ready(self) -> bool:
        """Looks up where the weights lie; returns False where their dtype or device has changed."""
        noise, weights = self._board.noise, self._layered.weights.tensors
        if any((w.dtype, w.device) != (noise.dtype, noise.device) for w in weights):
            return False
        addresses = tuple(weight.data_ptr() for weight in weights)
        if addresses != self._addresses:
            self._replays.recordings.drop(lambda key: key[0] == "t3")
            self._addresses = addresses
        return True

    def cache(self, guided: bool, length: int) -> KVCache:
        """Returns an empty cache for at least ``length`` positions, the same one as long as it is large enough.

        :meth:`speak` exchanges it for a larger one when an utterance goes on beyond its end.
        """
        cache = self._caches.get(guided)
        if cache is None or cache.capacity < length:
            if cache is not None:
                drop_graphs(self._replays, cache)
            cache = self._caches[guided] = self._make_cache(1, guided, length)
        cache.clear()
        return cache

    def speak(self, utterance: Utterance, cache: KVCache, settings: SamplingSettings) -> Iterator[None]:
        """Adds tokens to an utterance, one at a time, until it has ended.

        Args:
            utterance: whose first token is sampled when the first of the others is asked for.
            cache: of :meth:`cache`, with the prompt.
            settings: of the utterance.

        Raises:
            CompilationError: when a step cannot be captured.
            NonFiniteError: for logits that are not finite.
        """
        first, position, noise = utterance.tokens[0], utterance.position, utterance.noise
        seen = self._vocabulary.start if self._vocabulary.start_is_seen else first
        self._board.start(first, seen, position, settings)
        launched = 0
        for index in range(1, utterance.budget):
            while launched < min(index + AHEAD - 1, utterance.budget - 1):
                if position + launched == cache.capacity:
                    cache = self._grown(cache)
                launched += 1
                self._board.noise.copy_(noise[launched])
                self._launch(position + launched - 1, cache, settings)
                self._readback.send(launched, self._board.result)
            token = self._readback.receive(index)
            if token < 0:
                raise NonFiniteError(f"T3 gave non-finite logits at token {index}; the utterance was given up")
            utterance.tokens.append(token)
            noise.release(index)
            utterance.ended = token == self._vocabulary.stop or index + 1 == utterance.budget
            yield

    def warm_up(self, cache: KVCache) -> None:
        """Captures a step for every rung of a cache."""
        for rung in range(RUNGS.rungs[0], cache.capacity + 1, RUNGS.rungs[0]):
            self._board.start(0, 0, rung - 1, self._settings)
            self._launch(rung - 1, cache, self._settings)

    def release(self) -> None:
        """Gives the caches back; their captured graphs must not be used any more."""
        self._caches.clear()

    def _grown(self, cache: KVCache) -> KVCache:
        larger = self._make_cache(1, cache.guided, cache.capacity + 1)
        larger.take(cache)
        self._caches[cache.guided] = larger
        drop_graphs(self._replays, cache)
        return larger

    def _launch(self, position: int, cache: KVCache, settings: SamplingSettings) -> None:
        rung = min(RUNGS.capacity(position + 1), cache.capacity)
        key = (*address_of(cache), rung, settings.keys())
        self._replays(key, lambda: self._step(rung, cache, settings), changed=self._board.written())

    def _step(self, rung: int, cache: KVCache, settings: SamplingSettings) -> None:
        board = self._board
        cfg_weight, *numbers = board.numbers.unbind()
        positions = board.position.expand(cache.per_slot, 1)
        mask = visible(positions, rung)
        cfg_weight = cfg_weight.to(board.noise.dtype)
        logits = self._layered.logits(board.token[None], board.spoken, positions, mask, cache, cfg_weight)
        chances = settings.probabilities(logits[:, 0], board.history, numbers)
        token, finite = choose(chances, board.noise)
        board.token.copy_(token)
        board.result.copy_(token.masked_fill(~finite, -1))
        board.history.scatter_(1, (board.spoken + 1)[None], token[None])
        board.position.add_(1)
        board.spoken.add_(1)


def address_of(cache: KVCache) -> tuple[str, tuple[int, ...]]:
    """Returns the part of a captured graph's key that stands for a cache: launches use its address and shape."""
    tables = 0 if cache.tables is None else cache.tables.data_ptr()
    return "t3", (cache.keys.data_ptr(), cache.values.data_ptr(), *cache.keys.shape, tables)


def drop_graphs(replays: Replays, cache: KVCache) -> None:
    """Drops the captured graphs that read a cache."""
    address = address_of(cache)
    replays.recordings.drop(lambda key: key[:2] == address)


class _Readback:
    """Tokens on their way from the device to the host."""

    def __init__(self, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._device = device
        self._host = torch.empty(AHEAD, dtype=torch.int64, pin_memory=on_gpu)
        self._sent = [torch.cuda.Event() for _ in range(AHEAD)] if on_gpu else []

    def send(self, index: int, token: Tensor) -> None:
        """Copies a token without waiting; at most ``AHEAD`` are under way."""
        slot = index % AHEAD
        self._host[slot : slot + 1].copy_(token, non_blocking=True)
        if self._sent:
            self._sent[slot].record(torch.cuda.current_stream(self._device))

    def receive(self, index: int) -> int:
        """Waits for a token."""
        slot = index % AHEAD
        if self._sent:
            self._sent[slot].synchronize()
        return int(self._host[slot])
