"""Buckets of lengths: the one place that decides which capacities shapes are rounded up to."""

from __future__ import annotations

import bisect
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import Self

from .errors import ConfigError, InputError
from .splitting import split_text
from .utils.arguments import as_list, is_int, mistaken_choice, raise_all, whole_number
from .utils.tables import format_table

UNITS = ("chars", "words", "tokens", "frames")
OVERFLOWS = ("extend", "error", "split")
UNDERFLOWS = ("extend", "error")

# The reference report's words, by the least share of the fullest bucket.
_VERDICTS = (
    (0.8, "HIGH - Excellent bucketing efficiency"),
    (0.5, "MEDIUM - Good bucketing efficiency"),
    (0.0, "LOW - Mixed chunk sizes"),
)

Range = tuple[int, int]
Names = tuple[str, ...]


def as_ranges(value: Any) -> Any:
    """Turns lists, as TOML and JSON give them, into tuples; returns any other value as it is.

    >>> as_ranges([[50, 200], [200, 500]])
    ((50, 200), (200, 500))
    """
    if isinstance(value, (list, tuple)):
        return tuple(tuple(item) if isinstance(item, (list, tuple)) else item for item in value)
    return value


def is_range(value: Any) -> bool:
    """Returns whether ``value`` is two ascending whole numbers from 0."""
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(is_int, value)) and 0 <= value[0] < value[1]


def mistaken_ranges(ranges: Any) -> list[str]:
    """Finds every mistake in ``ranges``, which must be a tuple of ascending (low, high) without gap or overlap.

    >>> mistaken_ranges(((50, 200), (250, 500)))
    ['gap between buckets (50, 200) and (250, 500)']
    """
    if not isinstance(ranges, tuple):
        return [f"buckets must be a tuple of (low, high) ranges, got {ranges!r}"]
    mistakes = [f"bucket {item!r} must be two ascending whole numbers" for item in ranges if not is_range(item)]
    for left, right in itertools.pairwise(ranges):
        if is_range(left) and is_range(right) and left[1] != right[0]:
            kind = "gap" if left[1] < right[0] else "overlap"
            mistakes.append(f"{kind} between buckets ({left[0]}, {left[1]}) and ({right[0]}, {right[1]})")
    return mistakes


class _Piece(NamedTuple):
    """An item, or a piece of one that was split."""

    capacity: int
    length: int
    item: Any
    origin: int  # index of the item in the input
    part: int


@dataclass(frozen=True)
class Batch:
    """Items of one capacity, shortest first.

    Attributes:
        bucket: the bucket's name.
        capacity: the length to pad every item to, in the bucketer's unit.
        items: the items, or pieces of them.
        indices: for each, the index of its item in the input.
        parts: for each, the number of the piece in its item, from 0; 0 for whole items.
    """

    bucket: str
    capacity: int
    items: tuple[Any, ...]
    indices: tuple[int, ...]
    parts: tuple[int, ...]


