"""Makes a T3 in half precision accept voices in fp32."""

from __future__ import annotations

import copy
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

DTYPES = MappingProxyType({"bf16": torch.bfloat16, "fp16": torch.float16})


def cast_inputs(tts: Any) -> None:
    """Makes T3 cast every voice to the dtype of its weights: stock makes voices in fp32, which half weights refuse."""
    tts.t3.cond_enc.register_forward_pre_hook(cast_to_weights)


def cast_to_weights(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Casts the voice, the first argument, to the module's dtype; its integers stay integers."""
    voice, *others = args
    return copy.copy(voice).to(dtype=next(module.parameters()).dtype), *others
