"""Writes compiled code into one file and loads it on other machines of the same kind."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import stat
import tempfile
import zipfile
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import CompilationError, InputError
from ..fallback import reason
from ..utils import files
from .folder import compiled_files, folder, kind_of, make_folder, root
from .machine import Machine, this_machine

logger = logging.getLogger(__name__)

_FORMAT = 1
_MANIFEST = "manifest.json"
MAX_MANIFEST = 64 * 2**20  # bytes
MAX_CONTENT = 4 * 2**30  # bytes of all files together, unpacked: they are held in memory
_TOO_MUCH = f"more than {MAX_CONTENT / 2**30:g} GiB of compiled code"
_CARRIED = ("generated", "native", "graphs", "autograd")  # in this order: a file never refers to a later one
_LOCK_SECONDS = 600  # torch waits as long


@dataclass(frozen=True)
class SavedCache:
    """The result of :func:`save_compile_cache`.

    Attributes:
        path: the archive.
        files: number of files in it.
        bytes: their size, unpacked.
    """

    path: str
    files: int
    bytes: int


@dataclass(frozen=True)
class LoadedCache:
    """The result of :func:`load_compile_cache`.

    Attributes:
        loaded: whether the archive fits this machine.
        reason: why it does not; empty where it does.
        files: number of files that were written; files that existed already are kept and not counted.
        bytes: their size.
    """

    loaded: bool
    reason: str = ""
    files: int = 0
    bytes: int = 0


class RefusedError(Exception):
    """An archive is not used; the message is the reason."""


def save_compile_cache(path: str | Path, cache_dir: str | None = None) -> SavedCache:
    """Writes all code that was compiled on this machine into one file, for :func:`load_compile_cache`.

    The file is a zip archive with torch's graphs, the code generated for them, GPU kernels and native libraries.
    Autotune's choices are not in it. ``torch.compiler.save_cache_artifacts`` would not do: its result lacks the C++
    libraries.

    Args:
        path: the file to write; an existing file is replaced.
        cache_dir: the cache folder, as in :class:`CompileConfig`.

    Raises:
        CompilationError: when nothing has been compiled yet, or another user could have written the code.
        InputError: when the file cannot be written.
    """
    cache_folder = folder(cache_dir)
    carried = [name for name, kind in compiled_files(cache_folder) if kind in _CARRIED]
    if not carried:
        raise CompilationError(f"nothing is compiled yet in {cache_folder}: run warmup() first")
    for parent in (root(cache_dir), cache_folder):
        files.refuse_unsafe(parent)
    sizes = []
    digests = {}
    try:
        with files.replaced(path) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in carried:
                if (content := _whole(cache_folder, name)) is not None:
                    sizes.append(len(content))
                    digests[str(name)] = hashlib.sha256(content).hexdigest()
                    archive.writestr(zipfile.ZipInfo(str(name)), content, zipfile.ZIP_DEFLATED)
                    if sum(sizes) > MAX_CONTENT:
                        raise CompilationError(f"{cache_folder} holds {_TOO_MUCH}; remove it and warm up again")
            manifest = {"format": _FORMAT, "machine": dataclasses.asdict(this_machine()), "sha256": digests}
            archive.writestr(zipfile.ZipInfo(_MANIFEST), json.dumps(manifest, indent=1), zipfile.ZIP_DEFLATED)
    except OSError as error:
        raise InputError(f"compiled code cannot be written to {path}: {reason(error)}") from error
    return SavedCache(str(path), len(sizes), sum(sizes))


def load_compile_cache(path: str | Path, cache_dir: str | None = None) -> LoadedCache:
    """Unpacks a file that :func:`save_compile_cache` has written into the cache folder.

    The code in the file will be run: load only files from people you trust. The digests inside detect damage, not
    malice.

    The file is not used when it is damaged, has another format, or comes from another kind of machine (other torch,
    Python, CPU, C++ compiler, installation folders, or operators of this library). Then nothing is written, a warning
    is logged and the result holds the reason. Existing files are kept. Other processes that compile at the same time
    see complete files only.

    Args:
        path: the file.
        cache_dir: the cache folder, as in :class:`CompileConfig`.

    Raises:
        InputError: when the file cannot be read.
        CompilationError: when the cache folder cannot be written to, or other users can write to it.
    """
    try:
        packed = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"compiled code cannot be read from {path}: {reason(error)}") from error
    try:
        contents = unpacked(packed)
    except RefusedError as refused:
        logger.warning("%s is not loaded: %s", path, refused)
        return LoadedCache(False, str(refused))
    cache_folder = make_folder(cache_dir)
    try:
        written = _write(cache_folder, contents)
    except OSError as error:
        raise CompilationError(f"compiled code cannot be kept in {cache_folder}: {error}") from error
    return LoadedCache(True, files=len(written), bytes=sum(written))


def _whole(cache_folder: Path, name: PurePosixPath) -> bytes | None:
    """Returns a file's content when no compiler writes to it any more; None for a link or a file that was removed."""
    from filelock import FileLock  # here, since it imports asyncio

    path = cache_folder / name
    lock = cache_folder / "locks" / f"{name.stem}.lock"  # torch holds this lock while it links a library
    guard: AbstractContextManager[Any] = FileLock(lock, timeout=_LOCK_SECONDS)
    with guard if os.access(lock, os.W_OK) else contextlib.nullcontext():
        try:
            return None if path.is_symlink() else path.read_bytes()
        except FileNotFoundError:
            return None


