"""``FallbackManager.run`` on any callable: the level that answers, the calls that undo, and the recorded events."""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tts_compile as tc
from tts_compile import fallback
from tts_compile.errors import NonFiniteError, OutOfMemoryError

LEVELS = ("cuda_graph", "inductor", "eager", "stock")
FAILURES: dict[str, Callable[[], BaseException]] = {
    "kernel": lambda: RuntimeError("CUDA error: an illegal instruction"),
    "type": lambda: TypeError("mine"),
    "compile": lambda: tc.CompilationError("no compiler"),
    "disk": lambda: OSError(28, "No space left on device"),
    "memory": lambda: MemoryError("no memory left"),
    "gpu memory": lambda: torch.OutOfMemoryError("CUDA out of memory"),
}
RETRIED = ("memory", "gpu memory")


@pytest.fixture(scope="module", autouse=True)
def _releasing_memory_costs_nothing() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fallback, "release_memory", lambda: None)
        yield


class Ways(Mapping[str, Callable[[int], str]]):
    """A function for each level, whose attempts have the planned outcomes in turn; the last one repeats."""

    def __init__(self, outcomes: dict[str, list[str]]) -> None:
        self.attempts: list[str] = []
        self._outcomes = {level: list(given) for level, given in outcomes.items()}

    def __getitem__(self, level: str) -> Callable[[int], str]:
        def way(x: int) -> str:
            self.attempts.append(level)
            outcomes = self._outcomes[level]
            outcome = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
            if outcome != "fine":
                raise FAILURES[outcome]()
            return f"{level} {x}"

        return way

    def __iter__(self) -> Iterator[str]:
        return iter(self._outcomes)

    def __len__(self) -> int:
        return len(self._outcomes)


outcomes = st.lists(st.sampled_from(["fine", *FAILURES]), min_size=1, max_size=3)


@given(st.fixed_dictionaries(dict.fromkeys(LEVELS, outcomes)))
def test_the_first_level_that_succeeds_answers(plan: dict[str, list[str]]) -> None:
    ways, undone = Ways(plan), []
    released = []
    manager = tc.FallbackManager("t3", LEVELS, release=lambda: released.append(1))
    expected, attempts, spared = None, [], False
    for level in LEVELS:
        first = plan[level][0]
        attempts.append(level)
        if first in RETRIED and not spared:
            spared = True
            attempts.append(level)
            first = plan[level][min(1, len(plan[level]) - 1)]
        if first == "fine":
            expected = f"{level} 7"
            break
    try:
        found = manager.run(ways, 7, begin_again=lambda: undone.append(len(ways.attempts)))
    except Exception:
        found = None
    assert found == expected
    assert ways.attempts == attempts
    assert undone == list(range(1, len(attempts)))  # once before every attempt but the first
    assert len(released) >= spared
    assert manager.level == LEVELS[0]
    falls = [event.action for event in manager.events if " instead of " in event.action]
    used = list(dict.fromkeys(attempts))
    wanted = [f"{after} instead of {before}" for before, after in itertools.pairwise(used)]
    assert falls == (wanted if expected else [])  # where all fail the arguments are at fault, and nothing is recorded
    assert all(event.phase != "compile" for event in manager.events)


@given(st.integers(1, 3), st.lists(st.sampled_from(["fine", "failed", "callers"]), max_size=10))
def test_a_level_is_given_up_after_max_failures(most: int, calls: list[str]) -> None:
    manager = tc.FallbackManager("t3", ["fast", "plain"], max_failures=most)
    failed = 0
    for outcome in calls:
        ways = Ways({"fast": ["fine" if outcome == "fine" else "kernel"], "plain": ["fine"]})
        if outcome == "callers":
            ways = Ways({"fast": ["type"], "plain": ["type"]})
            with pytest.raises(TypeError, match="mine"):
                manager.run(ways, 1)
        else:
            assert manager.run(ways, 1) in ("fast 1", "plain 1")
        assert ("fast" in ways.attempts) == (failed < most)
        failed += outcome == "failed" and failed < most
    assert manager.level == ("plain" if failed >= most else "fast")
    assert len(manager.events) == failed
    blown = [event for event in manager.events if "from now on" in event.action]
    assert len(blown) == (failed >= most)


def test_a_level_stays_given_up() -> None:
    manager = tc.FallbackManager("t3", ["cuda_graph", "inductor", "eager", "stock"], max_failures=1)

    def broken() -> str:
        raise RuntimeError("a recording failed")

    def uncompilable() -> str:
        return manager.fall("compile", OSError("disk full"))  # in the middle of a call, as compiled functions do

    assert manager.run({"cuda_graph": broken, "inductor": uncompilable, "eager": str, "stock": str}) == "eager"
    assert manager.level == "eager"


