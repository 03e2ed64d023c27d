"""Requests on their way to speech tokens, as many at a time as the memory allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from ...fallback import FallbackManager, reason
from ...families.family import SpeechCall
from ...utils.device import is_out_of_memory, release_memory
from .decode_loop import DecodeLoop, Utterance


@dataclass(frozen=True, eq=False)
class Request:
    """One text to be spoken.

    Attributes:
        index: the caller's number for it.
        call: as the speech model's method takes it.
        generator: for its random numbers, on the model's device; afterwards it is as stock would have left it.
    """

    index: int
    call: SpeechCall
    generator: torch.Generator


class Scheduler:
    """A queue of requests, the longest texts first, so that no long one is left alone at the end.

    Args:
        requests: in any order.
        slots: how many are spoken at a time.
        utterance: makes the utterance of a request.
        decode_loop: makes a loop with a number of slots.
        fallback: records a lack of memory.
    """

    def __init__(
        self,
        requests: Iterable[Request],
        slots: int,
        utterance: Callable[[Request], Utterance],
        decode_loop: Callable[[int], DecodeLoop],
        fallback: FallbackManager,
    ) -> None:
        self.slots = slots
        self._waiting = deque(sorted(requests, key=_longest_first))
        self._speaking: list[tuple[Request, Utterance]] = []
        self._loop: DecodeLoop | None = None
        self._utterance = utterance
        self._decode_loop = decode_loop
        self._fallback = fallback

    @property
    def left(self) -> int:
        """Returns the number of requests that have not been returned."""
        return len(self.unfinished())

    def unfinished(self) -> list[Request]:
        """Returns the requests that have not been returned."""
        return [*self._waiting, *(request for request, _ in self._speaking)]

    def advance(self) -> list[tuple[Request, Utterance]]:
        """Runs one pass for all that are being spoken; returns those that have ended, in any order.

        A lack of memory halves the number of slots; what was being spoken begins anew.
        """
        try:
            return self._step()
        except Exception as error:
            if self.slots == 1 or not is_out_of_memory(error):
                raise
            self._halve(error)
        release_memory()  # outside the handler: the error holds what the failed pass had made
        return []

    def abandon(self) -> list[Request]:
        """Gives up; returns the requests that have not been returned, with their random numbers as at first."""
        for _, utterance in self._speaking:
            utterance.noise.rewind()
        left = self.unfinished()
        self._waiting.clear()
        self._speaking, self._loop = [], None
        return left

    def _step(self) -> list[tuple[Request, Utterance]]:
        if self._loop is None:
            self._loop = self._decode_loop(self.slots)
        loop = self._loop
        while self._waiting and len(loop.active) < self.slots:
            utterance = self._utterance(self._waiting[0])  # may fail: the request waits until it has not
            self._speaking.append((self._waiting.popleft(), utterance))
            loop.begin(utterance)
        if not any(utterance.ended for _, utterance in self._speaking):
            loop.advance(alone=self.slots == 1 or not self._waiting)
        loop.leave()
        ended = [pair for pair in self._speaking if pair[1].ended]
        self._speaking = [pair for pair in self._speaking if not pair[1].ended]
        return ended

    def _halve(self, error: Exception) -> None:
        before, self.slots = self.slots, self.slots // 2
        self._fallback.record("memory", reason(error), f"{self.slots} at a time instead of {before}")
        self._waiting = deque(sorted(self.abandon(), key=_longest_first))


def _longest_first(request: Request) -> int:
    return -request.call.text_tokens.shape[1]
