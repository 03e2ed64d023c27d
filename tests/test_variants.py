"""The multilingual model and Turbo: their synthetic checkpoints, loaded by stock and by this library."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import tts_compile as tc
from sameness import same
from speech import SHORT, TEXTS
from tts_compile.families import Family, family_named

FEW = {"multilingual": 8, "turbo": 24}  # speech tokens
WORDS = {"multilingual": ("Hello.", "Hello there!"), "turbo": ("Hello.", TEXTS[120])}
SETTINGS: dict[str, dict[str, Any]] = {"multilingual": {"language_id": "en"}, "turbo": {}}
SAMPLES = 960  # of a speech token


class Variant(NamedTuple):
    """A family, a checkpoint of it and its stock model."""

    family: Family
    folder: Path
    stock: Any


@pytest.fixture(scope="module", params=["multilingual", "turbo"])
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Variant]:
    name = request.param
    folder = tc.testing.write_checkpoint(tmp_path_factory.mktemp(name), name, speech_tokens=FEW[name])
    yield Variant(family_named(name), folder, tc.testing.load_checkpoint(folder, name))
    shutil.rmtree(folder)  # more than a gigabyte


@pytest.fixture(scope="module")
def waves(variant: Variant) -> list[Tensor]:
    """The waves that stock generates for the variant's words; ``generate`` leaves attributes on the model."""
    name = variant.family.name
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [variant.stock.generate(text, **SETTINGS[name]) for text in WORDS[name]]


def load(variant: Variant, cls: Any, **options: Any) -> Any:
    name = variant.family.name
    with tc.testing.architecture_of(variant.folder, name), tc.testing.nothing_fetched():
        return tc.load_model(cls, variant.folder, **options)


def test_loads_through_its_stock_class(variant: Variant) -> None:
    tts = variant.stock
    assert type(tts) is variant.family.load_class()
    assert not any(module.training for module in (tts.t3, tts.s3gen, tts.ve))
    assert tts.t3.dim == 1024


def test_a_loaded_model_equals_one_that_has_not_spoken(variant: Variant) -> None:
    same(load(variant, variant.family.load_class()), variant.stock)


def test_t3_in_half_precision_speaks(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    half = load(variant, variant.family.class_name, dtype="bf16")
    assert half.t3.speech_head.weight.dtype == torch.bfloat16
    spoken: list[Tensor] = []

    def inference(speech_tokens: Tensor, **_: Any) -> tuple[Tensor, None]:
        spoken.append(speech_tokens)
        return torch.zeros(1, 4800), None

    monkeypatch.setattr(half.s3gen, "inference", inference)
    few = {"multilingual": ("inference", "max_new_tokens"), "turbo": ("inference_turbo", "max_gen_len")}
    method, limit = few[variant.family.name]  # bf16 is slow on most CPUs
    stock = getattr(half.t3, method)
    monkeypatch.setattr(half.t3, method, lambda **given: stock(**{**given, limit: 4}))
    prompt = half.conds.t3.cond_prompt_speech_tokens
    monkeypatch.setattr(half.conds.t3, "cond_prompt_speech_tokens", prompt[:, :8])
    half.generate(SHORT, **SETTINGS[variant.family.name])
    assert spoken[0].numel() > 0


def test_speaks_and_stops_by_itself(variant: Variant, waves: list[Tensor]) -> None:
    name = variant.family.name
    for spoken in waves:
        assert spoken.isfinite().all()
        assert 0.001 < float(spoken.std()) < 0.5
    silence = 3 if name == "turbo" else 0  # tokens that it appends
    short, long = (spoken.shape[1] // SAMPLES - silence for spoken in waves)
    assert FEW[name] / 2 <= short < 0.8 * long <= 2 * FEW[name]


@pytest.mark.parametrize("variant", ["multilingual"], indirect=True)
@pytest.mark.usefixtures("waves")
def test_the_alignment_analyzer_hears_the_text_end_and_forces_nothing(variant: Variant) -> None:
    alignment = variant.stock.t3.patched_model.alignment_stream_analyzer.alignment  # (speech, text)
    tokens = len(WORDS["multilingual"][-1]) + 3
    assert alignment.shape[1] == tokens
    assert alignment[-1].argmax() == tokens - 1
    assert alignment.sum() < 0.1  # the analyzer forces an end at 5


@pytest.mark.parametrize("variant", ["turbo"], indirect=True)
def test_turbo_reads_any_text(variant: Variant) -> None:
    tokenizer, text = variant.stock.tokenizer, "Hi! ÄÖ 中文 🙂"
    assert len(tokenizer) == variant.stock.t3.hp.text_tokens_dict_size
    assert tokenizer.decode(tokenizer(text).input_ids) == text
