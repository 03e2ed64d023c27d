"""The highest memory of a process or a CUDA device, and of spans of time that overlap as they like."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from ..errors import TTSCompileError

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def peak_bytes() -> tuple[int, str]:
    """The highest resident memory of this process so far, and where the figure comes from.

    ``ru_maxrss`` is second choice: on Linux ``exec`` carries the parent's peak over into it.

    Raises:
        TTSCompileError: where the system tells neither.
    """
    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024, "VmHWM of /proc/self/status"
    try:
        import resource
    except ImportError as error:
        raise TTSCompileError("this system does not tell a process's peak memory; pass --no-memory") from error
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "ru_maxrss of getrusage"


def reset_peak() -> bool:
    """Start the peak anew at what is resident now; False where the system cannot."""
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


class Span:
    """A stretch of time whose peak is wanted.

    Attributes:
        peak: bytes; the highest so far, as far as it has been read.
    """

    __slots__ = ("peak",)

    def __init__(self) -> None:
        self.peak = 0


class HighWater:
    """The peak of each of several open spans, from one mark that the whole process shares.

    A span begins by resetting the mark. What it stood at before belongs to all spans open by then, of whatever thread.

    >>> marks = iter([9, 7, 3])
    >>> water = HighWater(lambda: next(marks), lambda: None)
    >>> outer = water.open()
    >>> inner = water.open()  # reads 9
    >>> water.close(inner), water.close(outer)
    (7, 9)

    Args:
        read: gives the mark in bytes.
        reset: puts it to what is in use now.
    """

    def __init__(self, read: Callable[[], int], reset: Callable[[], object]) -> None:
        self._read = read
        self._reset = reset
        self._open: set[Span] = set()
        self._lock = threading.Lock()

    def open(self) -> Span:
        """Begin a span."""
        span = Span()
        with self._lock:
            if self._open:
                self._take()
            self._reset()
            self._open.add(span)
        return span

    def close(self, span: Span) -> int:
        """End a span; its peak in bytes."""
        with self._lock:
            self._take()
            self._open.discard(span)
        return span.peak

    def _take(self) -> None:
        mark = self._read()
        for span in self._open:
            span.peak = max(span.peak, mark)


@functools.cache
def resident() -> HighWater | None:
    """Of this process's resident memory; None where the system cannot reset its mark."""
    return HighWater(lambda: peak_bytes()[0], reset_peak) if reset_peak() else None


@functools.cache
def allocated(device: str) -> HighWater:
    """Of what torch has allocated on a CUDA device."""
    import torch

    return HighWater(
        lambda: int(torch.cuda.max_memory_allocated(device)), lambda: torch.cuda.reset_peak_memory_stats(device)
    )


class Water:
    """Both marks, as far as the system tells them.

    Args:
        device: a CUDA device; None for resident memory alone.
    """

    def __init__(self, device: str | None) -> None:
        self._resident = resident()
        self._allocated = None if device is None else allocated(device)

    def open(self) -> tuple[Span | None, Span | None]:
        """Begin a span of each."""
        return (
            self._resident.open() if self._resident else None,
            self._allocated.open() if self._allocated else None,
        )

    def close(self, spans: tuple[Span | None, Span | None]) -> tuple[int | None, int | None]:
        """End them; peaks in bytes: resident, on the device."""
        of_process, of_device = spans
        return (
            self._resident.close(of_process) if self._resident and of_process else None,
            self._allocated.close(of_device) if self._allocated and of_device else None,
        )
