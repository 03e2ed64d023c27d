"""Garbage collection is paused only where it is meant to be."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

import tts_compile as tc
from conftest import EAGER, components
from speech import SHORT
from tts_compile.utils.gc_pause import gc_paused


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_enabled_again_where_it_was(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        with gc_paused():
            with gc_paused():
                assert not gc.isenabled()
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
        with pytest.raises(ZeroDivisionError), gc_paused():
            1 / 0  # noqa: B018
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_long_lived_objects_are_old_at_once() -> None:
    gc.collect()
    with gc_paused(long_lived=True):
        kept = [[] for _ in range(5000)]
    assert len(gc.get_objects(generation=2)) > 5000
    assert not any(item is kept for item in gc.get_objects(generation=0))
    assert gc.get_freeze_count() == 0


def test_objects_frozen_by_another_caller_stay_frozen() -> None:
    kept: list[object] = []
    gc.freeze()
    try:
        with gc_paused(long_lived=True):
            pass
        assert not any(item is kept for item in gc.get_objects())  # which leaves frozen objects out
    finally:
        gc.unfreeze()
    assert any(item is kept for item in gc.get_objects())


def test_collection_is_paused_in_a_components_first_call_alone(
    tts: Any, silent: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    silent(tts)
    fast = tc.compile_model(tts, EAGER)
    engine = components(fast)["t3"].engine
    inference, seen = engine.inference, list[bool]()

    def listening(**kwargs: Any) -> Any:
        seen.append(gc.isenabled())
        return inference(**kwargs)

    monkeypatch.setattr(engine, "inference", listening)
    fast.generate(SHORT)
    fast.generate(SHORT)
    assert seen == [False, True]
    assert gc.isenabled()
