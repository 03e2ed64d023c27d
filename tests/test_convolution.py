"""Compares the convolution over time, native and in torch, with its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tts_compile import _compat
from tts_compile.execution.operators import NativeOperators, Operators


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    NativeOperators.load()


def run(operators: Any, x: Tensor, weight: Tensor, bias: Tensor, **arguments: Any) -> Tensor:
    result: Tensor = operators.convolve(x, operators.pack(weight), bias, **arguments)
    return result


def defined(
    x: Tensor, weight: Tensor, bias: Tensor, rows: int, left: int, dilation: int, stride: int, residual: Tensor | None
) -> Tensor:
    """Computes the sum in the docstring of ``convolve`` in double precision."""
    y = bias.double() + (0 if residual is None else residual.double())
    for tap in range(weight.shape[2]):
        at = torch.arange(rows) * stride + tap * dilation - left
        inside = (at >= 0) & (at < x.shape[1])
        y = y + (x[:, at.clamp(0, x.shape[1] - 1)] * inside[:, None]).double() @ weight[:, :, tap].double().T
    return y


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@given(
    batch=st.integers(1, 3),
    time=st.integers(1, 250),
    inputs=st.integers(1, 80),
    outputs=st.integers(1, 200) | st.sampled_from([1, 15, 16, 17, 63, 64, 65, 128, 200]),
    taps=st.integers(1, 11),
    dilation=st.integers(1, 5),
    stride=st.integers(1, 15),
    left=st.integers(0, 60),
    rows=st.integers(1, 200) | st.sampled_from([1, 5, 6, 7, 95, 96, 97, 193]),
    with_residual=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_is_what_it_is_defined_to_be(
    batch: int,
    time: int,
    inputs: int,
    outputs: int,
    taps: int,
    dilation: int,
    stride: int,
    left: int,
    rows: int,
    with_residual: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x, bias = torch.randn(batch, time, inputs), torch.randn(outputs)
    weight = torch.randn(outputs, inputs, taps) / (inputs * taps) ** 0.5
    residual = torch.randn(batch, rows, outputs) if with_residual else None
    arguments = {"rows": rows, "left": left, "dilation": dilation, "stride": stride, "residual": residual}
    expected = defined(x, weight, bias, **arguments)
    in_reach = left <= (rows - 1) * stride + (taps - 1) * dilation + 1  # torch cannot pad where nothing is left of x
    for operators in (NativeOperators(), Operators())[: 1 + in_reach]:
        found = run(operators, x, weight, bias, **arguments)
        assert found.shape == (batch, rows, outputs)
        assert found.is_contiguous() or not isinstance(operators, NativeOperators)
        assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize(("taps", "dilation", "stride"), [(3, 1, 1), (7, 5, 1), (16, 1, 8), (1, 1, 1)])
def test_is_torchs_with_padding_on_both_sides(taps: int, dilation: int, stride: int) -> None:
    x, weight, bias = torch.randn(2, 101, 18), torch.randn(70, 18, taps), torch.randn(70)
    padding = (taps - 1) * dilation // 2
    expected = F.conv1d(x.transpose(1, 2), weight, bias, stride, padding, dilation).transpose(1, 2)
    arguments = {"rows": expected.shape[1], "left": padding, "dilation": dilation, "stride": stride}
    assert relative_error(run(NativeOperators(), x, weight, bias, **arguments), expected) < 1e-5


def test_rows_that_reach_no_input_are_the_bias() -> None:
    x, weight, bias = torch.full((1, 4, 3), torch.nan), torch.randn(5, 3, 2), torch.randn(5)
    found = run(NativeOperators(), x, weight, bias, rows=20, left=10)
    assert torch.equal(found[0, :9], bias.expand(9, 5))
    assert found[0, 9:14].isnan().all()
    assert torch.equal(found[0, 14:], bias.expand(6, 5))


def test_threads_agree_bit_for_bit() -> None:
    x, weight, bias = torch.randn(2, 500, 40), torch.randn(70, 40, 3), torch.randn(70)
    before = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(run(NativeOperators(), x, weight, bias, rows=500, left=2))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_input_with_gaps_is_read_as_its_values() -> None:
    x, weight, bias = torch.randn(2, 9, 30).transpose(1, 2), torch.randn(5, 9, 3), torch.randn(10)[::2]
    residual = torch.randn(2, 5, 30).transpose(1, 2)
    found = run(NativeOperators(), x, weight, bias, rows=30, left=1, residual=residual)
    packed = (x.contiguous(), weight, bias.contiguous())
    assert torch.equal(found, run(NativeOperators(), *packed, rows=30, left=1, residual=residual.contiguous()))


def test_residual_is_left_as_it_is() -> None:
    x, weight, bias, residual = torch.randn(1, 9, 4), torch.randn(5, 4, 1), torch.randn(5), torch.randn(1, 9, 5)
    before = residual.clone()
    run(NativeOperators(), x, weight, bias, rows=9, left=0, residual=residual)
    assert torch.equal(residual, before)


def test_packed_kernel_is_a_copy_and_knows_its_taps() -> None:
    for operators in (NativeOperators(), Operators()):
        weight = torch.randn(70, 18, 7)
        packed = operators.pack(weight)
        before = packed.clone()
        weight.zero_()
        assert torch.equal(packed, before)
        assert operators.taps(packed, 18) == 7


ONES = {"x": torch.ones(2, 9, 4), "weight": torch.ones(5, 4, 3), "bias": torch.ones(5)}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"x": torch.ones(2, 9, 4).double()}, "float32"),
        ({"weight": torch.ones(5, 4, 3).half()}, "float32"),
        ({"bias": torch.ones(5).bfloat16()}, "float32"),
        ({"residual": torch.ones(2, 9, 5).double()}, "float32"),
        ({"x": torch.ones(2, 9, 5)}, "not made for 5 inputs"),
        ({"bias": torch.ones(65)}, "65 outputs"),
        ({"residual": torch.ones(2, 8, 5)}, r"\(2, 8, 5\) is not \(2, 9, 5\)"),
        ({"residual": torch.ones(5)}, r"\(5,\) is not"),
    ],
)
def test_what_does_not_fit_is_refused(other: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(NativeOperators(), rows=9, left=1, **{**ONES, **other})


def test_one_graph_for_all_lengths_and_taps() -> None:
    def halves(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        taps = NativeOperators.taps(weight, x.shape[2])
        return NativeOperators.convolve(x, weight, bias, rows=x.shape[1], left=(taps - 1) // 2, residual=x) / 2

    compiled = torch.compile(halves, fullgraph=True, backend="aot_eager")
    bias = torch.randn(18)
    before, _ = _compat.graph_counts()
    for time, taps in ((9, 3), (64, 7), (130, 11), (130, 3)):
        x, weight = torch.randn(2, time, 18), torch.randn(18, 18, taps)
        torch._dynamo.mark_dynamic(x, 1)
        expected = defined(x, weight, bias, time, (taps - 1) // 2, 1, 1, x) / 2
        assert relative_error(compiled(x, NativeOperators.pack(weight), bias), expected) < 1e-5
    assert _compat.graph_counts()[0] == before + 1


def test_shapes_without_values_are_the_operators_own() -> None:
    x, packed = torch.randn(2, 4, 9).transpose(1, 2), NativeOperators.pack(torch.randn(5, 4, 3))
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for residual in (None, torch.randn(2, 3, 5)):
        settings = {"rows": 3, "left": 1, "dilation": 2, "stride": 3, "residual": residual}
        operator = torch.ops.tts_compile.convolution.default
        torch.library.opcheck(operator, (x, packed, torch.randn(5)), settings, test_utils=tests)
