"""``with fast.stock() as tts``: stock inside, attached again outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import tts_compile as tc
from conftest import EAGER
from speech import SHORT, Speech, speak
from test_api import identities, instances


def test_inside_there_is_nothing_of_ours(tts: Any, stock_speech: Callable[..., Speech]) -> None:
    own = identities(*instances(tts))
    fast = tc.compile_model(tts, EAGER)
    replaced = {owner: vars(owner)["inference"] for owner in (tts.t3, tts.s3gen.flow, tts.s3gen.mel2wav)}
    with fast.stock() as stock:
        assert stock is tts
        assert identities(*instances(tts)) == own
        assert not fast.report().attached
        assert speak(fast, SHORT, max_new_tokens=9) == stock_speech(SHORT, max_new_tokens=9)
        assert fast.report().components["t3"].calls == 0
    assert fast.report().attached
    assert {owner: vars(owner)["inference"] for owner in replaced} == replaced
    assert tc.compile_model(tts, EAGER) is fast
    assert speak(fast, SHORT, max_new_tokens=9) == stock_speech(SHORT, max_new_tokens=9)
    assert fast.report().components["t3"].calls > 0


def test_counts_and_engines_are_kept_meanwhile(eager: Any) -> None:
    speak(eager, SHORT, max_new_tokens=3)
    before = eager.report().components
    with eager.stock():
        assert eager.report().components == before
    assert eager.report().components == before


def test_an_exception_attaches_again(eager: Any, tts: Any) -> None:
    with pytest.raises(ZeroDivisionError), eager.stock():
        _ = 1 / 0
    assert eager.report().attached
    assert "inference" in vars(tts.t3)


def test_a_restored_handle_stays_restored(eager: Any, tts: Any) -> None:
    eager.restore()
    own = identities(*instances(tts))
    with eager.stock() as stock:
        assert stock is tts
        assert identities(*instances(tts)) == own
    assert identities(*instances(tts)) == own
    assert not eager.report().attached


def test_a_block_inside_a_block(eager: Any, tts: Any) -> None:
    with eager.stock():
        with eager.stock():
            assert "inference" not in vars(tts.t3)
        assert "inference" not in vars(tts.t3)  # until the outer one ends
    assert "inference" in vars(tts.t3)


def test_restoring_after_the_block_leaves_no_trace(tts: Any) -> None:
    own = identities(*instances(tts))
    with tc.compile_model(tts, EAGER) as fast, fast.stock():
        pass
    assert identities(*instances(tts)) == own


def test_restored_inside_it_stays_stock(tts: Any) -> None:
    fast = tc.compile_model(tts, EAGER)
    with fast.stock():
        fast.restore()
    assert "inference" not in vars(tts.t3)
    assert repr(fast).endswith("restored>")


def test_compiled_again_inside_it(tts: Any) -> None:
    fast = tc.compile_model(tts, EAGER)
    with pytest.raises(tc.ModelStateError, match="compiled again"), fast.stock():
        other = tc.compile_model(tts, tc.CompileConfig.off())
    assert tc.compile_model(tts, tc.CompileConfig.off()) is other
    other.restore()
