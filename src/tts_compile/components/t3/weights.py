"""What a pass of the decoder reads: a stock T3's tensors themselves, or an int8 copy of its matrices."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...execution.native import Int8Matrix, Matrix


class LayerWeights(NamedTuple):
    """The weights of one Llama layer; every matrix is (out, in)."""

    attention_norm: Tensor
    query: Matrix
    key: Matrix
    value: Matrix
    output: Matrix
    mlp_norm: Tensor
    gate: Matrix
    up: Matrix
    down: Matrix


class DecoderWeights(NamedTuple):
    """Everything between a block of embeddings and its logits, and the embeddings of speech tokens."""

    layers: list[LayerWeights]
    final_norm: Tensor
    head: Matrix
    speech_embedding: Tensor
    speech_positions: Tensor
    heads: int
    head_dim: int
    eps: float


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


def int8_copy(weights: DecoderWeights) -> DecoderWeights:
    """The same decoder with every matrix in 8 bits, a quarter of the bytes; norms and embeddings are shared."""

    def quantised(layer: LayerWeights) -> LayerWeights:
        matrices = {name: Int8Matrix.of(w) for name, w in layer._asdict().items() if w.ndim == 2}
        return LayerWeights(**(layer._asdict() | matrices))

    with torch.inference_mode():
        return weights._replace(layers=[quantised(layer) for layer in weights.layers], head=Int8Matrix.of(weights.head))


def rotary_table(t3: Any, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, head_dim) for positions from 0, from the stock module itself."""
    like = t3.tfmr.norm.weight
    cos, sin = t3.tfmr.rotary_emb(like, torch.arange(length, device=like.device)[None])
    return cos[0], sin[0]
