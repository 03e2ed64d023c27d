"""The vocoder as a component, and the library's ``mel2wav.inference``: pitch, source, network, inverse transform."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import InputError, UnsupportedModelError
from ...execution import Region, dynamic
from ...execution.operators import Operators
from ...families.family import Family
from ...timing.blocks import timed
from ...utils.random_state import generators_kept
from ..compiled_component import CompiledComponent, Engine
from ..runtime import ComponentRuntime, Runtime
from ..weight_watch import WeightWatch, classes, unknown_part
from .weights import Kernel, UnitWeights, Upsampling, VocoderWeights

# The classes whose weights the engine reads, to compute what they compute.
_CLASSES = classes(
    chatterbox="ConvRNNF0Predictor HiFTGenerator ResBlock SineGen Snake SourceModuleHnNSF",
    torch=(
        "Conv1d ConvTranspose1d ELU Linear ModuleDict ModuleList ParametrizationList ParametrizedConv1d "
        "ParametrizedConvTranspose1d ReflectionPad1d Sequential Tanh Upsample _WeightNorm"
    ),
)


class VocoderComponent(CompiledComponent):
    """A component that replaces ``s3gen.mel2wav.inference``.

    Raises:
        UnsupportedModelError: for a vocoder of another make than the released ones.
        OutOfMemoryError: when copies of its weights would exceed the limit.
    """

    engine: VocoderEngine

    def __init__(self, s3gen: Any, family: Family, runtime: Runtime) -> None:
        vocoder = s3gen.mel2wav
        if why := unsupported(vocoder):
            raise UnsupportedModelError(why)
        runtime.memory.check(sum(parameter.nbytes for parameter in vocoder.parameters()))  # the copies
        super().__init__("vocoder", runtime, vocoder, "inference", family.package, captures=False)
        self.engine = VocoderEngine(vocoder, self.runtime.operators(vocoder.parameters(), True), self.runtime)


class VocoderEngine(Engine[VocoderWeights]):
    """Mel frames to a wave, as a stock ``HiFTGenerator`` computes it.

    The convolutions are compiled for every length at once, and nothing is padded: they see both ways, so that padding
    would change the wave. The random source and the Fourier transforms are stock's own, uncompiled.

    Args:
        vocoder: the stock module.
        operators: native or torch.
        runtime: of the component.
    """

    def __init__(self, vocoder: Any, operators: Operators, runtime: ComponentRuntime) -> None:
        self.vocoder = vocoder
        self._operators = operators
        super().__init__(vocoder, WeightWatch(lambda: [vocoder]), runtime)

        def region(name: str, function: Any) -> Region:
            return runtime.region(name, functools.partial(function, operators))

        self._pitch = region("pitch", pitch)
        rates = range(len(vocoder.ups))
        self._entered = [region(f"change to rate {i}", entered) for i in rates]
        # one for each stage: torch gives up on a function after eight graphs, and kernels and channels both vary
        self._units = [region(f"residual unit at rate {i}", residual_unit) for i in rates]
        self._spectrum = region("spectrum", spectrum)

    @property
    def parts(self) -> list[Region]:
        """Returns every function that is compiled."""
        return [self._pitch, *self._entered, *self._units, self._spectrum]

    def inference(self, speech_feat: Tensor, cache_source: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns a wave (batch, samples) and its source (batch, 1, samples); 480 samples a frame.

        Args:
            speech_feat: (batch, 80, frames).
            cache_source: (batch, 1, n), put in place of the source's first samples.

        Raises:
            InputError: for no frames.
        """
        if speech_feat.shape[2] == 0:
            raise InputError("there are no mel frames to make a wave from")
        vocoder = self.vocoder
        weights = self.weights()
        mel = dynamic(speech_feat.transpose(1, 2).clone(memory_format=torch.contiguous_format), 1)
        with timed("vocoder.pitch"):
            frequency = self._pitch(mel, weights.pitch, weights.pitch_classifier)
        with timed("vocoder.source"):
            source, _, _ = vocoder.m_source(vocoder.f0_upsamp(frequency[:, None]).transpose(1, 2))
            source = source.transpose(1, 2)
            if cache_source is not None and cache_source.shape[2]:
                source[:, :, : cache_source.shape[2]] = cache_source
            real, imaginary = vocoder._stft(source.squeeze(1))
            # (batch, 120 * frames + 1, 18)
            source_spectrum = torch.cat([real, imaginary], dim=1).transpose(1, 2).contiguous()
        with timed("vocoder.network"):
            spectrum_of_wave = self._trunk(weights, mel, source_spectrum)
        with timed("vocoder.istft"):
            wave = vocoder._istft(*spectrum_of_wave)
        return wave.clamp(-vocoder.audio_limit, vocoder.audio_limit), source

    def warm_up(self) -> None:
        """Compiles everything that later calls may need; draws no random number from the global generators."""
        like = self.vocoder.conv_pre.bias
        mel = torch.zeros(1, self.vocoder.conv_pre.in_channels, 8, dtype=like.dtype, device=like.device)
        with generators_kept(like.device):
            self.inference(mel)

    def _make(self) -> VocoderWeights:
        return VocoderWeights.of(self.vocoder, self._operators)

    def _unsupported(self) -> str | None:
        return unsupported(self.vocoder) or self._moved()

    def _trunk(self, weights: VocoderWeights, mel: Tensor, source_spectrum: Tensor) -> tuple[Tensor, Tensor]:
        operators = self._operators
        parts: tuple[Tensor, ...] = (dynamic(centred(operators, mel, weights.before), 1),)
        slope = self.vocoder.lrelu_slope
        for stage, unit, enter in zip(weights.stages, self._units, self._entered):
            rows = parts[0].shape[1] * stage.up.rate + (stage is weights.stages[-1])
            source = operators.convolve(
                source_spectrum, *stage.down, rows=rows, left=stage.down_padding, stride=stage.down_stride
            )
            source = self._block(unit, source, stage.source)
            x = enter(parts, dynamic(source, 1), stage.up, slope)
            parts = tuple(dynamic(self._block(unit, x, block), 1) for block in stage.residuals)
        magnitude, phase = self._spectrum(parts, weights.after)
        return magnitude, phase

    def _block(self, unit: Region, x: Tensor, units: tuple[UnitWeights, ...]) -> Tensor:
        for weights in units:
            x = unit(dynamic(x, 1), weights)
        return x


# The functions below take (batch, time, channels); most are compiled, for every length at once.


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


def unsupported(vocoder: Any) -> str | None:
    """Returns why the engine would not compute what this vocoder computes, or None."""
    if why := unknown_part(vocoder, _CLASSES):
        return why
    blocks = [*vocoder.source_resblocks, *vocoder.resblocks]
    if any(snake.alpha_logscale for block in blocks for snake in (*block.activations1, *block.activations2)):
        return "its activations keep logarithms"
    convolutions = [convolution for block in blocks for convolution in (*block.convs1, *block.convs2)]
    if any(2 * c.padding[0] != c.dilation[0] * (c.kernel_size[0] - 1) for c in convolutions):
        return "its convolutions change the length"
    if any(getattr(activation, "alpha", 1) != 1 for activation in vocoder.f0_predictor.condnet):
        return "its pitch predictor has other activations"
    return None
