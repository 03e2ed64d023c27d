"""A warm-up compiles, then generates short samples to check that nothing is left to compile."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tts_compile as tc
from conftest import EAGER, components
from speech import SHORT, random_states
from tts_compile.sample_text import prose
from tts_compile.warmup import SAMPLE_TOKENS, sample_texts

Spoken = list[tuple[int, ...]]


@given(st.lists(st.integers(1, 400), max_size=5), st.integers(0, 12), st.integers(0, 100), st.integers(1, 3000))
def test_samples_cover_every_bucket(widths: list[int], count: int, start: int, longest: int) -> None:
    edges = [start]
    for width in widths:
        edges.append(edges[-1] + width)
    buckets = list(itertools.pairwise(edges))
    lengths = [len(text) for text in sample_texts(buckets, count, longest)]
    assert len(lengths) == count
    assert lengths == sorted(lengths)
    assert all(0 < length <= longest for length in lengths)
    if buckets and count:
        assert lengths[-1] == min(edges[-1], longest)
        if count >= len(buckets) and longest >= edges[-1]:
            assert all(any(low <= length <= high for length in lengths) for low, high in buckets)


def test_prose_has_the_length_asked_for() -> None:
    assert [len(prose(n)) for n in (0, 1, 150, 5000)] == [0, 1, 150, 5000]
    assert prose(50) != prose(50, start=7)


def test_built_in_texts_are_begun(tts: Any, silent: Callable[[Any], Spoken]) -> None:
    spoken = silent(tts)
    fast = tc.compile_model(tts, EAGER.replace(warmup_samples=3, buckets=((5, 10), (10, 40))))
    voice, states = tts.conds.t3, random_states()
    steps: list[str] = []
    warm = fast.warmup(progress=steps.append)
    assert steps[:2] == ["compiling t3", "compiling flow"]
    assert steps[-3:] == [f"speaking the beginning of {n} characters" for n in (40, 20, 8)]
    assert (warm.texts, len(spoken)) == (3, 3)
    assert all(len(tokens) <= SAMPLE_TOKENS for tokens in spoken)
    assert warm.speaking > 0
    assert warm.total == pytest.approx(sum(warm.seconds.values()) + warm.speaking)
    assert f"speaking 3 texts  {warm.speaking:.1f}" in str(warm)
    assert random_states() == states
    assert tts.conds.t3 is voice
    fast.generate(SHORT)
    assert len(spoken[-1]) > SAMPLE_TOKENS  # only the warm-up ends early


def test_given_texts_are_spoken_to_their_ends_and_no_others(tts: Any, silent: Callable[[Any], Spoken]) -> None:
    spoken = silent(tts)
    warm = tc.compile_model(tts, EAGER.replace(warmup_samples=3)).warmup([SHORT])
    assert warm.texts == len(spoken) == 1
    assert len(spoken[0]) > SAMPLE_TOKENS


def test_what_another_thread_speaks_meanwhile_is_whole(tts: Any, silent: Callable[[Any], Spoken]) -> None:
    spoken = silent(tts)
    fast = tc.compile_model(tts, EAGER.replace(warmup_samples=1))
    other = threading.Thread(target=tts.generate, args=(SHORT,))

    def meanwhile(step: str) -> None:
        if step.startswith("speaking"):
            other.start()
            other.join(0.3)  # it waits at T3 for the lock

    fast.warmup(progress=meanwhile)
    other.join()
    ours, theirs = sorted(spoken, key=len)
    assert len(theirs) > SAMPLE_TOKENS >= len(ours)


@pytest.mark.parametrize("texts", [["Good.", "  "], ["Good.", None], ["word " * 2000]])
def test_bad_texts_are_refused_before_anything_is_compiled(tts: Any, texts: Any) -> None:
    fast = tc.compile_model(tts, EAGER)
    steps: list[str] = []
    with pytest.raises(tc.InputError):
        fast.warmup(texts, progress=steps.append)
    assert not steps


def test_an_utterance_that_fails_leaves_the_model_whole(tts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = tc.compile_model(tts, EAGER.replace(warmup_samples=1))
    inference = vars(tts.t3)["inference"]
    monkeypatch.setattr(tts.s3gen, "inference", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fast.warmup()
    assert vars(tts.t3)["inference"] is inference


@pytest.mark.parametrize("nothing", ["no voice", "restored", "stock"])
def test_nothing_is_spoken_where_there_is_nothing_to_see(
    nothing: str, tts: Any, silent: Callable[[Any], Spoken]
) -> None:
    spoken = silent(tts)
    config = tc.CompileConfig.off() if nothing == "stock" else EAGER.replace(warmup_samples=3)
    fast = tc.compile_model(tts, config)
    if nothing == "no voice":
        tts.conds = None
    if nothing == "restored":
        fast.restore()
    warm = fast.warmup()
    assert warm.texts == 0
    assert (warm.seconds == {}) == (nothing == "restored")
    assert not spoken


def test_what_speaking_compiles_is_part_of_the_warm_up(tts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = tc.compile_model(tts, EAGER.replace(warmup_samples=1))
    flow = components(fast)["flow"]
    part = flow.engine.parts[0]
    monkeypatch.setattr(fast.wrapped.s3gen, "inference", _compiling(fast, part))
    fast.warmup()
    assert fast.report().components["flow"].graphs > 0
    assert fast.report().components["flow"].recompiles_after_warmup == 0
    part.graphs += 1
    assert fast.report().components["flow"].recompiles_after_warmup == 1


def _compiling(fast: Any, part: Any) -> Callable[..., Any]:
    inference = fast.wrapped.s3gen.inference

    def compiling(**kwargs: Any) -> Any:
        part.graphs += 1
        return inference(**kwargs)

    return compiling


def test_a_bar_is_shown_when_asked_for(tts: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fast = tc.compile_model(tts, EAGER)
    fast.warmup()
    assert "compiling" not in capsys.readouterr().err
    fast.warmup(progress=True)
    assert "compiling watermark" in capsys.readouterr().err
