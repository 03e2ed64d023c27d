"""Makes a T3 with a Llama backbone, the English and the multilingual one, stop by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .weights import END_GAIN, end_threshold, peak, without


def configuration(multilingual: bool = False) -> Any:
    """Returns the settings of T3 that the class's own ``from_local`` makes."""
    from chatterbox.models.t3.modules.t3_config import T3Config

    return T3Config.multilingual() if multilingual else T3Config.english_only()


def shape(t3: Any, speech_tokens: int) -> None:
    """Changes random weights to peaked next-token distributions and an end near ``speech_tokens``.

    The stop token's logit grows with the learned speech position (a ramp along one direction that its row of the head
    reads) and becomes the largest near the wanted length. Layer 0 adds the share of text among the attended positions
    to the same direction with the opposite sign, so that longer texts give longer speech.
    """
    peak(t3)
    end, text, *others = torch.linalg.qr(torch.randn(t3.dim, 5 if t3.hp.is_multilingual else 2)).Q.T
    t3.speech_head.weight[t3.hp.stop_speech_token] = END_GAIN * end
    for embedding in (t3.speech_emb.weight, t3.text_emb.weight):
        without(embedding, end)  # the end depends on position and length of the text alone

    threshold = end_threshold(t3, t3.tfmr.norm)
    positions = torch.arange(t3.speech_pos_emb.emb.num_embeddings)
    t3.speech_pos_emb.emb.weight += threshold * (positions / speech_tokens).clamp(max=3.0)[:, None] * end
    t3.text_emb.weight += 8.0 * text  # not to the positions: guidance would reverse the effect
    attention = t3.tfmr.layers[0].self_attn
    attention.v_proj.weight[0] = 0.06 * threshold * text  # about 8 times the share of text, after the norm
    attention.o_proj.weight[:, 0] = -end
    if t3.hp.is_multilingual:
        _align(t3, *others)


def _align(t3: Any, speech: Tensor, start: Tensor, last: Tensor) -> None:
    """Makes the heads that the alignment analyzer reads attend to the end of the text, with small weights.

    The analyzer forbids the stop token until the text token with the most attention, of the first n after n speech
    tokens, is one of the last three; after that it forces the stop token when attention to these adds up to 5. So the
    text's last token gets many times the attention of any other text token, and the start of speech nearly all of it.
    Then the speech has at least as many tokens as the text, and the analyzer never forces the end.
    """
    from chatterbox.models.t3.inference.alignment_stream_analyzer import LLAMA_ALIGNED_HEADS

    t3.speech_emb.weight += 8.0 * speech
    t3.speech_emb.weight[t3.hp.start_speech_token] += 32.0 * start
    t3.text_emb.weight[t3.hp.stop_text_token] += 32.0 * last
    for layer, head in LLAMA_ALIGNED_HEADS:
        attention = t3.tfmr.layers[layer].self_attn
        first, after = head * attention.head_dim, (head + 1) * attention.head_dim
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight[first:after] = 0
        # The last feature of a head: the rotary embedding rotates it by only 0.003 in a thousand positions.
        attention.q_proj.weight[after - 1] = speech
        attention.k_proj.weight[after - 1] = 1.6 * start + 0.7 * last  # scores of about 18 and 8
