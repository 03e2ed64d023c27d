"""Timed blocks: sums, phases, threads, devices and memory, with a clock that the tests control."""

from __future__ import annotations

import contextvars
import functools
import json
import mmap
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tts_compile as tc
from tts_compile.timing import Timings, blocks, mark_compile, peak_memory, timed
from tts_compile.timing.blocks import PHASES
from tts_compile.timing.summary import Stat, TimingRow


class Clock:
    """A clock that advances by a given step at each reading."""

    def __init__(self) -> None:
        self.now = 0.0
        self.step = 1.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(blocks, "read_clock", clock)
    return clock


def no_block_is_open(clock: Clock) -> bool:
    """Returns whether a block without timings measures nothing, since no block is open around it."""
    before = clock.now
    with timed("lone"):
        pass
    return clock.now == before


def by_path(timings: Timings, phase: str = "steady") -> dict[tuple[str, ...], TimingRow]:
    return {row.path: row for row in timings.rows(phase)}


# A tree of blocks: name, ticks of the clock inside, blocks inside.
TREES = st.recursive(
    st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.just(())),
    lambda inside: st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.lists(inside, max_size=3).map(tuple)),
    max_leaves=12,
)


@given(st.lists(TREES, max_size=4), st.integers(1, 3))
def test_counts_and_totals_are_the_models_for_any_nesting(trees: list[Any], keep: int) -> None:
    clock, seconds = Clock(), {}
    timings = Timings(keep=keep)

    def play(tree: Any, above: tuple[str, ...]) -> None:
        name, ticks, inside = tree
        path = (*above, name)
        with timed(name, None if above else timings):
            before = clock.now
            for _ in range(ticks):
                clock()
            for part in inside:
                play(part, path)
            seconds.setdefault(path, []).append(clock.now + clock.step - before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "read_clock", clock)
        for tree in trees:
            play(tree, ())
    rows = timings.rows()
    found = by_path(timings)
    assert {path: (row.count, row.total) for path, row in found.items()} == {
        path: (len(values), sum(values)) for path, values in seconds.items()
    }
    for path, row in found.items():
        last = seconds[path][-keep:]
        assert (row.median, row.p90) == pytest.approx((np.median(last), np.quantile(last, 0.9)))
        assert row.total >= sum(child.total for child in rows if child.path[:-1] == path)
        assert path[:-1] == () or [r.path for r in rows].index(path[:-1]) < [r.path for r in rows].index(path)
    assert [timings.rows(phase) for phase in PHASES[1:]] == [[], [], []]


def test_rows_come_in_order_of_first_appearance(clock: Clock) -> None:
    timings = Timings()
    for names in ("zy", "yx", "zx"):
        with timed("b", timings):
            for name in names:
                with timed(name):
                    pass
    with timed("a", timings):
        pass
    assert [row.path for row in timings.rows()] == [("b",), ("b", "z"), ("b", "y"), ("b", "x"), ("a",)]


def test_a_block_without_timings_around_it_measures_nothing(clock: Clock) -> None:
    with timed("lone") as block:
        block.audio_seconds = 1.0
    assert clock.now == 0


def test_a_block_of_other_timings_is_a_root_there(clock: Clock) -> None:
    mine, theirs = Timings(), Timings()
    with timed("mine", mine, phase="warm-up"), timed("theirs", theirs), timed("inside"):
        mark_compile("it", 0.5)
    assert set(by_path(theirs, "compile")) == {("theirs",), ("theirs", "inside"), ("theirs", "inside", "compile it")}
    assert set(by_path(mine, "compile")) == {("mine",)}


def test_a_decorated_function_may_call_itself(clock: Clock) -> None:
    timings = Timings()

    @timed("down", timings)
    def down(n: int) -> int:
        """Count."""
        return n and down(n - 1) + 1

    assert down(2) == 2
    assert (down.__name__, down.__doc__) == ("down", "Count.")
    assert {path: row.count for path, row in by_path(timings).items()} == {("down",) * n: 1 for n in (1, 2, 3)}


