"""How deep a model is: read off the files of a checkpoint, and given to chatterbox, which has it hard-coded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..fallback import reason
from ..families import Family, families, family_named
from ..utils.device import is_out_of_memory
from ..utils.patch import patched, patched_items


@dataclass(frozen=True)
class Depths:
    """Numbers of layers, and of blocks; ``t3`` is None for a checkpoint that has no T3."""

    t3: int | None
    estimator_mid: int = 1
    estimator_blocks: int = 1
    flow_encoder: int = 1
    speech_tokenizer: int = 1


@dataclass(frozen=True)
class _Backbone:
    """T3's transformer: its entry in chatterbox's table, the setting with its depth, and where its layers are."""

    config: str
    setting: str
    layers: str


_LLAMA = _Backbone("Llama_520M", "num_hidden_layers", "tfmr.layers.")
_GPT2 = _Backbone("GPT2_medium", "n_layer", "tfmr.h.")
_BACKBONES = {"english": _LLAMA, "multilingual": _LLAMA, "turbo": _GPT2}

# Of a "small" checkpoint; every width is the published one. The multilingual model's alignment analyzer listens at
# layers 9, 12 and 13.
SMALL = {"english": Depths(t3=3), "multilingual": Depths(t3=14), "turbo": Depths(t3=2)}
FULL = {
    variant: Depths(t3=layers, estimator_mid=12, estimator_blocks=4, flow_encoder=6, speech_tokenizer=6)
    for variant, layers in {"english": 30, "multilingual": 30, "turbo": 24}.items()
}

_S3GEN = {  # the names of tensors begin so, and go on with the number of a layer
    "estimator_mid": "flow.decoder.estimator.mid_blocks.",
    "estimator_blocks": "flow.decoder.estimator.mid_blocks.0.1.",
    "flow_encoder": "flow.encoder.encoders.",
    "speech_tokenizer": "tokenizer.encoder.blocks.",
}


@contextlib.contextmanager
def architecture_of(directory: str | Path, variant: str = "english") -> Iterator[None]:
    """Have chatterbox build its modules as deep as the files of a checkpoint folder are; undone on exit.

    Not for use from several threads.

    Args:
        directory: the checkpoint folder.
        variant: the name of a family.

    Raises:
        InputError: for an unknown variant, or a folder whose weights are missing or damaged.
    """
    directory = Path(directory)
    family = layout_in(directory, variant)
    with refused_if_damaged(directory):
        depths = _depths_of(directory, family, variant)
    with built_with(depths, variant):
        yield


def layout_in(directory: Path, variant: str) -> Family:
    """The files of a variant, all of which are in the folder.

    Raises:
        InputError: for an unknown variant, or when some are missing.
    """
    if variant not in (known := [family.name for family in families()]):
        raise InputError(f"unknown variant {variant!r}; available: {', '.join(known)}")
    missing = family_named(variant).files.missing(directory)
    if missing:
        raise InputError(f"{directory} is no checkpoint folder: {', '.join(missing)} missing")
    return family_named(variant)


@contextlib.contextmanager
def refused_if_damaged(directory: Path) -> Iterator[None]:
    """Raise what goes wrong in the block as InputError, save for a shortage of memory."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # those of safetensors, tokenizers, torch.load and load_state_dict share no base
        if is_out_of_memory(error):
            raise
        raise InputError(f"{directory} cannot be loaded: {reason(error)}") from error


@contextlib.contextmanager
def built_with(depths: Depths, variant: str) -> Iterator[None]:
    """Have chatterbox build its modules with these depths; undone on exit. Not for use from several threads."""
    from chatterbox.models.s3gen import s3gen as s3gen_module
    from chatterbox.models.t3 import llama_configs
    from s3tokenizer.model_v2 import S3TokenizerV2

    def with_settings(cls: Any, **settings: Any) -> Any:
        return lambda **kwargs: cls(**{**kwargs, **settings})

    estimator = with_settings(
        s3gen_module.ConditionalDecoder, n_blocks=depths.estimator_blocks, num_mid_blocks=depths.estimator_mid
    )
    encoder = with_settings(s3gen_module.UpsampleConformerEncoder, num_blocks=depths.flow_encoder)
    tokenizer_config = S3TokenizerV2.__init__.__defaults__[0]  # one object, shared by every instance
    with contextlib.ExitStack() as stack:
        if depths.t3 is not None:
            backbone = _BACKBONES[variant]
            settings = {backbone.setting: depths.t3}
            stack.enter_context(patched_items(llama_configs.LLAMA_CONFIGS[backbone.config], settings))
        stack.enter_context(patched(s3gen_module, "ConditionalDecoder", estimator))
        stack.enter_context(patched(s3gen_module, "UpsampleConformerEncoder", encoder))
        stack.enter_context(patched(tokenizer_config, "n_audio_layer", depths.speech_tokenizer))
        yield


def _depths_of(directory: Path, family: Family, variant: str) -> Depths:
    s3gen = directory / family.files.weights["s3gen"]
    names = _tensor_names(s3gen)
    found = {depth: _layers(s3gen, names, prefix) for depth, prefix in _S3GEN.items()}
    if "t3" not in family.files.weights:
        return Depths(t3=None, **found)
    t3 = directory / family.files.weights["t3"]
    return Depths(t3=_layers(t3, _tensor_names(t3), _BACKBONES[variant].layers), **found)


def _tensor_names(file: Path) -> list[str]:
    from safetensors import safe_open

    if file.suffix == ".pt":
        return list(torch.load(file, map_location="cpu", weights_only=True, mmap=True))
    with safe_open(file, framework="pt") as stored:
        return list(stored.keys())


def _layers(file: Path, names: list[str], prefix: str) -> int:
    numbers = [int(name[len(prefix) :].split(".")[0]) for name in names if name.startswith(prefix)]
    if not numbers:
        raise InputError(f"{file} holds no tensor named {prefix}*")
    return max(numbers) + 1
