"""Changes to random weights that all variants have in common."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

LOGIT_SCALE = 6.5  # standard deviation of a logit
TOP_LOGIT = 3.8 * LOGIT_SCALE  # expected largest of 6561 normal deviates
END_GAIN = 4.0  # length of the stop token's row in the head


def peak(t3: Any) -> None:
    """Makes T3's next-token distributions peaked, with special tokens far from the top."""
    head = t3.speech_head.weight
    head.normal_(std=LOGIT_SCALE / math.sqrt(t3.dim))
    head[t3.hp.start_speech_token :] = 0


def end_threshold(t3: Any, final_norm: Any) -> float:
    """Returns the component along the stop token's direction before ``final_norm`` at which that token gets the top."""
    return TOP_LOGIT / END_GAIN * _residual_level(t3, final_norm)


def shape_pitch(predictor: Any) -> None:
    """Makes the pitch 50 to 250 Hz: random weights give 0.1 Hz, and a pitch below 10 Hz counts as unvoiced."""
    predictor.classifier.weight *= 800
    predictor.classifier.bias.fill_(150)


def without(embedding: Tensor, direction: Tensor) -> None:
    """Removes a direction of length 1 from every row, in place."""
    embedding -= (embedding @ direction)[:, None] * direction


def without_shared_storage(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors that share memory, which safetensors refuses; none of chatterbox's must stay shared."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in state.items():
        storage = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if storage in seen else tensor.contiguous()
        seen.add(storage)
    return apart


def conditionals(seconds: int, speech_prompt: int) -> dict[str, Any]:
    """Returns a built-in voice of random but plausible values, in the format of ``Conditionals.save``.

    Args:
        seconds: length of the recording in the flow's prompt.
        speech_prompt: number of speech tokens in T3's prompt.
    """
    tokens, frames = 25 * seconds, 50 * seconds
    return {
        "t3": {
            "speaker_emb": torch.nn.functional.normalize(torch.rand(1, 256), dim=1),
            "clap_emb": None,
            "cond_prompt_speech_tokens": torch.randint(0, 6561, (1, speech_prompt)),
            "cond_prompt_speech_emb": None,
            "emotion_adv": 0.5 * torch.ones(1, 1, 1),
        },
        "gen": {
            "prompt_token": torch.randint(0, 6561, (1, tokens)),
            "prompt_token_len": torch.tensor([tokens]),
            "prompt_feat": torch.randn(1, frames, 80) - 4,
            "prompt_feat_len": None,
            "embedding": torch.randn(1, 192),
        },
    }


def _residual_level(t3: Any, final_norm: Any) -> float:
    """Returns the root mean square of the input of the final norm, for inputs like speech embeddings."""
    seen: list[Tensor] = []
    with final_norm.register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        t3.tfmr(inputs_embeds=torch.randn(1, 64, t3.dim))
    return float(seen[0].pow(2).mean().sqrt())
