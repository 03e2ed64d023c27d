"""The keys and values of one utterance, allocated once."""

from __future__ import annotations

import torch
from torch import Tensor

from ...bucketing import Ladder


class KVCache:
    """Keys and values, (layers, sequences, heads, capacity, head_dim) each, written in place.

    The capacity holds the whole utterance, so that nothing grows in the loop; attention reads the rung of the
    attended ladder that covers what has been written. On a CPU, memory that is never reached is never touched and
    costs nothing.
    """

    def __init__(
        self,
        layers: int,
        sequences: int,
        heads: int,
        head_dim: int,
        capacity: int,
        attended: Ladder,
        like: Tensor,
    ) -> None:
        shape = (layers, sequences, heads, capacity, head_dim)
        self.sequences = sequences
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.layer_keys, self.layer_values = self.keys.unbind(), self.values.unbind()
        self.capacity = capacity
        self._attended = attended
        self._cleared = 0
        for tensor in (self.keys, self.values, *self.layer_keys, *self.layer_values):
            torch._dynamo.maybe_mark_dynamic(tensor, tensor.ndim - 2)

    def take(self, other: KVCache) -> None:
        """Go on where a smaller cache has come to its end."""
        self.clear()
        for tensor, before in ((self.keys, other.keys), (self.values, other.values)):
            tensor[..., : other.capacity, :].copy_(before)

    def clear(self) -> None:
        """Begin another utterance in the same memory."""
        for tensor in (self.keys, self.values):
            tensor.zero_()
        self._cleared = self.capacity

    def attend(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Make room for positions ``start`` to ``start + count``.

        Returns:
            positions, int64 (count,): where keys and values go;
            mask, bool (count, rung): what each new position may see.
        """
        rung = min(self._attended.capacity(start + count), self.capacity)
        if rung > self._cleared:  # masked entries still enter as 0 * value, which must not be 0 * nan
            for tensor in (self.keys, self.values):
                tensor[..., self._cleared : rung, :].zero_()
            self._cleared = rung
        device = self.keys.device
        positions = torch.arange(start, start + count, device=device)
        mask = torch.arange(rung, device=device) <= positions[:, None]
        torch._dynamo.maybe_mark_dynamic(mask, 1)
        return positions, mask
