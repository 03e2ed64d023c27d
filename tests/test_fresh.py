"""The benchmarks that measure in fresh processes, and how they combine the figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tts_compile as tc
from tts_compile.bench import processes, startup
from tts_compile.bench.processes import Wanted
from tts_compile.bench.startup import LoadResult, LoadSettings, StartupResult, StartupSettings
from tts_compile.measuring import proof

GIB = 2**30
EVENT = {"phase": "call", "error": "no memory", "action": "stock"}


def test_the_last_line_is_what_was_found_and_imports_are_timed() -> None:
    imports = "import os; assert os.environ['GIVEN'] == 'a value'; time.sleep(0.2); print('chatter')"
    done = processes.in_fresh_process("this", json.loads, '{"a": 1}', imports=imports, environment={"GIVEN": "a value"})
    assert done["a"] == 1
    assert 0.1 < done["imports"] < 10


def test_a_process_that_fails_is_a_clear_error() -> None:
    imports = "print('x\\n' * 10**5, file=sys.stderr); raise ValueError('no checkpoint folder')"
    with pytest.raises(tc.TTSCompileError, match=r"^the stock side failed: ValueError: no checkpoint folder$"):
        processes.in_fresh_process("the stock side", json.loads, "{}", imports=imports)


def test_a_side_loads_speaks_and_reports(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("chatterbox")
    monkeypatch.setattr(processes, "reset_peak", lambda: True)
    monkeypatch.setattr(tc.CompileConfig, "from_env", classmethod(lambda cls: tc.CompileConfig.off()))
    wanted = Wanted("cpu", str(tmp_path), calls=2, text="A.", seed=0, dtype="bf16")
    found = json.loads(json.dumps(processes.load_and_call(str(checkpoint), "compiled", wanted), allow_nan=False))
    assert found["peaks"]["call"] == found["peaks"]["process"] >= found["peaks"]["loading"]
    assert len(found["calls"]) == 2
    assert min(found["load"], found["compile"], *found["calls"]) > 0
    assert found["graphs"].keys() == {"hit", "miss", "bypass"}
    assert found["report"]["components"]["t3"]["ran"] == "stock"  # as configured


def pretended(side: str, cold: bool, failed: bool = False, calls: int = 1, missed: int = 0) -> dict[str, Any]:
    """Returns figures of a process; the compiled side imports and calls faster, and loads slower."""
    seconds = {"imports": 4.0, "load": 8.0}
    first, steady = 2.0, 2.0
    if side == "compiled":
        seconds = {"imports": 2.0, "load": 10.0, "compile": 1.0}
        first, steady = 100.0 if cold else 1.0, 0.5
    peaks = {"process": (4 if side == "stock" else 2) * GIB, "loading": GIB, "call": 3 * GIB, "how": "guessed"}
    row = {"asked": "auto", "calls": 7, "compiled_calls": 7, "ran": "inductor"}
    rows = {name: {**row, "fallbacks": [EVENT] * (failed and name == "t3")} for name in proof.SPEAKING}
    graphs = {"hit": 0 if cold else 9, "miss": 9 if cold else missed, "bypass": 2}
    report = {"components": rows} if side == "compiled" else None
    return {**seconds, "peaks": peaks, "calls": [first, *[steady] * (calls - 1)], "graphs": graphs, "report": report}


def measured(monkeypatch: pytest.MonkeyPatch, failed: int | None = None) -> LoadResult:
    """Runs the loading benchmark on made-up figures, with a failure in the process of that number, if any."""
    asked: list[str] = []

    def measure(source: str, side: str, wanted: Wanted) -> dict[str, Any]:
        asked.append(side)
        return pretended(side, len(asked) <= 2, len(asked) == failed)

    monkeypatch.setattr(processes, "measure", measure)
    result = startup.run_load("anywhere", LoadSettings(repeats=5))
    assert asked == ["stock", "compiled", "compiled", "stock"] * 3
    return result


def test_stages_are_between_their_marks_and_the_first_process_is_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    result = measured(monkeypatch)
    assert result.sides["stock"]["ready"] == [12.0] * 5
    assert result.sides["compiled"]["ready"] == [13.0] * 5
    assert [side["answered"][0] for side in result.sides.values()] == [14.0, 14.0]
    assert result.sides["compiled"]["cold"]["call"] == 100.0
    verdicts = {name: gain.verdict for name, gain in result.gains.items()}
    assert verdicts == {
        "imports": "gain",
        "load": "loss",
        "ready": "loss",
        "call": "gain",
        "answered": "no difference",
        "load_memory": "no difference",
        "call_memory": "no difference",
        "memory": "gain",
    }
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["compiled"]["memory"] == [2 * GIB] * 5
    assert plain["compiled"]["load_memory"] == [GIB] * 5
    assert plain["passed"] is True
    text = str(result)
    assert any("peak memory, GiB" in line and "2.00x (2.00 to 2.00): gain" in line for line in text.splitlines())
    assert "first call of the side's first process, stock's before compiled, s | 2 " in text
    assert "compile_model, s " in text


@pytest.mark.parametrize("failed", [2, 6, 11])
def test_a_failure_of_any_compiled_process_is_one(monkeypatch: pytest.MonkeyPatch, failed: int) -> None:
    result = measured(monkeypatch, failed)
    assert not result.passed
    assert result.shortfalls == ["t3: call failed: no memory; stock"]
    assert "the outputs of the sides are not compared here: NO" in str(result)
    assert "FAILED: t3: call failed: no memory; stock" in str(result)
    assert "what stock does" not in result.promise


def started(monkeypatch: pytest.MonkeyPatch, **last: Any) -> StartupResult:
    """Runs the startup benchmark on made-up figures; ``last`` changes those of the last warm process."""
    asked: list[tuple[str, str]] = []

    def measure(source: str, side: str, wanted: Wanted) -> dict[str, Any]:
        asked.append((side, str(wanted.cache_dir)))
        cold = [folder for _, folder in asked].count(str(wanted.cache_dir)) == 1
        options = last if side == "compiled" and not cold and len(asked) > 12 else {}
        return pretended(side, cold, calls=wanted.calls, **options)

    monkeypatch.setattr(processes, "measure", measure)
    result = startup.run_startup("anywhere", StartupSettings(repeats=5, calls=2))
    assert [side for side, _ in asked] == ["compiled"] + ["stock", *["compiled"] * 4, "stock"] * 2 + [
        "stock",
        *["compiled"] * 2,
    ]
    assert not any(Path(folder).exists() for _, folder in asked)
    return result


def test_the_first_call_with_an_empty_cache_and_with_a_full_one(monkeypatch: pytest.MonkeyPatch) -> None:
    result = started(monkeypatch)
    assert {name: side["extra"] for name, side in result.sides.items()} == {
        "stock": [0.0] * 5,
        "cold": [99.5] * 5,
        "warm": [0.5] * 5,
    }
    assert result.share.value == pytest.approx(0.5 / 99.5)
    assert result.beyond_stock.value == 2 + 10 + 1 + 1 - (4 + 8 + 2)
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["passed"] is True
    assert plain["sides"]["cold"]["steady"] == [0.5] * 5
    text = str(result)
    assert "0.00503 (0.00503 to 0.00503) of it with a full cache" in text
    assert "graphs not found" in text


@pytest.mark.parametrize("last", [{"failed": True}, {"missed": 1}])
def test_a_full_cache_that_is_not_used_is_a_failure(monkeypatch: pytest.MonkeyPatch, last: dict[str, Any]) -> None:
    result = started(monkeypatch, **last)
    assert not result.passed
    assert "found in a full cache: NO" in str(result)


@pytest.mark.parametrize("call", [True, False])
def test_processes_that_ran_stock_are_a_failure(monkeypatch: pytest.MonkeyPatch, call: bool) -> None:
    def measure(source: str, side: str, wanted: Wanted) -> dict[str, Any]:
        child = pretended(side, cold=False)
        if side == "compiled":
            for row in child["report"]["components"].values():
                row.update(ran="stock", calls=0, **({} if call else {"asked": "stock"}))
        return child

    monkeypatch.setattr(processes, "measure", measure)
    result = startup.run_load("anywhere", LoadSettings(repeats=5, call=call))
    assert not result.passed
    assert ("t3 did not run" if call else "nothing ran compiled") in str(result)
