"""Counts, quantiles and shares of timed blocks, and a table of them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Path = tuple[str, ...]  # names of blocks, from the outermost on
Peaks = tuple[int | None, ...]  # bytes: resident, CUDA

UNKNOWN: Peaks = (None, None)


@dataclass(frozen=True)
class TimingRow:
    """A summary of the blocks of one path and phase.

    Attributes:
        path: names, from the outermost block on.
        count: number of blocks; 0 for a row whose blocks have all ended in another phase.
        total: seconds of all blocks together.
        median, p90: seconds of the last blocks; None for a count of 0.
        share: part of the time of the outermost blocks of the same phase, from the last blocks; None for a count of 0.
        audio_seconds: seconds of speech generated in the blocks for which that was set; None without such blocks.
        real_time_factor: seconds that a second of speech took in these blocks; below 1 is faster than real time.
        resident_peak: the highest resident memory of the process during a block, in bytes; None where not measured.
        cuda_peak: the highest memory that torch had allocated on the CUDA device, in bytes; None where not measured.
    """

    path: Path
    count: int
    total: float
    median: float | None
    p90: float | None
    share: float | None
    audio_seconds: float | None
    real_time_factor: float | None
    resident_peak: int | None
    cuda_peak: int | None


class Moment(NamedTuple):
    """One block that has ended; times in seconds."""

    started: float
    seconds: float
    thread: int
    root: float  # start of its outermost block, which identifies that one
    audio: float | None = None  # seconds of speech
    peaks: Peaks = UNKNOWN


class Stat:
    """The record of the blocks of one path and phase."""

    __slots__ = ("audio", "audio_time", "count", "first", "moments", "peaks", "total")

    def __init__(self, keep: int) -> None:
        self.count = 0
        self.total = 0.0
        self.audio: float | None = None
        self.audio_time = 0.0
        self.first = math.inf  # start of the first block
        self.peaks = UNKNOWN
        self.moments: deque[Moment] = deque(maxlen=keep)

    def add(self, moment: Moment) -> None:
        """Adds one block."""
        self.count += 1
        self.total += moment.seconds
        self.first = min(self.first, moment.started)
        self.moments.append(moment)
        if moment.audio is not None:
            self.audio = (self.audio or 0.0) + moment.audio
            self.audio_time += moment.seconds
        if moment.peaks is not UNKNOWN:
            self.peaks = tuple(map(_higher, self.peaks, moment.peaks))


def _higher(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)


def as_rows(stats: Mapping[Path, Stat]) -> list[TimingRow]:
    """Returns the rows of one phase: parents before children, in order of first appearance.

    A parent without blocks in this phase gets a row of count 0.
    """
    first: dict[Path, float] = {}
    for path, stat in stats.items():
        for part in _path_and_parents(path):
            first[part] = min(first.get(part, math.inf), stat.first)
    order = sorted(first, key=lambda path: [(first[part], part[-1]) for part in _path_and_parents(path)])
    return [_as_row(path, stats.get(path), stats.get(path[:1])) for path in order]


def _path_and_parents(path: Path) -> list[Path]:
    return [path[:end] for end in range(1, len(path) + 1)]


def _as_row(path: Path, stat: Stat | None, root: Stat | None) -> TimingRow:
    if stat is None:
        return TimingRow(path, 0, 0.0, None, None, None, None, None, None, None)
    seconds = sorted(moment.seconds for moment in stat.moments)
    return TimingRow(
        path,
        stat.count,
        stat.total,
        _quantile(seconds, 0.5),
        _quantile(seconds, 0.9),
        _share(stat, root),
        stat.audio,
        stat.audio_time / stat.audio if stat.audio else None,
        *stat.peaks,
    )


def _quantile(values: list[float], q: float) -> float:
    """Interpolates linearly between the nearest two of sorted values (Hyndman and Fan 1996, type 7)."""
    at = (len(values) - 1) * q
    low = int(at)
    return values[low] + (at - low) * (values[min(low + 1, len(values) - 1)] - values[low])


def _share(stat: Stat, root: Stat | None) -> float | None:
    """Returns the share of the outermost blocks, counting only those of which every part is still stored."""
    since = stat.moments[0].root if len(stat.moments) == stat.moments.maxlen and stat is not root else -math.inf
    whole = {moment.started: moment.seconds for moment in root.moments if moment.started > since} if root else {}
    total = sum(whole.values())
    return sum(moment.seconds for moment in stat.moments if moment.root in whole) / total if total else None


def table(rows: Sequence[TimingRow]) -> Iterator[str]:
    """Returns the lines of a table, the titles first; a column without any value is left out."""
    columns: dict[str, list[str]] = {
        "": ["  " * (len(row.path) - 1) + row.path[-1] for row in rows],
        "calls": [str(row.count) for row in rows],
        "total, s": [f"{row.total:.3f}" for row in rows],
        "median, ms": [_shown(row.median, "{:.3f}", 1e-3) for row in rows],
        "p90, ms": [_shown(row.p90, "{:.3f}", 1e-3) for row in rows],
        "share": [_shown(row.share, "{:.1%}") for row in rows],
        "real-time factor": [_shown(row.real_time_factor, "{:.3f}") for row in rows],
        "resident, MiB": [_shown(row.resident_peak, "{:.0f}", 2**20) for row in rows],
        "CUDA, MiB": [_shown(row.cuda_peak, "{:.0f}", 2**20) for row in rows],
    }
    columns = {title: cells for title, cells in columns.items() if any(cells)}
    lines = list(zip(*([title, *cells] for title, cells in columns.items())))
    name, *numbers = (max(map(len, column)) for column in zip(*lines))
    for line in lines:
        cells = [line[0].ljust(name), *(cell.rjust(width) for cell, width in zip(line[1:], numbers))]
        yield "  ".join(cells).rstrip()


def _shown(value: float | None, form: str, unit: float = 1) -> str:
    return "" if value is None else form.format(value / unit)
