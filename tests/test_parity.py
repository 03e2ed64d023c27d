"""The gate lets a good component pass and stops a bad one: errors planted in compiled blocks, tokens and waves."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tts_compile as tc
from conftest import forget_failures
from speech import SHORT
from tts_compile.components.flow.engine import FlowEngine
from tts_compile.components.t3 import step
from tts_compile.parity import ParityReport, Thresholds, Voice, WaveParity, compare, measure
from tts_compile.parity.measure import _wave
from tts_compile.parity.recorded_calls import Call, methods_of, recorded

EXACT = Thresholds.exact()
QUICK = tc.ComponentPolicy(execution="inductor", backend="eager")
CONFIG = tc.CompileConfig(t3=QUICK, flow=QUICK, vocoder=QUICK)


@pytest.fixture(scope="module")
def compiled(checkpoint: Path) -> Iterator[tc.CompiledTTS]:
    with tc.compile_model(tc.testing.load_checkpoint(checkpoint), CONFIG) as handle:
        yield handle


@pytest.fixture(scope="module")
def tape(compiled: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """What stock's methods were given and gave for a voice and a text."""
    path = tc.testing.make_reference_wav(tmp_path_factory.mktemp("voice") / "voice.wav", seconds=2)
    components = {name: compiled._components[name] for name in compiled._components}
    voice = Voice(compiled.wrapped)
    with compiled.stock() as tts, recorded(methods_of(components), torch.device("cpu"), tts) as calls, voice.kept():
        voice.prepare(str(path))
        torch.manual_seed(3)
        tts.generate(SHORT)
    return calls


@pytest.fixture
def compared(compiled: Any, tape: list[Call]) -> Callable[..., Any]:
    """Hold one component against the tape."""
    forget_failures(compiled)

    def against(name: str, thresholds: Thresholds = EXACT) -> Any:
        calls = [call for call in tape if call.component == name]
        with compiled.stock():
            return compare(compiled._components[name], calls, thresholds)

    return against


def test_every_component_that_is_as_good_as_stock_passes(compared: Callable[..., Any], tape: list[Call]) -> None:
    assert {call.component for call in tape} == set(tc.config.COMPONENTS)
    for name in tc.config.COMPONENTS:
        found = compared(name)
        assert found.failures == (), name
        assert found.generators
        assert found.calls >= 1
        assert found.ran == ("inductor" if name in ("t3", "flow", "vocoder") else "eager")
        exact = name in ("voice_encoder", "reference", "watermark")
        assert (found.signal_to_error_db == math.inf) is exact
    (tokens,) = compared("t3").tokens
    assert (tokens.same, tokens.first_difference, tokens.logit_gap) == (1.0, None, None)
    assert tokens.count == tokens.stock_count > 5


def test_a_tape_is_played_from_stocks_own_inputs_and_random_numbers(tape: list[Call]) -> None:
    for call in tape:
        again = call.played()
        assert again.after.same_as(call.take.after)
        assert again.tensors.keys() == call.take.tensors.keys()
        assert "result" not in again.tensors or call.component in ("t3", "watermark", "voice_encoder")
    mine = next(call for call in tape if call.component == "flow")
    assert torch.equal(mine.stock()[0], mine.take.tensors["[0]"])


def _bias(compiled: Any, name: str) -> Tensor:
    """Of a block in the middle of what is compiled."""
    copies = compiled._components[name].engine.copies.current()
    if name == "vocoder":
        bias: Tensor = copies.stages[1].residuals[0][0].kernel1[1]
        return bias
    return copies.stages[1].blocks[0].weights.mlp_norm_bias  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["flow", "vocoder"])
def test_one_wrong_bias_in_acompiled_block(compiled: Any, compared: Callable[..., Any], name: str) -> None:
    compared(name)  # copies are made
    bias = _bias(compiled, name)
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
    shifts = FlowEngine._shifts

    def conditional_only(self: Any, *args: Any) -> Any:
        for per_stage in shifts(self, *args):
            yield [torch.stack([shift, torch.zeros_like(shift)])[:, None] for shift in per_stage]

    with monkeypatch.context() as patch:
        patch.setattr(FlowEngine, "_shifts", conditional_only)
        found = compared("flow")
    assert not found.passed


