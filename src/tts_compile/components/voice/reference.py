"""The reference voice as a component: from a recording to the conditions that T3 and S3Gen speak under."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...audio.reading import Recording, digest, resample
from ...config import CompileConfig
from ...errors import InputError
from ...timing.blocks import Timings
from ...utils.arguments import finite_number
from ..component import EagerComponent
from ..seam import own_method
from ..weight_watch import WeightWatch, environment
from .encoder import tone
from .lru import Memory

_KEPT = 8  # voices, some 0.2 MB each
# The speaker encoder's statistics need two of its frames, which are three of its fbank's: a window of 25 ms and two
# steps of 10 ms. With less, stock gives nan, or fails in a padding.
_FEWEST = 720  # samples at 16 kHz
_FBANK_RATE = 16_000
# Classes of these modules prepare a voice alike; Turbo's does it another way.
_ALIKE = ("chatterbox.tts", "chatterbox.mtl_tts")


class ReferenceComponent(EagerComponent):
    """Replaces ``tts.prepare_conditionals``, or ``set_target_voice``, and ``tts.s3gen.embed_ref``.

    What a recording gives does not change while the weights do not, so the last few results are kept.
    """

    def __init__(self, tts: Any, config: CompileConfig, timings: Timings | None = None) -> None:
        reason = "a reference is read once: compiling would cost more than it saves"
        super().__init__("reference", config, reason, timings)
        self._tts = tts
        self._memory = Memory(_KEPT)
        self._answered = 0
        self._not_kept = ""
        self._watch = WeightWatch(self._modules)
        if not self._replace(tts.s3gen, "embed_ref", self._embed_ref):
            return  # whoever has replaced it wants to be called by the others
        if hasattr(tts, "set_target_voice"):
            self._replace(tts, "set_target_voice", self._set_target_voice)
        elif type(tts).prepare_conditionals.__module__ in _ALIKE:
            self._replace(tts, "prepare_conditionals", self._prepare_conditionals)

    def release(self) -> None:
        """Forget the voices."""
        self._memory.clear()

    def _load(self) -> None:
        """Embed a second of a tone."""
        import soundfile  # noqa: F401

        s3gen = self._tts.s3gen
        with torch.no_grad():
            wave = resample(tone(48_000), 48_000, 24_000)
            own_method(s3gen, "embed_ref")(wave, 24_000, device=self._tts.device)

    def _modules(self) -> list[nn.Module]:
        """Those that a reference goes through."""
        tts = self._tts
        found = [tts.s3gen.tokenizer, tts.s3gen.speaker_encoder]
        return [*found, tts.ve] if hasattr(tts, "ve") else found

    def _notes(self) -> list[str]:
        notes = super()._notes()
        if self.calls:
            notes.append(f"{self._answered} of {self.calls} references answered from the cache")
        if self._not_kept:
            notes.append(f"not all are kept: {self._not_kept}")
        return notes

    def _prepare_conditionals(self, wav_fpath: Any, exaggeration: float = 0.5) -> None:
        stock = own_method(self._tts, "prepare_conditionals")
        self._run(self._prepare, stock, wav_fpath, exaggeration)

    def _prepare(self, wav_fpath: Any, exaggeration: float) -> None:
        finite_number("exaggeration", exaggeration)
        tts = self._tts
        stock = sys.modules[type(tts).prepare_conditionals.__module__]  # each has its own Conditionals
        recording = Recording(wav_fpath)
        prompt_tokens = tts.t3.hp.speech_cond_prompt_len
        hp = tts.ve.hp  # settings without a count of changes
        read = tuple(getattr(hp, name) for name in dir(hp) if not name.startswith("_"))
        settings = (tts.ENC_COND_LEN, tts.DEC_COND_LEN, prompt_tokens, read)

        def compute() -> tuple[Tensor, Tensor | None, dict[str, Any]]:
            wave, generator = self._heard(recording)
            wave_16k = resample(wave, stock.S3GEN_SR, stock.S3_SR)
            tokens = None
            if prompt_tokens:
                start = wave_16k[: tts.ENC_COND_LEN]
                tokens, _ = tts.s3gen.tokenizer.forward([start], max_len=prompt_tokens)
                tokens = torch.atleast_2d(tokens).to(tts.device)
            speaker = torch.from_numpy(tts.ve.embeds_from_wavs([wave_16k], sample_rate=stock.S3_SR))
            return speaker.mean(dim=0, keepdim=True).to(tts.device), tokens, generator

        speaker, tokens, generator = self._answer(("prepare", recording.digest, settings), tts.device, compute)
        t3_cond = stock.T3Cond(
            speaker_emb=speaker,
            cond_prompt_speech_tokens=tokens,
            emotion_adv=exaggeration * torch.ones(1, 1, 1),
        ).to(device=tts.device)
        tts.conds = stock.Conditionals(t3_cond, generator)

    def _set_target_voice(self, wav_fpath: Any) -> None:
        self._run(self._set_target, own_method(self._tts, "set_target_voice"), wav_fpath)

    def _set_target(self, wav_fpath: Any) -> None:
        tts = self._tts
        recording = Recording(wav_fpath)
        key = ("target", recording.digest, tts.DEC_COND_LEN)
        tts.ref_dict = self._answer(key, tts.device, lambda: self._heard(recording)[1])

    def _embed_ref(
        self, ref_wav: Any, ref_sr: float, device: Any = "auto", ref_fade_out: bool = True
    ) -> dict[str, Any]:
        stock = own_method(self._tts.s3gen, "embed_ref")
        return self._run(self._embed, stock, ref_wav, ref_sr, device, ref_fade_out)

    def _embed(self, ref_wav: Any, ref_sr: float, device: Any, ref_fade_out: bool) -> dict[str, Any]:
        s3gen = self._tts.s3gen
        _check_wave(ref_wav, ref_sr, "ref_wav")

        def compute() -> dict[str, Any]:
            embedded: dict[str, Any] = own_method(s3gen, "embed_ref")(ref_wav, ref_sr, device, ref_fade_out)
            return embedded

        if isinstance(ref_wav, Tensor) and ref_wav.requires_grad and torch.is_grad_enabled():
            self.left_to_stock += 1
            return compute()
        target = s3gen.device if device == "auto" else device
        key = ("embed", _digest(ref_wav), ref_sr, str(target), ref_fade_out)
        found: dict[str, Any] = self._answer(key, target, compute)
        return found

    def _heard(self, recording: Recording) -> tuple[Any, dict[str, Any]]:
        """The recording at S3Gen's rate, float32 (samples,), and what S3Gen makes of its start."""
        from chatterbox.models.s3gen import S3GEN_SR

        tts = self._tts
        wave = recording.samples(S3GEN_SR)
        start = wave[: tts.DEC_COND_LEN]
        _check_wave(start, S3GEN_SR, recording.name)
        return wave, own_method(tts.s3gen, "embed_ref")(start, S3GEN_SR, device=tts.device)

    def _answer(self, key: Hashable, device: Any, compute: Callable[[], Any]) -> Any:
        """``compute()``, or what it gave for an equal key and equal weights; without gradients where it is kept."""
        unchanged, reason = self._watch.look()
        if not unchanged:
            self._memory.clear()
        if reason:
            self._not_kept = reason
            found = compute()
            self.calls += 1
            return found
        s3gen = self._tts.s3gen
        key = (key, s3gen.dtype, s3gen.mel_extractor, environment(device))
        found = self._memory.get(key)
        if found is None:
            with torch.no_grad():
                found = compute()
            self._memory.put(key, found)
        else:
            self._answered += 1
        self.calls += 1
        return found


