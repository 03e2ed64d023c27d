"""Reasons why an engine cannot stand in for stock modules."""

from __future__ import annotations

from collections.abc import Container, Iterable

from torch import nn


def classes(**by_package: str) -> frozenset[str]:
    """Returns names of classes with their top-level package in front: ``classes(torch="Linear SiLU")``."""
    return frozenset(f"{package}.{name}" for package, names in by_package.items() for name in names.split())


def unknown_class(kinds: Iterable[type], known: Container[str]) -> str | None:
    """Returns which class of module an engine was not written for, or None.

    Args:
        kinds: of modules.
        known: top-level package and name of classes, as in ``"torch.Linear"``.
    """
    for kind in kinds:
        if f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}" not in known:
            return f"it holds a {kind.__module__}.{kind.__qualname__}"
    return None


def several_dtypes(module: nn.Module) -> str | None:
    """Returns which dtypes the weights of a module have, where there are several; otherwise None."""
    found = {parameter.dtype for parameter in module.parameters()}
    return f"its weights are of several dtypes: {', '.join(sorted(map(str, found)))}" if len(found) > 1 else None
