"""The flow against stock: equal mel frames, equal generator states, whatever the length."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import tts_compile as tc
from speech import signal_to_error_db
from tts_compile.components.flow.encoder import shifted
from tts_compile.components.flow.engine import TOKENS, FlowEngine
from tts_compile.components.flow.estimator import mish
from tts_compile.execution.operators import TorchOperators
from tts_compile.fallback import FallbackManager
from tts_compile.testing.depth import SMALL, built_with

RUNG = TOKENS.rungs[0]
LEAST_DB = 60
# Traced by dynamo and run as traced, with native blocks and convolutions: no wait for inductor.
QUICK = tc.CompileConfig.off().replace(flow=tc.ComponentPolicy(execution="inductor", backend="eager"))
EAGER = tc.CompileConfig.off().replace(flow=tc.ComponentPolicy(execution="eager"))


class Heard(NamedTuple):
    """Mel frames and the generator after them."""

    mel: Tensor
    state: Tensor


def voice(tokens: int) -> dict[str, Any]:
    """A reference of so many tokens, 25 a second."""
    generator = torch.Generator().manual_seed(tokens)
    return {
        "prompt_token": torch.randint(0, 6561, (1, tokens), generator=generator),
        "prompt_token_len": torch.tensor([tokens]),
        "prompt_feat": torch.randn(1, 2 * tokens, 80, generator=generator) - 4,
        "prompt_feat_len": None,
        "embedding": torch.randn(1, 192, generator=generator),
    }


def tokens(count: int, rows: int = 1) -> Tensor:
    return torch.randint(0, 6561, (rows, count), generator=torch.Generator().manual_seed(count))


def flow(inference: Callable[..., Any], count: int, prompt: int = 10, **changes: Any) -> Heard:
    torch.manual_seed(5)
    arguments = {"token": tokens(count), "token_len": torch.tensor([count]), "finalize": True, "n_timesteps": 3}
    mel, nothing = inference(**{**arguments, **voice(prompt), **changes})
    assert nothing is None
    return Heard(mel.clone(), torch.get_rng_state())


def stock(tts: Any) -> Callable[..., Any]:
    module = tts.s3gen.flow
    return lambda **kwargs: type(module).inference(module, **kwargs)


def assert_alike(found: Heard, expected: Heard) -> None:
    assert found.mel.shape == expected.mel.shape
    assert signal_to_error_db(expected.mel, found.mel) > LEAST_DB
    assert torch.equal(found.state, expected.state)


@pytest.fixture
def quick(tts: Any) -> tc.CompiledTTS:
    return tc.compile_model(tts, QUICK)


@pytest.fixture(params=["inductor", "native", "torch"])
def speaker(request: pytest.FixtureRequest) -> Any:
    if request.param == "inductor":
        return request.getfixturevalue("fast")
    return tc.compile_model(request.getfixturevalue("tts"), QUICK if request.param == "native" else EAGER)


@pytest.mark.parametrize(
    ("count", "prompt"),
    [(1, 10), (RUNG - 11, 10), (RUNG - 10, 10), (RUNG - 9, 10), (5, 250), (6, 250), (7, 250), (2 * RUNG, 10)],
)
def test_lengths_around_a_rung_and_references_long_and_short(speaker: Any, tts: Any, count: int, prompt: int) -> None:
    assert_alike(flow(speaker.s3gen.flow.inference, count, prompt), flow(stock(tts), count, prompt))


def test_in_inference_mode_and_out_of_it(quick: Any, tts: Any) -> None:
    with torch.inference_mode():
        assert_alike(flow(quick.s3gen.flow.inference, 20), flow(stock(tts), 20))
    assert_alike(flow(quick.s3gen.flow.inference, 20), flow(stock(tts), 20))


def test_frames_whose_tokens_still_have_to_come_are_left_out(quick: Any, tts: Any) -> None:
    with pytest.raises(RuntimeError, match="must match"):  # stock shortens what it encodes and not the mask
        flow(stock(tts), 20, finalize=False)
    found = flow(quick.s3gen.flow.inference, 20, finalize=False)
    assert found.mel.shape == (1, 80, 2 * (20 - 3))
    assert found.mel.isfinite().all()


def test_given_noise_takes_the_place_of_the_last_random_numbers(speaker: Any, tts: Any) -> None:
    noise = torch.randn(1, 80, 40)
    found = flow(speaker.s3gen.flow.inference, 20, noised_mels=noise)
    assert_alike(found, flow(stock(tts), 20, noised_mels=noise))
    assert signal_to_error_db(found.mel, flow(stock(tts), 20).mel) < 20


def test_more_steps_and_one(quick: Any, tts: Any) -> None:
    for steps in (1, 10):
        expected = flow(stock(tts), 9, n_timesteps=steps)
        assert_alike(flow(quick.s3gen.flow.inference, 9, n_timesteps=steps), expected)


def test_rows_of_a_batch_speak_as_if_alone(speaker: Any) -> None:
    counts, prompt = (30, 7), 10
    noise = torch.randn(2, 80, 2 * (prompt + max(counts)))
    inference = speaker.s3gen.flow.inference
    together = flow(
        inference,
        30,
        prompt,
        token=torch.cat([tokens(30), torch.nn.functional.pad(tokens(7), (0, 23))]),
        token_len=torch.tensor(counts),
        noised_mels=noise,
    )
    for row, count in enumerate(counts):
        alone = flow(inference, count, prompt, noised_mels=noise[row : row + 1, :, : 2 * (prompt + count)])
        assert signal_to_error_db(alone.mel, together.mel[row : row + 1, :, : 2 * count]) > 100
    assert torch.equal(together.mel[1, :, 2 * counts[1] :], noise[1, :, 2 * (prompt + counts[1]) :])  # as in stock


@pytest.fixture(scope="module")
def meanflow() -> Iterator[Any]:
    from chatterbox.models.s3gen import S3Gen

    with torch.random.fork_rng(), built_with(SMALL["turbo"], "turbo"):
        torch.manual_seed(0)
        yield S3Gen(meanflow=True).eval().flow


def test_mean_flow_solver(meanflow: Any, capsys: pytest.CaptureFixture[str]) -> None:
    engine = FlowEngine(meanflow, FallbackManager("flow", ["eager"]), TorchOperators())
    settings: dict[str, Any] = {"n_timesteps": 2, "meanflow": True, "noised_mels": torch.randn(1, 80, 40)}
    expected = flow(meanflow.inference, 20, **settings)
    assert_alike(flow(engine.inference, 20, **settings), expected)
    engine.warm_up()
    one = flow(engine.inference, 20, **{**settings, "n_timesteps": 1})
    assert signal_to_error_db(expected.mel, one.mel) < 40  # the steps' ends matter


def test_no_graph_for_twenty_other_lengths(fast: Any) -> None:
    before = fast.report().components["flow"]
    for count in range(3, 203, 10):
        flow(fast.s3gen.flow.inference, count, n_timesteps=1)
    after = fast.report().components["flow"]
    assert after.ran == "inductor"
    assert after.calls > before.calls
    assert after.compiled_calls == after.calls
    # batches of other tests have graphs of their own
    assert (after.graphs, after.recompiles_after_warmup) == (before.graphs, before.recompiles_after_warmup)
    assert after.graph_breaks == 0


def test_warm_up_draws_nothing(quick: Any) -> None:
    state = torch.get_rng_state()
    quick.warmup()
    assert torch.equal(torch.get_rng_state(), state)
    assert quick.report().components["flow"].graphs > 0


@pytest.mark.parametrize("wrong", [-1, 6561, 8000])
@pytest.mark.parametrize("where", ["token", "prompt_token"])
def test_tokens_out_of_range(quick: Any, wrong: int, where: str) -> None:
    bad = {**voice(10), "token": tokens(10)}[where].clone()
    bad[0, 3] = wrong
    with pytest.raises(tc.InputError, match=f"speech token {wrong} is not in the range 0 to 6560"):
        flow(quick.s3gen.flow.inference, 10, **{where: bad})


def test_no_tokens(quick: Any) -> None:
    with pytest.raises(tc.InputError, match="no speech tokens"):
        flow(quick.s3gen.flow.inference, 0)


def test_changed_weights_are_seen(quick: Any, tts: Any) -> None:
    inference, estimator = quick.s3gen.flow.inference, tts.s3gen.flow.decoder.estimator
    before = flow(inference, 20)
    for parameter in (estimator.mid_blocks[0][1][0].ff.net[2].weight, estimator.final_proj.weight):
        saved = parameter.detach().clone()
        try:
            with torch.no_grad():
                parameter.mul_(1.5)
            found = flow(inference, 20)
            assert_alike(found, flow(stock(tts), 20))
            assert signal_to_error_db(before.mel, found.mel) < LEAST_DB
        finally:
            with torch.no_grad():
                parameter.copy_(saved)
    assert torch.equal(flow(inference, 20).mel, before.mel)


def test_hooks_are_left_to_stock(quick: Any, tts: Any) -> None:
    handle = tts.s3gen.flow.decoder.estimator.final_proj.register_forward_hook(lambda module, given, made: made * 2)
    try:
        for _ in range(2):
            assert torch.equal(flow(quick.s3gen.flow.inference, 9).mel, flow(stock(tts), 9).mel)
    finally:
        handle.remove()
    row = quick.report().components["flow"]
    assert (row.ran, len(row.fallbacks)) == ("stock", 1)
    assert "utterances left to stock: 2" in row.note
    flow(quick.s3gen.flow.inference, 9)
    assert quick.report().components["flow"].ran == "inductor"


def test_another_dtype_is_left_to_stock(tts: Any) -> None:
    copied = copy.deepcopy(tts)
    fast = tc.compile_model(copied, QUICK.replace(warmup_samples=0))  # stock cannot speak with such a flow
    copied.s3gen.flow.bfloat16()
    fast.warmup()
    changes = {name: value.bfloat16() for name, value in voice(10).items() if name in ("prompt_feat", "embedding")}
    expected = flow(stock(copied), 9, **changes)
    assert torch.equal(flow(fast.s3gen.flow.inference, 9, **changes).mel, expected.mel)
    assert "moved or cast" in fast.report().components["flow"].fallbacks[0].error


def test_restored_is_stock_bit_for_bit(quick: Any, tts: Any) -> None:
    flow(quick.s3gen.flow.inference, 20)
    quick.restore()
    assert "inference" not in vars(tts.s3gen.flow)
    assert torch.equal(flow(tts.s3gen.flow.inference, 20).mel, flow(stock(tts), 20).mel)


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


class OtherLinear(torch.nn.Linear):
    """As an adapter that adds something would be."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def other_linear(like: torch.nn.Linear) -> OtherLinear:
    other = OtherLinear(like.in_features, like.out_features, like.bias is not None)
    other.load_state_dict(like.state_dict())
    return other.eval()


