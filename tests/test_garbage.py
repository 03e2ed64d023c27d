"""The collector rests only where it is meant to."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

import tts_compile as tc
from conftest import EAGER
from speech import SHORT
from tts_compile.utils.gc_pause import made_to_stay, not_collected


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_comes_back_as_it_was(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        with not_collected():
            with not_collected():
                assert not gc.isenabled()
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
        with pytest.raises(ZeroDivisionError), not_collected():
            1 / 0  # noqa: B018
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_what_is_made_to_stay_is_old_at_once() -> None:
    gc.collect()
    with made_to_stay():
        kept = [[] for _ in range(5000)]
    assert len(gc.get_objects(generation=2)) > 5000
    assert not any(item is kept for item in gc.get_objects(generation=0))
    assert gc.get_freeze_count() == 0


def test_objects_that_somebody_keeps_from_the_collector_stay_there() -> None:
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        with made_to_stay():
            pass
        assert gc.get_freeze_count() == before
    finally:
        gc.unfreeze()


def test_it_rests_in_a_components_first_call_alone(
    tts: Any, silent: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    silent(tts)
    fast = tc.compile_model(tts, EAGER)
    engine = fast._components["t3"].engine  # type: ignore[union-attr]
    inference, seen = engine.inference, list[bool]()

    def listening(**kwargs: Any) -> Any:
        seen.append(gc.isenabled())
        return inference(**kwargs)

    monkeypatch.setattr(engine, "inference", listening)
    fast.generate(SHORT)
    fast.generate(SHORT)
    assert seen == [False, True]
    assert gc.isenabled()
