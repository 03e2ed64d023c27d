"""Maps the tensors of a checkpoint's files into memory instead of reading them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_GROUP_BYTES = 2**28  # bytes of a file that are in memory while it is copied


class Stored(dict[str, Tensor]):
    """The tensors of one file by their names; the system reads them from the file when they are used.

    Args:
        path: the file.
        read: maps the file into memory and returns its tensors.
    """

    def __init__(self, path: str | Path, read: Callable[[], dict[str, Tensor]]) -> None:
        self.file = Path(path).name
        self._read = read
        super().__init__(read())

    def copies(
        self, tensors: Mapping[str, Tensor], copy: Callable[[str, Tensor], Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yields names with copies of these tensors, and never holds more than a part of the file in memory.

        Args:
            tensors: tensors of this file, by any names.
            copy: called with a name and its tensor; returns the copy.
        """
        stored_as = {id(tensor): name for name, tensor in self.items()}
        sizes = itertools.accumulate(tensor.nbytes for tensor in tensors.values())
        groups = {name: size // _GROUP_BYTES for name, size in zip(tensors, sizes)}
        several = len({*groups.values()}) > 1
        for _, group in itertools.groupby(tensors, groups.__getitem__):
            again = self._read() if several else self  # a new mapping, whose memory is freed with the group
            for name in group:
                yield name, copy(name, again[stored_as[id(tensors[name])]])


class Unreadable(Stored):
    """A file that cannot be read; it lets ``from_local`` go on, so that the other files are checked too."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, dict)


def mapped(path: str | Path, *args: Any, **options: Any) -> Stored:
    """Maps a file that ``safetensors.torch.load_file`` or, by the file's name, ``torch.load`` reads."""
    from safetensors.torch import load_file

    if Path(path).suffix == ".safetensors":
        return Stored(path, lambda: load_file(path, *args, **options))

    def read() -> dict[str, Tensor]:
        try:
            return dict(torch.load(path, *args, mmap=True, **options))
        except RuntimeError:  # a file of torch before 1.6 cannot be mapped; for a damaged one, the next line raises
            return dict(torch.load(path, *args, **options))

    return Stored(path, read)
