"""Real Chatterbox classes with synthetic weights, for tests, demos and benchmarks.

Speed does not depend on what the weights are, and neither does the wiring; a few things do and are arranged here:
next-token distributions are peaked, the model stops by itself near a wanted length that grows with the text, and
waves are finite and of speech-like level. The files have the published layout and are read by the stock class's own
``from_local``.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from . import _compat
from .errors import InputError
from .fallback import reason
from .files import replaced
from .wav import write_wav

if TYPE_CHECKING:
    from chatterbox.tts import ChatterboxTTS

VARIANTS = ("english",)
SIZES = ("small", "full")

# Depths of a "small" checkpoint; every width is the published one.
_SMALL_DEPTH = {"t3": 3, "estimator_mid": 1, "estimator_blocks": 1, "flow_encoder": 1, "speech_tokenizer": 1}
_FULL_DEPTH = {"t3": 30, "estimator_mid": 12, "estimator_blocks": 4, "flow_encoder": 6, "speech_tokenizer": 6}

_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'\"-()"


def write_checkpoint(
    directory: str | Path,
    variant: str = "english",
    size: str = "small",
    seed: int = 0,
    speech_tokens: int = 60,
) -> Path:
    """Write a synthetic checkpoint in the published file layout and return its folder.

    Args:
        directory: folder to write to; made if missing.
        variant: ``"english"``.
        size: ``"small"`` keeps every width and cuts depth; ``"full"`` is the published architecture (3.2 GB).
        seed: seeds every weight; equal seeds give equal files.
        speech_tokens: about how many speech tokens (25 a second) the model emits before it stops by itself.

    Raises:
        InputError: for an unknown variant or size, or fewer than 4 speech tokens.
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
    from safetensors.torch import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)

    def save(tensors: dict[str, Tensor], name: str) -> None:
        with replaced(directory / name) as path:
            save_file(tensors, path)

    depth = _SMALL_DEPTH if size == "small" else _FULL_DEPTH
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _architecture_depth(depth):
        torch.manual_seed(seed)
        save(VoiceEncoder().state_dict(), "ve.safetensors")
        t3 = T3()
        _shape_token_distribution(t3, speech_tokens)
        save(t3.state_dict(), "t3_cfg.safetensors")
        del t3
        s3gen = S3Gen()
        _shape_pitch(s3gen.mel2wav.f0_predictor)
        save(_without_shared_storage(s3gen.state_dict()), "s3gen.safetensors")
        del s3gen
        with replaced(directory / "conds.pt") as path:
            torch.save(_conditionals(seconds=10 if size == "full" else 2), path)
    with replaced(directory / "tokenizer.json") as path:
        path.write_text(json.dumps(_tokenizer()), encoding="utf-8")
    return directory


def load_checkpoint(directory: str | Path, variant: str = "english", device: str = "cpu") -> ChatterboxTTS:
    """Load a checkpoint folder through the stock class's own ``from_local``, whatever its depth.

    Raises:
        InputError: for an unknown variant, or a folder whose files are missing or damaged.
    """
    if variant not in VARIANTS:
        raise InputError(f"unknown variant {variant!r}; available: {', '.join(VARIANTS)}")
    directory = Path(directory)
    wanted = ("ve.safetensors", "t3_cfg.safetensors", "s3gen.safetensors", "tokenizer.json")
    missing = [name for name in wanted if not (directory / name).is_file()]
    if missing:
        raise InputError(f"{directory} is no checkpoint folder: {', '.join(missing)} missing")
    from chatterbox.tts import ChatterboxTTS

    try:
        with torch.random.fork_rng(devices=[]), _architecture_depth(_depth_of(directory)):
            return ChatterboxTTS.from_local(directory, device)
    except Exception as error:  # those of safetensors, tokenizers, torch.load and load_state_dict share no base
        if _compat.is_out_of_memory(error):
            raise
        raise InputError(f"{directory} cannot be loaded: {reason(error)}") from error


def make_reference_wav(path: str | Path, seconds: float = 10.0, sample_rate: int = 24_000) -> Path:
    """Write a mono 16-bit WAV that sounds roughly like a voice: pitched pulses through three moving formants."""
    if not seconds > 0:
        raise InputError(f"seconds must be positive, got {seconds}")
    t = np.arange(int(seconds * sample_rate)) / sample_rate
    pitch = 120 + 25 * np.sin(2 * np.pi * 0.4 * t) + 8 * np.sin(2 * np.pi * 5 * t)  # Hz
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    wave = np.zeros_like(t)
    for harmonic in range(1, 40):
        frequency = harmonic * pitch
        gain = np.zeros_like(t)
        for centre, swing, width in ((600, 200, 120), (1500, 500, 200), (2600, 300, 300)):
            formant = centre + swing * np.sin(2 * np.pi * 1.3 * t + centre)
            gain += np.exp(-(((frequency - formant) / width) ** 2))
        wave += gain * np.sin(harmonic * phase) / harmonic**0.5
    syllables = np.clip(np.sin(2 * np.pi * 2.1 * t) + 0.6, 0, None)
    wave = 0.5 * wave * syllables / np.abs(wave * syllables).max()
    return write_wav(path, wave.astype(np.float32), sample_rate)


