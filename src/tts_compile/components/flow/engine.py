"""The library's own ``flow.inference``: encoder, noise, and the solver's loop."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ...bucketing import ChunkBucketer
from ...errors import CompilationError, InputError
from ...execution import Region
from ...execution.cuda_graph import Replays
from ...execution.operators import Operators
from ...families.family import Synthesis
from ...timing.blocks import timed
from ..runtime import ComponentRuntime
from ..weight_watch import PackedWeights, WeightWatch, same_kind
from .encoder import Encoder, PositionEncodings
from .estimator import Estimator, EstimatorWeights, Sizes, StepInputs
from .supported import unsupported

# Tokens, prompt included: 128 frames from rung to rung, up to 20 minutes.
TOKENS = ChunkBucketer.regular(step=64, last=32_768)
# Tokens up to which a warm-up captures CUDA graphs: a reference of 10 s and as much speech.
CAPTURED_AHEAD = 512


class FlowWeights(NamedTuple):
    """Everything that the engine keeps of a stock flow."""

    estimator: EstimatorWeights
    encodings: PositionEncodings


class Conditions(NamedTuple):
    """The inputs of encoder and solver, padded to a rung."""

    speech: Tensor  # int64 (batch, rung), tokens
    lengths: Tensor  # int64 (batch,), tokens that count
    frame_lengths: Tensor  # int64 (batch,), frames that count
    speaker: Tensor  # (batch, 80)
    known: Tensor  # (batch, frames, 80), mel frames of the reference; 0 beyond
    noise: Tensor  # (batch, frames, 80)


class FlowEngine:
    """Speech tokens to mel frames, as a stock ``CausalMaskedDiffWithXvec`` computes them.

    Args:
        flow: the stock module.
        synthesis: its family's declaration.
        operators: native or torch.
        runtime: of the component.
    """

    def __init__(self, flow: Any, synthesis: Synthesis, operators: Operators, runtime: ComponentRuntime) -> None:
        self.flow = flow
        self._solver_steps = synthesis.solver_steps
        self._runtime = runtime
        self._captured_for = 0
        self._sizes = Sizes.of(flow)
        self._encoder = Encoder(self._sizes.encoder_eps, runtime)
        self._estimator = Estimator(self._sizes, operators, runtime)
        self._replays = runtime.replays()
        self._moved = same_kind(flow)

        def make() -> FlowWeights:  # read from the flow each time: its parts may be exchanged
            return FlowWeights(
                EstimatorWeights.of(flow.decoder.estimator, operators), PositionEncodings.of(flow.encoder)
            )

        self._packed = PackedWeights(flow, WeightWatch(lambda: [flow]), make, self._unsupported, runtime.fallback)

    @property
    def parts(self) -> list[Region | Replays]:
        """Returns every function that is compiled, and the captured graphs."""
        replays = [self._replays] if self._replays else []
        return [*replays, *self._encoder.regions, *self._estimator.regions]

    def notes(self) -> list[str]:
        """Returns nothing to add to the report."""
        return []

    def release(self) -> None:
        """Keeps the weights: the next call needs them."""

    def unfit(self) -> str | None:
        """Returns why the engine would not compute what the flow computes now, or None."""
        return self._packed.unfit() or self._moved()

    def inference(
        self,
        token: Tensor,
        token_len: Tensor,
        prompt_token: Tensor,
        prompt_token_len: Tensor,
        prompt_feat: Tensor,
        prompt_feat_len: Tensor | None,  # noqa: ARG002 - stock's signature
        embedding: Tensor,
        finalize: bool,
        n_timesteps: int = 10,
        noised_mels: Tensor | None = None,
        meanflow: bool = False,
        *,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Returns mel frames (batch, 80, frames) and None; arguments and the random numbers drawn are stock's.

        Args:
            token: (batch, n) speech tokens.
            token_len: (batch,) how many of them count.
            prompt_token: (1 or batch, m), of the reference.
            prompt_token_len: (1 or batch,).
            prompt_feat: (1 or batch, 2 * m, 80), mel frames of the reference.
            prompt_feat_len: without effect, as in stock.
            embedding: (1 or batch, 192), of the speaker.
            finalize: False leaves the last frames out, for which tokens still have to come.
            n_timesteps: solver steps.
            noised_mels: (batch, 80, frames) in place of the last random numbers.
            meanflow: solve with a mean-flow estimator: no guidance, and every step knows where it ends.
            noise: (batch, 80, frames) in place of random numbers.

        Raises:
            InputError: for no tokens, or tokens that are none.
        """
        # tensors made under inference mode are guarded differently: copies serve both callers
        given = (token, token_len, prompt_token, prompt_token_len, prompt_feat, embedding)
        token, token_len, prompt_token, prompt_token_len, prompt_feat, embedding = (t.clone() for t in given)
        batch = len(token)
        prompt_token = torch.atleast_2d(prompt_token)
        prompt_feat = prompt_feat if prompt_feat.ndim == 3 else prompt_feat[None]
        # as stock: a model in half precision casts the prompt's tokens, and all are rounded with them
        speech = torch.cat([_rows(prompt_token, batch), token], dim=1).long()
        lengths = (prompt_token_len + token_len).long().expand(batch)
        self._check(token, speech)
        if int(lengths.min()) < 0 or int(lengths.max()) > speech.shape[1]:
            raise InputError(f"lengths {lengths.tolist()} do not fit {speech.shape[1]} tokens")
        speaker = F.normalize(torch.atleast_2d(embedding), dim=1)
        speaker = _rows(self.flow.spk_embed_affine_layer(speaker), batch)  # (batch, 80)
        ahead = 0 if finalize else self.flow.pre_lookahead_len
        frames = (speech.shape[1] - ahead) * self.flow.token_mel_ratio
        if prompt_feat.shape[1] >= frames:
            raise InputError(f"the reference's {prompt_feat.shape[1]} mel frames leave none of {frames} to make")
        if noise is None:
            noise = self._drawn(batch, frames)
        if noised_mels is not None:
            noise[..., frames - noised_mels.shape[2] :] = noised_mels
        conditions = self._padded(speech, lengths, speaker, _rows(prompt_feat, batch), noise)
        mel = self._replayed(n_timesteps, meanflow, conditions)[:, prompt_feat.shape[1] : frames]
        # a copy: the next replay overwrites what this one gave
        return mel.transpose(1, 2).clone(memory_format=torch.contiguous_format), None

    def noise(self, count: int, reference: Mapping[str, Any]) -> Tensor:
        """Returns what an utterance of ``count`` tokens draws from the global generators: (1, 80, frames)."""
        return self._drawn(1, (reference["prompt_token"].shape[1] + count) * self.flow.token_mel_ratio)

    def together(self, given: Sequence[tuple[Tensor, Tensor]], reference: Mapping[str, Any]) -> list[Tensor]:
        """Returns mel frames (1, 80, frames) of several utterances, solved at the same time.

        Args:
            given: for each, its tokens (n,) and its :meth:`noise`.
            reference: of all, as stock keeps it.
        """
        lengths = [len(token) for token, _ in given]
        token = pad_sequence([token for token, _ in given], batch_first=True)
        noise = pad_sequence([noise[0].T for _, noise in given], batch_first=True).transpose(1, 2)
        token_len = torch.tensor(lengths, device=token.device)
        cast: dict[str, Any] = {
            name: value.to(noise.dtype) if torch.is_tensor(value) and value.is_floating_point() else value
            for name, value in reference.items()
        }
        mel, _ = self.inference(token, token_len, finalize=True, n_timesteps=self._solver_steps, noise=noise, **cast)
        ratio = self.flow.token_mel_ratio
        return [mel[row : row + 1, :, : length * ratio] for row, length in enumerate(lengths)]

    def warm_up(self) -> None:
        """Compiles everything that later calls may need; draws no random number from the global generators."""
        flow = self.flow
        like = flow.input_embedding.weight
        meanflow = flow.decoder.estimator.meanflow
        steps, counts = 2, [8]
        if self._replays and self._runtime.captures:  # a graph for each rung and number of steps
            steps = self._solver_steps
            counts = [rung - 8 for rung in TOKENS.rungs if rung <= CAPTURED_AHEAD]
        length = torch.tensor([8], device=like.device)
        prompt = torch.zeros(1, 8, dtype=torch.long, device=like.device)
        feat = torch.zeros(1, 16, flow.output_size, device=like.device, dtype=like.dtype)
        embedding = torch.ones(1, flow.spk_embed_affine_layer.in_features, device=like.device, dtype=like.dtype)
        with torch.random.fork_rng(devices=[like.device] if like.device.type == "cuda" else []):
            for count in counts:
                token = torch.zeros(1, count, dtype=torch.long, device=like.device)
                n = torch.full_like(length, count)
                self.inference(token, n, prompt, length, feat, None, embedding, True, steps, meanflow=meanflow)

    def _unsupported(self, flow: Any) -> str | None:
        reason = unsupported(flow)
        return reason or (None if Sizes.of(flow) == self._sizes else "its sizes have changed")

    def _drawn(self, batch: int, frames: int) -> Tensor:
        like = self.flow.spk_embed_affine_layer.weight
        return torch.randn(batch, self.flow.output_size, frames, dtype=like.dtype, device=like.device)  # as stock

    def _check(self, token: Tensor, speech: Tensor) -> None:
        if token.shape[1] == 0:
            raise InputError("there are no speech tokens to make a wave from")
        lowest, highest = speech.aminmax()
        if lowest < 0 or highest >= self.flow.vocab_size:
            wrong = int(lowest if lowest < 0 else highest)
            raise InputError(f"speech token {wrong} is not in the range 0 to {self.flow.vocab_size - 1}")

    def _padded(self, speech: Tensor, lengths: Tensor, speaker: Tensor, prompt: Tensor, noise: Tensor) -> Conditions:
        capacity = TOKENS.capacity(speech.shape[1])
        ratio = self.flow.token_mel_ratio

        def frame_padded(x: Tensor) -> Tensor:
            padded = F.pad(x, (0, 0, 0, capacity * ratio - x.shape[1])).to(speaker)
            return padded.contiguous()  # a length that fills its rung keeps its strides, which would be compiled anew

        return Conditions(
            speech=F.pad(speech, (0, capacity - speech.shape[1])),
            lengths=lengths,
            frame_lengths=(lengths * ratio).clamp(max=noise.shape[2]),
            speaker=speaker,
            known=frame_padded(prompt),
            noise=frame_padded(noise.transpose(1, 2)),
        )

    def _replayed(self, steps: int, meanflow: bool, conditions: Conditions) -> Tensor:
        """Encodes and solves, by a captured graph where there are some; the next call may overwrite the result."""
        weights = self._packed.current()
        if self._replays and self._runtime.captures:
            if self._captured_for != self._packed.generation:
                self._runtime.drop_graphs()
                self._captured_for = self._packed.generation
            key = (self._runtime.name, steps, meanflow, *(tuple(value.shape) for value in conditions))
            try:
                return self._replays(key, functools.partial(self._frames, weights, steps, meanflow), conditions)
            except CompilationError as error:
                self._runtime.fallback.fall("compile", error)
        with timed("flow.encoder"):
            mu = self._encoded(weights, conditions)
        with timed("flow.solver"):
            return self._solved(weights, steps, meanflow, mu, conditions)

    def _frames(self, weights: FlowWeights, steps: int, meanflow: bool, *inputs: Tensor) -> Tensor:
        """Encodes and solves, as captured; ``inputs`` are those of :class:`Conditions`."""
        conditions = Conditions(*inputs)
        return self._solved(weights, steps, meanflow, self._encoded(weights, conditions), conditions)

    def _encoded(self, weights: FlowWeights, conditions: Conditions) -> Tensor:
        """Returns what the solver aims at, (batch, frames, 80); launches only, waits for nothing."""
        flow = self.flow
        embedded = flow.input_embedding(conditions.speech)
        encoded: Tensor = flow.encoder_proj(
            self._encoder(flow.encoder, weights.encodings, embedded, conditions.lengths)
        )
        return encoded

    def _solved(self, weights: FlowWeights, steps: int, meanflow: bool, mu: Tensor, conditions: Conditions) -> Tensor:
        """Runs the solver's loop; launches only, waits for nothing.

        Args:
            weights: of the flow.
            steps: of the solver.
            meanflow: as of :meth:`inference`.
            mu: (batch, frames, 80), from the encoder.
            conditions: of the call.

        Returns:
            (batch, frames, 80).
        """
        speaker, frame_lengths, state = conditions.speaker, conditions.frame_lengths, conditions.noise
        condition = torch.cat([mu, speaker[:, None].expand_as(mu), conditions.known], dim=2)
        if not meanflow:
            condition = torch.cat([condition, torch.zeros_like(condition)])  # for guidance
            frame_lengths = frame_lengths.repeat(2)
        decoder = self.flow.decoder
        times = torch.linspace(0, 1, steps + 1, device=mu.device, dtype=mu.dtype)
        if not meanflow and decoder.t_scheduler == "cosine":
            times = 1 - torch.cos(times * 0.5 * torch.pi)
        guidance = torch.full((), decoder.inference_cfg_rate, device=mu.device, dtype=mu.dtype)
        estimator = weights.estimator
        for shifts, length_of_step in zip(self._shifts(estimator, times), times.diff()):
            step = StepInputs(condition, frame_lengths, length_of_step, guidance)
            state = self._estimator.step(estimator, state, shifts, step)
        return state

    def _shifts(self, weights: EstimatorWeights, times: Tensor) -> Iterator[list[Tensor]]:
        """Yields for each step what its time adds in each stage."""
        estimator = self.flow.decoder.estimator
        start = estimator.time_mlp(estimator.time_embeddings(times[:-1]).to(times.dtype))
        if estimator.meanflow:
            end = estimator.time_mlp(estimator.time_embeddings(times[1:]).to(times.dtype))
            start = estimator.time_embed_mixer(torch.cat([start, end], dim=1))
        by_stage = [to_shift(start) for to_shift in weights.times]  # each (steps, channels)
        return (list(shifts) for shifts in zip(*by_stage))


def _rows(tensor: Tensor, batch: int) -> Tensor:
    """Expands one row to a row for each, where there is one."""
    return tensor.expand(batch, *tensor.shape[1:])
