# SPDX-License-Identifier: Apache-2.0
"""Files that the desk's commands make: as a whole or not at all, and never by mistake.

What a command has made may be what others were made from. So a file is only replaced where the
person says so, or where that changes nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from authority.errors import AuthorityError
from host.stop import held
from thicket.base import files as nodes
from thicket.base.errors import ThicketError

_OF_THE_DISK: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Errors of writing that name no file."""

_NEXT: Final = {
    errno.ENOSPC: "make room there, or choose another place",
    errno.EDQUOT: "make room there, or choose another place",
    errno.EROFS: "choose another place",
    errno.EACCES: "choose another place, or become its owner",
    errno.EPERM: "choose another place, or become its owner",
}
"""What a person can do about an error of writing."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write and read, which becomes ``path`` at the end, unless there is an error.

    :raises AuthorityError: it cannot be written there.
    """
    check_place(path)
    new = path.with_name(f".{path.name}.new")
    file: BinaryIO | None = None
    there = False
    try:
        with held():
            os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
            file = _taken(path, new)
        file.truncate()
        yield file
        file.flush()
        os.fsync(file.fileno())
        with held():
            new.replace(path)
            there = True
    except OSError as error:
        if error.filename != str(new) and error.errno not in _OF_THE_DISK:
            raise
        raise not_written(path, error) from None
    finally:
        with held():
            if file is not None and not there:
                with suppress(OSError):
                    new.unlink()
            if file is not None:
                with suppress(OSError):  # what could not be written was told
                    file.close()


def _taken(path: Path, new: Path) -> BinaryIO:
    """Open the file that becomes ``path``, and make sure that no other command writes it.

    :raises AuthorityError: one does.
    """
    busy = AuthorityError(f"{path} is being written by another command: wait for its end")
    try:
        file = new.open("r+b")
    except FileNotFoundError:
        raise busy from None  # it has just been put into place
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), new.stat()):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    file.close()
    raise busy


def opened(path: Path) -> BinaryIO:
    """Open a file that somebody has named, to read; of a pipe or a device there is no end to wait
    for.

    :raises OSError: it cannot be read, or is no plain file.
    """
    try:
        return nodes.opened(str(path))
    except OSError as error:
        if error.errno == errno.EINVAL and path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path)) from None
        raise


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read; what is wrong with what is in it is said of this file.

    :raises AuthorityError: in place of any other error of ours.
    """
    with opened(path) as file, named(path):
        yield file


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Have what is wrong said of this file.

    :raises AuthorityError: in place of any other error of ours.
    """
    try:
        yield
    except ThicketError as error:
        raise AuthorityError(f"{path}: {error}") from None


def check_place(path: Path) -> None:
    """Make sure that a file of this name may be made.

    :raises AuthorityError: it is a folder or a device, or there is no such folder.
    """
    if path.is_dir():
        raise AuthorityError(
            f"{path} is a folder, and the name of a file is needed: {path / 'NAME'}"
        )
    if path.is_symlink() and not path.exists():
        raise AuthorityError(f"{path} is a link that leads nowhere: choose another name")
    if path.exists() and not path.is_file():
        raise AuthorityError(f"{path} is no plain file and is not replaced: choose another name")
    if path.parent.exists() and not path.parent.is_dir():
        raise AuthorityError(f"{path.parent} is a file, so that there is no {path}")
    if not path.parent.exists():
        raise AuthorityError(
            f"there is no folder {path.parent} for {path.name}: make it, or choose another place"
        )


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder, if it is not there.

    :raises AuthorityError: it cannot be made.
    """
    check_folder(path)
    try:
        path.mkdir(parents=True, exist_ok=True, mode=mode)
    except OSError as error:
        raise not_written(path, error) from None


def check_folder(path: Path) -> None:
    """Make sure that a name is not that of a file.

    :raises AuthorityError: it is.
    """
    if path.exists() and not path.is_dir():
        raise AuthorityError(f"{path} is a file, and a folder is needed: choose another name")


def not_written(path: Path, error: OSError) -> AuthorityError:
    """Return what is said of a file or folder that cannot be written."""
    advice = _NEXT.get(error.errno or 0, "choose another place")
    return AuthorityError(f"{path} cannot be written: {error.strerror}: {advice}")


def is_there(path: Path, why: str) -> AuthorityError:
    """Return what is said of a file that is not replaced.

    :param why: what it is, and what replacing it would spoil.
    """
    return AuthorityError(
        f"{path} is there already, {why}. Choose another name (--out), or replace it with --force"
    )
