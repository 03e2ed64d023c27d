"""What lies in the folder for compiled code."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .folder import MACHINE, folder, found, root
from .machine import Machine, this_machine


@dataclass(frozen=True)
class Kept:
    """Files of one sort: how many, and their bytes; ``str()`` is a phrase."""

    files: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        return f"{self.files} files, {self.bytes / 2**20:.1f} MiB" if self.files else "none"


@dataclass(frozen=True)
class OtherCache:
    """A folder that this machine has no use for: it is stale, or of another machine.

    Attributes:
        name: of the folder.
        differs: in what, in words.
        kept: everything in it.
    """

    name: str
    differs: str
    kept: Kept


@dataclass(frozen=True)
class CacheState:
    """What lies in the folder for compiled code, and beside it.

    Attributes:
        folder: for this kind of machine; it may not be there yet.
        machine: the kind.
        graphs: FX graphs that inductor has compiled.
        autograd: traced functions, as AOTAutograd leaves them.
        generated: what inductor has generated for the graphs, as source and as libraries.
        native: libraries of this package.
        choices: of autotune.
        others: folders for other kinds of machines.
    """

    folder: str
    machine: Machine
    graphs: Kept
    autograd: Kept
    generated: Kept
    native: Kept
    choices: Kept
    others: tuple[OtherCache, ...]

    def rows(self) -> list[tuple[str, str]]:
        """For a table."""
        titles = {
            "graphs": "FX graphs",
            "autograd": "traced functions",
            "generated": "generated code",
            "native": "native libraries",
            "choices": "autotune's choices",
        }
        rows = [("compile cache", self.folder)]
        rows += [(f"- {title}", str(getattr(self, sort))) for sort, title in titles.items()]
        return rows + [(f"- stale or foreign: {o.name}", f"{o.kept}: {o.differs}") for o in self.others]


def state(cache_dir: str | None = None) -> CacheState:
    """Look at the folder for compiled code; writes nothing."""
    place = folder(cache_dir)
    sizes: dict[str, list[int]] = {}
    for path, sort in found(place):
        sizes.setdefault(sort, []).append(_size(place / path))
    sorts = ("graphs", "autograd", "generated", "native", "choices")
    kept = {sort: _kept(sizes.get(sort, ())) for sort in sorts}
    others = (_other(path.parent) for path in sorted(root(cache_dir).glob(f"*/{MACHINE}")) if path.parent != place)
    return CacheState(str(place), this_machine(), **kept, others=tuple(others))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # gone meanwhile
        return 0


def _kept(sizes: Iterable[int]) -> Kept:
    sizes = list(sizes)
    return Kept(len(sizes), sum(sizes))


def _other(place: Path) -> OtherCache:
    try:
        machine = Machine.from_dict(json.loads((place / MACHINE).read_text(encoding="utf-8")))
        differs = machine.differences(this_machine())
    except (OSError, ValueError) as error:
        differs = f"{MACHINE} cannot be read: {error}"
    return OtherCache(place.name, differs, _kept(_size(place / path) for path, _ in found(place)))
