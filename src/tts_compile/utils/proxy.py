"""An object that stands in front of another, and belongs to it alone."""

from __future__ import annotations

from typing import Any

from ..errors import ModelStateError


class Delegate:
    """Reads and writes of attributes that it does not have itself are the wrapped object's; it cannot be copied.

    Its own attributes go into ``vars(self)``: plain assignment would reach the wrapped object.

    Attributes:
        wrapped: the object.
    """

    wrapped: Any

    def __getattr__(self, name: str) -> Any:
        if "wrapped" not in vars(self):  # while being copied or unpickled
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.wrapped, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.wrapped, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.wrapped)})

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of the model is stock and has no handle.

        Raises:
            ModelStateError: when the handle itself is to be copied.
        """
        if id(self.wrapped) not in memo:
            raise ModelStateError("a handle cannot be copied: copy the model, and compile the copy")

    def __copy__(self) -> None:
        """A handle belongs to one model.

        Raises:
            ModelStateError: always.
        """
        raise ModelStateError("a handle cannot be copied: copy the model, and compile the copy")

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A handle belongs to one model in one process; ``config`` can be pickled and makes another one.

        Raises:
            ModelStateError: always.
        """
        raise ModelStateError(
            "a handle cannot be pickled: pickle its config, load the model where it is needed, and compile it there"
        )