def test_memory_is_released_by_the_component_and_then_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(fallback, "release_memory", lambda: done.append("torch's"))
    manager = tc.FallbackManager("t3", ["fast", "plain"], release=lambda: done.append("the component's"))
    assert manager.run(Ways({"fast": ["memory", "fine"], "plain": ["fine"]}), 1) == "fast 1"
    assert done == ["the component's", "torch's"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_interrupts_are_raised(error: type[BaseException]) -> None:
    def stopped() -> None:
        raise error

    manager = tc.FallbackManager("t3", ["fast", "plain"])
    with pytest.raises(error):
        manager.run({"fast": stopped, "plain": lambda: None})
    assert (manager.events, manager.level) == ([], "fast")


@pytest.mark.parametrize("error", [tc.InputError("no text"), tc.ModelStateError("in training mode")])
def test_errors_about_arguments_are_raised_at_once(error: Exception) -> None:
    def refused() -> None:
        raise error

    manager = tc.FallbackManager("t3", ["fast", "plain"])
    with pytest.raises(type(error)) as caught:
        manager.run({"fast": refused, "plain": lambda: pytest.fail("tried")})
    assert caught.value is error


@pytest.mark.parametrize("below", [["stock"], ["stock", "cpu"]])
def test_stock_does_not_run_after_non_finite_values(below: list[str]) -> None:
    def not_finite() -> None:
        raise NonFiniteError("nan")

    manager = tc.FallbackManager("t3", ["inductor", "eager", *below])
    ways = {"inductor": not_finite, "cpu": lambda: pytest.fail("tried")}
    with pytest.raises(NonFiniteError):
        manager.run({**ways, "eager": not_finite, "stock": lambda: pytest.fail("tried")})
    assert manager.events == []
    assert manager.run({**ways, "eager": lambda: 1, "stock": lambda: 2}) == 1
    assert [event.action for event in manager.events] == ["eager instead of inductor"]


def test_the_first_error_of_this_library_is_raised() -> None:
    first = tc.CompilationError("no compiler")

    def refused() -> None:
        raise first

    def failed() -> None:
        raise TypeError("mine")

    with pytest.raises(tc.CompilationError) as caught:
        tc.FallbackManager("t3", ["fast", "plain"]).run({"fast": refused, "plain": failed})
    assert caught.value is first


@pytest.mark.parametrize("failure", FAILURES)
def test_objects_of_a_failed_attempt_are_freed_before_the_next(failure: str) -> None:
    made: list[weakref.ref[Ways]] = []

    def fast() -> bool:
        if made:
            return made[0]() is None
        cache = Ways({})
        made.append(weakref.ref(cache))
        raise FAILURES[failure]()

    assert tc.FallbackManager("t3", ["fast", "plain"]).run({"fast": fast, "plain": fast})


def test_a_shortage_at_every_level_is_an_error_with_the_numbers() -> None:
    manager = tc.FallbackManager("flow", ["eager", "stock"])
    with pytest.raises(OutOfMemoryError, match=r"flow: out of memory.*GiB, .* of .* GiB are free") as caught:
        manager.run(Ways({"eager": ["memory"], "stock": ["gpu memory"]}), 1)
    assert isinstance(caught.value, MemoryError)
    assert [(event.phase, event.action) for event in manager.events] == [
        ("memory", "eager again, after releasing memory")
    ]


def test_policy_raise_raises_the_first_error() -> None:
    ways = Ways({"fast": ["kernel"], "plain": ["fine"]})
    manager = tc.FallbackManager("t3", ["fast", "plain"], policy="raise")
    with pytest.raises(RuntimeError, match="illegal instruction"):
        manager.run(ways, 1)
    assert ways.attempts == ["fast"]


def test_a_run_inside_a_run() -> None:
    manager = tc.FallbackManager("reference", ["eager", "stock"])
    inner = Ways({"eager": ["fine"], "stock": ["kernel"]})
    outer: dict[str, Any] = {"eager": FAILURES["kernel"], "stock": lambda: manager.run(inner, 1)}
    outer["eager"] = lambda: (_ for _ in ()).throw(RuntimeError("broken"))
    with pytest.raises(RuntimeError):  # inside, levels above the outer one's are not tried
        manager.run(outer)
    assert inner.attempts == ["stock"]
    assert manager.level == "eager"


@pytest.mark.parametrize("given", [{}, {"fast": None, "plain": lambda: 1}, {"fast": lambda: pytest.fail("ran")}])
@pytest.mark.parametrize("policy", ["fallback", "raise"])
def test_a_level_without_a_function_is_refused_before_anything_runs(given: dict[str, Any], policy: str) -> None:
    manager = tc.FallbackManager("t3", ["fast", "plain"], policy)
    missing = [level for level in manager.chain if given.get(level) is None]
    with pytest.raises(tc.InputError, match=f"t3: there is no function for {', '.join(missing)}; ") as caught:
        manager.run(given)
    assert isinstance(caught.value, ValueError)
    assert (manager.level, manager.events) == ("fast", [])


@pytest.mark.parametrize("chain", [[], "fast", ["fast", ""], ["fast", None], ["fast", "plain", "fast"]])
def test_a_chain_that_cannot_be_run(chain: Any) -> None:
    with pytest.raises(tc.ConfigError, match="the chain of t3 must") as caught:
        tc.FallbackManager("t3", chain, "rais", 0)
    assert [mistake.split()[0] for mistake in caught.value.mistakes] == ["the", "policy", "max_failures"]


def test_one_line_is_logged_for_each_event(caplog: pytest.LogCaptureFixture) -> None:
    manager = tc.FallbackManager("t3", ["fast", "plain"])
    with caplog.at_level(logging.WARNING, "tts_compile"):
        manager.run(Ways({"fast": ["kernel"], "plain": ["fine"]}), 1)
    assert [record.getMessage() for record in caplog.records] == [
        "t3: call failed (RuntimeError: CUDA error: an illegal instruction): plain instead of fast"
    ]
