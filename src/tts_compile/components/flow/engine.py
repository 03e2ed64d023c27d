"""The library's own ``flow.inference``: encoder, noise, and the solver's loop."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ...bucketing import ChunkBucketer
from ...cache import using_cache
from ...errors import CompilationError, InputError
from ...execution import Region
from ...execution.cuda_graph import GraphCache, Replays
from ...execution.operators import Operators
from ...fallback import FallbackManager
from ...timing.blocks import timed
from ..weight_watch import Copies
from .encoder import Encoder
from .estimator import Estimator, EstimatorWeights, Sizes
from .supported import another_make

# Tokens, prompt included: 128 frames from rung to rung, up to 20 minutes.
TOKENS = ChunkBucketer.regular(step=64, last=32_768)
# Tokens up to which a warm-up records CUDA graphs: a reference of 10 s and as much speech.
RECORDED_AHEAD = 512


class FlowEngine:
    """Speech tokens to mel frames, as a stock ``CausalMaskedDiffWithXvec`` gives them.

    Args:
        flow: the stock module.
        fallback: decides between compiled and eager.
        operators: native or torch.
        graphs: for CUDA graphs; None where there are none.
        cache_dir: folder for compiled code, as of :class:`CompileConfig`.
        compile_options: of :class:`tts_compile.execution.Region`.
    """

    def __init__(
        self,
        flow: Any,
        fallback: FallbackManager,
        operators: Operators,
        graphs: GraphCache | None = None,
        cache_dir: str | None = None,
        **compile_options: Any,
    ) -> None:
        self.flow = flow
        self._cache_dir = cache_dir
        self._fallback = fallback
        for embed in (
            flow.encoder.embed,
            flow.encoder.up_embed,
        ):  # a table that stock moves to the device when first used
            embed.pos_enc.extend_pe(flow.encoder.after_norm.weight[None])
        self._recorded_for = 0
        device = flow.input_embedding.weight.device
        self._sizes = Sizes.of(flow)
        self._encoder = Encoder(self._sizes.encoder_eps, fallback, device, **compile_options)
        self._estimator = Estimator(self._sizes, operators, fallback, device, **compile_options)
        self._replays = Replays(graphs, device) if graphs is not None else None
        # read off the flow each time: its parts may be exchanged
        self.copies = Copies(flow, lambda: EstimatorWeights.of(flow.decoder.estimator, operators), self._changed)

    @property
    def parts(self) -> list[Region | Replays]:
        """Every function that is compiled, and what is recorded."""
        replays = [self._replays] if self._replays else []
        return [*replays, *self._encoder.regions, *self._estimator.regions]

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
        """Mel frames (batch, 80, frames) and None; arguments and the random numbers drawn are stock's.

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
        with torch.inference_mode(mode=False), torch.no_grad(), using_cache(self._cache_dir):
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
            with self._replays.recordings.turn() if self._replays else contextlib.nullcontext():
                if noise is None:
                    noise = self._drawn(batch, frames)
                padded = self._padded(speech, lengths, frames, speaker, _rows(prompt_feat, batch), noise, noised_mels)
                mel = self._replayed(n_timesteps, meanflow, padded)[:, prompt_feat.shape[1] : frames]
                # a copy, and within the turn: the next replay overwrites what this one gave
                return mel.transpose(1, 2).clone(memory_format=torch.contiguous_format), None

    def noise(self, count: int, reference: Mapping[str, Any]) -> Tensor:
        """What an utterance of ``count`` tokens draws from the global generators: (1, 80, frames)."""
        return self._drawn(1, (reference["prompt_token"].shape[1] + count) * self.flow.token_mel_ratio)

    def together(self, given: Sequence[tuple[Tensor, Tensor]], reference: Mapping[str, Any]) -> list[Tensor]:
        """Mel frames (1, 80, frames) of several utterances, solved at the same time with stock's ten steps.

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
        mel, _ = self.inference(token, token_len, finalize=True, noise=noise, **cast)
        ratio = self.flow.token_mel_ratio
        return [mel[row : row + 1, :, : length * ratio] for row, length in enumerate(lengths)]

    def warm_up(self) -> None:
        """Compile everything that later calls may need; draws no random number from the global generators."""
        flow = self.flow
        like = flow.input_embedding.weight
        meanflow = flow.decoder.estimator.meanflow
        steps, counts = 2, [8]
        if self._replays and self._fallback.level == "cuda_graph":  # a graph for each rung and number of steps
            steps = 2 if meanflow else 10  # stock's defaults
            counts = [rung - 8 for rung in TOKENS.rungs if rung <= RECORDED_AHEAD]
        length = torch.tensor([8], device=like.device)
        prompt = torch.zeros(1, 8, dtype=torch.long, device=like.device)
        feat = torch.zeros(1, 16, flow.output_size, device=like.device, dtype=like.dtype)
        embedding = torch.ones(1, flow.spk_embed_affine_layer.in_features, device=like.device, dtype=like.dtype)
        with torch.random.fork_rng(devices=[like.device] if like.device.type == "cuda" else []):
            for count in counts:
                token = torch.zeros(1, count, dtype=torch.long, device=like.device)
                n = torch.full_like(length, count)
                self.inference(token, n, prompt, length, feat, None, embedding, True, steps, meanflow=meanflow)

    def _changed(self, flow: Any) -> str | None:
        reason = another_make(flow)
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

    def _padded(
        self,
        speech: Tensor,
        lengths: Tensor,
        frames: int,
        speaker: Tensor,
        prompt: Tensor,
        noise: Tensor,
        noised: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """What :meth:`_frames` takes: padded to a rung."""
        capacity = TOKENS.capacity(speech.shape[1])
        ratio = self.flow.token_mel_ratio
        if noised is not None:
            noise[..., frames - noised.shape[2] :] = noised

        def frame_padded(x: Tensor) -> Tensor:
            return F.pad(x, (0, 0, 0, capacity * ratio - x.shape[1])).to(speaker)

        speech = F.pad(speech, (0, capacity - speech.shape[1]))
        known, state = frame_padded(prompt), frame_padded(noise.transpose(1, 2))
        return speech, lengths, (lengths * ratio).clamp(max=frames), speaker, known, state

    def _replayed(self, steps: int, meanflow: bool, given: tuple[Tensor, ...]) -> Tensor:
        """:meth:`_frames`, by a CUDA graph where there are some; the next call may overwrite the result."""
        weights = self.copies.current()
        if self._replays and self._fallback.level == "cuda_graph":
            if self._recorded_for != self.copies.generation:
                self._replays.recordings.drop(lambda key: key[0] == "flow")
                self._recorded_for = self.copies.generation
            key = ("flow", steps, meanflow, *(tuple(value.shape) for value in given))
            try:
                return self._replays(key, functools.partial(self._frames, weights, steps, meanflow), given)
            except CompilationError as error:
                self._fallback.fall("compile", error)
        speech, lengths, *others = given
        with timed("flow.encoder"):
            mu = self._encoded(speech, lengths)
        with timed("flow.solver"):
            return self._solved(weights, steps, meanflow, mu, *others)

    def _frames(
        self,
        weights: EstimatorWeights,
        steps: int,
        meanflow: bool,
        speech: Tensor,
        lengths: Tensor,
        frame_lengths: Tensor,
        speaker: Tensor,
        known: Tensor,
        state: Tensor,
    ) -> Tensor:
        """Encoder and solver, as they are recorded; takes what :meth:`_encoded` and :meth:`_solved` take."""
        mu = self._encoded(speech, lengths)
        return self._solved(weights, steps, meanflow, mu, frame_lengths, speaker, known, state)

    def _encoded(self, speech: Tensor, lengths: Tensor) -> Tensor:
        """What the solver is to come to, (batch, frames, 80); launches only, waits for nothing.

        Args:
            speech: (batch, rung), tokens.
            lengths: (batch,), tokens that count.
        """
        encoded: Tensor = self.flow.encoder_proj(
            self._encoder(self.flow.encoder, self.flow.input_embedding(speech), lengths)
        )
        return encoded

    def _solved(
        self,
        weights: EstimatorWeights,
        steps: int,
        meanflow: bool,
        mu: Tensor,
        frame_lengths: Tensor,
        speaker: Tensor,
        known: Tensor,
        state: Tensor,
    ) -> Tensor:
        """The solver's loop; launches only, waits for nothing.

        Args:
            weights: of the estimator.
            steps: of the solver.
            meanflow: as :meth:`inference`.
            mu: (batch, frames, 80), from the encoder.
            frame_lengths: (batch,), frames that count.
            speaker: (batch, 80).
            known: (batch, frames, 80), of the reference; 0 beyond.
            state: (batch, frames, 80), noise.

        Returns:
            (batch, frames, 80).
        """
        condition = torch.cat([mu, speaker[:, None].expand_as(mu), known], dim=2)
        if not meanflow:
            condition = torch.cat([condition, torch.zeros_like(condition)])  # for guidance
            frame_lengths = frame_lengths.repeat(2)
        decoder = self.flow.decoder
        times = torch.linspace(0, 1, steps + 1, device=mu.device, dtype=mu.dtype)
        if not meanflow and decoder.t_scheduler == "cosine":
            times = 1 - torch.cos(times * 0.5 * torch.pi)
        guidance = torch.full((), decoder.inference_cfg_rate, device=mu.device, dtype=mu.dtype)
        for shifts, length_of_step in zip(self._shifts(weights, times), times.diff()):
            state = self._estimator.step(weights, state, condition, shifts, frame_lengths, length_of_step, guidance)
        return state

    def _shifts(self, weights: EstimatorWeights, times: Tensor) -> Iterator[list[Tensor]]:
        """For each step, what its time adds in each stage."""
        estimator = self.flow.decoder.estimator
        start = estimator.time_mlp(estimator.time_embeddings(times[:-1]).to(times.dtype))
        if estimator.meanflow:
            end = estimator.time_mlp(estimator.time_embeddings(times[1:]).to(times.dtype))
            start = estimator.time_embed_mixer(torch.cat([start, end], dim=1))
        by_stage = [to_shift(start) for to_shift in weights.times]  # each (steps, channels)
        return (list(shifts) for shifts in zip(*by_stage))


def _rows(tensor: Tensor, batch: int) -> Tensor:
    """One row for all, or a row for each."""
    return tensor.expand(batch, *tensor.shape[1:])
