"""The keys and values of the utterances that are spoken together, allocated once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...bucketing import ChunkBucketer


class Part(NamedTuple):
    """Some neighbouring sequences of a cache: keys and values of each layer, and the cache's ``attend``."""

    layer_keys: Sequence[Tensor]
    layer_values: Sequence[Tensor]
    attend: Callable[[Sequence[int], int], tuple[Tensor, Tensor]]


class KVCache:
    """Keys and values, (layers, sequences, heads, capacity, head_dim) each, written in place.

    An utterance takes up a slot: one sequence, or with guidance two neighbours, the conditional one first. The
    capacity holds whole utterances, so that nothing grows in the loop; attention reads the rung of the attended ladder
    that covers what has been written. On a CPU, memory that is never reached is never touched and costs nothing.

    Attributes:
        keys, values: of all layers.
        layer_keys, layer_values: the same, layer by layer.
        guided: whether a slot has two sequences.
        slots: how many there are.
        capacity: positions.
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        guided: bool,
        heads: int,
        head_dim: int,
        capacity: int,
        attended: ChunkBucketer,
        like: Tensor,
    ) -> None:
        self.guided = guided
        self.slots = slots
        shape = (layers, slots * self.per_slot, heads, capacity, head_dim)
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.layer_keys, self.layer_values = self.keys.unbind(), self.values.unbind()
        self.capacity = capacity
        self._attended = attended
        self._cleared = 0
        for tensor in (self.keys, self.values, *self.layer_keys, *self.layer_values):
            torch._dynamo.maybe_mark_dynamic(tensor, tensor.ndim - 2)
            torch._dynamo.maybe_mark_dynamic(tensor, tensor.ndim - 4)

    @property
    def per_slot(self) -> int:
        """Sequences of an utterance."""
        return 2 if self.guided else 1

    def part(self, first: int, count: int) -> Part:
        """The sequences from ``first`` on."""
        keys, values = (
            [tensor[first : first + count] for tensor in tensors] for tensors in (self.layer_keys, self.layer_values)
        )
        return Part(keys, values, self.attend)

    def take(self, other: KVCache) -> None:
        """Go on where a smaller cache has come to its end."""
        self.clear()
        for tensor, before in ((self.keys, other.keys), (self.values, other.values)):
            tensor[..., : other.capacity, :].copy_(before)

    def clear(self) -> None:
        """Begin with other utterances in the same memory."""
        for tensor in (self.keys, self.values):
            tensor.zero_()
        self._cleared = self.capacity

    def vacate(self, slot: int) -> None:
        """Have the next utterance in a slot find nothing of the last one, whose values may not be finite."""
        for tensor in (self.keys, self.values):
            tensor[:, self._sequences(slot), :, : self._cleared].zero_()

    def move(self, source: int, target: int, length: int) -> None:
        """Give an utterance of ``length`` positions another slot."""
        for tensor in (self.keys, self.values):
            tensor[:, self._sequences(target), :, :length] = tensor[:, self._sequences(source), :, :length]

    def copy_start(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of one sequence to another."""
        for tensor in (self.keys, self.values):
            tensor[:, target, :, :length] = tensor[:, source, :, :length]

    def attend(self, starts: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
        """Make room for ``count`` positions of each sequence.

        Args:
            starts: where the new positions of a sequence begin.
            count: how many there are.

        Returns:
            positions, int64 (sequences, count): where keys and values go;
            mask, bool (sequences, 1, count, rung): what each new position may see.
        """
        rung = min(self._attended.capacity(max(starts) + count), self.capacity)
        if rung > self._cleared:  # masked entries still enter as 0 * value, which must not be 0 * nan
            for tensor in (self.keys, self.values):
                tensor[..., self._cleared : rung, :].zero_()
            self._cleared = rung
        device = self.keys.device
        positions = torch.tensor(starts, device=device)[:, None] + torch.arange(count, device=device)
        return positions, visible(positions, rung)

    def _sequences(self, slot: int) -> slice:
        return slice(slot * self.per_slot, (slot + 1) * self.per_slot)


def visible(positions: Tensor, rung: int) -> Tensor:
    """Mask (sequences, 1, count, rung) of the positions up to each of ``positions`` (sequences, count)."""
    mask = torch.arange(rung, device=positions.device) <= positions[:, None, :, None]
    torch._dynamo.maybe_mark_dynamic(mask, 0)
    torch._dynamo.maybe_mark_dynamic(mask, 3)
    return mask
