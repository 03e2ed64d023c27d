"""The Llama of T3: layers, head and embeddings as plain functions of the stock model's tensors.

A block may be a whole prompt, a single token or a few; an utterance with classifier-free guidance has two sequences.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..execution.native import llama_decoder
from ..execution.native.llama_decoder import Int8Matrix
from .backbone import CacheShape, NativeInputs, Weights, Where

# The classes that the functions below were written for, with their top-level packages in front.
_CLASSES = {
    *("torch.Linear", "torch.Embedding", "torch.ModuleList", "torch.SiLU", "transformers.SiLUActivation"),
    *(f"transformers.Llama{name}" for name in ("Model", "DecoderLayer", "Attention", "MLP", "RMSNorm")),
    *("transformers.LlamaRotaryEmbedding", "chatterbox.LearnedPositionEmbeddings"),
}


class LayerWeights(NamedTuple):
    """The weights of one Llama layer; every matrix is (out, in)."""

    attention_norm: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    mlp_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


class LastWeights(NamedTuple):
    """The final norm and the projection to logits, (vocabulary, width)."""

    norm: Tensor
    head: Tensor


class LlamaDecoder:
    """The native decoder of a T3 with a Llama backbone."""

    max_rows = llama_decoder.MAX_ROWS

    def applies(self, model: Any) -> bool:
        """Returns whether the weights are fp32 on a CPU, with heads of the size that the C++ is written for."""
        weight, head_dim = model.speech_head.weight, model.cfg.hidden_size // model.cfg.num_attention_heads
        here = weight.device.type == "cpu" and weight.dtype == torch.float32
        return bool(here and head_dim == llama_decoder.HEAD_DIM)

    load = staticmethod(llama_decoder.load)

    def weights(self, weights: Weights) -> llama_decoder.Weights:
        """Returns the same tensors in the decoder's order."""
        return llama_decoder.Weights(weights.layers, *weights.last)

    def int8_copy(self, weights: Weights) -> llama_decoder.Weights:
        """Returns a copy with every matrix in 8 bits, a quarter of the bytes; norms are shared."""
        layers = [[Int8Matrix.of(part) if part.ndim == 2 else part for part in layer] for layer in weights.layers]
        return llama_decoder.Weights(layers, weights.last.norm, Int8Matrix.of(weights.last.head))

    def int8_bytes(self, weights: Weights) -> int:
        """Returns the size of the int8 copy, up to its scales."""
        matrices = [*(part for layer in weights.layers for part in layer), weights.last.head]
        return sum(matrix.numel() for matrix in matrices if matrix.ndim == 2)

    def constants(self, weights: Weights, native: llama_decoder.Weights) -> tuple[int, int, float]:
        """Returns the MLP's width, the vocabulary and the norms' epsilon, which are compiled into the step."""
        return native.inner, native.vocabulary, weights.constants

    def step(self, constants: tuple[int, int, float], inputs: NativeInputs, rows: int) -> Tensor:
        """Embeds tokens and feeds them through the native decoder: logits (utterances * rows, count, vocabulary)."""
        embedding, speech_positions = inputs.embeddings
        x = embedded(embedding, speech_positions, inputs.tokens, inputs.spoken, rows)
        assert inputs.tables is not None  # a Llama has some
        cos, sin = inputs.tables[:, inputs.positions]
        inner, vocabulary, eps = constants
        logits: Tensor = torch.ops.tts_compile.llama_decoder(
            x,
            cos,
            sin,
            inputs.positions,
            inputs.keys,
            inputs.values,
            addresses=inputs.addresses,
            inner=inner,
            vocabulary=vocabulary,
            eps=eps,
        )
        return logits


