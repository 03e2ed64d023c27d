"""The folder for compiled code: a permanent one, with a subfolder for each kind of machine."""

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

MACHINE = "machine.json"  # the kind of machine; the folder's name holds a digest of it
VECTORS = "vectors.json"  # the vector instructions that were found to work
OWN_FOLDER = "tts_compile"  # subfolder for native libraries and autotune's choices; torch writes everything else


def root(cache_dir: str | None = None) -> Path:
    """Returns the folder that holds a subfolder for each kind of machine.

    The first of these that is set names it: ``cache_dir``, the environment variable ``TTS_COMPILE_CACHE_DIR``, the
    environment variable ``TORCHINDUCTOR_CACHE_DIR`` as the user has set it, and ``tts_compile`` in the user's cache
    folder.
    """
    chosen = cache_dir or os.environ.get("TTS_COMPILE_CACHE_DIR") or _compat.inductor_cache_dir()
    if chosen:
        return Path(chosen).absolute()
    return platformdirs.user_cache_path("tts_compile", appauthor=False)


def folder(cache_dir: str | None = None) -> Path:
    """Returns the folder for this kind of machine, which may not exist yet."""
    return root(cache_dir) / this_machine().name


def make_folder(cache_dir: str | None = None) -> Path:
    """Makes the folder for this kind of machine, for its owner alone, if it is missing, and returns it.

    Raises:
        UnsafeFileError: when another user can write to it.
        CompilationError: when it cannot be made.
    """
    files.own_folder(root(cache_dir))
    cache_folder = files.own_folder(folder(cache_dir))
    about = cache_folder / MACHINE
    if not about.exists():
        try:
            with files.replaced(about) as beside:
                beside.write_text(json.dumps(dataclasses.asdict(this_machine()), indent=1) + "\n", encoding="utf-8")
        except OSError as error:  # no code depends on the file
            logger.warning("%s cannot be written: %s", about, error)
    return cache_folder


def using_cache(cache_dir: str | None = None) -> AbstractContextManager[None]:
    """Makes torch store compiled code in the folder for this kind of machine, inside a ``with`` block."""
    return _compat.using_cache_dir(str(folder(cache_dir)))


def kind_of(path: PurePosixPath) -> str | None:
    """Returns the kind of a file by its path in such a folder; None for locks and incomplete files.

    The kinds are ``"graphs"`` (FX graphs with the code generated for them), ``"autograd"`` (functions that AOTAutograd
    has traced), ``"generated"`` (C++, Python and kernels, as source and as libraries), ``"native"`` (libraries of this
    package) and ``"choices"`` (settings that autotune has chosen).
    """
    first = path.parts[0]
    if (
        any(part.startswith(".") for part in path.parts)
        or path.suffix in (".lock", ".tmp")
        or str(path) in (MACHINE, VECTORS)
    ):
        return None
    if first == OWN_FOLDER:
        return {".so": "native", ".json": "choices"}.get(path.suffix)
    return {"fxgraph": "graphs", "aotautograd": "autograd", "locks": None}.get(first, "generated")


def compiled_files(cache_folder: Path) -> list[tuple[PurePosixPath, str]]:
    """Returns every file in such a folder that has a kind, with its kind, in the order of names."""
    paths = [
        PurePosixPath(Path(parent, name).relative_to(cache_folder).as_posix())
        for parent, _, names in os.walk(cache_folder)  # skips folders that cannot be read
        for name in names
    ]
    return [(path, kind) for path in sorted(paths) if (kind := kind_of(path))]
