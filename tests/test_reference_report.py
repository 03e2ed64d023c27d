"""The benchmark of whole texts, and the reference report made of it: arithmetic on made-up figures, and the calls."""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tts_compile as tc
from tts_compile.bench import models, soak, startup, synthesis, voice
from tts_compile.bench.result import Section
from tts_compile.bench.stages import STAGES
from tts_compile.bench.synthesis import SpeechResult, Spoken

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "reference_report"))

import measure
import reference
import result as report
import tables
from chunks import CHUNKS

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


def silent(name: str) -> None:
    """A step that shows nothing."""


def spoken(seconds: float, audio_seconds: float = 2.0) -> Spoken:
    stages = {stage: [seconds / len(STAGES)] * 5 for stage in STAGES}
    return Spoken([seconds] * 5, audio_seconds, identical=4, stages=stages)


def planted(**changes: Any) -> SpeechResult:
    """Returns three texts of 6 s of speech: 60 s with stock, 30 compiled, 15 as a batch."""
    result = SpeechResult(
        settings=synthesis.Settings(texts=CHUNKS[:3], batch=True),
        model=MODEL,
        machine=MACHINE,
        config=tc.CompileConfig().to_dict(),
        stock=[spoken(10.0), spoken(20.0), spoken(30.0)],
        compiled=[spoken(5.0), spoken(10.0), spoken(15.0)],
        batch=[15.0] * 5,
        reference_seconds=10.0,
        inputs=3,
        first_call_seconds=12.0,
        compile_seconds=7.0,
        tokens_identical=3,
        generator_identical=True,
        signal_to_error_db=80.0,
        warmup_seconds=9.0,
        later_graphs=0,
        report=REPORT,
    )
    return dataclasses.replace(result, **changes)


def side(cold: float, **stages: float) -> dict[str, Any]:
    gib = [2.0**30] * 5
    figures = {name: [seconds] * 5 for name, seconds in stages.items()}
    return {**figures, "memory": gib, "load_memory": gib, "cold": {"call": cold}}


def whole(**changes: Any) -> report.ReportResult:
    common: Any = {"machine": MACHINE, "model": MODEL, "report": REPORT}
    loaded = startup.LoadResult(
        settings=startup.LoadSettings(),
        sides={
            "stock": side(2.0, imports=4.0, load=8.0, ready=12.0, call=1.0),
            "compiled": side(9.0, imports=4.0, load=8.0, compile=3.0, ready=15.0, call=1.0),
        },
        missing=[],
        **common,
    )
    others = {"first_cold": [9.0], "first": [1.0] * 10}
    voices = voice.VoiceResult(
        settings=voice.Settings(repeats=10),
        sides={
            "stock": {**others, "later": [0.04] * 9 + [0.14], "repeated": [0.04] * 10},
            "compiled": {**others, "later": [0.02] * 9 + [0.12], "repeated": [0.001] * 10},
        },
        identical=True,
        **common,
    )
    steady = soak.SoakResult(
        settings=soak.Settings(calls=36),
        seconds=[2.0] * 3,
        held=[10**9] * 3,
        hooks=(3, 3),
        graphs=0,
        drifted=0,
        **common,
    )
    result = report.ReportResult(
        settings=measure.Settings(),
        loading=loaded,
        generation=planted(),
        voice=voices,
        soak=steady,
        spent={"loading": 60.0},
        config=tc.CompileConfig().to_dict(),
        **common,
    )
    return dataclasses.replace(result, **changes)


