"""What may not change under code that keeps what it read of modules, or reads weights instead of calling them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Iterable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from .. import _compat
from .seam import Replacement, is_its_classes

T = TypeVar("T")


class WeightWatch:
    """Tells whether what some modules compute may be kept, and whether what was kept still holds.

    A weight is known by its storage, its place in it and torch's count of writes to it, everything else that a module
    keeps by its identity. What is written past that count, through ``.data`` or a shared numpy array, is not seen, nor
    what changes inside a list or an object of settings.
    """

    def __init__(self, modules: Callable[[], list[nn.Module]]) -> None:
        self._modules = modules  # asked anew each time: a module may be exchanged for another
        self._seen: tuple[set[type], list[tuple[int, int, int]]] = (set(), [])
        self._attributes: list[Any] = []
        self._replaced: str | None = None
        self._storages: list[StorageWeakRef] = []

    def look(self) -> tuple[bool, str | None]:
        """Whether weights and attributes are those of the last look, and why nothing may be kept, if so."""
        found: list[Tensor | None] = []
        kinds: set[type] = set()
        modules = self._modules()
        attributes: list[Any] = []
        reason = "there are global forward hooks" if _compat.has_global_forward_hooks() else None
        pending: list[nn.Module | None] = list(modules)
        while pending:  # some 900 modules: nn.Module.modules() takes several times as long
            module = pending.pop()
            if module is None:
                continue
            parts = module.__dict__
            kinds.add(type(module))
            attributes += parts.values()
            if parts["training"] or parts["_forward_hooks"] or parts["_forward_pre_hooks"]:
                reason = reason or _altered(module)
            found += parts["_parameters"].values()
            found += parts["_buffers"].values()
            pending += parts["_modules"].values()
        same = len(attributes) == len(self._attributes) and all(map(operator.is_, attributes, self._attributes))
        if not same:
            self._attributes = attributes
            self._replaced = next(filter(None, (_replaced(m) for top in modules for m in top.modules())), None)
        reason = reason or self._replaced
        weights = [weight for weight in found if weight is not None]
        if strange := set(map(type, weights)) - {Tensor, nn.Parameter}:
            reason = f"there is a weight of type {strange.pop().__name__}"
        elif any(map(Tensor.is_inference, weights)):
            reason = "weights made in inference mode do not count what is written to them"
        if reason:
            return False, reason
        seen = kinds, [(w.untyped_storage()._cdata, w.data_ptr(), w._version) for w in weights]
        if same and seen == self._seen:
            return True, None
        self._seen = seen
        # While a weak reference lives, no other storage gets the address.
        self._storages = [StorageWeakRef(weight.untyped_storage()) for weight in weights]
        return False, None


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
    """

    def __init__(self, module: nn.Module, make: Callable[[], T], another_make: Callable[[Any], str | None]) -> None:
        self._module = module
        self._make = make
        self._another_make = another_make
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


def _altered(module: nn.Module) -> str:
    return "a module is in training mode" if module.training else f"a {type(module).__name__} has a forward hook"


def _replaced(module: nn.Module) -> str | None:
    for name, value in vars(module).items():
        method = callable(getattr(type(module), name, None))
        if method and not isinstance(value, Replacement) and not is_its_classes(module, name):
            return f"{type(module).__name__}.{name} has been replaced"
    return None
