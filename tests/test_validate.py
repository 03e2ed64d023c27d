"""``validate`` on models and handles, and the gate of ``compile_model(..., validate=True)``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tts_compile as tc
from conftest import EAGER
from tts_compile import background, handle
from tts_compile.cli import main as cli
from tts_compile.components.flow import FlowComponent
from tts_compile.components.vocoder.engine import VocoderEngine
from tts_compile.measuring import proof
from tts_compile.parity import ComponentParity, ParityReport, Thresholds, WaveParity, gate, transcription

# Flow and vocoder alone are enough to be compared, and quick.
CONFIG = EAGER.replace(**dict.fromkeys(("t3", "voice_encoder", "reference"), tc.ComponentPolicy(execution="stock")))


def found(failing: dict[str, str], wave: str = "") -> ParityReport:
    """Returns a report in which some components, or the wave, differ from stock's."""
    parts = {
        name: ComponentParity("eager", 1, 0, (), (), True, (failing[name],) if name in failing else ())
        for name in ("t3", "flow", "vocoder")
    }
    waves = (WaveParity("Yes.", 90.0, None, None, None, None, (wave,) if wave else ()),)
    return ParityReport(parts, waves, {"wave": Thresholds.exact()})


Plant = Callable[[Callable[..., ParityReport]], None]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Replaces the measurement of a handle and of the gate."""

    def replaced(measure: Callable[..., ParityReport]) -> None:
        monkeypatch.setattr(handle, "measure", measure)
        monkeypatch.setattr(gate, "measure", measure)

    return replaced


@pytest.fixture
def planted(plant: Plant) -> Callable[[ParityReport], None]:
    """Replaces the measurement by a report, from which components that have replaced nothing are left out."""

    def report_of(report: ParityReport) -> None:
        def measure(attachment: Any, *args: Any, **kwargs: Any) -> ParityReport:
            there = {name: part for name, part in report.components.items() if attachment.components[name].seams}
            return dataclasses.replace(report, components=there, waves=report.waves if there else ())

        plant(measure)

    return report_of


def test_a_component_that_differs_falls_back_alone(tts: Any, few_tokens: None, monkeypatch: pytest.MonkeyPatch) -> None:
    inference = VocoderEngine.inference

    def louder(self: Any, *args: Any, **kwargs: Any) -> Any:
        wave, source = inference(self, *args, **kwargs)
        return 1.01 * wave, source

    monkeypatch.setattr(VocoderEngine, "inference", louder)
    voice, state = tts.conds, torch.get_rng_state()
    with tc.compile_model(tts, CONFIG, validate=True) as fast:
        assert set(fast.parity.components) == {"flow", "vocoder", "watermark"}
        assert not fast.parity.components["vocoder"].passed
        assert fast.parity.components["flow"].passed
        rows = fast.report().components
        assert [(event.phase, event.action) for event in rows["vocoder"].fallbacks] == [("validate", "stock")]
        assert "40.0 dB of signal to error" in rows["vocoder"].fallbacks[0].error
        assert rows["flow"].fallbacks == ()
        assert "inference" not in vars(tts.s3gen.mel2wav)
        assert "inference" in vars(tts.s3gen.flow)
        assert tc.compile_model(tts, CONFIG, validate=True) is fast
    assert tts.conds is voice
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(tc.ParityError, match=r"vocoder: .*40.0 dB") as caught:
        tc.compile_model(tts, CONFIG.replace(fallback="raise"), validate=True)
    assert not caught.value.report.passed
    assert "inference" not in vars(tts.s3gen.flow)
    assert tc.compile_model(tts, EAGER).report().attached


def test_nothing_is_measured_unasked_or_twice(tts: Any, planted: Callable[[ParityReport], None]) -> None:
    planted(found({"t3": "other tokens"}))
    with tc.compile_model(tts, EAGER) as fast:
        assert fast.parity is None
        assert tc.compile_model(tts, EAGER, validate=True) is fast  # now it is measured
        assert [event.phase for event in fast.report().components["t3"].fallbacks] == ["validate"]
        planted(found({"flow": "other frames"}))
        tc.compile_model(tts, EAGER, validate=True)
        assert fast.report().components["flow"].fallbacks == ()


def test_what_is_left_is_measured_again(tts: Any, plant: Plant) -> None:
    """A component that is wrong may hide that another one is."""
    failing = ["t3", "flow"]

    def measure(attachment: Any, *args: Any, **kwargs: Any) -> ParityReport:
        wrong = [name for name in failing if attachment.components[name].seams][:1]
        return found(dict.fromkeys(wrong, "other values"))

    plant(measure)
    with tc.compile_model(tts, EAGER, validate=True) as fast:
        errors = {name: [event.error for event in row.fallbacks] for name, row in fast.report().components.items()}
    assert {name for name, why in errors.items() if why} == {"t3", "flow"}
    assert errors["t3"] == errors["flow"] == ["other values"]


def test_what_was_compiled_in_the_background_is_validated_once_it_is_used(
    tts: Any, planted: Callable[[ParityReport], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background.sys, "executable", "/bin/true")
    planted(found({}))
    config = EAGER.replace(vocoder=tc.ComponentPolicy(backend="eager"), compile_in_background=True)
    with monkeypatch.context() as patch:
        patch.setattr(background.BackgroundCompilation, "running", True)
        fast = tc.compile_model(tts, config, validate=True)
    with fast:
        before = fast.parity
        planted(found({"flow": "other frames"}))
        fast.warmup()
        assert fast.parity is not before
        assert [event.phase for event in fast.report().components["flow"].fallbacks] == ["validate"]


def test_an_error_meanwhile_leaves_a_stock_model(tts: Any, plant: Plant) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    plant(interrupted)
    with pytest.raises(KeyboardInterrupt):
        tc.compile_model(tts, EAGER, validate=True)
    assert "inference" not in vars(tts.t3)


def test_a_model_is_stock_afterwards_and_a_handle_stays(tts: Any, planted: Callable[[ParityReport], None]) -> None:
    planted(found({}))
    assert tc.validate(tts, EAGER).passed
    assert "inference" not in vars(tts.t3)
    with tc.compile_model(tts, EAGER) as fast:
        for given in (fast, tts):
            assert tc.validate(given).passed
            assert fast.report().attached
        with pytest.raises(tc.ModelStateError, match="another configuration"):
            tc.validate(fast, tc.CompileConfig.off())
    with pytest.raises(tc.ModelStateError, match="nothing to compare"):
        fast.validate()
    with pytest.raises(tc.UnsupportedModelError):
        tc.validate(object())
    with pytest.raises(tc.InputError):
        tc.validate(tts, EAGER, "a single text")
    with pytest.raises(tc.InputError):
        tc.validate(tts, EAGER, [7])


def test_thresholds_follow_the_weights_that_are_read(tts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = ComponentParity("eager", 1, 0, (), (), True, ())
    monkeypatch.setattr(sys.modules["tts_compile.parity.measure"], "compare", lambda *_: passed)
    monkeypatch.setattr(tts, "generate", lambda text: torch.zeros(1, 4800))
    config = EAGER.replace(flow=tc.ComponentPolicy(execution="eager", dtype="bf16"))

    def thresholds() -> dict[str, Thresholds]:
        return dict(tc.validate(tts, config, ["A"], transcribe=False).thresholds)

    assert set(thresholds().values()) == {Thresholds.exact()}  # this version has no others
    monkeypatch.setattr(FlowComponent, "dtype", "bf16")
    found = thresholds()
    assert found["flow"] == found["wave"] == Thresholds.fast()
    assert found["t3"] == found["watermark"] == Thresholds.exact()


def test_words_where_a_recogniser_can_be_loaded(tts: Any, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    def listen(wave: Any, rate: int) -> str:
        return "yes"

    given: list[Any] = []

    def measure(*args: Any, words: Any, **kwargs: Any) -> ParityReport:
        given.append(words.transcribe)
        return dataclasses.replace(found({}), notes=(words.note,) if words.note else ())

    plant(measure)
    monkeypatch.setattr(transcription, "recogniser", lambda: listen)
    assert tc.validate(tts, EAGER).notes == ()
    tc.validate(tts, EAGER, transcribe=min)
    tc.validate(tts, EAGER, transcribe=False)
    assert given == [listen, min, None]

    def offline() -> Any:
        raise tc.InputError("the recogniser cannot be loaded: no network")

    monkeypatch.setattr(transcription, "recogniser", offline)
    assert "no network" in tc.validate(tts, EAGER).notes[0]
    assert tc.validate(tts, EAGER, transcribe=False).notes == ()
    monkeypatch.setattr(transcription.importlib.util, "find_spec", lambda name: None)
    assert "tts-compile[quality] is not installed" in tc.validate(tts, EAGER).notes[0]


def test_a_recogniser_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(tc.InputError, match="no/such-model cannot be loaded"):
        transcription.recogniser("no/such-model")


def test_the_command(
    checkpoint: Path,
    tmp_path: Path,
    planted: Callable[[ParityReport], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.setenv("TTS_COMPILE_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_text('[t3]\nexecution = "stock"\n')
    arguments = ["validate", "--model", str(checkpoint), "--no-words"]
    planted(found({}))
    assert cli.main([*arguments, "--json"]) == 1  # nothing was called
    printed = capsys.readouterr()
    assert json.loads(printed.out)["passed"] is False
    assert "tts-compile: flow did not run" in printed.err
    monkeypatch.setattr(proof, "shortfalls", lambda report, called: [])
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    planted(found({"flow": "12.0 dB of signal to error"}))
    assert cli.main(arguments) == 1
    assert "flow: 12.0 dB of signal to error" in capsys.readouterr().out
