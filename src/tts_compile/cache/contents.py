"""Counts the files in the cache folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .folder import MACHINE, compiled_files, folder, root
from .machine import Machine, this_machine

_TITLES = {
    "graphs": "FX graphs",
    "autograd": "traced functions",
    "generated": "generated code",
    "native": "native libraries",
    "choices": "autotune's choices",
}


@dataclass(frozen=True)
class FileCount:
    """The number of files of one kind and their size; ``str()`` is a phrase such as ``"2 files, 0.1 MiB"``."""

    files: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        return f"{self.files} files, {self.bytes / 2**20:.1f} MiB" if self.files else "none"


@dataclass(frozen=True)
class OtherCache:
    """A folder that this machine does not use: it is out of date, or another machine has written it.

    Attributes:
        name: name of the folder.
        differs: the differences to this machine, in words.
        kept: number and size of all files in it.
    """

    name: str
    differs: str
    kept: FileCount


@dataclass(frozen=True)
class CacheState:
    """The files in the cache folder.

    Attributes:
        folder: the folder for this kind of machine; it may not exist yet.
        machine: this kind of machine.
        graphs: FX graphs that inductor has compiled.
        autograd: traced functions that AOTAutograd has stored.
        generated: code that inductor has generated for the graphs, as source and as libraries.
        native: libraries of this package.
        choices: settings that autotune has chosen.
        others: folders for other kinds of machines.
    """

    folder: str
    machine: Machine
    graphs: FileCount
    autograd: FileCount
    generated: FileCount
    native: FileCount
    choices: FileCount
    others: tuple[OtherCache, ...]

    def rows(self) -> list[tuple[str, str]]:
        """Returns the rows of a table."""
        rows = [("compile cache", self.folder)]
        rows += [(f"- {title}", str(getattr(self, kind))) for kind, title in _TITLES.items()]
        return rows + [(f"- stale or foreign: {o.name}", f"{o.kept}: {o.differs}") for o in self.others]


def state(cache_dir: str | None = None) -> CacheState:
    """Counts the files in the cache folder; writes nothing."""
    cache_folder = folder(cache_dir)
    found = compiled_files(cache_folder)
    counts = {of: _count(cache_folder / path for path, kind in found if kind == of) for of in _TITLES}
    machines = [path.parent for path in sorted(root(cache_dir).glob(f"*/{MACHINE}"))]
    others = tuple(_other(machine) for machine in machines if machine != cache_folder)
    return CacheState(str(cache_folder), this_machine(), **counts, others=others)


def _count(paths: Iterable[Path]) -> FileCount:
    sizes = []
    for path in paths:
        try:
            sizes.append(path.stat().st_size)
        except OSError:  # somebody has removed it
            continue
    return FileCount(len(sizes), sum(sizes))


def _other(cache_folder: Path) -> OtherCache:
    try:
        machine = Machine.from_dict(json.loads((cache_folder / MACHINE).read_text(encoding="utf-8")))
        differs = machine.differences(this_machine())
    except (OSError, ValueError) as error:
        differs = f"{MACHINE} cannot be read: {error}"
    kept = _count(cache_folder / path for path, _ in compiled_files(cache_folder))
    return OtherCache(cache_folder.name, differs, kept)
