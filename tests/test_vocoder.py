"""The vocoder against stock: equal waves, equal generator states, weight norms left in place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize

import tts_compile as tc
from speech import signal_to_error_db

LEAST_DB = 60
# Traced by dynamo and run as traced, with native convolutions: no wait for inductor.
QUICK = tc.CompileConfig.off().replace(vocoder=tc.ComponentPolicy(execution="inductor", backend="eager"))
EAGER = tc.CompileConfig.off().replace(vocoder=tc.ComponentPolicy(execution="eager"))


class Heard(NamedTuple):
    """Wave, source, and the generator after them."""

    wave: Tensor
    source: Tensor
    state: Tensor


def mel(frames: int, rows: int = 1) -> Tensor:
    return torch.randn(rows, 80, frames, generator=torch.Generator().manual_seed(frames)) - 4


def vocode(inference: Callable[..., Any], frames: int, rows: int = 1, **settings: Any) -> Heard:
    torch.manual_seed(5)
    wave, source = inference(speech_feat=mel(frames, rows), **settings)
    return Heard(wave.clone(), source.clone(), torch.get_rng_state())


def stock(tts: Any) -> Callable[..., Any]:
    module = tts.s3gen.mel2wav
    return lambda **kwargs: type(module).inference(module, **kwargs)


def assert_alike(found: Heard, expected: Heard) -> None:
    assert found.wave.shape == expected.wave.shape
    assert signal_to_error_db(expected.wave, found.wave) > LEAST_DB
    assert signal_to_error_db(expected.source, found.source) > LEAST_DB
    assert torch.equal(found.state, expected.state)


@pytest.fixture
def quick(tts: Any) -> tc.CompiledTTS:
    return tc.compile_model(tts, QUICK)


@pytest.fixture(params=["inductor", "native", "torch"])
def speaker(request: pytest.FixtureRequest) -> Any:
    if request.param == "inductor":
        return request.getfixturevalue("fast")
    return tc.compile_model(request.getfixturevalue("tts"), QUICK if request.param == "native" else EAGER)


@pytest.mark.parametrize("frames", [2, 3, 32, 33, 64, 101])
def test_lengths(speaker: Any, tts: Any, frames: int) -> None:
    found = vocode(speaker.s3gen.mel2wav.inference, frames)
    assert found.wave.shape == (1, 480 * frames)
    assert_alike(found, vocode(stock(tts), frames))


def test_rows_of_a_batch(speaker: Any, tts: Any) -> None:
    assert_alike(vocode(speaker.s3gen.mel2wav.inference, 12, rows=2), vocode(stock(tts), 12, rows=2))


def test_a_given_source_takes_the_place_of_the_first_samples(speaker: Any, tts: Any) -> None:
    given = torch.randn(1, 1, 960)
    found = vocode(speaker.s3gen.mel2wav.inference, 9, cache_source=given)
    assert torch.equal(found.source[:, :, :960], given)
    assert_alike(found, vocode(stock(tts), 9, cache_source=given))


def test_in_inference_mode_the_wave_can_be_faded(quick: Any) -> None:
    with torch.inference_mode():
        wave, _ = quick.s3gen.mel2wav.inference(speech_feat=mel(4), cache_source=torch.zeros(1, 1, 0))
        wave[:, :10] *= 0
    assert not wave[:, :10].any()


def test_no_graph_for_twenty_other_lengths(fast: Any) -> None:
    vocode(fast.s3gen.mel2wav.inference, 3)
    before = fast.report().components["vocoder"]
    for frames in range(2, 42, 2):
        vocode(fast.s3gen.mel2wav.inference, frames)
    after = fast.report().components["vocoder"]
    assert after.ran == "inductor"
    assert after.compiled_calls == after.calls > before.calls
    # batches of other tests have graphs of their own
    assert (after.graphs, after.recompiles_after_warmup) == (before.graphs, before.recompiles_after_warmup)
    assert after.graph_breaks == 0


def test_warm_up_draws_nothing(quick: Any) -> None:
    state = torch.get_rng_state()
    quick.warmup()
    assert torch.equal(torch.get_rng_state(), state)
    assert quick.report().components["vocoder"].graphs > 0


def test_weight_norms_stay_and_nothing_is_left_behind(tts: Any) -> None:
    vocoder = tts.s3gen.mel2wav
    normed = [name for name, module in vocoder.named_modules() if parametrize.is_parametrized(module)]
    before = {name: tensor.clone() for name, tensor in vocoder.state_dict().items()}
    expected = vocode(stock(tts), 9)
    with tc.compile_model(tts, QUICK) as fast:
        vocode(fast.s3gen.mel2wav.inference, 9)
        assert [name for name, module in vocoder.named_modules() if parametrize.is_parametrized(module)] == normed
    assert len(normed) == 82
    assert "inference" not in vars(vocoder)
    assert vocoder.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in vocoder.state_dict().items())
    assert torch.equal(vocode(vocoder.inference, 9).wave, expected.wave)


def test_no_frames(quick: Any) -> None:
    with pytest.raises(tc.InputError, match="no mel frames"):
        vocode(quick.s3gen.mel2wav.inference, 0)


def test_changed_weights_are_seen(quick: Any, tts: Any) -> None:
    inference, vocoder = quick.s3gen.mel2wav.inference, tts.s3gen.mel2wav
    before = vocode(inference, 9)
    parameter = vocoder.conv_post.parametrizations.weight.original0  # the norm's gain
    saved = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.mul_(1.5)
        found = vocode(inference, 9)
        assert_alike(found, vocode(stock(tts), 9))
        assert signal_to_error_db(before.wave, found.wave) < LEAST_DB
    finally:
        with torch.no_grad():
            parameter.copy_(saved)


def test_hooks_are_left_to_stock(quick: Any, tts: Any) -> None:
    handle = tts.s3gen.mel2wav.conv_pre.register_forward_hook(lambda module, given, made: made * 2)
    try:
        assert torch.equal(vocode(quick.s3gen.mel2wav.inference, 9).wave, vocode(stock(tts), 9).wave)
    finally:
        handle.remove()
    row = quick.report().components["vocoder"]
    assert row.ran == "stock"
    assert "forward hook" in row.fallbacks[0].error


def test_what_a_warm_up_has_copied_serves_the_first_call(quick: Any) -> None:
    copies = quick._components["vocoder"].engine.copies
    quick.warmup()
    made = copies.current()
    vocode(quick.s3gen.mel2wav.inference, 9)
    assert copies.current() is made


def test_a_patch_from_before_goes_on_being_called(tts: Any) -> None:
    expected = vocode(stock(tts), 9)
    own = tts.s3gen.mel2wav.inference
    tts.s3gen.mel2wav.inference = lambda **kwargs: [2 * own(**kwargs)[0], *own(**kwargs)[1:]]
    with tc.compile_model(tts, QUICK) as fast:
        torch.manual_seed(5)
        found, *_ = fast.s3gen.mel2wav.inference(speech_feat=mel(9))
        assert torch.equal(found, 2 * expected.wave)
        fast.warmup()
        row = fast.report().components["vocoder"]
    assert (row.ran, len(row.fallbacks)) == ("stock", 1)
    assert "not chatterbox's own" in row.fallbacks[0].error


def test_every_unit_has_its_own_dilation(tts: Any) -> None:
    copied = copy.deepcopy(tts)
    convolution = copied.s3gen.mel2wav.resblocks[4].convs1[2]
    convolution.dilation, convolution.padding = (2,), (convolution.kernel_size[0] - 1,)
    expected = vocode(stock(copied), 12)
    fast = tc.compile_model(copied, QUICK)
    assert_alike(vocode(fast.s3gen.mel2wav.inference, 12), expected)
    assert signal_to_error_db(expected.wave, vocode(stock(tts), 12).wave) < LEAST_DB


def logarithms(vocoder: Any) -> None:
    vocoder.source_resblocks[1].activations2[0].alpha_logscale = True


def another_activation(vocoder: Any) -> None:
    vocoder.f0_predictor.condnet[3] = torch.nn.ReLU().eval()


@pytest.mark.parametrize(("change", "reason"), [(logarithms, "logarithms"), (another_activation, "ReLU")])
def test_a_vocoder_of_another_make_stays_stock(tts: Any, change: Callable[[Any], None], reason: str) -> None:
    copied = copy.deepcopy(tts)
    change(copied.s3gen.mel2wav)
    row = tc.compile_model(copied, QUICK).report().components["vocoder"]
    assert row.ran == "stock"
    assert reason in row.note


def test_an_activation_exchanged_later_is_left_to_stock(tts: Any) -> None:
    copied = copy.deepcopy(tts)
    fast = tc.compile_model(copied, QUICK)
    another_activation(copied.s3gen.mel2wav)
    assert torch.equal(vocode(fast.s3gen.mel2wav.inference, 9).wave, vocode(stock(copied), 9).wave)
    row = fast.report().components["vocoder"]
    assert row.ran == "stock"
    assert "ReLU" in row.fallbacks[0].error


def test_a_subclass_is_left_to_stock(tts: Any) -> None:
    copied = copy.deepcopy(tts)
    vocoder = copied.s3gen.mel2wav

    class Louder(type(vocoder)):  # type: ignore[misc]
        def inference(self, **kwargs: Any) -> Any:
            wave, source = super().inference(**kwargs)
            return 2 * wave, source

    vocoder.__class__ = Louder
    fast = tc.compile_model(copied, QUICK)
    assert torch.equal(vocode(fast.s3gen.mel2wav.inference, 9).wave, 2 * vocode(stock(tts), 9).wave)
    assert fast.report().components["vocoder"].ran == "stock"


def test_the_synthetic_voice_is_voiced(tts: Any) -> None:
    """Else the source would be noise alone, whatever the pitch."""
    pitch = tts.s3gen.mel2wav.f0_predictor(mel(101))
    threshold = tts.s3gen.mel2wav.m_source.l_sin_gen.voiced_threshold
    assert (pitch > threshold).float().mean() > 0.5
    assert pitch.std() > 1


def test_a_dilation_that_changes_later_is_seen(tts: Any) -> None:
    copied = copy.deepcopy(tts)
    fast = tc.compile_model(copied, QUICK)
    vocode(fast.s3gen.mel2wav.inference, 12)
    convolution = copied.s3gen.mel2wav.resblocks[4].convs1[2]
    convolution.dilation, convolution.padding = (2,), (convolution.kernel_size[0] - 1,)
    assert_alike(vocode(fast.s3gen.mel2wav.inference, 12), vocode(stock(copied), 12))
