"""Checks of arguments and settings; their errors name the argument and its value."""

from __future__ import annotations

import difflib
import math
import numbers
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..errors import ConfigError, InputError


def is_int(value: Any) -> bool:
    """Returns whether ``value`` is an int and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def mistaken_choice(name: str, value: Any, choices: tuple[str, ...]) -> list[str]:
    """Returns one mistake, with the nearest choice, where ``value`` is none of ``choices``; otherwise an empty list."""
    if value in choices:
        return []
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return [f"{name} must be one of {', '.join(choices)}, got {value!r}{hint}"]


def unknown_key(key: Any, known: list[str]) -> str:
    """Returns the message for a key that is not in ``known``, with the nearest one that is."""
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
    return f"unknown key {key!r}, nearest known: {near[0]!r}"


def raise_all(mistakes: list[str]) -> None:
    """Raises ConfigError with all ``mistakes`` where there are any."""
    if mistakes:
        raise ConfigError(*mistakes)


def whole_number(name: str, value: Any, least: int) -> int:
    """Returns ``value`` as an int; numpy's whole numbers are accepted.

    Raises:
        InputError: for anything but a whole number from ``least``.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be a whole number from {least}, got {value!r}")
    return int(value)


def as_list(name: str, value: Any) -> list[Any]:
    """Returns the items of ``value`` as a list.

    Raises:
        InputError: for a string, bytes, a mapping or anything that cannot be iterated.
    """
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InputError(f"{name} must be a list, got {type(value).__name__}")
    return list(value)


def finite_number(name: str, value: object) -> float:
    """Returns ``value`` as a float; any real number is accepted, numpy's too.

    Raises:
        InputError: for anything else, for nan or infinity, and for a whole number beyond int64.
    """
    if not isinstance(value, numbers.Real):
        raise InputError(f"{name} must be a number, got {value!r}")
    if isinstance(value, numbers.Integral) and not -(2**63) <= int(value) < 2**63:
        raise InputError(f"{name} must fit into 64 bits")  # or torch cannot compare it with a tensor
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{name} must be finite, got {number}")
    return number


def checked_seeds(seeds: Iterable[int] | None, count: int) -> list[int]:
    """Returns a seed for each of ``count`` texts; None draws them from torch's global generator.

    Raises:
        InputError: for another number of seeds, or a seed that ``torch.manual_seed`` does not accept.
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
