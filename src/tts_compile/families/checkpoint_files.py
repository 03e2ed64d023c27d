"""Which files the published checkpoints consist of, and which stock class reads them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import UnsupportedModelError

VOICE = "conds.pt"  # of every variant; a checkpoint may do without


@dataclass(frozen=True)
class Layout:
    """Of one variant of the model.

    Attributes:
        module, name: of the stock class.
        weights: the file of each part, by the part's attribute of the model.
        others: what else must be there, as ``from_local`` of chatterbox-tts 0.1.7 reads it.
    """

    module: str
    name: str
    weights: MappingProxyType[str, str]
    others: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """All that must be there."""
        return (*self.weights.values(), *self.others)

    def missing(self, folder: Path) -> list[str]:
        """Of these, the names of those that are not."""
        return [name for name in self.files if not (folder / name).is_file()]

    def stock_class(self) -> Any:
        """The class itself; imports chatterbox."""
        return getattr(importlib.import_module(self.module), self.name)


def _layout(module: str, name: str, *others: str, **weights: str) -> Layout:
    return Layout(f"chatterbox.{module}", name, MappingProxyType(weights), others)


LAYOUTS = MappingProxyType({
    "english": _layout(
        "tts",
        "ChatterboxTTS",
        "tokenizer.json",
        ve="ve.safetensors",
        t3="t3_cfg.safetensors",
        s3gen="s3gen.safetensors",
    ),
    "multilingual": _layout(
        "mtl_tts",
        "ChatterboxMultilingualTTS",
        "grapheme_mtl_merged_expanded_v1.json",
        ve="ve.pt",
        t3="t3_mtl23ls_v2.safetensors",
        s3gen="s3gen.pt",
    ),
    "turbo": _layout(
        "tts_turbo",
        "ChatterboxTurboTTS",
        "tokenizer_config.json",
        ve="ve.safetensors",
        t3="t3_turbo_v1.safetensors",
        s3gen="s3gen_meanflow.safetensors",
    ),
    "voice conversion": _layout("vc", "ChatterboxVC", s3gen="s3gen.safetensors"),
})  # fmt: skip


def layout_of(cls: type) -> Layout:
    """Of a stock class, or one derived from it.

    Raises:
        UnsupportedModelError: for any other; the message names those that are known.
    """
    names = {(base.__module__, base.__qualname__) for base in getattr(cls, "__mro__", ())}
    for layout in LAYOUTS.values():
        if (layout.module, layout.name) in names:
            return layout
    known = ", ".join(layout.name for layout in LAYOUTS.values())
    raise UnsupportedModelError(f"cannot load {cls!r}; known classes: {known}")
