"""Reads and resamples audio exactly as librosa does, without librosa's slow imports.

``librosa.load`` and ``librosa.resample`` check their arguments in a module at whose import numba compiles about twenty
functions. This takes more than ten seconds in a fresh installation, and two thirds of a second when numba finds them on
disk. The audio itself comes from soundfile and soxr, which are called here in the same way.
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
from ..fallback import reason

Samples = npt.NDArray[np.floating[Any]]


class Recording:
    """A recording from any source that stock accepts: a path, an open file, a ``SoundFile``, an audioread object.

    Attributes:
        name: name of the source in messages.
        digest: digest of the file's bytes, or of the decoded samples for a source without a path. Equal audio in two
            formats has two digests.

    Raises:
        InputError: when the source cannot be read, is a folder, is empty or holds no audio; the message names it.
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
        """Returns the result of ``librosa.load(source, sr=rate)``: float32 (samples,), averaged over channels.

        Raises:
            InputError: when the file is not an audio file or a sample is not finite.
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
        """Returns the samples, (channels, n) or (n,), and their rate in Hz."""
        import soundfile

        try:
            # Decodes the bytes that the digest was made of: the file may have changed since.
            source = self._source if self._data is None else io.BytesIO(self._data)
            with source if isinstance(source, soundfile.SoundFile) else soundfile.SoundFile(source) as file:
                return file.read(dtype="float32", always_2d=False).T, file.samplerate
        except (soundfile.SoundFileError, TypeError):
            return self._decode_with_librosa()

    def _decode_with_librosa(self) -> tuple[Samples, float]:
        """Decodes a format that soundfile does not know; librosa has other readers."""
        import librosa

        try:
            samples, rate = librosa.load(self._source, sr=None, mono=False)
        except Exception as error:  # the readers raise errors without a common base
            raise InputError(f"{self.name} is not an audio file that can be read: {reason(error)}") from error
        return samples, rate


def resample(samples: Samples, rate: float, target: float) -> Samples:
    """Resamples finite samples (n,); equals ``librosa.resample(samples, orig_sr=rate, target_sr=target)``."""
    if rate == target:
        return samples
    import soxr

    ratio = float(target) / rate
    length = math.ceil(samples.shape[-1] * ratio)
    # soxr refuses empty audio.
    resampled = soxr.resample(samples, rate, target, quality="soxr_hq") if samples.size else samples
    resampled = np.pad(resampled[:length], (0, max(0, length - len(resampled))))
    return np.asarray(resampled, dtype=samples.dtype)


def digest(array: npt.NDArray[Any]) -> str:
    """Returns a digest of an array's values, dtype and shape."""
    values = np.ascontiguousarray(array)
    found = hashlib.blake2b(values.view(np.uint8).data if values.size else b"")
    found.update(f"{values.dtype} {array.shape}".encode())
    return found.hexdigest()


def _name(source: Any) -> str:
    if isinstance(source, (str, bytes, os.PathLike)):
        return os.fsdecode(source) or "an empty path"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else f"the {type(source).__name__}"
