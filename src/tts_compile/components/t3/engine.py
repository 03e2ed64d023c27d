"""The library's own token loop: everything that the stock method does, without its waste."""

from __future__ import annotations

import functools
import inspect
import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...backbones.backbone import NativeDecoder, NativeWeights, Weights
from ...errors import CompilationError, InputError, ModelStateError
from ...execution import Region, dynamic
from ...execution.cuda_graph import Replays
from ...families.family import SpeechCall, SpeechModel
from ...families.sampling import NoiseStream, SamplingSettings
from ...timing.blocks import timed
from ..compiled_component import Engine
from ..runtime import ComponentRuntime
from ..weight_watch import WeightWatch
from .cache import CAPACITY, KVCache
from .decode_loop import DecodeLoop, DraftCounts, Passes, Utterance, Vocabulary
from .graph_loop import UTTERANCES, CapturedSteps
from .scheduler import Request, Scheduler
from .step import Block, LayeredPass, NativePass

logger = logging.getLogger(__name__)

# Of the free memory, for the keys and values of a batch: the synthesis of its waves needs some too.
_MEMORY_SHARE = 0.5


class EngineWeights(NamedTuple):
    """The weights of every pass."""

    stock: Weights  # the model's own tensors
    native: tuple[NativeWeights, ...]  # the same for the native decoder, and the int8 copy; empty without one


