"""How benches call what they compare: order, seeds, and verdicts on planted slow-downs by a clock that is made up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tts_compile.measuring import interleaved as alternation
from tts_compile.measuring.interleaved import alternate, same_states
from tts_compile.measuring.stats import ratio_of_medians
from tts_compile.timing import blocks as timing


def silent(name: str) -> None:
    """A step that shows nothing."""


class Clock:
    """Stands still until somebody works."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "read_clock", clock)
    return clock


@pytest.mark.parametrize(
    ("slowdown", "drift", "verdict"),
    [(1.0, 0.0, "no difference"), (1.0, 0.02, "no difference"), (1.2, 0.0, "loss"), (1 / 1.2, 0.0, "gain")],
)
def test_a_planted_slow_down_is_found_and_none_is_invented(
    slowdown: float, drift: float, verdict: str, clock: Clock
) -> None:
    found = []
    for seed in range(100):
        noise = np.random.default_rng(seed)
        calls = 0

        def work(seconds: float) -> Callable[[], None]:
            def working() -> None:
                nonlocal calls
                clock.now += seconds * noise.normal(1.0, 0.03) * (1 + drift * calls)  # noqa: B023 - called in this turn
                calls += 1

            return working

        sides = alternate({"stock": work(1.0), "compiled": work(slowdown)}, 5, silent)
        stock, compiled = (alternation.seconds(sides[side]) for side in ("stock", "compiled"))
        found.append(ratio_of_medians(stock, compiled).verdict)
    assert found.count(verdict) >= 95


def test_only_the_call_is_timed(clock: Clock) -> None:
    def slow(name: str) -> None:
        clock.now += 100

    def work() -> None:
        clock.now += 2

    assert alternation.seconds(alternate({"stock": work}, 2, slow)["stock"]) == [2, 2]


def test_the_order_is_reversed_every_other_time() -> None:
    seen: list[str] = []
    steps: list[str] = []
    ways = {name: lambda name=name: seen.append(name) for name in "abc"}
    calls = alternate(ways, 3, steps.append)
    assert "".join(seen) == "abccbaabc"
    assert steps[:4] == ["repeat 1 of 3: a", "repeat 1 of 3: b", "repeat 1 of 3: c", "repeat 2 of 3: c"]
    assert [len(done) for done in calls.values()] == [3, 3, 3]


def test_every_call_begins_from_the_seed_and_its_end_is_kept() -> None:
    calls = alternate(
        {"one": lambda: torch.rand(3), "two": lambda: torch.rand(3), "more": lambda: torch.rand(4)[:3]},
        2,
        silent,
        seed=7,
    )
    results = [call.result for done in calls.values() for call in done]
    assert all(torch.equal(results[0], result) for result in results)
    assert same_states(calls["one"], calls["two"])
    assert not same_states(calls["one"], calls["more"])
    assert not same_states(calls["one"], [calls["two"][0], calls["more"][1]])


def test_without_a_seed_random_numbers_go_on() -> None:
    first, second = alternate({"one": lambda: torch.rand(3)}, 2, silent)["one"]
    assert not torch.equal(first.result, second.result)
