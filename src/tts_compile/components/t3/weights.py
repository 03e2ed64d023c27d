"""What the decode step needs of a stock T3: references to its tensors, never copies."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


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


class T3Weights:
    """Layers, norms, head and embeddings of a stock ``T3`` on a Llama backbone, with its sizes.

    The tensors are the model's own parameters: no memory is taken, and a later ``load_state_dict`` is seen.
    """

    def __init__(self, t3: Any) -> None:
        config = t3.cfg
        self.heads: int = config.num_attention_heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.eps: float = config.rms_norm_eps
        self.layers = [
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
        self.final_norm: Tensor = t3.tfmr.norm.weight
        self.head: Tensor = t3.speech_head.weight
        self.speech_embedding: Tensor = t3.speech_emb.weight
        self.speech_positions: Tensor = t3.speech_pos_emb.emb.weight
        self._rotary = t3.tfmr.rotary_emb

    def rotary_table(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (length, head_dim) for positions from 0, from the stock module itself."""
        like = self.final_norm
        cos, sin = self._rotary(like, torch.arange(length, device=like.device)[None])
        return cos[0], sin[0]
