"""What may not change under code that keeps what it read of modules, or reads weights instead of calling them."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from .. import _compat
from .seam import Replacement, is_its_classes

T = TypeVar("T")

_ADDRESS: Callable[[Any], int] = operator.attrgetter("_cdata")
_WRITES: Callable[[Any], int] = operator.attrgetter("_version")


class WeightWatch:
    """Tells whether what some modules compute may be kept, and whether what was kept still holds.

    A weight is known by its storage, its place in it and torch's count of writes to it, everything else that a module
    keeps by its identity. What is written past that count, through ``.data`` or a shared numpy array, is not seen, nor
    what changes inside a list or an object of settings.
    """

    def __init__(self, modules: Callable[[], list[nn.Module]]) -> None:
        self._modules = modules  # asked anew each time: a module may be exchanged for another
        self._tree: _Tree | None = None
        self._seen: list[list[int]] | None = None
        self._storages: list[StorageWeakRef] = []

    def look(self) -> tuple[bool, str | None]:
        """Whether weights and attributes are those of the last look, and why nothing may be kept, if so."""
        modules = self._modules()
        tree = self._tree
        same = tree is not None and tree.stands(modules)
        if tree is None or not same:
            tree = self._tree = _Tree(modules)
        reason = "there are global forward hooks" if _compat.has_global_forward_hooks() else tree.reason
        if reason:
            self._tree = self._seen = None  # what stood in the way may be taken away again
            return False, reason
        storages = list(map(Tensor.untyped_storage, tree.weights))
        seen = [
            list(map(_ADDRESS, storages)),
            list(map(Tensor.data_ptr, tree.weights)),
            list(map(_WRITES, tree.weights)),
        ]
        if same and seen == self._seen:
            return True, None
        self._seen = seen
        # While a weak reference lives, no other storage gets the address.
        self._storages = list(map(StorageWeakRef, storages))
        return False, None


class _Tree:
    """Modules and all that they keep, at one time; cheap to compare, since every call does."""

    def __init__(self, roots: list[nn.Module]) -> None:
        self._roots = roots
        self._modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
        self._kinds = list(map(type, self._modules))
        self._parts = list(map(vars, self._modules))
        self._contents = [parts[name] for parts in self._parts for name in ("_parameters", "_buffers", "_modules")]
        self._hooks = [parts[name] for parts in self._parts for name in ("_forward_hooks", "_forward_pre_hooks")]
        self._attributes = list(_values(self._parts))
        self._kept = list(_values(self._contents))
        self.weights = [value for value in self._kept if isinstance(value, Tensor)]
        self.reason = next(filter(None, map(_altered, self._modules)), None) or _strange(self.weights)

    def stands(self, roots: list[nn.Module]) -> bool:
        """Whether nothing has been exchanged, added or taken away since."""
        return (
            roots == self._roots
            and list(map(type, self._modules)) == self._kinds
            and not any(self._hooks)
            and _equal(self._attributes, self._parts)
            and _equal(self._kept, self._contents)
        )


def _values(parts: list[dict[str, Any]]) -> Iterator[Any]:
    return itertools.chain.from_iterable(map(dict.values, parts))


def _equal(values: list[Any], parts: list[dict[str, Any]]) -> bool:
    try:
        return values == list(_values(parts))  # identity first, without a loop in Python
    except (RuntimeError, ValueError):  # an exchanged tensor or array: their equality has no truth value
        return False


def _altered(module: nn.Module) -> str | None:
    if module.training:
        return "a module is in training mode"
    if module._forward_hooks or module._forward_pre_hooks:
        return f"a {type(module).__name__} has a forward hook"
    for name, value in vars(module).items():
        method = callable(getattr(type(module), name, None))
        if method and not isinstance(value, Replacement) and not is_its_classes(module, name):
            return f"{type(module).__name__}.{name} has been replaced"
    return None


def _strange(weights: list[Tensor]) -> str | None:
    if strange := set(map(type, weights)) - {Tensor, nn.Parameter}:
        return f"there is a weight of type {strange.pop().__name__}"
    if any(map(Tensor.is_inference, weights)):
        return "weights made in inference mode do not count what is written to them"
    return None


def environment(device: Any) -> tuple[Any, ...]:
    """What else of torch decides the last bits of a result on ``device``."""
    kind = torch.device(device).type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return torch.get_num_threads(), torch.get_float32_matmul_precision(), autocast


class Copies(Generic[T]):
    """What an engine keeps of a module's weights in another form, made anew whenever they change.

    Args:
        module: the stock module, in evaluation mode.
        make: gives the copies.
        another_make: why the engine would not do what the module does, if so.

    Attributes:
        generation: how often they were made.
    """

    def __init__(self, module: nn.Module, make: Callable[[], T], another_make: Callable[[Any], str | None]) -> None:
        self._module = module
        self._make = make
        self._another_make = another_make
        self.generation = 0
        self._mismatch: str | None = None
        self._watch = WeightWatch(lambda: [module])
        self._made_for = self._kinds()
        self._made: T | None = None

    def unfit(self) -> str | None:
        """Why copies would not do what the module does, if so; to be asked before every use."""
        unchanged, reason = self._watch.look()
        if not unchanged:
            self._made = None
            self._mismatch = self._another_make(self._module)
        if self._kinds() != self._made_for:
            return "the model was moved or cast after compile_model"
        return reason or self._mismatch or autocast(next(self._module.parameters()).device)

    def current(self) -> T:
        """The copies, made now if there are none."""
        if self._made is None:
            self._made = self._make()
            self.generation += 1
        return self._made

    def _kinds(self) -> set[tuple[torch.device, torch.dtype]]:
        return {(parameter.device, parameter.dtype) for parameter in self._module.parameters()}


def customised(modules: Iterable[tuple[str, nn.Module]], harmless: Callable[[Any], bool] | None = None) -> str | None:
    """Why running the modules would not do what their classes and weights say, if so.

    Args:
        modules: names and modules, as ``named_modules`` gives them.
        harmless: says of a forward hook that it changes nothing.
    """
    if _compat.has_global_forward_hooks():
        return "there are global forward hooks"
    for name, module in modules:
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if not all(harmless is not None and harmless(hook) for hook in hooks):
            return f"{name} has a forward hook"
        if getattr(module.forward, "__func__", None) is not type(module).forward:
            return f"{name} has a forward method of its own"
    return None


def classes(**by_package: str) -> frozenset[str]:
    """Names of classes, with their top-level package in front: ``classes(torch="Linear SiLU")``."""
    return frozenset(f"{package}.{name}" for package, names in by_package.items() for name in names.split())


def unknown_class(kinds: Iterable[type], known: Container[str]) -> str | None:
    """What classes of modules there are beside the known ones, if any.

    Args:
        kinds: of modules.
        known: top-level package and name of classes, as in ``"torch.Linear"``.
    """
    for kind in kinds:
        if f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}" not in known:
            return f"it holds a {kind.__module__}.{kind.__qualname__}"
    return None


def several_dtypes(module: nn.Module) -> str | None:
    """That its weights are of more than one dtype, if so."""
    found = {parameter.dtype for parameter in module.parameters()}
    return f"its weights are of several dtypes: {', '.join(sorted(map(str, found)))}" if len(found) > 1 else None


def autocast(device: torch.device) -> str | None:
    """The same for autocast."""
    return "autocast is on" if torch.is_autocast_enabled(device.type) else None
