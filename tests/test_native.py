"""Compares the native decoder with the same layers in torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tts_compile as tc
from speech import Speech, speak, speak_stock
from tts_compile import _compat
from tts_compile.backbones.backbone import Where
from tts_compile.backbones.llama import LLAMA, LastWeights, LayerWeights
from tts_compile.components.t3.cache import visible
from tts_compile.execution.native import llama_decoder as native

SHORT = "Hello there my good!"
CAPACITY = 70
EPS = 1e-5


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    native.load()


class Decoder(NamedTuple):
    """A decoder with random weights and a random cache."""

    layers: list[LayerWeights]
    norm: Tensor
    head: Tensor
    keys: Tensor
    values: Tensor

    @classmethod
    def random(
        cls, sequences: int = 2, depth: int = 2, heads: int = 1, inner: int = 128, vocabulary: int = 9
    ) -> Decoder:
        width = 64 * heads

        def matrix(out: int, given: int) -> Tensor:
            return torch.randn(out, given) / given**0.5

        layers = [
            LayerWeights(
                torch.rand(width) + 0.5,
                *(matrix(width, width) for _ in range(4)),
                torch.rand(width) + 0.5,
                matrix(inner, width),
                matrix(inner, width),
                matrix(width, inner),
            )
            for _ in range(depth)
        ]
        cache = torch.randn(2, depth, sequences, heads, CAPACITY, 64)
        return cls(layers, torch.rand(width) + 0.5, matrix(vocabulary, width), *cache)

    def double(self) -> Decoder:
        layers = [LayerWeights(*(part.double() for part in layer)) for layer in self.layers]
        return Decoder(layers, *(part.double() for part in self[1:]))

    def rounded(self) -> tuple[native.Weights, Decoder]:
        """Returns the weights of the int8 copy for the native decoder, and a decoder with the same values as floats."""

        def copied(part: Any) -> Any:
            return native.Int8Matrix.of(part) if part.ndim == 2 else part

        def floats(part: Any) -> Any:
            return part.values.float() * part.scales[:, None] if isinstance(part, native.Int8Matrix) else part

        layers = [[copied(part) for part in layer] for layer in self.layers]
        same = [LayerWeights(*(floats(part) for part in layer)) for layer in layers]
        weights = native.Weights(layers, self.norm, copied(self.head))
        return weights, self._replace(layers=same, head=floats(copied(self.head)))

    def run(self, x: Tensor, *starts: int, weights: native.Weights | None = None) -> Tensor:
        """Runs the native decoder from one position for all sequences, or from one position for each."""
        weights = weights or native.Weights(self.layers, self.norm, self.head)
        positions = positions_of(x, starts)
        logits: Tensor = torch.ops.tts_compile.llama_decoder(
            x,
            *rotary(positions),
            positions,
            self.keys,
            self.values,
            addresses=weights.addresses(),
            inner=weights.inner,
            vocabulary=weights.vocabulary,
            eps=EPS,
        )
        return logits

    def run_in_torch(self, x: Tensor, *starts: int) -> Tensor:
        positions = positions_of(x, starts)
        tables = tuple(table.to(x.dtype)[:, None] for table in rotary(positions))
        where = Where(tables, positions, visible(positions, max(starts) + x.shape[1]))
        for keys, values, layer in zip(self.keys, self.values, self.layers):
            x = LLAMA.layer(EPS, x, where, keys, values, layer)
        return LLAMA.head(EPS, x, LastWeights(self.norm, self.head))


def positions_of(x: Tensor, starts: tuple[int, ...]) -> Tensor:
    return (torch.tensor(starts)[:, None] + torch.arange(x.shape[1])).expand(len(x), -1)


def rotary(positions: Tensor) -> tuple[Tensor, Tensor]:
    angles = positions[..., None] * torch.logspace(0, -3, 32).repeat(2)
    return angles.cos(), angles.sin()


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@given(
    sequences=st.integers(1, 16),
    count=st.integers(1, 8),
    spare=st.integers(0, 2),
    depth=st.integers(1, 2),
    heads=st.integers(1, 5),
    inner=st.sampled_from([64, 128, 320, 1088]),
    vocabulary=st.integers(1, 150),
    starts=st.lists(st.integers(0, CAPACITY - 8), min_size=16, max_size=16),
    thread_count=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_equals_torch(
    sequences: int,
    count: int,
    spare: int,
    depth: int,
    heads: int,
    inner: int,
    vocabulary: int,
    starts: list[int],
    thread_count: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    count = min(count, native.MAX_ROWS // sequences)
    decoder = Decoder.random(sequences + spare, depth, heads, inner, vocabulary)
    exact = decoder.double()
    x = torch.randn(sequences, count, 64 * heads)
    with threads(thread_count):
        found = decoder.run(x, *starts[:sequences])
    assert relative_error(found, exact.run_in_torch(x.double(), *starts[:sequences])) < 2e-5
    assert relative_error(decoder.keys, exact.keys) < 2e-5  # written where new, untouched elsewhere
    assert relative_error(decoder.values, exact.values) < 2e-5


@given(sequences=st.integers(1, 2), heads=st.integers(1, 17), start=st.integers(0, 9), seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_int8_equals_torch_on_the_rounded_matrices(sequences: int, heads: int, start: int, seed: int) -> None:
    torch.manual_seed(seed)
    decoder = Decoder.random(sequences, heads=heads, inner=1088, vocabulary=33)
    weights, same = decoder.rounded()
    exact = same.double()
    x = torch.randn(sequences, 1, 64 * heads)
    assert relative_error(decoder.run(x, start, weights=weights), exact.run_in_torch(x.double(), start)) < 2e-5


@pytest.mark.parametrize("count", [1, 2, 5])
def test_threads_do_not_touch_each_others_rows(count: int) -> None:
    """Rows of several sequences are neighbours, and compilers have written back neighbours: see the build's flags."""
    decoder = Decoder.random(heads=16, inner=4096)
    x = torch.randn(2, count, 1024)
    with threads(2):
        first = decoder.run(x, 30)
        assert all(torch.equal(decoder.run(x, 30), first) for _ in range(100))


