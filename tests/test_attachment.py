"""The handle's own names, and the models that it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tts_compile as tc
from conftest import EAGER, attachment_of
from tts_compile import attachment, background
from tts_compile.components.component_set import ComponentSet

OWN = sorted(name for name in {*dir(tc.CompiledTTS), *tc.CompiledTTS.__annotations__} if not name.startswith("_"))


def test_the_names_are_those_of_the_documentation() -> None:
    documented = {"wrapped", "config", "parity", "timings", "generate", "generate_batch", "warmup", "seeded", "stock"}
    assert documented | {"validate", "keep_what_passes", "report", "restore"} == {*OWN}


@pytest.mark.parametrize("name", OWN)
def test_own_names_are_neither_set_nor_deleted(eager: tc.CompiledTTS, tts: Any, name: str) -> None:
    before, own = dict(vars(tts)), dict(vars(eager))
    with pytest.raises(AttributeError, match=rf"'{name}' belongs to the handle.*restore\(\).*compile_model\(\)"):
        setattr(eager, name, None)
    with pytest.raises(AttributeError, match=f"wrapped.{name}"):
        delattr(eager, name)
    assert vars(tts) == before
    assert vars(eager) == own
    eager.restore()
    with pytest.raises(AttributeError, match="belongs to the handle"):
        setattr(eager, name, None)


def test_a_family_that_cannot_be_compiled_says_why() -> None:
    turbo = type("ChatterboxTurboTTS", (), {"__module__": "chatterbox.tts_turbo"})()
    for refuse in (tc.compile_model, tc.validate):
        with pytest.raises(tc.UnsupportedModelError, match=r"ChatterboxTurboTTS: .*GPT-2; supported: .*ChatterboxTTS"):
            refuse(turbo)


def test_a_comparison_of_nothing_does_not_pass(tts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = torch.zeros(1, 4800)
    monkeypatch.setattr(tts, "generate", lambda text: wave)

    def unsupported(*args: Any, **kwargs: Any) -> Any:
        raise tc.UnsupportedModelError("of another make")

    config = tc.CompileConfig.off().replace(t3=EAGER.t3)
    assert tc.validate(tts, tc.CompileConfig.off(), transcribe=False).passed  # nothing was asked for
    monkeypatch.setattr("tts_compile.components.component_set.T3Component", unsupported)
    report = tc.validate(tts, config, transcribe=False)
    assert report.failures == []
    assert report.left_to_stock == ("t3",)
    assert not report.passed
    assert report.to_dict()["passed"] is False


def test_a_comparison_without_a_component_that_failed_does_not_pass(tts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no such instruction")

    wave = np.linspace(0, 1, 24_000, dtype=np.float32)
    monkeypatch.setattr(
        tts, "generate", lambda text: torch.from_numpy(tts.watermarker.apply_watermark(wave, sample_rate=24_000))[None]
    )
    config = tc.CompileConfig.off().replace(watermark=EAGER.watermark)
    assert tc.validate(tts, config, ["A"], transcribe=False).passed
    monkeypatch.setattr("tts_compile.components.component_set.T3Component", broken)
    report = tc.validate(tts, config.replace(t3=EAGER.t3), ["A"], transcribe=False)
    assert report.components["watermark"].passed
    assert report.failures == []
    assert report.given_up == {"t3": "RuntimeError: no such instruction"}
    assert not report.passed
    assert "t3: left to stock for good: RuntimeError: no such instruction" in str(report)


def test_what_is_compiled_in_the_background_is_prepared_outside_inference_mode(
    tts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background.sys, "executable", "/bin/true")
    config = EAGER.replace(vocoder=tc.ComponentPolicy(backend="eager"), compile_in_background=True)
    modes: list[bool] = []

    class Remembered(ComponentSet):
        def __init__(self, *args: Any) -> None:
            modes.append(torch.is_inference_mode_enabled())
            super().__init__(*args)

    monkeypatch.setattr(attachment, "ComponentSet", Remembered)
    with tc.compile_model(tts, config) as fast, torch.inference_mode():
        assert attachment_of(fast).switch(wait=True)
    assert modes == [False, False]
