"""Files that are whole or not there, and folders that nobody else can write to."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import CompilationError, UnsafeFileError

_SEAL = hashlib.sha256().digest_size


@contextlib.contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """The name of a file beside ``path``, to be written in the block, which takes its place at the end.

    Whoever reads ``path`` meanwhile finds what was there before; after an error in the block that stays.
    """
    path = Path(path)
    beside = path.with_name(f".{path.stem}-{secrets.token_hex(8)}{path.suffix}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def seal(path: Path) -> None:
    """Append a digest of the content, for :func:`sealed`; formats with a header ignore what follows their end."""
    content = path.read_bytes()
    path.write_bytes(content + hashlib.sha256(content).digest())


def sealed(path: Path) -> bool:
    """Whether a file is as :func:`seal` left it: not cut short, and not written over."""
    content = path.read_bytes()
    return content[-_SEAL:] == hashlib.sha256(content[:-_SEAL]).digest()


def refuse_unwritable(path: Path) -> None:
    """Make the folder of a file that is to be written later, and try that it can be.

    Raises:
        OSError: when it cannot.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, where a file is to be written")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def own_folder(folder: Path) -> Path:
    """The folder, made for its owner alone where it is missing.

    Raises:
        UnsafeFileError: when another user can write to it.
        CompilationError: when it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CompilationError(
            f"compiled code cannot be kept in {folder}: {error}; TTS_COMPILE_CACHE_DIR names another folder"
        ) from error
    refuse_unsafe(folder)
    return folder


def refuse_unsafe(path: Path) -> None:
    """What is run as code may be written by its owner alone.

    A group that has the user's name is the user's own, as many systems set it up.

    Raises:
        UnsafeFileError: when another user owns it or can write to it.
    """
    if not hasattr(os, "getuid"):
        return
    status = path.stat()
    if status.st_uid not in (os.getuid(), 0):
        raise UnsafeFileError(f"{path} belongs to another user; code is not loaded from there")
    others = status.st_mode & stat.S_IWOTH
    group = status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid)
    if others or group:
        raise UnsafeFileError(f"{path} can be written by other users; code is not loaded from there")


def _is_own_group(number: int) -> bool:
    import grp
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name == grp.getgrgid(number).gr_name
    except KeyError:  # without a name
        return False
