"""The order in memory in which the native products read matrices."""

from __future__ import annotations

import torch
from torch import Tensor

PANEL = 64  # rows of a matrix that lie together


def panels(matrix: Tensor) -> Tensor:
    """Returns a copy of a matrix (out, in) as (out / 64, in, 64); zeros fill up the last panel. See ``gemm_tile.h``."""
    out, width = matrix.shape
    count = -(-out // PANEL)
    padded = torch.zeros(count * PANEL, width, dtype=matrix.dtype)
    padded[:out] = matrix
    return padded.view(count, PANEL, width).transpose(1, 2).contiguous()
