from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts_compile import ConfigError, InputError
from tts_compile.bucketing import Ladder

rungs = st.sets(st.integers(1, 5000), min_size=1, max_size=20).map(lambda found: tuple(sorted(found)))


@given(rungs, st.data())
def test_capacity_is_the_smallest_rung_that_holds_n(rungs: tuple[int, ...], data: st.DataObject) -> None:
    ladder = Ladder(rungs)
    n = data.draw(st.integers(0, rungs[-1]))
    capacity = ladder.capacity(n)
    assert capacity in rungs
    assert capacity >= n
    assert not [rung for rung in rungs if n <= rung < capacity]
    assert ladder.capacity(capacity) == capacity
    assert ladder.capacity(data.draw(st.integers(0, n))) <= capacity


@given(rungs, st.integers())
def test_what_does_not_fit_is_refused(rungs: tuple[int, ...], n: int) -> None:
    if 0 <= n <= rungs[-1]:
        n += rungs[-1] + 1
    with pytest.raises(InputError, match=str(n)):
        Ladder(rungs).capacity(n)


@given(st.integers(1, 200), st.integers(1, 5000))
def test_regular_ladder_ends_at_the_first_multiple_that_reaches_last(step: int, last: int) -> None:
    ladder = Ladder.regular(step, last)
    assert ladder.rungs == tuple(step * (i + 1) for i in range(len(ladder.rungs)))
    assert last <= ladder.rungs[-1] < last + step


@pytest.mark.parametrize("rungs", [(), (0, 1), (-2, 4), (4, 4), (8, 4)])
def test_rungs_must_be_positive_and_ascending(rungs: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="ascending"):
        Ladder(rungs)


@pytest.mark.parametrize(("step", "last"), [(0, 10), (-1, 10), (4, 0)])
def test_regular_refuses_what_makes_no_ladder(step: int, last: int) -> None:
    with pytest.raises(ConfigError):
        Ladder.regular(step, last)
