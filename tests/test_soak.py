"""Many calls in one process: nothing grows, slows down or drifts, and the bench would say so if it did."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import tts_compile as tc
from tts_compile.bench import soak
from tts_compile.bench.soak import Settings, SoakResult
from tts_compile.measuring.stats import Ratio

MIB = 2**20
# Traced by dynamo and run as traced, with native code: no wait for inductor.
QUICK = tc.CompileConfig(
    **dict.fromkeys(("t3", "flow", "vocoder"), tc.ComponentPolicy(execution="inductor", backend="eager")),
    warmup_samples=0,
)


def test_a_few_calls(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TEXTS", soak.TEXTS[:2]), ("VOICES", 2), ("ROUND", 4)):
        monkeypatch.setattr(soak, name, value)
    result = soak.run(str(checkpoint), Settings(calls=5), QUICK)
    assert len(result.seconds) == 3  # rounds of four
    assert (result.drifted, result.graphs, result.hooks[0]) == (0, 0, result.hooks[1])
    assert result.passed, str(result)
    assert result.to_dict()["bench"] == "soak"
    assert "12 calls, 2 texts, 2 voices" in str(result)


@pytest.mark.slow
def test_many_calls(checkpoint: Path) -> None:
    result = soak.run(str(checkpoint), Settings(calls=500), tc.CompileConfig.exact())
    print(result)
    assert result.passed


def reported(*events: dict[str, str], **changes: Any) -> dict[str, Any]:
    """Returns a report of compiled components; ``changes`` and events are T3's."""
    row = {"asked": "auto", "ran": "inductor", "calls": 9, "fallbacks": []}
    rows = {name: dict(row) for name in tc.config.COMPONENTS}
    rows["t3"] |= {"fallbacks": list(events), **changes}
    return {"components": rows}


EVENT = {"phase": "call", "error": "no memory", "action": "stock"}
GOOD = SoakResult(
    settings=Settings(calls=96),
    model={"t3_layers": 3, "dtype": "float32", "device": "cpu"},
    machine={"cpu": "some", "torch_threads": 2, "versions": {"torch": "2.6.0", "chatterbox-tts": "0.1.7"}},
    seconds=[5.0, 2.0, 2.1, 2.0, 2.05, 2.0, 2.05, 2.0, 2.1, 2.0, 2.05, 2.1],
    held=[1000 * MIB + i * MIB for i in range(10)],
    hooks=(3, 3),
    graphs=0,
    drifted=0,
    report=reported(),
)


def test_steady() -> None:
    assert GOOD.passed
    assert GOOD.pace.verdict == "no difference"
    assert "nothing grew or drifted" in str(GOOD)


@pytest.mark.parametrize(
    "change",
    [
        {"held": [1000 * MIB + 20 * i * MIB for i in range(10)]},
        {"hooks": (3, 6)},
        {"graphs": 1},
        {"drifted": 1},
        {"report": reported(EVENT)},
        {"report": reported(ran="eager")},
        {"report": reported(ran="stock", calls=0)},
    ],
)
def test_what_grows_or_drifts_is_noticed(change: dict[str, Any]) -> None:
    assert not dataclasses.replace(GOOD, **change).passed


def test_three_rounds_show_growth_after_the_first() -> None:
    result = dataclasses.replace(GOOD, seconds=[9.0, 2.0, 2.0], held=[0, MIB, 99 * MIB])
    assert result.growth == 98 * MIB
    assert not result.passed
    assert result.pace == Ratio(1.0, None)


def test_there_are_whole_rounds_and_three_or_more() -> None:
    assert [Settings(calls=calls).rounds for calls in (13, 36, 37, 500)] == [3, 3, 4, 42]


def test_growing_slower_is_shown() -> None:
    slower = dataclasses.replace(GOOD, seconds=[5.0, 2.0, 2.1, 2.0, 2.05, 2.1, 2.6, 2.7, 2.6, 2.65, 2.6, 2.7])
    assert slower.pace.verdict == "loss"
    assert "loss" in str(slower)
