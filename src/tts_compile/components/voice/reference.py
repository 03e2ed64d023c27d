"""The reference voice as a component: from a recording to what T3 and S3Gen are conditioned on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ...audio.reading import Recording, digest, resample
from ...families import s3gen
from ...families.family import Family
from ..component import EagerComponent
from ..runtime import Runtime
from ..seam import own_method
from ..weight_watch import WeightWatch, environment
from .encoder import tone

_KEPT = 8  # voices, some 0.2 MB each


class ReferenceComponent(EagerComponent):
    """A component that replaces the family's method that reads a recording, and ``tts.s3gen.embed_ref``.

    A recording gives the same results until the weights change, so that the last few are kept.
    """

    def __init__(self, tts: Any, family: Family, runtime: Runtime) -> None:
        super().__init__("reference", runtime, "a reference is read once: compiling would cost more than it saves")
        self._tts = tts
        self._family = family
        self._kept: dict[Hashable, Any] = {}  # results by what was asked for, the last used one last
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
        self._kept.clear()

    def embedded(self, recording: Recording) -> tuple[Any, dict[str, Any]]:
        """Returns the recording at S3Gen's rate, float32 (samples,), and S3Gen's embedding of its beginning."""
        wave, start, rate = s3gen.reference_wave(self._tts, recording)
        return wave, self._stock(start, rate, device=self._tts.device)

    def answer(self, key: Hashable, device: Any, compute: Callable[[], Any]) -> Any:
        """Returns ``compute()``, or its result for an equal key and equal weights; kept results have no gradients."""
        unchanged, reason = self._watch.look()
        if not unchanged:
            self._kept.clear()
        if reason:
            self._not_kept = reason
            return compute()
        key = (key, *s3gen.voice_settings(self._s3gen), environment(device))
        found = self._kept.pop(key, None)
        if found is None:
            with torch.no_grad():
                found = compute()
        else:
            self._cached_answers += 1
        self._kept[key] = found
        if len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]
        return tree_map_only(Tensor, Tensor.clone, found)  # the caller may write to it

    def _load(self) -> None:
        """Embeds a second of a tone."""
        import soundfile  # noqa: F401

        with torch.no_grad():
            wave = resample(tone(48_000), 48_000, 24_000)
            self._stock(wave, 24_000, device=self._tts.device)

    def _stock(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Calls S3Gen's own ``embed_ref``."""
        embedded: dict[str, Any] = own_method(self._s3gen, "embed_ref")(*args, **kwargs)
        return embedded

    def _modules(self) -> list[nn.Module]:
        """Returns the modules that a reference goes through."""
        encoder = self._family.voice_encoder
        return [*s3gen.voice_modules(self._s3gen), *([getattr(self._tts, encoder)] if encoder else [])]

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
        s3gen.check_wave(ref_wav, ref_sr, "ref_wav")
        given = ref_wav, ref_sr, device, ref_fade_out
        if isinstance(ref_wav, Tensor) and ref_wav.requires_grad and torch.is_grad_enabled():
            return self._leave(self._stock, *given)
        target = self._s3gen.device if device == "auto" else device

        def embed(*given: Any) -> dict[str, Any]:
            key = ("embed", _digest(ref_wav), ref_sr, str(target), ref_fade_out)
            found: dict[str, Any] = self.answer(key, target, functools.partial(self._stock, *given))
            return found

        return self._run(embed, self._stock, *given)


def _digest(wave: Any) -> str:
    if isinstance(wave, Tensor):
        values = wave.detach().cpu().contiguous()
        return f"{digest(values.view(torch.uint8).numpy())} {values.dtype} {wave.device}"
    return digest(wave)
