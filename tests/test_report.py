"""The report shows the execution that the counts prove, and stock where nothing has run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch._dynamo.utils import counters

import tts_compile as tc
from conftest import EAGER
from speech import SHORT, Speech, speak, speak_stock
from tts_compile.config import COMPONENTS

KEYS = {"asked", "ran", "calls", "compiled_calls", "graphs", "graph_breaks", "recompiles_after_warmup", "fallbacks"}
# Traced by dynamo and run as traced: compiled in every respect that these tests look at, without the wait.
QUICK = tc.CompileConfig.off().replace(warmup_samples=0, t3=tc.ComponentPolicy(execution="inductor", backend="eager"))


def t3(handle: Any) -> tc.ComponentReport:
    return handle.report().components["t3"]


def test_compiled_run_is_proven(fast: Any) -> None:
    before = t3(fast).calls
    speak(fast, SHORT)
    row = t3(fast)
    assert row.ran == "inductor"
    assert row.calls == row.compiled_calls > before
    assert row.graphs > 0
    assert (row.graph_breaks, row.recompiles_after_warmup, row.fallbacks) == (0, 0, ())


def test_plain_values(fast: Any) -> None:
    plain = json.loads(json.dumps(fast.report().to_dict()))
    assert plain["attached"] is True
    assert tuple(plain["components"]) == COMPONENTS
    for row in plain["components"].values():
        assert row.keys() >= KEYS


def test_table(fast: Any) -> None:
    lines = str(fast.report()).splitlines()
    assert lines[0].split()[:3] == ["component", "asked", "ran"]
    assert lines[2].split()[:2] == ["t3", "auto"]


def test_without_calls_the_report_says_stock(tts: Any) -> None:
    row = t3(tc.compile_model(tts, QUICK))
    assert (row.asked, row.ran, row.calls, row.compiled_calls) == ("inductor", "stock", 0, 0)


def test_seam_bypassed(tts: Any) -> None:
    fast = tc.compile_model(tts, QUICK)
    speak_stock(tts, SHORT, max_new_tokens=3)
    row = t3(fast)
    assert (row.ran, row.calls, row.compiled_calls) == ("stock", 0, 0)


def test_eager_run_is_reported_as_eager(eager: Any) -> None:
    speak(eager, SHORT, max_new_tokens=3)
    row = t3(eager)
    assert (row.ran, row.compiled_calls) == ("eager", 0)
    assert row.calls > 0


def _never_made() -> Any:
    return mock.patch.object(torch, "compile", lambda function, **options: function)


def _made_and_never_reached() -> Any:
    return torch.compiler.set_stance("force_eager")


@pytest.mark.parametrize("broken", [_never_made, _made_and_never_reached])
def test_compiled_function(tts: Any, stock_speech: Callable[..., Speech], broken: Callable[[], Any]) -> None:
    with broken():
        fast = tc.compile_model(tts, QUICK)
        fast.warmup()
        assert speak(fast, SHORT) == stock_speech(SHORT)
    row = t3(fast)
    assert row.ran == "eager"
    assert (row.compiled_calls, row.graphs) == (0, 0)
    assert row.calls > 0


def test_torch_compile_disabled(tts: Any, stock_speech: Callable[..., Speech]) -> None:
    with torch._dynamo.config.patch(disable=True):
        fast = tc.compile_model(tts, QUICK)
        assert speak(fast, SHORT) == stock_speech(SHORT)
    assert (t3(fast).ran, t3(fast).compiled_calls) == ("eager", 0)


def test_partly_compiled_is_not_compiled(tts: Any) -> None:
    fast = tc.compile_model(tts, QUICK)
    speak(fast, SHORT, max_new_tokens=6)
    row = t3(fast)
    assert row.calls == row.compiled_calls > 0
    with torch.compiler.set_stance("force_eager"):
        speak(fast, SHORT, max_new_tokens=6)
    after = t3(fast)
    assert after.calls == 2 * row.calls
    assert after.compiled_calls == row.compiled_calls
    assert after.ran == "eager"
    assert f"{row.calls} of {after.calls}" in after.note


def test_warm_model_never_compiles_again(fast: Any) -> None:
    def graphs() -> tuple[int, int, int]:
        stats = counters["stats"]
        return stats["unique_graphs"], counters["frames"]["total"], sum(counters["graph_break"].values())

    before, row = graphs(), t3(fast)
    lengths = [1, 2, 3, 5, 400, *torch.logspace(0.7, 2.6, 25).int().tolist()]  # short ones cost less
    assert len(lengths) == 30
    for i, length in enumerate(lengths):
        text = ("many different words, and 7 more " * 13)[:length]
        settings = {"cfg_weight": 0.0} if i % 7 == 0 else {}
        speak(fast, text, i, max_new_tokens=1000 if i == 3 else 2, rows=1 if i % 14 == 0 else 2, **settings)
    assert graphs() == before
    after = t3(fast)
    assert after.graphs == row.graphs
    assert after.recompiles_after_warmup == 0
    assert after.calls == after.compiled_calls > row.calls


@pytest.mark.usefixtures("fresh_dynamo")
def test_recompiling_after_the_warmup_is_reported(tts: Any) -> None:
    fast = tc.compile_model(tts, QUICK)
    speak(fast, SHORT, max_new_tokens=4)
    torch._dynamo.reset()  # as if the shapes had not been seen
    speak(fast, SHORT, max_new_tokens=4)
    assert t3(fast).recompiles_after_warmup > 0


def test_second_model_in_one_process_is_compiled_too(tts: Any) -> None:
    for _ in range(4):  # the recompile limit is 8 for each code object
        with tc.compile_model(tts, QUICK) as fast:
            speak(fast, SHORT, max_new_tokens=2)
            assert t3(fast).ran == "inductor"


def test_warmup_report(tts: Any) -> None:
    warm = tc.compile_model(tts, EAGER).warmup()
    assert set(warm.seconds) == set(COMPONENTS)
    assert warm.total == pytest.approx(sum(warm.seconds.values()) + warm.speaking)
    assert warm.texts == 0
    assert "t3" in str(warm)
