"""What may not change under an engine that reads weights instead of calling modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

Fingerprint = tuple[tuple[int, int | None], ...]


def fingerprint(tensors: Iterable[Tensor]) -> Fingerprint:
    """Changes when a tensor is replaced or written to; writes to inference tensors leave no trace and are not seen."""
    return tuple((t.data_ptr(), None if t.is_inference() else t._version) for t in tensors)


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
