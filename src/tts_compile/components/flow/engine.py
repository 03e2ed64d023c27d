"""The flow as a component, and the library's own ``flow.inference``: encoder, noise, and the solver."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ...bucketing import ChunkBucketer
from ...errors import CompilationError, InputError, UnsupportedModelError
from ...execution import Region
from ...execution.cuda_graph import Replays
from ...execution.operators import NativeOperators, Operators
from ...fallback import reason
from ...families.family import Family, Synthesis
from ...timing.blocks import timed
from ...utils.random_state import generators_kept
from ..compiled_component import CompiledComponent, Engine
from ..runtime import ComponentRuntime, Runtime
from ..weight_watch import WeightWatch, classes, unknown_part
from .encoder import Encoder, PositionEncodings, unsupported_encoder
from .estimator import Conditions, Estimator, EstimatorWeights, Sizes, unsupported_estimator

# Tokens, prompt included: 128 frames from rung to rung, up to 20 minutes.
TOKENS = ChunkBucketer.regular(step=64, last=32_768)
# Tokens up to which a warm-up captures CUDA graphs: a reference of 10 s and as much speech.
CAPTURED_AHEAD = 512
# The classes whose weights the engine reads, to compute what they compute.
_CLASSES = classes(
    chatterbox=(
        "BasicTransformerBlock CausalBlock1D CausalConditionalCFM CausalConv1d CausalMaskedDiffWithXvec "
        "CausalResnetBlock1D ConditionalDecoder ConformerEncoderLayer EspnetRelPositionalEncoding "
        "FeedForward LinearNoSubsampling PositionwiseFeedForward PreLookaheadLayer "
        "RelPositionMultiHeadedAttention SinusoidalPosEmb TimestepEmbedding Transpose Upsample1D "
        "UpsampleConformerEncoder"
    ),
    diffusers="Attention GELU LoRACompatibleLinear",
    torch="Conv1d Dropout Embedding LayerNorm Linear Mish ModuleList Sequential SiLU",
)


class FlowComponent(CompiledComponent):
    """A component that replaces ``s3gen.flow.inference``.

    Raises:
        UnsupportedModelError: for a flow of another make than the released ones.
        OutOfMemoryError: when copies of its weights would exceed the limit.
    """

    engine: FlowEngine

    def __init__(self, s3gen: Any, family: Family, runtime: Runtime) -> None:
        flow = s3gen.flow
        if why := unsupported(flow):
            raise UnsupportedModelError(why)
        runtime.memory.check(sum(parameter.nbytes for parameter in flow.decoder.estimator.parameters()))  # the copies
        super().__init__("flow", runtime, flow, "inference", family.package)
        operators = self.runtime.operators(flow.parameters(), _native_fits(flow))
        self.engine = FlowEngine(flow, family.synthesis, operators, self.runtime)

    def noise(self, token: Tensor, reference: Mapping[str, Any]) -> Tensor:
        """Draws an utterance's random numbers; see :meth:`FlowEngine.noise`."""
        return self.engine.noise(len(token), reference)

    def together(self, given: Sequence[tuple[Tensor, Tensor]], reference: Mapping[str, Any]) -> list[Tensor]:
        """Solves several utterances; see :meth:`FlowEngine.together`. :meth:`left_to_stock` comes first."""
        with self.runtime.lock(), self.runtime.entered(), timed("flow", self.runtime.timings):
            return self.engine.together(given, reference)

    def ran_out_of_memory(self, error: Exception, group: int) -> None:
        """Records that a group has to be split."""
        self.fallback.record("memory", reason(error), f"{group // 2} at a time instead of {group}")


class FlowWeights(NamedTuple):
    """Everything that the engine keeps of a stock flow."""

    estimator: EstimatorWeights
    encodings: PositionEncodings


class FlowEngine(Engine[FlowWeights]):
    """Speech tokens to mel frames, as a stock ``CausalMaskedDiffWithXvec`` computes them.

    Args:
        flow: the stock module.
        synthesis: its family's declaration.
        operators: native or torch.
        runtime: of the component.
    """

    def __init__(self, flow: Any, synthesis: Synthesis, operators: Operators, runtime: ComponentRuntime) -> None:
        self.flow = flow
        self._operators = operators
        self._solver_steps = synthesis.solver_steps
        self._sizes = Sizes.of(flow)
        super().__init__(flow, WeightWatch(lambda: [flow]), runtime)
        self._encoder = Encoder(self._sizes.encoder_eps, runtime)
        self._estimator = Estimator(self._sizes, operators, runtime)
        self._replays = runtime.replays()

    @property
    def parts(self) -> list[Region | Replays]:
        """Returns every function that is compiled, and the captured graphs."""
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
        with generators_kept(like.device):
            for count in counts:
                token = torch.zeros(1, count, dtype=torch.long, device=like.device)
                n = torch.full_like(length, count)
                self.inference(token, n, prompt, length, feat, None, embedding, True, steps, meanflow=meanflow)

    def _make(self) -> FlowWeights:
        self._runtime.drop_graphs()  # which read the copies before these
        estimator = EstimatorWeights.of(self.flow.decoder.estimator, self._operators)
        return FlowWeights(estimator, PositionEncodings.of(self.flow.encoder))

    def _unsupported(self) -> str | None:
        if why := unsupported(self.flow):
            return why
        return self._moved() if Sizes.of(self.flow) == self._sizes else "its sizes have changed"

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
        weights = self.weights()
        if self._replays and self._runtime.captures:
            key = (self._runtime.name, steps, meanflow, *(tuple(value.shape) for value in conditions))
            try:
                return self._replays(key, functools.partial(self._frames, weights, steps, meanflow), conditions)
            except CompilationError as error:
                self._runtime.fallback.fall("compile", error)
        with timed("flow.encoder"):
            mu = self._encoded(weights, conditions)
        with timed("flow.solver"):
            return self._estimator.solve(weights.estimator, self.flow.decoder, mu, conditions, steps, meanflow)

    def _frames(self, weights: FlowWeights, steps: int, meanflow: bool, *inputs: Tensor) -> Tensor:
        """Encodes and solves, as captured; ``inputs`` are those of :class:`Conditions`."""
        conditions = Conditions(*inputs)
        mu = self._encoded(weights, conditions)
        return self._estimator.solve(weights.estimator, self.flow.decoder, mu, conditions, steps, meanflow)

    def _encoded(self, weights: FlowWeights, conditions: Conditions) -> Tensor:
        """Returns what the solver aims at, (batch, frames, 80); launches only, waits for nothing."""
        flow = self.flow
        embedded = flow.input_embedding(conditions.speech)
        encoded: Tensor = flow.encoder_proj(
            self._encoder(flow.encoder, weights.encodings, embedded, conditions.lengths)
        )
        return encoded


def _rows(tensor: Tensor, batch: int) -> Tensor:
    """Expands one row to a row for each, where there is one."""
    return tensor.expand(batch, *tensor.shape[1:])


def unsupported(flow: Any) -> str | None:
    """Returns why the engine would not compute what this flow computes, or None."""
    why = unknown_part(flow, _CLASSES) or unsupported_encoder(flow.encoder)
    return why or unsupported_estimator(flow.decoder.estimator)


def _native_fits(flow: Any) -> bool:
    attention, mlp = (part := flow.decoder.estimator.mid_blocks[0][1][0]).attn1, part.ff.net[0]
    heads, width = attention.heads, attention.to_q.in_features
    return NativeOperators.fits(width, heads, attention.to_q.out_features // heads, mlp.proj.out_features)
