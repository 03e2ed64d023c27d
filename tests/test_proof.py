"""The judgement of an execution report: what counts as having run compiled."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import tts_compile as tc
from tts_compile.bench import models
from tts_compile.cli import demo
from tts_compile.cli import main as cli
from tts_compile.measuring.proof import ALL, COMPILED, SPEAKING, shortfalls

EVENT = {"phase": "memory", "error": "too little", "action": "eager"}
STOCK = {"ran": "stock", "calls": 0, "note": "it has not been reached yet"}


def report(changes: dict[str, dict[str, Any]] | None = None, **every: Any) -> dict[str, Any]:
    """Returns a report in which everything ran as it should, with changes to all components and to some."""
    rows = {
        name: {
            "asked": "auto",
            "ran": "inductor" if name in COMPILED else "eager",
            "calls": 7,
            "compiled_calls": 7,
            "fallbacks": [],
        }
        for name in tc.config.COMPONENTS
    }
    return {"components": {name: {**row, **every, **(changes or {}).get(name, {})} for name, row in rows.items()}}


def test_everything_that_ran_as_asked_is_no_shortfall() -> None:
    assert set(ALL) == set(tc.config.COMPONENTS)
    assert shortfalls(report(), ALL) == []
    assert shortfalls(report({"t3": {"ran": "cuda_graph"}}), ALL) == []
    assert shortfalls(report({"t3": {"asked": "eager", "ran": "eager"}}), ALL) == []


@pytest.mark.parametrize("name", ["t3", "flow", "vocoder"])
@pytest.mark.parametrize("asked", ["auto", "inductor", "cuda_graph"])
@pytest.mark.parametrize("ran", ["eager", "stock"])
def test_a_component_that_can_be_compiled_must_be(name: str, asked: str, ran: str) -> None:
    found = shortfalls(report({name: {"asked": asked, "ran": ran, "note": "no compiler"}}), ALL)
    assert found == [f"{name} did not run compiled: it ran {ran} (no compiler)"]


@pytest.mark.parametrize("name", ["voice_encoder", "reference", "watermark"])
def test_a_component_with_nothing_to_compile_must_be_eager(name: str) -> None:
    assert len(shortfalls(report({name: {"ran": "stock"}}), ALL)) == 1


def test_only_components_that_must_be_called_need_calls() -> None:
    plain = report({"reference": STOCK, "voice_encoder": STOCK})
    assert shortfalls(plain, SPEAKING) == []
    assert [line.split()[0] for line in shortfalls(plain, ALL)] == ["voice_encoder", "reference"]
    assert shortfalls(report({"t3": STOCK}), SPEAKING) == ["t3 did not run (it has not been reached yet)"]


def test_a_component_may_be_stock_by_its_policy_but_not_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"asked": "stock", **STOCK}
    assert shortfalls(report(dict.fromkeys(ALL[1:], asked)), ALL) == []
    assert shortfalls(report(**asked), ()) == ["nothing ran compiled: every policy is 'stock'"]
    monkeypatch.setenv("TTS_COMPILE", "0")
    assert shortfalls(report(**asked), ()) == ["nothing ran compiled: TTS_COMPILE switches the library off"]


def test_every_fallback_is_a_shortfall() -> None:
    found = shortfalls(report({"flow": {"fallbacks": [EVENT, EVENT]}}), ALL)
    assert found == ["flow: memory failed: too little; eager"] * 2


def test_the_demo_passes_only_where_everything_ran_compiled() -> None:
    spoken = {"tokens": 5, "seconds": 2.0, "tokens_per_second": 5.0, "real_time_factor": 0.5}
    result = demo.DemoResult(
        settings=demo.Settings(),
        sides={"stock": spoken, "compiled": spoken},
        tokens_identical=True,
        signal_to_error_db=90.0,
        warmup_seconds=1.0,
        report=report({"reference": STOCK, "voice_encoder": STOCK}),
        files=("a", "b"),
    )
    assert result.passed
    failed = dataclasses.replace(result, report=report({"vocoder": {"ran": "eager"}}))
    assert not failed.passed
    assert "FAILED: vocoder did not run compiled: it ran eager" in str(failed)
    assert failed.to_dict()["shortfalls"] == ["vocoder did not run compiled: it ran eager"]
    assert not dataclasses.replace(result, tokens_identical=False).passed


@pytest.fixture
def babbling(tts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads one model for every source, whose speech tokens and waves are constant, so that no work is done."""
    monkeypatch.setattr(type(tts.t3), "inference", lambda self, **_: torch.arange(12)[None])
    monkeypatch.setattr(type(tts.s3gen), "inference", lambda self, speech_tokens, ref_dict: (torch.ones(1, 480), None))
    monkeypatch.setattr(type(tts.watermarker), "apply_watermark", lambda self, wave, sample_rate: wave)
    monkeypatch.setattr(type(tts), "prepare_conditionals", lambda self, *_, **__: None)
    for module in (cli, demo, models):
        monkeypatch.setattr(module, "load", lambda source, device: tts)
    monkeypatch.setattr(cli, "load_quickly", lambda source, device: tts)


@pytest.mark.parametrize(
    "command",
    [
        ["demo", "--text", "A."],
        ["bench", "e2e", "--text", "A.", "--repeats", "1"],
        ["validate", "--text", "A.", "--no-words"],
        ["warmup", "--text", "A."],
    ],
    ids=lambda words: words[0],
)
def test_commands_fail_where_the_library_is_switched_off(
    command: list[str],
    checkpoint: Any,
    tmp_path: Any,
    tts: Any,
    babbling: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.setenv("TTS_COMPILE", "0")
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command, "--model", str(checkpoint)]) == 1
    assert "tts-compile: nothing ran compiled: TTS_COMPILE switches the library off" in capsys.readouterr().err
