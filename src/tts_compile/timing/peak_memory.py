"""Measures the highest memory of a process or a CUDA device during spans of time, which may overlap."""

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
    """Returns the highest resident memory of this process so far, in bytes, and the source of the figure.

    ``ru_maxrss`` is only the second choice: on Linux it starts at the peak of the parent process.

    Raises:
        TTSCompileError: when the system has neither source.
    """
    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024, "VmHWM of /proc/self/status"
    try:
        import resource
    except ImportError as error:
        raise TTSCompileError("the peak memory of a process cannot be read on this system") from error
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "ru_maxrss of getrusage"


def reset_peak() -> bool:
    """Sets the peak to what is resident now; returns False when the system cannot do that."""
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


class Span:
    """A span of time whose highest memory is measured.

    Attributes:
        peak: bytes; the highest value that was read so far.
    """

    __slots__ = ("peak",)

    def __init__(self) -> None:
        self.peak = 0


class PeakOfSpans:
    """The peak of each of several open spans, from one peak that the system keeps for the whole process.

    Opening a span resets the system's peak; its value before counts for every span that is open then, in any thread.

    >>> peaks = iter([9, 7, 3])
    >>> spans = PeakOfSpans(lambda: next(peaks), lambda: None)
    >>> outer = spans.open()
    >>> inner = spans.open()  # reads 9
    >>> spans.close(inner), spans.close(outer)
    (7, 9)

    Args:
        read: returns the system's peak in bytes.
        reset: sets it to what is in use now.
    """

    def __init__(self, read: Callable[[], int], reset: Callable[[], object]) -> None:
        self._read = read
        self._reset = reset
        self._open: set[Span] = set()
        self._lock = threading.Lock()

    def open(self) -> Span:
        """Begins a span."""
        span = Span()
        with self._lock:
            if self._open:
                self._update()
            self._reset()
            self._open.add(span)
        return span

    def close(self, span: Span) -> int:
        """Ends a span and returns its peak in bytes."""
        with self._lock:
            self._update()
            self._open.discard(span)
        return span.peak

    def _update(self) -> None:
        peak = self._read()
        for span in self._open:
            span.peak = max(span.peak, peak)


@functools.cache
def resident() -> PeakOfSpans | None:
    """Returns the peaks of this process's resident memory; None when the system cannot reset its peak."""
    return PeakOfSpans(lambda: peak_bytes()[0], reset_peak) if reset_peak() else None


@functools.cache
def allocated(device: str) -> PeakOfSpans:
    """Returns the peaks of the memory that torch has allocated on a CUDA device."""
    import torch

    return PeakOfSpans(
        lambda: int(torch.cuda.max_memory_allocated(device)), lambda: torch.cuda.reset_peak_memory_stats(device)
    )


class MemoryPeaks:
    """The peaks of resident memory, where the system can reset its peak, and of a CUDA device's memory.

    Args:
        device: a CUDA device; None for resident memory alone.
    """

    def __init__(self, device: str | None) -> None:
        self._resident = resident()
        self._allocated = None if device is None else allocated(device)

    def open(self) -> tuple[Span | None, Span | None]:
        """Begins a span of both."""
        return (
            self._resident.open() if self._resident else None,
            self._allocated.open() if self._allocated else None,
        )

    def close(self, spans: tuple[Span | None, Span | None]) -> tuple[int | None, int | None]:
        """Ends both spans and returns their peaks in bytes: resident memory, memory of the device."""
        of_process, of_device = spans
        return (
            self._resident.close(of_process) if self._resident and of_process else None,
            self._allocated.close(of_device) if self._allocated and of_device else None,
        )
