"""Where compiled code is kept: a folder that lasts, and in it one for each kind of machine."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath

import platformdirs

from .. import _compat
from ..utils import files
from .machine import this_machine

logger = logging.getLogger(__name__)

MACHINE = "machine.json"  # what the folder's name is a digest of
VECTORS = "vectors.json"  # the vector instructions that were found to work
OURS = "tts_compile"  # native libraries and autotune's choices; everything beside it is torch's


def root(cache_dir: str | None = None) -> Path:
    """The folder that holds one for each kind of machine.

    ``cache_dir``, or what the environment has as ``TTS_COMPILE_CACHE_DIR`` or, set by the user, as
    ``TORCHINDUCTOR_CACHE_DIR``, or ``tts_compile`` where the user's caches are.
    """
    chosen = cache_dir or os.environ.get("TTS_COMPILE_CACHE_DIR") or _compat.inductor_cache_dir()
    if chosen:
        return Path(chosen).absolute()
    return platformdirs.user_cache_path("tts_compile", appauthor=False)


def folder(cache_dir: str | None = None) -> Path:
    """The folder for this kind of machine, which may not be there yet."""
    return root(cache_dir) / this_machine().name


def made(cache_dir: str | None = None) -> Path:
    """The folder for this kind of machine, made for its owner alone where it is missing.

    Raises:
        UnsafeFileError: when another user can write to it.
        CompilationError: when it cannot be made.
    """
    files.own_folder(root(cache_dir))
    place = files.own_folder(folder(cache_dir))
    about = place / MACHINE
    if not about.exists():
        try:
            with files.replaced(about) as beside:
                beside.write_text(json.dumps(dataclasses.asdict(this_machine()), indent=1) + "\n", encoding="utf-8")
        except OSError as error:  # which is for readers only
            logger.warning("%s cannot be written: %s", about, error)
    return place


def using_cache(cache_dir: str | None = None) -> AbstractContextManager[None]:
    """Inside, torch keeps what it compiles in the folder for this kind of machine."""
    return _compat.using_cache_dir(str(folder(cache_dir)))


def sort_of(path: PurePosixPath) -> str | None:
    """What a file in such a folder is, by its path there; None for locks, and what is not whole yet.

    ``"graphs"`` (FX graphs with what is generated for them), ``"autograd"`` (what AOTAutograd makes of traced
    functions), ``"generated"`` (C++, Python and kernels, as source and as libraries), ``"native"`` (this library's), or
    ``"choices"`` (autotune's).
    """
    first = path.parts[0]
    if (
        any(part.startswith(".") for part in path.parts)
        or path.suffix in (".lock", ".tmp")
        or str(path) in (MACHINE, VECTORS)
    ):
        return None
    if first == OURS:
        return {".so": "native", ".json": "choices"}.get(path.suffix)
    return {"fxgraph": "graphs", "aotautograd": "autograd", "locks": None}.get(first, "generated")


def found(place: Path) -> list[tuple[PurePosixPath, str]]:
    """Every file in such a folder that is of some sort, with the sort, in the order of names."""
    paths = [
        PurePosixPath(Path(parent, name).relative_to(place).as_posix())
        for parent, _, names in os.walk(place)  # which passes over what cannot be read
        for name in names
    ]
    return [(path, sort) for path in sorted(paths) if (sort := sort_of(path))]
