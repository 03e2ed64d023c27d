"""Synthetic checkpoints: the real classes, reproducible, and behaving like a trained model where it matters."""

from __future__ import annotations

import hashlib
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tts_compile as tc
from conftest import SPEECH_TOKENS
from speech import SHORT, TEXTS, Speech, random_states


def test_equal_seeds_give_equal_files_and_nothing_global_changes(checkpoint: Path, tmp_path: Path) -> None:
    from chatterbox.models.s3gen import s3gen
    from chatterbox.models.t3.llama_configs import LLAMA_CONFIGS

    patched = (dict(LLAMA_CONFIGS["Llama_520M"]), s3gen.ConditionalDecoder, s3gen.UpsampleConformerEncoder)
    states = random_states()
    again = tc.testing.write_checkpoint(tmp_path / "new" / "folder", size="small", speech_tokens=SPEECH_TOKENS)
    assert random_states() == states
    now = (dict(LLAMA_CONFIGS["Llama_520M"]), s3gen.ConditionalDecoder, s3gen.UpsampleConformerEncoder)
    assert now == patched

    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in checkpoint.iterdir())
    for path in again.iterdir():
        assert _digest(path) == _digest(checkpoint / path.name), path.name


def test_loads_through_the_stock_class(model: Any) -> None:
    from chatterbox.tts import ChatterboxTTS

    assert type(model) is ChatterboxTTS
    assert not any(module.training for module in (model.t3, model.s3gen, model.ve))
    assert model.conds is not None
    assert len(model.t3.tfmr.layers) < 30
    assert model.t3.dim == 1024


def test_stops_by_itself_near_the_wanted_length(stock_speech: Callable[..., Speech], model: Any) -> None:
    spoken = [stock_speech(text, 0).tokens for text in TEXTS.values()]
    lengths = [len(tokens) for tokens in spoken]
    assert all(tokens[-1] == model.t3.hp.stop_speech_token for tokens in spoken)
    assert all(SPEECH_TOKENS / 2 <= length <= SPEECH_TOKENS * 2 for length in lengths)
    assert len(set(lengths)) > 1


def test_longer_texts_speak_longer(stock_speech: Callable[..., Speech]) -> None:
    lengths = {n: len(stock_speech(TEXTS[n], 0).tokens) for n in TEXTS}
    assert lengths[1] < lengths[300]


def test_tokens_do_not_repeat_endlessly(stock_speech: Callable[..., Speech]) -> None:
    tokens = stock_speech(TEXTS[120], 0).tokens
    assert len(set(tokens)) > len(tokens) / 3


def test_wave_is_finite_and_of_speech_like_level(stock_wave: Callable[..., tuple[Tensor, Any]], model: Any) -> None:
    spoken, _ = stock_wave(SHORT, 1)
    assert spoken.shape[0] == 1
    assert 0.2 * SPEECH_TOKENS / 25 < spoken.shape[1] / model.sr < 4 * SPEECH_TOKENS / 25
    assert spoken.isfinite().all()
    assert 0.001 < float(spoken.std()) < 0.5


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"variant": "klingon"}, "klingon.*english"),
        ({"size": "huge"}, "huge.*small"),
        ({"speech_tokens": 3}, "speech_tokens"),
        ({"speech_tokens": 10_000}, "speech_tokens"),
    ],
)
def test_bad_wishes_are_named_before_anything_is_written(tmp_path: Path, settings: dict[str, Any], part: str) -> None:
    with pytest.raises(tc.InputError, match=part):
        tc.testing.write_checkpoint(tmp_path / "never", **settings)
    assert not (tmp_path / "never").exists()


def test_no_checkpoint_there(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(tc.InputError, match=r"t3_cfg\.safetensors"):
            tc.testing.load_checkpoint(folder)
    with pytest.raises(tc.InputError, match="klingon"):
        tc.testing.load_checkpoint(tmp_path, variant="klingon")


def test_reference_wav(tmp_path: Path) -> None:
    path = tc.testing.make_reference_wav(tmp_path / "voice.wav", seconds=1.5)
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 24_000)
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2") / 32768
    assert len(samples) == 36_000
    assert 0.3 < np.abs(samples).max() <= 0.6
    again = tc.testing.make_reference_wav(tmp_path / "again.wav", seconds=1.5)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_reference_wav_needs_a_length(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(tc.InputError, match="seconds"):
        tc.testing.make_reference_wav(tmp_path / "voice.wav", seconds=seconds)


def test_reference_wav_gives_a_voice(tts: Any, tmp_path: Path) -> None:
    path = tc.testing.make_reference_wav(tmp_path / "voice.wav", seconds=2)
    tts.prepare_conditionals(path)
    assert tts.conds.t3.speaker_emb.isfinite().all()


def _digest(path: Path) -> str:
    if path.suffix == ".pt":
        voice = torch.load(path, weights_only=True)
        return repr([(key, sorted(part.items())) for key, part in voice.items()])
    return hashlib.sha256(path.read_bytes()).hexdigest()
