"""Whatever comes in: only this library's own errors come out."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
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


@pytest.fixture
def let_through(eager: Any, tts: Any) -> Any:
    """A model that stops where it would begin to speak."""
    tts.t3.prepare_input_embeds = _enough
    return eager


@fuzzed
@given(st.one_of(any_text, long_text))
def test_texts(let_through: Any, text: str) -> None:
    with contextlib.suppress(_Enough, tc.TTSCompileError):
        let_through.generate(text)


@fuzzed
@given(st.lists(st.one_of(any_text, anything), max_size=4))
def test_texts_of_a_batch(let_through: Any, texts: list[Any]) -> None:
    errors: dict[int, Exception] = {}
    try:
        let_through.generate_batch(texts, seeds=range(len(texts)))
    except (_Enough, tc.TTSCompileError) as error:
        errors = getattr(error, "errors", {})
    assert all(isinstance(found, (_Enough, tc.TTSCompileError)) for found in errors.values())


@fuzzed
@given(
    st.dictionaries(
        st.sampled_from(["temperature", "top_p", "min_p", "repetition_penalty", "cfg_weight", "exaggeration"]), anything
    )
)
def test_settings_of_a_call(let_through: Any, given_settings: dict[str, Any]) -> None:
    voice = let_through.conds.t3
    try:
        with contextlib.suppress(_Enough, tc.TTSCompileError):
            let_through.generate("Hello there.", **given_settings)
    finally:
        let_through.conds.t3 = voice


@fuzzed
@given(anything, st.lists(anything, max_size=3), anything)
def test_arguments_of_a_batch(let_through: Any, texts: Any, seeds: Any, max_batch: Any) -> None:
    with contextlib.suppress(_Enough, tc.TTSCompileError):
        let_through.generate_batch(texts, seeds, max_batch)


keys = st.sampled_from(["t3", "flow", "fallback", "max_failures", "buckets", "compile_seconds", "ENABLE_TORCH_COMPILE"])
values = st.recursive(anything, lambda inner: st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6)


@fuzzed
@given(st.dictionaries(st.one_of(keys, st.text(max_size=8)), values, max_size=5))
def test_mappings(mapping: dict[str, Any]) -> None:
    with contextlib.suppress(tc.TTSCompileError):
        config = tc.CompileConfig.from_mapping(mapping)
        assert tc.CompileConfig.from_mapping(config.to_dict()) == config


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


toml_line = st.one_of(
    st.text(max_size=30),
    st.builds(lambda key, value: f"{key} = {value}", keys, st.one_of(st.integers(), st.floats(), st.text(max_size=8))),
    st.builds("[{}]".format, keys),
)


@fuzzed
@given(st.one_of(st.binary(max_size=200), st.lists(toml_line, max_size=5).map("\n".join).map(_bytes)))
def test_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with contextlib.suppress(tc.TTSCompileError):
        tc.CompileConfig.from_toml(path)


@fuzzed
@given(st.binary(max_size=2000))
def test_recordings(eager: Any, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "voice.wav"
    path.write_bytes(content)
    voice = eager.conds
    with pytest.raises(tc.TTSCompileError):
        eager.prepare_conditionals(str(path))
    assert eager.conds is voice


@fuzzed
@given(st.lists(st.integers(-(2**40), 2**40), max_size=6), st.integers(-2, 4))
def test_text_tokens(eager: Any, tokens: list[int], rows: int) -> None:
    given_tokens = torch.tensor([tokens] * max(rows, 0), dtype=torch.long)
    with pytest.raises(tc.TTSCompileError):
        eager.t3.inference(t3_cond=eager.conds.t3, text_tokens=given_tokens, max_new_tokens=1)
