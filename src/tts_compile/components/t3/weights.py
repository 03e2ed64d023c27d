"""What a pass of the decoder reads: a stock T3's own tensors, or an int8 copy of its matrices."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...execution.native import llama_decoder as native
from ...execution.native.llama_decoder import Int8Matrix
from .. import weight_watch as weights


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


class DecoderWeights(NamedTuple):
    """Everything between a block of embeddings and its logits, and the embeddings of speech tokens."""

    layers: list[LayerWeights]
    final_norm: Tensor
    head: Tensor
    speech_embedding: Tensor
    speech_positions: Tensor
    heads: int
    head_dim: int
    eps: float

    def tensors(self) -> list[Tensor]:
        """Every tensor, in a fixed order."""
        parts = [part for layer in self.layers for part in layer]
        return [*parts, self.final_norm, self.head, self.speech_embedding, self.speech_positions]


def stock_weights(t3: Any) -> DecoderWeights:
    """The parameters of a stock ``T3`` where they are: no memory is taken, and a later load is seen."""
    config = t3.cfg
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
        for layer in t3.tfmr.layers
    ]
    return DecoderWeights(
        layers=layers,
        final_norm=t3.tfmr.norm.weight,
        head=t3.speech_head.weight,
        speech_embedding=t3.speech_emb.weight,
        speech_positions=t3.speech_pos_emb.emb.weight,
        heads=config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        eps=config.rms_norm_eps,
    )


def customised(t3: Any) -> str | None:
    """Why reading the weights would not do what the modules do, if so: the engine sees weights, not modules."""
    parts = ("tfmr", "speech_head", "speech_emb", "speech_pos_emb")
    modules = [item for part in parts for item in getattr(t3, part).named_modules(prefix=part)]
    for name, module in modules:
        if name.endswith(("_proj", "speech_head")):
            if type(module) is not torch.nn.Linear:
                return f"{name} is a {type(module).__name__}"
            if module.bias is not None:
                return f"{name} has a bias"
    return weights.autocast(t3.device) or weights.customised(modules, harmless=_made_by_transformers)


def _made_by_transformers(hook: Any) -> bool:
    """Those that collect hidden states for stock's ``output_hidden_states=True``; they change nothing."""
    return str(getattr(hook, "__module__", "")).startswith("transformers.")


def native_weights(stock: DecoderWeights) -> native.Weights:
    """The same tensors for the native decoder."""
    return native.Weights(stock.layers, stock.final_norm, stock.head)


def int8_copy(stock: DecoderWeights) -> native.Weights:
    """The same decoder with every matrix in 8 bits, a quarter of the bytes; norms are shared."""
    layers = [[Int8Matrix.of(part) if part.ndim == 2 else part for part in layer] for layer in stock.layers]
    return native.Weights(layers, stock.final_norm, Int8Matrix.of(stock.head))


def int8_bytes(t3: Any) -> int:
    """What :func:`int8_copy` takes, up to its scales."""
    return sum(weight.numel() for weight in stock_weights(t3).tensors()[:-2] if weight.ndim == 2)


def rotary_table(t3: Any, length: int) -> Tensor:
    """Cosines and sines (2, length, head_dim) for positions from 0, from the stock module itself."""
    like = t3.tfmr.norm.weight
    cos, sin = t3.tfmr.rotary_emb(like, torch.arange(length, device=like.device)[None])
    return torch.cat([cos, sin])
