"""The progress of a batch, for people and programs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

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


@contextlib.contextmanager
def progress_display(
    progress: bool | Callable[[BatchProgress], object], chunks: Sequence[Chunk], watch: Stopwatch, sample_rate: int
) -> Iterator[Callable[[], None]]:
    """Yields a function that reports the progress of a batch: on a bar, to a function, or not at all."""
    with tqdm(total=len(chunks), unit="chunk", dynamic_ncols=True, disable=progress is not True) as bar:

        def report() -> None:
            waves = [chunk.wave for chunk in chunks if chunk.wave is not None]
            failed = sum(chunk.error is not None for chunk in chunks)
            audio = sum(wave.shape[-1] for wave in waves) / sample_rate
            now = BatchProgress(len(waves) + failed, len(chunks), audio, watch.seconds)
            if callable(progress):
                progress(now)
            bar.set_postfix_str(f"{now.audio_per_second:.2f} s of speech a second", refresh=False)
            bar.update(now.done - bar.n)

        yield report
