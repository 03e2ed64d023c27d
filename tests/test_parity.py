"""Parity finds errors that tests put into compiled blocks, tokens and waves, and passes a good component."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tts_compile as tc
from conftest import ENGINES, attachment_of, components
from speech import SHORT
from tts_compile.components import watermark
from tts_compile.components.flow.estimator import Estimator
from tts_compile.components.t3 import step
from tts_compile.families.english import ENGLISH
from tts_compile.parity import ParityReport, Thresholds, WaveParity, compare, measure
from tts_compile.parity.measure import compare_waves
from tts_compile.parity.recorded_calls import Call, methods_of, recorded
from tts_compile.tuning import tune
from tts_compile.utils.random_state import generators_kept

EXACT = Thresholds.exact()


@pytest.fixture(scope="module")
def tape(_traced: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """Calls of stock's methods for a voice and a text, recorded."""
    path = tc.testing.make_reference_wav(tmp_path_factory.mktemp("voice") / "voice.wav", seconds=2)
    parts = components(_traced)
    methods = methods_of({name: parts[name] for name in parts})
    with _traced.stock() as tts, recorded(tts, ENGLISH, methods) as calls, ENGLISH.voice.kept(tts):
        ENGLISH.voice.prepare(tts, str(path))
        torch.manual_seed(3)
        tts.generate(SHORT)
    return calls


@pytest.fixture
def compared(traced: Any, tape: list[Call]) -> Callable[..., Any]:
    """Compares one component with the recorded calls."""

    def against(name: str, thresholds: Thresholds = EXACT) -> Any:
        calls = [call for call in tape if call.component == name]
        with traced.stock():
            return compare(components(traced)[name], calls, thresholds)

    return against


def test_every_component_that_is_as_good_as_stock_passes(
    traced: Any, compared: Callable[..., Any], tape: list[Call]
) -> None:
    assert {call.component for call in tape} == set(tc.config.COMPONENTS)
    for name in tc.config.COMPONENTS:
        before = components(traced)[name].report()  # other tests have had it run eagerly
        found = compared(name)
        after = components(traced)[name].report()
        assert found.failures == (), name
        assert found.generators
        assert found.calls >= 1
        assert found.ran != "stock"
        passes = after.calls - before.calls
        assert passes >= found.calls
        assert after.compiled_calls - before.compiled_calls == (passes if name in ENGINES else 0)
        exact = name in ("voice_encoder", "reference", "watermark")
        assert (found.signal_to_error_db == math.inf) is exact
    (tokens,) = compared("t3").tokens
    assert (tokens.same, tokens.first_difference, tokens.logit_gap) == (1.0, None, None)
    assert tokens.count == tokens.stock_count > 5


def test_a_tape_is_played_from_stocks_own_inputs_and_random_numbers(tape: list[Call]) -> None:
    for call in tape:
        again = call.repeat_and_record()
        assert again.after.same_as(call.result.after)
        assert again.tensors.keys() == call.result.tensors.keys()
        assert "result" not in again.tensors or call.component in ("t3", "watermark", "voice_encoder")
    mine = next(call for call in tape if call.component == "flow")
    assert torch.equal(mine.repeat_stock()[0], mine.result.tensors["[0]"])


def _bias(traced: Any, name: str) -> Tensor:
    """Returns a bias of a block in the middle of the component, as the engine reads it."""
    weights = components(traced)[name].engine.weights()
    if name == "vocoder":
        bias: Tensor = weights.stages[1].residuals[0][0].kernel1[1]
        return bias
    return weights.estimator.stages[1].blocks[0].weights.mlp_norm_bias  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["flow", "vocoder"])
def test_one_wrong_bias_in_acompiled_block(traced: Any, compared: Callable[..., Any], name: str) -> None:
    compared(name)  # copies are made
    bias = _bias(traced, name)
    saved = bias.clone()
    with torch.no_grad():
        bias[0] += 0.5
    try:
        found = compared(name)
    finally:
        with torch.no_grad():
            bias.copy_(saved)
    assert not found.passed
    assert "dB of signal to error" in found.failures[0]
    assert compared(name).passed


