"""The token loop: everything that stock ``T3.inference`` does, without its waste."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ...bucketing import ChunkBucketer
from ...cache import using_cache
from ...errors import CompilationError, InputError, ModelStateError
from ...execution.cuda_graph import GraphCache, Replays
from ...execution.memory_limit import MemoryLimit
from ...execution.native import llama_decoder as native
from ...fallback import FallbackManager
from ...timing.blocks import timed
from .cache import KVCache, Part
from .decode_loop import Decoding, Guesses, Utterance, Vocabulary
from .graph_loop import RUNGS, GraphLoop
from .graph_step import UTTERANCES, GraphedPass
from .llama import decoder_layer, head
from .noise import NoiseStream
from .sampling import SamplingSettings
from .scheduler import Batch, Request
from .step import DecoderPass, LayeredPass, NativePass, embedded, run_layers
from .weights import int8_copy, native_weights, rotary_table, stock_weights

logger = logging.getLogger(__name__)

# Attention reads whole rungs: 16 positions of waste cost under 1% of a step, and a compiled step serves any rung.
ATTENDED = ChunkBucketer.regular(step=16, last=16_384)
# Caches are allocated by these; a CPU touches only what is used.
CAPACITY = ChunkBucketer.regular(step=512, last=16_384)
# Of the free memory, for the keys and values of a batch: the synthesis of its waves needs some too.
_MEMORY_SHARE = 0.5


class T3Engine:
    """Speaks for one stock ``T3``: the prompt, then token after token over a static cache.

    With ``guesses`` above 0, an int8 copy of the model guesses that many tokens ahead and the model itself verifies
    them in one pass over its weights. A guess is kept only if the model samples the same token from the same random
    numbers, so that the tokens are those of the model alone; only the speed depends on the guesses.

    Args:
        t3: the stock model; its parameters are used where they are.
        fallback: decides between compiled and eager passes.
        memory: what a batch may take.
        use_native: decode with the native decoder, which must be loaded and made for this model.
        guesses: tokens guessed ahead; only the native decoder can read the copy.
        graphs: for CUDA graphs; None where there are none.
        cache_dir: folder for compiled code, as of :class:`CompileConfig`.
        compile_options: of :class:`tts_compile.execution.Region`.

    Attributes:
        guesses: how many were made and verified.
        listener: of :class:`Decoding`; what CUDA graphs compute is not heard.
    """

    def __init__(
        self,
        t3: Any,
        fallback: FallbackManager,
        memory: MemoryLimit,
        use_native: bool = False,
        guesses: int = 0,
        graphs: GraphCache | None = None,
        cache_dir: str | None = None,
        **compile_options: Any,
    ) -> None:
        self.t3 = t3
        self._fallback = fallback
        self._memory = memory
        self.guesses = Guesses()
        self.listener: Callable[[Tensor], object] | None = None
        self._cache_dir = cache_dir
        self._weights = stock_weights(t3)
        self._vocabulary = Vocabulary(t3.hp.start_speech_token, t3.hp.stop_speech_token)
        self._rotary = rotary_table(t3, 0)
        self._eager_layer = functools.partial(decoder_layer, self._weights.eps)
        self._layered = LayeredPass("layered decode", self._weights, fallback, **compile_options)
        self._native: list[NativePass] = []
        if use_native:
            copies = {"decode": native_weights(self._weights)}
            if guesses:
                copies["draft"] = int8_copy(self._weights)
            for name, copy in copies.items():
                self._native.append(NativePass(name, self._weights, copy, fallback, **compile_options))
        self._graph_loop: GraphLoop | None = None
        self._graphed: GraphedPass | None = None
        self._turn: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
        if graphs is not None:
            self._graph_loop = GraphLoop(self._weights, self._layered, graphs, self._new_cache)
            self._graphed = GraphedPass(self._weights, self._layered, graphs, fallback, self._new_cache)
            self._turn = graphs.turn
        self._decode: DecoderPass = self._layered  # what this utterance uses
        self._draft: DecoderPass | None = None
        self._wanted_guesses = guesses

    @property
    def passes(self) -> list[LayeredPass | NativePass | Replays]:
        """Every kind of step that the engine may use."""
        replays = [part.replays for part in (self._graph_loop, self._graphed) if part]
        return [*replays, self._layered, *self._native]

    def inference(
        self,
        *,
        t3_cond: Any,
        text_tokens: Tensor,
        initial_speech_tokens: Tensor | None = None,
        prepend_prompt_speech_tokens: Tensor | None = None,
        num_return_sequences: int = 1,
        max_new_tokens: int | None = None,
        stop_on_eos: bool = True,
        do_sample: bool = True,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        length_penalty: float = 1.0,
        repetition_penalty: float = 1.2,
        cfg_weight: float = 0.5,
    ) -> Tensor:
        """Speech tokens, int64 (1, n), as stock ``T3.inference`` gives them for the same generator state.

        As in stock, ``num_return_sequences``, ``stop_on_eos``, ``do_sample`` and ``length_penalty`` have no effect.
        Beyond stock, one text row is accepted when ``cfg_weight`` is 0, ``max_new_tokens=None`` means the model's
        ``max_speech_tokens``, and speech that reaches the model's last speech position ends there.

        Raises:
            InputError: for settings out of range, or text beyond the model's sizes.
            ModelStateError: for a model in training mode.
            NonFiniteError: for logits that are not finite.
        """
        if self.t3.training:
            raise ModelStateError("the model is in training mode; call .eval() on it first")
        if prepend_prompt_speech_tokens is not None:
            raise InputError("prepend_prompt_speech_tokens is not implemented by chatterbox")
        settings = SamplingSettings(temperature, top_p, min_p, repetition_penalty, cfg_weight)
        budget = self._checked_budget(max_new_tokens)
        with self._at_work():
            text_tokens = self._checked_text(text_tokens, settings)
            self._choose_passes()
            prompt = self._prompt(t3_cond, text_tokens, initial_speech_tokens, settings)
            if loop := self._loop():
                try:
                    return self._speak_replayed(loop, prompt, budget, settings)
                except CompilationError as error:
                    self._fallback.fall("compile", error)
            return self._speak(prompt, budget, settings)

    def batch(
        self, requests: Sequence[Request], t3_cond: Any, settings: SamplingSettings, budget: int, slots: int | None
    ) -> Batch:
        """Requests to be spoken together, with the same voice and settings.

        Args:
            requests: at least one.
            t3_cond: the voice.
            settings: of all.
            budget: tokens for each at most.
            slots: how many are spoken at a time at most; None leaves it to the free memory.

        Raises:
            ModelStateError, InputError: as :meth:`inference`.
        """
        if self.t3.training:
            raise ModelStateError("the model is in training mode; call .eval() on it first")
        budget = self._checked_budget(budget)
        with self._at_work():
            self._choose_passes()
            checked = [
                dataclasses.replace(request, text_tokens=self._checked_text(request.text_tokens, settings))
                for request in requests
            ]

        def prompt(request: Request) -> Tensor:
            return self._prompt(t3_cond, request.text_tokens, None, settings)

        def utterance(request: Request) -> Utterance:
            return Utterance(prompt(request), budget, NoiseStream(self._logits_like(), request.generator))

        with self._at_work():
            longest = prompt(max(checked, key=lambda request: request.text_tokens.shape[1]))
        guided, length = len(longest) == 2, longest.shape[1] + budget

        def decoding(slots: int) -> Decoding:
            if self._graphed and self._decode is self._graphed:
                self._fit_rotary(RUNGS.rungs[-1])  # for good: recordings know it by its address
                return self._decoding(self._graphed.cache(slots, guided, length), settings)
            return self._decoding(self._cache(slots, guided, length), settings)

        most = UTTERANCES.rungs[-1] if longest.is_cuda else native.MAX_ROWS // len(longest)
        slots = min(len(checked), most, slots or self._slots_in_memory(guided, length))
        return Batch(checked, slots, utterance, decoding, self._at_work, self._fallback)

    def _slots_in_memory(self, guided: bool, length: int) -> int:
        """How many utterances of that many positions have room; at least one."""
        weights = self._weights
        like = weights.final_norm
        if like.is_cuda:  # where memory is taken at once, and not as it is reached
            length = CAPACITY.capacity(length)
        position = 2 * len(weights.layers) * weights.heads * weights.head_dim * like.element_size()
        held = self._graphed.held if self._graphed else 0
        free = int(_MEMORY_SHARE * (self._memory.room() + held))
        return max(1, free // (position * (2 if guided else 1) * length))

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """Outside inference mode even where the caller is in it, in turn, with the cache folder.

        Torch cannot compile views of an operator's result in inference mode:
        https://github.com/pytorch/pytorch/issues/169477
        """
        with (
            torch.inference_mode(mode=False),
            torch.no_grad(),
            using_cache(self._cache_dir),
            self._turn(),
        ):
            yield

    def _choose_passes(self) -> None:
        """Native ones as long as the model's weights are what they read: a module can be cast or moved any time.

        Raises:
            ModelStateError: when other tensors have taken the place of those that the engine was made for.
        """
        if any(now is not then for now, then in zip(stock_weights(self.t3).tensors(), self._weights.tensors())):
            raise ModelStateError("the model's weights were replaced; call restore() and compile_model again")
        if self._native and all(native.ready() for native in self._native):
            self._decode, *drafts = self._native
            self._draft = drafts[0] if drafts else None
        else:
            self._decode, self._draft = self._layered, None
            if self._graphed and self._loop():
                self._decode = self._graphed

    @property
    def _guesses(self) -> int:
        return self._wanted_guesses if self._draft else 0

    def release(self) -> None:
        """Give the caches of CUDA graphs back; their recordings must not be used any more."""
        for part in (self._graph_loop, self._graphed):
            if part:
                part.release()

    def warm_up(self, guided: bool) -> None:
        """Compile every pass, with or without guidance; speaks nothing and draws no random number."""
        with self._at_work():
            self._choose_passes()
            if loop := self._loop():
                try:
                    cache = loop.cache(guided, length=1)
                    self._fit_rotary(RUNGS.rungs[-1])
                    loop.warm_up(self._rotary, cache)
                    return
                except CompilationError as error:
                    self._fallback.fall("compile", error)
            # Three utterances in five slots: torch takes sizes that are equal by chance for one and the same.
            cache = self._cache(5, guided, length=1)
            passes: list[tuple[DecoderPass, int, int]]
            passes = [(self._decode, 1, 1 + self._guesses), (self._decode, 3, 1)]
            if self._draft:
                passes.append((self._draft, 1, 1))
            for decoder, utterances, count in passes:
                block = torch.zeros(utterances, count, dtype=torch.long, device=cache.keys.device)
                zeros = [0] * utterances
                decoder(block, zeros, self._rotary, zeros, cache, cache.keys.new_zeros(()))

    def _checked_budget(self, max_new_tokens: int | None) -> int:
        limit = len(self._weights.speech_positions)
        try:
            budget = self.t3.hp.max_speech_tokens if max_new_tokens is None else operator.index(max_new_tokens)
        except TypeError:
            raise InputError(f"max_new_tokens must be a whole number, got {max_new_tokens!r}") from None
        if budget < 1:
            raise InputError(f"max_new_tokens must be at least 1, got {budget}")
        return min(budget, limit)

    def _checked_text(self, text_tokens: Tensor, settings: SamplingSettings) -> Tensor:
        hp = self.t3.hp
        text_tokens = torch.atleast_2d(text_tokens).to(dtype=torch.long, device=self.t3.device)
        rows, length = text_tokens.shape
        if rows == 2 and settings.cfg_weight == 0:  # stock computes the second row and multiplies it by 0
            text_tokens = text_tokens[:1]
        elif rows != 2 and not (rows == 1 and settings.cfg_weight == 0):
            raise InputError(f"text_tokens must have 2 rows for guidance (1 without), got {rows}")
        positions = self.t3.text_pos_emb.emb.num_embeddings
        if length > positions:
            raise InputError(f"text has {length} tokens, the model has {positions} positions for them")
        if length == 0:
            raise InputError("there are no text tokens")
        if int(text_tokens.min()) < 0 or int(text_tokens.max()) >= hp.text_tokens_dict_size:
            raise InputError(f"text tokens must be from 0 to {hp.text_tokens_dict_size - 1}")
        for name, token in (("start", hp.start_text_token), ("stop", hp.stop_text_token)):
            if not bool((text_tokens == token).any(dim=1).all()):
                raise InputError(f"text_tokens lack the {name} token {token}")
        return text_tokens

    @timed("t3.prompt")
    def _prompt(
        self, t3_cond: Any, text_tokens: Tensor, initial_speech_tokens: Tensor | None, settings: SamplingSettings
    ) -> Tensor:
        """Embeddings (rows, length, width) of voice, text and start."""
        if initial_speech_tokens is None:
            initial_speech_tokens = torch.full_like(text_tokens[:, :1], self._vocabulary.start)
        speech_tokens = initial_speech_tokens[: len(text_tokens)]
        embeddings, _ = self.t3.prepare_input_embeds(
            t3_cond=t3_cond, text_tokens=text_tokens, speech_tokens=speech_tokens, cfg_weight=settings.cfg_weight
        )
        # The start token goes in a second time: stock feeds it once as prompt and once as the first step.
        weights = self._weights
        token = torch.tensor([[self._vocabulary.start]], device=embeddings.device)
        first = token.new_zeros(1)
        start = embedded(weights.speech_embedding, weights.speech_positions, token, first, len(embeddings))
        return torch.cat([embeddings, start], dim=1)

    def _loop(self) -> GraphLoop | None:
        loop = self._graph_loop
        return loop if loop and self._fallback.level == "cuda_graph" and loop.ready() else None

    def _cache(self, slots: int, guided: bool, length: int) -> KVCache:
        if self._weights.head.device.type == "cpu":  # where memory that is not reached costs nothing
            slots = max(slots, 2)  # code compiled for any number of slots is not for one
        cache = self._new_cache(slots, guided, length + self._guesses)
        self._fit_rotary(cache.capacity)
        return cache

    def _fit_rotary(self, length: int) -> None:
        capacity = CAPACITY.capacity(length)
        like = self._weights.final_norm  # a model can be cast or moved at any time
        if (self._rotary.dtype, self._rotary.device) != (like.dtype, like.device) or self._rotary.shape[1] < capacity:
            self._rotary = rotary_table(self.t3, capacity)
            torch._dynamo.maybe_mark_dynamic(self._rotary, 1)

    def _new_cache(self, slots: int, guided: bool, length: int) -> KVCache:
        weights = self._weights
        capacity = CAPACITY.capacity(length)
        return KVCache(
            len(weights.layers), slots, guided, weights.heads, weights.head_dim, capacity, ATTENDED, weights.final_norm
        )

    def _prefill(self, rotary: Tensor, prompt: Tensor, start: int, cache: Part) -> Tensor:
        """Fill the cache with a prompt from position ``start`` on; logits (rows, 1, vocabulary) after its last one.

        Runs eagerly: a prompt is bound by matrix products, which compiling cannot speed up, and every prompt length
        would be a shape of its own. Both rows of an utterance go in together, the voice that they share included: on
        a CPU a product with the voice's 34 rows alone costs more than the rows that it would save.
        """
        x = run_layers(self._eager_layer, self._weights, prompt, rotary, [start] * len(prompt), cache)
        return head(self._weights.eps, x[:, -1:], self._weights.final_norm, self._weights.head)

    def _speak_replayed(self, loop: GraphLoop, prompt: Tensor, budget: int, settings: SamplingSettings) -> Tensor:
        """Speech tokens, int64 (1, n), by CUDA graphs.

        Raises:
            CompilationError: with the generator as it was before.
        """
        start, stop = self._vocabulary.start, self._vocabulary.stop
        cache = loop.cache(len(prompt) == 2, prompt.shape[1] + 1)
        self._fit_rotary(RUNGS.rungs[-1])  # for good: recordings know it by its address
        utterance = Utterance(prompt, 1, NoiseStream(self._logits_like()))
        decoding = self._decoding(cache, settings)
        tokens = utterance.tokens
        try:
            with _bar(budget) as bar:
                decoding.begin(utterance)
                bar.update()
                if utterance.error is None and tokens[0] != stop:
                    place = prompt.shape[1]
                    with timed("t3.decode"):
                        for token in loop.speak(
                            tokens[0], place, budget, self._rotary, cache, utterance.noise, settings, start
                        ):
                            tokens.append(token)
                            bar.update()
                            if token == stop:
                                break
        except CompilationError:
            utterance.noise.rewind()
            raise
        except BaseException:
            utterance.noise.settle(len(tokens))
            raise
        return self._spoken(utterance)

    def _speak(self, prompt: Tensor, budget: int, settings: SamplingSettings) -> Tensor:
        """Speech tokens, int64 (1, n)."""
        cache = self._cache(1, len(prompt) == 2, prompt.shape[1] + budget)
        utterance = Utterance(prompt, budget, NoiseStream(self._logits_like()))
        decoding = self._decoding(cache, settings)
        try:
            with _bar(budget) as bar:
                decoding.begin(utterance)
                with timed("t3.decode"):
                    while not utterance.ended:
                        bar.update(len(utterance.tokens) - bar.n)
                        decoding.advance()
                bar.update(len(utterance.tokens) - bar.n)
        finally:
            utterance.noise.settle(len(utterance.tokens))
        return self._spoken(utterance)

    def _decoding(self, cache: KVCache, settings: SamplingSettings) -> Decoding:
        return Decoding(
            functools.partial(self._prefill, self._rotary),
            self._decode,
            self._draft,
            self._guesses,
            self.guesses,
            self._rotary,
            cache,
            settings,
            self._vocabulary,
            self.listener,
        )

    def _spoken(self, utterance: Utterance) -> Tensor:
        utterance.noise.settle(len(utterance.tokens))
        if utterance.error:
            raise utterance.error
        logger.info("speech ended after %d tokens", len(utterance.tokens))
        return torch.tensor([utterance.tokens], device=self._weights.head.device)

    def _logits_like(self) -> Tensor:
        return self._weights.head.new_empty(1, len(self._weights.head))


def _bar(budget: int) -> Any:
    from tqdm import tqdm  # stock shows the same one

    return tqdm(total=budget, desc="Sampling", dynamic_ncols=True)
