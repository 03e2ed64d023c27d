"""CUDA graphs: a function's launches, captured once and launched as one from then on.

A captured graph reads and writes the memory that it was made with. So its inputs are tensors that stay where they are,
its results are overwritten by the next replay, and all numbers that vary are tensors on the device.
"""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import _compat
from ..errors import CompilationError
from ..timing.blocks import timed
from ..utils.device import is_out_of_memory
from .memory_limit import MemoryLimit
from .process_lock import ProcessLock

T = TypeVar("T")

# Lazy initialisation of libraries, and their choice of algorithms, must not end up in a captured graph.
WARM_UPS = 3

# The memory of a captured graph is known afterwards only; torch's pools grow by blocks of so many bytes.
_AT_LEAST = 20 * 2**20


class CudaRecorder:
    """A maker of captured graphs on one device, whose memory comes from one pool.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _side_stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, function: Callable[[], T], undo: Callable[[], None]) -> tuple[torch.cuda.CUDAGraph, T]:
        """Captures ``function`` and returns its results, which are valid after a replay, not before.

        The function runs a few times beforehand, with ``undo`` after every run, on a stream beside the current one,
        which waits for it. The last of these runs must not wait for the device: that would end a capture in a way from
        which torch does not recover. A failure leaves the current stream as it was.
        """
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            graph = torch.cuda.CUDAGraph()
            try:
                # torch.cuda.graph alone leaves its stream the current one when the end of a capture raises
                with torch.cuda.stream(self._stream):
                    for number in range(1, WARM_UPS + 1):
                        with _waiting_forbidden() if number == WARM_UPS else contextlib.nullcontext():
                            function()
                        undo()
                    with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                        results = function()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # what was launched may still write to what is undone next
                    self._stream.synchronize()
                graph.reset()
                self._pool = torch.cuda.graph_pool_handle()  # the old one may still count as being captured into
                self.release()
                raise
            current.wait_stream(self._stream)
            return graph, results

    def release(self) -> None:
        """Gives the memory of graphs that were reset back to the device, after replays under way."""
        with torch.cuda.device(self._device):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Orders launches: those inside the block come after those of earlier blocks, whatever their streams."""
        stream = torch.cuda.current_stream(self._device)
        if self._device in _left:
            stream.wait_event(_left[self._device])
        try:
            yield
        finally:
            _left[self._device] = stream.record_event()


# After the last block on each device, of whatever model: all captured graphs share the workspaces of one stream.
_left: dict[torch.device, torch.cuda.Event] = {}


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Returns one stream for all models: each stream keeps a workspace of cuBLAS for good."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def _waiting_forbidden() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def recorder_for(device: torch.device) -> CudaRecorder | None:
    """Returns a recorder for a device; None where there are no CUDA graphs."""
    return CudaRecorder(device) if device.type == "cuda" else None


@dataclass
class _Kept:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    results: Any


class GraphCache:
    """The captured graphs of one model, of which the least recently used is dropped beyond a ceiling.

    One replay runs at a time, so that all graphs share their memory. A thread replays inside :meth:`turn`, until the
    last use of the results has been launched.

    Args:
        recorder: captures the graphs.
        lock: of the model.
        ceiling: on the number of graphs.
        memory: checked before each capture; None for no limit.
    """

    def __init__(
        self, recorder: CudaRecorder, lock: ProcessLock, ceiling: int = 64, memory: MemoryLimit | None = None
    ) -> None:
        self._recorder = recorder
        self._memory = memory
        self._ceiling = ceiling
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._lock = lock

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Holds the model's lock for captures, replays and the random numbers of a replay; may be nested."""
        with self._lock(), self._recorder.turn():
            yield

    def replay(
        self,
        key: Hashable,
        function: Callable[..., T],
        inputs: Sequence[Tensor] = (),
        changed: Sequence[Tensor] = (),
    ) -> T:
        """Returns ``function(*inputs)``, captured at the first call with a key and replayed at every call.

        Args:
            key: everything that the launches depend on besides the values of ``inputs``; the component's name first.
            function: launches only; reads nothing else that moves, and waits for nothing.
            inputs: of the same shapes for equal keys; they are copied.
            changed: tensors that stay where they are and that ``function`` writes to. A capture runs the function
                several times; the tensors are put back after every run but the replay.

        Returns:
            The results of ``function`` while it was captured; overwritten by the next replay of any key.

        Raises:
            CompilationError: when the capture fails; its memory has been given back. A lack of memory is raised as it
                is: there may be more memory another time.
        """
        with self._lock():
            kept = self._kept.get(key)
            if kept is None:
                kept = self._kept[key] = self._record(function, inputs, changed)
                while len(self._kept) > self._ceiling:
                    self._give_up(next(iter(self._kept)))
            else:
                self._kept.move_to_end(key)
                for buffer, value in zip(kept.inputs, inputs):
                    buffer.copy_(value)
            kept.graph.replay()
            results: T = kept.results
            return results

    def drop(self, condition: Callable[[Any], bool]) -> None:
        """Drops the graphs whose keys meet the condition, and gives their memory back."""
        with self._lock():
            for key in [key for key in self._kept if condition(key)]:
                self._give_up(key)
            self._recorder.release()

    def _record(self, function: Callable[..., T], inputs: Sequence[Tensor], changed: Sequence[Tensor]) -> _Kept:
        if self._memory is not None:
            self._memory.check(_AT_LEAST)
        buffers = tuple(value.clone() for value in inputs)
        before = [value.clone() for value in changed]

        def undo() -> None:
            for value, old in zip(changed, before):
                value.copy_(old)

        try:
            graph, results = self._recorder.record(lambda: function(*buffers), undo)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise CompilationError(f"a CUDA graph could not be captured: {error}") from error
        finally:
            undo()
        return _Kept(graph, buffers, results)

    def _give_up(self, key: Hashable) -> None:
        self._kept.pop(key).graph.reset()


class Replays:
    """The replays of one component, counted inside the captured graphs.

    Args:
        recordings: the model's captured graphs.
        device: of the model.

    Attributes:
        calls: replays asked for.
        graphs: graphs captured.
    """

    execution = "cuda_graph"
    graph_breaks = 0

    def __init__(self, recordings: GraphCache, device: torch.device) -> None:
        self.recordings = recordings
        self.calls = 0
        self.graphs = 0
        self._counted = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def compiled_calls(self) -> int:
        """Returns the replays counted on the device; waits for the device."""
        return int(self._counted)

    def __call__(
        self,
        key: tuple[Hashable, ...],
        function: Callable[..., T],
        inputs: Sequence[Tensor] = (),
        changed: Sequence[Tensor] = (),
    ) -> T:
        """Replays; see :meth:`GraphCache.replay`. The key also holds torch's settings that decide about launches."""

        def counted(*args: Tensor) -> T:
            self._counted.add_(1)
            return function(*args)

        key = (*key, *_compat.launch_settings())
        self.calls += 1
        new = key not in self.recordings
        self.graphs += new
        with timed(f"capture {key[0]}", phase="compile") if new else contextlib.nullcontext():
            return self.recordings.replay(key, counted, inputs, (self._counted, *changed))
