"""A proxy that forwards attributes to one wrapped object."""

from __future__ import annotations

from typing import Any

from ..errors import ModelStateError


class Proxy:
    """A proxy that forwards attributes which it does not have itself to one wrapped object; it cannot be copied.

    A subclass keeps its own attributes in ``vars(self)``: an assignment would set them on the wrapped object.

    Attributes:
        wrapped: the wrapped object.
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
        """Lets a copy of the wrapped object, which is stock, be made without the proxy.

        Raises:
            ModelStateError: when the proxy itself is copied.
        """
        if id(self.wrapped) not in memo:
            raise ModelStateError("a handle cannot be copied: copy the model, and compile the copy")

    def __copy__(self) -> None:
        """Refuses the copy: a proxy belongs to one object.

        Raises:
            ModelStateError: always.
        """
        raise ModelStateError("a handle cannot be copied: copy the model, and compile the copy")

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuses to be pickled: a proxy belongs to one object in one process.

        Raises:
            ModelStateError: always.
        """
        raise ModelStateError(
            "a handle cannot be pickled: pickle its config, load the model where it is needed, and compile it there"
        )
