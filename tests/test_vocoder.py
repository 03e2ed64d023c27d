"""The vocoder against stock: batches, sources, dilations, weight norms left in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import parametrize

import tts_compile as tc
from speech import signal_to_error_db
from stages import LEAST_DB, VOCODER, Made, assert_alike, assert_equal, mel


def test_a_frame_is_20_ms(traced: Any) -> None:
    assert VOCODER.call(traced, 33).main.shape == (1, 480 * 33)


def test_rows_of_a_batch(speaker: Any, stock_made: Callable[..., Made]) -> None:
    rows = {"speech_feat": mel(12, rows=2)}
    assert_alike(VOCODER.call(speaker, 12, **rows), VOCODER.stock(speaker, 12, **rows))


def test_a_given_source_takes_the_place_of_the_first_samples(speaker: Any) -> None:
    given = torch.randn(1, 1, 960)
    found = VOCODER.call(speaker, 9, cache_source=given)
    assert torch.equal(found.results[1][:, :, :960], given)
    assert_alike(found, VOCODER.stock(speaker, 9, cache_source=given))


def test_in_inference_mode_the_wave_can_be_faded(traced: Any) -> None:
    with torch.inference_mode():
        wave, _ = traced.s3gen.mel2wav.inference(speech_feat=mel(4), cache_source=torch.zeros(1, 1, 0))
        wave[:, :10] *= 0
    assert not wave[:, :10].any()


def test_weight_norms_stay_and_nothing_is_left_behind(tts: Any, stock_made: Callable[..., Made]) -> None:
    vocoder = tts.s3gen.mel2wav
    normed = [name for name, module in vocoder.named_modules() if parametrize.is_parametrized(module)]
    before = {name: tensor.clone() for name, tensor in vocoder.state_dict().items()}
    with tc.compile_model(tts, VOCODER.eager) as handle:
        VOCODER.call(handle)
        assert [name for name, module in vocoder.named_modules() if parametrize.is_parametrized(module)] == normed
    assert len(normed) == 82
    assert "inference" not in vars(vocoder)
    assert vocoder.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in vocoder.state_dict().items())
    assert_equal(VOCODER.call(tts), stock_made(VOCODER))


def test_every_unit_has_its_own_dilation_and_a_later_one_is_seen(tts: Any, stock_made: Callable[..., Made]) -> None:
    model = VOCODER.on_copy(tts)
    convolution = model.s3gen.mel2wav.resblocks[4].convs1[2]

    def dilate(dilation: int) -> None:
        convolution.dilation, convolution.padding = (dilation,), (dilation * (convolution.kernel_size[0] - 1) // 2,)

    def check() -> None:
        expected = VOCODER.stock(model, 12)
        assert_alike(VOCODER.call(handle, 12), expected)
        assert signal_to_error_db(expected.main, stock_made(VOCODER, 12).main) < LEAST_DB

    dilate(2)
    handle = tc.compile_model(model, VOCODER.eager)
    check()
    dilate(4)
    check()


def test_the_synthetic_voice_is_voiced(tts: Any) -> None:
    """Else the source would be noise alone, whatever the pitch."""
    pitch = tts.s3gen.mel2wav.f0_predictor(mel(101))
    threshold = tts.s3gen.mel2wav.m_source.l_sin_gen.voiced_threshold
    assert (pitch > threshold).float().mean() > 0.5
    assert pitch.std() > 1
