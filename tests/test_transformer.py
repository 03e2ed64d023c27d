"""Compares the native transformer block with the same block in torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tts_compile import _compat
from tts_compile.execution.operators import Block, NativeOperators, Operators

EPS = 1e-5
EDGES = [1, 5, 6, 7, 16, 17, 63, 64, 65, 95, 96, 97, 192, 193, 255, 256, 257, 300]  # of tiles, panels and blocks


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    NativeOperators.load()


def random_block(width: int = 64, heads: int = 1, inner: int = 64) -> Block:
    def matrix(out: int, given: int) -> Tensor:
        return torch.randn(out, given) / given**0.5

    mixed = 64 * heads
    return Block(
        torch.rand(width) + 0.5,
        torch.randn(width),
        *(matrix(mixed, width) for _ in range(3)),
        matrix(width, mixed),
        torch.randn(width),
        torch.rand(width) + 0.5,
        torch.randn(width),
        matrix(inner, width),
        torch.randn(inner),
        matrix(width, inner),
        torch.randn(width),
    )


def native(x: Tensor, lengths: Tensor, block: Block) -> Tensor:
    operators = NativeOperators()
    packed = operators.pack_block(block)
    return operators.transform(x, lengths, packed.arguments, len(block.query) // 64, len(block.up), EPS)


def in_double(x: Tensor, lengths: Tensor, block: Block) -> Tensor:
    arguments = tuple(part.double() for part in block)
    return Operators().transform(x.double(), lengths, arguments, len(block.query) // 64, len(block.up), EPS)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@given(
    lengths=st.lists(st.integers(0, 300) | st.sampled_from(EDGES), min_size=1, max_size=3),
    beyond=st.sampled_from([0, 0, 1, 7, 100]),
    heads=st.integers(1, 3),
    width=st.sampled_from([64, 128, 192]),
    inner=st.sampled_from([64, 192, 256, 320, 512]),
    garbage=st.sampled_from([torch.nan, torch.inf, -torch.inf, 1e30]),
    count=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=50, deadline=None)
def test_equals_torch_whatever_lies_beyond_the_lengths(
    lengths: list[int], beyond: int, heads: int, width: int, inner: int, garbage: float, count: int, seed: int
) -> None:
    torch.manual_seed(seed)
    block, ends = random_block(width, heads, inner), torch.tensor(lengths)
    x = torch.randn(len(lengths), max(lengths) + beyond, width)
    outside = torch.arange(x.shape[1]) >= ends[:, None]
    expected = in_double(x, ends, block)
    x[outside] = garbage
    with threads(count):
        found = native(x, ends, block)
    assert (found[outside] == 0).all()
    for row, exact, length in zip(found, expected, lengths):
        assert length == 0 or relative_error(row[:length], exact[:length]) < 1e-5


@pytest.mark.parametrize("length", [6, 100, 300])
def test_large_scores(length: int) -> None:
    torch.manual_seed(0)
    block = random_block()
    block.query.mul_(300)  # scores up to 1000 either way: one key takes it all
    x, lengths = torch.randn(1, length, 64), torch.tensor([length])
    assert relative_error(native(x, lengths, block), in_double(x, lengths, block)) < 1e-3


@pytest.mark.parametrize("score", [-1000.0, 0.0, 1000.0])
def test_equal_scores_give_the_mean(score: float) -> None:
    """All keys equal the norm's bias here; the values differ."""
    torch.manual_seed(0)
    block = random_block()._replace(key=torch.zeros(64, 64), query=torch.zeros(64, 64))
    block.attention_norm[0], block.attention_norm_bias[0] = 0, 1  # the same feature in every row
    block.query[0, 0] = 8 * score
    block.key[0, 0] = 1
    x, lengths = torch.randn(2, 290, 64), torch.tensor([290, 3])
    found = native(x, lengths, block)
    assert found.isfinite().all()
    assert relative_error(found, in_double(x, lengths, block)) < 1e-5
    flat = block._replace(query=torch.zeros(64, 64))
    assert relative_error(found, in_double(x, lengths, flat)) < 1e-5


@pytest.mark.parametrize("steep", [1.0, 8.0, 100.0])
@pytest.mark.parametrize("backwards", [False, True])
def test_scores_that_grow_along_the_keys(steep: float, backwards: bool) -> None:
    """Later blocks of keys have larger maxima, so that the sums of earlier blocks must be scaled down, but not to 0."""
    torch.manual_seed(0)
    angle = torch.linspace(0, 1.5, 700)
    here, there = torch.linalg.qr(torch.randn(64, 2) - torch.randn(64, 2).mean(0))[0].T
    x = angle.cos()[:, None] * here + angle.sin()[:, None] * there
    x = (x.flip(0) if backwards else x)[None].contiguous()
    block = random_block()._replace(query=torch.eye(64) * steep, key=torch.eye(64), output=torch.eye(64))
    block.attention_norm.fill_(1)
    block.attention_norm_bias.zero_()
    block.value.mul_(10)
    lengths = torch.tensor([700])
    assert relative_error(native(x, lengths, block), in_double(x, lengths, block)) < 1e-4


