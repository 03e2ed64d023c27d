"""Where the time goes: the only place that reads a clock.

Usable alone: blocks that nest are timed with :class:`timed` and gathered by :class:`Timings`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NamedTuple, ParamSpec, TypeVar

from typing_extensions import Self

from ..errors import InputError, TTSCompileError
from . import peak_memory as peak
from .summary import UNKNOWN, Moment, Path, Peaks, Stat, TimingRow, as_rows, table

P = ParamSpec("P")
T = TypeVar("T")

#: The kinds of time that are kept apart, in the order in which they are shown.
PHASES = ("steady", "compile", "warm-up", "failed")

# CUDA events that wait to be read; beyond it those that the device is done with are read early, without waiting.
_WAITING = 1000

_clock = time.perf_counter


class Stopwatch:
    """Seconds of wall time spent in a ``with`` block, readable inside it and after.

    >>> with Stopwatch() as watch:
    ...     total = sum(range(10))
    >>> watch.seconds >= 0
    True
    """

    def __init__(self) -> None:
        self._started = 0.0
        self._stopped: float | None = None

    def __enter__(self) -> Self:
        self._stopped = None
        self._started = _clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = _clock()

    @property
    def seconds(self) -> float:
        """Wall seconds since the block was entered, up to its end where it has ended."""
        end = _clock() if self._stopped is None else self._stopped
        return end - self._started


class timed:  # noqa: N801 - read as a word: with timed("flow")
    """A ``with`` block, or with ``@timed(name)`` every call of a function, whose time is taken under a name.

    Blocks nest: one without ``timings`` belongs to the block around it, and without one it measures nothing. A block
    ends in the phase ``"failed"`` when it ends by an exception, in ``"compile"`` when something was compiled inside it,
    and otherwise in the phase that the block around it was given. Never waits for a device.

    >>> timings = Timings()
    >>> with timed("utterance", timings) as block:
    ...     with timed("flow"):
    ...         pass
    ...     block.audio_seconds = 2.0
    >>> [row.path for row in timings.rows()]
    [('utterance',), ('utterance', 'flow')]

    Args:
        name: of the block.
        timings: where it is recorded, and the blocks inside it that do not say.
        phase: one of :data:`PHASES`, for this block and those inside it; None goes on with the phase around it.

    Attributes:
        audio_seconds: seconds of speech that the block has made, where set inside it; None when it begins.

    Raises:
        InputError: for a name that is no text, another phase, and as a decorator of a function that returns before its
            work is done.
        TTSCompileError: when a block is entered that is open; make another one.
    """

    __slots__ = (
        "_compiled", "_event", "_given", "_into", "_outer", "_path", "_phase", "_root", "_spans", "_started",
        "_timings", "audio_seconds", "name",
    )  # fmt: skip

    audio_seconds: float | None
    _into: Timings | None  # None while the block is not open
    _outer: timed | None
    _path: Path
    _root: timed

    def __init__(self, name: str, timings: Timings | None = None, *, phase: str | None = None) -> None:
        if not isinstance(name, str):
            raise InputError(f'a block\'s name must be a text, as in @timed("name"), got {name!r}')
        if phase is not None and phase not in PHASES:
            raise InputError(f"phase must be one of {', '.join(PHASES)}, got {phase!r}")
        self.name = name
        self.audio_seconds = None
        self._timings = timings
        self._given = phase
        self._into = None

    def __enter__(self) -> Self:
        outer = _innermost()
        into = self._timings
        if into is None:
            if outer is None:
                return self
            into = outer._into
            assert into is not None
        if self._into is not None:
            raise TTSCompileError(f"the block {self.name!r} is open already; make another one")
        self.audio_seconds = None  # of an earlier use
        self._outer = outer
        if outer is not None and outer._into is into:
            self._path, self._root = (*outer._path, self.name), outer._root
        else:
            self._path, self._root = (self.name,), self
        self._phase: str = self._given or (outer._phase if outer is not None else "steady")
        self._compiled = self._phase == "compile"
        self._spans = into._water.open() if into._water else None
        self._event = into._events.record() if into._events else None
        self._into = into
        _current.set(self)
        self._started = _clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        into = self._into
        if into is None:
            return
        seconds = _clock() - self._started
        phase = "failed" if kind is not None else "compile" if self._compiled else self._phase
        outer, self._into = self._outer, None
        if self._compiled and outer is not None:
            outer._compiled = True
        if _current.get() is self:  # not so where a generator was closed before a block that was opened after it
            _current.set(outer)
        into._end(self, phase, seconds)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """The function with each of its calls timed; it may call itself."""
        if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
            raise InputError(f"a call of {function.__name__} returns before its work is done: open a block inside it")

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            with timed(self.name, self._timings, phase=self._given):
                return function(*args, **kwargs)

        return wrapper


_current: ContextVar[timed | None] = ContextVar("tts_compile.timed", default=None)


def _innermost() -> timed | None:
    """The open block that the caller is in, past those that have been closed out of turn."""
    block = _current.get()
    while block is not None and block._into is None:
        block = block._outer
    return block


def mark_compile(name: str, seconds: float) -> None:
    """Say that something was compiled just now: all open blocks around the caller end in the phase ``"compile"``.

    Args:
        name: of what was compiled, or failed to be; a row ``compile NAME`` below the innermost block.
        seconds: that it has taken.
    """
    block = _innermost()
    if block is not None and block._into is not None:
        block._compiled = True
        key = ("compile", (*block._path, f"compile {name}"))
        moment = Moment(_clock() - seconds, seconds, threading.get_ident(), block._root._started)
        block._into._add(key, moment)


class CudaEvents:
    """Marks on the current stream of a CUDA device."""

    def __init__(self, device: str) -> None:
        import torch

        self._cuda = torch.cuda
        self._device = device

    def record(self) -> Any:
        """An event with ``query``, ``synchronize`` and ``elapsed_time``; None while the stream is captured."""
        if self._cuda.is_current_stream_capturing():
            return None
        event = self._cuda.Event(enable_timing=True)
        event.record(self._cuda.current_stream(self._device))
        return event


_Key = tuple[str, Path]  # phase and path


class _Waiting(NamedTuple):
    """A block between two events that have not been read yet."""

    key: _Key
    moment: Moment  # by the host's clock
    origin: Any  # the event at the start of the outermost block
    start: Any
    end: Any
    audio: float | None
    peaks: Peaks


class Timings:
    """Gathers blocks, from any number of threads: how often, how long, and how they lie in each other.

    Counts and totals are exact. Medians, 90th percentiles, shares and the trace come from the last ``keep`` blocks of a
    path and phase, so that nothing grows. A block counts once it has ended.

    >>> timings = Timings()
    >>> @timed("add", timings)
    ... def add(a, b):
    ...     return a + b
    >>> add(1, 2)
    3
    >>> timings.rows()[0].count
    1

    Args:
        device: of the work; on a CUDA device blocks are timed by events on the current stream, which are resolved when
            the timings are read, and not inside a recording.
        memory: take the highest memory of each block too, which costs more than the time does.
        keep: blocks of a path and phase that are kept.

    Raises:
        InputError: for a ``keep`` that is no whole number from 1.
    """

    def __init__(self, device: object = None, memory: bool = False, keep: int = 1000) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise InputError(f"keep must be a whole number from 1, got {keep!r}")
        self.device = "cpu" if device is None else str(device)
        self._keep = keep
        on_cuda = self.device.partition(":")[0] == "cuda"
        self._events = CudaEvents(self.device) if on_cuda else None
        self._water = peak.Water(self.device if on_cuda else None) if memory else None
        self._stats: dict[_Key, Stat] = {}
        self._waiting: deque[_Waiting] = deque()
        self._lock = threading.Lock()

    def rows(self, phase: str = "steady") -> list[TimingRow]:
        """What was timed in one phase: parents before children, in order of first appearance; waits for CUDA events.

        A row of count 0 stands above blocks whose parents have ended in other phases only.

        Raises:
            InputError: for another phase than :data:`PHASES`.
        """
        if phase not in PHASES:
            raise InputError(f"phase must be one of {', '.join(PHASES)}, got {phase!r}")
        with self._settled():
            return as_rows({path: stat for (of, path), stat in self._stats.items() if of == phase})

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: for each phase a tree of what :meth:`rows` gives, with ``name`` for ``path``."""
        phases: dict[str, list[dict[str, Any]]] = {}
        for phase in PHASES:
            nodes: dict[tuple[str, ...], list[dict[str, Any]]] = {(): []}
            for row in self.rows(phase):
                values = dataclasses.asdict(row)
                children = nodes[row.path] = []
                nodes[row.path[:-1]].append({"name": values.pop("path")[-1], **values, "children": children})
            phases[phase] = nodes[()]
        return {"device": self.device, "phases": phases}

    def chrome_trace(self) -> dict[str, Any]:
        """The blocks that are kept in the Trace Event format, JSON-able, for ``chrome://tracing`` or Perfetto."""
        with self._settled():
            events = [
                {
                    "name": path[-1],
                    "cat": phase,
                    "ph": "X",
                    "ts": moment.started * 1e6,
                    "dur": moment.seconds * 1e6,
                    "pid": os.getpid(),
                    "tid": moment.thread,
                    "args": {"path": "/".join(path)},
                }
                for (phase, path), stat in self._stats.items()
                for moment in stat.moments
            ]
        return {"traceEvents": sorted(events, key=lambda event: (event["ts"], -event["dur"])), "displayTimeUnit": "ms"}

    def clear(self) -> None:
        """Forget everything; blocks that are open are recorded when they end."""
        with self._lock:
            self._stats.clear()
            self._waiting.clear()

    def __str__(self) -> str:
        lines = []
        for phase in PHASES:
            if rows := self.rows(phase):
                lines += [phase, *table(rows), ""]
        return "\n".join(lines[:-1]) or "nothing has been timed"

    def _end(self, block: timed, phase: str, seconds: float) -> None:
        """Take in a block that has just ended."""
        peaks = self._water.close(block._spans) if self._water and block._spans else UNKNOWN
        key = (phase, block._path)
        moment = Moment(block._started, seconds, threading.get_ident(), block._root._started)
        # After an error of the device, recording would raise another one in its place.
        end = self._events.record() if self._events and block._event and phase != "failed" else None
        if end is None:
            self._add(key, moment, block.audio_seconds, peaks)
            return
        waiting = _Waiting(key, moment, block._root._event, block._event, end, block.audio_seconds, peaks)
        with self._lock:
            self._waiting.append(waiting)
            if len(self._waiting) > _WAITING:
                self._read_ready()

    def _add(self, key: _Key, moment: Moment, audio: float | None = None, peaks: Peaks = UNKNOWN) -> None:
        with self._lock:
            self._stat(key).add(moment, audio, peaks)

    def _stat(self, key: _Key) -> Stat:
        stat = self._stats.get(key)
        if stat is None:
            stat = self._stats[key] = Stat(self._keep)
        return stat

    @contextlib.contextmanager
    def _settled(self) -> Iterator[None]:
        """Under the lock, with all events read that were there; the wait for them is before it, in nobody's way."""
        with self._lock:
            waiting = list(self._waiting)
        for block in waiting:
            block.end.synchronize()
        with self._lock:
            self._read_ready()
            yield

    def _read_ready(self) -> None:
        """Read the events that the device is done with, in order."""
        while self._waiting and self._waiting[0].end.query():
            key, moment, origin, start, end, audio, peaks = self._waiting.popleft()
            started = moment.root + origin.elapsed_time(start) / 1e3 if origin else moment.started
            seconds = start.elapsed_time(end) / 1e3
            self._stat(key).add(moment._replace(started=started, seconds=seconds), audio, peaks)
