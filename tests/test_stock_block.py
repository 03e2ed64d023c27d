"""``with fast.stock() as tts``: the model is stock inside the block and attached again after it."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tts_compile as tc
from conftest import EAGER, ENGINES, components
from speech import SHORT, Speech, speak
from test_api import identities, instances
from tts_compile.execution import process_lock


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
    with pytest.raises(tc.ModelStateError, match="compiled again") as caught, fast.stock():
        other = tc.compile_model(tts, tc.CompileConfig.off())
    assert caught.value.__context__ is None  # the error is raised once
    assert tc.compile_model(tts, tc.CompileConfig.off()) is other
    other.restore()


TRACED = (str(Path(tc.__file__).parent), contextlib.__file__)


def interrupted(number: int, action: Callable[[], object]) -> bool:
    """Interrupts an action at the ``number``-th line of the library or of contextlib; False where it ended before."""
    seen = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal seen
        path = frame.f_code.co_filename
        if path == process_lock.__file__ or not path.startswith(TRACED):  # a lock's own ``with`` is not interrupted
            return None
        if event == "line":
            if seen == number:
                raise KeyboardInterrupt  # which also ends the tracing
            seen += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_an_interrupt_at_any_line_leaves_it_compiled(
    tts: Any, stock_speech: Callable[..., Speech], error: type[Exception] | None
) -> None:
    own = identities(*instances(tts))
    fast = tc.compile_model(tts, EAGER)
    compiled = identities(*instances(tts))
    engines = [components(fast)[name] for name in ENGINES]

    def block() -> None:
        with contextlib.suppress(ZeroDivisionError), fast.stock():
            assert identities(*instances(tts)) == own
            if error:
                raise error

    def free() -> None:
        with process_lock.locked():
            released.append(number)

    released: list[int] = []
    for number in itertools.count():
        ended = not interrupted(number, block)
        assert fast.report().attached, number
        assert identities(*instances(tts)) == compiled, number
        assert [engine.left_to_stock() for engine in engines] == [None] * 3, number
        for owner in (tts.t3, tts.s3gen.flow, tts.s3gen.mel2wav):
            with pytest.raises(TypeError, match="argument"):  # the engine's, then stock's: a loop would not end
                owner.inference(no_such_argument=1)
        if ended:
            break
    other = threading.Thread(target=free, daemon=True)
    other.start()
    other.join(5)
    assert released == [number]
    assert number > 200  # lines
    block()
    assert tc.compile_model(tts, EAGER) is fast
    fast.restore()
    assert identities(*instances(tts)) == own
    with tc.compile_model(tts, EAGER) as fast:
        assert speak(fast, SHORT, max_new_tokens=3) == stock_speech(SHORT, max_new_tokens=3)
