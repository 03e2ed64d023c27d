"""One text of a batch, its random numbers, and its wave or error."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import BatchError
from ..utils.random_state import RandomNumbers

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Chunk:
    """One text of a batch.

    Attributes:
        index: its position among the inputs.
        text: the input, which may be anything but a text.
        random: its random numbers.
        wave: float32 (1, samples) on the CPU, once it is complete.
        error: the reason why there is no wave.
    """

    index: int
    text: Any
    random: RandomNumbers
    wave: Tensor | None = None
    error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Stores the error without its traceback, whose frames hold caches and waves."""
        logger.debug("chunk %d failed", self.index, exc_info=error)
        self.error = error
        seen: BaseException | None = error
        while seen is not None:
            seen.__traceback__ = None
            seen = seen.__cause__ or seen.__context__

    @contextlib.contextmanager
    def own_errors(self) -> Iterator[None]:
        """Stores an error of the ``with`` block as this chunk's own, so that the other chunks go on."""
        try:
            yield
        except Exception as error:
            self.fail(error)


def collect(chunks: Sequence[Chunk], on_error: str) -> list[Tensor | None]:
    """Returns the waves in input order, None for chunks that failed.

    Raises:
        BatchError: if some failed, unless ``on_error`` is ``"skip"``.
    """
    waves = [chunk.wave for chunk in chunks]
    errors = {chunk.index: chunk.error for chunk in chunks if chunk.error is not None}
    named = [f"chunk {i} ({_shortened(chunks[i].text)}): {type(e).__name__}: {e}" for i, e in errors.items()]
    if errors and on_error == "raise":
        message = f"{len(errors)} of {len(chunks)} chunks failed: " + "; ".join(named)
        raise BatchError(message, waves, errors) from next(iter(errors.values()))
    for name in named:
        logger.warning("left out: %s", name)
    return waves


def _shortened(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
