"""Whole texts, voices one after the other, and the report: arithmetic on planted figures, and what is called."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tts_compile.bench.report import parts, reference, tables
from tts_compile.bench.report.chunks import CHUNKS
from tts_compile.bench.section import Section
from tts_compile.bench.texts import Spoken, TextsResult

import tts_compile as tc
from tts_compile.bench import encoding, loading, report, soak, texts
from tts_compile.bench.stages import STAGES

pytest.importorskip("chatterbox")

MACHINE = {
    "cpu": "some",
    "torch_threads": 2,
    "memory_gib": 4.0,
    "gpus": [],
    "versions": {"torch": "2.6.0", "chatterbox-tts": "0.1.7"},
}
MODEL = {"dtype": "float32", "device": "cpu", "t3_layers": 3, "t3_parameters": 10**8, "s3gen_parameters": 10**8}
COUNTS = dict.fromkeys(("graphs", "graph_breaks", "recompiles_after_warmup"), 0)
ROW = {"asked": "auto", "ran": "inductor", "calls": 7, "compiled_calls": 6, "fallbacks": [], "note": "", **COUNTS}
REPORT = {"components": dict.fromkeys(tc.config.COMPONENTS, ROW)}


class Silent:
    """A progress that nobody sees."""

    step: Any = staticmethod(contextlib.nullcontext)


SILENT: Any = Silent()


def spoken(seconds: float, audio_seconds: float = 2.0) -> Spoken:
    stages = {stage: [seconds / len(STAGES)] * 5 for stage in STAGES}
    return Spoken([seconds] * 5, stages, audio_seconds, identical=4)


def planted(**changes: Any) -> TextsResult:
    """Three texts of 6 s of speech: 60 s with stock, 30 compiled, 15 as a batch."""
    result = TextsResult(
        settings=texts.Settings(CHUNKS[:3], batch=True),
        model=MODEL,
        machine=MACHINE,
        config=tc.CompileConfig().to_dict(),
        stock=[spoken(10.0), spoken(20.0), spoken(30.0)],
        compiled=[spoken(5.0), spoken(10.0), spoken(15.0)],
        batch=[15.0] * 5,
        tokens_identical=3,
        generator_identical=True,
        signal_to_error_db=80.0,
        warmup_seconds=9.0,
        later_graphs=0,
        report=REPORT,
    )
    return dataclasses.replace(result, **changes)


def side(**stages: float) -> loading.Side:
    gib = [2.0**30] * 5
    return loading.Side(memory=gib, load_memory=gib, **{name: [seconds] * 5 for name, seconds in stages.items()})


def whole(**changes: Any) -> report.ReportResult:
    loaded = loading.LoadingResult(
        settings=loading.Settings(),
        machine=MACHINE,
        stock=side(imports=4.0, load=8.0, call=1.0),
        compiled=side(imports=4.0, load=8.0, compile=3.0, call=1.0),
        report=REPORT,
        events=[],
    )
    voice = encoding.EncodingResult(
        encoding.Settings(),
        stock={"new": [0.04] * 9 + [0.14], "again": [0.04] * 10},
        compiled={"new": [0.02] * 9 + [0.12], "again": [0.001] * 10},
        identical=True,
    )
    steady = soak.SoakResult(soak.Settings(calls=36), MODEL, MACHINE, [2.0] * 3, [10**9] * 3, (3, 3), 0, 0, [])
    result = report.ReportResult(report.Settings(), loaded, planted(), voice, steady, {"loading": 60.0}, REPORT)
    return dataclasses.replace(result, **changes)


def test_real_time_factors_are_work_for_a_second_of_speech() -> None:
    result = planted()
    assert result.factors("stock") == [10.0] * 5
    assert result.factors("batch") == [2.5] * 5
    assert result.stock[2].factors == [15.0] * 5
    assert result.stages("compiled")["flow"] == [6.0] * 5
    gains = {name: gain.value for name, gain in result.gains.items()}
    assert gains == {
        **{f"text {n}, {len(text)} characters": 2.0 for n, text in enumerate(CHUNKS[:3], 1)},
        "all texts": 2.0,
        "all texts as a batch": 4.0,
    }
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["real_time_factors"]["batch"] == {"value": 2.5, "interval": [2.5, 2.5]}
    assert "2.00x (2.00 to 2.00): gain" in str(result)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens_identical": 2},
        {"generator_identical": False},
        {"signal_to_error_db": 59.0},
        {"signal_to_error_db": None},
        {"later_graphs": 1},
        {"compiled": [dataclasses.replace(spoken(1.0), identical=3), spoken(1.0), spoken(1.0)]},
    ],
)
def test_what_is_not_stocks_or_not_repeated_is_a_failure(change: dict[str, Any]) -> None:
    assert planted().passed
    result = planted(**change)
    assert not result.passed
    assert "NO" in result.proof
    assert not whole(texts=result).passed


def test_texts_have_the_length_asked_for() -> None:
    assert [len(text) for text in texts.of_lengths([5, 90, 1000])] == [5, 90, 1000]


def test_small_texts_are_heard_stage_by_stage(eager: tc.CompiledTTS) -> None:
    settings = texts.Settings(("A.",), repeats=2)
    with eager:
        result = texts.measure(eager, settings, SILENT)
    assert result.passed, str(result)
    for text in (*result.stock, *result.compiled):
        assert min(min(text.stages[stage]) for stage in STAGES[:-1]) > 0
        assert sum(text.stages[stage][0] for stage in STAGES) == pytest.approx(text.seconds[0])
        assert text.audio_seconds > 0.1
        assert text.identical == 1  # the second call repeats the first one's wave
    assert result.report["components"]["flow"]["ran"] == "eager"
    assert "inference" not in vars(eager.wrapped.t3)


@pytest.fixture
def babbling(tts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random tokens, and noise that is as long as they are many."""
    monkeypatch.setattr(type(tts.t3), "inference", lambda self, **_: torch.randint(6561, (1, 12)))

    def inference(self: Any, speech_tokens: Any, ref_dict: Any) -> Any:
        return torch.rand(1, 960 * len(speech_tokens)), None

    monkeypatch.setattr(type(tts.s3gen), "inference", inference)
    monkeypatch.setattr(type(tts.watermarker), "apply_watermark", lambda self, wave, sample_rate: wave)


