"""The solver and the estimator that it evaluates at every step, on (batch, frames, channels).

Stock's estimator is a U-net of one resolution: an entry stage, middle stages, and an exit stage that sees the entry
stage's result again. A stage is a causal residual block followed by transformer blocks; its function is compiled once
for each of the three kinds and reused. Every convolution looks back only and attention ends at a sequence's length, so
that frames beyond it never reach those before it: padding needs no masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...execution import dynamic
from ...execution.operators import Block, Operators, PackedBlock, before
from ..runtime import ComponentRuntime

Tensors = tuple[Tensor, ...]


class StageWeights(NamedTuple):
    """One stage: ten tensors of the residual block, the transformer blocks, and a last convolution or nothing."""

    resnet: Tensors
    blocks: tuple[PackedBlock, ...]
    last: Tensors


class EstimatorWeights(NamedTuple):
    """The estimator as the step reads it."""

    stages: list[StageWeights]
    final: Tensors  # convolution, norm, projection
    times: list[Any]  # stock's modules: from the embedding of time to each residual block's shift

    @classmethod
    def of(cls, estimator: Any, operators: Operators) -> EstimatorWeights:
        """Returns copies of a stock estimator's weights."""
        down, *_ = estimator.down_blocks
        up, *_ = estimator.up_blocks
        stages = [down, *((resnet, blocks, None) for resnet, blocks in estimator.mid_blocks), up]
        final, norm = estimator.final_block.block[0], estimator.final_block.block[2]
        return cls(
            [_stage(operators, *stage) for stage in stages],
            (*_kernel(operators, final), norm.weight, norm.bias, *_kernel(operators, estimator.final_proj)),
            [resnet.mlp for resnet, *_ in stages],
        )


def _stage(operators: Operators, resnet: Any, blocks: Any, last: Any) -> StageWeights:
    parts: list[Tensor] = []
    for block in (resnet.block1.block, resnet.block2.block):
        parts += (*_kernel(operators, block[0]), block[2].weight, block[2].bias)
    parts += _kernel(operators, resnet.res_conv)
    packed = tuple(operators.pack_block(_block(block)) for block in blocks)
    return StageWeights(tuple(parts), packed, () if last is None else _kernel(operators, last))


def _kernel(operators: Operators, convolution: Any) -> tuple[Tensor, Tensor]:
    return operators.pack(convolution.weight), convolution.bias


def _block(block: Any) -> Block:
    attention, (up, _, down) = block.attn1, block.ff.net
    return Block(
        *(block.norm1.weight, block.norm1.bias),
        *(attention.to_q.weight, attention.to_k.weight, attention.to_v.weight),
        *(attention.to_out[0].weight, attention.to_out[0].bias),
        *(block.norm3.weight, block.norm3.bias),
        *(up.proj.weight, up.proj.bias, down.weight, down.bias),
    )


class Sizes(NamedTuple):
    """Sizes and constants of the compiled functions."""

    heads: int
    inner: int
    block_eps: float
    norm_eps: float
    encoder_eps: float

    @classmethod
    def of(cls, flow: Any) -> Sizes:
        """Returns the sizes of a stock flow."""
        estimator = flow.decoder.estimator
        resnet, blocks, _ = estimator.down_blocks[0]
        block = blocks[0]
        return cls(
            heads=block.attn1.heads,
            inner=block.ff.net[0].proj.out_features,
            block_eps=block.norm1.eps,
            norm_eps=resnet.block1.block[2].eps,
            encoder_eps=flow.encoder.encoders[0].norm_mha.eps,
        )


class Conditions(NamedTuple):
    """The inputs of encoder and solver, padded to a rung."""

    speech: Tensor  # int64 (batch, rung), tokens
    lengths: Tensor  # int64 (batch,), tokens that count
    frame_lengths: Tensor  # int64 (batch,), frames that count
    speaker: Tensor  # (batch, 80)
    known: Tensor  # (batch, frames, 80), mel frames of the reference; 0 beyond
    noise: Tensor  # (batch, frames, 80)


