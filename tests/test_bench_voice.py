"""The voice's benchmark: what a process of it prints, and what is made of that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tts_compile as tc
from tts_compile.bench import voice
from tts_compile.bench.result import SIDES

pytest.importorskip("chatterbox")


EVENT = {"phase": "call", "error": "no memory", "action": "stock"}
ROW = {"asked": "auto", "ran": "eager", "calls": 3, "compiled_calls": 0, "fallbacks": []}
REPORT = {"components": {"voice_encoder": ROW, "reference": ROW}}


def child(seconds: float, tensors: str = "same") -> dict[str, Any]:
    model = {"dtype": "float32", "device": "cpu"}
    return {
        **dict.fromkeys(("first", "later", "repeated"), seconds),
        "digests": [tensors],
        "model": model,
        "report": REPORT,
    }


def measured(monkeypatch: pytest.MonkeyPatch, other: str = "same") -> voice.VoiceResult:
    seen: list[tuple[str, Path]] = []

    def run(source: str, side: str, device: str, files: Any, numba_caches: Iterator[Path]) -> dict[str, Any]:
        assert [Path(path).is_file() for path in files] == [True, True]
        seen.append((side, next(numba_caches)))
        return child(2.0) if side == "stock" else child(1.0, other if len(seen) > 10 else "same")

    monkeypatch.setattr(voice, "_in_process", run)
    result = voice.run("anywhere", voice.Settings(repeats=5, seconds=1))
    sides = [side for side, _ in seen]
    assert sides == ["stock", "compiled", "compiled", "stock"] * 3 + ["stock", "compiled"]
    caches = [cache.name for _, cache in seen]
    assert caches == ["cold-stock", "cold-compiled", *["cold-stock"] * 12]
    return result


def test_sides_alternate_and_gains_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    result = measured(monkeypatch)
    assert result.passed
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["gains"]["first"] == {"value": 2.0, "interval": [2.0, 2.0], "verdict": "gain"}
    assert plain["gains"]["first_cold"]["verdict"] == "unknown"
    assert [len(plain["stock"][phase]) for phase in voice.VoiceResult.titles] == [1, 5, 5, 5]
    assert "first call of a process, s" in str(result)


def test_one_different_tensor_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    result = measured(monkeypatch, other="different")
    assert not result.passed
    assert "NO" in str(result)


@pytest.mark.parametrize("change", [{"calls": 0, "ran": "stock"}, {"fallbacks": [EVENT]}])
def test_a_component_that_did_not_run_is_a_failure(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    monkeypatch.setitem(REPORT["components"], "reference", {**ROW, **change})
    result = measured(monkeypatch)
    assert result.identical
    assert not result.passed
    assert "FAILED: reference" in str(result)


def test_both_sides_make_the_same_tensors(checkpoint: Path, tmp_path: Path) -> None:
    files = [str(tc.testing.make_reference_wav(tmp_path / f"{i}.wav", seconds=1 - i / 10)) for i in range(2)]
    stock, compiled = found = [voice.prepare_three(str(checkpoint), side, "cpu", files) for side in SIDES]
    assert json.loads(json.dumps(found, allow_nan=False))
    assert stock["digests"] == compiled["digests"]
    assert stock["digests"][0] != stock["digests"][1] == stock["digests"][2]
    assert [side["report"]["components"]["reference"]["calls"] for side in found] == [0, 3]
