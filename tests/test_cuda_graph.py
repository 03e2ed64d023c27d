"""Keys, eviction, failures and threads of CUDA graphs, without a GPU."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tts_compile as tc
from pretend import PretendRecorder
from tts_compile.execution import cuda_graph
from tts_compile.execution.cuda_graph import WARM_UPS, GraphCache
from tts_compile.execution.process_lock import ProcessLock

CPU = torch.device("cpu")


def cache(recorder: PretendRecorder | None = None, ceiling: int = 64) -> GraphCache:
    return GraphCache(recorder or PretendRecorder(), ProcessLock(), ceiling)


def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def test_a_replay_follows_the_recording_at_once() -> None:
    graphs = cache()
    assert graphs.replay("a", twice, [torch.ones(3)]).tolist() == [2, 2, 2]
    assert len(graphs) == 1


def test_a_key_is_recorded_once_and_its_inputs_are_copied() -> None:
    recorder = PretendRecorder()
    graphs = cache(recorder)
    given_first = torch.ones(3)
    graphs.replay("a", twice, [given_first])
    given_first.fill_(7)
    for value in (3.0, 4.0):
        assert graphs.replay("a", twice, [torch.full((3,), value)]).tolist() == [2 * value] * 3
    assert len(recorder.recorded) == 1


def test_results_are_overwritten_by_the_next_replay() -> None:
    graphs = cache()
    first = graphs.replay("a", twice, [torch.ones(1)])
    graphs.replay("a", twice, [torch.zeros(1)])
    assert first.item() == 0


def test_what_a_function_changes_changes_once() -> None:
    graphs = cache()
    count = torch.zeros(1)

    def step() -> None:
        count.add_(1)

    for expected in (1, 2, 3):
        graphs.replay("a", step, changed=[count])
        assert count.item() == expected
    assert WARM_UPS > 0  # without warm-ups the first assertion would always hold


@given(keys=st.lists(st.integers(0, 6), max_size=40), ceiling=st.integers(1, 4))
def test_the_least_recently_used_is_given_up(keys: list[int], ceiling: int) -> None:
    recorder = PretendRecorder()
    graphs = cache(recorder, ceiling)
    recent: list[int] = []
    for key in keys:
        assert graphs.replay(key, twice, [torch.tensor([key])]).item() == 2 * key
        recent = [*[k for k in recent if k != key], key][-ceiling:]
        assert [k for k in range(7) if k in graphs] == sorted(recent)
        assert recorder.alive == len(graphs) == len(recent)


def test_a_failure_leaves_nothing_behind() -> None:
    graphs = cache(PretendRecorder(fail_at=1))
    count = torch.zeros(1)
    graphs.replay("a", twice, [torch.ones(1)])
    with pytest.raises(tc.CompilationError, match="stream is capturing") as caught:
        graphs.replay("b", count.add_, [torch.ones(1)], changed=[count])
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "b" not in graphs
    assert count.item() == 0
    assert graphs.replay("a", twice, [torch.full((1,), 3.0)]).item() == 6


def test_errors_of_the_function_itself_pass_through() -> None:
    def wrong() -> None:
        raise tc.InputError("no text")

    graphs = cache()
    with pytest.raises(tc.InputError):
        graphs.replay("a", wrong)
    assert len(graphs) == 0


def test_dropping_gives_memory_back() -> None:
    recorder = PretendRecorder()
    graphs = cache(recorder)
    for key in (("t3", 1), ("t3", 2), ("flow", 1)):
        graphs.replay(key, twice, [torch.ones(1)])
    graphs.drop(lambda key: key[0] == "t3")
    assert (recorder.alive, recorder.released) == (1, 1)
    assert ("flow", 1) in graphs


def test_threads_take_turns() -> None:
    graphs = cache()
    wrong: list[Any] = []

    def speak(value: float) -> None:
        for _ in range(200):
            with graphs.turn():
                result = graphs.replay("a", twice, [torch.full((8,), value)])
                if result.tolist() != [2 * value] * 8:
                    wrong.append(result)

    threads = [threading.Thread(target=speak, args=(value,)) for value in (1.0, 2.0, 3.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_cpu_has_none() -> None:
    assert cuda_graph.recorder_for(CPU) is None


def test_every_run_of_a_recording_finds_what_the_first_one_found() -> None:
    place = torch.zeros(1, dtype=torch.int64)
    table = torch.arange(3)

    def step() -> None:
        table[place]  # out of range at the second step: warm-ups must not get there by themselves
        place.add_(3)

    cache().replay("a", step, changed=[place])
    assert place.item() == 3