def test_texts_and_the_batch_of_them_are_compared(tts: Any, babbling: None) -> None:
    settings = texts.Settings(("A.", "A b."), repeats=2, batch=True)
    with tc.compile_model(tts, tc.CompileConfig.off()) as fast:
        result = texts.measure(fast, settings, SILENT)
        assert result.passed, str(result)
        assert (result.tokens_identical, result.signal_to_error_db, len(result.batch)) == (2, torch.inf, 2)
        assert result.audio_seconds == pytest.approx(2 * 12 * 960 / tts.sr)
        json.dumps(result.to_dict(), allow_nan=False)

        def other(*args: Any) -> list[Any]:
            return [torch.rand(1, 12 * 960) for _ in settings.texts]

        fast.__dict__["generate_batch"] = other
        assert not texts.measure(fast, settings, SILENT).passed


def test_a_compiled_side_that_speaks_other_tokens_is_noticed(
    tts: Any, babbling: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = texts._compiled

    def other(fast: tc.CompiledTTS, text: str) -> Any:
        torch.rand(1)
        return compiled(fast, text)

    monkeypatch.setattr(texts, "_compiled", other)
    with tc.compile_model(tts, tc.CompileConfig.off()) as fast:
        result = texts.measure(fast, texts.Settings(("A.",), repeats=2), SILENT)
    assert (result.tokens_identical, result.generator_identical, result.passed) == (0, False, False)


@pytest.fixture
def voices(tts: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Voices are made of the file's name, at once; the names are kept."""
    heard: list[str] = []

    class Voice:
        def __init__(self, name: str) -> None:
            self.t3 = Voice.__new__(Voice)
            self.gen = {"number": torch.tensor([hash(name)])}

    def prepare(self: Any, path: str) -> None:
        heard.append(Path(path).name)
        self.conds = Voice(heard[-1])

    monkeypatch.setattr(type(tts), "prepare_conditionals", prepare)
    return heard


def test_new_recordings_come_once_and_one_comes_again(tts: Any, voices: list[str], tmp_path: Path) -> None:
    before = tts.conds
    with tc.compile_model(tts, tc.CompileConfig.off()) as fast:
        result = encoding.measure(fast, encoding.Settings(runs=3, seconds=0.2), tmp_path, SILENT)
    assert tts.conds is before
    assert result.identical
    assert [len(values) for values in (*result.stock.values(), *result.compiled.values())] == [3] * 4
    counts = sorted(voices.count(name) for name in {*voices})
    assert counts == [2, 2, 2, 2, 8]  # three new ones and a spare by both sides; one by both, four times
    assert json.loads(json.dumps(result.to_dict()))["gains"]["new"]["verdict"] == "unknown"


def test_another_voice_is_noticed(tts: Any, voices: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = encoding._stock

    def other(fast: tc.CompiledTTS, files: Any) -> Any:
        found = stock(fast, files)
        found.gen = {"number": torch.tensor([-1])}
        return found

    monkeypatch.setattr(encoding, "_stock", other)
    with tc.compile_model(tts, tc.CompileConfig.off()) as fast:
        result = encoding.measure(fast, encoding.Settings(runs=1, seconds=0.2), tmp_path, SILENT)
    assert not result.identical
    assert not whole(voice=result).passed


def test_chunks_are_like_the_reference_reports() -> None:
    lengths = sorted(map(len, CHUNKS))
    assert (lengths[0], lengths[-1], sum(lengths) / len(CHUNKS)) == (90, 174, 137)
    assert sum(map(len, CHUNKS[: reference.MEASURED])) == 368


def test_the_projection_follows_from_real_time_factors() -> None:
    result = whole()
    assert result.passed
    assert result.hours("stock") == [70.0] * 5
    assert (result.saved_hours("compiled").value, result.saved_hours("batch").value) == (35.0, 52.5)
    assert (result.instead_of("compiled").value, result.instead_of("compiled").interval) == (3.5, (3.5, 3.5))
    assert result.saved_loading.value == -3.0
    assert result.milliseconds("stock") == [20_000.0] * 5
    assert result.rate("compiled", "characters") == [368 / 30] * 5
    assert result.gains["ready to be called"].verdict == "loss"


def test_the_projection_carries_the_interval() -> None:
    noisy = [dataclasses.replace(spoken(0.0), seconds=[9.0, 10.0, 11.0, 12.0, 13.0]) for _ in range(3)]
    result = whole(texts=planted(compiled=noisy))
    assert result.saved_hours("compiled").interval == (70 - 7 * 6.5, 70 - 7 * 4.5)
    assert result.instead_of("compiled").interval == pytest.approx((7 * 27 / 60, 7 * 39 / 60))


def test_every_table_of_the_reference_report_is_there_with_its_figures_apart() -> None:
    sections = whole().sections()
    by_heading = {section.heading: section for section in sections}
    assert list(by_heading) == [
        *("Results", "Model loading", "Text generation", "Voice encoding", "Chunk sizes"),
        *("Projection for an audiobook of 7 hours", "Memory", "Settings", "Components compiled", "Stability"),
        *("Test parameters", "Raw data"),
    ]
    given = {name: figures for name, figures in vars(reference).items() if name.isupper() and isinstance(figures, dict)}
    for name, figures in given.items():
        shown = [cell for section in sections for row in section.rows for cell in _last(section, row)]
        assert {*figures.values()} <= {*shown}, name
    for section in sections:
        width = len(section.rows[0])
        assert all(len(row) == width for row in section.rows), section.heading
        for row in section.rows[1:]:
            assert not {*map(str, row[:-1])} & {*reference.LOADING.values(), *reference.VOICE.values()}
    assert "6 of 7 compiled" in str(by_heading["Text generation"].notes)
    for heading, rows in (("Memory", -1), ("Model loading", -2)):
        assert by_heading[heading].rows[rows][0] == "peak memory, GiB"
        assert "of the GPU" in str(by_heading[heading].rows[rows][-1])


def _last(section: Section, row: Any) -> list[str]:
    return [str(row[-1])] if section.rows[0][-1] == reference.TITLE else []


def test_voices_have_average_least_and_most() -> None:
    rows = {row[0]: row[1:] for row in tables._voice(whole()).rows}
    assert rows["a new recording each time: average, ms"] == ("50", "30", "", reference.VOICE["average"])
    assert rows["a new recording each time: most, ms"][:2] == ("140", "120")
    assert rows["the same recording again: least, ms"][:2] == ("40", "1")


def test_the_report_is_json_and_says_what_failed() -> None:
    result = whole()
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["projection"]["saved_hours"]["batch"]["value"] == 52.5
    assert plain["buckets"]["counts"] == {"short": 6, "medium": 0, "long": 0}
    assert "NO" not in str(result)
    steady = result.soak
    assert steady is not None
    assert not whole(soak=dataclasses.replace(steady, drifted=1)).passed
    events = {"components": {**REPORT["components"], "t3": {**ROW, "fallbacks": [{"phase": "call"}]}}}
    assert "| NO" in str(whole(report=events))


def test_stability_says_what_too_few_rounds_cannot() -> None:
    result = whole()
    assert result.soak is not None
    one, two = (
        {row[0]: row[1] for row in tables._stability(whole(soak=dataclasses.replace(result.soak, **cut))).rows}
        for cut in ({"seconds": [2.0], "held": [10**9]}, {"seconds": [2.0] * 2, "held": [10**9] * 2})
    )
    unseen = "too few rounds"
    assert (one["memory gained in them, MiB"], one["graphs after the first round of them"]) == (unseen, unseen)
    assert (two["memory gained in them, MiB"], two["graphs after the first round of them"]) == (unseen, "0")


def test_without_its_dear_parts() -> None:
    result = whole(texts=planted(batch=[]), soak=None)
    assert result.passed
    assert "batch" not in json.dumps(result.to_dict()["projection"])
    assert len(result.plots()) == 4


def test_parts_run_in_order_with_the_settings(tts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    made = whole()

    def part(name: str) -> Any:
        def measure(first: Any, settings: Any, *rest: Any) -> Any:
            asked.append((type(first).__name__, settings))
            return getattr(made, name)

        return measure

    monkeypatch.setattr(parts, "load", lambda source, device: tts)
    monkeypatch.setattr(tc.CompileConfig, "from_env", classmethod(lambda cls: tc.CompileConfig.off()))
    modules = {"loading": loading, "texts": texts, "voice": encoding, "soak": soak}
    for name, module in modules.items():
        monkeypatch.setattr(module, "measure", part(name))
    settings = report.Settings(repeats=6, texts=4, voice_runs=2, batch=False, first_call=False, soak_calls=13, seed=3)
    result = report.run("anywhere", settings)
    assert asked == [
        ("str", loading.Settings("cpu", 6, None, 3)),
        ("CompiledTTS", texts.Settings(CHUNKS[:4], "cpu", 6, 3, batch=False)),
        ("CompiledTTS", encoding.Settings("cpu", 2, 10.0)),
        ("CompiledTTS", soak.Settings("cpu", 13, 3)),
    ]
    assert list(result.spent) == ["loading", "text generation, its warm-up included", "voice encoding", "stability"]
    asked.clear()
    assert report.run("anywhere", dataclasses.replace(settings, soak_calls=0)).soak is None
    assert len(asked) == 3


def test_a_single_round_would_be_compared_with_nothing() -> None:
    with pytest.raises(tc.InputError, match="0 or more than 12"):
        report.run("anywhere", report.Settings(soak_calls=12))


@pytest.mark.parametrize("count", [2, 7])
def test_too_few_or_too_many_texts_are_refused(count: int) -> None:
    with pytest.raises(tc.InputError, match="from 3 to 6"):
        report.run("anywhere", report.Settings(texts=count))
