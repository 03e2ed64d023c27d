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
        self._peaks: dict[object, int] = {}  # of each open span: the highest value that was read so far
        self._lock = threading.Lock()

    def open(self) -> object:
        """Begins a span."""
        span = object()
        with self._lock:
            if self._peaks:
                self._update()
            self._reset()
            self._peaks[span] = 0
        return span

    def close(self, span: object) -> int:
        """Ends a span and returns its peak in bytes."""
        with self._lock:
            self._update()
            return self._peaks.pop(span)

    def _update(self) -> None:
        peak = self._read()
        self._peaks = {span: max(before, peak) for span, before in self._peaks.items()}


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
