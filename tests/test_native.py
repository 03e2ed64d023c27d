"""The C++ kernels against torch's own products and attention."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import tts_compile as tc
from speech import Speech, speak
from tts_compile import _compat
from tts_compile.execution import native

SHORT = "Hello there my good!"


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    native.load()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@given(
    rows=st.integers(1, 14),  # beyond those that a kernel exists for, too
    width=st.sampled_from([64, 80, 256, 1024, 4096]),
    heights=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_products_equal_linear(rows: int, width: int, heights: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(rows, width)
    matrices = [torch.randn(height, width) for height in heights]
    for found, matrix in zip(native.products(x, matrices), matrices):
        assert relative_error(found, F.linear(x.double(), matrix.double())) < 2e-5


@given(rows=st.integers(1, 3), heights=st.lists(st.integers(1, 40), min_size=1, max_size=3), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_int8_products_equal_those_of_the_rounded_matrix(rows: int, heights: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(rows, 1024)
    matrices = [native.Int8Matrix.of(torch.randn(height, 1024)) for height in heights]
    for found, matrix in zip(native.products(x, matrices), matrices):
        dequantised = matrix.values.float() * matrix.scales[:, None]
        steps = x.abs().amax(1, keepdim=True) / 127  # where the CPU has int8 dot products, x is rounded to these
        errors = [
            float((found - F.linear(given, dequantised)).abs().max()) for given in (x, (x / steps).round() * steps)
        ]
        # one value of x that lies between two steps may be rounded the other way
        assert min(errors) < 1.5 * float(steps.max()) * float(dequantised.abs().max())


def test_int8_matrix_is_within_half_a_step() -> None:
    matrix = torch.randn(50, 64) * torch.logspace(-6, 3, 50)[:, None]
    rounded = native.Int8Matrix.of(matrix)
    assert ((rounded.values * rounded.scales[:, None] - matrix).abs() <= 0.501 * rounded.scales[:, None]).all()
    assert torch.equal(rounded.sums, rounded.values.long().sum(1).int())
    assert native.Int8Matrix.of(torch.zeros(2, 64)).values.abs().max() == 0


@given(count=st.integers(1, 8), start=st.integers(0, 290), rows=st.integers(1, 2), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_attention_equals_torch(count: int, start: int, rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    query = 3 * torch.randn(rows, 4, count, 64)
    keys, values = torch.randn(2, rows, 4, 300, 64)
    positions = torch.arange(start, start + count)
    mask = torch.arange(300) <= positions[:, None]
    found = native.attention(query, keys, values, positions, mask)
    expected = F.scaled_dot_product_attention(query.double(), keys.double(), values.double(), attn_mask=mask)
    assert relative_error(found, expected) < 2e-5


def test_attention_does_not_look_ahead_even_at_nan() -> None:
    query, keys, values = torch.randn(1, 2, 3, 64), torch.randn(1, 2, 20, 64), torch.randn(1, 2, 20, 64)
    positions = torch.tensor([4, 5, 6])
    mask = torch.arange(20) <= positions[:, None]
    keys[:, :, 6:] = values[:, :, 6:] = torch.nan
    found = native.attention(query, keys, values, positions, mask)
    assert found[:, :, :2].isfinite().all()
    assert found[:, :, 2].isnan().all()


def test_nothing_of_the_dtypes_it_cannot_do_is_misread() -> None:
    x, matrix = torch.randn(2, 64).bfloat16(), torch.randn(8, 64)
    (found,) = native.products(x, [matrix.bfloat16()])
    assert torch.equal(found, F.linear(x, matrix.bfloat16()))
    (found,) = native.products(x, [native.Int8Matrix.of(matrix)])
    assert relative_error(found.float(), F.linear(x.float(), matrix)) < 0.05


def test_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tts_compile"
    folder.mkdir()
    os.chmod(folder, 0o777)
    with pytest.raises(tc.CompilationError, match="written by other users"):
        native.load(str(tmp_path))
    assert list(folder.iterdir()) == []


def test_failing_compiler_is_an_error_with_its_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'no such luck' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(_compat, "cpp_compiler", lambda: str(compiler))
    with pytest.raises(tc.CompilationError, match="no such luck"):
        native.load(str(tmp_path))
    assert list((tmp_path / "tts_compile").iterdir()) == []


def test_without_a_compiler_the_model_speaks_on(
    tts: Any, stock_speech: Callable[..., Speech], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compat, "cpp_compiler", lambda: None)
    policy = tc.ComponentPolicy(backend="eager")  # dynamo without a compiler of its own
    with tc.compile_model(tts, tc.CompileConfig(t3=policy, cache_dir=str(tmp_path))) as fast:
        assert speak(fast, SHORT) == stock_speech(SHORT)
        row = fast.report().components["t3"]
    (event,) = row.fallbacks
    assert (event.phase, event.error) == ("attach", "no C++ compiler found")
    assert "guessed" not in row.note
