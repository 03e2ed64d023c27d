"""The benchmarks of flow, vocoder and generate: what is measured, what fails, and small real runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import tts_compile as tc
from tts_compile.bench import models, synthesis
from tts_compile.bench.synthesis import Made
from tts_compile.cli import main as cli
from tts_compile.measuring import proof

pytest.importorskip("chatterbox")

EAGER_BACKEND = tc.ComponentPolicy(backend="eager")  # dynamo without a compiler of its own
OFF = tc.CompileConfig.off()

Call = Callable[[str], Tensor]
SETTINGS: dict[str, Any] = {
    "flow": synthesis.FlowSettings,
    "vocoder": synthesis.VocoderSettings,
    "e2e": synthesis.Settings,
}


class Bench(NamedTuple):
    """A benchmark that runs on the shared model."""

    run: Callable[..., synthesis.SynthesisResult]
    configure: Callable[[tc.CompileConfig], None]


@pytest.fixture
def bench(tts: Any, monkeypatch: pytest.MonkeyPatch) -> Bench:
    def configure(config: tc.CompileConfig) -> None:
        monkeypatch.setattr(tc.CompileConfig, "from_env", classmethod(lambda cls: config))

    def run(subject: str = "flow", **settings: Any) -> synthesis.SynthesisResult:
        with models.quiet():
            settings = {"repeats": 1, "tokens": 2, **settings}
            return synthesis.run("anywhere", SETTINGS[subject](**settings))

    monkeypatch.setattr(models, "load", lambda source, device: tts)
    configure(OFF)
    return Bench(run, configure)


@pytest.fixture
def small(tts: Any, built: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts the model to a layer of each kind, and the benchmark to one solver step and one other length."""
    encoder, estimator = tts.s3gen.flow.encoder, tts.s3gen.flow.decoder.estimator
    stages = (estimator.down_blocks[0], estimator.mid_blocks[0], estimator.up_blocks[0])
    for owner, name in (
        (encoder, "encoders"),
        (encoder, "up_encoders"),
        (estimator, "mid_blocks"),
        *((stage, "1") for stage in stages),  # the transformer blocks
    ):
        monkeypatch.setitem(owner._modules, name, owner._modules[name][:1].eval())
    monkeypatch.setattr(synthesis, "_SOLVER_STEPS", 1)
    monkeypatch.setattr(synthesis, "_LENGTHS", [3])


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    call: Call,
    vary: Callable[[], None] | None = None,
    tokens: list[list[int]] | None = None,
) -> None:
    """Makes the benchmark measure ``call`` in place of the flow, on a model that counts as compiled."""

    def made(side: str) -> Made:
        return Made([call(side)], [tokens.pop()] if tokens else [])

    work = synthesis.Work([made], 4.0, vary or (lambda: None))
    monkeypatch.setitem(synthesis._WORK, "flow", lambda fast, settings: work)
    monkeypatch.setattr(proof, "shortfalls", lambda report, called: [])


def same(side: str) -> Tensor:
    return torch.rand(1, 4)


def altered(side: str) -> Tensor:
    return same(side) * (1.01 if side == "compiled" else 1)


def longer(side: str) -> Tensor:
    return torch.ones(1, 5 if side == "compiled" else 4)


def drawing_more(side: str) -> Tensor:
    made = same(side)
    if side == "compiled":
        torch.rand(1)
    return made


def a_graph() -> None:
    torch.compile(eval("lambda x: x + 1"), backend="eager")(torch.ones(3))  # code that has no graph yet


def test_sides_alternate_from_the_same_seed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[str] = []

    def call(side: str) -> Tensor:
        sides.append(side)
        return same(side)

    pretend(monkeypatch, call)
    result = bench.run(repeats=5)
    assert sides == (["stock", "compiled"] + ["stock", "compiled", "compiled", "stock"] * 3)[:-2]
    assert result.passed
    seconds = result.total("stock"), result.total("compiled")
    assert list(map(len, seconds)) == [5, 5]
    assert min(map(min, seconds)) > 0
    assert result.audio_seconds == 1
    assert result.gains["seconds"].interval is not None


def test_equal_results_are_json_and_a_table(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, same, vary=lambda: None)
    result = bench.run()
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (plain["bench"], plain["passed"], plain["later_graphs"]) == ("flow", True, 0)
    assert (plain["bit_identical"], plain["signal_to_error_db"]) == (True, None)
    assert plain["gain"]["verdict"] == "unknown"
    assert plain["compile_seconds"] == result.first_call_seconds - result.total("compiled")[0]
    for words in (
        "tokens to mel",
        "inf dB",
        "generator state identical",
        "graphs after the warm-up, 20 other",
        "ran: stock",
    ):
        assert words in str(result)
    assert "tokens identical" not in str(result)  # none are spoken
    assert "NO" not in str(result)


