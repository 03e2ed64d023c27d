"""Calling the sides of a comparison in turn, the only way in which any bench does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ..bench.models import timed_call

T = TypeVar("T")


class Steps(Protocol):
    """Whatever shows how far a measurement has come."""

    def step(self, name: str) -> AbstractContextManager[Any]:
        """Show ``name`` while the block runs."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """What one call gave.

    Attributes:
        seconds: that it took, the device's queue emptied before and after.
        states: of the global random generators after it, the CPU's first.
    """

    result: T
    seconds: float
    states: list[Tensor]


def call(function: Callable[[], T], device: str = "cpu", seed: int | None = None) -> Call[T]:
    """Call once; from the generator state of ``seed`` where one is given."""
    if seed is not None:
        torch.manual_seed(seed)
    result, seconds = timed_call(device, function)
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ())]
    return Call(result, seconds, states)


def alternate(
    sides: Mapping[str, Callable[[], T]],
    repeats: int,
    progress: Steps,
    *,
    device: str = "cpu",
    seed: int | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> dict[str, list[Call[T]]]:
    """Every side in turn, ``repeats`` times; each other time in reversed order, so that none always goes first.

    What drifts while this runs (a processor's clock, a neighbour's load) meets all sides alike, and what one leaves
    behind in caches is found by each of its neighbours.

    Args:
        sides: what to call, by the name that the progress shows; a step of it for every call.
        repeats: calls of each.
        progress: of the bench.
        device: whose queue is emptied around every call.
        seed: of every call.
        enough: asked before every repeat; True ends it there.
    """
    calls: dict[str, list[Call[T]]] = {name: [] for name in sides}
    for repeat in range(repeats):
        if enough():
            break
        for name in list(sides) if repeat % 2 == 0 else reversed(list(sides)):
            with progress.step(f"repeat {repeat + 1} of {repeats}: {name}"):
                calls[name].append(call(sides[name], device, seed))
    return calls


def seconds(calls: list[Call[T]]) -> list[float]:
    """Of each."""
    return [done.seconds for done in calls]


def same_states(first: list[Call[T]], second: list[Call[T]]) -> bool:
    """Whether the random generators stood alike after the calls of each pair."""
    return all(
        len(a.states) == len(b.states) and all(map(torch.equal, a.states, b.states)) for a, b in zip(first, second)
    )