def chunks(flow: Any) -> None:
    flow.encoder.static_chunk_size = 25


def macaron(flow: Any) -> None:
    layer = flow.encoder.up_encoders[1]
    layer.feed_forward_macaron = layer.feed_forward


def tanh(flow: Any) -> None:
    flow.decoder.estimator.mid_blocks[-1][1][-1].ff.net[0].approximate = "tanh"


def attention_bias(flow: Any) -> None:
    query = flow.decoder.estimator.mid_blocks[-1][1][-1].attn1.to_q
    query.bias = torch.nn.Parameter(torch.ones(query.out_features))


def epsilon(flow: Any) -> None:
    flow.decoder.estimator.up_blocks[0][1][0].norm3.eps = 1e-2


def stage_epsilon(flow: Any) -> None:
    flow.decoder.estimator.mid_blocks[0][0].block1.block[2].eps = 1.0


class Processor:
    """As diffusers lets one exchange."""

    def __call__(self, attention: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros_like(hidden_states)


def processor(flow: Any) -> None:
    flow.decoder.estimator.mid_blocks[0][1][0].attn1.set_processor(Processor())


def mixed(flow: Any) -> None:
    flow.decoder.estimator.bfloat16()


def adapter(flow: Any) -> None:
    attention = flow.decoder.estimator.mid_blocks[0][1][0].attn1
    attention.to_q = other_linear(attention.to_q)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (chunks, "attends in chunks"),
        (macaron, "layers of another kind"),
        (tanh, "MLP is of another kind"),
        (attention_bias, "attention is of another kind"),
        (epsilon, "blocks differ"),
        (stage_epsilon, "blocks differ"),
        (processor, "attends by Processor"),
        (mixed, "several dtypes"),
        (adapter, "OtherLinear"),
    ],
)
def test_a_flow_of_another_make_stays_stock(tts: Any, change: Any, reason: str) -> None:
    copied = copy.deepcopy(tts)
    change(copied.s3gen.flow)
    fast = tc.compile_model(copied, QUICK)
    row = fast.report().components["flow"]
    assert row.ran == "stock"
    assert reason in row.note
    assert "inference" not in vars(copied.s3gen.flow)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (adapter, "OtherLinear"),
        (processor, "attends by Processor"),
        (chunks, "attends in chunks"),
        (stage_epsilon, "blocks differ"),
    ],
)
def test_what_is_changed_later_is_left_to_stock(tts: Any, change: Any, reason: str) -> None:
    copied = copy.deepcopy(tts)
    fast = tc.compile_model(copied, QUICK)
    assert_alike(flow(fast.s3gen.flow.inference, 60), flow(stock(copied), 60))
    change(copied.s3gen.flow)
    assert torch.equal(flow(fast.s3gen.flow.inference, 60).mel, flow(stock(copied), 60).mel)
    assert reason in fast.report().components["flow"].fallbacks[0].error


