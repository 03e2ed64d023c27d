"""How far one wave is from another."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def signal_to_error_db(reference: Tensor, other: Tensor) -> float | None:
    """Power of ``reference`` over that of the difference, in dB; None where the lengths differ.

    >>> round(signal_to_error_db(torch.ones(1, 4), torch.full((1, 4), 0.9)), 3)
    20.0
    """
    if reference.shape != other.shape:
        return None
    error = (reference.double() - other.double()).square().sum()
    signal = reference.double().square().sum()
    if error == 0:
        return math.inf
    return float(10 * torch.log10(signal / error))


def lowest_db(pairs: Iterable[tuple[Tensor, Tensor]]) -> float | None:
    """The lowest :func:`signal_to_error_db` of at least one pair; None where lengths differ."""
    found = [signal_to_error_db(*pair) for pair in pairs]
    ratios = [ratio for ratio in found if ratio is not None]
    return min(ratios) if len(ratios) == len(found) else None
