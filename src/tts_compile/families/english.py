"""``ChatterboxTTS``: English text, a T3 with a Llama backbone, and S3Gen with a solver of ten steps."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..audio.reading import Recording, resample
from ..backbones.llama import LLAMA
from ..errors import InputError
from ..utils.arguments import finite_number
from . import s3gen
from .checkpoint_files import checkpoint_files
from .family import Family, SpeechCall, SpeechModel, Synthesis, VoiceSlot
from .sampling import MIN_P, REPETITION_PENALTY, TEMPERATURE, TOP_P, SamplingSettings

_PROCESSORS = (REPETITION_PENALTY, TEMPERATURE, MIN_P, TOP_P)


def check_text(tts: Any, text: object) -> None:
    """Refuses a text that the model cannot speak. Empty text passes: stock replaces it by a sentence of its own.

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
    """Returns start, text and stop, int64 (2 or 1, n), as stock's ``generate`` passes them to T3."""
    from chatterbox.tts import punc_norm

    hp = tts.t3.hp
    tokens: Tensor = tts.tokenizer.text_to_tokens(punc_norm(text)).to(tts.device)
    if guided:
        tokens = torch.cat([tokens, tokens])  # conditional and unconditional row
    padded: Tensor = F.pad(F.pad(tokens, (1, 0), value=hp.start_text_token), (0, 1), value=hp.stop_text_token)
    return padded


def _call(t3: Any, given: Mapping[str, Any]) -> SpeechCall:
    """Reads the arguments of ``T3.inference``.

    As in stock, ``num_return_sequences``, ``stop_on_eos``, ``do_sample`` and ``length_penalty`` have no effect. Beyond
    stock, one text row is accepted when ``cfg_weight`` is 0, and ``max_new_tokens=None`` means the model's
    ``max_speech_tokens``.
    """
    if given["prepend_prompt_speech_tokens"] is not None:
        raise InputError("prepend_prompt_speech_tokens is not implemented by chatterbox")
    limit = given["max_new_tokens"]
    return SpeechCall(
        voice=given["t3_cond"],
        text_tokens=given["text_tokens"],
        settings=SamplingSettings.checked(_PROCESSORS, given, "cfg_weight"),
        limit=t3.hp.max_speech_tokens if limit is None else limit,
        start_tokens=given["initial_speech_tokens"],
    )


def _checked_tokens(t3: Any, call: SpeechCall) -> Tensor:
    """Returns the text tokens, int64 (rows, n), with as many rows as the call needs."""
    hp = t3.hp
    unguided = call.settings.cfg_weight == 0
    tokens: Tensor = torch.atleast_2d(call.text_tokens).to(dtype=torch.long, device=t3.device)
    rows, length = tokens.shape
    if rows == 2 and unguided:  # stock computes the second row and multiplies it by 0
        tokens = tokens[:1]
    elif rows != 2 and not (rows == 1 and unguided):
        raise InputError(f"text_tokens must have 2 rows for guidance (1 without), got {rows}")
    positions = t3.text_pos_emb.emb.num_embeddings
    if length > positions:
        raise InputError(f"text has {length} tokens, the model has {positions} positions for them")
    if length == 0:
        raise InputError("there are no text tokens")
    if int(tokens.min()) < 0 or int(tokens.max()) >= hp.text_tokens_dict_size:
        raise InputError(f"text tokens must be from 0 to {hp.text_tokens_dict_size - 1}")
    for name, token in (("start", hp.start_text_token), ("stop", hp.stop_text_token)):
        if not bool((tokens == token).any(dim=1).all()):
            raise InputError(f"text_tokens lack the {name} token {token}")
    return tokens


def _prompt(t3: Any, call: SpeechCall) -> Tensor:
    """Embeds voice, text and start, (rows, n, width)."""
    tokens = _checked_tokens(t3, call)
    start_tokens = call.start_tokens
    if start_tokens is None:
        start_tokens = torch.full_like(tokens[:, :1], t3.hp.start_speech_token)
    embeddings, _ = t3.prepare_input_embeds(
        t3_cond=call.voice,
        text_tokens=tokens,
        speech_tokens=start_tokens[: len(tokens)],
        cfg_weight=call.settings.cfg_weight,
    )
    # The start token goes in a second time: stock feeds it once as prompt and once as the first step.
    token = torch.tensor([[t3.hp.start_speech_token]], device=embeddings.device)
    start = t3.speech_emb(token) + t3.speech_pos_emb.get_fixed_embedding(0)
    return torch.cat([embeddings, start.expand(len(embeddings), -1, -1)], dim=1)