def test_random_numbers_that_are_not_drawn(
    compiled: Any, compared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    component = compiled._components["vocoder"]
    inner = component._engine_call

    def one_more(*args: Any, **kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        torch.rand(1)
        return result

    monkeypatch.setattr(component, "_engine_call", one_more)
    found = compared("vocoder")
    assert not found.generators
    assert found.failures == ("the random generators are not left as stock leaves them",)
    assert compared("vocoder", Thresholds.fast()).passed


def test_what_raises_or_changes_its_shape_fails(
    compiled: Any, compared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    component = compiled._components["watermark"]
    mark = component._mark
    breaks = {
        "raised InputError: mine": lambda *_: (_ for _ in ()).throw(tc.InputError("mine")),
        "its shape is": lambda *given: mark(*given)[:-1],
        "its dtype is": lambda *given: mark(*given).astype("float64"),
        "nan dB": lambda *given: mark(*given) * np.float32("nan"),
        "nothing was compared": lambda *_: (_ for _ in ()).throw(RuntimeError("which stock makes good")),
        "stock gives none": lambda *given: (mark(*given), mark(*given)),
    }
    for failure, broken in breaks.items():
        monkeypatch.setattr(component, "_mark", broken)
        found = compared("watermark")
        assert failure in " ".join(found.failures)
        assert not found.passed
    monkeypatch.setattr(component, "_mark", lambda *given: mark(*given) + 1e-7)
    assert compared("watermark").passed


def test_tokens_of_a_recording_must_be_equal(
    compiled: Any, compared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    component = compiled._components["reference"]
    heard = component._heard

    def other(*args: Any) -> Any:
        wave, generator = heard(*args)
        tokens = generator["prompt_token"].clone()
        tokens[0, 0] += 1
        return wave, {**generator, "prompt_token": tokens}

    monkeypatch.setattr(component, "_heard", other)
    found = compared("reference", Thresholds.fast())
    (failure,) = found.failures
    assert failure.startswith("ChatterboxTTS.prepare_conditionals conds.gen.prompt_token: ")
    assert "equality is wanted" in failure


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
def test_waves(compiled: Any, change: Callable[[Tensor], Tensor], failure: str) -> None:
    torch.manual_seed(0)
    found = _wave(compiled.wrapped, "Hello.", wave(), change(wave()), EXACT, None)
    assert found.passed is (not failure)
    assert failure in " ".join(found.failures)
    assert found.words is None


def test_lower_precision_may_say_it_another_way_but_not_less(compiled: Any) -> None:
    fast = Thresholds.fast()
    assert _wave(compiled.wrapped, "Hello.", wave(), wave(1.1), fast, None).passed
    assert "-30.0% in length" in _wave(compiled.wrapped, "Hello.", wave(), wave(0.7), fast, None).failures[0]


def test_an_engine_that_stock_makes_good_is_not_compared(
    compiled: Any, compared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no such instruction")

    for name in ("t3", "flow"):
        with monkeypatch.context() as patch:
            patch.setattr(compiled._components[name], "_engine_call", broken)
            found = compared(name)
        assert found.failures == ("stock has answered all calls in its place: nothing was compared",)
        assert (found.ran, found.stock_calls) == ("stock", found.calls)
    assert compare(compiled._components["flow"], [], EXACT).failures == ("it was not reached: nothing was compared",)


def test_a_voice_that_is_not_set_is_missed(
    compiled: Any, compared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    component = compiled._components["reference"]
    monkeypatch.setattr(component, "_prepare", lambda *args: None)
    with Voice(compiled.wrapped).kept():
        found = compared("reference")
    assert any("conds.t3.speaker_emb: it is missing" in failure for failure in found.failures)


def test_speech_that_ends_early_is_heard(
    compiled: Any, compared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    component = compiled._components["t3"]
    inner = component._engine_call
    monkeypatch.setattr(component, "_engine_call", lambda **given: inner(**given)[:, :-3])
    (tokens,) = compared("t3").tokens
    assert tokens.count == tokens.stock_count - 3 == tokens.first_difference
    assert tokens.logit_gap is None
    assert not compared("t3").passed


def test_words_and_voice(compiled: Any) -> None:
    heard = iter(["Hello, there my good", "hello there my wood"])
    found = _wave(compiled.wrapped, "Hello there, my good!", wave(), wave(), EXACT, lambda *_: next(heard))
    assert found.words == (0.0, 0.25)
    assert found.failures == ("25.0% of the words misheard, 0.0% of stock's",)
    assert found.speaker_similarity == pytest.approx(1.0)
    strict = dataclasses.replace(EXACT, speaker_similarity=1.01)
    assert "speaker similarity" in _wave(compiled.wrapped, "", wave(), wave(), strict, None).failures[0]


def test_a_report_is_plain_and_names_what_failed() -> None:
    bad = WaveParity("Hello.", math.nan, None, None, None, None, ("nan dB",))
    report = ParityReport({}, (bad,), {"wave": EXACT})
    assert not report.passed
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["waves"][0]["signal_to_error_db"] == "nan"
    assert "Hello.: nan dB" in str(report)
    assert "FAILED" in str(report)


def test_the_whole_model(compiled: Any) -> None:
    forget_failures(compiled)
    tts, steps = compiled.wrapped, []
    before, inside = tts.conds, dict(vars(tts.conds))
    state = torch.get_rng_state()
    components = {name: compiled._components[name] for name in compiled._components}
    thresholds = dict.fromkeys(tc.config.COMPONENTS, EXACT)
    report = measure(tts, components, thresholds, compiled.stock, compiled.generate, [SHORT], seed=7, step=steps.append)
    assert report.passed, str(report)
    assert set(report.components) == set(tc.config.COMPONENTS)
    assert report.waves[0].signal_to_error_db > 60
    assert tts.conds is before
    assert vars(tts.conds) == inside
    assert torch.equal(torch.get_rng_state(), state)
    assert compiled.report().attached
    assert "t3: the same calls" in steps

    def broken(text: str) -> Any:
        raise tc.InputError("not today")

    without = measure(tts, {}, {}, compiled.stock, broken, [SHORT])
    assert without.waves[0].failures == ("raised InputError: not today",)
    assert without.notes == ("no component has replaced anything: there is nothing to compare",)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["passed"] is True
