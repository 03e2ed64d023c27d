"""Compiled code in one file, for other machines of the same kind."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import CompilationError, InputError
from ..fallback import reason
from ..utils import files
from .folder import folder, found, made, root, sort_of
from .machine import Machine, this_machine

logger = logging.getLogger(__name__)

_FORMAT = 1
_MANIFEST = "manifest.json"
_LONGEST_MANIFEST = 64 * 2**20
_LARGEST = 4 * 2**30  # of all files together, unpacked: they are held in memory
_TOO_MUCH = f"more than {_LARGEST / 2**30:g} GiB of compiled code"
_CARRIED = ("generated", "native", "graphs", "autograd")  # written in this order: what refers to others comes later
_LOCK_SECONDS = 600  # as torch's own
# All that zipfile, zlib and json raise for bytes that are not what they seem.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, TypeError, KeyError, OverflowError),
    *(AttributeError, RuntimeError),  # encrypted; a method that is not known
)


@dataclass(frozen=True)
class SavedCache:
    """What :func:`save_compile_cache` has written.

    Attributes:
        path: of the file.
        files: how many are in it.
        bytes: of these, unpacked.
    """

    path: str
    files: int
    bytes: int


@dataclass(frozen=True)
class LoadedCache:
    """What :func:`load_compile_cache` has done.

    Attributes:
        loaded: whether the file was of use here.
        reason: why it was not; empty where it was.
        files: how many were written; those that were there already are kept.
        bytes: of these.
    """

    loaded: bool
    reason: str = ""
    files: int = 0
    bytes: int = 0


class _RefusedError(Exception):
    """The message is the reason."""


def save_compile_cache(path: str | Path, cache_dir: str | None = None) -> SavedCache:
    """Write what has been compiled on this machine into one file, for :func:`load_compile_cache`.

    It is a zip file with torch's graphs, the code generated for them, GPU kernels and native libraries; autotune's
    choices are not in it. What ``torch.compiler.save_cache_artifacts`` gives is not either: that holds the graphs which
    this process has looked up, all of them from this folder, and no C++ library.

    Args:
        path: of the file, which is replaced where there is one.
        cache_dir: as of :class:`CompileConfig`.

    Raises:
        CompilationError: when nothing has been compiled yet, or what has been may be another user's work.
        InputError: when the file cannot be written.
    """
    place = folder(cache_dir)
    carried = [(name, sort) for name, sort in found(place) if sort in _CARRIED]
    if not carried:
        raise CompilationError(f"nothing is compiled yet in {place}: run warmup() first, or tts-compile warmup")
    for parent in (root(cache_dir), place):
        files.refuse_unsafe(parent)
    sizes = []
    digests = {}
    try:
        with files.replaced(path) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, _ in carried:
                if (content := _whole(place, name)) is not None:
                    sizes.append(len(content))
                    digests[str(name)] = hashlib.sha256(content).hexdigest()
                    archive.writestr(zipfile.ZipInfo(str(name)), content, zipfile.ZIP_DEFLATED)
                    if sum(sizes) > _LARGEST:
                        raise CompilationError(f"{place} holds {_TOO_MUCH}; remove it and warm up again")
            manifest = {"format": _FORMAT, "machine": dataclasses.asdict(this_machine()), "sha256": digests}
            archive.writestr(zipfile.ZipInfo(_MANIFEST), json.dumps(manifest, indent=1), zipfile.ZIP_DEFLATED)
    except OSError as error:
        raise InputError(f"compiled code cannot be written to {path}: {reason(error)}") from error
    return SavedCache(str(path), len(sizes), sum(sizes))


def load_compile_cache(path: str | Path, cache_dir: str | None = None) -> LoadedCache:
    """Put what :func:`save_compile_cache` has written where torch and this library look for compiled code.

    Loading is running code: take files only from whom you trust. The digests inside find damage, not malice.

    A file from another kind of machine (other torch, Python, CPU, C++ compiler, folders of installation, or operators
    of this library), of another format, or damaged is not used: nothing is written, a warning is logged and the result
    has the reason. Files that are there already are kept. A process that compiles meanwhile sees whole files only.

    Args:
        path: of the file.
        cache_dir: as of :class:`CompileConfig`.

    Raises:
        InputError: when the file cannot be read.
        CompilationError: when the folder for compiled code cannot be written to, or others can write to it.
    """
    try:
        packed = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"compiled code cannot be read from {path}: {reason(error)}") from error
    try:
        contents = _contents(packed)
    except _RefusedError as refused:
        logger.warning("%s is not loaded: %s", path, refused)
        return LoadedCache(False, str(refused))
    place = made(cache_dir)
    try:
        written = _write(place, contents)
    except OSError as error:
        raise CompilationError(f"compiled code cannot be kept in {place}: {error}") from error
    return LoadedCache(True, files=len(written), bytes=sum(written))


def _whole(place: Path, name: PurePosixPath) -> bytes | None:
    """A file's content, once no compiler writes to it any more; None where it has gone or is a link."""
    from filelock import FileLock  # brings asyncio along

    path = place / name
    lock = place / "locks" / f"{name.stem}.lock"  # torch's, which is held while a library is linked
    guard: AbstractContextManager[Any] = FileLock(lock, timeout=_LOCK_SECONDS)
    with guard if os.access(lock, os.W_OK) else contextlib.nullcontext():
        try:
            return None if path.is_symlink() else path.read_bytes()
        except FileNotFoundError:
            return None