def _check(tts: Any, given: Mapping[str, Any]) -> None:  # noqa: ARG001 - a family's signature
    finite_number("exaggeration", given["exaggeration"])


def _set_voice(tts: Any, given: Mapping[str, Any]) -> None:
    """Reads the recording and sets the exaggeration, as the beginning of ``generate``."""
    exaggeration = given["exaggeration"]
    if given["audio_prompt_path"]:
        tts.prepare_conditionals(given["audio_prompt_path"], exaggeration=exaggeration)
    voice = tts.conds.t3
    if float(exaggeration) != float(voice.emotion_adv[0, 0, 0]):
        speaker, tokens = voice.speaker_emb, voice.cond_prompt_speech_tokens
        tts.conds.t3 = _condition(type(voice), speaker, tokens, exaggeration).to(device=tts.device)


def _neutral(tts: Any) -> Mapping[str, Any]:
    return {"exaggeration": float(tts.conds.t3.emotion_adv[0, 0, 0])}


def _read_voice(reference: Any, tts: Any, wav_fpath: Any, exaggeration: float = 0.5) -> None:
    """Does what ``prepare_conditionals`` does, with the results of the last recordings kept."""
    finite_number("exaggeration", exaggeration)
    stock = sys.modules[type(tts).prepare_conditionals.__module__]  # each has its own Conditionals
    recording = Recording(wav_fpath)
    prompt_tokens = tts.t3.hp.speech_cond_prompt_len
    hp = tts.ve.hp  # settings without a count of changes
    read = tuple(getattr(hp, name) for name in dir(hp) if not name.startswith("_"))
    settings = (tts.ENC_COND_LEN, tts.DEC_COND_LEN, prompt_tokens, read)

    def compute() -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        wave, generator = reference.embedded(recording)
        wave_16k = resample(wave, stock.S3GEN_SR, stock.S3_SR)
        tokens = None
        if prompt_tokens:
            start = wave_16k[: tts.ENC_COND_LEN]
            tokens, _ = tts.s3gen.tokenizer.forward([start], max_len=prompt_tokens)
            tokens = torch.atleast_2d(tokens).to(tts.device)
        speaker = torch.from_numpy(tts.ve.embeds_from_wavs([wave_16k], sample_rate=stock.S3_SR))
        return speaker.mean(dim=0, keepdim=True).to(tts.device), tokens, generator

    speaker, tokens, generator = reference.answer(("prepare", recording.digest, settings), tts.device, compute)
    t3_cond = _condition(stock.T3Cond, speaker, tokens, exaggeration).to(device=tts.device)
    tts.conds = stock.Conditionals(t3_cond, generator)


def _condition(kind: Any, speaker: Tensor, tokens: Tensor | None, exaggeration: float) -> Any:
    """Returns what T3 is conditioned on, as stock makes it."""
    emotion = exaggeration * torch.ones(1, 1, 1)
    return kind(speaker_emb=speaker, cond_prompt_speech_tokens=tokens, emotion_adv=emotion)


CHATTERBOX_VOICE = VoiceSlot(
    "conds",
    "prepare_conditionals",
    "audio_prompt_path",
    read=_read_voice,
    modules=("chatterbox.tts", "chatterbox.mtl_tts"),
)
S3GEN = Synthesis(
    finish_tokens=s3gen.valid_tokens,
    wave=s3gen.wave,
    watermark=s3gen.watermark,
    attribute="s3gen",
    mel_wave=s3gen.mel_wave,
)
ENGLISH = Family(
    name="english",
    stock_class="chatterbox.tts.ChatterboxTTS",
    files=checkpoint_files("tokenizer.json", ve="ve.safetensors", t3="t3_cfg.safetensors", s3gen="s3gen.safetensors"),
    modules=("t3", "s3gen", "ve"),
    voice_encoder="ve",
    watermarker="watermarker",
    voice=CHATTERBOX_VOICE,
    speech=SpeechModel(
        attribute="t3",
        method="inference",
        limit="max_new_tokens",
        budget=1000,
        backbone=LLAMA,
        call=_call,
        prompt=_prompt,
        text_tokens=text_tokens,
        check_text=check_text,
        longest_text=lambda t3: int(t3.hp.max_text_tokens),
        start=lambda t3: int(t3.hp.start_speech_token),
        stop=lambda t3: int(t3.hp.stop_speech_token),
        processors=_PROCESSORS,
        guidance="cfg_weight",
        voice=lambda conds: conds.t3,
    ),
    synthesis=S3GEN,
    check=_check,
    set_voice=_set_voice,
    neutral=_neutral,
)
