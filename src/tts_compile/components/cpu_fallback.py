"""Calls of a stock module on another device than its own."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .seam import own_method

CPU = torch.device("cpu")


def on_cpu(owner: nn.Module, method: str, *args: Any, **kwargs: Any) -> Any:
    """Calls a stock method on a copy of its module in the machine's memory; results are on the module's own device.

    The copy is made for each call: it is the last resort, and weights may have changed. Nothing is taken of the
    device's memory but for the results.
    """
    device = next(owner.parameters()).device
    return moved(own_method(_copied(owner), method)(*moved(args, CPU), **moved(kwargs, CPU)), device)


def moved(value: Any, device: torch.device) -> Any:
    """Returns copies on a device of the tensors in tuples, lists, dicts and dataclasses."""

    def move(part: Any) -> Any:
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            parts = {field.name: moved(getattr(part, field.name), device) for field in dataclasses.fields(part)}
            return dataclasses.replace(part, **parts)
        return part.to(device) if isinstance(part, Tensor) else part

    return tree_map(move, value)


def _copied(module: nn.Module) -> nn.Module:
    """Returns a deep copy whose tensors go straight to the machine's memory."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to(CPU, copy=True), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer.detach().to(CPU, copy=True)
    return copy.deepcopy(module, memo).to(CPU)
