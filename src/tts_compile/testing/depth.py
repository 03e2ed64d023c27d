"""Reads the depth of a model from its checkpoint and sets it in chatterbox, where it is a constant."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..fallback import reason
from ..families import Family, families
from ..utils.device import is_out_of_memory
from ..utils.patch import patched, patched_items


@dataclass(frozen=True)
class Depths:
    """Numbers of layers and blocks; ``t3`` is None for a checkpoint without a T3."""

    t3: int | None
    estimator_mid: int = 1
    estimator_blocks: int = 1
    flow_encoder: int = 1
    speech_tokenizer: int = 1


# T3's transformer: its key in chatterbox's table, the setting with its depth, and the prefix of its layers.
_LLAMA = ("Llama_520M", "num_hidden_layers", "tfmr.layers.")
_BACKBONES = {"english": _LLAMA, "multilingual": _LLAMA, "turbo": ("GPT2_medium", "n_layer", "tfmr.h.")}

# Depths of a "small" checkpoint; every width is the published one. The multilingual model's alignment analyzer reads
# layers 9, 12 and 13.
SMALL = {"english": Depths(t3=3), "multilingual": Depths(t3=14), "turbo": Depths(t3=2)}
FULL = {
    variant: Depths(t3=layers, estimator_mid=12, estimator_blocks=4, flow_encoder=6, speech_tokenizer=6)
    for variant, layers in {"english": 30, "multilingual": 30, "turbo": 24}.items()
}

_S3GEN = {  # prefixes of tensor names; the number of a layer follows
    "estimator_mid": "flow.decoder.estimator.mid_blocks.",
    "estimator_blocks": "flow.decoder.estimator.mid_blocks.0.1.",
    "flow_encoder": "flow.encoder.encoders.",
    "speech_tokenizer": "tokenizer.encoder.blocks.",
}


@contextlib.contextmanager
def architecture_of(directory: str | Path, variant: str = "english") -> Iterator[None]:
    """Makes chatterbox build its modules with the depth of a checkpoint folder, inside a ``with`` block.

    It must not be used from several threads at a time.

    Args:
        directory: the checkpoint folder.
        variant: the name of a family.

    Raises:
        InputError: for an unknown variant, or a folder whose weights are missing or damaged.
    """
    directory = Path(directory)
    family = family_in(directory, variant)
    with refused_if_damaged(directory):
        depths = _depths_of(directory, family, variant)
    with built_with(depths, variant):
        yield


def family_in(directory: Path, variant: str) -> Family:
    """Returns the family of a variant whose files are all in the folder.

    Raises:
        InputError: for an unknown variant, or when files are missing.
    """
    known = {family.name: family for family in families() if "s3gen" in family.files.weights}
    if variant not in known:
        raise InputError(f"unknown variant {variant!r}; available: {', '.join(known)}")
    family = known[variant]
    if missing := family.files.missing(directory):
        raise InputError(f"{directory} is not a checkpoint folder: {', '.join(missing)} missing")
    return family


@contextlib.contextmanager
def refused_if_damaged(directory: Path) -> Iterator[None]:
    """Turns errors in the ``with`` block into InputError, except for a lack of memory."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # safetensors, tokenizers and torch raise errors without a common base
        if is_out_of_memory(error):
            raise
        raise InputError(f"{directory} cannot be loaded: {reason(error)}") from error


@contextlib.contextmanager
def built_with(depths: Depths, variant: str) -> Iterator[None]:
    """Makes chatterbox build its modules with these depths, inside a ``with`` block; not for several threads."""
    from chatterbox.models.s3gen import s3gen as s3gen_module
    from chatterbox.models.t3 import llama_configs
    from s3tokenizer.model_v2 import S3TokenizerV2

    def with_settings(cls: Any, **settings: Any) -> Any:
        return lambda **kwargs: cls(**{**kwargs, **settings})

    parts = {
        "ConditionalDecoder": {"n_blocks": depths.estimator_blocks, "num_mid_blocks": depths.estimator_mid},
        "UpsampleConformerEncoder": {"num_blocks": depths.flow_encoder},
    }
    tokenizer_config = S3TokenizerV2.__init__.__defaults__[0]  # every instance uses this one object
    with contextlib.ExitStack() as stack:
        if depths.t3 is not None:
            config, setting, _ = _BACKBONES[variant]
            stack.enter_context(patched_items(llama_configs.LLAMA_CONFIGS[config], {setting: depths.t3}))
        for name, settings in parts.items():
            stack.enter_context(patched(s3gen_module, name, with_settings(getattr(s3gen_module, name), **settings)))
        stack.enter_context(patched(tokenizer_config, "n_audio_layer", depths.speech_tokenizer))
        yield


def _depths_of(directory: Path, family: Family, variant: str) -> Depths:
    weights = family.files.weights
    s3gen = _layers(directory / weights["s3gen"], _S3GEN)
    t3 = _layers(directory / weights["t3"], {"t3": _BACKBONES[variant][2]}) if "t3" in weights else {"t3": None}
    return Depths(**s3gen, **t3)


def _layers(file: Path, prefixes: dict[str, str]) -> dict[str, Any]:
    """Returns the number of layers for each prefix of tensor names."""
    from safetensors import safe_open

    if file.suffix == ".pt":
        names = list(torch.load(file, map_location="cpu", weights_only=True, mmap=True))
    else:
        with safe_open(file, framework="pt") as stored:
            names = list(stored.keys())
    found = {}
    for depth, prefix in prefixes.items():
        numbers = [int(name[len(prefix) :].split(".")[0]) for name in names if name.startswith(prefix)]
        if not numbers:
            raise InputError(f"{file} holds no tensor named {prefix}*")
        found[depth] = max(numbers) + 1
    return found
