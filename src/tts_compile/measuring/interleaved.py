"""Calls of two or more sides, interleaved so that all meet the same conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ..timing.blocks import Stopwatch
from .progress import Step

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One call that was measured.

    Attributes:
        result: what the function returned.
        seconds: of the call, with the device's queue empty before and after.
        states: of the global random generators after it, the CPU's first.
    """

    result: T
    seconds: float
    states: list[Tensor]


def timed_call(device: str, function: Callable[[], T]) -> tuple[T, float]:
    """Returns the function's result and its seconds, with the device's queue empty before and after."""
    _synchronise(device)
    with Stopwatch() as watch:
        result = function()
        _synchronise(device)
    return result, watch.seconds


def _synchronise(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def call(function: Callable[[], T], device: str = "cpu", seed: int | None = None) -> Call[T]:
    """Calls a function once, after seeding the global generators if there is a seed."""
    if seed is not None:
        torch.manual_seed(seed)
    result, seconds = timed_call(device, function)
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ())]
    return Call(result, seconds, states)


def alternate(
    sides: Mapping[str, Callable[[], T]],
    repeats: int,
    step: Step,
    *,
    device: str = "cpu",
    seed: int | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> dict[str, list[Call[T]]]:
    """Calls every side ``repeats`` times; every other time in reversed order, so that none always goes first.

    A drift during the measurement (a processor's clock, load of other programs) meets all sides, and each side finds
    in the caches what any of the others left there.

    Args:
        sides: functions by name.
        repeats: calls of each.
        step: receives a name for each call.
        device: its queue is emptied around every call.
        seed: of every call.
        enough: called before every repeat; True ends the measurement there.
    """
    calls: dict[str, list[Call[T]]] = {name: [] for name in sides}
    for repeat in range(repeats):
        if enough():
            break
        for name in list(sides) if repeat % 2 == 0 else reversed(list(sides)):
            step(f"repeat {repeat + 1} of {repeats}: {name}")
            calls[name].append(call(sides[name], device, seed))
    return calls


def seconds(calls: list[Call[T]]) -> list[float]:
    """Returns the seconds of each call."""
    return [done.seconds for done in calls]


def same_states(first: list[Call[T]], second: list[Call[T]]) -> bool:
    """Returns whether both calls of each pair left the random generators in equal states."""
    return all(
        len(a.states) == len(b.states) and all(map(torch.equal, a.states, b.states)) for a, b in zip(first, second)
    )