@contextlib.contextmanager
def _architecture_depth(depth: dict[str, int]) -> Iterator[None]:
    """Have chatterbox build its modules with these depths; undone on exit. Not for use from several threads."""
    from chatterbox.models.s3gen import s3gen as s3gen_module
    from chatterbox.models.t3 import llama_configs
    from s3tokenizer.model_v2 import S3TokenizerV2

    def with_settings(cls: Any, **settings: Any) -> Any:
        return lambda **kwargs: cls(**{**kwargs, **settings})

    estimator = with_settings(
        s3gen_module.ConditionalDecoder, n_blocks=depth["estimator_blocks"], num_mid_blocks=depth["estimator_mid"]
    )
    encoder = with_settings(s3gen_module.UpsampleConformerEncoder, num_blocks=depth["flow_encoder"])
    llama = llama_configs.LLAMA_CONFIGS["Llama_520M"]
    tokenizer_config = S3TokenizerV2.__init__.__defaults__[0]  # one object, shared by every instance
    with (
        mock.patch.dict(llama, num_hidden_layers=depth["t3"]),
        mock.patch.object(s3gen_module, "ConditionalDecoder", estimator),
        mock.patch.object(s3gen_module, "UpsampleConformerEncoder", encoder),
        mock.patch.object(tokenizer_config, "n_audio_layer", depth["speech_tokenizer"]),
    ):
        yield


def _depth_of(directory: Path) -> dict[str, int]:
    """Read the depths off the names of the stored tensors."""
    from safetensors import safe_open

    prefixes = {
        "t3": ("t3_cfg.safetensors", "tfmr.layers."),
        "estimator_mid": ("s3gen.safetensors", "flow.decoder.estimator.mid_blocks."),
        "estimator_blocks": ("s3gen.safetensors", "flow.decoder.estimator.mid_blocks.0.1."),
        "flow_encoder": ("s3gen.safetensors", "flow.encoder.encoders."),
        "speech_tokenizer": ("s3gen.safetensors", "tokenizer.encoder.blocks."),
    }
    depth = {}
    for name, (file, prefix) in prefixes.items():
        with safe_open(directory / file, framework="pt") as stored:
            numbers = [int(key[len(prefix) :].split(".")[0]) for key in stored.keys() if key.startswith(prefix)]  # noqa: SIM118
        if not numbers:
            raise InputError(f"{directory / file} holds no tensor named {prefix}*")
        depth[name] = max(numbers) + 1
    return depth


def _shape_token_distribution(t3: Any, speech_tokens: int) -> None:
    """Give random T3 weights peaked next-token distributions and an end near ``speech_tokens``.

    The stop token's logit climbs with the learned speech position (a ramp along one direction that its head row
    reads) and overtakes the best other logit near the wanted length. Layer 0 passes the share of text among the
    attended positions to the same direction with the opposite sign, so that longer texts speak longer.
    """
    hp, head = t3.hp, t3.speech_head.weight
    logit_scale = 6.5  # standard deviation of a logit
    top_logit = 3.8 * logit_scale  # expected largest of 6561 normal deviates
    head.normal_(std=logit_scale / math.sqrt(t3.dim))
    head[hp.start_speech_token :] = 0  # special tokens: never near the top
    end, text = torch.linalg.qr(torch.randn(t3.dim, 2)).Q.T
    head[hp.stop_speech_token] = 4.0 * end
    for embedding in (t3.speech_emb.weight, t3.text_emb.weight):
        embedding -= (embedding @ end)[:, None] * end  # the end depends on position and length of the text alone

    crossing = top_logit / 4.0 * _residual_level(t3)  # component along `end` at which the stop token takes the lead
    positions = torch.arange(t3.speech_pos_emb.emb.num_embeddings)
    t3.speech_pos_emb.emb.weight += crossing * (positions / speech_tokens).clamp(max=3.0)[:, None] * end
    t3.text_emb.weight += 8.0 * text  # not in the positions: guidance would turn its effect around
    attention = t3.tfmr.layers[0].self_attn
    attention.v_proj.weight[0] = 0.06 * crossing * text  # about 8 times the share of text, after the norm
    attention.o_proj.weight[:, 0] = -end


def _shape_pitch(predictor: Any) -> None:
    """A pitch of some 50 to 250 Hz: random weights give 0.1 Hz, and all below 10 Hz counts as unvoiced."""
    predictor.classifier.weight *= 800
    predictor.classifier.bias.fill_(150)


def _residual_level(t3: Any) -> float:
    """Root mean square of the residual stream that reaches the final norm, for inputs like speech embeddings."""
    seen: list[Tensor] = []
    hook = t3.tfmr.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    t3.tfmr(inputs_embeds=torch.randn(1, 64, t3.dim))
    hook.remove()
    return float(seen[0].pow(2).mean().sqrt())


def _without_shared_storage(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Clone: safetensors refuses tensors that share memory; chatterbox has none that must stay shared."""
    return {name: tensor.contiguous().clone() for name, tensor in state.items()}


def _conditionals(seconds: int) -> dict[str, Any]:
    """A built-in voice as ``Conditionals.save`` stores it, made of random but plausible values."""
    tokens, frames = 25 * seconds, 50 * seconds
    return {
        "t3": {
            "speaker_emb": torch.nn.functional.normalize(torch.rand(1, 256), dim=1),
            "clap_emb": None,
            "cond_prompt_speech_tokens": torch.randint(0, 6561, (1, 150)),
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


def _tokenizer() -> dict[str, Any]:
    """A character tokenizer with the special tokens at the ids that T3's configuration expects."""
    names = ("[STOP]", "[UNK]", "[SPACE]", "[PAD]", "[SEP]", "[CLS]", "[MASK]")
    special = {name: number for number, name in enumerate(names)} | {"[START]": 255}
    vocabulary = special | {character: len(names) + i for i, character in enumerate(_ALPHABET)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "special": True,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            for content, number in sorted(special.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "unk_token": "[UNK]", "fuse_unk": False, "vocab": vocabulary, "merges": []},
    }