def test_does_not_look_ahead_even_at_nan() -> None:
    decoder = Decoder.random(depth=1)
    decoder.keys[..., 6:, :] = decoder.values[..., 6:, :] = torch.nan
    x = torch.randn(2, 3, 64)
    x[:, 2] = torch.nan
    found = decoder.run(x, 6)
    assert found[:, :2].isfinite().all()
    assert found[:, 2].isnan().all()


def test_int8_matrix_is_within_half_a_step() -> None:
    matrix = torch.randn(50, 64) * torch.logspace(-6, 3, 50)[:, None]
    rounded = native.Int8Matrix.of(matrix)
    assert ((rounded.values * rounded.scales[:, None] - matrix).abs() <= 0.501 * rounded.scales[:, None]).all()
    assert native.Int8Matrix.of(torch.zeros(2, 64)).values.abs().max() == 0


@pytest.mark.parametrize(
    ("sequences", "count", "start", "message"),
    [(2, 9, 0, "rows"), (2, 2, CAPACITY - 1, "no room"), (2, 1, -1, "no room")],
)
def test_what_it_is_not_made_for_is_refused(sequences: int, count: int, start: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoder.random(sequences).run(torch.randn(sequences, count, 64), start)


def test_more_int8_rows_than_it_is_made_for_are_refused() -> None:
    decoder = Decoder.random()
    with pytest.raises(ValueError, match="rows"):
        decoder.run(torch.randn(2, 2, 64), 0, weights=decoder.rounded()[0])


def test_cache_with_gaps_is_refused() -> None:
    decoder = Decoder.random()
    with pytest.raises(ValueError, match="contiguous"):
        decoder._replace(keys=decoder.keys[..., ::2, :]).run(torch.randn(2, 1, 64), 0)


def test_what_is_no_float32_is_refused() -> None:
    with pytest.raises(ValueError, match="float32"):
        Decoder.random().run(torch.randn(2, 1, 64).double(), 0)


def test_width_that_the_heads_do_not_make_up_is_refused() -> None:
    decoder = Decoder.random(heads=2)
    with pytest.raises(ValueError, match="heads"):
        decoder._replace(keys=decoder.keys[:, :, :1].clone(), values=decoder.values[:, :, :1].clone()).run(
            torch.randn(2, 1, 128), 0
        )


def test_only_what_it_can_read_fits() -> None:
    layers, norm, weight, *_ = Decoder.random()
    assert native.Weights(layers, norm, weight).fit
    assert not native.Weights(layers, norm, weight.bfloat16()).fit
    assert not native.Weights(layers, norm, weight.t().contiguous().t()).fit
    assert not native.Weights(Decoder.random(inner=100).layers, norm, weight).fit
    weights = native.Weights(layers, norm, weight)
    weight.data = weight[:3].clone()
    assert not weights.fit  # it would read beyond the end


def test_folder_that_cannot_be_made_is_a_fallback_and_no_crash(tts: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = tc.CompileConfig(t3=tc.ComponentPolicy(backend="eager"), cache_dir=str(tmp_path / "file"))
    with tc.compile_model(tts, config) as fast:
        assert speak(fast, SHORT, max_new_tokens=3) == speak_stock(tts, SHORT, max_new_tokens=3)
        (event,) = fast.report().components["t3"].fallbacks
    assert "cannot be kept" in event.error
    assert event.action == "eager instead of inductor"
    with pytest.raises(tc.CompilationError, match="cannot be kept"):
        tc.compile_model(tts, config.replace(fallback="raise"))


def test_weights_that_no_longer_fit_are_left_to_torch(tts: Any, stock_speech: Callable[..., Speech]) -> None:
    handle = tc.compile_model(tts, tc.CompileConfig(t3=tc.ComponentPolicy(execution="inductor", backend="eager")))
    head_weight = tts.t3.speech_head.weight
    good = head_weight.data
    head_weight.data = good.t().contiguous().t()  # the same values, column after column
    try:
        assert speak(handle, SHORT, max_new_tokens=9) == stock_speech(SHORT, max_new_tokens=9)
        assert "draft tokens" not in handle.report().components["t3"].note
    finally:
        head_weight.data = good
    assert speak(handle, SHORT) == stock_speech(SHORT)
    assert "draft tokens were accepted" in handle.report().components["t3"].note


def test_moved_weights_are_found_again(tts: Any) -> None:
    handle = tc.compile_model(tts, tc.CompileConfig(t3=tc.ComponentPolicy(execution="inductor", backend="eager")))
    weight = tts.t3.speech_head.weight
    good = weight.data
    weight.data = good.roll(1, 0)
    try:
        assert speak(handle, SHORT, max_new_tokens=9) == speak_stock(tts, SHORT, max_new_tokens=9)
    finally:
        weight.data = good


def test_replaced_weights_are_read_anew(tts: Any) -> None:
    handle = tc.compile_model(tts, tc.CompileConfig(t3=tc.ComponentPolicy(execution="inductor", backend="eager")))
    good = tts.t3.speech_head.weight
    tts.t3.speech_head.weight = torch.nn.Parameter(good.detach().roll(1, 0))
    try:
        assert speak(handle, SHORT, max_new_tokens=9) == speak_stock(tts, SHORT, max_new_tokens=9)
        (event,) = handle.report().components["t3"].fallbacks
        assert event.phase == "reuse"
    finally:
        tts.t3.speech_head.weight = good
    assert speak(handle, SHORT) == speak_stock(tts, SHORT)


def test_without_a_compiler_the_model_speaks_on(
    tts: Any, stock_speech: Callable[..., Speech], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compat, "cpp_compiler", lambda: None)
    policy = tc.ComponentPolicy(backend="eager")  # dynamo without a compiler of its own
    with tc.compile_model(tts, tc.CompileConfig(t3=policy, cache_dir=str(tmp_path))) as fast:
        assert speak(fast, SHORT) == stock_speech(SHORT)
        row = fast.report().components["t3"]
    (event,) = row.fallbacks
    assert (event.phase, event.error) == ("compile", "no C++ compiler found")
    assert "draft tokens" not in row.note
