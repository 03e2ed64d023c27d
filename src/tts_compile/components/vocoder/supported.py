"""The vocoders that the engine was written for: it reads the modules' weights and computes what they compute."""

from __future__ import annotations

from typing import Any

from ..support import classes, several_dtypes, unknown_class

CLASSES = classes(
    chatterbox="ConvRNNF0Predictor HiFTGenerator ResBlock SineGen Snake SourceModuleHnNSF",
    torch=(
        "Conv1d ConvTranspose1d ELU Linear ModuleDict ModuleList ParametrizationList ParametrizedConv1d "
        "ParametrizedConvTranspose1d ReflectionPad1d Sequential Tanh Upsample _WeightNorm"
    ),
)


def unsupported(vocoder: Any) -> str | None:
    """Returns why the engine would not compute what this vocoder computes, or None."""
    if reason := unknown_class(map(type, vocoder.modules()), CLASSES) or several_dtypes(vocoder):
        return reason
    blocks = [*vocoder.source_resblocks, *vocoder.resblocks]
    if any(snake.alpha_logscale for block in blocks for snake in (*block.activations1, *block.activations2)):
        return "its activations keep logarithms"
    convolutions = [convolution for block in blocks for convolution in (*block.convs1, *block.convs2)]
    if any(2 * c.padding[0] != c.dilation[0] * (c.kernel_size[0] - 1) for c in convolutions):
        return "its convolutions change the length"
    if any(getattr(activation, "alpha", 1) != 1 for activation in vocoder.f0_predictor.condnet):
        return "its pitch predictor has other activations"
    return None
