"""Attributes and mappings that are changed inside a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")
_MISSING = object()


@contextmanager
def patched(owner: Any, name: str, value: object) -> Iterator[None]:
    """Sets an attribute of a module, a class or an object inside the block."""
    before = vars(owner).get(name, _MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextmanager
def patched_items(mapping: MutableMapping[K, V], changes: Mapping[K, V]) -> Iterator[None]:
    """Sets items inside the block; any other change to the mapping in the block is undone too."""
    before = dict(mapping)
    mapping.update(changes)
    try:
        yield
    finally:
        mapping.clear()
        mapping.update(before)
