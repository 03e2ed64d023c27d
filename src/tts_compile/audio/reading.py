"""Reading and resampling sound exactly as librosa does, without what librosa imports on first use.

``librosa.load`` and ``librosa.resample`` check their argument in a module whose import has numba compile some twenty
functions: more than ten seconds in a fresh installation, two thirds of a second when numba finds them on disk. The
sound itself comes from soundfile and soxr, which are called here the same way.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Samples = npt.NDArray[np.floating[Any]]


class Recording:
    """A source of sound as stock takes it: a path, an open file, a ``soundfile.SoundFile``, an audioread object.

    Attributes:
        name: for messages.
        digest: of the file's bytes, or of the decoded samples where there is no file of its own; equal sounds that
            were packed differently have different ones.

    Raises:
        InputError: naming the source, when it cannot be read, is a folder, is empty or holds no sound.
    """

    def __init__(self, source: Any) -> None:
        self.name = _name(source)
        self._source = source
        self._data: bytes | None = None
        self._decoded: tuple[Samples, float] | None = None
        if isinstance(source, (str, bytes, os.PathLike)):
            self._data = self._read(source)
            self.digest = hashlib.blake2b(self._data).hexdigest()
        else:
            samples, rate = self._decoded = self._decode()
            self.digest = f"{digest(samples)} {rate}"

    def samples(self, rate: int) -> Samples:
        """What ``librosa.load(source, sr=rate)`` gives: float32 (samples,), channels averaged.

        Raises:
            InputError: when the file is no audio file or a sample is not finite.
        """
        if self._decoded is None:
            self._decoded = self._decode()
        samples, native = self._decoded
        if not np.isfinite(samples).all():
            raise InputError(f"{self.name} holds samples that are not finite")
        if samples.ndim > 1:
            samples = np.mean(samples, axis=tuple(range(samples.ndim - 1)))
        return resample(samples, native, rate)

    def _read(self, path: str | bytes | os.PathLike[Any]) -> bytes:
        try:
            data = Path(os.fsdecode(path)).read_bytes()
        except FileNotFoundError:
            raise InputError(f"{self.name} does not exist") from None
        except IsADirectoryError:
            raise InputError(f"{self.name} is a folder, not an audio file") from None
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            raise InputError(f"{self.name} cannot be read: {error}") from error
        if not data:
            raise InputError(f"{self.name} is empty")
        return data

    def _decode(self) -> tuple[Samples, float]:
        """Samples (channels, n) or (n,), and their rate in Hz."""
        import soundfile

        try:
            # From the bytes that were hashed: the file may change in between.
            with _opened(self._source if self._data is None else io.BytesIO(self._data)) as file:
                return file.read(dtype="float32", always_2d=False).T, file.samplerate
        except (soundfile.SoundFileError, TypeError):
            return self._decode_with_librosa()

    def _decode_with_librosa(self) -> tuple[Samples, float]:
        """For what soundfile does not know: librosa has other readers."""
        import librosa

        try:
            samples, rate = librosa.load(self._source, sr=None, mono=False)
        except Exception as error:  # the readers' errors share no base
            raise InputError(f"{self.name} is no audio file that can be read: {_reason(error)}") from error
        return samples, rate


def resample(samples: Samples, rate: float, target: float) -> Samples:
    """What ``librosa.resample(samples, orig_sr=rate, target_sr=target)`` gives for finite samples (n,)."""
    if rate == target:
        return samples
    import soxr

    ratio = float(target) / rate
    length = math.ceil(samples.shape[-1] * ratio)
    # An empty sound is nothing that soxr takes.
    resampled = soxr.resample(samples, rate, target, quality="soxr_hq") if samples.size else samples
    resampled = np.pad(resampled[:length], (0, max(0, length - len(resampled))))
    return np.asarray(resampled, dtype=samples.dtype)


def digest(array: npt.NDArray[Any]) -> str:
    """A hash of an array's values, dtype and shape."""
    values = np.ascontiguousarray(array)
    found = hashlib.blake2b(values.view(np.uint8).data if values.size else b"")
    found.update(f"{values.dtype} {array.shape}".encode())
    return found.hexdigest()


def _opened(source: Any) -> Any:
    import soundfile

    return source if isinstance(source, soundfile.SoundFile) else soundfile.SoundFile(source)


def _name(source: Any) -> str:
    if isinstance(source, (str, bytes, os.PathLike)):
        return os.fsdecode(source) or "an empty path"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else f"the {type(source).__name__}"


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