@pytest.mark.parametrize("part", ["encoder", "decoder.estimator"])
def test_an_exchanged_part_is_the_one_that_speaks(tts: Any, part: str) -> None:
    copied = copy.deepcopy(tts)
    fast = tc.compile_model(copied, QUICK)
    before = flow(fast.s3gen.flow.inference, 9)
    other = copy.deepcopy(copied.s3gen.flow.get_submodule(part))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    owner, _, name = part.rpartition(".")
    setattr(copied.s3gen.flow.get_submodule(owner), name, other)
    expected = flow(stock(copied), 9)
    assert_alike(flow(fast.s3gen.flow.inference, 9), expected)
    assert signal_to_error_db(expected.mel, before.mel) < LEAST_DB
    assert fast.report().components["flow"].fallbacks == ()


def test_global_hooks_are_left_to_stock(quick: Any, tts: Any) -> None:
    def louder(module: torch.nn.Module, args: Any, output: Any) -> Any:
        return 1.5 * output if isinstance(module, torch.nn.Mish) else None

    hook = torch.nn.modules.module.register_module_forward_hook(louder)
    try:
        assert torch.equal(flow(quick.s3gen.flow.inference, 9).mel, flow(stock(tts), 9).mel)
    finally:
        hook.remove()
    assert "global forward hooks" in quick.report().components["flow"].fallbacks[0].error


