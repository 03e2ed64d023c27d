"""The keys and values of the utterances that are spoken together, allocated once."""

from __future__ import annotations

import functools
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
        self._cleared = [0] * shape[1]  # for each sequence, up to where there are no leftovers
        self._whole = False
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
        return Part(keys, values, functools.partial(self.attend, first=first))

    def take(self, other: KVCache) -> None:
        """Go on where a smaller cache has come to its end."""
        self.clear()
        for tensor, before in ((self.keys, other.keys), (self.values, other.values)):
            tensor[..., : other.capacity, :].copy_(before)

    def clear(self) -> None:
        """Begin with other utterances in the same memory; from now on all of it is kept free of leftovers.

        Recorded steps read more of it than :meth:`attend` says.
        """
        self._whole = True
        self._forget(0, len(self._cleared))

    def vacate(self, slot: int) -> None:
        """Have the next utterance in a slot find nothing of the last one, whose values may not be finite."""
        self._forget(slot * self.per_slot, (slot + 1) * self.per_slot)

    def move(self, source: int, target: int, length: int) -> None:
        """Give an utterance of ``length`` positions another slot."""
        for offset in range(self.per_slot):
            self.copy_start(source * self.per_slot + offset, target * self.per_slot + offset, length)

    def copy_start(self, source: int, target: int, length: int) -> None:
        """Have a sequence begin with the first ``length`` positions of another, and hold nothing else."""
        self._forget(target, target + 1)
        for tensor in (self.keys, self.values):
            tensor[:, target, :, :length] = tensor[:, source, :, :length]
        self._cleared[target] = max(length, self._cleared[target])

    def attend(self, starts: Sequence[int], count: int, first: int = 0) -> tuple[Tensor, Tensor]:
        """Make room for ``count`` positions of each sequence from ``first`` on.

        Args:
            starts: where the new positions of a sequence begin.
            count: how many there are.
            first: the sequence that the first start is of.

        Returns:
            positions, int64 (sequences, count): where keys and values go;
            mask, bool (sequences, 1, count, rung): what each new position may see.
        """
        rung = min(self._attended.capacity(max(starts) + count), self.capacity)
        for sequence in range(first, first + len(starts)):
            cleared = self._cleared[sequence]
            if cleared < rung:  # masked entries still enter as 0 * value, which must not be 0 * nan
                for tensor in (self.keys, self.values):
                    tensor[:, sequence, :, cleared:rung].zero_()
                self._cleared[sequence] = rung
        device = self.keys.device
        positions = torch.tensor(starts, device=device)[:, None] + torch.arange(count, device=device)
        return positions, visible(positions, rung)

    def _forget(self, first: int, end: int) -> None:
        """Leave no trace in some sequences, at once or when they are attended to."""
        if self._whole:
            for tensor in (self.keys, self.values):
                tensor[:, first:end].zero_()
        self._cleared[first:end] = [self.capacity if self._whole else 0] * (end - first)


def visible(positions: Tensor, rung: int) -> Tensor:
    """Mask (sequences, 1, count, rung) of the positions up to each of ``positions`` (sequences, count)."""
    mask = torch.arange(rung, device=positions.device) <= positions[:, None, :, None]
    torch._dynamo.maybe_mark_dynamic(mask, 0)
    torch._dynamo.maybe_mark_dynamic(mask, 3)
    return mask