@dataclass(frozen=True)
class BucketStats:
    """The spread of lengths over buckets; ``str()`` is a table, :meth:`to_dict` is JSON-able.

    Attributes:
        counts: number of items in each bucket; every bucket is named.
        shares: each count as a share of the total, 0 to 1.
        total: number of items.
        shortest, mean, longest: lengths in the bucketer's unit.
        padding_waste: the share of all positions that is padding once each item is padded to its capacity, 0 to 1.
        shapes_before: number of different lengths.
        shapes_after: number of different capacities.
        verdict: in the reference report's words: HIGH where the fullest bucket holds at least 80%, MEDIUM from 50%.
    """

    counts: dict[str, int]
    shares: dict[str, float]
    total: int
    shortest: int
    mean: float
    longest: int
    padding_waste: float
    shapes_before: int
    shapes_after: int
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Returns the attributes as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [(name, str(count), f"{self.shares[name]:.0%}") for name, count in self.counts.items()]
        lines = [
            format_table([("bucket", "items", "share"), *rows]),
            f"{self.total} items of {self.shortest} to {self.longest}, {self.mean:.0f} on average",
            f"{self.shapes_before} lengths become {self.shapes_after} shapes, {self.padding_waste:.1%} padding",
            self.verdict,
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class ChunkBucketer:
    """A ladder of few capacities that lengths are rounded up to, so that one compiled shape serves many lengths.

    A length belongs to the first bucket whose upper end is at least as large; that end is its capacity. So a range
    excludes its lower end, except for the first range, which includes it.

    >>> bucketer = ChunkBucketer()
    >>> bucketer.bucket(137), bucketer.capacity(137)
    ('short', 200)
    >>> bucketer.rungs
    (200, 500, 1000)

    Attributes:
        ranges: (low, high) of each bucket, ascending; each begins where the previous one ends.
        names: one name for each bucket; None: short, medium and long for three buckets, else such as ``"50-200"``.
        unit: what lengths count: ``"chars"`` of a text, its ``"words"`` (between white space), or the ``"tokens"`` or
            ``"frames"`` of any sequence.
        overflow: the treatment of lengths above the last range: ``"extend"`` continues in multiples of its upper end,
            ``"error"`` refuses them, ``"split"`` lets :meth:`group` cut the item.
        underflow: the treatment of lengths below the first range: ``"extend"`` counts them into the first bucket,
            ``"error"`` refuses them.
        rungs: the capacities.

    Raises:
        ConfigError: lists every mistake.
    """

    ranges: tuple[Range, ...] = ((50, 200), (200, 500), (500, 1000))
    names: Names | None = None
    unit: str = "chars"
    overflow: str = "split"
    underflow: str = "extend"
    rungs: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranges", as_ranges(self.ranges))
        if isinstance(self.names, list):
            object.__setattr__(self, "names", tuple(self.names))
        mistakes = mistaken_ranges(self.ranges)
        if self.ranges == ():
            mistakes.append("buckets must hold at least one range")
        if self.names is not None:
            mistakes += self._mistaken_names()
        for name, choices in (("unit", UNITS), ("overflow", OVERFLOWS), ("underflow", UNDERFLOWS)):
            mistakes += mistaken_choice(name, getattr(self, name), choices)
        raise_all(mistakes)
        object.__setattr__(self, "rungs", tuple(high for _, high in self.ranges))

    def _mistaken_names(self) -> list[str]:
        names, ranges = self.names, self.ranges
        if not isinstance(names, tuple) or not all(isinstance(name, str) and name for name in names):
            return [f"names must be a tuple of non-empty strings or None, got {names!r}"]
        mistakes = []
        if len(set(names)) < len(names):
            mistakes.append(f"names must differ, got {names!r}")
        if isinstance(ranges, tuple) and ranges and len(names) != len(ranges):
            mistakes.append(f"names must be one for each of {len(ranges)} buckets, got {len(names)}: {names!r}")
        return mistakes

    @classmethod
    def from_ladder(
        cls, rungs: Iterable[int], unit: str = "tokens", overflow: str = "error", names: Names | None = None
    ) -> Self:
        """Makes buckets that end at each rung, the first from 0.

        >>> ChunkBucketer.from_ladder((64, 100)).ranges
        ((0, 64), (64, 100))

        Raises:
            ConfigError: when rungs are not ascending whole numbers from 1, and for mistakes in the other arguments.
        """
        if not isinstance(rungs, Iterable):
            raise ConfigError(f"rungs must be a list of whole numbers, got {rungs!r}")
        return cls(tuple(itertools.pairwise((0, *rungs))), names, unit, overflow)

    @classmethod
    def regular(
        cls, step: int, last: int, unit: str = "tokens", overflow: str = "error", names: Names | None = None
    ) -> Self:
        """Makes buckets that end at the multiples of ``step`` up to the first that is at least ``last``.

        >>> ChunkBucketer.regular(step=64, last=250).rungs
        (64, 128, 192, 256)

        Raises:
            ConfigError: when ``step`` or ``last`` is not a whole number from 1, and for mistakes in the others.
        """
        if not (is_int(step) and is_int(last) and step >= 1 and last >= 1):
            raise ConfigError(f"step and last must be whole numbers from 1, got {step!r} and {last!r}")
        return cls.from_ladder(range(step, last + step, step), unit, overflow, names)

    @classmethod
    def fit(
        cls,
        lengths: Iterable[int],
        buckets: int = 8,
        unit: str = "tokens",
        overflow: str = "error",
        names: Names | None = None,
    ) -> Self:
        """Makes the buckets that pad ``lengths`` least in total; no other choice of as many buckets pads less.

        >>> ChunkBucketer.fit([3, 4, 4, 90, 100], buckets=2).rungs
        (4, 100)

        Args:
            lengths: the lengths to expect, in ``unit``; repeats count.
            buckets: upper limit on their number, at least 1; there are fewer where fewer lengths differ.
            unit, overflow, names: attributes of the bucketer.

        Raises:
            InputError: for no lengths, for one that is not a whole number from 0, and for ``buckets`` below 1.
        """
        found = [whole_number("a length", length, 0) for length in as_list("lengths", lengths)]
        if not found:
            raise InputError("fit needs at least one length")
        if max(found) * len(found) >= 2**63:
            raise InputError(f"lengths up to {max(found)} are too long to be added up")
        # No capacity is 0, and rounding 0 up to 1 costs the same whatever the buckets are.
        ends, counts = np.unique(np.maximum(np.array(found, dtype=np.int64), 1), return_counts=True)
        chosen = _least_padding(ends, counts, min(whole_number("buckets", buckets, 1), len(ends)))
        return cls.from_ladder(chosen, unit, overflow, names)

    def capacity(self, n: int) -> int:
        """Returns the smallest capacity that holds ``n``.

        Raises:
            InputError: when ``n`` is not a whole number from 0, or does not fit.
        """
        n = whole_number("a length", n, 0)
        low, last = self.ranges[0][0], self.rungs[-1]
        if n < low and self.underflow == "error":
            raise InputError(f"{n} {self.unit} do not reach the first bucket, which begins at {low}")
        if n <= last:
            return self.rungs[bisect.bisect_left(self.rungs, n)]
        if self.overflow == "extend":
            return -(-n // last) * last
        hint = "; split first" if self.overflow == "split" else ""
        raise InputError(f"{n} {self.unit} do not fit the last bucket, which ends at {last}{hint}")

    def bucket(self, n: int) -> str:
        """Returns the name of the bucket that ``n`` belongs to; for a length above the last range, the last name.

        Raises:
            InputError: when ``n`` is not a whole number from 0, or does not fit.
        """
        return self._name(self.capacity(n))

    def group(self, items: Iterable[Any], max_batch: int | None = None) -> list[Batch]:
        """Sorts ``items`` into batches of one capacity each, shortest first; equal lengths keep their order.

        Where ``overflow`` is ``"split"``, items that are too long are cut to the last capacity or less: text counted
        in characters by :func:`~tts_compile.splitting.split_text`, in words between words, sequences anywhere.
        The pieces may be shorter than the first range, whatever ``underflow`` says.

        >>> batches = ChunkBucketer.from_ladder((2, 4), overflow="split").group([[1, 2, 3, 4, 5], [6]])
        >>> [(batch.capacity, batch.items, batch.indices, batch.parts) for batch in batches]
        [(2, ([5], [6]), (0, 1), (1, 0)), (4, ([1, 2, 3, 4],), (0,), (0,))]

        Args:
            items: strings for the units chars and words, other sequences for tokens and frames.
            max_batch: upper limit on the items of a batch; None for no limit.

        Raises:
            InputError: for an item of a wrong type, or one that does not fit; it names the item's index.
        """
        if max_batch is not None:
            max_batch = whole_number("max_batch", max_batch, 1)
        batches = []
        pieces = sorted(self._pieces(items), key=lambda piece: piece.length)
        for capacity, group in itertools.groupby(pieces, key=lambda piece: piece.capacity):
            same = list(group)
            most = max_batch or len(same)
            for start in range(0, len(same), most):
                _, _, found, indices, parts = zip(*same[start : start + most])
                batches.append(Batch(self._name(capacity), capacity, found, indices, parts))
        return batches

    @staticmethod
    def restore_order(batches: Sequence[Batch], results: Sequence[Iterable[Any]]) -> list[Any]:
        """Returns results in the order of the input; the results of an item's pieces follow each other.

        >>> batches = ChunkBucketer().group(["A longer text.", "Text."])
        >>> ChunkBucketer.restore_order(batches, [[item.upper() for item in batch.items] for batch in batches])
        ['A LONGER TEXT.', 'TEXT.']

        Args:
            batches: the return value of :meth:`group`.
            results: for each batch, one result for each of its items.

        Raises:
            InputError: when results are not lists, or more or fewer than items.
        """
        rows = [as_list(f"results of batch {i}", row) for i, row in enumerate(as_list("results", results))]
        expected, got = [len(batch.items) for batch in batches], [len(row) for row in rows]
        if expected != got:
            raise InputError(f"batches hold {expected} items, but there are {got} results")
        origins = [origin for batch in batches for origin in zip(batch.indices, batch.parts)]
        ordered = sorted(zip(origins, itertools.chain.from_iterable(rows)), key=lambda pair: pair[0])
        return [result for _, result in ordered]

    def pad(self, sequences: Iterable[Sequence[int] | Tensor], pad_id: int = 0) -> tuple[Tensor, Tensor]:
        """Pads sequences of whole numbers at their ends to the capacity of the longest, on the CPU.

        >>> padded, lengths = ChunkBucketer.from_ladder((4, 8)).pad([[1, 2, 3], [4]])
        >>> padded.tolist(), lengths.tolist()
        ([[1, 2, 3, 0], [4, 0, 0, 0]], [3, 1])

        Returns:
            padded, int64 (B, capacity), and lengths, int64 (B,).

        Raises:
            InputError: for no sequences, for anything but whole numbers, and for a longest one that does not fit.
        """
        rows = [_ids(i, row) for i, row in enumerate(as_list("sequences", sequences))]
        if not rows:
            raise InputError("pad needs at least one sequence")
        if not is_int(pad_id):
            raise InputError(f"pad_id must be a whole number, got {pad_id!r}")
        lengths = [len(ids) for ids in rows]
        padded = torch.full((len(rows), self.capacity(max(lengths))), pad_id, dtype=torch.int64)
        for target, ids in zip(padded, rows):
            target[: len(ids)] = ids
        return padded, torch.tensor(lengths)

    def stats(self, items: Iterable[Any]) -> BucketStats:
        """Counts ``items`` in each bucket; the pieces of those that :meth:`group` would cut count as items.

        >>> print(ChunkBucketer().stats(["a" * 90, "a" * 174]))
        bucket  items  share
        --------------------
        short   2      100%
        medium  0      0%
        long    0      0%
        2 items of 90 to 174, 132 on average
        2 lengths become 1 shapes, 34.0% padding
        HIGH - Excellent bucketing efficiency

        Raises:
            InputError: for no items, for an item of a wrong type, and for one that does not fit.
        """
        pieces = self._pieces(items)
        if not pieces:
            raise InputError("stats needs at least one item")
        capacities = [piece.capacity for piece in pieces]
        lengths = [piece.length for piece in pieces]
        found = Counter(map(self._name, capacities))
        counts = {name: found[name] for name in map(self._name, self.rungs)}
        shares = {name: count / len(pieces) for name, count in counts.items()}
        return BucketStats(
            counts=counts,
            shares=shares,
            total=len(pieces),
            shortest=min(lengths),
            mean=sum(lengths) / len(lengths),
            longest=max(lengths),
            padding_waste=(sum(capacities) - sum(lengths)) / sum(capacities),
            shapes_before=len(set(lengths)),
            shapes_after=len(set(capacities)),
            verdict=next(words for share, words in _VERDICTS if max(shares.values()) >= share),
        )

    def _name(self, capacity: int) -> str:
        """Returns the name of the bucket that pads to ``capacity``."""
        i = min(bisect.bisect_left(self.rungs, capacity), len(self.rungs) - 1)
        if self.names is not None:
            return self.names[i]
        return ("short", "medium", "long")[i] if len(self.ranges) == 3 else "{}-{}".format(*self.ranges[i])

    def _pieces(self, items: Iterable[Any]) -> list[_Piece]:
        """Returns every item, or its pieces, in the order of the input."""
        pieces = []
        for index, item in enumerate(as_list("items", items)):
            whole = self._length(item, index) <= self.rungs[-1] or self.overflow != "split"
            for part, piece in enumerate([item] if whole else self._split(item)):
                length = self._length(piece, index)
                try:
                    # What was cut may be shorter than the first range, whatever ``underflow`` says.
                    capacity = self.capacity(length if whole else max(length, self.ranges[0][0]))
                except InputError as error:
                    raise InputError(f"item {index}: {error}") from error
                pieces.append(_Piece(capacity, length, piece, index, part))
        return pieces

    def _length(self, item: Any, index: int) -> int:
        if self.unit in ("chars", "words"):
            if not isinstance(item, str):
                raise InputError(f"item {index} must be a string, as its {self.unit} count, got {type(item).__name__}")
            return len(item) if self.unit == "chars" else len(item.split())
        if isinstance(item, (str, bytes, Mapping)) or not hasattr(item, "__getitem__"):
            raise InputError(f"item {index} must be a sequence of {self.unit}, got {type(item).__name__}")
        try:
            return len(item)
        except TypeError as error:  # a tensor or an array without dimensions
            raise InputError(f"item {index} must be a sequence of {self.unit}: {error}") from error

    def _split(self, item: Any) -> list[Any]:
        most = self.rungs[-1]
        if self.unit == "chars":
            return split_text(item, max_chars=most) or [""]  # white space alone keeps its index in the input
        if self.unit == "words":
            words = list(re.finditer(r"\S+", item))
            runs = (words[i : i + most] for i in range(0, len(words), most))
            return [item[run[0].start() : run[-1].end()] for run in runs]
        return [item[i : i + most] for i in range(0, len(item), most)]


def _ids(index: int, row: Any) -> Tensor:
    """Returns a sequence of whole numbers as a tensor of one dimension; raises InputError for anything else."""
    try:
        ids = torch.as_tensor(row)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"sequence {index} must hold whole numbers: {error}") from error
    if ids.ndim != 1 or (len(ids) and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)):
        raise InputError(f"sequence {index} must be a row of whole numbers, got {ids.dtype} {tuple(ids.shape)}")
    if ids.dtype == torch.uint64 and bool((ids.to(torch.int64) < 0).any()):
        raise InputError(f"sequence {index} holds numbers beyond int64")
    return ids


