"""The flow by CUDA graphs against stock, on a CPU that pretends to have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import tts_compile as tc
from conftest import components
from pretend import PretendRecorder, pretend
from speech import signal_to_error_db
from stages import FLOW, LEAST_DB, RUNG, Made, assert_alike, tokens
from tts_compile.components.flow import engine

ONLY = FLOW.config(tc.ComponentPolicy(execution="cuda_graph"))


@pytest.fixture
def graphed(tts: Any, recorder: PretendRecorder) -> tc.CompiledTTS:
    return tc.compile_model(tts, ONLY)


def test_lengths_share_the_recording_of_their_rung(
    graphed: Any, stock_made: Callable[..., Made], recorder: PretendRecorder
) -> None:
    for count in (RUNG - 10, 1, 20, RUNG - 9):
        assert_alike(FLOW.call(graphed, count), stock_made(FLOW, count))
    row = FLOW.row(graphed)
    assert len(recorder.recorded) == row.graphs == 2
    assert (row.ran, row.compiled_calls, row.calls) == ("cuda_graph", 4, 4)


def test_other_steps_batches_and_noise(graphed: Any, tts: Any) -> None:
    batch = {"token": tokens(20, rows=2), "token_len": torch.tensor([20, 20])}
    for changes in ({"n_timesteps": 2}, {"noised_mels": torch.randn(1, 80, 40)}, {}, batch):
        assert_alike(FLOW.call(graphed, 20, **changes), FLOW.stock(tts, 20, **changes))


def test_results_stay_when_the_next_call_overwrites_the_recordings(graphed: Any) -> None:
    given = {**FLOW.arguments(20), "n_timesteps": 2}
    mel, _ = graphed.s3gen.flow.inference(**given)
    before = mel.clone()
    again, _ = graphed.s3gen.flow.inference(**given)  # from other random numbers
    assert not torch.equal(again, before)
    assert torch.equal(mel, before)


def test_changed_weights_are_recorded_anew(tts: Any, recorder: PretendRecorder) -> None:
    model = FLOW.on_copy(tts)
    handle = tc.compile_model(model, ONLY)
    before = FLOW.call(handle, 20)
    with torch.no_grad():
        model.s3gen.flow.encoder_proj.weight.mul_(1.25)
        model.s3gen.flow.decoder.estimator.final_proj.weight.mul_(1.25)
    expected = FLOW.stock(model, 20)
    assert_alike(FLOW.call(handle, 20), expected)
    assert signal_to_error_db(expected.main, before.main) < LEAST_DB
    assert (recorder.alive, len(recorder.recorded)) == (1, 2)


def test_other_settings_of_torch_are_recorded_anew(graphed: Any, recorder: PretendRecorder) -> None:
    FLOW.call(graphed, 20)
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        FLOW.call(graphed, 20)
    finally:
        torch.set_float32_matmul_precision(precision)
    assert len(recorder.recorded) == 2


def test_a_failed_recording_falls_back(
    tts: Any, monkeypatch: pytest.MonkeyPatch, stock_made: Callable[..., Made]
) -> None:
    pretend(monkeypatch, fail_at=0)
    with tc.compile_model(tts, FLOW.config(tc.ComponentPolicy(execution="cuda_graph", backend="eager"))) as handle:
        assert_alike(FLOW.call(handle, 20), stock_made(FLOW, 20))
        (event,) = FLOW.row(handle).fallbacks
        assert (event.phase, event.action) == ("compile", "inductor instead of cuda_graph")


def test_a_warm_up_records_the_usual_rungs(
    tts: Any, recorder: PretendRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "CAPTURED_AHEAD", 2 * RUNG)
    handle = tc.compile_model(tts, ONLY)
    monkeypatch.setattr(components(handle)["flow"].engine, "_solver_steps", 3)
    state = torch.get_rng_state()
    handle.warmup()
    assert torch.equal(torch.get_rng_state(), state)
    for count in (5, RUNG - 10, 2 * RUNG - 10):
        FLOW.call(handle, count)
    assert (FLOW.row(handle).graphs, FLOW.row(handle).recompiles_after_warmup) == (2, 0)


def test_restore_gives_memory_back(graphed: Any, recorder: PretendRecorder) -> None:
    FLOW.call(graphed, 20)
    graphed.restore()
    assert recorder.alive == 0
