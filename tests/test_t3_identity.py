"""The same tokens as stock, one for one, and the generator left where stock leaves it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tts_compile as tc
from speech import SHORT, TEXTS, Speech, random_states, seed_everything, signal_to_error_db, speak, speak_stock

SETTINGS: dict[str, dict[str, Any]] = {
    "cold": {"temperature": 0.3},
    "neutral": {"temperature": 1.0},
    "hot": {"temperature": 2.0, "min_p": 0.0},
    "nucleus": {"top_p": 0.6},
    "nucleus, no min-p": {"top_p": 0.9, "min_p": 0.0, "temperature": 1.5},
    "no penalty": {"repetition_penalty": 1.0},
    "strong penalty": {"repetition_penalty": 2.0},
    "no guidance": {"cfg_weight": 0.0},
    "strong guidance": {"cfg_weight": 1.5},
}


@pytest.fixture(params=["inductor", "eager"])
def speaker(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("fast" if request.param == "inductor" else "eager")


@pytest.mark.parametrize(("length", "seed"), [(1, 0), (20, 0), (120, 0), (300, 0), (20, 1), (120, 1)])
def test_texts_and_seeds(speaker: Any, stock_speech: Callable[..., Speech], length: int, seed: int) -> None:
    assert speak(speaker, TEXTS[length], seed) == stock_speech(TEXTS[length], seed)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(speaker: Any, stock_speech: Callable[..., Speech], name: str) -> None:
    settings = {"max_new_tokens": 9, **SETTINGS[name]}
    expected = stock_speech(SHORT, 2, **settings)
    assert speak(speaker, SHORT, 2, **settings) == expected


def test_defaults_of_inference(speaker: Any, tts: Any) -> None:
    settings = {"max_new_tokens": 6, "top_p": 0.95}  # top_p is 1 in generate and 0.95 in inference
    explicit = speak_stock(tts, SHORT, **settings)
    torch.manual_seed(0)
    found = speaker.t3.inference(t3_cond=speaker.conds.t3, text_tokens=_tokens(speaker, SHORT), max_new_tokens=6)
    assert tuple(found[0].tolist()) == explicit.tokens


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5])
def test_budget_ends_anywhere(speaker: Any, stock_speech: Callable[..., Speech], budget: int) -> None:
    found = speak(speaker, SHORT, 3, max_new_tokens=budget)
    assert found == stock_speech(SHORT, 3, max_new_tokens=budget)
    assert len(found.tokens) == budget


def test_no_budget_means_the_models_own(speaker: Any, stock_speech: Callable[..., Speech]) -> None:
    assert speak(speaker, SHORT, max_new_tokens=None) == stock_speech(SHORT)  # stock itself cannot count to None


def test_initial_speech_tokens(speaker: Any, tts: Any) -> None:
    initial = torch.arange(0, 6400, 64)[None].repeat(2, 1)  # enough of them to change what is said
    expected = speak_stock(tts, SHORT, max_new_tokens=12, initial_speech_tokens=initial)
    assert expected.tokens != speak_stock(tts, SHORT, max_new_tokens=12).tokens
    assert speak(speaker, SHORT, max_new_tokens=12, initial_speech_tokens=initial) == expected


def test_two_utterances_in_a_row_share_one_stream_of_random_numbers(speaker: Any, tts: Any) -> None:
    def conversation(inference: Callable[..., Tensor]) -> list[list[int]]:
        torch.manual_seed(5)
        said = []
        for text in ("A", SHORT):
            tokens = inference(t3_cond=tts.conds.t3, text_tokens=_tokens(tts, text), max_new_tokens=5)
            said.append(tokens[0].tolist())
        return said

    t3 = tts.t3
    expected = conversation(lambda **kwargs: type(t3).inference(t3, **kwargs))
    assert conversation(speaker.t3.inference) == expected


def test_one_row_without_guidance_is_stocks_first_row(speaker: Any, stock_speech: Callable[..., Speech]) -> None:
    expected = stock_speech(SHORT, 2, max_new_tokens=9, cfg_weight=0.0)
    assert speak(speaker, SHORT, 2, rows=1, max_new_tokens=9, cfg_weight=0.0) == expected


def test_generate_without_guidance_where_stock_breaks(
    speaker: Any, stock_speech: Callable[..., Speech], silent: Callable[[Any], list[tuple[int, ...]]]
) -> None:
    heard = silent(speaker)
    for _ in range(2):
        torch.manual_seed(4)
        wave = speaker.generate(SHORT, cfg_weight=0)
        assert wave.dtype == torch.float32
        assert wave.ndim == 2
    expected = stock_speech(SHORT, 4, cfg_weight=0.0).tokens
    assert heard == [tuple(token for token in expected if token < 6561)] * 2


@pytest.mark.parametrize("ahead", [0, 1, 6])
def test_guessing_ahead_changes_nothing(tts: Any, stock_speech: Callable[..., Speech], ahead: int) -> None:
    policy = tc.ComponentPolicy(execution="inductor", backend="eager", draft_tokens=ahead)
    handle = tc.compile_model(tts, tc.CompileConfig(t3=policy))
    assert speak(handle, SHORT, 0) == stock_speech(SHORT, 0)
    for budget in (1, 3, 4):
        expected = stock_speech(SHORT, 3, max_new_tokens=budget)
        assert speak(handle, SHORT, 3, max_new_tokens=budget) == expected


@pytest.mark.parametrize("ahead", [1, 6])
def test_wrong_guesses_change_nothing(tts: Any, ahead: int) -> None:
    policy = tc.ComponentPolicy(execution="inductor", backend="eager", draft_tokens=ahead)
    handle = tc.compile_model(tts, tc.CompileConfig(t3=policy))
    weight = tts.t3.speech_head.weight
    good = weight.detach().clone()
    try:
        with torch.no_grad():  # every other token changes its meaning; what guesses ahead was copied before
            weight[:6560:2] = good[:6560:2].roll(1, 0)
        expected = speak_stock(tts, SHORT)
        assert speak(handle, SHORT) == expected
        assert speak(handle, SHORT, max_new_tokens=7) == speak_stock(tts, SHORT, max_new_tokens=7)
    finally:
        with torch.no_grad():
            weight.copy_(good)


def test_whole_utterance(fast: Any, stock_wave: Callable[..., tuple[Tensor, Any]]) -> None:
    expected, states = stock_wave(SHORT, 1)
    seed_everything(1)
    wave = fast.generate(SHORT)
    assert random_states() == states
    assert wave.dtype == torch.float32
    assert wave.device.type == "cpu"
    assert signal_to_error_db(expected, wave) >= 60


@pytest.mark.slow
def test_full_size(tmp_path: Path) -> None:
    tts = tc.testing.load_checkpoint(tc.testing.write_checkpoint(tmp_path, size="full", speech_tokens=40))
    expected = speak_stock(tts, TEXTS[120])
    assert 20 <= len(expected.tokens) <= 80
    with tc.compile_model(tts, tc.CompileConfig.exact()) as fast:
        assert speak(fast, TEXTS[120]) == expected
        assert fast.report().components["t3"].ran == "inductor"


def _tokens(tts: Any, text: str) -> Tensor:
    from speech import text_tokens

    return text_tokens(tts, text)
