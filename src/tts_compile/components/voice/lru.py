"""The last few answers, by key."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from torch import Tensor


class Memory:
    """Keeps the most recently used answers: dicts and tuples of tensors and plain values.

    Answers are copied on the way in and on the way out, so that nobody's tensors are written to.

    >>> memory = Memory(size=1)
    >>> memory.put("a", (1, 2))
    >>> memory.get("a"), memory.get("b")
    ((1, 2), None)
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._answers: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable) -> Any:
        """A copy of the answer, or None."""
        if key not in self._answers:
            return None
        self._answers.move_to_end(key)
        return copied(self._answers[key])

    def put(self, key: Hashable, answer: Any) -> None:
        """Keep a copy; the answer that was used longest ago goes, where there are too many."""
        self._answers[key] = copied(answer)
        self._answers.move_to_end(key)
        while len(self._answers) > self._size:
            self._answers.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._answers.clear()


def copied(answer: Any) -> Any:
    """The same structure with tensors of its own."""
    if isinstance(answer, Tensor):
        return answer.clone()
    if isinstance(answer, tuple):
        return tuple(copied(part) for part in answer)
    if isinstance(answer, dict):
        return {key: copied(part) for key, part in answer.items()}
    return answer
