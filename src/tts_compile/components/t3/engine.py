"""The token loop: everything that stock ``T3.inference`` does, without its waste."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import _compat
from ...bucketing import Ladder
from ...errors import InputError, ModelStateError
from ...execution import Region
from ...fallback import FallbackManager
from .cache import KVCache
from .decoder import decoder_layer, head
from .sampling import SamplingSettings, choose, draw_noise, guide, probabilities
from .weights import T3Weights

logger = logging.getLogger(__name__)

# Attention reads whole rungs: 16 positions of waste cost under 1% of a step, and a compiled step serves any rung.
ATTENDED = Ladder.regular(step=16, last=16_384)
# Caches are allocated by these; a CPU touches only what is used.
CAPACITY = Ladder.regular(step=512, last=16_384)


class T3Engine:
    """Speaks for one stock ``T3``: prompt, then one token at a time over a static cache.

    Args:
        t3: the stock model; its parameters are used where they are.
        fallback: decides between the compiled and the eager step.
        cache_dir: folder for compiled code; None leaves torch's own.
        compile_options: ``backend``, ``mode`` and ``dynamic`` for ``torch.compile``.
    """

    def __init__(self, t3: Any, fallback: FallbackManager, cache_dir: str | None = None, **compile_options: Any) -> None:
        self.t3 = t3
        self.steps = 0
        self._graphs_when_warm: int | None = None
        self._cache_dir = cache_dir
        self._weights = T3Weights(t3)
        self._rotary = self._weights.rotary_table(0)
        self._eager_layer = functools.partial(decoder_layer, self._weights.eps)
        self._eager_head = functools.partial(head, self._weights.eps)
        self.layer = Region("layer", self._eager_layer, fallback, t3.device, **compile_options)
        self.head = Region("head", self._eager_head, fallback, t3.device, **compile_options)

    @torch.inference_mode()
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
        Beyond stock, one text row is accepted when ``cfg_weight`` is 0, and ``max_new_tokens=None`` means the
        model's ``max_speech_tokens``.

        Raises:
            InputError: for settings out of range, or text or ``max_new_tokens`` beyond the model's sizes.
            ModelStateError: for a model in training mode or non-finite logits.
        """
        if self.t3.training:
            raise ModelStateError("the model is in training mode; call .eval() on it first")
        if prepend_prompt_speech_tokens is not None:
            raise InputError("prepend_prompt_speech_tokens is not implemented by chatterbox")
        settings = SamplingSettings(temperature, top_p, min_p, repetition_penalty, cfg_weight)
        budget = self._checked_budget(max_new_tokens)
        text_tokens = self._checked_text(text_tokens, settings)
        if initial_speech_tokens is None:
            initial_speech_tokens = torch.full_like(text_tokens[:, :1], self.t3.hp.start_speech_token)
        with _compat.using_cache_dir(self._cache_dir):
            prompt, shared = self._prompt(t3_cond, text_tokens, initial_speech_tokens[: len(text_tokens)], settings)
            cache = self._cache(len(prompt), prompt.shape[1] + budget)
            logits = self._prefill(prompt, shared, cache)
            tokens = self._decode(logits, prompt.shape[1], budget, cache, settings)
        if self._graphs_when_warm is None:
            self.declare_warm()
        return tokens

    def warm_up(self, rows: int) -> None:
        """Compile the decode step for ``rows`` sequences; speaks nothing and draws no random number."""
        with torch.inference_mode(), _compat.using_cache_dir(self._cache_dir):
            cache = self._cache(rows, length=2)
            for position in range(2):
                self._step(0, position, position, cache)

    @property
    def compiled_steps(self) -> int:
        """Decode steps in which every call was counted inside compiled code."""
        return min(self.layer.compiled_calls // len(self._weights.layers), self.head.compiled_calls)

    @property
    def graphs(self) -> int:
        """Graphs that torch compiled for the decode step."""
        return self.layer.graphs + self.head.graphs

    @property
    def graph_breaks(self) -> int:
        """Graph breaks in the decode step."""
        return self.layer.graph_breaks + self.head.graph_breaks

    def declare_warm(self) -> None:
        """From here on, every graph counts as a recompilation."""
        self._graphs_when_warm = self.graphs

    @property
    def graphs_since_warm(self) -> int:
        """Graphs compiled since the warm-up, or since the first utterance where there was none."""
        return 0 if self._graphs_when_warm is None else self.graphs - self._graphs_when_warm

    def _checked_budget(self, max_new_tokens: int | None) -> int:
        limit = len(self._weights.speech_positions)
        budget = self.t3.hp.max_speech_tokens if max_new_tokens is None else max_new_tokens
        if not 1 <= budget <= limit:
            raise InputError(f"max_new_tokens must be from 1 to the model's {limit} speech positions, got {budget}")
        return budget

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
        if int(text_tokens.min()) < 0 or int(text_tokens.max()) >= hp.text_tokens_dict_size:
            raise InputError(f"text tokens must be from 0 to {hp.text_tokens_dict_size - 1}")
        for name, token in (("start", hp.start_text_token), ("stop", hp.stop_text_token)):
            if not bool((text_tokens == token).any(dim=1).all()):
                raise InputError(f"text_tokens lack the {name} token {token}")
        return text_tokens

    def _prompt(
        self, t3_cond: Any, text_tokens: Tensor, speech_tokens: Tensor, settings: SamplingSettings
    ) -> tuple[Tensor, int]:
        """Embeddings (rows, length, width) of voice, text and start, and how many leading ones all rows share."""
        embeddings, voice_length = self.t3.prepare_input_embeds(
            t3_cond=t3_cond, text_tokens=text_tokens, speech_tokens=speech_tokens, cfg_weight=settings.cfg_weight
        )
        # The start token goes in a second time: stock feeds it once as prompt and once as the first step.
        start = self._embedded(self.t3.hp.start_speech_token, 0)
        prompt = torch.cat([embeddings, start.expand(len(embeddings), 1, -1)], dim=1)
        shared = voice_length if bool((prompt[:1, :voice_length] == prompt[:, :voice_length]).all()) else 0
        return prompt, shared

    def _cache(self, rows: int, length: int) -> KVCache:
        weights = self._weights
        capacity = CAPACITY.capacity(length)
        if len(self._rotary[0]) < capacity:
            self._rotary = weights.rotary_table(capacity)
        return KVCache(
            len(weights.layers), rows, weights.heads, weights.head_dim, capacity, ATTENDED, weights.final_norm
        )

    def _prefill(self, prompt: Tensor, shared: int, cache: KVCache) -> Tensor:
        """Fill the cache with the prompt; logits (rows, 1, vocabulary) after its last position.

        Runs eagerly: a prompt is bound by matrix products, which compiling cannot speed up, and every prompt length
        would be a shape of its own. The part that all rows share, the voice, is computed once and copied.
        """
        if shared and len(prompt) > 1:
            self._layers(self._eager_layer, prompt[:1, :shared], 0, cache)
            cache.spread_first_row(shared)
            hidden = self._layers(self._eager_layer, prompt[:, shared:], shared, cache)
        else:
            hidden = self._layers(self._eager_layer, prompt, 0, cache)
        return self._eager_head(hidden[:, -1:], self._weights.final_norm, self._weights.head)

    def _decode(
        self, logits: Tensor, prompt_length: int, budget: int, cache: KVCache, settings: SamplingSettings
    ) -> Tensor:
        """Sample and feed back until the stop token or the budget; int64 (1, n)."""
        from tqdm import tqdm  # stock shows the same bar

        history = torch.empty(1, budget + 1, dtype=torch.long, device=logits.device)
        history[0, 0] = self.t3.hp.start_speech_token
        for step in tqdm(range(budget), desc="Sampling", dynamic_ncols=True):
            weights = probabilities(guide(logits, settings.cfg_weight), history[:, : step + 1], settings)
            token, trusted = choose(weights, draw_noise(weights))
            if not trusted:
                raise ModelStateError(f"T3 gave non-finite logits at step {step}; the utterance was given up")
            history[0, step + 1] = token
            if token == self.t3.hp.stop_speech_token:
                logger.info("speech ended by itself at step %d", step + 1)
                break
            if step + 1 < budget:
                logits = self._step(token, step + 1, prompt_length + step, cache)
        return history[:, 1 : step + 2].clone()

    def _step(self, token: int, speech_position: int, position: int, cache: KVCache) -> Tensor:
        """Feed one token; logits (rows, 1, vocabulary) for the next."""
        self.steps += 1
        x = self._embedded(token, speech_position).repeat(cache.rows, 1, 1)
        hidden = self._layers(self.layer, x, position, cache)
        logits: Tensor = self.head(hidden, self._weights.final_norm, self._weights.head)
        return logits

    def _layers(self, layer: Callable[..., Tensor], x: Tensor, start: int, cache: KVCache) -> Tensor:
        rows, count, _ = x.shape
        positions, mask = cache.attend(start, count)
        cos, sin = (table[start : start + count] for table in self._rotary)
        for weights, (keys, values) in zip(self._weights.layers, cache.layers(rows)):
            x = layer(x, cos, sin, positions, mask, keys, values, weights)
        return x

    def _embedded(self, token: int, speech_position: int) -> Tensor:
        """(1, 1, width)"""
        return (self._weights.speech_embedding[token] + self._weights.speech_positions[speech_position])[None, None]
