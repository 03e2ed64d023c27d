"""Distances between two tensors, waves or texts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

_FLOOR_DB = 80.0  # below the loudest band: quieter sound cannot be heard beside it
_BANDS = 80
_WINDOW, _HOP = 1024, 256  # samples, at 24 kHz 43 and 11 ms
_GATE_SECONDS = 0.4  # a loudness meter's block, BS.1770


def signal_to_error_db(reference: Tensor, other: Tensor) -> float | None:
    """Returns the power of ``reference`` over that of the difference, in dB; None where the shapes differ.

    The ratio is infinite where both are equal, and nan where one of them is not finite.

    >>> round(signal_to_error_db(torch.ones(1, 4), torch.full((1, 4), 0.9)), 3)
    20.0
    """
    if reference.shape != other.shape:
        return None
    error = (reference.double() - other.double()).square().sum()
    signal = reference.double().square().sum()
    if error == 0:
        return math.inf
    return float(10 * torch.log10(signal / error))


def lowest_db(pairs: Iterable[tuple[Tensor, Tensor]]) -> float | None:
    """Returns the lowest :func:`signal_to_error_db` of some pairs; None if any shapes differ, or nan if any is nan."""
    found = [signal_to_error_db(*pair) for pair in pairs]
    ratios = [ratio for ratio in found if ratio is not None]
    if len(ratios) < len(found):
        return None
    return math.nan if any(map(math.isnan, ratios)) else min(ratios)  # min() passes over a nan that is not the first


def log_mel_distance_db(reference: Tensor, other: Tensor, rate: int) -> float | None:
    """Returns the log-spectral distance (Gray and Markel 1976) over mel bands, averaged over time, in dB.

    Args:
        reference, other: waves (1, samples); the longer one is cut.
        rate: in Hz.

    Returns:
        None for waves shorter than a window.
    """
    from torchaudio.transforms import MelSpectrogram

    length = min(reference.shape[-1], other.shape[-1])
    if length < _WINDOW:
        return None
    mel = MelSpectrogram(rate, n_fft=_WINDOW, hop_length=_HOP, n_mels=_BANDS)
    powers = [mel(wave.detach().float().cpu().reshape(-1)[:length]) for wave in (reference, other)]
    floor = max(float(powers[0].max()), 1e-20) * 10 ** (-_FLOOR_DB / 10)
    first, second = (10 * torch.log10(power.clamp(min=floor)) for power in powers)
    return float((first - second).square().mean(dim=0).sqrt().mean())


def loudness_difference(reference: Tensor, other: Tensor, rate: int) -> float | None:
    """Returns by how many LU ``other`` is louder: integrated loudness, ITU-R BS.1770-4.

    Args:
        reference, other: waves (1, samples).
        rate: in Hz.

    Returns:
        None for waves shorter than the 0.4 s that the standard measures over, and for silence.
    """
    from torchaudio.functional import loudness

    if min(reference.shape[-1], other.shape[-1]) < _GATE_SECONDS * rate:
        return None
    first, second = (float(loudness(wave.detach().float().cpu(), rate)) for wave in (reference, other))
    return second - first if math.isfinite(first) and math.isfinite(second) else None


def same_share(reference: Sequence[int], other: Sequence[int]) -> float:
    """Returns the share of equal positions of two sequences, of the positions of the longer one.

    >>> same_share([1, 2, 3], [1, 2, 4, 5])
    0.5
    """
    longest = max(len(reference), len(other))
    return sum(a == b for a, b in zip(reference, other)) / longest if longest else 1.0


def first_difference(reference: Sequence[int], other: Sequence[int]) -> int | None:
    """Returns the first position at which two sequences differ; None where they are equal.

    >>> first_difference([1, 2], [1, 2, 3])
    2
    """
    pairs = enumerate(itertools.zip_longest(reference, other))
    return next((index for index, (a, b) in pairs if a != b), None)


def word_error_rate(text: str, transcript: str) -> float:
    """Returns words inserted, left out or exchanged per word of ``text``; compares letters alone, without case.

    Raises:
        ImportError: without jiwer, which the extra ``quality`` installs.
    """
    import jiwer

    return float(jiwer.wer(_words(text), _words(transcript)))


def _words(text: str) -> str:
    return " ".join("".join(c if c.isalnum() or c == "'" else " " for c in text.lower()).split())
