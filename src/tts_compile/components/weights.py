"""What may not change under code that keeps what it read of modules, or reads weights instead of calling them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from .seam import Replacement

T = TypeVar("T")


class WeightWatch:
    """Tells whether what some modules compute may be kept, and whether what was kept still holds.

    A weight is known by its storage, its place in it and torch's count of writes to it. What is written past that
    count, through ``.data`` or a shared numpy array, is not seen.
    """

    def __init__(self, modules: Callable[[], list[nn.Module]]) -> None:
        self._modules = modules  # asked anew each time: a module may be exchanged for another
        self._seen: list[tuple[int, int, int]] = []
        self._storages: list[StorageWeakRef] = []

    def look(self) -> tuple[bool, str | None]:
        """Whether all weights are those of the last look, and why nothing may be kept, if so."""
        found: list[Tensor | None] = []
        modules = self._modules()
        reason = _replaced(modules)
        pending: list[nn.Module | None] = list(modules)
        while pending:  # some 900 modules: nn.Module.modules() takes several times as long
            module = pending.pop()
            if module is None:
                continue
            parts = module.__dict__
            if parts["training"] or parts["_forward_hooks"] or parts["_forward_pre_hooks"] or "forward" in parts:
                reason = reason or _altered(module)
            found += parts["_parameters"].values()
            found += parts["_buffers"].values()
            pending += parts["_modules"].values()
        weights = [weight for weight in found if weight is not None]
        if strange := set(map(type, weights)) - {Tensor, nn.Parameter}:
            reason = f"there is a weight of type {strange.pop().__name__}"
        elif any(map(Tensor.is_inference, weights)):
            reason = "weights made in inference mode do not count what is written to them"
        if reason:
            return False, reason
        seen = [(w.untyped_storage()._cdata, w.data_ptr(), w._version) for w in weights]
        if seen == self._seen:
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
    """

    def __init__(self, module: nn.Module, make: Callable[[], T]) -> None:
        self._module = module
        self._make = make
        self._watch = WeightWatch(lambda: [module])
        self._made_for = self._kinds()
        self._made: T | None = None

    def unfit(self) -> str | None:
        """Why copies would not do what the module does, if so; to be asked before every use."""
        unchanged, reason = self._watch.look()
        if not unchanged:
            self._made = None
        if self._kinds() != self._made_for:
            return "the model was moved or cast after compile_model"
        return reason or autocast(next(self._module.parameters()).device)

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
    for name, module in modules:
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if not all(harmless is not None and harmless(hook) for hook in hooks):
            return f"{name} has a forward hook"
        if getattr(module.forward, "__func__", None) is not type(module).forward:
            return f"{name} has a forward method of its own"
    return None


def autocast(device: torch.device) -> str | None:
    """The same for autocast."""
    return "autocast is on" if torch.is_autocast_enabled(device.type) else None


def _replaced(modules: list[nn.Module]) -> str | None:
    for module in modules:
        for name, value in vars(module).items():
            if callable(getattr(type(module), name, None)) and not isinstance(value, Replacement):
                return f"{type(module).__name__}.{name} has been replaced"
    return None


def _altered(module: nn.Module) -> str:
    if module.training:
        return "a module is in training mode"
    return f"a {type(module).__name__} has a forward {'method of its own' if 'forward' in vars(module) else 'hook'}"
