from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tts_compile import ConfigError, InputError
from tts_compile.bucketing import Batch, ChunkBucketer, as_ranges, is_range, mistaken_ranges

rungs = st.sets(st.integers(1, 5000), min_size=1, max_size=20).map(lambda found: tuple(sorted(found)))
small_rungs = st.sets(st.integers(1, 12), min_size=1, max_size=4).map(lambda found: tuple(sorted(found)))
token_lists = st.lists(st.lists(st.integers(0, 9), max_size=30), max_size=12)


# capacities


@given(rungs, st.data())
def test_capacity_is_the_smallest_rung_that_holds_n(rungs: tuple[int, ...], data: st.DataObject) -> None:
    ladder = ChunkBucketer.from_ladder(rungs)
    n = data.draw(st.integers(0, rungs[-1]))
    capacity = ladder.capacity(n)
    assert capacity in rungs == ladder.rungs
    assert capacity >= n
    assert not [rung for rung in rungs if n <= rung < capacity]
    assert ladder.capacity(capacity) == capacity
    assert ladder.capacity(data.draw(st.integers(0, n))) <= capacity


@given(rungs, st.integers(0, 20_000), st.integers(0, 20_000))
def test_extended_capacity_goes_on_in_multiples_of_the_last(rungs: tuple[int, ...], n: int, m: int) -> None:
    bucketer = ChunkBucketer.from_ladder(rungs, overflow="extend")
    capacity = bucketer.capacity(n)
    assert capacity >= n
    assert bucketer.capacity(capacity) == capacity
    assert bucketer.capacity(min(n, m)) <= bucketer.capacity(max(n, m))
    if n > rungs[-1]:
        assert capacity % rungs[-1] == 0
        assert capacity - n < rungs[-1]
        assert bucketer.bucket(n) == bucketer.bucket(rungs[-1])
    else:
        assert capacity in rungs


@given(rungs, st.integers())
def test_what_does_not_fit_is_refused(rungs: tuple[int, ...], n: int) -> None:
    if 0 <= n <= rungs[-1]:
        n += rungs[-1] + 1
    for overflow in ("error", "split"):
        with pytest.raises(InputError, match=str(n)) as caught:
            ChunkBucketer.from_ladder(rungs, overflow=overflow).capacity(n)
        assert ("split first" in str(caught.value)) == (overflow == "split" and n > 0)


@pytest.mark.parametrize("n", [True, np.True_, 3.0, -1, "3", None, float("nan"), np.int64(-1)])
def test_a_length_is_a_whole_number(n: Any) -> None:
    for method in (ChunkBucketer().capacity, ChunkBucketer().bucket):
        with pytest.raises(InputError, match="whole number"):
            method(n)


def test_numpy_lengths() -> None:
    capacity = ChunkBucketer().capacity(np.int32(137))
    assert (type(capacity), capacity) == (int, 200)


def test_ranges_are_open_below_and_closed_above() -> None:
    bucketer = ChunkBucketer()
    edges = {0: "short", 49: "short", 50: "short", 200: "short", 201: "medium", 500: "medium", 501: "long"}
    assert {n: bucketer.bucket(n) for n in edges} == edges
    strict = ChunkBucketer(underflow="error")
    assert strict.bucket(50) == "short"
    with pytest.raises(InputError, match=r"49 chars .* 50"):
        strict.capacity(49)


@given(st.integers(1, 200), st.integers(1, 5000))
def test_regular_ladder_ends_at_the_first_multiple_that_reaches_last(step: int, last: int) -> None:
    ladder = ChunkBucketer.regular(step, last)
    assert ladder.rungs == tuple(step * (i + 1) for i in range(len(ladder.rungs)))
    assert last <= ladder.rungs[-1] < last + step
    assert (ladder.unit, ladder.overflow) == ("tokens", "error")


def test_names() -> None:
    assert [ChunkBucketer().bucket(n) for n in (1, 300, 600)] == ["short", "medium", "long"]
    assert ChunkBucketer(((50, 200),)).bucket(60) == "50-200"
    assert ChunkBucketer.from_ladder((4, 8)).bucket(5) == "4-8"
    assert ChunkBucketer(((50, 200), (200, 300)), names=("few", "many")).bucket(201) == "many"