@pytest.mark.parametrize(
    ("call", "vary", "found"),
    [
        (altered, None, "40.0 dB"),
        (longer, None, "lengths differ"),
        (drawing_more, None, "NO"),
        (same, a_graph, "lengths included: 1;"),
    ],
)
def test_what_is_not_stocks_is_a_failure(
    call: Call,
    vary: Callable[[], None] | None,
    found: str,
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretend(monkeypatch, call, vary)
    result = bench.run()
    assert not result.passed
    assert found in str(result)
    json.dumps(result.to_dict(), allow_nan=False)
    assert cli.main(["bench", "flow", "--model", "anywhere", "--repeats", "1", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_rounding_is_no_failure(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda side: same(side) * (1.0009 if side == "compiled" else 1))
    result = bench.run()
    assert result.signal_to_error_db == pytest.approx(60.9, abs=0.1)
    assert result.passed


@pytest.mark.parametrize("bad", [altered, longer, drawing_more])
def test_one_bad_repeat_is_a_failure(bad: Call, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def call(side: str) -> Tensor:
        calls.append(side)
        return bad(side) if len(calls) in (5, 6) else torch.rand(1, 4)  # the second of three repeats

    pretend(monkeypatch, call)
    assert not bench.run(repeats=3).passed


def test_tokens_of_every_measured_call_are_compared(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[list[int]] = []
    calls: list[str] = []
    different = 0

    def call(side: str) -> Tensor:
        calls.append(side)
        tokens.append([1, 2, 3 + (len(calls) == different)])
        return same(side)

    for different, expected in ((0, True), (1, True), (6, False)):  # noqa: B007 - the first two are not measured
        calls.clear()
        pretend(monkeypatch, call, tokens=tokens)
        result = bench.run(repeats=2)
        assert (result.tokens_identical, result.passed) == (expected, expected)
        assert result.to_dict()["tokens_identical"] is expected
        assert "tokens identical" in str(result)


def test_only_the_subject_is_compiled_and_from_cold(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[tc.CompileConfig] = []

    def compile_model(tts: Any, config: tc.CompileConfig) -> tc.CompiledTTS:
        assert list(Path(str(config.cache_dir)).iterdir()) == []
        configs.append(config)
        return tc.compile_model(tts, OFF)

    bench.configure(tc.CompileConfig(fallback="raise"))
    monkeypatch.setattr(models, "compile_model", compile_model)
    for subject in SETTINGS:
        work = synthesis.Work([lambda side: Made([same(side)])], 4.0)
        monkeypatch.setitem(synthesis._WORK, subject, lambda *_, work=work: work)
    bench.run("vocoder")
    bench.run("e2e")
    alone, whole = configs
    assert alone.fallback == whole.fallback == "raise"
    asked = {name: getattr(alone, name).execution for name in tc.config.COMPONENTS}
    assert asked == {**dict.fromkeys(tc.config.COMPONENTS, "stock"), "vocoder": "auto"}
    assert {getattr(whole, name).execution for name in tc.config.COMPONENTS} == {"auto"}
    assert alone.cache_dir != whole.cache_dir
    assert not Path(str(alone.cache_dir)).exists()


@pytest.mark.parametrize("subject", ["flow", "vocoder"])
def test_a_small_bench_passes_and_ran_compiled(subject: str, bench: Bench, small: None) -> None:
    bench.configure(tc.CompileConfig(flow=EAGER_BACKEND, vocoder=EAGER_BACKEND, fallback="raise", warmup_samples=0))
    result = bench.run(subject)
    assert result.passed, str(result)
    assert result.later_graphs == 0
    assert result.signal_to_error_db is not None
    assert result.signal_to_error_db > 100
    assert result.tokens_identical is None
    assert result.audio_seconds == pytest.approx(0.08)
    row = result.report["components"][subject]
    assert (row["ran"], row["fallbacks"]) == ("inductor", ())
    assert row["calls"] == row["compiled_calls"] > 0


@pytest.fixture
def babbling(tts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes T3 return random tokens and S3Gen silence; on the classes, since the benchmark patches the instance."""
    monkeypatch.setattr(type(tts.t3), "inference", lambda self, **_: torch.randint(6561, (1, 12)))
    monkeypatch.setattr(
        type(tts.s3gen), "inference", lambda self, speech_tokens, ref_dict: (torch.zeros(1, 4800), None)
    )


def test_tokens_of_generate_are_heard(bench: Bench, babbling: None, tts: Any) -> None:
    result = bench.run("e2e", text="A.")
    assert result.kept
    assert result.tokens_identical
    assert result.later_graphs == 0
    assert "inference" not in vars(tts.s3gen)


def test_generate_that_speaks_other_tokens_is_a_failure(
    bench: Bench, babbling: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = tc.CompiledTTS._checked_generate

    def other(self: tc.CompiledTTS, text: str) -> Tensor:
        torch.rand(1)
        return generate(self, text)

    monkeypatch.setattr(tc.CompiledTTS, "_checked_generate", other)
    result = bench.run("e2e", text="A.")
    assert result.signal_to_error_db == torch.inf  # silence on both sides
    assert result.tokens_identical == 0
    assert not result.kept
    assert "NO" in str(result)
