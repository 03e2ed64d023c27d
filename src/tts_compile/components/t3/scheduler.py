"""Many texts on their way to speech tokens, as many at a time as there is room for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from ...fallback import FallbackManager, reason
from ...utils.device import is_out_of_memory, release_memory
from .decode_loop import Decoding, Utterance


@dataclass(frozen=True, eq=False)
class Request:
    """One text to be spoken.

    Attributes:
        index: what the caller knows it by.
        text_tokens: int64 (rows, n), as ``T3.inference`` takes them.
        generator: for its random numbers, on the model's device; afterwards it is as stock would have left it.
    """

    index: int
    text_tokens: Tensor
    generator: torch.Generator


class Batch:
    """Speaks requests, the longest texts first, so that no long one is left alone at the end.

    Args:
        requests: in any order.
        slots: how many are spoken at a time.
        make_utterance: of a request.
        make_decoding: with room for a number of utterances.
        at_work: entered for every step.
        fallback: is told when memory has run out.
    """

    def __init__(
        self,
        requests: Iterable[Request],
        slots: int,
        make_utterance: Callable[[Request], Utterance],
        make_decoding: Callable[[int], Decoding],
        at_work: Callable[[], AbstractContextManager[None]],
        fallback: FallbackManager,
    ) -> None:
        self.slots = slots
        self._waiting = deque(sorted(requests, key=_longest_first))
        self._speaking: list[tuple[Request, Utterance]] = []
        self._decoding: Decoding | None = None
        self._make_utterance = make_utterance
        self._make_decoding = make_decoding
        self._at_work = at_work
        self._fallback = fallback

    @property
    def left(self) -> int:
        """Requests that have not been returned."""
        return len(self.unfinished())

    def unfinished(self) -> list[Request]:
        """Those requests."""
        return [*self._waiting, *(request for request, _ in self._speaking)]

    def advance(self) -> list[tuple[Request, Utterance]]:
        """One pass over the model for all that are being spoken; those that have ended, in any order.

        Running out of memory halves the number of slots; what was being spoken begins anew.
        """
        with self._at_work():
            try:
                return self._step()
            except Exception as error:
                if self.slots == 1 or not is_out_of_memory(error):
                    raise
                self._halve(error)
        release_memory()  # outside the handler: the error holds what the failed pass had made
        return []

    def abandon(self) -> list[Request]:
        """Give up; the requests that have not been returned, with their random numbers as at first."""
        for _, utterance in self._speaking:
            utterance.noise.rewind()
        left = self.unfinished()
        self._waiting.clear()
        self._speaking, self._decoding = [], None
        return left

    def _step(self) -> list[tuple[Request, Utterance]]:
        if self._decoding is None:
            self._decoding = self._make_decoding(self.slots)
        decoding = self._decoding
        while self._waiting and len(decoding.active) < self.slots:
            utterance = self._make_utterance(self._waiting[0])  # may fail: the request waits until it has not
            self._speaking.append((self._waiting.popleft(), utterance))
            decoding.begin(utterance)
        if not any(utterance.ended for _, utterance in self._speaking):
            decoding.advance(alone=self.slots == 1 or not self._waiting)
        decoding.leave()
        ended = [pair for pair in self._speaking if pair[1].ended]
        self._speaking = [pair for pair in self._speaking if not pair[1].ended]
        return ended

    def _halve(self, error: Exception) -> None:
        before, self.slots = self.slots, self.slots // 2
        self._fallback.record("memory", reason(error), f"{self.slots} at a time instead of {before}")
        self._waiting = deque(sorted(self.abandon(), key=_longest_first))


def _longest_first(request: Request) -> int:
    return -request.text_tokens.shape[1]
