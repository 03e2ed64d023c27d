"""What timed blocks add up to: counts, quantiles, shares, a table."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Path = tuple[str, ...]  # names of blocks, from the outermost on
Peaks = tuple[int | None, int | None]  # bytes: resident, CUDA

UNKNOWN: Peaks = (None, None)


@dataclass(frozen=True)
class TimingRow:
    """The blocks of one path and phase.

    Attributes:
        path: names, from the outermost block on.
        count: blocks; 0 for a row that is only there because of those below it.
        total: seconds, of all blocks.
        median, p90: seconds, of the last blocks; None without any.
        share: of the time of the outermost blocks of the same phase, by the last blocks; None without any.
        audio_seconds: of speech made in those blocks that said so; None without any.
        real_time_factor: seconds that a second of speech has taken in those blocks; below 1 is faster than real time.
        resident_peak: the highest resident memory of the process during such a block in bytes; None where not known.
        cuda_peak: the highest memory allocated by torch on the CUDA device likewise.
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
    root: float  # when its outermost block started, which tells one from another


class Stat:
    """What is kept of the blocks of one path and phase."""

    __slots__ = ("audio", "audio_time", "count", "first", "moments", "peaks", "total")

    def __init__(self, keep: int) -> None:
        self.count = 0
        self.total = 0.0
        self.audio: float | None = None
        self.audio_time = 0.0
        self.first = math.inf  # when the first of them started
        self.peaks = UNKNOWN
        self.moments: deque[Moment] = deque(maxlen=keep)

    def add(self, moment: Moment, audio: float | None, peaks: Peaks) -> None:
        """Take one in."""
        self.count += 1
        self.total += moment.seconds
        self.first = min(self.first, moment.started)
        self.moments.append(moment)
        if audio is not None:
            self.audio = (self.audio or 0.0) + audio
            self.audio_time += moment.seconds
        if peaks is not UNKNOWN:
            self.peaks = (_higher(self.peaks[0], peaks[0]), _higher(self.peaks[1], peaks[1]))


def _higher(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)


def as_rows(stats: Mapping[Path, Stat]) -> list[TimingRow]:
    """Of one phase: parents, missing ones too, before children, in order of first appearance."""
    first: dict[Path, float] = {}
    for path, stat in stats.items():
        for part in _upward(path):
            first[part] = min(first.get(part, math.inf), stat.first)
    order = sorted(first, key=lambda path: [(first[part], part[-1]) for part in _upward(path)])
    return [_as_row(path, stats.get(path), stats.get(path[:1])) for path in order]


def _upward(path: Path) -> list[Path]:
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
    """Between the nearest two of sorted values, linearly (Hyndman and Fan 1996, type 7)."""
    at = (len(values) - 1) * q
    low = int(at)
    return values[low] + (at - low) * (values[min(low + 1, len(values) - 1)] - values[low])


def _share(stat: Stat, root: Stat | None) -> float | None:
    """Of outermost blocks of which all parts are kept."""
    since = stat.moments[0].root if len(stat.moments) == stat.moments.maxlen and stat is not root else -math.inf
    whole = {moment.started: moment.seconds for moment in root.moments if moment.started > since} if root else {}
    total = sum(whole.values())
    return sum(moment.seconds for moment in stat.moments if moment.root in whole) / total if total else None


def table(rows: Sequence[TimingRow]) -> Iterator[str]:
    """Lines, the first with the titles; a column without any value is left out."""
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