def test_a_bucketer_is_a_value() -> None:
    bucketer = ChunkBucketer([[50, 200], [200, 500]], names=["a", "b"])  # type: ignore[arg-type]
    assert bucketer == ChunkBucketer(((50, 200), (200, 500)), names=("a", "b"))
    assert {bucketer: 1}[pickle.loads(pickle.dumps(bucketer))] == 1
    changed = dataclasses.replace(bucketer, ranges=((1, 2), (2, 3)))
    assert (changed.rungs, changed.names) == ((2, 3), ("a", "b"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        bucketer.unit = "words"  # type: ignore[misc]


# mistakes


@pytest.mark.parametrize("rungs", [(), (0, 1), (-2, 4), (4, 4), (8, 4), (1.5,), (True, 2), ("a",), 5])
def test_rungs_must_be_positive_and_ascending(rungs: Any) -> None:
    with pytest.raises(ConfigError):
        ChunkBucketer.from_ladder(rungs)


@pytest.mark.parametrize(("step", "last"), [(0, 10), (-1, 10), (4, 0), (1.5, 4), (4, "8"), (True, 4)])
def test_regular_refuses_what_makes_no_ladder(step: Any, last: Any) -> None:
    with pytest.raises(ConfigError, match="step and last"):
        ChunkBucketer.regular(step, last)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        ChunkBucketer(
            ((50, 200), (250, 300), (280, 400), (500, 450), (-1, 3), (1.5, 2), "x", (7, 8)),  # type: ignore[arg-type]
            names=("a", "a", "b"),
            unit="bytes",
            overflow="ignore",
            underflow="split",
        )
    assert caught.value.mistakes == (
        "bucket (500, 450) must be two ascending whole numbers",
        "bucket (-1, 3) must be two ascending whole numbers",
        "bucket (1.5, 2) must be two ascending whole numbers",
        "bucket 'x' must be two ascending whole numbers",
        "gap between buckets (50, 200) and (250, 300)",
        "overlap between buckets (250, 300) and (280, 400)",
        "names must differ, got ('a', 'a', 'b')",
        "names must be one for each of 8 buckets, got 3: ('a', 'a', 'b')",
        "unit must be one of chars, words, tokens, frames, got 'bytes'",
        "overflow must be one of extend, error, split, got 'ignore'",
        "underflow must be one of extend, error, got 'split'",
    )


FIELDS = {
    "ranges": (((1, 5), (5, 9)), [(), 5, None, "ab", {}, ((2, 1),), ((1, 2), (3, 4)), ([{}],), ((1, True),)]),
    "names": (("a", "b"), ["ab", 5, ("a", "a"), ("a", ""), ([], "a"), {"a", "b"}]),
    "unit": ("words", ["word", None, [], 3]),
    "overflow": ("extend", ["", None, {}]),
    "underflow": ("error", ["split", 1.0]),
}


@given(st.fixed_dictionaries({name: st.integers(-1, len(bad) - 1) for name, (_, bad) in FIELDS.items()}))
def test_every_mistaken_field_is_found(picks: dict[str, int]) -> None:
    """A pick of -1 is the sound value."""
    values = {name: FIELDS[name][1][pick] if pick >= 0 else FIELDS[name][0] for name, pick in picks.items()}
    wrong = [name for name, pick in picks.items() if pick >= 0]
    if not wrong:
        assert ChunkBucketer(**values).unit == "words"
        return
    with pytest.raises(ConfigError) as caught:
        ChunkBucketer(**values)
    words = {"ranges": "bucket", "names": "name"}
    for name in wrong:
        assert any(words.get(name, name) in mistake for mistake in caught.value.mistakes)
    assert len(caught.value.mistakes) >= len(wrong)


@given(st.lists(st.tuples(st.integers(-2, 9), st.integers(-2, 9)), max_size=5).map(tuple))
def test_mistaken_ranges_finds_each(ranges: tuple[tuple[int, int], ...]) -> None:
    single = [r for r in ranges if not 0 <= r[0] < r[1]]
    pairs = [(a, b) for a, b in itertools.pairwise(ranges) if a not in single and b not in single and a[1] != b[0]]
    mistakes = mistaken_ranges(ranges)
    assert len(mistakes) == len(single) + len(pairs)
    for found, mistake in zip([*single, *pairs], mistakes):
        assert str(found).strip("()") in mistake.replace(") and (", "), (")


@pytest.mark.parametrize("garbage", [5, None, "ab", {1: 2}, [(1, 2)], ({},), ([],), ((1, 2, 3),), (None, (1, 2))])
def test_mistaken_ranges_takes_anything(garbage: Any) -> None:
    assert len(mistaken_ranges(garbage)) == 1


def test_ranges_as_files_give_them() -> None:
    assert as_ranges([[1, 2], "x"]) == ((1, 2), "x")
    assert as_ranges(None) is None
    assert is_range([1, 2])
    assert not is_range((2, 1))
    assert mistaken_ranges(()) == []


# grouping


@given(small_rungs, token_lists, st.none() | st.integers(1, 4))
def test_grouping_loses_and_doubles_nothing(rungs: tuple[int, ...], items: Any, max_batch: int | None) -> None:
    bucketer = ChunkBucketer.from_ladder(rungs, overflow="extend")
    batches = bucketer.group(items, max_batch)
    places = [place for batch in batches for place in batch.indices]
    assert sorted(places) == list(range(len(items)))
    for batch in batches:
        assert 1 <= len(batch.items) == len(batch.indices) == len(batch.parts) <= (max_batch or len(items))
        assert list(batch.items) == [items[i] for i in batch.indices]
        assert {bucketer.capacity(len(item)) for item in batch.items} == {batch.capacity}
        assert {bucketer.bucket(len(item)) for item in batch.items} == {batch.bucket}
        assert set(batch.parts) == {0}
    order = [(len(items[i]), i) for i in places]
    assert order == sorted(order)  # shortest first, and stable
    for capacity in {batch.capacity for batch in batches}:  # no batch is opened while the last has room
        sizes = [len(batch.items) for batch in batches if batch.capacity == capacity]
        assert all(size == max_batch for size in sizes[:-1])
    restored = ChunkBucketer.restore_order(batches, [[(item, "done") for item in batch.items] for batch in batches])
    assert restored == [(item, "done") for item in items]


@given(small_rungs, token_lists, st.none() | st.integers(1, 4))
def test_split_sequences_come_back_in_reading_order(rungs: tuple[int, ...], items: Any, max_batch: int | None) -> None:
    bucketer = ChunkBucketer.from_ladder(rungs, overflow="split")
    batches = bucketer.group(items, max_batch)
    assert all(len(item) <= batch.capacity <= rungs[-1] for batch in batches for item in batch.items)
    assert all(len(batch.items) <= (max_batch or len(batch.items)) for batch in batches)
    restored = ChunkBucketer.restore_order(batches, [batch.items for batch in batches])
    assert [token for piece in restored for token in piece] == [token for item in items for token in item]
    places = [place for batch in batches for place in zip(batch.indices, batch.parts)]
    assert len(set(places)) == len(places)
    for i, item in enumerate(items):
        assert sorted(part for index, part in places if index == i) == list(range(max(1, -(-len(item) // rungs[-1]))))


words = st.lists(st.text("ab.,! \n\xa0世", max_size=8), max_size=8).map(" ".join)


@settings(deadline=None)
@given(small_rungs, st.lists(words, max_size=5), st.sampled_from(["chars", "words"]), st.sampled_from([None, 2]))
def test_split_texts_keep_every_word(
    rungs: tuple[int, ...], items: list[str], unit: str, max_batch: int | None
) -> None:
    bucketer = ChunkBucketer.from_ladder(rungs, unit, "split")
    batches = bucketer.group(items, max_batch)
    for batch in batches:
        for item in batch.items:
            assert (len(item) if unit == "chars" else len(item.split())) <= batch.capacity
    pairs = [list(zip(batch.items, batch.indices)) for batch in batches]
    restored = ChunkBucketer.restore_order(batches, pairs)
    for i, item in enumerate(items):
        pieces = [piece for piece, index in restored if index == i]
        assert pieces  # white space alone keeps its place
        assert "".join("".join(pieces).split()) == "".join(item.split())
        if unit == "words":
            assert " ".join(pieces).split() == item.split()


def test_a_long_text_is_split_into_sentences() -> None:
    text = "Mr. Smith went home. " * 60
    batches = ChunkBucketer(underflow="error").group(["a" * 60, text.strip()], max_batch=1)
    assert [(batch.bucket, batch.indices, batch.parts) for batch in batches] == [
        ("short", (0,), (0,)),
        ("medium", (1,), (1,)),
        ("long", (1,), (0,)),
    ]
    assert all(batch.items[0].endswith("home.") for batch in batches[1:])
    short = ChunkBucketer(((100, 110),), underflow="error").group(["It rained all day. " * 6])
    assert [len(batch.items) for batch in short] == [2]  # the second piece is below the range


def test_white_space_alone_keeps_its_place() -> None:
    for unit in ("chars", "words"):
        (batch,) = ChunkBucketer(((0, 2),), unit=unit).group(["  \n ", "a"])
        assert {index: item.strip() for index, item in zip(batch.indices, batch.items)} == {0: "", 1: "a"}


def test_words_are_split_between_words() -> None:
    bucketer = ChunkBucketer(((0, 2),), unit="words", overflow="split")
    (batch,) = bucketer.group(["one  two\nthree four\u2028five "])
    assert sorted(zip(batch.parts, batch.items)) == [(0, "one  two"), (1, "three four"), (2, "five")]


def test_any_sized_sequence_is_grouped() -> None:
    items = [torch.arange(9), np.arange(3), (1, 2), range(4), [7]]
    bucketer = ChunkBucketer.from_ladder((4,), unit="frames", overflow="split")
    (batch,) = bucketer.group(items)
    assert batch.indices == (0, 4, 2, 1, 0, 0, 3)
    assert [len(item) for item in batch.items] == [1, 1, 2, 3, 4, 4, 4]


def test_grouping_nothing() -> None:
    assert ChunkBucketer().group([]) == []
    assert ChunkBucketer.restore_order([], []) == []


@pytest.mark.parametrize("max_batch", [0, -1, 1.0, True, "2"])
def test_max_batch_is_a_whole_number(max_batch: Any) -> None:
    with pytest.raises(InputError, match="max_batch"):
        ChunkBucketer().group(["a"], max_batch)


@pytest.mark.parametrize("items", ["a text", b"bytes", None, 5, {"a": 1}])
def test_items_must_be_a_list(items: Any) -> None:
    for method in (ChunkBucketer().group, ChunkBucketer().stats):
        with pytest.raises(InputError, match="items must be a list"):
            method(items)


@pytest.mark.parametrize(
    ("unit", "wrong"),
    [
        ("chars", b"a"),
        ("chars", None),
        ("words", ["a"]),
        ("tokens", "a"),
        ("tokens", 5),
        ("tokens", {1: 2}),
        ("frames", {1}),
        ("frames", torch.tensor(1)),
        ("frames", np.array(1)),
    ],
)
def test_a_wrong_item_is_named(unit: str, wrong: Any) -> None:
    sound: Any = "a" if unit in ("chars", "words") else [1]
    bucketer = ChunkBucketer(unit=unit)
    for method in (bucketer.group, bucketer.stats):
        with pytest.raises(InputError, match="item 1 must be"):
            method([sound, wrong, wrong])


def test_an_item_that_does_not_fit_is_named() -> None:
    with pytest.raises(InputError, match="item 1: 9 tokens"):
        ChunkBucketer.from_ladder((8,)).group([[1], [1] * 9])
    with pytest.raises(InputError, match="item 0: 1 chars"):
        ChunkBucketer(underflow="error").group(["a"])


@pytest.mark.parametrize("results", [[], [[1, 2]], [[1], [2], [3]], [[1, 2, 3], []], [None, [1]], None, ["ab", [1]]])
def test_results_that_do_not_fit_their_batches(results: Any) -> None:
    batches = ChunkBucketer().group(["a", "b" * 300, "c"])
    assert [len(batch.items) for batch in batches] == [2, 1]
    with pytest.raises(InputError):
        ChunkBucketer.restore_order(batches, results)


def test_results_may_be_anything_that_lists() -> None:
    batches = [Batch("a", 4, (1, 2), (1, 0), (0, 0)), Batch("b", 8, (3,), (2,), (0,))]
    restored = ChunkBucketer.restore_order(batches, [torch.tensor([[1], [0]]), iter("2")])
    assert [int(result) for result in restored] == [0, 1, 2]


# padding


@given(small_rungs, st.lists(st.lists(st.integers(-9, 9), max_size=40), min_size=1, max_size=6), st.integers(-5, 5))
def test_padding_comes_off_again(rungs: tuple[int, ...], sequences: list[list[int]], pad_id: int) -> None:
    bucketer = ChunkBucketer.from_ladder(rungs, overflow="extend")
    padded, lengths = bucketer.pad(sequences, pad_id)
    assert padded.dtype == lengths.dtype == torch.int64
    assert padded.shape == (len(sequences), bucketer.capacity(max(map(len, sequences))))
    assert [row[:n].tolist() for row, n in zip(padded, lengths.tolist())] == sequences
    assert all((row[n:] == pad_id).all() for row, n in zip(padded, lengths.tolist()))


def test_padding_tensors_and_arrays() -> None:
    sequences: Any = (torch.tensor([1, 2], dtype=torch.int32), np.array([3], dtype=np.uint8), (4, 5, 6), [])
    padded, lengths = ChunkBucketer.from_ladder((4,)).pad(sequences, pad_id=9)
    assert padded.tolist() == [[1, 2, 9, 9], [3, 9, 9, 9], [4, 5, 6, 9], [9, 9, 9, 9]]
    assert lengths.tolist() == [2, 1, 3, 0]


def test_padding_numbers_beyond_int64() -> None:
    bucketer = ChunkBucketer.from_ladder((4,))
    with pytest.raises(InputError, match="beyond int64"):
        bucketer.pad([np.array([2**63], dtype=np.uint64)], pad_id=0)
    assert bucketer.pad([np.array([7], dtype=np.uint64)], pad_id=0)[0].tolist() == [[7, 0, 0, 0]]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (([],), "at least one"),
        (("ab",), "list"),
        ((None,), "list"),
        (([[1], "ab"],), "sequence 1"),
        (([[1.5]],), "sequence 0"),
        (([[True]],), "sequence 0"),
        (([[1j]],), "sequence 0"),
        (([[1], 5],), "sequence 1"),
        (([[[1], [2, 3]]],), "sequence 0"),
        (([[[1]]],), "sequence 0"),
        (([[2**70]],), "sequence 0"),
        (([[None]],), "sequence 0"),
        (([[1] * 5],), "5 tokens do not fit"),
        (([[1]], 0.5), "pad_id"),
        (([[1]], True), "pad_id"),
    ],
)
def test_what_cannot_be_padded(arguments: tuple[Any, ...], part: str) -> None:
    with pytest.raises(InputError, match=part):
        ChunkBucketer.from_ladder((4,)).pad(*arguments)


# statistics


def test_the_reference_reports_chunks() -> None:
    lengths = [90, 120, 137, 140, 161, 174]
    assert sum(lengths) / len(lengths) == 137
    stats = ChunkBucketer().stats(["x" * n for n in lengths])
    assert stats.shares == {"short": 1.0, "medium": 0.0, "long": 0.0}
    assert (stats.total, stats.shortest, stats.mean, stats.longest) == (6, 90, 137.0, 174)
    assert (stats.shapes_before, stats.shapes_after) == (6, 1)
    assert stats.padding_waste == pytest.approx(1 - 137 / 200)
    assert stats.verdict == "HIGH - Excellent bucketing efficiency"
    assert json.loads(json.dumps(stats.to_dict())) == dataclasses.asdict(stats)
    for part in (
        "short   6      100%",
        "90 to 174",
        "137",
        "6 lengths become 1 shapes",
        "31.5% padding",
        stats.verdict,
    ):
        assert part in str(stats)


@pytest.mark.parametrize(
    ("short", "long", "verdict"),
    [(10, 0, "HIGH"), (8, 2, "HIGH"), (79, 21, "MEDIUM"), (5, 5, "MEDIUM"), (21, 79, "MEDIUM"), (0, 1, "HIGH")],
)
def test_verdict(short: int, long: int, verdict: str) -> None:
    stats = ChunkBucketer.from_ladder((2, 8)).stats([[1]] * short + [[1] * 5] * long)
    assert stats.verdict.startswith(f"{verdict} - ")


def test_mixed_lengths_are_low() -> None:
    stats = ChunkBucketer.from_ladder((1, 2, 3)).stats([[0] * (i % 3) for i in range(1, 10)])
    assert stats.verdict == "MEDIUM - Good bucketing efficiency"  # 6 of 9 have at most one token
    stats = ChunkBucketer.from_ladder((1, 2, 3)).stats([[0] * (1 + i % 3) for i in range(9)])
    assert stats.verdict == "LOW - Mixed chunk sizes"


@given(small_rungs, token_lists.filter(len), st.sampled_from(["extend", "split"]))
def test_statistics_agree_with_the_batches(rungs: tuple[int, ...], items: Any, overflow: str) -> None:
    bucketer = ChunkBucketer.from_ladder(rungs, overflow=overflow)
    stats = bucketer.stats(items)
    pieces = [(batch, item) for batch in bucketer.group(items) for item in batch.items]
    lengths = [len(item) for _, item in pieces]
    positions = sum(batch.capacity for batch, _ in pieces)
    assert stats.counts == {
        bucketer.bucket(rung): sum(batch.bucket == bucketer.bucket(rung) for batch, _ in pieces) for rung in rungs
    }
    assert sum(stats.counts.values()) == stats.total == len(pieces)
    assert sum(stats.shares.values()) == pytest.approx(1)
    assert (stats.shortest, stats.longest) == (min(lengths), max(lengths))
    assert stats.mean == pytest.approx(sum(lengths) / len(lengths))
    assert stats.padding_waste == pytest.approx((positions - sum(lengths)) / positions)
    assert (stats.shapes_before, stats.shapes_after) == (
        len(set(lengths)),
        len({batch.capacity for batch, _ in pieces}),
    )


def test_statistics_of_nothing() -> None:
    with pytest.raises(InputError, match="at least one"):
        ChunkBucketer().stats([])


# fitting


def padding(lengths: list[int], rungs: tuple[int, ...]) -> int:
    return sum(min(rung for rung in rungs if rung >= n) - n for n in lengths)


@settings(deadline=None)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=20), st.integers(1, 5))
def test_no_boundaries_pad_less_than_the_fitted_ones(lengths: list[int], buckets: int) -> None:
    fitted = ChunkBucketer.fit(lengths, buckets)
    last = max(1, *lengths)
    assert len(fitted.rungs) == min(buckets, len({max(1, n) for n in lengths}))
    assert fitted.rungs[-1] == last
    least = min(
        padding(lengths, (*others, last))
        for count in range(min(buckets, last))
        for others in itertools.combinations(range(1, last), count)
    )
    assert padding(lengths, fitted.rungs) == least


def test_fit_keeps_up_with_many_lengths() -> None:
    lengths = np.random.default_rng(0).integers(0, 1000, 10_000)
    before = time.perf_counter()
    fitted = ChunkBucketer.fit(lengths, buckets=8, unit="frames", overflow="extend")
    assert time.perf_counter() - before < 1
    assert (len(fitted.rungs), fitted.unit, fitted.overflow) == (8, "frames", "extend")
    even = ChunkBucketer.from_ladder(range(125, 1001, 125))
    assert padding(lengths.tolist(), fitted.rungs) <= padding(lengths.tolist(), even.rungs)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (([],), "at least one"),
        (("123",), "lengths must be a list"),
        ((None,), "lengths must be a list"),
        (([1, 2.0],), "whole number"),
        (([-1],), "whole number"),
        (([True],), "whole number"),
        (([1], 0), "buckets"),
        (([1], 1.5), "buckets"),
        (([2**62, 2**62],), "too long"),
        (([2**80],), "too long"),
    ],
)
def test_fit_refuses_what_it_cannot_use(arguments: tuple[Any, ...], part: str) -> None:
    with pytest.raises(InputError, match=part):
        ChunkBucketer.fit(*arguments)


def test_fit_with_a_single_length() -> None:
    assert ChunkBucketer.fit([0], buckets=3).ranges == ((0, 1),)
    assert ChunkBucketer.fit(iter([7, 7]), buckets=3).ranges == ((0, 7),)