def test_threads_agree_bit_for_bit() -> None:
    block, x = random_block(128, 2, 320), torch.randn(3, 130, 128)
    lengths = torch.tensor([130, 1, 97])
    with threads(1):
        alone = native(x, lengths, block)
    for count in (2, 2, 3):
        with threads(count):
            assert torch.equal(native(x, lengths, block), alone)


def test_a_call_leaves_nothing_behind_for_the_next() -> None:
    block, x = random_block(), torch.randn(1, 20, 64)
    with threads(1):  # or another thread's memory would be used
        expected = native(x, torch.tensor([20]), block)
        native(torch.full((1, 300, 64), torch.nan), torch.tensor([300]), block)
        assert torch.equal(native(x, torch.tensor([20]), block), expected)


def test_input_with_gaps_is_read_as_its_values() -> None:
    block, x = random_block(), torch.randn(2, 64, 9).transpose(1, 2)
    lengths = torch.tensor([9, 0, 4, 0])[::2]
    assert torch.equal(native(x, lengths, block), native(x.contiguous(), lengths.contiguous(), block))


def test_input_is_left_as_it_is() -> None:
    x, lengths = torch.randn(2, 9, 64), torch.tensor([9, 4])
    before = x.clone()
    assert native(x, lengths, random_block()).data_ptr() != x.data_ptr()
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("x", "lengths", "message"),
    [
        (torch.zeros(2, 9, 64).double(), torch.tensor([9, 9]), "float32"),
        (torch.zeros(2, 9, 64).bfloat16(), torch.tensor([9, 9]), "float32"),
        (torch.zeros(2, 9, 64), torch.tensor([9, 9]).int(), "int64"),
        (torch.zeros(2, 9, 64), torch.tensor([9.0, 9.0]), "int64"),
        (torch.zeros(2, 9, 64), torch.tensor([9]), "2 int64 lengths"),
        (torch.zeros(2, 9, 64), torch.tensor(9), "2 int64 lengths"),
        (torch.zeros(2, 9, 64), torch.tensor([[9, 9]]), "2 int64 lengths"),
        (torch.zeros(2, 9, 64), torch.tensor([9, 10]), r"\[9, 10\] do not fit 9"),
        (torch.zeros(2, 9, 64), torch.tensor([-1, 9]), r"\[-1, 9\] do not fit 9"),
    ],
)
def test_what_it_is_not_made_for_is_refused(x: Tensor, lengths: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native(x, lengths, random_block())


def test_fits_only_what_it_is_made_for() -> None:
    assert NativeOperators.fits(width=256, heads=8, head_dim=64, inner=1024)
    assert not NativeOperators.fits(width=256, heads=8, head_dim=32, inner=1024)
    assert not NativeOperators.fits(width=250, heads=8, head_dim=64, inner=1024)
    assert not NativeOperators.fits(width=256, heads=8, head_dim=64, inner=1000)
    assert not NativeOperators.fits(width=256, heads=0, head_dim=64, inner=1024)


def test_packed_block_is_a_copy() -> None:
    block, x, lengths = random_block(), torch.randn(1, 9, 64), torch.tensor([9])
    operators = NativeOperators()
    packed = operators.pack_block(block)
    before = native(x, lengths, block)
    for part in block:
        part.zero_()
    assert torch.equal(operators.transform(x, lengths, packed.arguments, 1, 64, EPS), before)


def test_one_graph_for_all_lengths() -> None:
    block = random_block()
    packed = NativeOperators.pack_block(block)

    def twice(x: Tensor, lengths: Tensor) -> Tensor:
        return NativeOperators.transform(x + 0, lengths, packed.arguments, 1, 64, EPS) * 2

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    before, _ = _compat.graph_counts()
    for positions in (9, 64, 130):
        x, lengths = torch.randn(2, positions, 64), torch.tensor([positions, 2])
        torch._dynamo.mark_dynamic(x, 1)
        assert torch.equal(compiled(x, lengths), 2 * native(x, lengths, block))
    assert _compat.graph_counts()[0] == before + 1


def test_shapes_without_values_are_the_operators_own() -> None:
    packed = NativeOperators.pack_block(random_block())
    x, lengths = torch.randn(2, 64, 9).transpose(1, 2), torch.tensor([9, 2])
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    arguments = (x, lengths, *packed.arguments, 1, 64, EPS)
    torch.library.opcheck(torch.ops.tts_compile.transformer_block.default, arguments, test_utils=tests)
