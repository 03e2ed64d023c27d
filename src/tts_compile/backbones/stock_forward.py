"""The fallback for a transformer without a step of its own: its own forward, over a static cache."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

from .backbone import CacheShape, Weights, Where


class StockForward:
    """The step of a Hugging Face decoder that takes ``inputs_embeds`` and a cache.

    Its modules are called, so that whatever they compute is computed. The step has no native decoder.

    Args:
        transformer, embedding, head: names of the speech model's modules: the decoder, the embedding of speech tokens,
            and the projection of hidden states to logits, which has a ``weight`` (vocabulary, width).
        speech_positions: speech tokens at most; None for no limit.
    """

    native = None

    def __init__(
        self,
        transformer: str = "tfmr",
        embedding: str = "speech_emb",
        head: str = "speech_head",
        speech_positions: int | None = None,
    ) -> None:
        self._transformer = transformer
        self._embedding = embedding
        self._head = head
        self._speech_positions = speech_positions

    def weights(self, model: Any) -> Weights:
        """Returns the modules of a speech model."""
        transformer, head, embedding = self.modules(model)
        config: Any = transformer.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return Weights(
            layers=[_Undecorated(transformer)],
            by_layer=False,
            last=head,
            embeddings=(embedding,),
            constants=None,
            cache=CacheShape(config.num_hidden_layers, heads, head_dim),
            like=cast(Tensor, head.weight),
            tensors=[tensor for part in (transformer, head, embedding) for tensor in part.parameters()],
            speech_positions=self._speech_positions,
        )

    def modules(self, model: Any) -> list[nn.Module]:
        """Returns transformer, head and embedding: compiled code does not follow their hooks."""
        return [getattr(model, name) for name in (self._transformer, self._head, self._embedding)]

    def unsupported(self, model: Any) -> str | None:
        """Returns why the transformer cannot run over a static cache that attends to all positions, or None."""
        transformer = getattr(model, self._transformer)
        name, config = type(transformer).__name__, getattr(transformer, "config", None)
        if config is None:
            return f"{name} is no transformer of Hugging Face's: it has no config"
        kinds = {*(getattr(config, "layer_types", None) or ()), "full_attention"}
        if getattr(config, "sliding_window", None) is not None or len(kinds) > 1:
            return f"{name} attends to a window, or keeps something else than keys and values"
        return None

    def embed(self, weights: Weights, tokens: Tensor, spoken: Tensor, positions: Tensor, rows: int) -> Tensor:  # noqa: ARG002 - the transformer adds positions itself
        """Embeds speech tokens (utterances, count); returns (utterances * rows, count, width)."""
        (embedding,) = weights.embeddings
        embedded: Tensor = embedding(tokens)
        return embedded.repeat_interleave(rows, 0)

    def tables(self, model: Any, length: int) -> None:  # noqa: ARG002 - a backbone's signature
        """Returns None: the transformer has its own tables of positions."""
        return

    def layer(self, constants: None, x: Tensor, where: Where, keys: Tensor, values: Tensor, weights: Any) -> Tensor:  # noqa: ARG002 - a backbone's signature
        """Runs the transformer over a block (sequences, count, width); returns its last hidden states.

        Args:
            constants: None.
            x: embeddings.
            where: the positions and the mask.
            keys, values: (layers, at least sequences, heads, capacity, head_dim), written at the positions.
            weights: the transformer.
        """
        bias = torch.zeros_like(where.mask, dtype=x.dtype).masked_fill(~where.mask, torch.finfo(x.dtype).min)
        hidden: Tensor = weights(
            inputs_embeds=x,
            attention_mask=bias,
            position_ids=where.positions,
            past_key_values=_CacheView(keys, values, where),
            use_cache=True,
        ).last_hidden_state
        return hidden

    def head(self, constants: None, x: Tensor, weights: Any) -> Tensor:  # noqa: ARG002 - a backbone's signature
        """Projects hidden states to logits (sequences, count, vocabulary)."""
        logits: Tensor = weights(x)
        return logits


class _Undecorated(nn.Module):
    """A transformer without the decorators of its forward, which merge settings in a way that torch cannot trace."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        self._forward = inspect.unwrap(type(transformer).forward)

    def forward(self, **kwargs: Any) -> Any:
        return self._forward(self.transformer, **kwargs)


class _CacheView:
    """A static cache with the methods of transformers' ``Cache`` that a decoder calls during a forward pass."""

    is_compileable = True

    def __init__(self, keys: Tensor, values: Tensor, where: Where) -> None:
        self._keys = keys
        self._values = values
        self._positions = where.positions
        self._attended = where.mask.shape[3]

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes new keys and values (sequences, heads, count, head_dim); returns those that are attended to."""
        sequences, heads, _count, _head_dim = keys.shape
        own = torch.arange(sequences, device=keys.device)[:, None, None]
        entries = own, torch.arange(heads, device=keys.device)[:, None], self._positions[:, None]
        self._keys[layer_idx].index_put_(entries, keys)
        self._values[layer_idx].index_put_(entries, values)
        attended = slice(0, self._attended)
        return self._keys[layer_idx, :sequences, :, attended], self._values[layer_idx, :sequences, :, attended]

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - transformers' signature
        """Returns 0: positions and mask are given."""
        return 0
