"""Choice of the next token from logits, with the semantics of stock's logits processors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...families.sampling import SamplingSettings


def guide(logits: Tensor, cfg_weight: Tensor, guided: bool) -> Tensor:
    """Combine rows by classifier-free guidance: (2 * n, ..., vocabulary) become n rows; unguided rows stay.

    Conditional and unconditional rows alternate. ``cfg_weight`` is 0-dimensional, of the logits' dtype: a number would
    be part of a compiled graph.
    """
    if not guided:
        return logits
    conditional, unconditional = logits[0::2], logits[1::2]
    return conditional + cfg_weight * (conditional - unconditional)


def probabilities(
    logits: Tensor, seen: Tensor, settings: SamplingSettings, numbers: Sequence[float | Tensor] | None = None
) -> Tensor:
    """Return next-token probabilities after all processors that can change them, in stock's order.

    Args:
        logits: (utterances, vocabulary).
        seen: int64 (utterances, n), the tokens that the repetition penalty applies to.
        settings: the processors and their values.
        numbers: what the processors compute with; None takes the settings' own.
    """
    for processor, number, key in zip(settings.processors, numbers or settings.numbers(), settings.keys()):
        if key is not None:
            logits = processor.apply(logits, seen, number)
    return logits.softmax(-1)


def choose(weights: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tokens (utterances,) that ``torch.multinomial(weights, 1)`` gives, and which of them are valid.

    ``multinomial`` with one sample is ``argmax(p / q)`` for exponential ``q`` (ATen's native multinomial). A token is
    not valid where the probabilities hold nan, which stems from non-finite logits.
    """
    best, token = (weights / noise).max(-1)
    return token, ~best.isnan()
