"""The protocol of a transformer's step: a block of new positions against a static cache of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn


class Where(NamedTuple):
    """Positions of a block in the cache, and the mask of what each may attend to."""

    tables: tuple[Tensor, ...]  # of :meth:`Backbone.tables`, each (sequences, 1, count, head_dim) at the positions
    positions: Tensor  # int64 (sequences, count)
    mask: Tensor  # bool (sequences, 1, count, attended)


class CacheShape(NamedTuple):
    """Sizes of the keys and values that a transformer writes for one position."""

    layers: int
    heads: int
    head_dim: int

    @property
    def numbers(self) -> int:
        """Keys and values together."""
        return 2 * self.layers * self.heads * self.head_dim


class Weights(NamedTuple):
    """Everything that a backbone's functions read of a model, where it is.

    Attributes:
        layers: what one call of :meth:`Backbone.layer` reads, for each call of a pass.
        by_layer: whether each call computes one layer, with that layer's keys and values; otherwise one call computes
            all layers, with those of all.
        last: what :meth:`Backbone.head` reads.
        embeddings: what :meth:`Backbone.embed` reads: tensors, for a native decoder.
        constants: numbers that are compiled into the functions of layers and head.
        cache: the shape of the cache.
        like: a tensor (vocabulary, width) with the dtype and the device of the logits.
        tensors: every tensor, in a fixed order.
        speech_positions: speech tokens at most; None for no limit of the model's.
    """

    layers: Sequence[Any]
    by_layer: bool
    last: Any
    embeddings: tuple[Any, ...]
    constants: Any
    cache: CacheShape
    like: Tensor
    tensors: Sequence[Tensor]
    speech_positions: int | None


class NativeWeights(Protocol):
    """Weights in the form that a native decoder reads."""

    @property
    def fit(self) -> bool:
        """Returns whether the decoder can read the weights as they are now."""

    def addresses(self) -> Tensor:
        """Returns where the weights lie now, int64."""


class NativeInputs(NamedTuple):
    """The tensors of a native decoder's step."""

    embeddings: tuple[Tensor, ...]  # of :class:`Weights`
    tokens: Tensor  # int64 (utterances, count)
    spoken: Tensor  # int64 (utterances,), as :meth:`Backbone.embed` takes it
    tables: Tensor | None  # of :meth:`Backbone.tables`
    positions: Tensor  # int64 (utterances * rows, count)
    keys: Tensor  # of all layers
    values: Tensor
    addresses: Tensor  # of :class:`NativeWeights`


class NativeDecoder(Protocol):
    """A pass over all layers as one C++ operator, for fp32 activations on a CPU.

    Attributes:
        max_rows: sequences times new positions, at most.
    """

    @property
    def max_rows(self) -> int: ...

    def applies(self, model: Any) -> bool:
        """Returns whether the operator is made for a model of these sizes, dtype and device."""

    def load(self, cache_dir: str | None) -> None:
        """Builds the operator if need be.

        Raises:
            CompilationError: when it cannot be built.
        """

    def weights(self, weights: Weights) -> NativeWeights:
        """Returns the model's own tensors."""

    def int8_copy(self, weights: Weights) -> NativeWeights:
        """Returns a copy with every matrix in 8 bits, which drafts tokens."""

    def int8_bytes(self, weights: Weights) -> int:
        """Returns the size of that copy, up to its scales."""

    def constants(self, weights: Weights, native: Any) -> Any:
        """Returns the numbers that are compiled into :meth:`step`."""

    def step(self, constants: Any, inputs: NativeInputs, rows: int) -> Tensor:
        """Returns logits (utterances * rows, count, vocabulary) of speech tokens.

        Args:
            constants: of the method with this name.
            inputs: of the step; keys and values are written at the positions.
            rows: sequences of an utterance.
        """


class Backbone(Protocol):
    """The step of one kind of transformer, as functions of its weights.

    Attributes:
        native: its native decoder; None where there is none.
    """

    @property
    def native(self) -> NativeDecoder | None: ...

    def weights(self, model: Any) -> Weights:
        """Returns the tensors of a speech model where they are."""

    def modules(self, model: Any) -> Sequence[nn.Module]:
        """Returns the modules whose tensors the functions read instead of calling them."""

    def unsupported(self, model: Any) -> str | None:
        """Returns why these functions would not compute what the model's modules compute, or None."""

    def embed(self, weights: Weights, tokens: Tensor, spoken: Tensor, positions: Tensor, rows: int) -> Tensor:
        """Embeds speech tokens.

        Args:
            weights: of the model.
            tokens: int64 (utterances, count).
            spoken: int64 (utterances,), the position of each first token among its utterance's speech tokens.
            positions: int64 (utterances * rows, count), positions in the cache.
            rows: sequences of an utterance.

        Returns:
            (utterances * rows, count, width).
        """

    def tables(self, model: Any, length: int) -> Tensor | None:
        """Returns tables (n, length, head_dim) by position, such as cosines and sines, or None."""

    def layer(self, constants: Any, x: Tensor, where: Where, keys: Tensor, values: Tensor, weights: Any) -> Tensor:
        """Computes one layer, or all, over a block (sequences, count, width); writes keys and values in place."""

    def head(self, constants: Any, x: Tensor, weights: Any) -> Tensor:
        """Returns logits (sequences, count, vocabulary)."""
