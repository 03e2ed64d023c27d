"""Command-line options made from the fields of settings classes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any, TypeVar

S = TypeVar("S")


def add(command: argparse.ArgumentParser, settings: type) -> None:
    """Adds an option for each field of a settings class that was made by :func:`tts_compile.bench.result.option`."""
    for field in fields(settings):
        if "about" in field.metadata:
            _add(command, field)


def read(args: argparse.Namespace, settings: type[S]) -> S:
    """Returns the settings that the command line asks for."""
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(args).items()}
    return settings(**{f.name: given[f.name] for f in fields(settings) if f.name in given})  # type: ignore[arg-type]


def _add(command: argparse.ArgumentParser, field: Field[Any]) -> None:
    details, default = field.metadata, field.default
    name, about = field.name.replace("_", "-"), details["about"]
    if isinstance(default, bool):
        action = "store_false" if default else "store_true"
        command.add_argument(f"--{'no-' * default}{name}", dest=field.name, action=action, help=about)
        return
    values = default if isinstance(default, tuple) else (default,)
    shown = " ".join(map(str, values))
    options: dict[str, Any] = {"default": default, "help": f"{about}; default: {shown}" if values else about}
    if "choices" in details:
        options["choices"] = details["choices"]
    elif not isinstance(default, str):
        kind = float if isinstance(default, float) else int
        options |= {"type": number(kind, details["least"], details.get("most")), "metavar": "N"}
    if isinstance(default, tuple):
        options["nargs"] = details.get("count", "+")
    command.add_argument(f"--{name}", dest=field.name, **options)


def number(kind: type[float], least: float, most: float | None = None) -> Callable[[str], float]:
    """Returns a type of argument: a number of this kind within limits."""

    def checked(text: str) -> float:
        value = kind(text)
        if not least <= value <= (value if most is None else most):
            between = f"at least {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"must be {between}")
        return value

    checked.__name__ = "whole number" if kind is int else "number"  # argparse names the type in its message
    return checked