class T3Engine(Engine[EngineWeights]):
    """The token loop of one stock speech model: the prompt, then token after token over a static cache.

    With ``draft_tokens`` above 0, an int8 copy of the model drafts that many tokens ahead and the model verifies them
    in one pass over its weights. A draft token is accepted only if the model samples the same token from the same
    random numbers, so that the tokens are those of the model alone; only the speed depends on the drafts.

    Args:
        model: the stock speech model; its parameters are used where they are.
        speech: its family's declaration.
        runtime: of the component.
        native: the backbone's native decoder, loaded; None for torch's operators.
        draft_tokens: drafted ahead; only the native decoder reads the copy.

    Attributes:
        listener: called with the guided logits (vocabulary,) behind every token that is not sampled in a captured
            graph.
        draft_counts: how many tokens were drafted and accepted.
    """

    def __init__(
        self,
        model: Any,
        speech: SpeechModel,
        runtime: ComponentRuntime,
        native: NativeDecoder | None = None,
        draft_tokens: int = 0,
    ) -> None:
        self.model = model
        self.listener: Callable[[Tensor], object] | None = None
        self.draft_counts = DraftCounts()
        self._speech = speech
        self._backbone = backbone = speech.backbone
        self._native = native
        self._draft_tokens = draft_tokens
        self._signature = inspect.signature(getattr(type(model), speech.method))
        self._vocabulary = Vocabulary(speech.start(model), speech.stop(model), speech.start_counts_as_seen)
        self._sizes = _sizes(backbone.weights(model))

        # The tensors are read where they are: without a count of writes, only the draft can be out of date.
        watch = WeightWatch(lambda: backbone.modules(model), counted=False)
        super().__init__(model, watch, runtime)
        weights = self.weights()
        self._layered = LayeredPass("layered decode", backbone, weights.stock, runtime)
        self._native_passes = [
            NativePass(name, native, native.constants(weights.stock, part), runtime)
            for name, part in zip(("decode", "draft"), weights.native)
            if native
        ]
        self._captured: CapturedSteps | None = None
        self._replays = runtime.replays()
        if self._replays:
            settings = SamplingSettings.checked(speech.processors, {})
            self._captured = CapturedSteps(
                self._layered, self._replays, self._new_cache, self._vocabulary, settings, runtime
            )

    @property
    def parts(self) -> list[LayeredPass | Region | Replays]:
        """Returns every kind of step that the engine may use."""
        replays = [self._replays] if self._replays else []
        return [*replays, self._layered, *(native.region for native in self._native_passes)]

    def notes(self) -> list[str]:
        """Returns how many draft tokens were accepted."""
        counts = self.draft_counts
        return [f"{counts.accepted} of {counts.drafted} draft tokens were accepted"] if counts.drafted else []

    def unfit(self) -> str | None:
        """Returns why the engine would not compute what the model computes now, or None."""
        return None if self.model.training else super().unfit()  # a call raises in training mode

    def inference(self, *args: Any, **kwargs: Any) -> Tensor:
        """Returns speech tokens, int64 (1, n), as the stock method does for the same arguments and generator state.

        Speech that reaches the model's last speech position ends there.

        Raises:
            InputError: for settings out of range, or text beyond the model's sizes.
            ModelStateError: for a model in training mode.
            NonFiniteError: for logits that are not finite.
        """
        self._check_mode()
        given = self._signature.bind(self.model, *args, **kwargs)
        given.apply_defaults()
        call = self._speech.call(self.model, given.arguments)
        budget = self._budget(call)
        passes = self._choose_passes()
        with timed("t3.prompt"):
            prompt = self._speech.prompt(self.model, call)
        guided, length = len(prompt) == 2, prompt.shape[1]
        if self._captured and passes.decode is self._captured:
            cache = self._captured.cache(guided, length + 1)
            try:
                return self._speak(passes, prompt, budget, call.settings, cache, self._captured)
            except CompilationError as error:
                self._runtime.fallback.fall("compile", error)
        return self._speak(passes, prompt, budget, call.settings, self._cache(1, guided, length + budget))

    def schedule(self, requests: Sequence[Request], slots: int | None) -> Scheduler:
        """Returns a scheduler of requests that are to be spoken together, with the same voice and settings.

        Args:
            requests: at least one.
            slots: how many are spoken at a time at most; None leaves it to the free memory.

        Raises:
            ModelStateError, InputError: as :meth:`inference`.
        """
        self._check_mode()
        settings, budget = requests[0].call.settings, self._budget(requests[0].call)
        passes = self._choose_passes()

        def utterance(request: Request) -> Utterance:
            with timed("t3.prompt"):
                prompt = self._speech.prompt(self.model, request.call)
            return Utterance(prompt, budget, NoiseStream(self._logits_like(), request.generator))

        longest_call = max((request.call for request in requests), key=lambda call: call.text_tokens.shape[1])
        with timed("t3.prompt"):
            longest = self._speech.prompt(self.model, longest_call)
        guided, length = len(longest) == 2, longest.shape[1] + budget

        def decode_loop(slots: int) -> DecodeLoop:
            if self._captured and passes.decode is self._captured:
                cache = self._captured.shared_cache(slots, guided, length)
            else:
                cache = self._cache(slots, guided, length)
            return DecodeLoop(passes, cache, settings, self._vocabulary)

        most = UTTERANCES.rungs[-1]
        if self._native and not longest.is_cuda:
            most = self._native.max_rows // len(longest)
        slots = min(len(requests), most, slots or self._slots_in_memory(guided, length))
        return Scheduler(requests, slots, utterance, decode_loop, self._runtime.fallback)

    def release(self) -> None:
        """Gives the caches of captured graphs back; the graphs must not be used any more."""
        if self._captured:
            self._captured.release()

    def warm_up(self) -> None:
        """Compiles every pass; speaks nothing and draws no random number."""
        for guided in (True, False) if self._speech.guidance else (False,):
            self._warm_up(guided)

    def _warm_up(self, guided: bool) -> None:
        passes = self._choose_passes()
        if self._captured and passes.decode is self._captured:
            try:
                self._captured.warm_up(self._captured.cache(guided, length=1))
                return
            except CompilationError as error:
                self._runtime.fallback.fall("compile", error)
                passes = self._choose_passes()
        # Three utterances in five slots: torch takes sizes that are equal by chance for one and the same.
        cache = self._cache(5, guided, length=1)
        blocks = [(passes.decode, 1, 1 + passes.draft_tokens), (passes.decode, 3, 1)]
        if passes.draft:
            blocks.append((passes.draft, 1, 1))
        for decoder, utterances, count in blocks:
            tokens = torch.zeros(utterances, count, dtype=torch.long, device=cache.keys.device)
            zeros = [0] * utterances
            decoder(Block(tokens, zeros, zeros), cache, cache.keys.new_zeros(()))

    def _check_mode(self) -> None:
        if self.model.training:
            raise ModelStateError("the model is in training mode; call .eval() on it first")

    def _budget(self, call: SpeechCall) -> int:
        name, limit = self._speech.limit, self._layered.weights.speech_positions
        try:
            budget = self._speech.budget if call.limit is None else operator.index(call.limit)
        except TypeError:
            raise InputError(f"{name} must be a whole number, got {call.limit!r}") from None
        if budget < 1:
            raise InputError(f"{name} must be at least 1, got {budget}")
        return budget if limit is None else min(budget, limit)

    def _make(self) -> EngineWeights:
        weights = self._backbone.weights(self.model)
        if self._native is None or not self._native.applies(self.model):
            return EngineWeights(weights, ())
        native = [self._native.weights(weights)]
        if self._draft_tokens:
            native.append(self._native.int8_copy(weights))
        return EngineWeights(weights, tuple(native))

    def _unsupported(self) -> str | None:
        if why := self._backbone.unsupported(self.model):
            return why
        return None if _sizes(self._backbone.weights(self.model)) == self._sizes else "its sizes have changed"

    def _choose_passes(self) -> Passes:
        """Returns the native passes where they can read the weights: a module can be cast or moved at any time."""
        weights = self.weights()
        self._layered.weights = weights.stock
        passes = Passes(self._layered.prefill, self._layered, counts=self.draft_counts, listener=self.listener)
        pairs = zip(self._native_passes, weights.native)
        if self._native_passes and weights.native and all(native.ready(weights.stock, part) for native, part in pairs):
            passes.decode, *drafts = self._native_passes
            if drafts:
                passes.draft, passes.draft_tokens = drafts[0], self._draft_tokens
        elif self._captured and self._runtime.captures and self._captured.ready():
            passes.decode = self._captured
        return passes

    def _slots_in_memory(self, guided: bool, length: int) -> int:
        """Returns how many utterances of that many positions have room; at least one."""
        weights = self._layered.weights
        if weights.like.is_cuda:  # where memory is taken at once, and not as it is reached
            length = CAPACITY.capacity(length)
        position = weights.cache.numbers * weights.like.element_size()
        held = self._captured.held if self._captured else 0
        free = int(_MEMORY_SHARE * (self._runtime.memory.room() + held))
        return max(1, free // (position * (2 if guided else 1) * length))

    def _cache(self, slots: int, guided: bool, length: int) -> KVCache:
        if self._layered.weights.like.device.type == "cpu":  # where memory that is not reached costs nothing
            slots += 1  # compiled code serves fewer utterances than slots: torch compiles equal sizes anew
        return self._new_cache(slots, guided, length + self._draft_tokens)

    def _new_cache(self, slots: int, guided: bool, length: int) -> KVCache:
        weights = self._layered.weights
        cache = KVCache(weights.cache, slots, guided, length, weights.like)
        cache.tables = self._backbone.tables(self.model, cache.capacity)
        if cache.tables is not None:
            dynamic(cache.tables, 1)
        return cache

    def _speak(
        self,
        passes: Passes,
        prompt: Tensor,
        budget: int,
        settings: SamplingSettings,
        cache: KVCache,
        captured: CapturedSteps | None = None,
    ) -> Tensor:
        """Returns speech tokens, int64 (1, n); all but the first by captured graphs where ``captured`` is given.

        Raises:
            CompilationError: with the generator as it was before.
        """
        utterance = Utterance(prompt, budget, NoiseStream(self._logits_like()))
        loop = DecodeLoop(passes, cache, settings, self._vocabulary)
        advance: Callable[[], None] = loop.advance
        if captured:
            advance = functools.partial(next, captured.speak(utterance, cache, settings))
        tokens = utterance.tokens
        try:
            with _bar(utterance.budget) as bar:
                loop.begin(utterance)
                with timed("t3.decode"):
                    while not utterance.ended:
                        bar.update(len(tokens) - bar.n)
                        advance()
                bar.update(len(tokens) - bar.n)
        except CompilationError:
            utterance.noise.rewind()
            raise
        finally:
            utterance.noise.settle(len(tokens))
        if utterance.error:
            raise utterance.error
        logger.info("speech ended after %d tokens", len(tokens))
        if not self._speech.keeps_stop and tokens[-1] == self._vocabulary.stop:
            tokens = tokens[:-1]
        return torch.tensor([tokens], device=self._layered.weights.like.device)

    def _logits_like(self) -> Tensor:
        like = self._layered.weights.like
        return like.new_empty(1, len(like))


def _sizes(weights: Weights) -> tuple[Any, ...]:
    return weights.constants, weights.cache, [tensor.shape for tensor in weights.tensors]


def _bar(budget: int) -> Any:
    from tqdm import tqdm  # stock shows the same one

    return tqdm(total=budget, desc="Sampling", dynamic_ncols=True)
