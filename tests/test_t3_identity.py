"""T3 against stock: equal tokens, one for one, and an equal state of the generator afterwards."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tts_compile as tc
from conftest import EAGER
from speech import SHORT, TEXTS, Speech, random_states, seed_everything, signal_to_error_db, speak, speak_stock
from stages import QUICK
from tts_compile.backbones.backbone import CacheShape
from tts_compile.backbones.llama import LlamaDecoder, embedded
from tts_compile.components.t3.cache import KVCache

ONLY = tc.CompileConfig.off().replace(warmup_samples=0, t3=QUICK)

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


@pytest.fixture(params=["fast", "eager"])
def speaker(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


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
    initial = torch.arange(0, 6400, 64)[None].repeat(2, 1)  # enough of them to change the speech
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
    spoken = silent(speaker)
    for _ in range(2):
        torch.manual_seed(4)
        wave = speaker.generate(SHORT, cfg_weight=0)
        assert wave.dtype == torch.float32
        assert wave.ndim == 2
    expected = stock_speech(SHORT, 4, cfg_weight=0.0).tokens
    assert spoken == [tuple(token for token in expected if token < 6561)] * 2


@pytest.mark.parametrize("ahead", [0, 1, 6])
def test_draft_tokens_change_nothing(tts: Any, stock_speech: Callable[..., Speech], ahead: int) -> None:
    handle = tc.compile_model(tts, ONLY.replace(t3=dataclasses.replace(QUICK, draft_tokens=ahead)))
    assert speak(handle, SHORT, 0) == stock_speech(SHORT, 0)
    for budget in (1, 3, 4):
        expected = stock_speech(SHORT, 3, max_new_tokens=budget)
        assert speak(handle, SHORT, 3, max_new_tokens=budget) == expected


@pytest.mark.parametrize("ahead", [1, 6])
def test_wrong_draft_tokens_change_nothing(
    tts: Any, stock_speech: Callable[..., Speech], monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    copy_of = LlamaDecoder.int8_copy

    def misled(self: Any, weights: Any) -> Any:  # every other token changes its meaning
        head = weights.last.head.detach().clone()
        head[:6560:2] = head[:6560:2].roll(1, 0)
        return copy_of(self, weights._replace(last=weights.last._replace(head=head)))

    monkeypatch.setattr(LlamaDecoder, "int8_copy", misled)
    handle = tc.compile_model(tts, ONLY.replace(t3=dataclasses.replace(QUICK, draft_tokens=ahead)))
    for budget in (1000, 7):
        expected = stock_speech(SHORT, max_new_tokens=budget)
        assert speak(handle, SHORT, max_new_tokens=budget) == expected
    accepted, made = drafts(handle)
    assert accepted < made / 2


def drafts(handle: tc.CompiledTTS) -> tuple[int, int]:
    """Returns how many draft tokens were accepted so far, of how many."""
    found = re.search(r"(\d+) of (\d+) draft tokens", handle.report().components["t3"].note)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _permuted(head: torch.nn.Linear) -> Tensor:
    weight = head.weight.detach().clone()
    weight[:6560] = weight[:6560].roll(2, 0)  # the stop token keeps its row
    return weight


def _written(t3: Any) -> None:
    with torch.no_grad():
        t3.speech_head.weight.copy_(_permuted(t3.speech_head))


def _loaded(t3: Any) -> None:
    state = {name: value.clone() for name, value in t3.state_dict().items()}
    for name in state:
        if name.endswith("speech_head.weight"):  # stock keeps the head twice once it has spoken
            state[name] = _permuted(t3.speech_head)
    t3.load_state_dict(state, assign=True)


def _exchanged(t3: Any) -> None:
    other = copy.deepcopy(t3.speech_head)
    with torch.no_grad():
        other.weight.copy_(_permuted(t3.speech_head))
    t3.speech_head = other


@pytest.mark.parametrize("change", [_written, _loaded, _exchanged])
@pytest.mark.parametrize("policy", [QUICK, EAGER.t3], ids=["native", "eager"])
def test_changed_weights_are_followed(tts: Any, change: Callable[[Any], None], policy: tc.ComponentPolicy) -> None:
    model = copy.copy(tts)
    model.t3 = copy.deepcopy(tts.t3)
    handle = tc.compile_model(model, ONLY.replace(t3=policy))
    before = speak(handle, SHORT)
    accepted, made = drafts(handle)
    change(model.t3)
    expected = speak_stock(model, SHORT)
    assert expected.tokens != before.tokens
    for _ in range(2):
        assert speak(handle, SHORT) == expected
    (event,) = handle.report().components["t3"].fallbacks
    assert "weights" in event.error
    if policy is QUICK:  # the draft has been made anew
        accepted_now, made_now = drafts(handle)
        assert (accepted_now - accepted) / (made_now - made) > 0.5 * accepted / made > 0


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


@pytest.mark.parametrize("budget", [8, 9])
def test_prompt_and_budget_at_a_rung_of_the_capacity(
    tts: Any, stock_speech: Callable[..., Speech], monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    handle = tc.compile_model(tts, ONLY)
    with torch.inference_mode():
        voice = tts.t3.prepare_conditioning(tts.conds.t3).shape[1]
    room = 512 - budget - voice - 4  # start and stop of text, the start of speech twice
    text = ("Seven wizards jog and vex five bold gnomes " * 20)[: room - 1].rstrip() + "s" * 9
    text = text[: room - 1]
    lengths: list[int] = []
    embed = type(tts.t3).prepare_input_embeds

    def embedded(*args: Any, **kwargs: Any) -> Any:
        embeddings, others = embed(*args, **kwargs)
        lengths.append(embeddings.shape[1] + 1 + budget)  # the start token goes in once more
        return embeddings, others

    expected = stock_speech(text, max_new_tokens=budget)
    monkeypatch.setattr(type(tts.t3), "prepare_input_embeds", embedded)
    assert speak(handle, text, max_new_tokens=budget) == expected
    assert lengths == [512]


def test_speech_that_reaches_the_last_position_ends_there(tts: Any) -> None:
    handle = tc.compile_model(tts, ONLY)
    limit = tts.t3.speech_pos_emb.emb.num_embeddings
    assert speak(handle, SHORT, max_new_tokens=10**6) == speak_stock(tts, SHORT, max_new_tokens=limit)


def test_draft_tokens_beyond_the_last_position_have_one_too() -> None:
    table, positions = torch.randn(5, 8), torch.randn(6, 8)
    block = embedded(table, positions, torch.tensor([[1, 2, 3]]), torch.tensor([4]), 2)
    assert torch.equal(block[1], table[[1, 2, 3]] + positions[[4, 5, 5]])


def test_cache_hands_out_no_leftovers() -> None:
    cache = KVCache(CacheShape(2, 1, 4), 1, True, 64, torch.empty(0))
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    for start, count in ((0, 3), (3, 20), (60, 4)):
        positions, mask = cache.attend([start, 0], count)
        rung = mask.shape[3]
        assert positions.tolist() == [list(range(start, start + count)), list(range(count))]
        assert cache.keys[..., :rung, :].isfinite().all()
        assert cache.values[..., :rung, :].isfinite().all()


@pytest.mark.parametrize("whole", [False, True])
def test_slots_hold_what_they_were_given_and_nothing_else(whole: bool) -> None:
    def leftovers(sequence: int) -> Tensor:
        return cache.keys[:, sequence, :, : cache.capacity if whole else 16].isnan()

    cache = KVCache(CacheShape(2, 1, 4), 3, True, 64, torch.empty(0))
    if whole:
        cache.clear()
    cache.keys.fill_(torch.nan)
    cache.keys[:, 4:, :, :5] = 7.0
    cache.vacate(0)
    cache.move(2, 1, 5)
    cache.copy_start(4, 1, 3)
    cache.attend([5] * 4, 1)
    for sequence, held in ((0, 0), (1, 3), (2, 5), (3, 5)):
        assert not leftovers(sequence).any()
        assert (cache.keys[:, sequence, :, :16] == 7).sum() == 2 * held * 4


def test_made_in_inference_mode_it_speaks_outside(tts: Any, stock_speech: Callable[..., Speech]) -> None:
    with torch.inference_mode():
        handle = tc.compile_model(tts, ONLY)
        handle.warmup()
    assert speak(handle, SHORT) == stock_speech(SHORT)


def test_under_autocast_the_call_is_stock(tts: Any, eager: tc.CompiledTTS) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert speak(eager, SHORT, max_new_tokens=5) == speak_stock(tts, SHORT, max_new_tokens=5)
        speak(eager, SHORT, max_new_tokens=2)
    row = eager.report().components["t3"]
    (event,) = row.fallbacks
    assert (event.phase, event.error) == ("call", "autocast is on")
    assert (row.ran, row.note) == ("stock", "utterances left to stock: 2")


def test_hooks_are_honoured(tts: Any, eager: tc.CompiledTTS) -> None:
    hook = tts.t3.speech_head.register_forward_hook(lambda module, args, output: output.roll(3, -1))
    try:
        assert speak(eager, SHORT, max_new_tokens=5) == speak_stock(tts, SHORT, max_new_tokens=5)
    finally:
        hook.remove()
    (event,) = eager.report().components["t3"].fallbacks
    assert "forward hook" in event.error


def test_a_bias_is_honoured(tts: Any) -> None:
    handle = tc.compile_model(tts, ONLY)
    head = tts.t3.speech_head
    head.bias = torch.nn.Parameter(torch.randn(head.out_features))
    try:
        assert speak(handle, SHORT, max_new_tokens=5) == speak_stock(tts, SHORT, max_new_tokens=5)
    finally:
        head.bias = None


def test_cast_after_attaching(tts: Any) -> None:
    handle = tc.compile_model(tts, ONLY)
    speak(handle, SHORT, max_new_tokens=2)
    voice = tts.conds.t3
    floats = {
        name: value for name, value in vars(voice).items() if torch.is_tensor(value) and value.is_floating_point()
    }
    try:
        tts.t3.double()
        vars(voice).update({name: value.double() for name, value in floats.items()})
        assert speak(handle, SHORT, max_new_tokens=5) == speak_stock(tts, SHORT, max_new_tokens=5)
    finally:
        tts.t3.float()
        vars(voice).update(floats)


def test_a_copy_of_a_compiled_model_is_stock(tts: Any) -> None:
    handle = tc.compile_model(tts, ONLY)
    copied = copy.deepcopy(tts.t3)
    with torch.no_grad():
        copied.speech_head.weight.copy_(copied.speech_head.weight.roll(7, 0))
    settings = {"t3_cond": tts.conds.t3, "text_tokens": _tokens(tts, SHORT), "max_new_tokens": 5}
    torch.manual_seed(0)
    found = copied.inference(**settings)
    torch.manual_seed(0)
    assert torch.equal(found, type(copied).inference(copied, **settings))
    calls = handle.report().components["t3"].calls
    assert calls == 0
    with pytest.raises(tc.ModelStateError, match="copied"):
        copy.deepcopy(handle)
    whole = copy.deepcopy(tts)
    with tc.compile_model(whole, ONLY) as second:
        assert second is not handle
        assert speak(second, SHORT, max_new_tokens=5) == speak_stock(tts, SHORT, max_new_tokens=5)


class _Halved(torch.nn.Module):
    def __init__(self, mlp: torch.nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x) * 0.5


def _normed_otherwise(t3: Any) -> None:
    norm = torch.nn.LayerNorm(t3.cfg.hidden_size).eval()
    torch.nn.init.constant_(norm.bias, 3.0)
    t3.tfmr.layers[0].input_layernorm = norm


def _activated_otherwise(t3: Any) -> None:
    t3.tfmr.layers[0].mlp.act_fn = torch.nn.ReLU().eval()


def _other_epsilon(t3: Any) -> None:
    t3.tfmr.layers[0].input_layernorm.variance_epsilon = 0.5


def _without_expected_parts(t3: Any) -> None:
    t3.tfmr.layers[0].mlp = _Halved(t3.tfmr.layers[0].mlp).eval()


def _rotated_otherwise(t3: Any) -> None:
    t3.tfmr.rotary_emb.inv_freq.mul_(0.5)


@pytest.mark.parametrize(
    ("change", "ours"),
    [
        (_normed_otherwise, False),
        (_activated_otherwise, False),
        (_other_epsilon, False),
        (_without_expected_parts, False),
        (_rotated_otherwise, True),
    ],
)
def test_a_changed_part_is_followed_or_left_to_stock(tts: Any, change: Callable[[Any], None], ours: bool) -> None:
    model = copy.copy(tts)
    model.t3 = copy.deepcopy(tts.t3)
    handle = tc.compile_model(model, ONLY.replace(t3=EAGER.t3))
    before = speak(handle, SHORT)
    change(model.t3)
    expected = speak_stock(model, SHORT)
    assert expected.tokens != before.tokens
    calls = handle.report().components["t3"].calls
    assert speak(handle, SHORT) == expected
    row = handle.report().components["t3"]
    assert (row.calls > calls) is ours
    assert len(row.fallbacks) == 1
