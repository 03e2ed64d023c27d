"""What the vocoder's engine was written for: it reads the modules' weights and does their work itself."""

from __future__ import annotations

from typing import Any

from ..weights import classes, unknown_class

CLASSES = classes(
    chatterbox="ConvRNNF0Predictor HiFTGenerator ResBlock SineGen Snake SourceModuleHnNSF",
    torch=(
        "Conv1d ConvTranspose1d ELU Linear ModuleDict ModuleList ParametrizationList ParametrizedConv1d "
        "ParametrizedConvTranspose1d ReflectionPad1d Sequential Tanh Upsample _WeightNorm"
    ),
)


def another_make(vocoder: Any) -> str | None:
    """Why the engine would not do what this vocoder does, if so."""
    if reason := unknown_class(map(type, vocoder.modules()), CLASSES):
        return reason
    blocks = [*vocoder.source_resblocks, *vocoder.resblocks]
    if any(snake.alpha_logscale for block in blocks for snake in (*block.activations1, *block.activations2)):
        return "its activations keep logarithms"
    return None
