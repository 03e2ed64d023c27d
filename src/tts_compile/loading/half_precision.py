"""A T3 in half precision that can be spoken with."""

from __future__ import annotations

import copy
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

DTYPES = MappingProxyType({"bf16": torch.bfloat16, "fp16": torch.float16})


def cast_inputs(tts: Any) -> None:
    """Have T3 take voices of any precision: stock makes them in fp32, which other weights cannot be multiplied with."""
    tts.t3.cond_enc.register_forward_pre_hook(cast_to_weights)


def cast_to_weights(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same voice, of the module's precision; integers stay."""
    voice, *others = args
    return copy.copy(voice).to(dtype=next(module.parameters()).dtype), *others
