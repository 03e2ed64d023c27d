"""Backends that need no GPU and no compiler: pretended CUDA graphs, and a ``torch.compile`` backend that can fail."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from tts_compile.execution import cuda_graph

T = TypeVar("T")


class PretendRecording:
    """A recording that calls its function again for a replay and writes the results where the recorded ones are."""

    def __init__(self, function: Callable[[], Any], results: Any) -> None:
        self._function = function
        self._results = results
        self.gone = False

    def replay(self) -> None:
        assert not self.gone, "a recording was replayed after its memory had been given back"
        found = self._function()
        if isinstance(self._results, Tensor):
            self._results.copy_(found)
        else:
            assert found is None

    def reset(self) -> None:
        self.gone = True
        self._function, self._results = lambda: None, None  # a graph that is gone keeps nothing either


class PretendRecorder:
    """A recorder that, as a GPU's, calls the function beforehand and leaves no results."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.recorded: list[PretendRecording] = []
        self.released = 0
        self.fail_at = fail_at
        self.error: RuntimeError = RuntimeError("operation not permitted when stream is capturing")

    @property
    def alive(self) -> int:
        return sum(not recording.gone for recording in self.recorded)

    def record(self, function: Callable[[], T], undo: Callable[[], None]) -> tuple[PretendRecording, T]:
        for _ in range(cuda_graph.WARM_UPS):
            results = function()
            undo()
        if len(self.recorded) == self.fail_at:
            raise self.error
        if isinstance(results, Tensor):
            results.fill_(-(10**6))
        recording = PretendRecording(function, results)
        self.recorded.append(recording)
        return recording, results

    turn = staticmethod(contextlib.nullcontext)

    def release(self) -> None:
        self.released += 1


def pretend(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> PretendRecorder:
    """Models compiled from now on find CUDA graphs where they are."""
    recorder = PretendRecorder(fail_at)
    monkeypatch.setattr(cuda_graph, "recorder_for", lambda device: recorder)
    return recorder


class BreakableBackend:
    """A ``torch.compile`` backend that runs what was traced, and raises at the calls that a test names."""

    name = "breakable"

    def __init__(self) -> None:
        self._calls = 0
        self._failing = range(0)
        self._error: Callable[[], BaseException] = RuntimeError

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            self._calls += 1
            if self._calls in self._failing:
                raise self._error()
            return graph.forward(*args)

        return run

    @contextlib.contextmanager
    def failing(self, at: int, error: Callable[[], BaseException], times: int = 1) -> Iterator[None]:
        """Compiled functions raise from their ``at``-th call in the block on, so many times."""
        self._calls, self._failing, self._error = 0, range(at, at + times), error
        try:
            yield
        finally:
            self._failing = range(0)
        assert self._calls >= at, "the fault was never reached"


BREAKABLE = BreakableBackend()
torch._dynamo.register_backend(BREAKABLE, name=BREAKABLE.name)
