"""The vocoder's functions on (batch, time, channels): the units that are compiled, for every length at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...execution.operators import Operators
from .weights import Kernel, UnitWeights, Upsampling


def centred(
    operators: Operators, x: Tensor, kernel: Kernel, dilation: int = 1, residual: Tensor | None = None
) -> Tensor:
    """Convolves as far ahead as back."""
    weight, bias = kernel
    left = (operators.taps(weight, x.shape[2]) - 1) * dilation // 2
    return operators.convolve(x, weight, bias, rows=x.shape[1], left=left, dilation=dilation, residual=residual)


def pitch(operators: Operators, mel: Tensor, kernels: tuple[Kernel, ...], classifier: Kernel) -> Tensor:
    """Returns the fundamental frequency in Hz, (batch, frames), of mel frames (batch, frames, 80)."""
    x = mel
    for kernel in kernels:
        x = F.elu(centred(operators, x, kernel))
    return centred(operators, x, classifier)[..., 0].abs()


def residual_unit(operators: Operators, x: Tensor, unit: UnitWeights) -> Tensor:
    """Applies Snake, dilated convolution, Snake and convolution, and adds x."""
    y = centred(operators, snake(x, unit.alpha1), unit.kernel1, unit.dilation)
    return centred(operators, snake(y, unit.alpha2), unit.kernel2, residual=x)


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """Returns ``x + sin(alpha * x)^2 / alpha`` (arXiv:2006.08195), with stock's guard against division by 0."""
    y: Tensor = x + (1.0 / (alpha + 1e-9)) * torch.sin(x * alpha) ** 2
    return y


def raised(operators: Operators, x: Tensor, up: Upsampling) -> Tensor:
    """Applies a transposed convolution: ``rate`` rows for each row."""
    (weight, bias), rate, padding = up
    rows = x.shape[1]
    left = operators.taps(weight, x.shape[2]) - 1
    y = operators.convolve(x, weight, bias, rows=rows + 1, left=left)
    raised_rows: Tensor = y.unflatten(2, (rate, -1)).flatten(1, 2)
    return raised_rows[:, padding : padding + rows * rate]


def entered(operators: Operators, parts: tuple[Tensor, ...], source: Tensor, up: Upsampling, slope: float) -> Tensor:
    """Raises the mean of the last stage's blocks to the next rate, and adds the source at that rate."""
    x = raised(operators, F.leaky_relu(mean(parts), slope), up)
    if source.shape[1] != x.shape[1]:  # the last stage: one more row in front, reflected
        x = torch.cat([x[:, 1:2], x], dim=1)
    return x + source


def spectrum(operators: Operators, parts: tuple[Tensor, ...], kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Returns magnitude and phase of the wave, each (batch, bins, frames)."""
    x = centred(operators, F.leaky_relu(mean(parts)), kernel).transpose(1, 2)
    magnitude, phase = x.chunk(2, dim=1)
    return magnitude.exp(), phase.sin()


def mean(parts: tuple[Tensor, ...]) -> Tensor:
    """Returns the mean of tensors of equal shapes."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total / len(parts)
