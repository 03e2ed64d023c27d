"""The flow by CUDA graphs against stock, on a CPU that pretends to have them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import tts_compile as tc
from pretend import PretendRecorder, pretend
from speech import signal_to_error_db
from test_flow import LEAST_DB, RUNG, assert_alike, flow, stock, tokens
from tts_compile.components.flow import engine

ONLY = tc.CompileConfig.off().replace(flow=tc.ComponentPolicy(execution="cuda_graph"))


@pytest.fixture
def graphed(tts: Any, recorder: PretendRecorder) -> tc.CompiledTTS:
    return tc.compile_model(tts, ONLY)


def row(handle: tc.CompiledTTS) -> tc.ComponentReport:
    return handle.report().components["flow"]


def test_lengths_share_the_recording_of_their_rung(graphed: Any, tts: Any, recorder: PretendRecorder) -> None:
    for count in (RUNG - 10, 1, 20, RUNG - 9):
        assert_alike(flow(graphed.s3gen.flow.inference, count), flow(stock(tts), count))
    assert len(recorder.recorded) == row(graphed).graphs == 2
    assert (row(graphed).ran, row(graphed).compiled_calls, row(graphed).calls) == ("cuda_graph", 4, 4)


def test_other_steps_batches_and_noise(graphed: Any, tts: Any) -> None:
    for changes in ({"n_timesteps": 2}, {"noised_mels": torch.randn(1, 80, 40)}, {}):
        found = flow(graphed.s3gen.flow.inference, 20, **changes)
        assert_alike(found, flow(stock(tts), 20, **changes))
    batch = {"token": tokens(20, rows=2), "token_len": torch.tensor([20, 20])}
    assert_alike(flow(graphed.s3gen.flow.inference, 20, **batch), flow(stock(tts), 20, **batch))


def test_results_stay_when_the_next_call_overwrites_the_recordings(graphed: Any) -> None:
    mel, _ = graphed.s3gen.flow.inference(**arguments(20, seed=1))
    before = mel.clone()
    graphed.s3gen.flow.inference(**arguments(20, seed=2))
    assert torch.equal(mel, before)


def arguments(count: int, seed: int) -> dict[str, Any]:
    from test_flow import voice

    torch.manual_seed(seed)
    return {
        **voice(10),
        "token": tokens(count),
        "token_len": torch.tensor([count]),
        "finalize": True,
        "n_timesteps": 2,
    }


def test_changed_weights_are_recorded_anew(tts: Any, recorder: PretendRecorder) -> None:
    copied = copy.deepcopy(tts)
    handle = tc.compile_model(copied, ONLY)
    before = flow(handle.s3gen.flow.inference, 20)
    with torch.no_grad():
        copied.s3gen.flow.encoder_proj.weight.mul_(1.25)
        copied.s3gen.flow.decoder.estimator.final_proj.weight.mul_(1.25)
    expected = flow(stock(copied), 20)
    assert_alike(flow(handle.s3gen.flow.inference, 20), expected)
    assert signal_to_error_db(expected.mel, before.mel) < LEAST_DB
    assert (recorder.alive, len(recorder.recorded)) == (1, 2)


def test_other_settings_of_torch_are_recorded_anew(graphed: Any, recorder: PretendRecorder) -> None:
    flow(graphed.s3gen.flow.inference, 20)
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        flow(graphed.s3gen.flow.inference, 20)
    finally:
        torch.set_float32_matmul_precision(precision)
    assert len(recorder.recorded) == 2


def test_a_failed_recording_falls_back(tts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, fail_at=0)
    policy = tc.ComponentPolicy(execution="cuda_graph", backend="eager")
    with tc.compile_model(tts, ONLY.replace(flow=policy)) as handle:
        assert_alike(flow(handle.s3gen.flow.inference, 20), flow(stock(tts), 20))
        (event,) = row(handle).fallbacks
        assert (event.phase, event.action) == ("compile", "inductor instead of cuda_graph")


def test_a_warm_up_records_the_usual_rungs(
    tts: Any, recorder: PretendRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "RECORDED_AHEAD", 2 * RUNG)
    handle = tc.compile_model(tts, ONLY)
    state = torch.get_rng_state()
    handle.warmup()
    assert torch.equal(torch.get_rng_state(), state)
    for count in (5, RUNG - 10, 2 * RUNG - 10):
        flow(handle.s3gen.flow.inference, count, n_timesteps=10)
    assert (row(handle).graphs, row(handle).recompiles_after_warmup) == (2, 0)


def test_restore_gives_memory_back(graphed: Any, recorder: PretendRecorder) -> None:
    flow(graphed.s3gen.flow.inference, 20)
    graphed.restore()
    assert recorder.alive == 0
