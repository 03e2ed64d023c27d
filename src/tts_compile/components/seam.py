"""Replacement of one method on one instance."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from ..errors import ModelStateError

_ABSENT = object()


def not_its_own(owner: object, name: str, package: str) -> str | None:
    """Returns that a method was replaced or overridden by a subclass, or None."""
    if not is_its_classes(owner, name) or getattr(type(owner), name).__module__.partition(".")[0] != package:
        return f"{type(owner).__name__}.{name} is not {package}'s own"
    return None


def is_its_classes(owner: object, name: str) -> bool:
    """Returns whether an object's method is its class's; a copy of a compiled model holds such methods itself."""
    method = vars(owner).get(name)
    own = method is not None and getattr(method, "__self__", None) is owner
    return method is None or (own and getattr(method, "__func__", None) is getattr(type(owner), name))


class Detachable(Protocol):
    """A seam, or an object with seams."""

    def attach(self) -> None:
        """Replaces the methods."""

    def detach(self) -> None:
        """Puts the methods back, or raises and changes nothing."""


def attach_all(parts: Iterable[Detachable]) -> None:
    """Attaches all parts, or none where one fails."""
    _all_or_none(parts, operator.methodcaller("attach"), operator.methodcaller("detach"))


def detach_all(parts: Iterable[Detachable]) -> None:
    """Detaches all parts, or none where one fails."""
    _all_or_none(parts, operator.methodcaller("detach"), operator.methodcaller("attach"))


def _all_or_none(
    parts: Iterable[Detachable], change: Callable[[Detachable], None], undo: Callable[[Detachable], None]
) -> None:
    done: list[Detachable] = []
    try:
        for part in parts:
            done.append(part)  # before: an interrupt may come right after it is changed
            change(part)
    except BaseException:
        for part in reversed(done):
            undo(part)
        raise


class Seam:
    """A replaced method of one object; class and module stay as they are.

    The replacement is an instance attribute and keeps the stock signature. :meth:`detach` puts back what the instance
    held before: nothing, or another program's patch.

    Attributes:
        owner, name: of the method.
    """

    def __init__(self, owner: object, name: str, replacement: Callable[..., Any]) -> None:
        self.owner = owner
        self.name = name
        self._before: Any = _ABSENT
        self._attached = False
        self._replacement = Replacement(owner, name, replacement)

    def attach(self) -> None:
        """Sets the replacement; a second call does nothing."""
        if self.attached:
            return
        self._before = vars(self.owner).get(self.name, _ABSENT)
        self._attached = True
        setattr(self.owner, self.name, self._replacement)

    @property
    def attached(self) -> bool:
        """Returns whether the replacement is set, be it behind another program's patch."""
        # An interrupt may have come before what was marked as attached was put in place.
        return self._attached and vars(self.owner).get(self.name, _ABSENT) is not self._before

    @property
    def stands(self) -> bool:
        """Returns whether callers reach the replacement."""
        return vars(self.owner).get(self.name) is self._replacement

    def detach(self) -> None:
        """Puts back what the instance held before; a second call does nothing.

        Raises:
            ModelStateError: when somebody else has replaced the method since; nothing is changed then.
        """
        if not self.attached:
            self._attached = False
            return
        if not self.stands:
            raise ModelStateError(
                f"{type(self.owner).__name__}.{self.name} was replaced after compile_model; undo that first"
            )
        if self._before is _ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self._before)
        self._attached = False


class Replacement:
    """A callable with the method's signature and description.

    Attributes:
        function: what a call runs.
    """

    def __init__(self, owner: object, name: str, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, getattr(owner, name))
        self._owner = owner
        self._name = name
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __reduce__(self) -> Any:
        """Copies and pickle as the owner's own method: a copy of a compiled model is stock."""
        return own_method, (self._owner, self._name)


def own_method(owner: object, name: str) -> Any:
    """Returns an object's method as its class defines it."""
    return getattr(type(owner), name).__get__(owner)
