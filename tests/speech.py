"""Functions that make a model speak, and compare waves, tokens and random generators."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

SHORT = "Hello there my good!"
TEXTS = {
    1: "A",
    20: SHORT,
    120: ("The quick brown fox jumps over the lazy dog. " * 3)[:120],
    300: ("Seven wizards jog, and quickly vex 5 bold old gnomes! " * 6)[:300],
}


class Speech(NamedTuple):
    """Speech tokens, and the state of the generator after them."""

    tokens: tuple[int, ...]
    state: bytes


def text_tokens(tts: Any, text: str, rows: int = 2) -> Tensor:
    """Returns start, text and stop tokens as stock ``generate`` makes them, (rows, n)."""
    from chatterbox.tts import punc_norm

    ids = tts.tokenizer.text_to_tokens(punc_norm(text)).repeat(rows, 1)
    hp = tts.t3.hp
    return torch.nn.functional.pad(
        torch.nn.functional.pad(ids, (1, 0), value=hp.start_text_token), (0, 1), value=hp.stop_text_token
    )


def speak(
    tts: Any, text: str, seed: int = 0, rows: int = 2, inference: Callable[..., Tensor] | None = None, **settings: Any
) -> Speech:
    """Returns the speech tokens of ``tts.t3.inference``, or of the given function, for a seed."""
    inference = inference or tts.t3.inference
    settings = {"max_new_tokens": 1000, "top_p": 1.0, **settings}
    torch.manual_seed(seed)
    spoken = inference(t3_cond=tts.conds.t3, text_tokens=text_tokens(tts, text, rows), **settings)
    assert spoken.dtype == torch.long
    assert spoken.shape[0] == 1
    return Speech(tuple(spoken[0].tolist()), torch.get_rng_state().numpy().tobytes())


def speak_stock(tts: Any, text: str, seed: int = 0, **settings: Any) -> Speech:
    """Returns the speech tokens of the class's own method, whatever is attached to the instance."""
    t3 = tts.t3
    return speak(tts, text, seed, inference=lambda **kwargs: type(t3).inference(t3, **kwargs), **settings)


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def random_states() -> tuple[Any, ...]:
    """Returns the states of torch's, numpy's and Python's global generators, comparable with ``==``."""
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), (kind, keys.tobytes(), *rest), random.getstate()


def signal_to_error_db(reference: Tensor, other: Tensor) -> float:
    if reference.shape != other.shape:
        return -math.inf
    error = (reference - other).double().pow(2).sum()
    return math.inf if error == 0 else float(10 * torch.log10(reference.double().pow(2).sum() / error))
