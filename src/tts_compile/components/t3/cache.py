"""The keys and values of the utterances that are spoken together, allocated once."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from ...backbones.backbone import CacheShape
from ...bucketing import ChunkBucketer
from ...execution import dynamic

# Attention reads whole rungs: 16 positions of waste cost under 1% of a step, and a compiled step serves any rung.
_STEP = 16
ATTENDED = ChunkBucketer.regular(step=_STEP, last=16_384)
# Caches are allocated by these; a CPU touches only what is used.
CAPACITY = ChunkBucketer.regular(step=512, last=16_384)


class KVCache:
    """Keys and values, (layers, sequences, heads, capacity, head_dim) each, written in place.

    An utterance has a slot: one sequence, or with guidance two neighbours, the conditional one first. The capacity
    holds whole utterances, so that nothing grows in the loop; attention reads the rung of the attended ladder that
    covers what has been written. On a CPU, memory that is never reached is never touched and costs nothing.

    Args:
        shape: of one position.
        slots: utterances.
        guided: whether a slot has two sequences.
        length: positions at least; the capacity is the rung above.
        like: a tensor of the model's dtype, on its device.

    Attributes:
        keys, values: of all layers.
        layer_keys, layer_values: the same tensors, layer by layer.
        tables: the backbone's, for every position; None where it has none.
        guided: whether a slot has two sequences.
        slots: utterances.
        capacity: positions.
    """

    def __init__(self, shape: CacheShape, slots: int, guided: bool, length: int, like: Tensor) -> None:
        self.guided = guided
        self.slots = slots
        # More than is ever attended to: torch compiles anew for attending to exactly the whole capacity.
        self.capacity = CAPACITY.capacity(length + _STEP)
        self.tables: Tensor | None = None
        sizes = (shape.layers, slots * self.per_slot, shape.heads, self.capacity, shape.head_dim)
        self.keys, self.values = like.new_empty(sizes), like.new_empty(sizes)
        self.layer_keys, self.layer_values = self.keys.unbind(), self.values.unbind()
        self._cleared = [0] * sizes[1]  # for each sequence, up to where nothing is left over
        self._first = 0  # the sequence of the whole cache that is the first one here
        self._whole = False
        for tensor in (self.keys, self.values, *self.layer_keys, *self.layer_values):
            dynamic(tensor, tensor.ndim - 2, tensor.ndim - 4)

    @property
    def per_slot(self) -> int:
        """Returns the number of sequences of an utterance."""
        return 2 if self.guided else 1

    def part(self, first: int, count: int) -> KVCache:
        """Returns a view of ``count`` sequences from ``first`` on, to be attended to alone."""
        part = copy.copy(self)
        part._first = first
        part.keys, part.values = self.keys[:, first : first + count], self.values[:, first : first + count]
        part.layer_keys, part.layer_values = part.keys.unbind(), part.values.unbind()
        return part

    def take(self, other: KVCache) -> None:
        """Copies a smaller cache, whose utterances go on here."""
        self.clear()
        for tensor, before in ((self.keys, other.keys), (self.values, other.values)):
            tensor[..., : other.capacity, :].copy_(before)

    def clear(self) -> None:
        """Begins with other utterances in the same memory; from now on all of it is kept free of leftovers.

        Captured steps read more of the memory than :meth:`attend` returns.
        """
        self._whole = True
        self._forget(0, len(self._cleared))

    def vacate(self, slot: int) -> None:
        """Removes the last utterance's keys and values from a slot: they may not be finite."""
        self._forget(slot * self.per_slot, (slot + 1) * self.per_slot)

    def move(self, source: int, target: int, length: int) -> None:
        """Moves an utterance of ``length`` positions to another slot."""
        for offset in range(self.per_slot):
            self.copy_start(source * self.per_slot + offset, target * self.per_slot + offset, length)

    def copy_start(self, source: int, target: int, length: int) -> None:
        """Copies the first ``length`` positions of a sequence to another one, which then holds nothing else."""
        self._forget(target, target + 1)
        for tensor in (self.keys, self.values):
            tensor[:, target, :, :length] = tensor[:, source, :, :length]
        self._cleared[target] = max(length, self._cleared[target])

    def attend(self, starts: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
        """Makes room for ``count`` positions of each of the first sequences.

        Args:
            starts: the first new position of each sequence.
            count: new positions of each.

        Returns:
            positions, int64 (sequences, count): where keys and values go;
            mask, bool (sequences, 1, count, rung): what each new position may attend to.
        """
        rung = min(ATTENDED.capacity(max(starts) + count), self.capacity)
        for sequence in range(len(starts)):
            cleared = self._cleared[self._first + sequence]
            if cleared < rung:  # masked entries still enter as 0 * value, which must not be 0 * nan
                for tensor in (self.keys, self.values):
                    tensor[:, sequence, :, cleared:rung].zero_()
                self._cleared[self._first + sequence] = rung
        device = self.keys.device
        positions = torch.tensor(starts, device=device)[:, None] + torch.arange(count, device=device)
        return positions, visible(positions, rung)

    def _forget(self, first: int, end: int) -> None:
        """Clears some sequences, at once or when they are attended to."""
        if self._whole:
            for tensor in (self.keys, self.values):
                tensor[:, first:end].zero_()
        self._cleared[first:end] = [self.capacity if self._whole else 0] * (end - first)


def visible(positions: Tensor, rung: int) -> Tensor:
    """Returns the mask (sequences, 1, count, rung) of the positions up to each of ``positions`` (sequences, count)."""
    mask = torch.arange(rung, device=positions.device) <= positions[:, None, :, None]
    return dynamic(mask, 0, 3)
