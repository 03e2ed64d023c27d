"""From text to text tokens, and checks before any work is done on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError


def check_text(tts: Any, text: object) -> None:
    """Refuse what the model cannot speak. Empty text passes: stock has a sentence of its own for it.

    Raises:
        InputError: for anything but a string of valid Unicode, for white space alone, for text in which every letter
            is unknown to the tokenizer, and for more tokens than the model has positions.
    """
    if not isinstance(text, str):
        raise InputError(f"text must be a string, got {type(text).__name__}")
    if not text:
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"text is no valid Unicode: a lone surrogate at position {error.start}") from None
    if not text.strip():
        raise InputError("text holds nothing but white space")
    from chatterbox.models.tokenizers.tokenizer import SPACE, UNK
    from chatterbox.tts import punc_norm

    tokenizer = tts.tokenizer.tokenizer
    ids = tts.tokenizer.encode(punc_norm(text))
    pieces = [tokenizer.id_to_token(number) for number in ids]
    unknown = pieces.count(UNK)
    speakable = any(any(c.isalnum() for c in piece) for piece in pieces if piece not in (UNK, SPACE))
    if unknown and not speakable:
        raise InputError(f"none of the {unknown} letters of the text is known to the tokenizer: {text[:40]!r}")
    limit = tts.t3.hp.max_text_tokens
    if len(ids) > limit:
        raise InputError(f"text has {len(ids)} tokens, the model has {limit} positions: split it into shorter texts")


def text_tokens(tts: Any, text: str, guided: bool) -> Tensor:
    """Start, text and stop, int64 (2 or 1, n), as stock ``generate`` passes them to T3."""
    from chatterbox.tts import punc_norm

    hp = tts.t3.hp
    tokens: Tensor = tts.tokenizer.text_to_tokens(punc_norm(text)).to(tts.device)
    if guided:
        tokens = torch.cat([tokens, tokens])  # conditional and unconditional row
    return F.pad(F.pad(tokens, (1, 0), value=hp.start_text_token), (0, 1), value=hp.stop_text_token)
