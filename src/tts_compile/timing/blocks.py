"""Times blocks of code, which may nest, with :class:`timed` and collects them in :class:`Timings`.

No other file of the package reads a clock. This one can be used alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple, ParamSpec, TypeVar

from typing_extensions import Self

from ..errors import InputError, TTSCompileError
from . import peak_memory
from .summary import UNKNOWN, Moment, Path, Stat, TimingRow, as_rows, table

P = ParamSpec("P")
T = TypeVar("T")

#: The phases whose times are kept apart, in the order in which they are shown.
PHASES = ("steady", "compile", "warm-up", "failed")

# Unread CUDA events; when there are more, those that the device has passed are read early, without waiting.
MAX_UNREAD = 1000

read_clock = time.perf_counter


class Stopwatch:
    """A timer for the wall time of a ``with`` block, readable inside the block and after it.

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
        self._started = read_clock()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = read_clock()

    @property
    def seconds(self) -> float:
        """Seconds since the block was entered; the length of the block once it has ended."""
        end = read_clock() if self._stopped is None else self._stopped
        return end - self._started


class timed:  # noqa: N801 - read as a word: with timed("flow")
    """A ``with`` block whose time is recorded under a name; with ``@timed(name)``, every call of a function is one.

    Blocks nest: a block without ``timings`` belongs to the block around it, and measures nothing without such a block.
    A block that ends by an exception counts in the phase ``"failed"``, one in which something was compiled in
    ``"compile"``, and any other in the phase given for it or for the block around it. It never waits for a device.

    >>> timings = Timings()
    >>> with timed("utterance", timings) as block:
    ...     with timed("flow"):
    ...         pass
    ...     block.audio_seconds = 2.0
    >>> [row.path for row in timings.rows()]
    [('utterance',), ('utterance', 'flow')]

    Args:
        name: name of the block.
        timings: the record for the block and for blocks inside it that have none.
        phase: one of :data:`PHASES`, for this block and those inside it; None keeps the phase of the block around it.

    Attributes:
        audio_seconds: seconds of speech that the block has generated, set inside the block; None when it begins.

    Raises:
        InputError: for a name that is not a text, for another phase, and for decorating a function that returns before
            its work is done.
        TTSCompileError: when an open block is entered again.
    """

    audio_seconds: float | None
    _open_in: Timings | None  # None while the block is not open
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
        self._asked_phase = phase
        self._open_in = None

    def __enter__(self) -> Self:
        outer = _innermost()
        timings = self._timings
        if timings is None:
            if outer is None:
                return self
            timings = outer._open_in
            assert timings is not None
        if self._open_in is not None:
            raise TTSCompileError(f"the block {self.name!r} is open already; make another one")
        self.audio_seconds = None  # an earlier use may have set it
        self._outer = outer
        if outer is not None and outer._open_in is timings:
            self._path, self._root = (*outer._path, self.name), outer._root
        else:
            self._path, self._root = (self.name,), self
        self._phase: str = self._asked_phase or (outer._phase if outer is not None else "steady")
        self._compiled = self._phase == "compile"
        self._spans = [peak.open() if peak else None for peak in timings._memory]
        self._event = timings._events.record() if timings._events else None
        self._open_in = timings
        _current.set(self)
        self._started = read_clock()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        timings = self._open_in
        if timings is None:
            return
        seconds = read_clock() - self._started
        phase = "failed" if kind is not None else "compile" if self._compiled else self._phase
        outer, self._open_in = self._outer, None
        if self._compiled and outer is not None:
            outer._compiled = True
        if _current.get() is self:  # a closed generator may end its block before blocks that were opened later
            _current.set(outer)
        timings._end(self, phase, seconds)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """Wraps a function so that each of its calls is timed; it may call itself."""
        if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
            raise InputError(f"a call of {function.__name__} returns before its work is done: open a block inside it")

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            with timed(self.name, self._timings, phase=self._asked_phase):
                return function(*args, **kwargs)

        return wrapper


_current: ContextVar[timed | None] = ContextVar("tts_compile.timed", default=None)


def _innermost() -> timed | None:
    """Returns the open block around the caller; a block may have been closed before those inside it."""
    block = _current.get()
    while block is not None and block._open_in is None:
        block = block._outer
    return block


def mark_compile(name: str, seconds: float) -> None:
    """Records that something was compiled just now: all open blocks around the caller count in ``"compile"``.

    Args:
        name: name of the compiled code; a row ``compile NAME`` below the innermost block shows its time.
        seconds: the time that compiling took, or failing to.
    """
    block = _innermost()
    if block is not None and block._open_in is not None:
        block._compiled = True
        key = ("compile", (*block._path, f"compile {name}"))
        moment = Moment(read_clock() - seconds, seconds, threading.get_ident(), block._root._started)
        block._open_in._add(key, moment)