def _least_padding(ends: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], buckets: int) -> list[int]:
    """Chooses the ``buckets`` of ``ends``, the last among them, that lengths round up to with the smallest sum.

    Dynamic programming: after k rounds, ``least[j]`` is the smallest sum of the lengths 0 to j, rounded up to k
    buckets. The last of them holds lengths i to j, and costs the end of j for each of them.

    Args:
        ends: int64 (m,), different lengths, ascending.
        counts: int64 (m,), the number of occurrences of each.
        buckets: 1 to m.
    """
    m = len(ends)
    before = np.concatenate([[0], np.cumsum(counts)])
    least = ends * before[1:]  # one bucket for lengths 0 to j
    firsts = []  # for each further bucket, (m,): the length at which it begins when it ends at j
    for used in range(1, buckets):
        first = np.zeros(m, dtype=np.int64)
        following = np.zeros(m, dtype=np.int64)
        for j in range(used, m):  # one row at a time: all rows together would be m * m numbers
            sums = least[used - 1 : j] + ends[j] * (before[j + 1] - before[used : j + 1])
            best = sums.argmin()
            first[j], following[j] = used + best, sums[best]
        least = following
        firsts.append(first)
    chosen = [m - 1]
    for first in reversed(firsts):
        chosen.append(int(first[chosen[-1]]) - 1)
    return [int(ends[j]) for j in reversed(chosen)]
