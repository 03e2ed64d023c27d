"""The watermark is always there, is stock's bit for bit, and can be read back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import tts_compile as tc
from conftest import EAGER
from speech import SHORT

MARKED = tc.CompileConfig.off().replace(warmup_samples=0, watermark=tc.ComponentPolicy())
CONFIGS = {
    "auto": MARKED,
    "eager": MARKED.replace(watermark=tc.ComponentPolicy(execution="eager")),
    "stock": tc.CompileConfig.off(),
}


@pytest.fixture
def marking(tts: Any) -> Iterator[tc.CompiledTTS]:
    with tc.compile_model(tts, MARKED) as handle:
        yield handle


def wave(samples: int = 24_000, dtype: Any = np.float32) -> Any:
    """Returns noise: the detector takes some pure tones for a watermark."""
    return np.random.default_rng(0).normal(0, 0.1, samples).astype(dtype)


def row(handle: Any) -> tc.ComponentReport:
    return handle.report().components["watermark"]


@pytest.mark.parametrize("rate", [16_000, 24_000, 32_000, 44_100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_stocks_bits(tts: Any, rate: int, dtype: Any) -> None:
    given = wave(30_001, dtype)
    before = given.copy()
    expected = tts.watermarker.apply_watermark(given, sample_rate=rate)
    with tc.compile_model(tts, MARKED) as fast:
        found = fast.watermarker.apply_watermark(given, sample_rate=rate)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    assert np.array_equal(given, before)


@pytest.mark.parametrize("policy", CONFIGS)
def test_it_can_be_read_back(tts: Any, policy: str) -> None:
    clean = wave(72_000)
    with tc.compile_model(tts, CONFIGS[policy]) as fast:
        marked = fast.watermarker.apply_watermark(clean, sample_rate=24_000)
        assert fast.watermarker.get_watermark(marked, sample_rate=24_000).mean() > 0.9
        assert fast.watermarker.get_watermark(clean, sample_rate=24_000).mean() < 0.1


def test_what_the_compiled_model_speaks_is_marked(
    tts: Any, stock_wave: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = stock_wave(SHORT, 1)
    given: list[Any] = []
    with tc.compile_model(tts, EAGER) as fast:
        attached = fast.watermarker.apply_watermark
        monkeypatch.setattr(
            fast.watermarker,
            "apply_watermark",
            lambda signal, **kwargs: given.append(signal) or attached(signal, **kwargs),
        )
        torch.manual_seed(1)
        spoken = fast.generate(SHORT)
        monkeypatch.undo()
        assert torch.allclose(spoken, expected, atol=1e-4)
        assert (row(fast).ran, row(fast).calls) == ("eager", 1)
        detect = fast.watermarker.get_watermark
        marked, clean = detect(spoken[0].numpy(), sample_rate=24_000), detect(given[0], sample_rate=24_000)
    assert marked.mean() > 0.9 > clean.mean()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (np.full(24_000, math.nan, dtype=np.float32), "finite"),
        (np.full(24_000, math.inf, dtype=np.float32), "finite"),
        (wave(0), r"0\.0000 s"),
        (wave(768), r"0\.0320 s"),
    ],
)
def test_bad_wave(marking: Any, bad: Any, reason: str) -> None:
    with pytest.raises(tc.InputError, match=reason):
        marking.watermarker.apply_watermark(bad, sample_rate=24_000)
    assert row(marking).calls == 0


def test_shortest_wave(tts: Any) -> None:
    expected = tts.watermarker.apply_watermark(wave(769), sample_rate=24_000)
    with tc.compile_model(tts, MARKED) as fast:
        assert np.array_equal(fast.watermarker.apply_watermark(wave(769), sample_rate=24_000), expected)


def test_other_signals_are_left_to_stock(tts: Any) -> None:
    stereo = np.stack([wave(), wave()[::-1]])
    with tc.compile_model(tts, MARKED) as fast:
        tensor = torch.from_numpy(wave())
        found = fast.watermarker.apply_watermark(tensor, 32_000)
        assert np.array_equal(found, type(tts.watermarker).apply_watermark(tts.watermarker, tensor, 32_000))
        with pytest.raises(Exception):  # noqa: B017, PT011  stock's own, whatever it is
            fast.watermarker.apply_watermark(stereo, 24_000)
        assert (row(fast).ran, row(fast).calls) == ("stock", 0)
        assert "left to stock: 2" in row(fast).note


def test_a_watermarker_of_another_kind_is_left_as_it_is(tts: Any) -> None:
    perth = pytest.importorskip("perth")
    tts.watermarker = perth.DummyWatermarker()
    with tc.compile_model(tts, MARKED) as fast:
        assert "apply_watermark" not in vars(tts.watermarker)
        fast.warmup()
        assert row(fast).ran == "stock"
        assert "DummyWatermarker" in row(fast).note


def test_a_wish_to_compile_is_answered_with_a_reason(tts: Any) -> None:
    with tc.compile_model(tts, MARKED.replace(watermark=tc.ComponentPolicy(execution="inductor"))) as fast:
        (event,) = row(fast).fallbacks
        assert "nothing to gain" in event.error


def test_restored(tts: Any) -> None:
    with tc.compile_model(tts, MARKED):
        assert "apply_watermark" in vars(tts.watermarker)
    assert "apply_watermark" not in vars(tts.watermarker)
