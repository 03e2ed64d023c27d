"""Any input either gets through or raises one of this library's own errors; sound input gets through."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import tts_compile as tc
from test_bad_input import _Enough, _enough

fuzzed = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
# Surrogates too: they come out of files that are no UTF-8.
any_text = st.text(st.characters(codec=None), max_size=60)
long_text = st.builds(lambda text, times: text * times, any_text, st.integers(1, 200))
anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.floats()),
)


def got_through(call: Callable[..., object], *args: Any, **kwargs: Any) -> bool:
    """Returns whether a call was let through, or refused with one of this library's errors; raises any other error."""
    try:
        call(*args, **kwargs)
    except _Enough:
        return True
    except tc.TTSCompileError:
        return False
    return True


@pytest.fixture
def let_through(eager: Any, tts: Any) -> Any:
    """A model that stops where it would begin to compute."""
    tts.t3.prepare_input_embeds = _enough
    return eager


@fuzzed
@given(st.one_of(any_text, long_text))
def test_texts(let_through: Any, text: str) -> None:
    got_through(let_through.generate, text)


@fuzzed
@given(st.text(string.ascii_letters + " ,.;:!?'-", max_size=60).map("a".__add__))
def test_texts_of_letters_get_through(let_through: Any, text: str) -> None:
    assert got_through(let_through.generate, text)


def errors_of(model: Any, texts: list[Any]) -> dict[int, Exception]:
    """Returns the error of each text of a batch; an error of the whole batch counts for every text."""
    try:
        model.generate_batch(texts, seeds=range(len(texts)))
    except tc.BatchError as error:
        return error.errors
    except (_Enough, tc.TTSCompileError) as error:
        return dict.fromkeys(range(len(texts)), error)
    return {}


@fuzzed
@given(st.lists(st.one_of(any_text, anything), max_size=4))
@example(["Hello there."])
def test_texts_of_a_batch(let_through: Any, texts: list[Any]) -> None:
    found = errors_of(let_through, texts)
    assert all(isinstance(error, (_Enough, tc.TTSCompileError)) for error in found.values())
    good = [index for index, text in enumerate(texts) if text == "Hello there."]
    assert all(isinstance(found[index], _Enough) for index in good)


@fuzzed
@given(
    st.dictionaries(
        st.sampled_from(["temperature", "top_p", "min_p", "repetition_penalty", "cfg_weight", "exaggeration"]), anything
    )
)
@example({"exaggeration": -(2**63) - 1})
@example({"exaggeration": 2**64})
def test_settings_of_a_call(let_through: Any, given_settings: dict[str, Any]) -> None:
    voice = let_through.conds.t3
    try:
        got_through(let_through.generate, "Hello there.", **given_settings)
    finally:
        let_through.conds.t3 = voice


@fuzzed
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.floats(0.01, 9),
            "top_p": st.floats(0, 1),
            "min_p": st.floats(0, 1) | st.sampled_from([0, 1]),
            "repetition_penalty": st.floats(0.01, 9),
            "cfg_weight": st.floats(0, 9),
            "exaggeration": st.floats(0, 9) | st.integers(0, 9),
        },
    )
)
def test_settings_in_range_get_through(let_through: Any, given_settings: dict[str, Any]) -> None:
    voice = let_through.conds.t3
    try:
        assert got_through(let_through.generate, "Hello there.", **given_settings)
    finally:
        let_through.conds.t3 = voice


@fuzzed
@given(anything, st.lists(anything, max_size=3), anything)
@example([], [], None)
@example([], None, 1)
def test_arguments_of_a_batch(let_through: Any, texts: Any, seeds: Any, max_batch: Any) -> None:
    passed = got_through(let_through.generate_batch, texts, seeds, max_batch)
    if texts == [] and not seeds and max_batch in (None, 1):
        assert passed


keys = st.sampled_from(["t3", "flow", "fallback", "max_failures", "buckets", "compile_seconds", "ENABLE_TORCH_COMPILE"])
values = st.recursive(anything, lambda inner: st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6)


def read_twice(mapping: dict[str, Any]) -> None:
    config = tc.CompileConfig.from_mapping(mapping)
    assert tc.CompileConfig.from_mapping(config.to_dict()) == config


@fuzzed
@given(st.dictionaries(st.one_of(keys, st.text(max_size=8)), values, max_size=5))
def test_mappings(mapping: dict[str, Any]) -> None:
    got_through(read_twice, mapping)


@pytest.mark.parametrize(
    "mapping",
    [
        {},
        {"t3": {"execution": "eager", "draft_tokens": 2}, "max_failures": 1, "compile_seconds": 0.5},
        {"buckets": [], "ENABLE_TORCH_COMPILE": True, "flow": {}},
    ],
)
def test_sound_mappings_get_through(mapping: dict[str, Any]) -> None:
    assert got_through(read_twice, mapping)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


toml_line = st.one_of(
    st.text(max_size=30),
    st.builds(lambda key, value: f"{key} = {value}", keys, st.one_of(st.integers(), st.floats(), st.text(max_size=8))),
    st.builds("[{}]".format, keys),
)


def read_toml(folder: Path, content: bytes) -> bool:
    path = folder / "config.toml"
    path.write_bytes(content)
    return got_through(tc.CompileConfig.from_toml, path)


@fuzzed
@given(st.one_of(st.binary(max_size=200), st.lists(toml_line, max_size=5).map("\n".join).map(_bytes)))
def test_toml(tmp_path: Path, content: bytes) -> None:
    read_toml(tmp_path, content)


@pytest.mark.parametrize("content", [b"", b"# nothing\n[t3]\n[flow]\n", b'max_failures = 2\n[t3]\nexecution = "eager"'])
def test_sound_toml_gets_through(tmp_path: Path, content: bytes) -> None:
    assert read_toml(tmp_path, content)


@fuzzed
@given(st.binary(max_size=2000))
def test_recordings(eager: Any, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "voice.wav"
    path.write_bytes(content)
    voice = eager.conds
    with pytest.raises(tc.TTSCompileError):
        eager.prepare_conditionals(str(path))
    assert eager.conds is voice


def test_a_sound_recording_gets_through(eager: Any, tmp_path: Path) -> None:
    voice = eager.conds
    tc.testing.make_reference_wav(tmp_path / "voice.wav", seconds=1)
    try:
        assert got_through(eager.prepare_conditionals, str(tmp_path / "voice.wav"))
        assert eager.conds is not voice
    finally:
        eager.conds = voice


@fuzzed
@given(st.lists(st.integers(-(2**40), 2**40), max_size=6), st.integers(-2, 4))
def test_text_tokens(eager: Any, tokens: list[int], rows: int) -> None:
    given_tokens = torch.tensor([tokens] * max(rows, 0), dtype=torch.long)
    with pytest.raises(tc.TTSCompileError):
        eager.t3.inference(t3_cond=eager.conds.t3, text_tokens=given_tokens, max_new_tokens=1)


@fuzzed
@given(st.data())
def test_text_tokens_of_the_vocabulary_get_through(let_through: Any, data: st.DataObject) -> None:
    hp = let_through.t3.hp
    inner = data.draw(st.lists(st.integers(1, hp.text_tokens_dict_size - 1), min_size=1, max_size=6))
    tokens = [token for token in inner if token not in (hp.start_text_token, hp.stop_text_token)]
    row = torch.tensor([hp.start_text_token, *tokens, hp.stop_text_token])
    inference = let_through.t3.inference
    assert got_through(inference, t3_cond=let_through.conds.t3, text_tokens=row.repeat(2, 1), max_new_tokens=1)