class CudaEvents:
    """A maker of timing events on the current stream of a CUDA device."""

    def __init__(self, device: str) -> None:
        import torch

        self._cuda = torch.cuda
        self._device = device

    def record(self) -> Any:
        """Records and returns an event; returns None while a CUDA graph is captured."""
        if self._cuda.is_current_stream_capturing():
            return None
        event = self._cuda.Event(enable_timing=True)
        event.record(self._cuda.current_stream(self._device))
        return event


_Key = tuple[str, Path]  # phase and path


class _Unread(NamedTuple):
    """A block between two CUDA events that have not been read yet."""

    key: _Key
    moment: Moment  # from the host's clock
    origin: Any  # the event at the start of the outermost block
    start: Any
    end: Any


class Timings:
    """A record of timed blocks from any number of threads: their counts, times and nesting.

    Counts and totals are exact. Medians, 90th percentiles, shares and the trace come from the last ``keep`` blocks of a
    path and phase, so that memory does not grow. A block is recorded when it ends.

    >>> timings = Timings()
    >>> @timed("add", timings)
    ... def add(a, b):
    ...     return a + b
    >>> add(1, 2)
    3
    >>> timings.rows()[0].count
    1

    Args:
        device: device of the work. On a CUDA device, blocks are timed by events on the current stream, which are read
            when the timings are; while a CUDA graph is captured, by the host's clock.
        memory: record the highest memory of each block too, which costs more than recording its time.
        keep: number of blocks of a path and phase that are stored.

    Raises:
        InputError: for a ``keep`` that is not a whole number from 1.
    """

    def __init__(self, device: object = None, memory: bool = False, keep: int = 1000) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise InputError(f"keep must be a whole number from 1, got {keep!r}")
        self.device = "cpu" if device is None else str(device)
        on_cuda = self.device.partition(":")[0] == "cuda"
        self._events = CudaEvents(self.device) if on_cuda else None
        self._memory: list[peak_memory.PeakOfSpans | None] = []  # resident and CUDA memory; None where not measured
        if memory:
            self._memory = [peak_memory.resident(), peak_memory.allocated(self.device) if on_cuda else None]
        self._stats: defaultdict[_Key, Stat] = defaultdict(lambda: Stat(keep))
        self._unread: deque[_Unread] = deque()
        self._lock = threading.Lock()

    def rows(self, phase: str = "steady") -> list[TimingRow]:
        """Returns the blocks of one phase: parents before children, in order of first appearance.

        It waits for CUDA events. A parent whose blocks have all ended in other phases gets a row of count 0.

        Raises:
            InputError: for a phase that is not one of :data:`PHASES`.
        """
        if phase not in PHASES:
            raise InputError(f"phase must be one of {', '.join(PHASES)}, got {phase!r}")
        with self._settled():
            return as_rows({path: stat for (of, path), stat in self._stats.items() if of == phase})

    def to_dict(self) -> dict[str, Any]:
        """Returns the rows of every phase as a tree that JSON can hold, with ``name`` instead of ``path``."""
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
        """Returns the stored blocks in the Trace Event format, for ``chrome://tracing`` or Perfetto."""
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
        """Deletes everything recorded; blocks that are open now are recorded when they end."""
        with self._lock:
            self._stats.clear()
            self._unread.clear()

    def __str__(self) -> str:
        lines = []
        for phase in PHASES:
            if rows := self.rows(phase):
                lines += [phase, *table(rows), ""]
        return "\n".join(lines[:-1]) or "nothing has been timed"

    def _end(self, block: timed, phase: str, seconds: float) -> None:
        """Records a block that has just ended."""
        spans = zip(self._memory, block._spans)
        peaks = tuple(peak.close(span) if peak and span else None for peak, span in spans) or UNKNOWN
        key = (phase, block._path)
        root = block._root
        moment = Moment(block._started, seconds, threading.get_ident(), root._started, block.audio_seconds, peaks)
        # After an error of the device, recording an event would raise another error that hides the first.
        end = self._events.record() if self._events and block._event and phase != "failed" else None
        if end is None:
            self._add(key, moment)
            return
        with self._lock:
            self._unread.append(_Unread(key, moment, root._event, block._event, end))
            if len(self._unread) > MAX_UNREAD:
                self._read_ready()

    def _add(self, key: _Key, moment: Moment) -> None:
        with self._lock:
            self._stats[key].add(moment)

    @contextlib.contextmanager
    def _settled(self) -> Iterator[None]:
        """Reads all events and holds the lock inside the ``with`` block; waits for events before it takes the lock."""
        with self._lock:
            unread = list(self._unread)
        for block in unread:
            block.end.synchronize()
        with self._lock:
            self._read_ready()
            yield

    def _read_ready(self) -> None:
        """Reads the events that the device has passed, in order."""
        while self._unread and self._unread[0].end.query():
            key, moment, origin, start, end = self._unread.popleft()
            started = moment.root + origin.elapsed_time(start) / 1e3 if origin else moment.started
            seconds = start.elapsed_time(end) / 1e3
            self._stats[key].add(moment._replace(started=started, seconds=seconds))