def unpacked(packed: bytes) -> dict[PurePosixPath, bytes]:
    """Returns the content of every file in an archive.

    Raises:
        RefusedError: when the archive is damaged or not for this machine.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            infos = {info.filename: info for info in archive.infolist()}
            if len(infos) != len(archive.infolist()):
                raise RefusedError("damaged: a name occurs twice")
            if any(info.compress_type != zipfile.ZIP_DEFLATED for info in infos.values()):
                raise RefusedError("damaged: another method of compression")
            if _MANIFEST not in infos:
                raise RefusedError("it is not an archive of compiled code")
            if infos[_MANIFEST].file_size > MAX_MANIFEST:
                raise RefusedError("damaged: the manifest is too long")
            digests = _digests(json.loads(archive.read(infos.pop(_MANIFEST))))
            if infos.keys() != digests.keys():
                raise RefusedError("damaged: the files are not those of the manifest")
            _check(infos.values())
            contents = {}
            for name, info in infos.items():
                content = archive.read(info)
                if hashlib.sha256(content).hexdigest() != digests[name]:
                    raise RefusedError(f"damaged: {name} is not what was saved")
                contents[PurePosixPath(name)] = content
    except (RefusedError, MemoryError):
        raise
    except Exception as error:  # zipfile, zlib, struct and json raise errors without a common base
        raise RefusedError(f"damaged: {reason(error)}") from error
    return contents


def _digests(manifest: Any) -> dict[str, str]:
    """Returns the digest of each file in the manifest; refuses other formats and other kinds of machines."""
    if manifest["format"] != _FORMAT:
        raise RefusedError(f"format {manifest['format']} instead of {_FORMAT}")
    if differences := Machine.from_dict(manifest["machine"]).differences(this_machine()):
        raise RefusedError(differences)
    digests: dict[str, str] = manifest["sha256"]
    return digests


def _check(infos: Collection[zipfile.ZipInfo]) -> None:
    """Refuses anything but regular files of compiled code whose names stay inside the folder, and too large content."""
    for info in infos:
        name, path = info.filename, PurePosixPath(info.filename)
        inside = path.parts and ".." not in path.parts and not path.is_absolute()
        if str(path) != name or not inside or any(character in name for character in "\\:\0"):
            raise RefusedError(f"{name!r} is not the name of a file in the cache folder")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise RefusedError(f"{name} is not a regular file")
        if kind_of(path) not in _CARRIED:
            raise RefusedError(f"{name} is not compiled code")
    if sum(info.file_size for info in infos) > MAX_CONTENT:
        raise RefusedError(_TOO_MUCH)


def _write(cache_folder: Path, contents: dict[PurePosixPath, bytes]) -> list[int]:
    """Writes the files that do not exist yet and returns their sizes.

    Each is written in a temporary folder and then moved, since torch reads every file in the folder of a graph.
    """
    written = []
    with tempfile.TemporaryDirectory(prefix=".loading-", dir=cache_folder) as temporary:
        unfinished = Path(temporary) / "file"
        for name in sorted(contents, key=lambda name: (_CARRIED.index(str(kind_of(name))), name)):
            path = cache_folder / name
            if path.exists():
                continue
            unfinished.touch(mode=0o600)
            unfinished.write_bytes(contents[name])
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.replace(unfinished, path)
            written.append(len(contents[name]))
    return written