def test_what_cannot_be_timed_is_refused() -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def coroutine() -> None:
        pass

    for function in (generator, coroutine):
        with pytest.raises(tc.InputError, match="open a block inside"):
            timed("it")(function)
    with pytest.raises(tc.InputError, match="name"):
        timed(generator)  # type: ignore[arg-type]
    with pytest.raises(tc.InputError, match="phase"):
        timed("it", phase="cold")
    with pytest.raises(tc.InputError, match="phase"):
        Timings().rows("cold")
    for keep in (0, True, 1.5):
        with pytest.raises(tc.InputError, match="keep"):
            Timings(keep=keep)  # type: ignore[arg-type]
    block = timed("it", Timings())
    with block, pytest.raises(tc.TTSCompileError, match="open already"):
        block.__enter__()
    with block:  # one after the other is fine
        pass


def test_phases_are_kept_apart(clock: Clock) -> None:
    timings = Timings()
    with timed("speak", timings, phase="warm-up"), timed("flow"):
        pass
    with timed("speak", timings):
        with timed("t3"):
            mark_compile("step", 0.5)
        with timed("flow"):
            pass
    with timed("speak", timings), timed("flow"):
        pass
    counts = {phase: {"/".join(path): row.count for path, row in by_path(timings, phase).items()} for phase in PHASES}
    assert counts == {
        "steady": {"speak": 1, "speak/flow": 2},
        "compile": {"speak": 1, "speak/t3": 1, "speak/t3/compile step": 1},
        "warm-up": {"speak": 1, "speak/flow": 1},
        "failed": {},
    }
    assert by_path(timings, "compile")["speak", "t3", "compile step"].total == 0.5
    # of the two flows, one lies in an utterance of another phase
    assert by_path(timings)["speak", "flow"].share == by_path(timings, "warm-up")["speak", "flow"].share == 1 / 3


def test_a_phase_given_as_compile_is_one_around_it_too(clock: Clock) -> None:
    timings = Timings()
    with timed("speak", timings), timed("record", phase="compile"):
        pass
    assert set(by_path(timings, "compile")) == {("speak",), ("speak", "record")}


def test_what_ends_by_an_exception_has_failed(clock: Clock) -> None:
    timings = Timings()

    def fail() -> None:
        with timed("flow"), timed("solver"):
            mark_compile("it", 0.5)
            raise KeyError

    with timed("speak", timings), pytest.raises(KeyError):
        fail()
    assert set(by_path(timings, "failed")) == {("speak",), ("speak", "flow"), ("speak", "flow", "solver")}
    assert [row.count for row in timings.rows("failed")] == [0, 1, 1]
    assert by_path(timings, "compile")["speak",].count == 1
    assert no_block_is_open(clock)


def test_a_generator_closed_out_of_turn_leaves_no_block_behind(clock: Clock) -> None:
    timings = Timings()

    def stream() -> Iterator[int]:
        with timed("stream"):
            yield 1

    with timed("root", timings):
        first = stream()
        next(first)
        with timed("inside"):
            first.close()
            with timed("deep"):
                pass
        with timed("after"):
            pass
    assert ("root", "stream", "inside", "deep") in by_path(timings)
    assert ("root", "after") in by_path(timings)
    assert no_block_is_open(clock)


class Interrupted(Stat):
    """A record that lets other threads run while it adds a block."""

    def add(self, *args: Any) -> None:
        before = self.count
        time.sleep(1e-4)
        super().add(*args)
        self.count = before + 1


def test_threads_are_counted_exactly_and_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "Stat", Interrupted)
    timings, start = Timings(keep=10), threading.Barrier(8)

    def work() -> None:
        start.wait()
        for _ in range(20):
            with timed("outer", timings), timed("inner"):
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path: row.count for path, row in by_path(timings).items()} == {("outer",): 160, ("outer", "inner"): 160}