class StepInputs(NamedTuple):
    """The inputs of a solver step beside the state."""

    condition: Tensor  # (rows, frames, 240); rows are the batch, or twice the batch with the unconditional half last
    lengths: Tensor  # int64 (rows,), frames that count
    length_of_step: Tensor  # ()
    guidance: Tensor  # (), the weight of the difference between the halves


class Estimator:
    """Compiled functions of a stage and of a step's end.

    Args:
        sizes: of the stock estimator.
        operators: native or torch.
        runtime: of the component.
    """

    def __init__(self, sizes: Sizes, operators: Operators, runtime: ComponentRuntime) -> None:
        def convolve(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
            left = operators.taps(weight, x.shape[2]) - 1  # causal
            return operators.convolve(x, weight, bias, rows=x.shape[1], left=left, residual=residual)

        def activated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return mish(F.layer_norm(x, x.shape[2:], weight, bias, sizes.norm_eps))

        def stage(
            x: Tensor, shift: Tensor, lengths: Tensor, resnet: Tensors, blocks: list[Tensors], last: Tensors
        ) -> tuple[Tensor, Tensor]:
            conv1, bias1, norm1, norm_bias1, conv2, bias2, norm2, norm_bias2, across, across_bias = resnet
            h = activated(convolve(x, conv1, bias1), norm1, norm_bias1) + shift
            h = activated(convolve(h, conv2, bias2), norm2, norm_bias2)
            x = convolve(x, across, across_bias, residual=h)
            for block in blocks:
                x = operators.transform(x, lengths, block, sizes.heads, sizes.inner, sizes.block_eps)
            return x, convolve(x, *last) if last else x

        def end(
            x: Tensor, state: Tensor, lengths: Tensor, length_of_step: Tensor, guidance: Tensor, final: Tensors
        ) -> Tensor:
            conv, bias, norm, norm_bias, projection, projection_bias = final
            change = convolve(activated(convolve(x, conv, bias), norm, norm_bias), projection, projection_bias)
            if len(change) != len(state):
                conditional, unconditional = change.chunk(2)
                change = (1 + guidance) * conditional - guidance * unconditional
            moving = before(lengths[: len(state)], state.shape[1])[..., None]
            return state + length_of_step * torch.where(moving, change, 0)

        # torch gives up on a function after eight graphs; widths, batches, numbers of threads have graphs of their own
        self._stages = {
            kind: runtime.region(f"estimator's {kind} stage", stage) for kind in ("entry", "middle", "exit")
        }
        self._end = runtime.region("end of a solver step", end)
        self.regions = [*self._stages.values(), self._end]

    def solve(
        self, weights: EstimatorWeights, decoder: Any, mu: Tensor, conditions: Conditions, steps: int, meanflow: bool
    ) -> Tensor:
        """Runs the solver's loop; launches only, waits for nothing.

        Args:
            weights: of the estimator.
            decoder: the stock module around the estimator.
            mu: (batch, frames, 80), from the encoder.
            conditions: of the call.
            steps: their number.
            meanflow: no guidance, and every step knows where it ends.

        Returns:
            (batch, frames, 80).
        """
        speaker, lengths, state = conditions.speaker, conditions.frame_lengths, conditions.noise
        condition = torch.cat([mu, speaker[:, None].expand_as(mu), conditions.known], dim=2)
        times = torch.linspace(0, 1, steps + 1, device=mu.device, dtype=mu.dtype)
        if not meanflow:
            condition = torch.cat([condition, torch.zeros_like(condition)])  # for guidance
            lengths = lengths.repeat(2)
            if decoder.t_scheduler == "cosine":
                times = 1 - torch.cos(times * 0.5 * torch.pi)
        guidance = torch.full((), decoder.inference_cfg_rate, device=mu.device, dtype=mu.dtype)
        for shifts, length_of_step in zip(_shifts(weights, decoder.estimator, times), times.diff()):
            state = self.step(weights, state, shifts, StepInputs(condition, lengths, length_of_step, guidance))
        return state

    def step(self, weights: EstimatorWeights, state: Tensor, shifts: list[Tensor], inputs: StepInputs) -> Tensor:
        """Takes one Euler step.

        Args:
            weights: of the estimator.
            state: (batch, frames, 80).
            shifts: for each stage (channels,), what the time adds.
            inputs: of the step.

        Returns:
            The next state.
        """
        condition, lengths, length_of_step, guidance = inputs
        x = torch.cat([state.repeat(len(condition) // len(state), 1, 1), condition], dim=2)
        entered = x
        for number, (stage, shift) in enumerate(zip(weights.stages, shifts)):
            kind = "entry" if number == 0 else "middle"
            if number == len(weights.stages) - 1:
                kind = "exit"
                x = torch.cat([x, entered], dim=2)
            blocks = [block.arguments for block in stage.blocks]
            before_last, x = self._stages[kind](dynamic(x, 1), shift, lengths, stage.resnet, blocks, stage.last)
            if kind == "entry":
                entered = before_last
        result: Tensor = self._end(dynamic(x, 1), dynamic(state, 1), lengths, length_of_step, guidance, weights.final)
        return result


def _shifts(weights: EstimatorWeights, estimator: Any, times: Tensor) -> Iterator[list[Tensor]]:
    """Yields for each step what its time adds in each stage."""
    start = estimator.time_mlp(estimator.time_embeddings(times[:-1]).to(times.dtype))
    if estimator.meanflow:
        end = estimator.time_mlp(estimator.time_embeddings(times[1:]).to(times.dtype))
        start = estimator.time_embed_mixer(torch.cat([start, end], dim=1))
    by_stage = [to_shift(start) for to_shift in weights.times]  # each (steps, channels)
    return (list(shifts) for shifts in zip(*by_stage))


def mish(x: Tensor) -> Tensor:
    """Returns ``x * tanh(softplus(x))`` with one exponential: tanh(log(1 + e)) is n / (n + 2) for n = e * (e + 2)."""
    e = torch.exp(x.float().clamp(max=20))  # beyond, the quotient is 1; squares do not fit half precision
    n = e * (e + 2)
    return x * (n / (n + 2)).to(x.dtype)


def unsupported_estimator(estimator: Any) -> str | None:
    """Returns why :class:`Estimator` would not compute what an estimator of known classes computes, or None."""
    if len(estimator.down_blocks) != 1 or not estimator.causal or estimator.static_chunk_size:
        return "its estimator has several resolutions, looks ahead or attends in chunks"
    stages = [*estimator.down_blocks, *estimator.mid_blocks, *estimator.up_blocks]
    blocks = [block for stage in stages for block in stage[1]]
    for block in blocks:
        attention, mlp = block.attn1, block.ff.net
        if attention.to_q.bias is not None or block.attn2 is not None or block.norm1.weight is None:
            return "its estimator's attention is of another kind"
        if type(attention.processor).__name__ not in ("AttnProcessor", "AttnProcessor2_0"):
            return f"its estimator attends by {type(attention.processor).__name__}"
        if len(mlp) != 3 or mlp[0].approximate != "none":
            return "its estimator's MLP is of another kind"
    kinds = {
        (block.attn1.heads, block.ff.net[0].proj.out_features, block.norm1.eps, block.norm3.eps) for block in blocks
    }
    convolved = [estimator.final_block, *(block for stage in stages for block in (stage[0].block1, stage[0].block2))]
    if len(kinds) != 1 or len({block.block[2].eps for block in convolved}) != 1:
        return "its estimator's blocks differ in their sizes"
    return None
