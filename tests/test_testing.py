"""Synthetic checkpoints: reproducible files for the real classes, with the relevant properties of a trained model."""

from __future__ import annotations

import copy
import hashlib
import re
import shutil
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import tts_compile as tc
from conftest import SPEECH_TOKENS
from speech import SHORT, TEXTS, Speech, random_states
from tts_compile.families import family_named
from tts_compile.testing import depth


def test_equal_seeds_give_equal_files_and_nothing_global_changes(checkpoint: Path, tmp_path: Path) -> None:
    from chatterbox.models.s3gen import s3gen
    from chatterbox.models.t3.llama_configs import LLAMA_CONFIGS

    patched = (copy.deepcopy(LLAMA_CONFIGS), s3gen.ConditionalDecoder, s3gen.UpsampleConformerEncoder)
    states = random_states()
    again = tc.testing.write_checkpoint(tmp_path / "new" / "folder", size="small", speech_tokens=SPEECH_TOKENS)
    assert random_states() == states
    assert (LLAMA_CONFIGS, s3gen.ConditionalDecoder, s3gen.UpsampleConformerEncoder) == patched

    assert _digests(again) == _digests(checkpoint)


@pytest.mark.parametrize("variant", ["multilingual", "turbo"])
def test_equal_seeds_give_equal_files_of_every_variant(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chatterbox.models.t3.inference import alignment_stream_analyzer
    from chatterbox.models.t3.llama_configs import LLAMA_CONFIGS
    from chatterbox.models.t3.modules import t3_config

    class FewWords(t3_config.T3Config):
        def __init__(self, text_tokens_dict_size: int) -> None:
            super().__init__(min(text_tokens_dict_size, 3000))

    monkeypatch.setitem(depth.SMALL, variant, depth.Depths(t3=1))
    monkeypatch.setattr(alignment_stream_analyzer, "LLAMA_ALIGNED_HEADS", [(0, 15)])
    monkeypatch.setitem(LLAMA_CONFIGS["GPT2_medium"], "vocab_size", 8)
    monkeypatch.setattr(t3_config, "T3Config", FewWords)
    folders = [tc.testing.write_checkpoint(tmp_path / name, variant, seed=7) for name in ("one", "other")]
    assert family_named(variant).files.missing(folders[0]) == []
    assert _digests(folders[0]) == _digests(folders[1])
    for folder in folders:
        shutil.rmtree(folder)


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


@pytest.mark.parametrize("text", ["Größe, þú", "Привет", "Ελλάδα", "שלום", "مرحبا", "नमस्ते", "こんにちは", "안녕하세요"])
def test_multilingual_letters_have_tokens_of_their_own(text: str) -> None:
    from unicodedata import normalize

    from tokenizers import Tokenizer

    from tts_compile.testing import tokenizers

    (content,) = tokenizers.multilingual().values()
    ids = Tokenizer.from_str(content).encode("[de]" + normalize("NFKD", text.lower().replace(" ", "[SPACE]"))).ids
    assert 1 not in ids
    assert len(ids) > len(set(text))


def test_nothing_is_fetched_for_chinese(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from chatterbox.models.tokenizers import tokenizer

    asked: list[Any] = []
    monkeypatch.setattr(tokenizer, "hf_hub_download", lambda **kwargs: asked.append(kwargs["local_files_only"]))
    monkeypatch.setattr(tokenizer.ChineseCangjieConverter, "_init_segmenter", lambda self: asked.append("segmenter"))
    monkeypatch.setenv("PKUSEG_HOME", str(tmp_path))
    with tc.testing.nothing_fetched():
        assert tokenizer.ChineseCangjieConverter(tmp_path).segmenter is None
        assert asked == [True]
        (tmp_path / "spacy_ontonotes.zip").touch()
        tokenizer.ChineseCangjieConverter(tmp_path)
    assert asked == [True, True, "segmenter"]


def test_modules_are_as_deep_as_the_files(checkpoint: Path, tmp_path: Path) -> None:
    from chatterbox.models.t3.llama_configs import LLAMA_CONFIGS

    def layers() -> int:
        return int(LLAMA_CONFIGS["Llama_520M"]["num_hidden_layers"])

    with tc.testing.architecture_of(checkpoint):
        assert layers() == depth.SMALL["english"].t3
    with tc.testing.architecture_of(checkpoint, "voice conversion"):
        assert layers() == 30
    assert layers() == 30
    for folder, variant, part in ((tmp_path, "english", "tokenizer.json missing"), (tmp_path, "klingon", "turbo")):
        with pytest.raises(tc.InputError, match=part), tc.testing.architecture_of(folder, variant):
            pass


def test_voice_conversion_loads_what_it_needs(checkpoint: Path) -> None:
    converter = tc.testing.load_checkpoint(checkpoint, "voice conversion")
    assert type(converter) is family_named("voice conversion").load_class()
    assert converter.ref_dict is not None


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"variant": "klingon"}, "klingon.*english, multilingual, turbo"),
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
        for variant in tc.testing.VARIANTS:
            with pytest.raises(
                tc.InputError, match=", ".join(map(re.escape, family_named(variant).files.names)) + " missing"
            ):
                tc.testing.load_checkpoint(folder, variant=variant)
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


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
