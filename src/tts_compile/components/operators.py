"""Which operators an engine uses."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import CompilationError
from ..execution.operators import NativeOperators, Operators, TorchOperators
from ..fallback import FallbackManager


def choose_operators(
    parameters: Iterable[Tensor], made_for: bool, fallback: FallbackManager, cache_dir: str | None
) -> Operators:
    """Native ones for float32 on a CPU, where they can be built; torch's own otherwise.

    Args:
        parameters: of the stock module.
        made_for: whether the native ones are made for its sizes.
        fallback: of the component; asked for its level, told of a failure.
        cache_dir: for native code.
    """
    native = made_for and all(p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters)
    if native and fallback.level == "inductor":
        try:
            return NativeOperators(cache_dir)
        except CompilationError as error:
            fallback.note("compile", str(error), "torch's own products and attention")
    return TorchOperators()