class Llama:
    """The step of a T3 with a Llama backbone."""

    native = LlamaDecoder()

    def weights(self, model: Any) -> Weights:
        """Returns the parameters of a stock ``T3`` where they are: no memory is taken."""
        config = model.cfg
        layers = [
            LayerWeights(
                attention_norm=layer.input_layernorm.weight,
                query=layer.self_attn.q_proj.weight,
                key=layer.self_attn.k_proj.weight,
                value=layer.self_attn.v_proj.weight,
                output=layer.self_attn.o_proj.weight,
                mlp_norm=layer.post_attention_layernorm.weight,
                gate=layer.mlp.gate_proj.weight,
                up=layer.mlp.up_proj.weight,
                down=layer.mlp.down_proj.weight,
            )
            for layer in model.tfmr.layers
        ]
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        last = LastWeights(model.tfmr.norm.weight, model.speech_head.weight)
        embeddings = model.speech_emb.weight, model.speech_pos_emb.emb.weight
        return Weights(
            layers=layers,
            by_layer=True,
            last=last,
            embeddings=embeddings,
            constants=config.rms_norm_eps,
            cache=CacheShape(len(layers), config.num_attention_heads, head_dim),
            like=last.head,
            tensors=[*(part for layer in layers for part in layer), *last, *embeddings],
            speech_positions=len(embeddings[1]),
        )

    def modules(self, model: Any) -> list[torch.nn.Module]:
        """Returns backbone, head and embeddings."""
        return [model.tfmr, model.speech_head, model.speech_emb, model.speech_pos_emb]

    def unsupported(self, model: Any) -> str | None:
        """Returns which module computes something else than the functions here, or None."""
        for part in ("tfmr", "speech_head", "speech_emb", "speech_pos_emb"):
            for name, module in getattr(model, part).named_modules(prefix=part):
                kind = f"{type(module).__module__.partition('.')[0]}.{type(module).__qualname__}"
                if kind not in _CLASSES:
                    return f"{name} is a {type(module).__name__}"
                if isinstance(module, torch.nn.Linear) and module.bias is not None:
                    return f"{name} has a bias"
                if getattr(module, "variance_epsilon", model.cfg.rms_norm_eps) != model.cfg.rms_norm_eps:
                    return f"{name} has an epsilon of its own"
        return None

    def embed(self, weights: Weights, tokens: Tensor, spoken: Tensor, positions: Tensor, rows: int) -> Tensor:  # noqa: ARG002 - rotary positions enter in the layers
        """Embeds speech tokens (utterances, count) at learned speech positions; (utterances * rows, count, width)."""
        embedding, speech_positions = weights.embeddings
        return embedded(embedding, speech_positions, tokens, spoken, rows)

    def tables(self, model: Any, length: int) -> Tensor:
        """Returns cosines and sines (2, length, head_dim) for positions from 0, from the stock module itself."""
        like = model.tfmr.norm.weight
        cos, sin = model.tfmr.rotary_emb(like, torch.arange(length, device=like.device)[None])
        return torch.cat([cos, sin])

    def layer(
        self, constants: float, x: Tensor, where: Where, keys: Tensor, values: Tensor, weights: LayerWeights
    ) -> Tensor:
        """Computes attention over the cache, then the gated MLP.

        Args:
            constants: epsilon of the norms.
            x: (sequences, count, width).
            where: with cosines and sines.
            keys, values: (at least sequences, heads, capacity, head_dim), written at the positions.
            weights: of the layer.

        Returns:
            (sequences, count, width).
        """
        (cos, sin), positions, mask = where
        sequences, count, width = x.shape
        attended = mask.shape[3]
        heads, head_dim = keys.shape[1], keys.shape[3]

        h = rms_norm(x, weights.attention_norm, constants)
        query, key, value = (
            F.linear(h, matrix).view(sequences, count, heads, head_dim).transpose(1, 2)
            for matrix in (weights.query, weights.key, weights.value)
        )
        own = torch.arange(sequences, device=x.device)[:, None, None]
        entries = own, torch.arange(heads, device=x.device)[:, None], positions[:, None]
        keys.index_put_(entries, rotate(key, cos, sin))
        values.index_put_(entries, value)
        mixed = F.scaled_dot_product_attention(
            rotate(query, cos, sin),
            keys[:sequences, :, :attended],
            values[:sequences, :, :attended],
            attn_mask=mask,
        )
        x = x + F.linear(mixed.transpose(1, 2).reshape(sequences, count, width), weights.output)

        h = rms_norm(x, weights.mlp_norm, constants)
        gated = F.silu(F.linear(h, weights.gate)) * F.linear(h, weights.up)
        return x + F.linear(gated, weights.down)

    def head(self, constants: float, x: Tensor, weights: LastWeights) -> Tensor:
        """Applies the final norm and the projection: (sequences, count, width) to (sequences, count, vocabulary)."""
        return F.linear(rms_norm(x, weights.norm, constants), weights.head)


def embedded(embedding: Tensor, positions: Tensor, tokens: Tensor, spoken: Tensor, rows: int) -> Tensor:
    """Adds learned speech positions to embedded speech tokens, and repeats each utterance for its sequences.

    Args:
        embedding: (vocabulary, width).
        positions: (speech positions, width).
        tokens: int64 (utterances, count).
        spoken: int64 (utterances,), the first token's speech position.
        rows: sequences of an utterance.

    Returns:
        (utterances * rows, count, width).
    """
    limit = len(positions) - 1  # only drafts beyond the last token can lie above it
    at = (spoken[:, None] + torch.arange(tokens.shape[1], device=tokens.device)).clamp(max=limit)
    return (embedding[tokens] + positions[at]).repeat_interleave(rows, 0)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalises over the last dimension by the root mean square, in fp32 as ``LlamaRMSNorm`` does it."""
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return weight * h.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies the rotary position embedding to (..., count, head_dim), halves layout, as transformers' Llama has it."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


LLAMA = Llama()
