"""Compares every attribute of two models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


def everything(value: Any, name: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, Any]]:
    """Yields every tensor, number and text that a model holds, with its path of attributes."""
    seen = set() if seen is None else seen
    if isinstance(value, (torch.Tensor, str, int, float, bool, torch.dtype, torch.device, type(None))):
        yield name, value
        return
    if id(value) in seen:
        yield name, "seen before"
        return
    seen.add(id(value))
    yield name, type(value).__qualname__
    if isinstance(value, dict):
        parts = {key if isinstance(key, str) else str(i): item for i, (key, item) in enumerate(value.items())}
    elif isinstance(value, (list, tuple)):
        parts = {str(key): item for key, item in enumerate(value)}
    else:
        parts = dict(getattr(value, "__dict__", {}))
    for key, item in parts.items():
        yield from everything(item, f"{name}.{key}", seen)


def same(ours: Any, stock: Any, least: int = 500) -> None:
    mine, theirs = dict(everything(ours)), dict(everything(stock))
    assert mine.keys() == theirs.keys()
    tensors = 0
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            tensors += 1
            given = mine[name]
            assert type(given) is type(value), name
            assert (given.dtype, given.device, given.requires_grad) == (value.dtype, value.device, value.requires_grad)
            assert given.is_inference() == value.is_inference(), name
            assert torch.equal(given, value), name
        else:
            assert mine[name] == value, name
    assert tensors >= least
