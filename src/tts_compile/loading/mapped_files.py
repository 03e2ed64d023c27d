"""The tensors of a checkpoint's files, mapped rather than read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_AT_A_TIME = 2**28  # bytes of a file that are resident while it is copied


class Stored(dict[str, Tensor]):
    """By their names, the tensors of one file; their memory is the file's, and is not read before it is used.

    Args:
        read: maps the file anew.
    """

    def __init__(self, path: str | Path, read: Callable[[], dict[str, Tensor]]) -> None:
        self.file = Path(path).name
        self._read = read
        super().__init__(read())

    def copies(
        self, tensors: Mapping[str, Tensor], copy: Callable[[str, Tensor], Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """``copy`` of these tensors; no more of the file is held in memory than it takes to copy a few of them.

        Args:
            tensors: of this file, by whatever names.
            copy: is given a name and its tensor.
        """
        stored_as = {id(tensor): name for name, tensor in self.items()}
        groups = list(_groups(tensors))
        for group in groups:
            again = self._read() if len(groups) > 1 else self  # what is mapped anew is let go of with its group
            for name in group:
                yield name, copy(name, again[stored_as[id(tensors[name])]])


def _groups(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        group.append(name)
        size += tensor.nbytes
        if size >= _AT_A_TIME:
            yield group
            group, size = [], 0
    if group:
        yield group


class Unreadable(Stored):
    """In place of a file that cannot be read, so that the others can still be looked at."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, dict)


def mapped(path: str | Path, *args: Any, **options: Any) -> Stored:
    """What ``safetensors.torch.load_file`` or, by the file's name, ``torch.load`` reads."""
    from safetensors.torch import load_file

    if Path(path).suffix == ".safetensors":
        return Stored(path, lambda: load_file(path, *args, **options))

    def read() -> dict[str, Tensor]:
        try:
            found = torch.load(path, *args, mmap=True, **options)
        except RuntimeError:  # of torch before 1.6, which cannot be mapped; or damaged, which the next line says
            found = torch.load(path, *args, **options)
        return dict(found)

    return Stored(path, read)
