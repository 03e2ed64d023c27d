"""Flow and vocoder against stock in all that they have in common; each has a file for what it has not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tts_compile as tc
from conftest import EAGER
from speech import signal_to_error_db
from stages import FLOW, LEAST_DB, RUNG, STAGES, VOCODER, Made, Stage, assert_alike, assert_equal


@pytest.fixture(params=STAGES)
def stage(request: pytest.FixtureRequest) -> Stage:
    return STAGES[request.param]


@pytest.fixture
def own(tts: Any, stage: Stage) -> Any:
    """A model whose instance of the stage no other test uses: it may be changed."""
    return stage.on_copy(tts)


LENGTHS = [
    *((FLOW, length, {}) for length in (1, RUNG - 11, RUNG - 10, RUNG - 9, 2 * RUNG)),  # after a reference of 10 tokens
    *((FLOW, length, {"prompt": 250}) for length in (5, 6, 7)),
    *((VOCODER, length, {}) for length in (2, 3, 32, 33, 64, 101)),
]


@pytest.mark.parametrize(("stage", "length", "reference"), LENGTHS)
def test_lengths(
    speaker: Any, stock_made: Callable[..., Made], stage: Stage, length: int, reference: dict[str, int]
) -> None:
    assert_alike(stage.call(speaker, length, **reference), stock_made(stage, length, **reference))


def test_no_graph_for_twenty_other_lengths(fast: Any, stage: Stage) -> None:
    lengths, changes = {"flow": (range(3, 203, 10), {"n_timesteps": 1}), "vocoder": (range(2, 42, 2), {})}[stage.name]
    stage.call(fast, 3)
    before = stage.row(fast)
    for length in lengths:
        stage.call(fast, length, **changes)
    after = stage.row(fast)
    assert after.ran == "inductor"
    assert after.compiled_calls == after.calls > before.calls
    # batches of other tests have graphs of their own
    assert (after.graphs, after.recompiles_after_warmup) == (before.graphs, before.recompiles_after_warmup)
    assert after.graph_breaks == 0


def test_in_inference_mode_and_out_of_it(traced: Any, stock_made: Callable[..., Made], stage: Stage) -> None:
    with torch.inference_mode():
        assert_alike(stage.call(traced, 20), stock_made(stage, 20))
    assert_alike(stage.call(traced, 20), stock_made(stage, 20))


def test_a_warm_up_draws_nothing_and_serves_every_length(
    tts: Any, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tts_compile.components.flow.estimator import EstimatorWeights
    from tts_compile.components.vocoder.weights import VocoderWeights

    kind = {"flow": EstimatorWeights, "vocoder": VocoderWeights}[stage.name]
    made: list[Any] = []
    read = kind.of
    monkeypatch.setattr(kind, "of", lambda *given: made.append(1) or read(*given))
    handle = tc.compile_model(tts, stage.quick)
    state = torch.get_rng_state()
    handle.warmup()
    assert torch.equal(torch.get_rng_state(), state)
    graphs = stage.row(handle).graphs
    assert graphs > 0
    for length in (2, 9, RUNG - 11, RUNG - 10, RUNG - 9):  # one fills a rung, after a reference of 10 tokens
        stage.call(handle, length)
    assert (stage.row(handle).graphs, len(made)) == (graphs, 1)


def test_nothing_to_make_something_from(traced: Any, stage: Stage) -> None:
    with pytest.raises(tc.InputError, match={"flow": "no speech tokens", "vocoder": "no mel frames"}[stage.name]):
        stage.call(traced, 0)


# Weights near the beginning and near the end of what is copied, and the layer of one of them.
WEIGHTS = {
    "flow": ("decoder.estimator.mid_blocks.0.1.0.ff.net.2.weight", "decoder.estimator.final_proj.weight"),
    "vocoder": (
        "resblocks.4.convs1.2.parametrizations.weight.original0",
        "conv_post.parametrizations.weight.original0",
    ),
}


def _written(module: nn.Module, name: str) -> None:
    with torch.no_grad():
        module.get_parameter(name).mul_(1.5)


def _loaded(module: nn.Module, name: str) -> None:
    """Other tensors, in place of all."""
    state = {key: value.clone() for key, value in module.state_dict().items()}
    state[name] *= 1.5
    module.load_state_dict(state, assign=True)


def _exchanged(module: nn.Module, name: str) -> None:
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, nn.Parameter(module.get_parameter(name).detach() * 1.5))


@pytest.mark.parametrize("change", [_written, _loaded, _exchanged])
def test_changed_weights_are_followed(own: Any, stage: Stage, change: Callable[..., None]) -> None:
    handle = tc.compile_model(own, stage.eager)
    before = stage.call(handle)
    for number, name in enumerate(WEIGHTS[stage.name], 1):
        change(stage.module(own), name)
        expected = stage.stock(own)
        assert_alike(stage.call(handle), expected)
        assert signal_to_error_db(before.main, expected.main) < LEAST_DB
        before = stage.call(handle)
        events = stage.row(handle).fallbacks
        assert len(events) == number
        assert "weights" in events[-1].error


def test_changed_weights_are_followed_by_native_code(traced: Any, stage: Stage) -> None:
    before = stage.call(traced)
    parameter = stage.module(traced).get_parameter(WEIGHTS[stage.name][0])
    saved = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.mul_(1.5)
        assert_alike(stage.call(traced), stage.stock(traced))
    finally:
        with torch.no_grad():
            parameter.copy_(saved)
    assert_equal(stage.call(traced), before)


@pytest.mark.parametrize(
    ("stage", "part"), [(FLOW, "encoder"), (FLOW, "decoder.estimator"), (VOCODER, "conv_pre"), (VOCODER, "resblocks")]
)
def test_an_exchanged_part_is_the_one_that_speaks(tts: Any, stage: Stage, part: str) -> None:
    model = stage.on_copy(tts)
    handle = tc.compile_model(model, stage.eager)
    before = stage.call(handle)
    other = stage.module(stage.on_copy(tts)).get_submodule(part)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    owner, _, name = part.rpartition(".")
    setattr(stage.module(model).get_submodule(owner), name, other)
    expected = stage.stock(model)
    assert_alike(stage.call(handle), expected)
    assert signal_to_error_db(expected.main, before.main) < LEAST_DB
    assert stage.row(handle).ran == "eager"


def test_hooks_are_left_to_stock(eager: Any, tts: Any, stage: Stage) -> None:
    part = {"flow": "decoder.estimator.final_proj", "vocoder": "conv_pre"}[stage.name]
    hook = stage.module(tts).get_submodule(part).register_forward_hook(lambda module, given, made: made * 2)
    try:
        for _ in range(2):
            assert_equal(stage.call(eager), stage.stock(tts))
    finally:
        hook.remove()
    row = stage.row(eager)
    assert (row.ran, len(row.fallbacks)) == ("stock", 1)
    assert "forward hook" in row.fallbacks[0].error
    assert "utterances left to stock: 2" in row.note
    stage.call(eager)
    assert stage.row(eager).ran == "eager"


def test_global_hooks_are_left_to_stock(eager: Any, tts: Any, stage: Stage) -> None:
    loud = {"flow": nn.Mish, "vocoder": nn.ConvTranspose1d}[stage.name]

    def louder(module: nn.Module, args: Any, output: Any) -> Any:
        return 1.5 * output if isinstance(module, loud) else None

    hook = nn.modules.module.register_module_forward_hook(louder)
    try:
        assert_equal(stage.call(eager), stage.stock(tts))
    finally:
        hook.remove()
    assert "global forward hooks" in stage.row(eager).fallbacks[0].error


def test_restored_is_stock_bit_for_bit(eager: Any, tts: Any, stage: Stage, stock_made: Callable[..., Made]) -> None:
    stage.call(eager, 20)
    eager.restore()
    assert "inference" not in vars(stage.module(tts))
    assert_equal(stage.call(tts, 20), stock_made(stage, 20))


def test_a_patch_from_before_goes_on_being_called(tts: Any, stage: Stage, stock_made: Callable[..., Made]) -> None:
    module = stage.module(tts)
    inference = module.inference
    module.inference = lambda **given: [2 * inference(**given)[0]]
    with tc.compile_model(tts, EAGER) as handle:
        assert torch.equal(stage.call(handle).main, 2 * stock_made(stage).main)
        handle.warmup()
        row = stage.row(handle)
    assert (row.ran, len(row.fallbacks)) == ("stock", 1)
    assert "not chatterbox's own" in row.fallbacks[0].error


def test_a_subclass_is_left_to_stock(own: Any, stage: Stage, stock_made: Callable[..., Made]) -> None:
    module = stage.module(own)

    class Louder(type(module)):  # type: ignore[misc]
        def inference(self, **given: Any) -> Any:
            first, second = super().inference(**given)
            return 2 * first, second

    module.__class__ = Louder
    handle = tc.compile_model(own, stage.eager)
    assert torch.equal(stage.call(handle).main, 2 * stock_made(stage).main)
    assert stage.row(handle).ran == "stock"


class OtherLinear(nn.Linear):
    """A layer that computes something else, as an adapter does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Processor:
    """An attention processor, which diffusers lets one exchange."""

    def __call__(self, attention: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros_like(hidden_states)


def chunks(flow: Any) -> None:
    flow.encoder.static_chunk_size = 25


def macaron(flow: Any) -> None:
    layer = flow.encoder.up_encoders[-1]
    layer.feed_forward_macaron = layer.feed_forward


def tanh(flow: Any) -> None:
    flow.decoder.estimator.mid_blocks[-1][1][-1].ff.net[0].approximate = "tanh"


def attention_bias(flow: Any) -> None:
    query = flow.decoder.estimator.mid_blocks[-1][1][-1].attn1.to_q
    query.bias = nn.Parameter(torch.ones(query.out_features))


def epsilon(flow: Any) -> None:
    flow.decoder.estimator.up_blocks[0][1][0].norm3.eps = 1e-2


def stage_epsilon(flow: Any) -> None:
    flow.decoder.estimator.mid_blocks[0][0].block1.block[2].eps = 1.0


def processor(flow: Any) -> None:
    flow.decoder.estimator.mid_blocks[0][1][0].attn1.set_processor(Processor())


def mixed(flow: Any) -> None:
    flow.decoder.estimator.bfloat16()


def adapter(flow: Any) -> None:
    attention = flow.decoder.estimator.mid_blocks[0][1][0].attn1
    query = attention.to_q
    attention.to_q = OtherLinear(query.in_features, query.out_features, query.bias is not None).eval()
    attention.to_q.load_state_dict(query.state_dict())


def logarithms(vocoder: Any) -> None:
    vocoder.source_resblocks[1].activations2[0].alpha_logscale = True


def another_activation(vocoder: Any) -> None:
    vocoder.f0_predictor.condnet[3] = nn.ReLU().eval()


@pytest.mark.parametrize(
    ("stage", "change", "reason"),
    [
        (FLOW, chunks, "attends in chunks"),
        (FLOW, macaron, "layers of another kind"),
        (FLOW, tanh, "MLP is of another kind"),
        (FLOW, attention_bias, "attention is of another kind"),
        (FLOW, epsilon, "blocks differ"),
        (FLOW, stage_epsilon, "blocks differ"),
        (FLOW, processor, "attends by Processor"),
        (FLOW, mixed, "several dtypes"),
        (FLOW, adapter, "OtherLinear"),
        (VOCODER, logarithms, "logarithms"),
        (VOCODER, another_activation, "ReLU"),
    ],
)
def test_another_make_stays_stock(own: Any, stage: Stage, change: Callable[[Any], None], reason: str) -> None:
    change(stage.module(own))
    handle = tc.compile_model(own, stage.eager)
    row = stage.row(handle)
    assert row.ran == "stock"
    assert reason in row.note
    assert "inference" not in vars(stage.module(own))


@pytest.mark.parametrize(
    ("stage", "change", "reason"),
    [
        (FLOW, adapter, "OtherLinear"),
        (FLOW, processor, "attends by Processor"),
        (FLOW, chunks, "attends in chunks"),
        (FLOW, stage_epsilon, "blocks differ"),
        (VOCODER, another_activation, "ReLU"),
    ],
)
def test_a_later_change_is_left_to_stock(
    own: Any, stage: Stage, change: Callable[[Any], None], reason: str, stock_made: Callable[..., Made]
) -> None:
    handle = tc.compile_model(own, stage.eager)
    assert_alike(stage.call(handle, 60), stock_made(stage, 60))
    change(stage.module(own))
    assert_equal(stage.call(handle, 60), stage.stock(own, 60))
    assert reason in stage.row(handle).fallbacks[-1].error


@pytest.mark.parametrize(("stage", "part"), [(FLOW, "encoder.embed"), (VOCODER, "conv_pre")])
def test_a_later_method_of_a_part_is_left_to_stock(own: Any, stage: Stage, part: str) -> None:
    handle = tc.compile_model(own, stage.eager)
    replaced = stage.module(own).get_submodule(part)
    forward = replaced.forward
    replaced.forward = lambda x, *others: forward(2 * x, *others)
    assert_equal(stage.call(handle), stage.stock(own))
    assert "forward has been replaced" in stage.row(handle).fallbacks[0].error
