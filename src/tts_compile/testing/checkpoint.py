"""Writes a synthetic checkpoint and loads it through the stock class."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..families import family_named
from ..families.checkpoint_files import VOICE
from ..utils.files import replaced
from . import gpt2, llama, tokenizers
from .depth import FULL, SMALL, architecture_of, built_with, family_in, refused_if_damaged
from .offline import nothing_fetched
from .weights import conditionals, shape_pitch, without_shared_storage

SIZES = ("small", "full")


# For each variant the functions that make T3's configuration, shape T3's weights, and make the tokenizer's files.
_RECIPES: dict[str, tuple[Callable[[], Any], Callable[[Any, int], None], Callable[[], dict[str, str]]]] = {
    "english": (llama.configuration, llama.shape, tokenizers.english),
    "multilingual": (functools.partial(llama.configuration, multilingual=True), llama.shape, tokenizers.multilingual),
    "turbo": (gpt2.configuration, gpt2.shape, tokenizers.turbo),
}
VARIANTS = tuple(_RECIPES)


def write_checkpoint(
    directory: str | Path,
    variant: str = "english",
    size: str = "small",
    seed: int = 0,
    speech_tokens: int = 60,
) -> Path:
    """Writes a synthetic checkpoint in the published file layout and returns its folder.

    Args:
        directory: folder to write to; it is made if it is missing.
        variant: ``"english"``, ``"multilingual"`` or ``"turbo"``.
        size: ``"small"`` keeps every width and cuts depth (0.7 GB; multilingual 1.4, turbo 1.2); ``"full"`` is the
            published architecture (some 3 GB).
        seed: seeds every weight; equal seeds give equal files.
        speech_tokens: approximate number of speech tokens (25 a second) that the model generates before it stops by
            itself. The multilingual model generates at least as many as the text has tokens (its characters and three
            more), since upstream's alignment analyzer does not let it stop earlier; a text of one character raises
            there.

    Raises:
        InputError: for an unknown variant or size, or a number of speech tokens that is not from 4 to 1000.
    """
    if variant not in VARIANTS:
        raise InputError(f"unknown variant {variant!r}; available: {', '.join(VARIANTS)}")
    if size not in SIZES:
        raise InputError(f"unknown size {size!r}; available: {', '.join(SIZES)}")
    if not 4 <= speech_tokens <= 1000:
        raise InputError(f"speech_tokens must be from 4 to 1000, got {speech_tokens}")
    from chatterbox.models.s3gen import S3Gen
    from chatterbox.models.t3 import T3
    from chatterbox.models.voice_encoder import VoiceEncoder

    configuration, shape, tokenizer = _RECIPES[variant]
    directory, files = Path(directory), family_named(variant).files.weights
    directory.mkdir(parents=True, exist_ok=True)
    depths = (SMALL if size == "small" else FULL)[variant]
    with torch.random.fork_rng(devices=[]), torch.no_grad(), built_with(depths, variant):
        torch.manual_seed(seed)
        _save(VoiceEncoder().state_dict(), directory / files["ve"])
        t3 = T3(configuration())
        shape(t3, speech_tokens)
        _save(t3.state_dict(), directory / files["t3"])
        speech_prompt = t3.hp.speech_cond_prompt_len
        del t3
        s3gen = S3Gen(meanflow=variant == "turbo")
        shape_pitch(s3gen.mel2wav.f0_predictor)
        _save(s3gen.state_dict(), directory / files["s3gen"])
        del s3gen
        _save(conditionals(10 if size == "full" else 2, speech_prompt), directory / VOICE)
    for name, content in tokenizer().items():
        with replaced(directory / name) as path:
            path.write_text(content, encoding="utf-8")
    return directory


def load_checkpoint(directory: str | Path, variant: str = "english", device: str = "cpu") -> Any:
    """Loads a checkpoint folder of any depth through the stock class's own ``from_local``; fetches nothing.

    Args:
        directory: a folder with the published file layout.
        variant: the variant that was written; ``"voice conversion"`` makes a ``ChatterboxVC`` from an English folder.
        device: device of the model.

    Raises:
        InputError: for an unknown variant, or a folder whose files are missing or damaged.
    """
    directory = Path(directory)
    stock = family_in(directory, variant).load_class()
    with (
        torch.random.fork_rng(devices=[]),
        architecture_of(directory, variant),
        nothing_fetched(),
        refused_if_damaged(directory),
    ):
        return stock.from_local(directory, device)


def _save(tensors: dict[str, Any], file: Path) -> None:
    """Writes the state of a part in the format that stock reads: torch's where the file name ends in ``.pt``."""
    from safetensors.torch import save_file

    with replaced(file) as path:
        if file.suffix == ".pt":
            with path.open("wb") as stream:  # torch would write a file name into the file
                torch.save(tensors, stream)
        else:
            save_file(without_shared_storage(tensors), path)