def _check_wave(wave: Any, rate: Any, name: str) -> None:
    """Refuse a reference from which stock would make nonsense.

    Args:
        wave: (samples,) or (references, samples), an array or tensor.
        rate: in Hz.
        name: for the message.
    """
    if not isinstance(wave, (np.ndarray, Tensor)):
        raise InputError(f"{name} must be an array or a tensor, got {type(wave).__name__}")
    if wave.ndim not in (1, 2):
        raise InputError(f"{name} must be (samples,) or (references, samples), got the shape {tuple(wave.shape)}")
    if not finite_number("the sample rate", rate) > 0:
        raise InputError(f"the sample rate must be positive, got {rate}")
    if math.ceil(wave.shape[-1] * _FBANK_RATE / rate) < _FEWEST:
        seconds, needed = wave.shape[-1] / rate, _FEWEST / _FBANK_RATE
        hint = "; channels come first" if wave.ndim == 2 and wave.shape[0] > wave.shape[1] else ""
        raise InputError(f"{name} holds {seconds:.4f} s of sound, the model needs at least {needed:.4f} s{hint}")
    rows = torch.as_tensor(wave).detach().reshape(-1, wave.shape[-1])
    if not torch.isfinite(rows).all():
        raise InputError(f"{name} holds samples that are not finite")
    if not rows.any(dim=1).all():
        raise InputError(
            f"{name} is silent: there is no voice in the {wave.shape[-1] / rate:.1f} s that the model hears"
        )


def _digest(wave: Any) -> str:
    if isinstance(wave, Tensor):
        values = wave.detach().cpu().contiguous()
        return f"{digest(values.view(torch.uint8).numpy())} {values.dtype} {wave.device}"
    return digest(wave)
