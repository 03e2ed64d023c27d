"""A proxy that forwards attributes to one wrapped object."""

from __future__ import annotations

from typing import Any

from ..errors import ModelStateError


class Proxy:
    """A proxy whose other attributes are those of the wrapped object; it can be neither copied nor pickled.

    Names that the proxy has itself can be neither written nor deleted; its own code sets them in ``vars(self)``.

    Attributes:
        wrapped: the wrapped object.
    """

    wrapped: Any

    def __getattr__(self, name: str) -> Any:
        if "wrapped" not in vars(self):  # while being copied or unpickled
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse_own(name)
        setattr(self.wrapped, name, value)

    def __delattr__(self, name: str) -> None:
        self._refuse_own(name)
        delattr(self.wrapped, name)

    def _refuse_own(self, name: str) -> None:
        if name in vars(self) or hasattr(type(self), name):
            raise AttributeError(
                f"{name!r} belongs to the handle and cannot be changed: for other settings, call restore() and "
                f"compile_model() again; the model's own attribute of this name is handle.wrapped.{name}"
            )

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.wrapped)})

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Returns None for the copy of a model, which is stock and has no handle.

        Raises:
            ModelStateError: when the proxy itself is copied.
        """
        if id(self.wrapped) not in memo:
            self.__copy__()

    def __copy__(self) -> None:
        """Refuses to copy a handle.

        Raises:
            ModelStateError: always.
        """
        raise ModelStateError("a handle cannot be copied: copy the model, and compile the copy")

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuses to pickle a handle; its ``config`` can be pickled.

        Raises:
            ModelStateError: always.
        """
        raise ModelStateError(
            "a handle cannot be pickled: pickle its config, load the model where it is needed, and compile it there"
        )
