"""One text of a batch, its random numbers, and what has become of it."""

from __future__ import annotations

import contextlib
import logging
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import BatchError, InputError

logger = logging.getLogger(__name__)


class RandomNumbers:
    """What ``torch.manual_seed`` and one utterance make of torch's generators, beside the global ones.

    Args:
        seed: as of ``torch.manual_seed``.
        device: of the model.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.Generator().manual_seed(seed)
        self.generator = torch.Generator(device).manual_seed(seed) if device.type == "cuda" else self._cpu

    def state(self) -> list[Tensor]:
        """Where they stand; :meth:`rewind` takes it."""
        return [generator.get_state() for generator in (self._cpu, self.generator)]

    def rewind(self, state: list[Tensor]) -> None:
        """Have them stand there again."""
        for generator, before in zip((self._cpu, self.generator), state):
            generator.set_state(before)

    @contextlib.contextmanager
    def as_global(self) -> Iterator[None]:
        """What is drawn from the global generators inside comes from these."""
        on_gpu = self.generator is not self._cpu
        with torch.random.fork_rng(devices=[self._device] if on_gpu else []):
            torch.set_rng_state(self._cpu.get_state())
            if on_gpu:
                torch.cuda.set_rng_state(self.generator.get_state(), self._device)
            try:
                yield
            finally:
                self._cpu.set_state(torch.get_rng_state())
                if on_gpu:
                    self.generator.set_state(torch.cuda.get_rng_state(self._device))


@dataclass(eq=False)
class Chunk:
    """One text of a batch.

    Attributes:
        index: its place among the inputs.
        text: as it was given.
        random: its random numbers.
        wave: float32 (1, samples) on the CPU, once it is complete.
        error: why there is none.
    """

    index: int
    text: Any
    random: RandomNumbers
    wave: Tensor | None = None
    error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Keep the error without its traceback, whose frames hold what the chunk has made: caches, waves."""
        logger.debug("chunk %d failed", self.index, exc_info=error)
        self.error = error
        seen: BaseException | None = error
        while seen is not None:
            seen.__traceback__ = None
            seen = seen.__cause__ or seen.__context__


def checked_texts(texts: Iterable[str]) -> list[Any]:
    """A list of them; each is checked when it is spoken.

    Raises:
        InputError: for a single text, or what is no list.
    """
    if isinstance(texts, (str, bytes)):
        raise InputError("texts must be a list of texts, not a single one")
    if not isinstance(texts, Iterable):
        raise InputError(f"texts must be a list of texts, got {type(texts).__name__}")
    return list(texts)


def checked_seeds(seeds: Iterable[int] | None, count: int) -> list[int]:
    """One for each of ``count`` texts; None draws them from torch's global generator.

    Raises:
        InputError: for another number of them, or what ``torch.manual_seed`` does not take.
    """
    if seeds is None:
        return torch.randint(2**63 - 1, (count,)).tolist()
    try:
        found = [operator.index(seed) for seed in seeds]
    except TypeError:
        raise InputError(f"seeds must be whole numbers, one for each text, got {seeds!r}") from None
    if len(found) != count:
        raise InputError(f"there are {len(found)} seeds for {count} texts")
    if wrong := [seed for seed in found if not -(2**63) <= seed < 2**64]:
        raise InputError(f"torch takes seeds from -2**63 to 2**64 - 1, got {wrong[0]}")
    return found


def delivered(chunks: Sequence[Chunk], on_error: str) -> list[Tensor | None]:
    """The waves, in input order; None for those that failed.

    Raises:
        BatchError: where some failed, unless ``on_error`` is ``"skip"``.
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