def test_real_time_factors_are_work_for_a_second_of_speech() -> None:
    result = planted()
    assert result.factors("stock") == [10.0] * 5
    assert result.factors("batch") == [2.5] * 5
    assert result.stock[2].factors == [15.0] * 5
    assert result.stages("compiled")["flow"] == [6.0] * 5
    gains = {name: gain.value for name, gain in result.gains.items()}
    assert gains == {
        **dict.fromkeys(("seconds", "for a second of speech, s", *STAGES[:-1]), 2.0),
        **{f"the same, text {n}, {len(text)} characters": 2.0 for n, text in enumerate(CHUNKS[:3], 1)},
        "the same, all texts as a batch": 4.0,
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
    assert not whole(generation=result).passed


def test_texts_have_the_length_asked_for() -> None:
    assert [len(text) for text in synthesis.Settings(lengths=(5, 90, 1000)).spoken] == [5, 90, 1000]


def test_small_texts_are_heard_stage_by_stage(eager: tc.CompiledTTS) -> None:
    settings = synthesis.Settings(texts=("A.",), repeats=2)
    with eager:
        result = synthesis.measure(models.Compiled(eager, 0.0, silent), settings)
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
    """Makes T3 return random tokens, and S3Gen noise whose length follows from their number."""
    monkeypatch.setattr(type(tts.t3), "inference", lambda self, **_: torch.randint(6561, (1, 12)))

    def inference(self: Any, speech_tokens: Any, ref_dict: Any) -> Any:
        return torch.rand(1, 960 * len(speech_tokens)), None

    monkeypatch.setattr(type(tts.s3gen), "inference", inference)
    monkeypatch.setattr(type(tts.watermarker), "apply_watermark", lambda self, wave, sample_rate: wave)


def test_texts_and_the_batch_of_them_are_compared(tts: Any, babbling: None) -> None:
    settings = synthesis.Settings(texts=("A.", "A b."), repeats=2, batch=True)
    with tc.compile_model(tts, tc.CompileConfig.off()) as fast:
        result = synthesis.measure(models.Compiled(fast, 0.0, silent), settings)
        assert result.kept, str(result)
        assert (result.tokens_identical, result.signal_to_error_db, len(result.batch)) == (2, torch.inf, 2)
        assert result.audio_seconds == pytest.approx(2 * 12 * 960 / tts.sr)
        json.dumps(result.to_dict(), allow_nan=False)

        def other(*args: Any) -> list[Any]:
            return [torch.rand(1, 12 * 960) for _ in settings.texts]

        fast.__dict__["generate_batch"] = other
        assert not synthesis.measure(models.Compiled(fast, 0.0, silent), settings).kept


def test_a_compiled_side_that_speaks_other_tokens_is_noticed(
    tts: Any, babbling: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = tc.CompiledTTS._checked_generate

    def other(self: tc.CompiledTTS, text: str) -> Any:
        torch.rand(1)
        return generate(self, text)

    monkeypatch.setattr(tc.CompiledTTS, "_checked_generate", other)
    with tc.compile_model(tts, tc.CompileConfig.off()) as fast:
        result = synthesis.measure(models.Compiled(fast, 0.0, silent), synthesis.Settings(texts=("A.",), repeats=2))
    assert (result.tokens_identical, result.generator_identical, result.kept) == (0, False, False)


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
    result = whole(generation=planted(compiled=noisy))
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
    spoken = [row[0] for row in by_heading["Text generation"].rows]
    assert {f"in {stage}, s" for stage in STAGES} <= {*spoken}
    for heading, rows in (("Memory", -1), ("Model loading", -3)):
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
    event = {"phase": "call", "error": "no memory", "action": "stock"}
    events = {"components": {**REPORT["components"], "t3": {**ROW, "fallbacks": [event]}}}
    failed = whole(report=events)
    assert not failed.passed
    assert "| NO" in str(failed)
    assert not whole(voice=dataclasses.replace(result.voice, identical=False)).passed


def test_without_its_dear_parts() -> None:
    result = whole(generation=planted(batch=[]), soak=None)
    assert result.passed
    assert "batch" not in json.dumps(result.to_dict()["projection"])
    assert len(result.plots()) == 4


def test_parts_run_in_order_with_the_settings(tts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    made = whole()

    def part(name: str) -> Any:
        def measured(first: Any, settings: Any, *rest: Any) -> Any:
            asked.append((type(first).__name__, settings))
            return getattr(made, name)

        return measured

    monkeypatch.setattr(measure, "load", lambda source, device: tts)
    monkeypatch.setattr(tc.CompileConfig, "from_env", classmethod(lambda cls: tc.CompileConfig.off()))
    monkeypatch.setattr(startup, "run_load", part("loading"))
    monkeypatch.setattr(synthesis, "measure", part("generation"))
    monkeypatch.setattr(voice, "run", part("voice"))
    monkeypatch.setattr(soak, "measure", part("soak"))
    settings = measure.Settings(repeats=6, texts=4, voice_runs=2, batch=False, call=False, soak_calls=13, seed=3)
    result = measure.run("anywhere", settings)
    assert asked == [
        ("str", startup.LoadSettings(repeats=6, call=False, seed=3)),
        ("str", voice.Settings(repeats=2, seed=3)),
        ("Compiled", synthesis.Settings(texts=CHUNKS[:4], repeats=6, seed=3)),
        ("CompiledTTS", soak.Settings(calls=13, seed=3)),
    ]
    assert list(result.spent) == ["loading", "voice encoding", "text generation, its warm-up included", "stability"]
    assert soak.Settings(calls=measure.Settings().soak_calls).rounds == 3
    asked.clear()
    assert measure.run("anywhere", dataclasses.replace(settings, soak_calls=0)).soak is None
    assert len(asked) == 3


@pytest.mark.parametrize("count", [2, 7])
def test_too_few_or_too_many_texts_are_refused(count: int) -> None:
    with pytest.raises(tc.InputError, match="from 3 to 6"):
        measure.run("anywhere", measure.Settings(texts=count))


def test_the_program_measures_prints_and_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    program = runpy.run_path(str(Path(measure.__file__).parent / "__main__.py"))
    given: list[Any] = []
    result = whole()

    def run(source: str, settings: Any) -> Any:
        given.append((source, settings))
        return result

    monkeypatch.setitem(program["main"].__globals__, "run", run)
    arguments = ["--model", "anywhere", "--out", str(tmp_path / "out"), "--no-batch", "--texts", "4", "--seed", "7"]
    assert program["main"](arguments) == 0
    assert given == [("anywhere", measure.Settings(batch=False, texts=4, seed=7))]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json", "report.md"]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["passed"] is True
    assert "Projection for an audiobook" in capsys.readouterr().out
    result = whole(voice=dataclasses.replace(result.voice, identical=False))
    assert program["main"](arguments) == 1
    with pytest.raises(SystemExit):
        program["main"](["--texts", "7"])
