"""The token loop on a GPU: steps captured as CUDA graphs.

For one utterance, everything of a step but its random numbers is one graph. The host draws the noise of a step,
launches the graph, and reads the token a few steps later, so that neither waits for the other. Steps launched beyond
the last token are thrown away, and their noise is given back. For several utterances, a graph is one pass over the
model, and the decode loop samples the tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...bucketing import ChunkBucketer
from ...errors import CompilationError, NonFiniteError
from ...execution.cuda_graph import Replays
from ...families.sampling import SamplingSettings, choose
from ..runtime import ComponentRuntime
from .cache import KVCache, visible
from .decode_loop import Utterance, Vocabulary
from .step import Block, LayeredPass

# Steps launched before a token is read: long enough for its way to the host, short against an utterance.
AHEAD = 4
# A graph attends to a whole rung. At 128 positions a rung's waste is under 3% of what a step of the full model reads.
RUNGS = ChunkBucketer.regular(step=128, last=16_384)
# Utterances of a captured pass; those beyond the ones that exist decode into free slots.
UTTERANCES = ChunkBucketer.from_ladder((1, 2, 4, 8, 16, 24, 32, 48, 64))


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


class CapturedSteps:
    """Captured steps of one model: :meth:`speak` for one utterance, and calls as a :class:`DecoderPass` for several.

    Args:
        layered: the pass that is captured, and that calls run once nothing can be captured.
        replays: the component's captured graphs.
        make_cache: makes a cache for a number of slots, guided or not, of a length.
        vocabulary: start and stop.
        settings: any; their processors are those of every utterance.
        runtime: of the component.
    """

    def __init__(
        self,
        layered: LayeredPass,
        replays: Replays,
        make_cache: Callable[[int, bool, int], KVCache],
        vocabulary: Vocabulary,
        settings: SamplingSettings,
        runtime: ComponentRuntime,
    ) -> None:
        self._replays = replays
        self._layered = layered
        self._make_cache = make_cache
        self._vocabulary = vocabulary
        self._settings = settings
        self._runtime = runtime
        self._caches: dict[str, KVCache] = {}
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
            self._runtime.drop_graphs()
            self._addresses = addresses
        return True

    def cache(self, guided: bool, length: int) -> KVCache:
        """Returns an empty cache for an utterance of at least ``length`` positions, the last one if it is large enough.

        :meth:`speak` exchanges it for a larger one when an utterance goes on beyond its end.
        """
        return self._kept("guided" if guided else "plain", 1, guided, length)

    def shared_cache(self, slots: int, guided: bool, length: int) -> KVCache:
        """Returns an empty cache for several utterances of at least ``length`` positions, the last one if it fits."""
        return self._kept("shared", slots, guided, length)

    @property
    def held(self) -> int:
        """Returns the bytes of the shared cache that is kept."""
        cache = self._caches.get("shared")
        return cache.keys.nbytes + cache.values.nbytes if cache else 0

    def release(self) -> None:
        """Gives the caches back; their captured graphs must not be used any more."""
        self._caches.clear()

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
        key = (*_address(cache), slots, count, rung)
        run = functools.partial(self._pass, rung, cache)
        return self._replays(key, run, (tokens, numbers, cfg_weight))[:utterances]

    def _kept(self, kind: str, slots: int, guided: bool, length: int) -> KVCache:
        """Returns an empty cache: the last one of its kind, or another where that one does not fit."""
        cache = self._caches.pop(kind, None)
        if cache is None or (cache.slots, cache.guided) != (slots, guided) or cache.capacity < length:
            if cache is not None:
                self._drop_graphs(cache)
            cache = None  # gone before there is another
            cache = self._make_cache(slots, guided, length)
        cache.clear()
        self._caches[kind] = cache
        return cache

    def _grown(self, cache: KVCache) -> KVCache:
        larger = self._make_cache(1, cache.guided, cache.capacity + 1)
        larger.take(cache)
        self._caches["guided" if cache.guided else "plain"] = larger
        self._drop_graphs(cache)
        return larger

    def _drop_graphs(self, cache: KVCache) -> None:
        address = _address(cache)
        self._replays.recordings.drop(lambda key: key[:2] == address)

    def _launch(self, position: int, cache: KVCache, settings: SamplingSettings) -> None:
        rung = min(RUNGS.capacity(position + 1), cache.capacity)
        key = (*_address(cache), rung, settings.keys())
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

    def _pass(self, rung: int, cache: KVCache, tokens: Tensor, numbers: Tensor, cfg_weight: Tensor) -> Tensor:
        spoken, starts = numbers
        positions = starts[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        positions = positions.repeat_interleave(cache.per_slot, 0)
        return self._layered.logits(tokens, spoken, positions, visible(positions, rung), cache, cfg_weight)


def _address(cache: KVCache) -> tuple[str, tuple[int, ...]]:
    """Returns the part of a captured graph's key that stands for a cache: launches use its address and shape."""
    tables = 0 if cache.tables is None else cache.tables.data_ptr()
    return "t3", (cache.keys.data_ptr(), cache.values.data_ptr(), *cache.keys.shape, tables)


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
