"""Model classes: one declaration each, found by the class of a model."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError, UnsupportedModelError
from .english import ENGLISH
from .family import Family, SpeechCall, SpeechModel, Synthesis, VoiceSlot
from .multilingual import MULTILINGUAL
from .turbo import TURBO
from .voice_conversion import VOICE_CONVERSION

__all__ = [
    "Family",
    "SpeechCall",
    "SpeechModel",
    "Synthesis",
    "VoiceSlot",
    "families",
    "family_named",
    "family_of",
    "family_to_compile",
    "register_family",
]

_registered: dict[str, Family] = {}


def register_family(family: Family) -> None:
    """Makes :func:`tts_compile.compile_model` accept another model class.

    Args:
        family: the declaration; one with the name of a registered family replaces that one.

    Raises:
        ConfigError: for anything but a :class:`Family`, or a class that another family is declared for.
    """
    if not isinstance(family, Family):
        raise ConfigError(f"family must be a Family, got {type(family).__name__}")
    for other in _registered.values():
        if other.stock_class == family.stock_class and other.name != family.name:
            raise ConfigError(f"{family.stock_class} belongs to the family {other.name!r} already")
    _registered[family.name] = family


def families() -> tuple[Family, ...]:
    """Returns every registered family, in the order of registration."""
    return tuple(_registered.values())


def family_of(cls: type, purpose: str = "compile") -> Family:
    """Returns the family of a model class, or of a class derived from one.

    Args:
        cls: the class.
        purpose: what the family is needed for; for the message.

    Raises:
        UnsupportedModelError: for any other class; the message names the known classes.
    """
    for base in getattr(cls, "__mro__", ()):
        for family in _registered.values():
            if family.stock_class == f"{base.__module__}.{base.__qualname__}":
                return family
    loaded = [family for family in families() if family.files.names]
    known = _supported() if purpose == "compile" else ", ".join(sorted(family.stock_class for family in loaded))
    raise UnsupportedModelError(f"cannot {purpose} {_name(cls)}; supported: {known}")


def family_to_compile(cls: type) -> Family:
    """Returns the family of a model class that can be compiled.

    Raises:
        UnsupportedModelError: for a class without a family, or one whose family cannot be compiled yet.
    """
    family = family_of(cls)
    if family.unsupported:
        raise UnsupportedModelError(
            f"cannot compile {family.stock_class}: {family.unsupported}; supported: {_supported()}"
        )
    return family


def _supported() -> str:
    return ", ".join(sorted(family.stock_class for family in families() if not family.unsupported))


def family_named(name: str) -> Family:
    """Returns a family by its name, such as ``"english"``.

    Raises:
        UnsupportedModelError: for an unknown name.
    """
    if name not in _registered:
        raise UnsupportedModelError(f"there is no family {name!r}; registered: {', '.join(_registered)}")
    return _registered[name]


def _name(cls: Any) -> str:
    return f"{cls.__module__}.{cls.__qualname__}" if isinstance(cls, type) else repr(cls)


for _family in (ENGLISH, MULTILINGUAL, TURBO, VOICE_CONVERSION):
    register_family(_family)
