"""The flow against stock: solver, batches, references, and what stock refuses or cannot do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import tts_compile as tc
from speech import signal_to_error_db
from stages import FLOW, Made, assert_alike, assert_equal, tokens, voice
from test_flow_and_vocoder import chunks
from tts_compile.components.flow.encoder import shifted
from tts_compile.components.flow.engine import FlowEngine
from tts_compile.components.flow.estimator import mish
from tts_compile.components.runtime import ComponentRuntime, Runtime
from tts_compile.execution.operators import Operators
from tts_compile.families.english import ENGLISH
from tts_compile.testing.depth import SMALL, built_with
from tts_compile.timing.blocks import Timings


def test_frames_whose_tokens_still_have_to_come_are_left_out(traced: Any, tts: Any) -> None:
    with pytest.raises(RuntimeError, match="must match"):  # stock shortens what it encodes and not the mask
        FLOW.stock(tts, 20, finalize=False)
    found = FLOW.call(traced, 20, finalize=False)
    assert found.main.shape == (1, 80, 2 * (20 - 3))
    assert found.main.isfinite().all()


def test_given_noise_takes_the_place_of_the_last_random_numbers(
    speaker: Any, model: Any, stock_made: Callable[..., Made]
) -> None:
    noise = torch.randn(1, 80, 40)
    found = FLOW.call(speaker, 20, noised_mels=noise)
    assert_alike(found, FLOW.stock(model, 20, noised_mels=noise))
    assert signal_to_error_db(found.main, stock_made(FLOW, 20).main) < 20


def test_more_steps_and_one(traced: Any, stock_made: Callable[..., Made]) -> None:
    for steps in (1, 10):
        assert_alike(FLOW.call(traced, 9, n_timesteps=steps), stock_made(FLOW, 9, n_timesteps=steps))


def test_rows_of_a_batch_speak_as_if_alone(speaker: Any) -> None:
    counts, prompt = (30, 7), 10
    noise = torch.randn(2, 80, 2 * (prompt + max(counts)))
    together = FLOW.call(
        speaker,
        30,
        token=torch.cat([tokens(30), torch.nn.functional.pad(tokens(7), (0, 23))]),
        token_len=torch.tensor(counts),
        noised_mels=noise,
    ).main
    for row, count in enumerate(counts):
        alone = FLOW.call(speaker, count, noised_mels=noise[row : row + 1, :, : 2 * (prompt + count)]).main
        assert signal_to_error_db(alone, together[row : row + 1, :, : 2 * count]) > 100
    assert torch.equal(together[1, :, 2 * counts[1] :], noise[1, :, 2 * (prompt + counts[1]) :])  # as in stock


@pytest.fixture(scope="module")
def meanflow() -> Iterator[Any]:
    from chatterbox.models.s3gen import S3Gen

    with torch.random.fork_rng(), built_with(SMALL["turbo"], "turbo"):
        torch.manual_seed(0)
        yield S3Gen(meanflow=True).eval().flow


def test_mean_flow_solver(meanflow: Any) -> None:
    runtime = Runtime(torch.device("cpu"), FLOW.eager, Timings())
    view = ComponentRuntime(runtime, "flow", False, lambda: None)
    engine = FlowEngine(meanflow, ENGLISH.synthesis, Operators(), view)
    given = {**FLOW.arguments(20), "n_timesteps": 2, "meanflow": True, "noised_mels": torch.randn(1, 80, 40)}

    def solved(inference: Callable[..., Any], **changes: Any) -> Made:
        torch.manual_seed(5)
        mel, _ = inference(**{**given, **changes})
        return Made((mel.clone(),), torch.get_rng_state())

    expected = solved(meanflow.inference)
    with view.entered():
        assert_alike(solved(engine.inference), expected)
        engine.warm_up()
        one = solved(engine.inference, n_timesteps=1)
    assert signal_to_error_db(expected.main, one.main) < 40  # the steps' ends matter


@pytest.mark.parametrize("wrong", [-1, 6561, 8000])
@pytest.mark.parametrize("where", ["token", "prompt_token"])
def test_tokens_out_of_range(traced: Any, wrong: int, where: str) -> None:
    bad = FLOW.arguments(10)[where].clone()
    bad[0, 3] = wrong
    with pytest.raises(tc.InputError, match=f"speech token {wrong} is not in the range 0 to 6560"):
        FLOW.call(traced, 10, **{where: bad})


@pytest.mark.parametrize("length", [-1, 21, 30])
def test_lengths_that_do_not_fit(traced: Any, length: int) -> None:
    prompt = voice(10)["prompt_token_len"]
    with pytest.raises(tc.InputError, match="do not fit"):
        FLOW.call(traced, 20, token_len=torch.tensor([length]) - (prompt if length < 0 else 0))


def test_a_reference_longer_than_its_tokens(traced: Any) -> None:
    with pytest.raises(tc.InputError, match="mel frames leave none"):
        FLOW.call(traced, 2, prompt_feat=torch.randn(1, 40, 80))


def test_a_reference_without_a_batch_dimension(traced: Any, stock_made: Callable[..., Made]) -> None:
    known = voice(10)
    changes = {"prompt_token": known["prompt_token"][0], "prompt_feat": known["prompt_feat"][0]}
    assert_alike(FLOW.call(traced, **changes), stock_made(FLOW))


def test_another_dtype_is_left_to_stock(tts: Any) -> None:
    model = FLOW.on_copy(tts)
    handle = tc.compile_model(model, FLOW.eager.replace(warmup_samples=0))  # stock cannot speak with such a flow
    model.s3gen.flow.bfloat16()
    handle.warmup()
    changes = {name: value.bfloat16() for name, value in voice(10).items() if name in ("prompt_feat", "embedding")}
    assert_equal(FLOW.call(handle, **changes), FLOW.stock(model, **changes))
    assert "moved or cast" in FLOW.row(handle).fallbacks[0].error


def test_a_change_while_hooked_is_seen_after_it(tts: Any) -> None:
    model = FLOW.on_copy(tts)
    handle = tc.compile_model(model, FLOW.eager)
    FLOW.call(handle, 60)
    hook = model.s3gen.flow.encoder_proj.register_forward_hook(lambda *_: None)
    FLOW.call(handle, 60)
    chunks(model.s3gen.flow)
    FLOW.call(handle, 60)
    hook.remove()
    assert_equal(FLOW.call(handle, 60), FLOW.stock(model, 60))


@pytest.mark.parametrize("short", [False, True], ids=["of another dtype", "short"])
def test_stocks_tables_are_left_as_they_are(tts: Any, short: bool) -> None:
    """Stock extends or casts its tables of positions when it is called; a restored model has them as before."""
    model = FLOW.on_copy(tts)
    encoder = model.s3gen.flow.encoder
    owners = [encoder.embed.pos_enc, encoder.up_embed.pos_enc]
    for owner in owners:
        owner.pe = owner.pe[:, :5].clone() if short else owner.pe.double()
    before = [(owner.pe.shape, owner.pe.dtype) for owner in owners]
    expected = FLOW.stock(FLOW.on_copy(tts), 20)
    with tc.compile_model(model, FLOW.eager) as handle:
        assert [(owner.pe.shape, owner.pe.dtype) for owner in owners] == before
        assert_alike(FLOW.call(handle, 20), expected)
    assert [(owner.pe.shape, owner.pe.dtype) for owner in owners] == before


def test_batches_and_threads_stay_below_the_recompile_limit(fast: tc.CompiledTTS) -> None:
    threads = torch.get_num_threads()
    try:
        for count in (2, 1):
            torch.set_num_threads(count)
            for rows in (1, 2, 3, 5):
                FLOW.call(fast, 7, token=tokens(7, rows), token_len=torch.full((rows,), 7))
    finally:
        torch.set_num_threads(threads)
    row = FLOW.row(fast)
    assert (row.ran, row.fallbacks) == ("inductor", ())


def test_shifted_distances_against_an_index() -> None:
    n = 7
    table = torch.randn(2, 3, n, 2 * n - 1)
    i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    assert torch.equal(shifted(table), table[:, :, i, n - 1 - i + j])


@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"), [(torch.float32, 1e-5, 1e-7), (torch.float16, 2e-3, 1e-5), (torch.bfloat16, 1e-2, 1e-5)]
)
def test_mish_against_torch(dtype: torch.dtype, rtol: float, atol: float) -> None:
    x = torch.linspace(-100, 100, 2001).to(dtype)
    assert mish(x).dtype == dtype
    assert torch.allclose(mish(x), torch.nn.functional.mish(x), rtol=rtol, atol=atol)
