"""The benchmark of many chunks: its arithmetic, and a small one whose failures are seen."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tts_compile as tc
from tts_compile.bench import batch, models
from tts_compile.cli import main as cli
from tts_compile.components.t3.scheduler import Scheduler

SETTINGS = batch.Settings(repeats=1, chunks=3, chars=(5, 30), sizes=(1, 2))
SHORT = batch.Settings(repeats=1, chunks=2, chars=(5, 9), sizes=(), stock=False)


def side(total: float, t3: float, tokens: list[list[int]]) -> batch.Side:
    return batch.Side([total], [t3], tokens)


@pytest.fixture
def small(tts: Any, built: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads one model for every source; its synthesis is silence whose length follows from the number of tokens."""

    def inference(self: Any, speech_tokens: Tensor, ref_dict: Any) -> tuple[Tensor, None]:
        return torch.ones(1, 1000 + 10 * len(speech_tokens)), None

    monkeypatch.setattr(type(tts.s3gen), "inference", inference)
    monkeypatch.setattr(models, "load", lambda source, device: tts)
    policy = tc.ComponentPolicy(execution="inductor", backend="eager")
    config = tc.CompileConfig.off().replace(t3=policy, warmup_samples=0)
    monkeypatch.setattr(tc.CompileConfig, "from_env", classmethod(lambda cls: config))
    return tts


def test_texts_lie_between_the_lengths() -> None:
    settings = batch.Settings(chunks=8)
    assert [len(text) for text in settings.texts][::7] == [60, 120]
    assert len(set(settings.texts)) == 8
    assert [len(text) for text in batch.Settings(chunks=1).texts] == [60]
    assert {len(text) for text in batch.Settings(chunks=5, chars=(400, 400)).texts} == {400}


def test_a_small_one_passes_and_says_what_it_measured(small: Any) -> None:
    result = batch.run("anywhere", SETTINGS)
    assert result.passed, str(result)
    assert result.identical == {"stock": 3, "row": 3, "1 at a time": 3, "2 at a time": 3}
    for name in batch.SIDES:
        assert 0 < result.sides[name].t3[0] < result.sides[name].total[0]
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["passed"] is True
    assert plain["bit_identical"] is True
    assert result.sides["batch"].rates[0] == pytest.approx(
        sum(map(len, result.sides["stock"].tokens)) / result.sides["batch"].t3[0]
    )
    assert "inference" not in vars(small.s3gen)
    assert "inference" not in vars(small.t3)


def test_without_stock(small: Any) -> None:
    result = batch.run("anywhere", SHORT)
    assert result.passed
    assert list(result.identical) == ["row"]
    assert "stock" not in str(result).replace("as stock", "")


def other_tokens(self: Scheduler, advance: Callable[[Scheduler], Any]) -> Any:
    ended = advance(self)
    for _, utterance in ended:
        utterance.tokens[0] += 1
    return ended


def test_other_tokens_are_a_failure(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Scheduler.advance
    monkeypatch.setattr(Scheduler, "advance", lambda self: other_tokens(self, advance))
    result = batch.run("anywhere", SHORT)
    assert result.identical["row"] == 0
    assert not result.passed
    assert "NO" in str(result)


def test_nothing_compiled_is_a_failure(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tc.CompileConfig, "from_env", classmethod(lambda cls: tc.CompileConfig.off()))
    result = batch.run("anywhere", SHORT)
    assert not result.passed
    assert "FAILED: nothing ran compiled: every policy is 'stock'" in str(result)


def test_a_later_graph_is_a_failure(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter(range(10**6))
    monkeypatch.setattr(models._compat, "graph_counts", lambda: (next(counts), 0))
    assert not batch.run("anywhere", SHORT).passed


def test_gains_are_ratios_of_medians() -> None:
    tokens = [[1] * 50, [1] * 70]
    result = batch.BatchResult(
        settings=SETTINGS,
        sides={"stock": side(90, 60, tokens), "row": side(40, 20, tokens), "batch": side(30, 8, tokens)},
        by_size={},
        audio_seconds=5.0,
        reference_seconds=10.0,
        signal_to_error_db=70.0,
        later_graphs=0,
    )
    assert (result.gain("stock").value, result.gain("row", "t3").value) == (3.0, 2.5)
    assert result.sides["batch"].rates == [15.0]
    assert result.gain("row").verdict == "unknown"


def test_on_the_command_line(small: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "batch", "--model", "anywhere", "--repeats", "1", "--chunks", "2", "--chars", "9", "4"]
    assert cli.main([*arguments, "--sizes", "2", "--no-stock", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["sizes"] == [2]
    assert found["settings"]["chars"] == [9, 4]
    assert "texts of 4 to 9 characters" in str(batch.run("anywhere", dataclasses.replace(SHORT, chars=(9, 4))))
