"""A cache of the last results."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from torch import Tensor


class LRUCache:
    """A cache of the most recently used results: dicts and tuples of tensors and plain values.

    Results are copied on the way in and on the way out, so that a caller's writes do not reach the cache.

    >>> cache = LRUCache(size=1)
    >>> cache.put("a", (1, 2))
    >>> cache.get("a"), cache.get("b")
    ((1, 2), None)
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._results: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable) -> Any:
        """Returns a copy of the result, or None."""
        if key not in self._results:
            return None
        self._results.move_to_end(key)
        return copied(self._results[key])

    def put(self, key: Hashable, result: Any) -> None:
        """Keeps a copy; drops the least recently used result where there are too many."""
        self._results[key] = copied(result)
        self._results.move_to_end(key)
        while len(self._results) > self._size:
            self._results.popitem(last=False)

    def clear(self) -> None:
        """Drops every result."""
        self._results.clear()


def copied(result: Any) -> Any:
    """Returns the same structure with copied tensors."""
    if isinstance(result, Tensor):
        return result.clone()
    if isinstance(result, tuple):
        return tuple(copied(part) for part in result)
    if isinstance(result, dict):
        return {key: copied(part) for key, part in result.items()}
    return result
