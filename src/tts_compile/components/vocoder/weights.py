"""The vocoder's weights in the layout of its functions: weight norms folded, transposed convolutions as plain ones.

Stock computes 82 normalised weights on every call. These are copies: the stock module keeps its parametrisations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...execution.operators import Operators

Kernel = tuple[Tensor, Tensor]  # packed weight and bias


class UnitWeights(NamedTuple):
    """One residual unit: Snake, dilated convolution, Snake, convolution."""

    alpha1: Tensor  # (channels,)
    kernel1: Kernel
    dilation: int  # of the first
    alpha2: Tensor
    kernel2: Kernel


class Upsampling(NamedTuple):
    """A transposed convolution as a plain one with ``rate`` times the channels."""

    kernel: Kernel
    rate: int
    padding: int


class StageWeights(NamedTuple):
    """From one rate to the next."""

    up: Upsampling
    down: Kernel  # of the source's spectrum
    down_stride: int
    down_padding: int
    source: tuple[UnitWeights, ...]
    residuals: tuple[tuple[UnitWeights, ...], ...]  # whose mean goes on


class VocoderWeights(NamedTuple):
    """Everything but the source module, which stays stock's."""

    pitch: tuple[Kernel, ...]
    pitch_classifier: Kernel
    before: Kernel
    stages: tuple[StageWeights, ...]
    after: Kernel

    @classmethod
    def of(cls, vocoder: Any, operators: Operators) -> VocoderWeights:
        """Returns copies of a stock ``HiFTGenerator``'s weights."""

        def kernel(convolution: Any) -> Kernel:
            return operators.pack(convolution.weight), convolution.bias.detach().clone()

        def units(block: Any) -> tuple[UnitWeights, ...]:
            parts = zip(block.activations1, block.convs1, block.activations2, block.convs2)
            return tuple(UnitWeights(a.alpha, kernel(b), b.dilation[0], c.alpha, kernel(d)) for a, b, c, d in parts)

        stages = []
        for i, (up, down, source) in enumerate(zip(vocoder.ups, vocoder.source_downs, vocoder.source_resblocks)):
            blocks = vocoder.resblocks[i * vocoder.num_kernels : (i + 1) * vocoder.num_kernels]
            stages.append(
                StageWeights(
                    Upsampling(_transposed(up, operators), up.stride[0], up.padding[0]),
                    kernel(down),
                    down.stride[0],
                    down.padding[0],
                    units(source),
                    tuple(units(block) for block in blocks),
                )
            )
        predictor = vocoder.f0_predictor
        classifier = predictor.classifier
        return cls(
            tuple(kernel(module) for module in predictor.condnet if isinstance(module, torch.nn.Conv1d)),
            (operators.pack(classifier.weight[..., None]), classifier.bias.detach().clone()),
            kernel(vocoder.conv_pre),
            tuple(stages),
            kernel(vocoder.conv_post),
        )


def _transposed(up: Any, operators: Operators) -> Kernel:
    """Output ``rate * a + r`` of a transposed convolution is the sum over m of ``x[a - m]`` times tap ``r + rate * m``.

    So the ``rate`` outputs of one ``a`` are the channels of a plain convolution that looks back.
    """
    rate, weight = up.stride[0], up.weight  # (inputs, outputs, taps)
    taps = -(-weight.shape[2] // rate)
    parts = F.pad(weight, (0, taps * rate - weight.shape[2])).unflatten(2, (taps, rate))  # (inputs, outputs, m, r)
    plain = parts.permute(3, 1, 0, 2).flatten(0, 1).flip(2)  # (rate * outputs, inputs, taps), the latest input last
    return operators.pack(plain), up.bias.detach().repeat(rate)
