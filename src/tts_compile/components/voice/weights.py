"""Noticing that modules no longer compute what they computed before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ..seam import Replacement


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
                reason = reason or _customised(module)
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


def _replaced(modules: list[nn.Module]) -> str | None:
    for module in modules:
        for name, value in vars(module).items():
            if callable(getattr(type(module), name, None)) and not isinstance(value, Replacement):
                return f"{type(module).__name__}.{name} has been replaced"
    return None


def _customised(module: nn.Module) -> str:
    if module.training:
        return "a module is in training mode"
    return f"a {type(module).__name__} has a forward {'method of its own' if 'forward' in vars(module) else 'hook'}"
