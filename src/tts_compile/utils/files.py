"""Files that are complete or absent, and folders that only their owner can write to."""

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
    """Yields the name of a file to write in the block, and renames it to ``path`` at the end.

    Until then, and after an error in the block, readers of ``path`` find the earlier content.
    """
    path = Path(path)
    beside = path.with_name(f".{path.stem}-{secrets.token_hex(8)}{path.suffix}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def seal(path: Path) -> None:
    """Appends a digest of the content for :func:`sealed`; loaders of shared libraries ignore bytes after the end."""
    content = path.read_bytes()
    path.write_bytes(content + hashlib.sha256(content).digest())


def sealed(path: Path) -> bool:
    """Returns whether a file is as :func:`seal` left it: neither truncated nor overwritten."""
    content = path.read_bytes()
    return content[-_SEAL:] == hashlib.sha256(content[:-_SEAL]).digest()


def refuse_unwritable(path: Path) -> None:
    """Creates the folder of a file that is to be written later, and checks that the folder can be written to.

    Raises:
        OSError: when the folder cannot be created or written to.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; a file is to be written there")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def own_folder(folder: Path) -> Path:
    """Returns the folder; creates it, for its owner alone, where it is missing.

    Raises:
        UnsafeFileError: when another user can write to it.
        CompilationError: when it cannot be created.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CompilationError(
            f"compiled code cannot be kept in {folder}: {error}; set TTS_COMPILE_CACHE_DIR to another folder"
        ) from error
    refuse_unsafe(folder)
    return folder


def refuse_unsafe(path: Path) -> None:
    """Checks that only the user or root can write to a file or folder whose content is run as code.

    Many systems give each user a group of the same name; such a group counts as the user.

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
    """Returns whether a group has the name of the user who runs this process."""
    import grp
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name == grp.getgrgid(number).gr_name
    except KeyError:  # the user or the group has no name
        return False
