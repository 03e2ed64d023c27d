"""Whether an engine may read the weights of stock modules: changes since the last look, and other obstacles."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from .. import _compat
from .seam import Replacement, is_its_classes

# Attributes that stock's own calls set: transformers' mark of its hooks, and the table of position encodings that S3Gen
# moves to the input's device and enlarges.
_SET_BY_STOCK = {"_output_capturing_hooks_installed", "pe"}
_ADDRESS: Callable[[Any], int] = operator.attrgetter("_cdata")
_WRITES: Callable[[Any], int] = operator.attrgetter("_version")


class WeightWatch:
    """A comparison of modules with their state at the last look.

    A weight is identified by its storage, its position in the storage and torch's count of writes; everything else
    that a module keeps is compared by identity. Writes that torch does not count, through ``.data`` or a shared numpy
    array, are not detected, nor changes inside a list or an object of settings.

    Args:
        modules: returns the modules; called at each look, since a module may be exchanged.
        counted: whether weights whose writes torch does not count, those made in inference mode, are an obstacle.
    """

    def __init__(self, modules: Callable[[], Sequence[nn.Module]], counted: bool = True) -> None:
        self._modules = modules
        self._counted = counted
        self._tree: _Tree | None = None
        self._seen: list[list[int]] | None = None
        self._storages: list[StorageWeakRef] = []

    def look(self) -> tuple[bool, str | None]:
        """Returns whether nothing has changed since the last look, and why nothing may be kept, or None."""
        modules = list(self._modules())
        tree = self._tree
        same = tree is not None and tree.unchanged(modules)
        if tree is None or not same:
            tree = self._tree = _Tree(modules, self._counted)
        reason = "there are global forward hooks" if _compat.has_global_forward_hooks() else tree.reason
        if reason:
            self._tree = self._seen = None  # the obstacle may be taken away again
            return False, reason
        storages = list(map(Tensor.untyped_storage, tree.weights))
        seen = [
            list(map(_ADDRESS, storages)),
            list(map(Tensor.data_ptr, tree.weights)),
            [0 if weight.is_inference() else _WRITES(weight) for weight in tree.weights],
        ]
        if same and seen == self._seen:
            return True, None
        self._seen = seen
        # While a weak reference lives, no other storage gets the address.
        self._storages = list(map(StorageWeakRef, storages))
        return False, None


class _Tree:
    """Modules and all that they keep, at one time; cheap to compare, since every call does."""

    def __init__(self, roots: list[nn.Module], counted: bool) -> None:
        self._roots = roots
        self._modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
        self._kinds = list(map(type, self._modules))
        self._parts = list(map(vars, self._modules))
        self._contents = [parts[name] for parts in self._parts for name in ("_parameters", "_buffers", "_modules")]
        self._hooks = [parts[name] for parts in self._parts for name in ("_forward_hooks", "_forward_pre_hooks")]
        self._named = list(map(dict, self._parts))
        self._attributes = list(_values(self._named))
        self._kept = list(_values(self._contents))
        self.weights = [value for value in self._kept if isinstance(value, Tensor)]
        self.reason = next(filter(None, map(_altered, self._modules)), None) or _strange(self.weights, counted)

    def unchanged(self, roots: list[nn.Module]) -> bool:
        """Returns whether nothing has been exchanged, added or taken away."""
        return (
            roots == self._roots
            and list(map(type, self._modules)) == self._kinds
            and all(map(_harmless, _values(self._hooks)))
            and self._same_attributes()
            and _equal(self._kept, self._contents)
        )

    def _same_attributes(self) -> bool:
        if _equal(self._attributes, self._parts):
            return True
        now = list(map(dict, self._parts))
        same = all(map(_same_essentials, self._named, now))
        if same:
            self._named, self._attributes = now, list(_values(now))
        return same


def _values(parts: list[dict[str, Any]]) -> Iterator[Any]:
    return itertools.chain.from_iterable(map(dict.values, parts))


def _equal(values: list[Any], parts: list[dict[str, Any]]) -> bool:
    try:
        return values == list(_values(parts))  # identity first, without a loop in Python
    except (RuntimeError, ValueError):  # an exchanged tensor or array: their equality has no truth value
        return False


def _same_essentials(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Returns whether attributes are equal, apart from methods of the library and those that stock's calls set."""

    def essentials(attributes: dict[str, Any]) -> list[tuple[str, Any]]:
        return [(n, v) for n, v in attributes.items() if n not in _SET_BY_STOCK and not isinstance(v, Replacement)]

    try:
        return essentials(before) == essentials(now)
    except (RuntimeError, ValueError):  # an exchanged tensor or array
        return False


def _altered(module: nn.Module) -> str | None:
    if module.training:
        return "a module is in training mode"
    if not all(map(_harmless, (*module._forward_hooks.values(), *module._forward_pre_hooks.values()))):
        return f"a {type(module).__name__} has a forward hook"
    for name, value in vars(module).items():
        method = callable(getattr(type(module), name, None))
        if method and not isinstance(value, Replacement) and not is_its_classes(module, name):
            return f"{type(module).__name__}.{name} has been replaced"
    return None


def _harmless(hook: Any) -> bool:
    """Returns whether transformers registered a forward hook: it collects hidden states and changes nothing."""
    return str(getattr(hook, "__module__", "")).startswith("transformers.")


def _strange(weights: list[Tensor], counted: bool) -> str | None:
    if strange := set(map(type, weights)) - {Tensor, nn.Parameter}:
        return f"there is a weight of type {strange.pop().__name__}"
    if counted and any(map(Tensor.is_inference, weights)):
        return "weights made in inference mode do not count what is written to them"
    return None


def environment(device: Any) -> tuple[Any, ...]:
    """Returns what else of torch decides the last bits of a result on ``device``."""
    kind = torch.device(device).type
    autocast_dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return torch.get_num_threads(), torch.get_float32_matmul_precision(), autocast_dtype


def classes(**by_package: str) -> frozenset[str]:
    """Returns names of classes with their top-level package in front: ``classes(torch="Linear SiLU")``."""
    return frozenset(f"{package}.{name}" for package, names in by_package.items() for name in names.split())


def unknown_part(module: nn.Module, known: Container[str]) -> str | None:
    """Returns which class of module an engine was not written for, or that the weights have several dtypes, or None.

    Args:
        module: with all that it holds.
        known: top-level package and name of classes, as in ``"torch.Linear"``.
    """
    for kind in map(type, module.modules()):
        if f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}" not in known:
            return f"it holds a {kind.__module__}.{kind.__qualname__}"
    found = {parameter.dtype for parameter in module.parameters()}
    return f"its weights are of several dtypes: {', '.join(sorted(map(str, found)))}" if len(found) > 1 else None
