"""CUDA graphs without a GPU: what a recording does and does not do, on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from torch import Tensor

from tts_compile.execution import cuda_graph

T = TypeVar("T")


class PretendRecording:
    """Runs its function anew for a replay and puts the results where the recorded ones lie."""

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


class PretendRecorder:
    """Like a GPU's: recording runs the function beforehand and leaves no results."""

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
