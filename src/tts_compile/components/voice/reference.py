"""The reference voice as a component: from a recording to what T3 and S3Gen are conditioned on."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...audio.reading import Recording, digest, resample
from ...errors import InputError
from ...families.family import Family
from ...utils.arguments import finite_number
from ..component import EagerComponent
from ..runtime import Runtime
from ..seam import own_method
from ..weight_watch import WeightWatch, environment
from .encoder import tone
from .lru import LRUCache

_KEPT = 8  # voices, some 0.2 MB each
# The speaker encoder's statistics need two of its frames, which are three of its fbank's: a window of 25 ms and two
# steps of 10 ms. With less, stock gives nan, or fails in a padding.
_FEWEST = 720  # samples at 16 kHz
_FBANK_RATE = 16_000


class ReferenceComponent(EagerComponent):
    """A component that replaces the family's method that reads a recording, and ``tts.s3gen.embed_ref``.

    A recording gives the same results until the weights change, so that the last few are kept.
    """

    def __init__(self, tts: Any, family: Family, runtime: Runtime) -> None:
        super().__init__("reference", runtime, "a reference is read once: compiling would cost more than it saves")
        self._tts = tts
        self._family = family
        self._cache = LRUCache(_KEPT)
        self._cached_answers = 0
        self._not_kept = ""
        self._watch = WeightWatch(self._modules)
        self._s3gen = getattr(tts, str(family.synthesis.attribute))
        if not self._replace(self._s3gen, "embed_ref", self._embed_ref, family.package):
            return  # another program has replaced it, and wants to be called
        slot = family.voice
        if slot.read is not None and getattr(type(tts), slot.method).__module__ in slot.modules:
            self._replace(tts, slot.method, functools.partial(self._run_reading, slot.read), family.package)

    def release(self) -> None:
        """Forgets the voices."""
        self._cache.clear()

    def embedded(self, recording: Recording) -> tuple[Any, dict[str, Any]]:
        """Returns the recording at S3Gen's rate, float32 (samples,), and S3Gen's embedding of its beginning."""
        from chatterbox.models.s3gen import S3GEN_SR

        tts = self._tts
        wave = recording.samples(S3GEN_SR)
        start = wave[: tts.DEC_COND_LEN]
        _check_wave(start, S3GEN_SR, recording.name)
        return wave, own_method(self._s3gen, "embed_ref")(start, S3GEN_SR, device=tts.device)

    def answer(self, key: Hashable, device: Any, compute: Callable[[], Any]) -> Any:
        """Returns ``compute()``, or its result for an equal key and equal weights; kept results have no gradients."""
        unchanged, reason = self._watch.look()
        if not unchanged:
            self._cache.clear()
        if reason:
            self._not_kept = reason
            found = compute()
            self.calls += 1
            return found
        s3gen = self._s3gen
        key = (key, s3gen.dtype, s3gen.mel_extractor, environment(device))
        found = self._cache.get(key)
        if found is None:
            with torch.no_grad():
                found = compute()
            self._cache.put(key, found)
        else:
            self._cached_answers += 1
        self.calls += 1
        return found

    def _load(self) -> None:
        """Embeds a second of a tone."""
        import soundfile  # noqa: F401

        with torch.no_grad():
            wave = resample(tone(48_000), 48_000, 24_000)
            own_method(self._s3gen, "embed_ref")(wave, 24_000, device=self._tts.device)

    def _modules(self) -> list[nn.Module]:
        """Returns the modules that a reference goes through."""
        tts, encoder = self._tts, self._family.voice_encoder
        found = [self._s3gen.tokenizer, self._s3gen.speaker_encoder]
        return [*found, getattr(tts, encoder)] if encoder else found

    def _notes(self) -> list[str]:
        notes = super()._notes()
        if self.calls:
            notes.append(f"{self._cached_answers} of {self.calls} references answered from the cache")
        if self._not_kept:
            notes.append(f"not all are kept: {self._not_kept}")
        return notes

    def _run_reading(self, read: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        stock = own_method(self._tts, self._family.voice.method)
        self._run(functools.partial(read, self, self._tts), stock, *args, **kwargs)

    def _embed_ref(
        self, ref_wav: Any, ref_sr: float, device: Any = "auto", ref_fade_out: bool = True
    ) -> dict[str, Any]:
        stock = own_method(self._s3gen, "embed_ref")
        return self._run(self._embed, stock, ref_wav, ref_sr, device, ref_fade_out)

    def _embed(self, ref_wav: Any, ref_sr: float, device: Any, ref_fade_out: bool) -> dict[str, Any]:
        s3gen = self._s3gen
        _check_wave(ref_wav, ref_sr, "ref_wav")

        def compute() -> dict[str, Any]:
            embedded: dict[str, Any] = own_method(s3gen, "embed_ref")(ref_wav, ref_sr, device, ref_fade_out)
            return embedded

        if isinstance(ref_wav, Tensor) and ref_wav.requires_grad and torch.is_grad_enabled():
            self.left_to_stock += 1
            return compute()
        target = s3gen.device if device == "auto" else device
        key = ("embed", _digest(ref_wav), ref_sr, str(target), ref_fade_out)
        found: dict[str, Any] = self.answer(key, target, compute)
        return found


def _check_wave(wave: Any, rate: Any, name: str) -> None:
    """Refuses a reference from which stock would make a meaningless voice.

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
        raise InputError(f"{name} holds {seconds:.4f} s of audio, the model needs at least {needed:.4f} s{hint}")
    rows = torch.as_tensor(wave).detach().reshape(-1, wave.shape[-1])
    if not torch.isfinite(rows).all():
        raise InputError(f"{name} holds samples that are not finite")
    if not rows.any(dim=1).all():
        raise InputError(
            f"{name} is silent: there is no voice in the {wave.shape[-1] / rate:.1f} s that the model reads"
        )


def _digest(wave: Any) -> str:
    if isinstance(wave, Tensor):
        values = wave.detach().cpu().contiguous()
        return f"{digest(values.view(torch.uint8).numpy())} {values.dtype} {wave.device}"
    return digest(wave)
