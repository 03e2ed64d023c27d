"""Reading, resampling, trimming and analysing audio give librosa's results bit for bit."""

from __future__ import annotations

import io
import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tts_compile as tc
from tts_compile.audio.reading import Recording, digest, resample
from tts_compile.components.voice.encoder import mel_spectrogram, plain, trim

librosa = pytest.importorskip("librosa")
soundfile = pytest.importorskip("soundfile")

RATES = (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
within_the_test = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # the folder may be shared


def noise(seed: int, *shape: int) -> Any:
    """Returns float32 noise whose level varies, so that trimming removes a part of it."""
    generator = np.random.default_rng(seed)
    level = 10.0 ** generator.uniform(-4, -0.5, size=shape[-1] // 700 + 1).repeat(700)[: shape[-1]]
    return (generator.uniform(-1, 1, size=shape) * level).astype(np.float32)


def identical(one: Any, other: Any) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@within_the_test
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 30_000),
    channels=st.integers(1, 3),
    native=st.sampled_from(RATES),
    rate=st.sampled_from((16_000, 24_000)),
    kind=st.sampled_from(
        [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "DOUBLE"), ("FLAC", "PCM_16")]
    ),
)
def test_reading(
    tmp_path: Path, seed: int, length: int, channels: int, native: int, rate: int, kind: tuple[str, str]
) -> None:
    path = tmp_path / f"sound.{kind[0].lower()}"
    soundfile.write(path, noise(seed, length, channels), native, subtype=kind[1])
    expected, _ = librosa.load(path, sr=rate)
    assert identical(Recording(path).samples(rate), expected)
    with path.open("rb") as file:
        assert identical(Recording(file).samples(rate), expected)


@within_the_test
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 50_000),
    st.sampled_from(RATES),
    st.sampled_from(RATES),
    st.sampled_from([np.float32, np.float64]),
)
def test_resampling(seed: int, length: int, rate: int, target: int, dtype: Any) -> None:
    wave = noise(seed, length).astype(dtype)
    assert identical(resample(wave, rate, target), librosa.resample(wave, orig_sr=rate, target_sr=target))


@within_the_test
@given(st.integers(0, 2**32 - 1), st.integers(1, 60_000), st.floats(1, 80))
def test_trimming(seed: int, length: int, top_db: float) -> None:
    wave = noise(seed, length)
    assert identical(trim(wave, top_db), librosa.effects.trim(wave, top_db=top_db)[0])


@pytest.mark.parametrize("level", [0.0, 1e-30, 1e-7, 1e-5, 1.0])
def test_trimming_of_an_even_level(level: float) -> None:
    wave = np.full(5000, level, dtype=np.float32)
    assert identical(trim(wave, 20), librosa.effects.trim(wave, top_db=20)[0])


@within_the_test
@given(st.integers(0, 2**32 - 1), st.integers(2, 60_000))
def test_mel_spectrogram(seed: int, length: int) -> None:
    from chatterbox.models.voice_encoder.config import VoiceEncConfig
    from chatterbox.models.voice_encoder.melspec import melspectrogram

    wave, hp = noise(seed, length), VoiceEncConfig()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # librosa's, for a wave shorter than its window
        expected = melspectrogram(wave, hp)
    found = mel_spectrogram(wave, hp)
    assert identical(found, expected)
    assert found.strides == expected.strides


@pytest.mark.parametrize("change", [{"preemphasis": 0.97}, {"mel_type": "db"}, {"normalized_mels": True}])
def test_other_settings_of_the_voice_encoder_are_told_apart(change: dict[str, Any]) -> None:
    from chatterbox.models.voice_encoder.config import VoiceEncConfig

    hp = VoiceEncConfig()
    assert plain(hp)
    vars(hp).update(change)
    assert not plain(hp)


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    return tc.testing.make_reference_wav(tmp_path / "voice.wav", seconds=0.5)


@pytest.mark.parametrize("source", ["str", "path", "bytes", "file", "memory", "soundfile", "descriptor"])
def test_every_source_that_librosa_takes(wav: Path, source: str) -> None:
    expected, _ = librosa.load(wav, sr=24_000)
    with wav.open("rb") as file:
        given: Any = {
            "str": str(wav),
            "path": wav,
            "bytes": str(wav).encode(),
            "file": file,
            "memory": io.BytesIO(wav.read_bytes()),
            "soundfile": soundfile.SoundFile(wav),
            "descriptor": os.dup(file.fileno()),  # soundfile closes it
        }[source]
        assert identical(Recording(given).samples(24_000), expected)


def test_what_soundfile_cannot_read_is_left_to_librosa(wav: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audioread = pytest.importorskip("audioread.rawread")
    reader = audioread.RawAudioFile(str(wav))
    expected, _ = librosa.load(wav, sr=24_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # librosa announces the end of this way of reading
        assert identical(Recording(reader).samples(24_000), expected)


def test_the_digest_is_of_the_content(wav: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.wav"
    copy.write_bytes(wav.read_bytes())
    first = Recording(wav)
    assert Recording(copy).digest == first.digest
    copy.write_bytes(wav.read_bytes() + b"\0")
    assert Recording(copy).digest != first.digest
    assert Recording(io.BytesIO(wav.read_bytes())).digest == Recording(io.BytesIO(wav.read_bytes())).digest


def test_the_digest_of_an_array_tells_dtype_and_shape_apart() -> None:
    wave = np.zeros((2, 4), dtype=np.float32)
    others = [wave.astype(np.float64), wave.T, wave.reshape(-1), wave.astype(np.int32), wave + 1, wave[:0]]
    assert len({digest(array) for array in (wave, *others)}) == 7
    assert digest(np.asfortranarray(wave)) == digest(wave)


def _missing(folder: Path) -> Path:
    return folder / "missing.wav"


def _empty(folder: Path) -> Path:
    (folder / "empty.wav").touch()
    return folder / "empty.wav"


def _text(folder: Path) -> Path:
    (folder / "text.wav").write_text("no sound at all\n" * 100)
    return folder / "text.wav"


def _cut(folder: Path) -> Path:
    whole = tc.testing.make_reference_wav(folder / "whole.wav", seconds=0.2)
    (folder / "cut.wav").write_bytes(whole.read_bytes()[:20])
    return folder / "cut.wav"


def _not_finite(folder: Path) -> Path:
    wave = noise(0, 24_000)
    wave[777] = math.nan
    soundfile.write(folder / "nan.wav", wave, 24_000, subtype="FLOAT")
    return folder / "nan.wav"


BAD_FILES = {
    "missing": (_missing, "does not exist"),
    "folder": (lambda folder: folder, "folder"),
    "empty": (_empty, "empty"),
    "text": (_text, "not an audio file"),
    "cut off in its header": (_cut, "not an audio file"),
    "not finite": (_not_finite, "not finite"),
}


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_read(tmp_path: Path, case: str) -> None:
    make, reason = BAD_FILES[case]
    path = make(tmp_path)
    for source in (path, str(path)):
        with pytest.raises(tc.InputError, match=reason) as caught:
            Recording(source).samples(24_000)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("source", [None, 3.5, "a\0b.wav", io.BytesIO(b""), io.BytesIO(b"text"), ["a.wav"]])
def test_what_is_no_source(source: Any) -> None:
    with pytest.raises(tc.InputError):
        Recording(source).samples(24_000)
