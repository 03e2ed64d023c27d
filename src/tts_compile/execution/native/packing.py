"""How the native products want their matrices."""

from __future__ import annotations

import torch
from torch import Tensor

PANEL = 64


def panels(matrix: Tensor) -> Tensor:
    """(out, in) as (out / 64, in, 64), contiguous, the last panel filled up with zeros; see ``gemm_tile.h``."""
    out, width = matrix.shape
    count = -(-out // PANEL)
    padded = torch.zeros(count * PANEL, width, dtype=matrix.dtype)
    padded[:out] = matrix
    return padded.view(count, PANEL, width).transpose(1, 2).contiguous()
