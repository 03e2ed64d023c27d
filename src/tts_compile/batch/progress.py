"""The progress of a batch, for people and programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tqdm import tqdm
from typing_extensions import Self

from ..timing.blocks import Stopwatch
from .chunk import Chunk


@dataclass(frozen=True)
class BatchProgress:
    """The progress of a batch at one moment.

    Attributes:
        done: chunks that are complete or have failed.
        total: all chunks.
        audio_seconds: length of the complete waves together.
        seconds: time since the batch began.
    """

    done: int
    total: int
    audio_seconds: float
    seconds: float

    @property
    def audio_per_second(self) -> float:
        """Returns the seconds of audio that are generated in a second."""
        return self.audio_seconds / self.seconds if self.seconds else 0.0


class ProgressDisplay:
    """Reports the progress of a batch when called: on a bar, to a function, or not at all."""

    def __init__(
        self,
        progress: bool | Callable[[BatchProgress], object],
        chunks: Sequence[Chunk],
        watch: Stopwatch,
        sample_rate: int,
    ) -> None:
        self._callback = progress if callable(progress) else None
        self._bar = tqdm(total=len(chunks), unit="chunk", dynamic_ncols=True) if progress is True else None
        self._chunks = chunks
        self._watch = watch
        self._sample_rate = sample_rate

    def __call__(self) -> None:
        waves = [chunk.wave for chunk in self._chunks if chunk.wave is not None]
        failed = sum(chunk.error is not None for chunk in self._chunks)
        audio = sum(wave.shape[-1] for wave in waves) / self._sample_rate
        now = BatchProgress(len(waves) + failed, len(self._chunks), audio, self._watch.seconds)
        if self._callback:
            self._callback(now)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{now.audio_per_second:.2f} s of speech a second", refresh=False)
            self._bar.update(now.done - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
