"""Bad input: a clear error before any work is lost, and a model that gives the same results as before."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import tts_compile as tc
from speech import SHORT, Speech, speak, text_tokens


@contextlib.contextmanager
def unharmed(handle: Any, stock_speech: Callable[..., Speech]) -> Iterator[None]:
    """Checks after the block that the voice is the same object and the model gives stock's tokens."""
    voice, part = handle.conds, handle.conds.t3
    yield
    assert handle.conds is voice
    assert handle.conds.t3 is part
    assert speak(handle, SHORT, max_new_tokens=4) == stock_speech(SHORT, max_new_tokens=4)


@pytest.fixture
def heard(eager: Any, silent: Callable[[Any], list[tuple[int, ...]]]) -> list[tuple[int, ...]]:
    return silent(eager)


BAD_TEXTS = {
    "white space": (" \n\t ", "white space"),
    "chinese": ("你好世界", "known to the tokenizer"),
    "chinese with spaces": ("你好 世界。", "known to the tokenizer"),
    "too long": ("ab cd " * 400, "2400|2401|positions"),
    "number": (7, "string"),
    "none": (None, "string"),
    "bytes": (b"hello", "string"),
    "list": (["hello"], "string"),
}


def test_text(eager: Any, heard: list[Any], stock_speech: Callable[..., Speech]) -> None:
    with unharmed(eager, stock_speech):
        for text, part in BAD_TEXTS.values():
            with pytest.raises(tc.InputError, match=part) as caught:
                eager.generate(text, audio_prompt_path="missing.wav", exaggeration=0.7)
            assert isinstance(caught.value, ValueError)
    assert heard == []


def test_empty_text_becomes_stocks_sentence(eager: Any, tts: Any, heard: list[Any]) -> None:
    torch.manual_seed(0)
    eager.generate("")
    eager.restore()
    torch.manual_seed(0)
    tts.generate("")
    assert heard[0] == heard[1] != ()


@pytest.mark.parametrize("text", ["你好 and hello", "Caf\u00e9!", "!?", "7", "a"])
def test_text_with_something_to_say_passes(eager: Any, tts: Any, text: str) -> None:
    tts.t3.prepare_input_embeds = _enough
    with pytest.raises(_Enough):
        eager.generate(text)


def test_longest_text_that_fits(eager: Any, tts: Any, stock_speech: Callable[..., Speech]) -> None:
    limit = tts.t3.hp.max_text_tokens
    text = "A" + "b" * (limit - 2) + "."
    assert len(tts.tokenizer.encode(text)) == limit
    tts.t3.prepare_input_embeds = _enough
    with pytest.raises(_Enough):
        eager.generate(text)
    del tts.t3.prepare_input_embeds
    with unharmed(eager, stock_speech), pytest.raises(tc.InputError, match=str(limit + 1)):
        eager.generate("A" + text)


class _Enough(Exception):  # noqa: N818
    """The request was let through."""


def _enough(**kwargs: Any) -> None:
    raise _Enough


NOT_FINITE = (math.nan, math.inf, -math.inf, None, "warm", [0.5])
BAD_SETTINGS = {
    "temperature": (0, -0.5, *NOT_FINITE),
    "repetition_penalty": (0, -0.5, *NOT_FINITE),
    "top_p": (-0.01, 1.01, *NOT_FINITE),
    "min_p": (-0.01, 1.01, *NOT_FINITE),
    "cfg_weight": (-0.5, *NOT_FINITE),
    "exaggeration": NOT_FINITE,
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_setting(eager: Any, heard: list[Any], stock_speech: Callable[..., Speech], name: str) -> None:
    with unharmed(eager, stock_speech):
        for value in BAD_SETTINGS[name]:
            with pytest.raises(tc.InputError, match=name) as caught:
                eager.generate(SHORT, audio_prompt_path="missing.wav", **{name: value})
            assert isinstance(caught.value, ValueError)
    assert heard == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("cfg_weight", "0.5", id="number in a string"),
        pytest.param("temperature", 10**400, id="beyond floats"),
        pytest.param("exaggeration", 10**400, id="exaggeration beyond floats"),
        pytest.param("exaggeration", -(2**63) - 1, id="exaggeration beyond int64"),
        pytest.param("temperature", torch.tensor([0.5, 0.6]), id="two numbers"),
    ],
)
def test_setting_of_a_strange_kind(eager: Any, name: str, value: Any) -> None:
    with pytest.raises(tc.InputError, match=name):
        eager.generate(SHORT, audio_prompt_path="missing.wav", **{name: value})


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), 1])
def test_any_number_is_a_number(eager: Any, tts: Any, value: Any) -> None:
    tts.t3.prepare_input_embeds = _enough
    with pytest.raises(_Enough):
        eager.generate(SHORT, temperature=value, cfg_weight=value, exaggeration=value)


@pytest.mark.parametrize(
    "budget",
    [0, -1, pytest.param(2.5), pytest.param("many")],
)
def test_budget(eager: Any, budget: Any) -> None:
    with pytest.raises(tc.InputError, match="max_new_tokens"):
        speak(eager, SHORT, max_new_tokens=budget)