@pytest.mark.parametrize("length", [-1, 21, 30])
def test_lengths_that_do_not_fit(quick: Any, length: int) -> None:
    prompt = voice(10)["prompt_token_len"]
    with pytest.raises(tc.InputError, match="do not fit"):
        flow(quick.s3gen.flow.inference, 20, token_len=torch.tensor([length]) - (prompt if length < 0 else 0))


def test_a_method_of_a_part_replaced_later_is_left_to_stock(tts: Any) -> None:
    copied = copy.deepcopy(tts)
    fast = tc.compile_model(copied, QUICK)
    embed = copied.s3gen.flow.encoder.embed
    forward = embed.forward
    embed.forward = lambda x, *others: forward(2 * x, *others)
    assert torch.equal(flow(fast.s3gen.flow.inference, 9).mel, flow(stock(copied), 9).mel)
    assert "forward has been replaced" in fast.report().components["flow"].fallbacks[0].error


def test_batches_and_threads_stay_below_the_recompile_limit(fast: tc.CompiledTTS) -> None:
    threads = torch.get_num_threads()
    inference = fast.s3gen.flow.inference
    try:
        for count in (2, 1):
            torch.set_num_threads(count)
            for rows in (1, 2, 3, 5):
                flow(inference, 7, token=tokens(7, rows), token_len=torch.full((rows,), 7))
    finally:
        torch.set_num_threads(threads)
    row = fast.report().components["flow"]
    assert (row.ran, row.fallbacks) == ("inductor", ())


def test_a_reference_longer_than_its_tokens(quick: Any) -> None:
    with pytest.raises(tc.InputError, match="mel frames leave none"):
        flow(quick.s3gen.flow.inference, 2, prompt_feat=torch.randn(1, 40, 80))


def test_a_reference_without_a_batch_dimension(quick: Any, tts: Any) -> None:
    known = voice(10)
    changes = {"prompt_token": known["prompt_token"][0], "prompt_feat": known["prompt_feat"][0]}
    assert_alike(flow(quick.s3gen.flow.inference, 9, **changes), flow(stock(tts), 9))


def test_what_a_warm_up_has_copied_serves_the_first_call(quick: Any) -> None:
    copies = quick._components["flow"].engine.copies
    quick.warmup()
    made = copies.current()
    flow(quick.s3gen.flow.inference, 9)
    assert copies.current() is made


def test_a_patch_from_before_goes_on_being_called(tts: Any) -> None:
    expected = flow(stock(tts), 9)
    own = tts.s3gen.flow.inference
    tts.s3gen.flow.inference = lambda **kwargs: [2 * own(**kwargs)[0], *own(**kwargs)[1:]]
    with tc.compile_model(tts, QUICK) as fast:
        torch.manual_seed(5)
        found, *_ = fast.s3gen.flow.inference(
            token=tokens(9), token_len=torch.tensor([9]), finalize=True, n_timesteps=3, **voice(10)
        )
        assert torch.equal(found, 2 * expected.mel)
        fast.warmup()
        row = fast.report().components["flow"]
    assert (row.ran, len(row.fallbacks)) == ("stock", 1)
    assert "not chatterbox's own" in row.fallbacks[0].error


def test_what_changes_while_hooked_is_seen_after_it(tts: Any) -> None:
    copied = copy.deepcopy(tts)
    fast = tc.compile_model(copied, QUICK)
    assert_alike(flow(fast.s3gen.flow.inference, 60), flow(stock(copied), 60))
    hook = copied.s3gen.flow.encoder_proj.register_forward_hook(lambda *_: None)
    flow(fast.s3gen.flow.inference, 60)
    chunks(copied.s3gen.flow)
    flow(fast.s3gen.flow.inference, 60)
    hook.remove()
    assert torch.equal(flow(fast.s3gen.flow.inference, 60).mel, flow(stock(copied), 60).mel)
