"""The sampler against the transformers processors and ``torch.multinomial`` that stock T3 uses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tts_compile import InputError
from tts_compile.families.english import ENGLISH
from tts_compile.families.sampling import NoiseStream, SamplingSettings, choose, guide

quick = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])

# Few distinct values give ties; -inf is what an earlier mask leaves.
logit = st.floats(-30, 30, width=32) | st.sampled_from([-math.inf, -1.0, 0.0, 1.0, 8.0])
rows = st.lists(logit, min_size=1, max_size=40).filter(lambda row: max(row) > -math.inf)
wide_rows = st.builds(
    lambda seed, scale: (scale * torch.randn(800, generator=torch.Generator().manual_seed(seed))).tolist(),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.1, 3.0, 30.0]),
)


def sampling_of(**given: Any) -> SamplingSettings:
    """Returns the checked settings of an English model."""
    assert ENGLISH.speech is not None
    return ENGLISH.speech.settings(given)


samplings = st.builds(
    sampling_of,
    temperature=st.sampled_from([0.05, 0.8, 1.0, 2.0]) | st.floats(0.1, 5),
    top_p=st.sampled_from([0.0, 0.5, 0.95, 1.0]) | st.floats(0, 1),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]) | st.floats(0, 1),
    repetition_penalty=st.sampled_from([1.0, 1.2, 2.0]) | st.floats(0.1, 5),
)


def stock_probabilities(logits: Tensor, seen: Tensor, settings: SamplingSettings) -> Tensor:
    """Repeats the lines of ``T3.inference`` from penalty to softmax."""
    from transformers.generation.logits_process import (
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TopPLogitsWarper,
    )

    given = {processor.name: value for processor, value in zip(settings.processors, settings.values)}
    logits = RepetitionPenaltyLogitsProcessor(penalty=given["repetition_penalty"])(seen, logits)
    if given["temperature"] != 1.0:
        logits = logits / given["temperature"]
    logits = MinPLogitsWarper(min_p=given["min_p"])(seen, logits)
    logits = TopPLogitsWarper(top_p=given["top_p"])(seen, logits)
    return torch.softmax(logits, dim=-1)


@quick
@given(rows | wide_rows, samplings, st.integers(0, 2**32 - 1), st.data())
def test_same_token_and_generator_as_stock(
    row: list[float], sampling: SamplingSettings, seed: int, data: st.DataObject
) -> None:
    logits = torch.tensor([row])
    seen = torch.tensor([data.draw(st.lists(st.integers(0, len(row) - 1), min_size=1, max_size=12))])
    expected = stock_probabilities(logits.clone(), seen, sampling)
    assume(not expected.isnan().any())

    found = sampling.probabilities(logits.clone(), seen)
    assert torch.equal(found, expected)

    torch.manual_seed(seed)
    stock_token = int(torch.multinomial(expected, num_samples=1))
    stock_state = torch.get_rng_state()
    torch.manual_seed(seed)
    noise = NoiseStream(logits)
    token, trusted = choose(found, noise[0])
    noise.settle(1)
    assert (int(token), bool(trusted)) == (stock_token, True)
    assert torch.equal(torch.get_rng_state(), stock_state)


@quick
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 6), max_size=6), st.integers(0, 7))
def test_noise_drawn_ahead_is_given_back(seed: int, ahead: list[int], used: int) -> None:
    like = torch.zeros(1, 50)
    torch.manual_seed(seed)
    wanted = []
    states = [torch.get_rng_state()]
    for _ in range(8):
        wanted.append(torch.empty_like(like).exponential_(1))
        states.append(torch.get_rng_state())

    torch.manual_seed(seed)
    noise = NoiseStream(like)
    for index in range(used):
        for guess in ahead:
            if index + guess < 8:
                assert torch.equal(noise[index + guess], wanted[index + guess])
        assert torch.equal(noise[index], wanted[index])
        noise.release(index)
    noise.settle(used)
    assert torch.equal(torch.get_rng_state(), states[used])
    assert torch.equal(noise[used], torch.empty_like(like).copy_(wanted[used]) if used < 8 else noise[used])


@given(rows, rows, st.floats(0, 3))
def test_guidance_is_stock_arithmetic(first: list[float], second: list[float], weight: float) -> None:
    size = min(len(first), len(second))
    logits = torch.tensor([first[:size], second[:size]])
    cond, uncond = logits[0:1], logits[1:2]
    cfg = torch.as_tensor(weight, dtype=cond.dtype)
    expected = cond + cfg * (cond - uncond)
    guided = guide(logits.repeat(3, 1), torch.tensor(weight), True)  # three utterances
    assert torch.equal(guided.nan_to_num(7), expected.repeat(3, 1).nan_to_num(7))


def test_without_guidance_rows_stay_as_they_are() -> None:
    logits = torch.randn(2, 1, 9)
    assert torch.equal(guide(logits, torch.tensor(0.7), False), logits)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("sampling", [sampling_of(), sampling_of(min_p=0, top_p=0.5, temperature=1.0)])
def test_non_finite_logits_are_not_trusted(bad: float, sampling: SamplingSettings) -> None:
    logits = torch.zeros(1, 20)
    logits[0, 3] = bad
    weights = sampling.probabilities(logits, torch.tensor([[0]]))
    assert choose(weights, NoiseStream(logits)[0])[1].tolist() == [False]


def test_inputs_are_left_alone() -> None:
    logits, seen = torch.randn(1, 30), torch.tensor([[1, 2, 2]])
    before = logits.clone()
    sampling_of(top_p=0.5).probabilities(logits, seen)
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0),
        ("temperature", -1),
        ("top_p", 1.01),
        ("top_p", -0.1),
        ("min_p", 2),
        ("min_p", -0.1),
        ("repetition_penalty", 0),
        ("repetition_penalty", -1.2),
        *(
            (name, value)
            for name in ("temperature", "top_p", "min_p", "repetition_penalty", "cfg_weight")
            for value in (math.nan, math.inf, -math.inf, None, "warm", [1.0])
        ),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        sampling_of(**{name: value})


def test_every_bad_setting_is_named_at_once() -> None:
    with pytest.raises(InputError, match=r"temperature.*min_p.*top_p"):
        sampling_of(temperature=0, top_p=2, min_p=-1)