def test_rows_and_tokens_of_inference(eager: Any, stock_speech: Callable[..., Speech]) -> None:
    good = text_tokens(eager, SHORT)
    hp = eager.t3.hp
    bad = {
        "1 row": good[:1],
        "3 rows": good[:1].repeat(3, 1),
        "no start": good[:, 1:],
        "no stop": good[:, :-1],
        "beyond the vocabulary": good.clone().index_fill_(1, torch.tensor([2]), hp.text_tokens_dict_size),
        "negative": good.clone().index_fill_(1, torch.tensor([2]), -1),
        "too long": torch.cat([good[:, :1], good[:, 1:2].repeat(1, 3000), good[:, -1:]], dim=1),
    }
    with unharmed(eager, stock_speech):
        for tokens in bad.values():
            with pytest.raises(tc.InputError, match="text"):
                eager.t3.inference(t3_cond=eager.conds.t3, text_tokens=tokens, max_new_tokens=2)


def test_prepended_prompt_is_refused(eager: Any, stock_speech: Callable[..., Speech]) -> None:
    with unharmed(eager, stock_speech), pytest.raises(tc.InputError, match="not implemented"):
        speak(eager, SHORT, prepend_prompt_speech_tokens=torch.zeros(1, 1, dtype=torch.long))


def test_no_voice(eager: Any, tts: Any, heard: list[Any], stock_speech: Callable[..., Speech]) -> None:
    voice = tts.conds
    tts.conds = None
    with pytest.raises(tc.InputError, match="voice") as caught:
        eager.generate(SHORT)
    assert isinstance(caught.value, ValueError)
    assert heard == []
    tts.conds = voice
    with unharmed(eager, stock_speech):
        pass


@pytest.mark.parametrize("part", ["t3", pytest.param("s3gen")])
def test_training_mode(eager: Any, tts: Any, heard: list[Any], stock_speech: Callable[..., Speech], part: str) -> None:
    getattr(tts, part).train()
    voice = tts.conds
    with pytest.raises(tc.ModelStateError, match="training"):
        eager.generate(SHORT, exaggeration=0.7, audio_prompt_path="missing.wav")
    assert tts.conds is voice
    assert heard == []
    getattr(tts, part).eval()
    with unharmed(eager, stock_speech):
        pass


def test_training_mode_of_the_token_loop(eager: Any, tts: Any, stock_speech: Callable[..., Speech]) -> None:
    tts.t3.train()
    with pytest.raises(tc.ModelStateError, match="training"):
        speak(eager, SHORT)
    tts.t3.eval()
    with unharmed(eager, stock_speech):
        pass


@pytest.fixture
def quick(tts: Any) -> tc.CompiledTTS:
    """A compiled model that no other test uses."""
    policy = tc.ComponentPolicy(execution="inductor", backend="eager")
    return tc.compile_model(tts, tc.CompileConfig.off().replace(t3=policy))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("execution", ["eager", "inductor"])
def test_non_finite_logits(
    request: pytest.FixtureRequest, stock_speech: Callable[..., Speech], execution: str, bad: float
) -> None:
    handle = request.getfixturevalue("quick" if execution == "inductor" else "eager")
    weight = handle.t3.speech_head.weight
    with torch.no_grad():
        good = weight[5].clone()
        weight[5] = bad
    try:
        with pytest.raises(tc.ModelStateError, match="non-finite") as caught:
            speak(handle, SHORT)
    finally:
        with torch.no_grad():
            weight[5] = good
    assert isinstance(caught.value, tc.TTSCompileError)
    with unharmed(handle, stock_speech):
        pass


@pytest.mark.parametrize(
    "execution",
    ["eager", "inductor"],
)
def test_non_finite_logits_only_where_they_are_reached(
    request: pytest.FixtureRequest, stock_speech: Callable[..., Speech], execution: str
) -> None:
    handle = request.getfixturevalue("quick" if execution == "inductor" else "eager")
    speak(handle, SHORT, max_new_tokens=1)  # stock caches embeddings with these positions
    positions = handle.t3.speech_pos_emb.emb.weight
    with torch.no_grad():
        good = positions[6].clone()
        positions[6] = math.nan
    try:
        with pytest.raises(tc.ModelStateError, match="non-finite"):
            speak(handle, SHORT, max_new_tokens=8)
        assert speak(handle, SHORT, max_new_tokens=6) == stock_speech(SHORT, max_new_tokens=6)
    finally:
        with torch.no_grad():
            positions[6] = good


def test_refused_on_the_compiled_model_too(fast: Any, stock_speech: Callable[..., Speech]) -> None:
    with unharmed(fast, stock_speech):
        for settings in ({"temperature": 0}, {"top_p": math.nan}):
            with pytest.raises(tc.InputError):
                fast.generate(SHORT, **settings)
        with pytest.raises(tc.InputError):
            fast.generate("  ")
