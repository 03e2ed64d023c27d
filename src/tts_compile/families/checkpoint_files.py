"""The files of a published checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

VOICE = "conds.pt"  # of every family; a checkpoint may do without


@dataclass(frozen=True)
class CheckpointFiles:
    """Names of the files that ``from_local`` of chatterbox-tts 0.1.7 reads.

    Attributes:
        weights: the file of each part, by the part's attribute of the model.
        others: further files that must exist.
    """

    weights: MappingProxyType[str, str]
    others: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of all files that must exist."""
        return (*self.weights.values(), *self.others)

    def missing(self, folder: Path) -> list[str]:
        """Returns the names of the files that do not exist in a folder."""
        return [name for name in self.names if not (folder / name).is_file()]


def checkpoint_files(*others: str, **weights: str) -> CheckpointFiles:
    """Returns the files of a checkpoint: ``checkpoint_files("tokenizer.json", ve="ve.safetensors")``."""
    return CheckpointFiles(MappingProxyType(weights), others)


NO_FILES = checkpoint_files()
