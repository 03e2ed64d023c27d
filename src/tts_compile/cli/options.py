"""Command-line options: those of a model, and those made from the fields of settings classes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, TypeVar

from ..bench.models import SYNTHETIC
from ..testing import SIZES

S = TypeVar("S")


def of_model(parents: Sequence[argparse.ArgumentParser] = ()) -> argparse.ArgumentParser:
    """Returns a parent of commands that load a model, with the options of the model."""
    model = argparse.ArgumentParser(add_help=False, parents=parents)
    model.add_argument(
        "--model",
        default=SYNTHETIC,
        metavar="synthetic|pretrained|FOLDER",
        help="random weights in the real architecture (default), the published weights, or a checkpoint folder",
    )
    model.add_argument("--size", choices=SIZES, default="small", help="of a synthetic model; default: small")
    model.add_argument("--seed", type=int, default=0, help="of the speech and of synthetic weights; default: 0")
    model.add_argument("--device", default="cpu", help="device of the model; default: cpu")
    model.add_argument("--checkpoint-dir", type=Path, metavar="DIR", help="keep the synthetic model in this folder")
    return model


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
