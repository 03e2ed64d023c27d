"""``compile_model(..., validate=True)`` gives up what differs from stock, and nothing else."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import tts_compile as tc
from conftest import EAGER
from tts_compile.components.vocoder.engine import VocoderEngine
from tts_compile.parity import ComponentParity

# T3, flow, vocoder and watermark take part in an utterance; reference and voice encoder do not.
WITHOUT_T3 = EAGER.replace(t3=tc.ComponentPolicy(execution="stock"))
NAMES = ("t3", "flow", "vocoder", "voice_encoder", "reference", "watermark")


@pytest.fixture(autouse=True)
def _each_passes_alone() -> Iterator[None]:
    passed = ComponentParity("eager", 1, 0, (), (), True, ())
    module = importlib.import_module("tts_compile.parity.measure")  # a function of the package has its name
    with pytest.MonkeyPatch.context() as patch:  # the test's own has to end before ``tts`` does
        patch.setattr(module, "compare", lambda *_: passed)
        yield


@pytest.fixture
def louder() -> Iterator[Callable[[Callable[[], bool]], None]]:
    """Has the vocoder's waves come out too loud whenever a condition holds."""
    inference = VocoderEngine.inference

    with pytest.MonkeyPatch.context() as patch:

        def plant(condition: Callable[[], bool]) -> None:
            def inaccurate(self: Any, *args: Any, **kwargs: Any) -> Any:
                wave, source = inference(self, *args, **kwargs)
                return (1.01 * wave if condition() else wave), source

            patch.setattr(VocoderEngine, "inference", inaccurate)

        yield plant


def given_up(fast: tc.CompiledTTS) -> dict[str, str]:
    """Returns the error of every component that was left to stock."""
    events = [event for row in fast.report().components.values() for event in row.fallbacks]
    assert {event.phase for event in events} <= {"validate"}
    return {event.component: event.error for event in events if event.action == "stock"}


def test_one_component_spoils_the_wave(
    tts: Any, few_tokens: None, louder: Callable[[Callable[[], bool]], None]
) -> None:
    louder(lambda: True)
    with tc.compile_model(tts, WITHOUT_T3, validate=True) as fast:
        assert fast.parity is not None
        assert not fast.parity.passed
        assert list(given_up(fast)) == ["vocoder"]
        assert given_up(fast)["vocoder"].startswith("whole utterances with it alone: 40.0 dB of signal to error")
        assert "inference" not in vars(tts.s3gen.mel2wav)
        assert "inference" in vars(tts.s3gen.flow)
        assert "apply_watermark" in vars(tts.watermarker)
        without = fast.validate(["Yes."], transcribe=False)
        assert without.failures == []
        assert without.given_up == given_up(fast)
        assert not without.passed  # the vocoder was asked for
    with pytest.raises(tc.ParityError, match=r"^vocoder: whole utterances with it alone: 40\.0 dB") as caught:
        tc.compile_model(tts, WITHOUT_T3.replace(fallback="raise"), validate=True)
    assert not caught.value.report.passed
    assert "inference" not in vars(tts.s3gen.flow)


def test_two_components_spoil_it_together(
    tts: Any, few_tokens: None, louder: Callable[[Callable[[], bool]], None]
) -> None:
    louder(lambda: "inference" in vars(tts.s3gen.flow))
    with tc.compile_model(tts, WITHOUT_T3, validate=True) as fast:
        (name, why), *others = given_up(fast).items()
        assert not others
        assert name == "vocoder"
        assert why.startswith("whole utterances, together with flow, watermark: 40.0 dB")
        assert "inference" in vars(tts.s3gen.flow)


@pytest.mark.parametrize("fallback", ["fallback", "raise"])
def test_a_stock_model_that_differs_from_itself(tts: Any, monkeypatch: pytest.MonkeyPatch, fallback: str) -> None:
    calls = itertools.count()
    monkeypatch.setattr(tts, "generate", lambda text: torch.full((1, 4800), 1.0 + next(calls)))
    config = EAGER.replace(fallback=fallback)
    if fallback == "raise":
        with pytest.raises(tc.ParityError, match=r"stock differ from each other .*dB.* no component can be blamed"):
            tc.compile_model(tts, config, validate=True)
        assert "inference" not in vars(tts.t3)
        return
    with tc.compile_model(tts, config, validate=True) as fast:
        assert given_up(fast) == {}
        for name in NAMES:
            (event,) = fast.report().components[name].fallbacks
            assert (event.phase, event.action) == ("validate", "kept")
            assert "no component can be blamed" in event.error
        assert "inference" in vars(tts.t3)


def test_a_difference_that_does_not_come_again(
    tts: Any, few_tokens: None, louder: Callable[[Callable[[], bool]], None]
) -> None:
    first = iter([True])
    louder(lambda: next(first, False))
    with tc.compile_model(tts, WITHOUT_T3, validate=True) as fast:
        assert given_up(fast) == {}
        assert "passed when they were repeated" in fast.report().components["flow"].fallbacks[0].error
