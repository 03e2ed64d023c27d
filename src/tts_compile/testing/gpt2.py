"""Makes a T3 with a GPT-2 backbone, Turbo's, stop by itself."""

from __future__ import annotations

import math
from typing import Any

import torch

from .weights import END_GAIN, end_threshold, peak, without

_TAG = 8.0  # how far the embeddings of a kind of token are moved along its direction
# Large for random weights, but usual in a trained model: a token then depends on its position and on those before it.
_POSITION_LEVEL = 0.5  # root mean square of position embeddings; of token embeddings it is 1
_SHARPNESS = 2.5  # factor of queries and keys; attention scores deviate by about as much
_FALL = 4.0  # the counting head's weight begins at 1 / (1 + exp(-4))
_MIDDLE = 450  # a position near the start of speech, after a voice prompt and a text of ordinary length


def configuration() -> Any:
    """Returns the settings of T3 that ``ChatterboxTurboTTS.from_local`` makes."""
    from chatterbox.models.t3.modules.t3_config import T3Config

    hp = T3Config(text_tokens_dict_size=50276)
    hp.llama_config_name = "GPT2_medium"
    hp.speech_tokens_dict_size = 6563
    hp.input_pos_emb = None
    hp.speech_cond_prompt_len = 375
    hp.use_perceiver_resampler = False
    hp.emotion_adv = False
    return hp


def shape(t3: Any, speech_tokens: int) -> None:
    """Changes random weights to peaked next-token distributions and an end near ``speech_tokens``.

    GPT-2's positions count from the start of the whole sequence, so a head of layer 0 must count the speech tokens. Its
    scores grow by a constant c from each position to the next, with a bonus b at the start of speech. After n more
    tokens the weight of that start is 1 / (1 + exp(c n - b) / (1 - exp(-c))), whatever came before it: 1 at first, 1/2
    at the wanted length, then 0. This weight lowers the stop token's logit. In another head the share of text among the
    attended positions lowers it too, so that longer texts give longer speech.
    """
    peak(t3)
    t3.speech_head.bias.zero_()
    flat = torch.ones(t3.dim, 1)  # the norms remove this direction
    _, end, start, text, position = torch.linalg.qr(torch.cat([flat, torch.randn(t3.dim, 4)], dim=1)).Q.T
    t3.speech_head.weight[t3.hp.stop_speech_token] = END_GAIN * end

    tokens, words, positions = t3.speech_emb.weight, t3.text_emb.weight, t3.tfmr.wpe.weight
    for embedding in (tokens, words, positions):
        for direction in (end, start, text, position):
            without(embedding, direction)
    words += _TAG * text
    tokens[t3.hp.start_speech_token] += _TAG * start
    for embedding, level in ((tokens, 1.0), (words, 1.0), (positions, _POSITION_LEVEL)):
        # Rows of equal length: the norm would rescale others, which shifts their positions.
        embedding *= level * math.sqrt(t3.dim) / embedding.norm(dim=1, keepdim=True)
    positions += ((torch.arange(len(positions)) - _MIDDLE) / t3.dim)[:, None] * position
    for block in t3.tfmr.h:
        block.attn.c_attn.weight[:, : 2 * t3.dim] *= _SHARPNESS
    threshold = end_threshold(t3, t3.tfmr.ln_f)

    attention = t3.tfmr.h[0].attn
    query, key, value = attention.c_attn.weight.split(t3.dim, dim=1)  # (dim, dim) each, from rows to columns
    level = math.sqrt(1 + _POSITION_LEVEL**2)
    tagged = _TAG / math.sqrt(1 + _TAG**2 / t3.dim) / level  # size of a tag after the norm
    counting, reading = 0, attention.head_dim  # the first feature of each of the two heads
    for head in (counting, reading):
        for matrix in (query, key):
            matrix[:, head : head + attention.head_dim] = 0
        attention.c_attn.bias[head] = math.sqrt(attention.head_dim)  # the query is the same everywhere
    slope = _FALL / speech_tokens
    bonus = _FALL - math.log(1 - math.exp(-slope))
    key[:, counting] = slope * t3.dim * level * position + bonus / tagged * start
    key[:, reading] = 2.0 / tagged * text  # a text token counts as much as seven others
    value[:, counting] = start / tagged
    value[:, reading] = text / tagged
    attention.c_proj.weight[counting] = -3.0 * threshold * end
    attention.c_proj.weight[reading] = -1.2 * threshold * end
    attention.c_proj.bias += 2.9 * threshold * end  # the wanted length is that of a text of some 30 tokens