def test_the_sign_of_guidance_swapped(compared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    guide, full = step.guide, torch.full
    with monkeypatch.context() as patch:
        patch.setattr(step, "guide", lambda logits, weight, guided: guide(logits, -weight, guided))
        t3 = compared("t3")
    with monkeypatch.context() as patch:
        patch.setattr(
            torch, "full", lambda size, value, **others: full(size, -value if size == () else value, **others)
        )
        flow = compared("flow")
    assert not flow.passed
    assert not t3.passed
    assert t3.tokens[0].same < 1
    assert t3.tokens[0].first_difference is not None
    assert any("tokens are stock's" in failure for failure in t3.failures)


def test_a_time_that_does_not_span_the_rows_of_guidance(
    compared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Estimator.step

    def conditional_only(self: Any, weights: Any, state: Tensor, shifts: list[Tensor], inputs: Any) -> Tensor:
        shifts = [torch.stack([shift, torch.zeros_like(shift)])[:, None] for shift in shifts]
        return step(self, weights, state, shifts, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(Estimator, "step", conditional_only)
        found = compared("flow")
    assert "dB of signal to error" in found.failures[0]


def test_random_numbers_that_are_not_drawn(
    traced: Any, compared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = components(traced)["vocoder"].engine
    inner = engine.inference

    def one_more(*args: Any, **kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        torch.rand(1)
        return result

    monkeypatch.setattr(engine, "inference", one_more)
    found = compared("vocoder")
    assert not found.generators
    assert found.failures == ("the random generators are not left as stock leaves them",)
    assert compared("vocoder", Thresholds.fast()).passed


def test_what_raises_or_changes_its_shape_fails(
    traced: Any, compared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    resample = watermark.resample
    breaks = {
        "raised InputError: mine": lambda *_: (_ for _ in ()).throw(tc.InputError("mine")),
        "its shape is": lambda marked: marked[:-1],
        "its dtype is": lambda marked: marked.astype("float64"),
        "nan dB": lambda marked: marked * np.float32("nan"),
        "nothing was compared": lambda *_: (_ for _ in ()).throw(RuntimeError("which stock makes good")),
        "stock gives none": lambda marked: (marked, marked),
    }

    def break_by(change: Callable[..., Any]) -> None:
        def broken(wave: Any, rate: float, target: float) -> Any:
            found = resample(wave, rate, target)
            return change(found) if target == traced.sr else found  # on the way back

        monkeypatch.setattr(watermark, "resample", broken)

    for failure, change in breaks.items():
        break_by(change)
        found = compared("watermark")
        assert failure in " ".join(found.failures)
        assert not found.passed
    break_by(lambda marked: marked + 1e-7)
    assert compared("watermark").passed


def test_tokens_of_a_recording_must_be_equal(
    traced: Any, compared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(traced.s3gen)
    embed_ref = kind.embed_ref

    def other(*args: Any, **kwargs: Any) -> Any:
        reference = embed_ref(*args, **kwargs)
        tokens = reference["prompt_token"].clone()
        tokens[0, 0] += 1
        return {**reference, "prompt_token": tokens}

    monkeypatch.setattr(kind, "embed_ref", other)
    failures = compared("reference", Thresholds.fast()).failures
    assert any(
        failure.startswith("ChatterboxTTS.prepare_conditionals conds.gen.prompt_token: ") for failure in failures
    )
    assert all("prompt_token: " in failure and "equality is wanted" in failure for failure in failures)


def wave(seconds: float = 1.0, pitch: float = 220.0) -> Tensor:
    times = torch.arange(int(24_000 * seconds)) / 24_000
    return (0.3 * torch.sin(2 * math.pi * pitch * times) * (1 + 0.2 * torch.sin(2 * math.pi * 3 * times)))[None]


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        (lambda w: w + 1e-6, ""),
        (lambda w: w + 1e-2 * torch.randn_like(w), "dB of signal to error"),
        (lambda w: w[:, :-480], "another shape"),
        (lambda w: 1.3 * w, "LU in loudness"),
        (lambda w: wave(pitch=440.0), "log-mel distance"),
        (lambda w: w * math.nan, "nan dB"),
    ],
)
def test_waves(traced: Any, change: Callable[[Tensor], Tensor], failure: str) -> None:
    torch.manual_seed(0)
    found = compare_waves(attachment_of(traced), wave(), change(wave()), "Hello.", EXACT, None)
    assert found.passed is (not failure)
    assert failure in " ".join(found.failures)
    assert found.words is None


def test_lower_precision_may_say_it_another_way_but_not_less(traced: Any) -> None:
    fast = Thresholds.fast()
    assert compare_waves(attachment_of(traced), wave(), wave(1.1), "Hello.", fast, None).passed
    assert (
        "-30.0% in length" in compare_waves(attachment_of(traced), wave(), wave(0.7), "Hello.", fast, None).failures[0]
    )


def test_an_engine_that_stock_makes_good_is_not_compared(
    traced: Any, compared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no such instruction")

    for name in ("t3", "flow"):
        with monkeypatch.context() as patch:
            patch.setattr(components(traced)[name].engine, "inference", broken)
            found = compared(name)
        assert found.failures == ("stock has answered all calls in its place: nothing was compared",)
        assert (found.ran, found.stock_calls) == ("stock", found.calls)
    unreached = compare(components(traced)["flow"], [], EXACT)
    assert unreached.failures == ("it was not reached: nothing was compared",)


def test_a_voice_that_is_not_set_is_missed(
    traced: Any, compared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components(traced)["reference"].fallback, "run", lambda *args, **kwargs: None)
    with ENGLISH.voice.kept(traced.wrapped):
        found = compared("reference")
    assert any("conds.t3.speaker_emb: it is missing" in failure for failure in found.failures)


def test_speech_that_ends_early_is_heard(
    traced: Any, compared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = components(traced)["t3"].engine
    inner = engine.inference
    monkeypatch.setattr(engine, "inference", lambda **given: inner(**given)[:, :-3])
    (tokens,) = compared("t3").tokens
    assert tokens.count == tokens.stock_count - 3 == tokens.first_difference
    assert tokens.logit_gap is None
    assert not compared("t3").passed


def test_words_and_voice(traced: Any) -> None:
    heard = iter(["Hello, there my good", "hello there my wood"])
    found = compare_waves(attachment_of(traced), wave(), wave(), "Hello there, my good!", EXACT, lambda *_: next(heard))
    assert found.words == (0.0, 0.25)
    assert found.failures == ("25.0% of the words misheard, 0.0% of stock's",)
    assert found.speaker_similarity == pytest.approx(1.0)
    strict = dataclasses.replace(EXACT, speaker_similarity=1.01)
    assert "speaker similarity" in compare_waves(attachment_of(traced), wave(), wave(), "", strict, None).failures[0]


def test_a_report_is_plain_and_names_what_failed() -> None:
    bad = WaveParity("Hello.", math.nan, None, None, None, None, ("nan dB",))
    report = ParityReport({}, (bad,), {"wave": EXACT})
    assert not report.passed
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["waves"][0]["signal_to_error_db"] == "nan"
    assert "Hello.: nan dB" in str(report)
    assert "FAILED" in str(report)


def test_the_whole_model(traced: Any) -> None:
    tts, steps = traced.wrapped, []
    before, inside = tts.conds, dict(vars(tts.conds))
    state = torch.get_rng_state()
    report = measure(attachment_of(traced), [SHORT], seed=7, step=steps.append)
    assert report.passed, str(report)
    assert set(report.components) == set(tc.config.COMPONENTS)
    assert report.waves[0].signal_to_error_db > 60
    assert tts.conds is before
    assert vars(tts.conds) == inside
    assert torch.equal(torch.get_rng_state(), state)
    assert traced.report().attached
    assert "t3: the same calls" in steps
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["passed"] is True


def test_only_the_generators_of_the_model_are_kept(tts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forked: list[Any] = []

    def fork_rng(devices: Any = None) -> contextlib.AbstractContextManager[None]:
        forked.append(devices)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    monkeypatch.setattr(tts, "generate", lambda text: wave())
    with tc.compile_model(tts, tc.CompileConfig.off()) as handle:
        measure(attachment_of(handle), [SHORT])
        handle.warmup()
    tune(tts, ["A"], config=tc.CompileConfig.off().replace(cache_dir=str(tmp_path)))
    assert len(forked) >= 3
    assert all(devices == [] for devices in forked)
    generators_kept(gpu := torch.device("cuda", 1))
    assert forked[-1] == [gpu]


def test_an_utterance_that_fails_and_nothing_to_compare(tts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = iter([wave()])

    def generate(text: str) -> Tensor:
        for found in stock:
            return found
        raise tc.InputError("not today")

    monkeypatch.setattr(tts, "generate", generate)
    with tc.compile_model(tts, tc.CompileConfig.off()) as handle:
        without = measure(attachment_of(handle), [SHORT])
    assert without.waves[0].failures == ("raised InputError: not today",)
    assert without.notes == ("no component has replaced anything: there is nothing to compare",)