def _contents(packed: bytes) -> dict[PurePosixPath, bytes]:
    """Every file in an archive, or a reason not to use it."""
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            infos = {info.filename: info for info in archive.infolist()}
            if len(infos) != len(archive.infolist()):
                raise _RefusedError("damaged: a name occurs twice")
            if any(info.compress_type != zipfile.ZIP_DEFLATED for info in infos.values()):
                raise _RefusedError("damaged: a method of compression that is not used")
            if _MANIFEST not in infos:
                raise _RefusedError("it is no archive of compiled code")
            if infos[_MANIFEST].file_size > _LONGEST_MANIFEST:
                raise _RefusedError("damaged: the manifest is too long")
            digests = _digests(json.loads(archive.read(infos.pop(_MANIFEST))))
            if infos.keys() != digests.keys():
                raise _RefusedError("damaged: the files are not those of the manifest")
            _check(infos.values())
            contents = {}
            for name, info in infos.items():
                content = archive.read(info)
                if hashlib.sha256(content).hexdigest() != digests[name]:
                    raise _RefusedError(f"damaged: {name} is not what was saved")
                contents[PurePosixPath(name)] = content
    except _DAMAGE as error:
        raise _RefusedError(f"damaged: {reason(error)}") from error
    return contents


def _digests(manifest: Any) -> dict[str, str]:
    """The manifest's files with their digests, for this format and this kind of machine only."""
    if manifest["format"] != _FORMAT:
        raise _RefusedError(f"format {manifest['format']} there, {_FORMAT} here")
    if differences := Machine.from_dict(manifest["machine"]).differences(this_machine()):
        raise _RefusedError(differences)
    digests: dict[str, str] = manifest["sha256"]
    return digests


def _check(infos: Collection[zipfile.ZipInfo]) -> None:
    """Only regular files of compiled code, under names that stay inside the folder, and not too much of it."""
    for info in infos:
        name, path = info.filename, PurePosixPath(info.filename)
        inside = path.parts and ".." not in path.parts and not path.is_absolute()
        if str(path) != name or not inside or any(character in name for character in "\\:\0"):
            raise _RefusedError(f"{name!r} is no name of a file in the folder for compiled code")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise _RefusedError(f"{name} is no regular file")
        if sort_of(path) not in _CARRIED:
            raise _RefusedError(f"{name} is no compiled code")
    if sum(info.file_size for info in infos) > _LARGEST:
        raise _RefusedError(_TOO_MUCH)


def _write(place: Path, contents: dict[PurePosixPath, bytes]) -> list[int]:
    """Sizes of the files that were not there and are now.

    They are written aside: torch reads every file in the folder of a graph.
    """
    written = []
    with tempfile.TemporaryDirectory(prefix=".loading-", dir=place) as aside:
        beside = Path(aside) / "file"
        for name in sorted(contents, key=lambda name: (_CARRIED.index(str(sort_of(name))), name)):
            path = place / name
            if path.exists():
                continue
            beside.touch(mode=0o600)
            beside.write_bytes(contents[name])
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.replace(beside, path)
            written.append(len(contents[name]))
    return written