def test_a_context_carries_the_block_into_another_thread() -> None:
    timings = Timings()

    def work() -> None:
        with timed("aside"):
            pass

    with timed("root", timings):
        for target in (work, functools.partial(contextvars.copy_context().run, work)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    assert {path: row.count for path, row in by_path(timings).items()} == {("root",): 1, ("root", "aside"): 1}
    threads = {event["tid"] for event in timings.chrome_trace()["traceEvents"]}
    assert len(threads) == 2


def test_speech_gives_a_real_time_factor(clock: Clock) -> None:
    timings = Timings()
    for audio in (4.0, None, 1.0):
        with timed("speak", timings) as block:
            clock.step = 2.0
            block.audio_seconds = audio
    (row,) = timings.rows()
    assert (row.count, row.audio_seconds, row.real_time_factor) == (3, 5.0, 4.0 / 5.0)


def test_a_block_used_again_has_made_no_speech_yet(clock: Clock) -> None:
    timings = Timings()
    block = timed("speak", timings)
    with block:
        block.audio_seconds = 4.0
    with block:
        assert block.audio_seconds is None
    (row,) = timings.rows()
    assert (row.count, row.audio_seconds) == (2, 4.0)


def test_shares_are_of_outermost_blocks_that_are_kept_whole(clock: Clock) -> None:
    timings = Timings(keep=3)
    for ticks in (5, 1, 1):
        with timed("speak", timings):
            for _ in range(2):
                with timed("part"):
                    for _ in range(ticks):
                        clock()
    # the last three parts are kept: of the last utterance both, of the one before only one
    assert by_path(timings)["speak", "part"].share == 4 / 7
    assert by_path(timings)["speak",].share == 1.0


def test_plain_values_and_the_table_show_the_tree(clock: Clock) -> None:
    timings = Timings()
    assert str(timings) == "nothing has been timed"
    with timed("speak", timings) as block, timed("flow"):
        block.audio_seconds = 6.0
    with pytest.raises(KeyError), timed("speak", timings):
        raise KeyError
    plain = json.loads(json.dumps(timings.to_dict(), allow_nan=False))
    (speak,) = plain["phases"]["steady"]
    assert (speak["name"], speak["total"], speak["children"][0]["name"]) == ("speak", 3.0, "flow")
    assert [row["count"] for row in plain["phases"]["failed"]] == [1]
    assert str(timings).splitlines() == [
        "steady",
        "        calls  total, s  median, ms   p90, ms   share  real-time factor",
        "speak       1     3.000    3000.000  3000.000  100.0%             0.500",
        "  flow      1     1.000    1000.000  1000.000   33.3%",
        "",
        "failed",
        "       calls  total, s  median, ms   p90, ms   share",
        "speak      1     1.000    1000.000  1000.000  100.0%",
    ]
    timings.clear()
    assert str(timings) == "nothing has been timed"


@given(st.lists(TREES, max_size=3))
def test_the_trace_nests_as_the_blocks_did(trees: list[Any]) -> None:
    timings = Timings()

    def play(tree: Any) -> None:
        with timed(tree[0], timings):
            for part in tree[2]:
                play(part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "read_clock", Clock())
        for tree in trees:
            play(tree)
    events = json.loads(json.dumps(timings.chrome_trace()))["traceEvents"]
    open_ones: list[dict[str, Any]] = []
    for event in events:
        assert (event["ph"], event["cat"], event["pid"] > 0) == ("X", "steady", True)
        while open_ones and open_ones[-1]["ts"] + open_ones[-1]["dur"] <= event["ts"]:
            open_ones.pop()
        open_ones.append(event)
        assert "/".join(one["name"] for one in open_ones) == event["args"]["path"]
        assert all(one["ts"] + one["dur"] >= event["ts"] + event["dur"] for one in open_ones)
    assert len(events) == sum(row.count for row in timings.rows())


class Device:
    """A substitute for :class:`blocks.CudaEvents`, whose work takes time that the host's clock does not include."""

    def __init__(self) -> None:
        self.now = 0.0
        self.capturing = False
        self.asked: list[str] = []
        self.done = True

    def record(self) -> Event | None:
        return None if self.capturing else Event(self, self.now)


class Event:
    def __init__(self, device: Device, at: float) -> None:
        self._device = device
        self.at = at

    def query(self) -> bool:
        self._device.asked.append("query")
        return self._device.done

    def synchronize(self) -> None:
        self._device.asked.append("synchronize")
        self._device.done = True

    def elapsed_time(self, end: Event) -> float:
        assert self._device.done, "an event was read before the device was done"
        self._device.asked.append("elapsed_time")
        return 1e3 * (end.at - self.at)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setattr(blocks, "CudaEvents", lambda name: device)
    return device


def test_an_error_of_the_device_is_not_replaced_by_another(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    timings = Timings("cuda:0")

    @timed("speak", timings)
    def speak() -> None:
        monkeypatch.setattr(device, "record", broken)
        raise ValueError("the first")

    with pytest.raises(ValueError, match="the first"):
        speak()
    assert [row.count for row in timings.rows("failed")] == [1]


def test_events_are_resolved_when_they_are_read(clock: Clock, device: Device) -> None:
    timings = Timings("cuda:0")
    with timed("speak", timings):
        device.now += 10
        with timed("flow"):
            device.now += 5
        device.capturing = True
        with timed("record"):  # by the host's clock
            pass
        device.capturing = False
        device.now += 1
    device.done = False
    assert device.asked == []
    assert {path: row.total for path, row in by_path(timings).items()} == {
        ("speak",): 16.0, ("speak", "flow"): 5.0, ("speak", "record"): 1.0,
    }  # fmt: skip
    at = {event["name"]: event["ts"] for event in timings.chrome_trace()["traceEvents"]}
    assert at["flow"] - at["speak"] == 10e6


def test_events_that_nobody_reads_do_not_pile_up(clock: Clock, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MAX_UNREAD", 3)
    timings = Timings("cuda")
    device.done = False
    for count in range(1, 9):
        with timed("speak", timings):
            device.now += 1
        assert device.asked == ["query"] * max(0, count - 3)
    device.done = True
    with timed("speak", timings):
        pass
    assert device.asked.count("elapsed_time") == 2 * 9  # all were read: when it began, and how long it took
    assert "synchronize" not in device.asked
    assert timings.rows()[0].total == 8.0


class Mark:
    """Memory with a peak since the last reset, like a system's."""

    def __init__(self) -> None:
        self.now = self.highest = 0

    def use(self, amount: int) -> None:
        self.now = amount
        self.highest = max(self.highest, amount)

    def reset(self) -> None:
        self.highest = self.now


def test_each_block_has_the_peak_of_its_own_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = Mark()
    monkeypatch.setattr(peak_memory, "resident", lambda: peak_memory.PeakOfSpans(lambda: mark.highest, mark.reset))
    timings = Timings(memory=True)
    mark.use(900)
    mark.use(1)
    with timed("root", timings):
        mark.use(50)
        mark.use(5)
        with timed("low"):
            mark.use(7)
        with timed("high"):
            mark.use(90)
            mark.use(5)
        mark.use(6)
    assert {path: (row.resident_peak, row.cuda_peak) for path, row in by_path(timings).items()} == {
        ("root",): (90, None), ("root", "low"): (7, None), ("root", "high"): (90, None),
    }  # fmt: skip
    assert "resident, MiB" in str(timings)
    with timed("root", timings):
        mark.use(3)
    assert by_path(timings)["root",].resident_peak == 90


def test_overlapping_spans_do_not_take_each_others_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = Mark()
    water = peak_memory.PeakOfSpans(lambda: mark.highest, mark.reset)
    mark.use(10)
    first = water.open()
    mark.use(60)
    mark.use(20)
    second = water.open()  # as from another thread
    mark.use(30)
    assert water.close(first) == 60
    assert water.close(second) == 30


def test_a_system_that_does_not_tell_gives_none(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_memory, "resident", lambda: None)
    timings = Timings(memory=True)
    with timed("root", timings):
        pass
    assert timings.rows()[0].resident_peak is None


@pytest.mark.skipif(peak_memory.resident() is None, reason="no mark that can be reset")
def test_resident_memory_is_the_systems() -> None:
    timings = Timings(memory=True)
    with timed("root", timings):
        with timed("large"):
            np.frombuffer(mmap.mmap(-1, 2**25), dtype=np.uint8)[:] = 1  # malloc may have as much to spare
        with timed("small"):
            pass
    root, large, small = (row.resident_peak for row in timings.rows())
    assert root is not None
    assert large is not None
    assert small is not None
    assert root >= large >= small + 2**24


def test_it_needs_neither_torch_nor_the_rest() -> None:
    """The package imports torch; ``timing`` itself imports it for a CUDA device only."""
    script = (
        "import sys, types; package = types.ModuleType('tts_compile'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['tts_compile'] = package\n"
        "from tts_compile.timing.blocks import Timings, timed\n"
        "with timed('it', Timings(memory=True)): pass\n"
        "print(sorted(n for n in sys.modules if n.startswith(('tts_compile.', 'torch', 'numpy'))))"
    )
    done = subprocess.run([sys.executable, "-c", script, *tc.__path__], check=True, capture_output=True, text=True)
    assert (
        done.stdout.split()
        == str(
            [
                "tts_compile.errors",
                "tts_compile.timing",
                *(f"tts_compile.timing.{n}" for n in ("blocks", "peak_memory", "summary")),
            ]
        ).split()
    )
