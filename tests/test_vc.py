"""Voice conversion: flow and vocoder without T3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tts_compile as tc
from conftest import EAGER
from speech import random_states, seed_everything, signal_to_error_db

LEAST_DB = 60
COMPILED = tc.CompileConfig(**dict.fromkeys(("flow", "vocoder"), tc.ComponentPolicy(backend="eager")))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tc.testing.make_reference_wav(tmp_path_factory.mktemp("audio") / "said.wav", seconds=1.0)


@pytest.fixture
def converter(tts: Any) -> Any:
    """Returns a stock converter with the S3Gen of the test model."""
    from chatterbox.vc import ChatterboxVC

    return ChatterboxVC(tts.s3gen, "cpu", ref_dict=dict(tts.conds.gen))


def test_converts_as_stock(converter: Any, recording: Path) -> None:
    seed_everything(3)
    expected, states = converter.generate(recording), random_states()
    with tc.compile_model(converter, COMPILED) as fast:
        seed_everything(3)
        found = fast.generate(recording)
        assert random_states() == states
        rows = fast.report().components
        assert {name: rows[name].ran for name in ("flow", "vocoder", "watermark")} == {
            "flow": "inductor",
            "vocoder": "inductor",
            "watermark": "eager",
        }
        assert (rows["t3"].ran, rows["voice_encoder"].ran) == ("stock", "stock")
    assert signal_to_error_db(expected, found) > LEAST_DB
    seed_everything(3)
    assert torch.equal(converter.generate(recording), expected)


def test_another_voice(converter: Any, recording: Path, tmp_path: Path) -> None:
    other = tc.testing.make_reference_wav(tmp_path / "other.wav", seconds=2.0)
    seed_everything(3)
    expected = converter.generate(recording, target_voice_path=other)
    with tc.compile_model(converter, EAGER) as fast:
        for _ in range(2):
            seed_everything(3)
            assert signal_to_error_db(expected, fast.generate(recording, other)) > LEAST_DB


def test_needs_a_voice(converter: Any, recording: Path) -> None:
    converter.ref_dict = None
    with tc.compile_model(converter, EAGER) as fast, pytest.raises(tc.InputError, match="set_target_voice first"):
        fast.generate(recording)


def test_a_bad_voice_leaves_the_one_before(converter: Any, recording: Path, tmp_path: Path) -> None:
    before = converter.ref_dict
    with tc.compile_model(converter, EAGER) as fast, pytest.raises(tc.InputError, match="nowhere"):
        fast.generate(recording, tmp_path / "nowhere.wav")
    assert converter.ref_dict is before


def test_speaks_no_texts(converter: Any) -> None:
    with tc.compile_model(converter, EAGER) as fast, pytest.raises(tc.InputError, match="speaks no texts"):
        fast.warmup(["Hello"])
    with tc.compile_model(converter, EAGER) as fast, pytest.raises(tc.InputError, match="speaks no texts"):
        fast.generate_batch(["Hello"])


def test_training_mode(converter: Any) -> None:
    converter.s3gen.train()
    with pytest.raises(tc.ModelStateError, match="training mode"):
        tc.compile_model(converter, EAGER)


def test_a_missing_recording_is_named_before_any_work(converter: Any) -> None:
    with tc.compile_model(converter, EAGER) as fast, pytest.raises(tc.InputError, match=r"nothing\.wav does not exist"):
        fast.generate("nothing.wav")


def test_validated_with_a_recording(converter: Any, recording: Path) -> None:
    voice = converter.ref_dict
    config = tc.CompileConfig.off().replace(
        vocoder=tc.ComponentPolicy(execution="eager"), watermark=tc.ComponentPolicy()
    )
    report = tc.validate(
        converter, config, recording=recording, transcribe=lambda *_: pytest.fail("nobody knows the words")
    )
    assert report.passed, str(report)
    assert set(report.components) == {"vocoder", "watermark"}
    (wave,) = report.waves
    assert wave.words is None
    assert wave.speaker_similarity is None
    assert converter.ref_dict is voice
    with pytest.raises(tc.InputError, match="does not exist"):
        tc.validate(converter, config, recording="nowhere.wav")
