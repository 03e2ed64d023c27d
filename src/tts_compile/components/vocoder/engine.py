"""The library's own ``mel2wav.inference``: pitch, source, network, inverse transform."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...execution import Region
from ...execution.operators import Operators
from ...timing.blocks import timed
from ..runtime import ComponentRuntime
from ..weight_watch import PackedWeights, WeightWatch, same_kind
from .functions import centred, entered, pitch, residual_unit, spectrum
from .supported import unsupported
from .weights import UnitWeights, VocoderWeights


class VocoderEngine:
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
        self._moved = same_kind(vocoder)
        watch = WeightWatch(lambda: [vocoder])
        self._packed = PackedWeights(
            vocoder, watch, lambda: VocoderWeights.of(vocoder, operators), unsupported, runtime.fallback
        )

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

    def notes(self) -> list[str]:
        """Returns nothing to add to the report."""
        return []

    def release(self) -> None:
        """Keeps the weights: the next call needs them."""

    def unfit(self) -> str | None:
        """Returns why the engine would not compute what the vocoder computes now, or None."""
        return self._packed.unfit() or self._moved()

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
        weights = self._packed.current()
        mel = _dynamic(speech_feat.transpose(1, 2).clone(memory_format=torch.contiguous_format))
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
        with torch.random.fork_rng(devices=[like.device] if like.device.type == "cuda" else []):
            self.inference(mel)

    def _trunk(self, weights: VocoderWeights, mel: Tensor, source_spectrum: Tensor) -> tuple[Tensor, Tensor]:
        operators = self._operators
        parts: tuple[Tensor, ...] = (_dynamic(centred(operators, mel, weights.before)),)
        slope = self.vocoder.lrelu_slope
        for stage, unit, enter in zip(weights.stages, self._units, self._entered):
            rows = parts[0].shape[1] * stage.up.rate + (stage is weights.stages[-1])
            source = operators.convolve(
                source_spectrum, *stage.down, rows=rows, left=stage.down_padding, stride=stage.down_stride
            )
            source = self._block(unit, source, stage.source)
            x = enter(parts, _dynamic(source), stage.up, slope)
            parts = tuple(_dynamic(self._block(unit, x, block)) for block in stage.residuals)
        magnitude, phase = self._spectrum(parts, weights.after)
        return magnitude, phase

    def _block(self, unit: Region, x: Tensor, units: tuple[UnitWeights, ...]) -> Tensor:
        for weights in units:
            x = unit(_dynamic(x), weights)
        return x


def _dynamic(x: Tensor) -> Tensor:
    torch._dynamo.maybe_mark_dynamic(x, 1)
    return x
