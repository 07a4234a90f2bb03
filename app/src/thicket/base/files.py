# SPDX-License-Identifier: Apache-2.0
"""Small files: read up to a limit, replaced as a whole.

:mod:`pathlib` is not used: importing it costs as much as importing the whole radio.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from io import BufferedReader

#: Largest configuration file that is read, in bytes.
MAX_FILE_BYTES = 64 * 1024


def read_limited(path: str) -> bytes:
    """Return the file's bytes, at most one more than allowed, so that a huge file costs nothing."""
    with open(path, "rb") as f:
        return f.read(MAX_FILE_BYTES + 1)


def opened(path: str) -> BufferedReader:
    """Open a regular file for reading; nothing else, which might hang (a pipe) or do something.

    :raises OSError: it cannot be opened, or is no regular file.
    """
    fd = -1
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return open(fd, "rb")
    except BaseException:
        if fd >= 0:
            os.close(fd)
        raise
    if fd >= 0:
        os.close(fd)
    raise OSError(errno.EINVAL, "no regular file", path)


def read_kept(path: str, most: int) -> bytes:
    """Return the beginning of a file that this program has written.

    :raises OSError: it cannot be read, or is no regular file.
    """
    with opened(path) as file:
        return file.read(most)


def from_disk(fd: int) -> None:
    """Have what is read of an open file from now on come from the disk, not from memory.

    :raises OSError: the disk does not take what was written to it.
    """
    try:
        os.fsync(fd)
    except OSError as e:
        if e.errno not in (errno.EINVAL, errno.EROFS):  # nothing can be written there
            raise
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def write_atomically(
    path: str,
    data: bytes,
    *,
    mode: int = 0o644,
    durable: bool = True,
    own: bool = False,
    unread: bool = False,
) -> None:
    """Replace a file. A reader, or a boot after a power cut, finds the old or the new one whole.

    :param mode: the permissions of the new file; they are never wider at any moment, not even
        where an interrupted attempt has left a file behind.
    :param durable: wait for the disk; pass False on a RAM file system.
    :param own: nobody else has anything there: a folder in its place, or a file in the place of
        its own folder, is removed.
    :param unread: let :func:`was_read` tell whether somebody has read it. The time of its last
        access is 1970 until then.
    :raises OSError: the file cannot be written; the old one stays.
    """
    folder = os.path.dirname(path)
    temporary = path + ".new"
    if own:
        make_folder(folder)
        discard(temporary)
        if os.path.isdir(path):
            discard(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(temporary, flags, mode)
    except (FileNotFoundError, FileExistsError):
        os.makedirs(folder, exist_ok=True)
        remove(temporary)  # a leftover file may have other permissions
        fd = os.open(temporary, flags, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if unread:
            os.utime(fd, ns=(0, time.time_ns()))
        if durable:
            os.fsync(fd)
    except OSError:
        os.close(fd)
        os.unlink(temporary)
        raise
    os.close(fd)
    os.replace(temporary, path)
    if durable:
        sync_folder(folder)


def was_read(path: str) -> bool:
    """Return whether somebody has read a file since it was written as ``unread``.

    True as well where that cannot be known: there is no such file, or times of access are not kept.
    """
    try:
        if os.statvfs(path).f_flag & os.ST_NOATIME:
            return True
        return os.stat(path).st_atime_ns != 0
    except OSError:
        return True


def sync_file(path: str) -> None:
    """Make what was written to a file durable.

    :raises OSError: the disk does not take it, or there is no such file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(folder: str) -> None:
    """Make a rename in ``folder`` durable, where the file system can (FAT may not)."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError:
        pass
    finally:
        os.close(fd)


def read(path: str) -> str | None:
    """Return the stripped text of a small file, None when it cannot be read."""
    try:
        # Without the layers of a text file, which cost more than the reading: it is done all the
        # time, of files of the kernel.
        with open(path, "rb", buffering=0) as file:
            return file.read(MAX_FILE_BYTES).decode("utf-8", "replace").strip()
    except OSError:
        return None


@contextlib.contextmanager
def locked(path: str, patience: float, busy: Exception) -> Iterator[None]:
    """Hold the lock that is the file ``path``; other programs and threads wait.

    :param patience: seconds to wait for whoever holds it.
    :param busy: raised when it was not free by then.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise busy from None
                time.sleep(0.05)
        yield
    finally:
        os.close(lock)


def remove(path: str) -> None:
    """Remove a file if it is there."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def discard(path: str) -> None:
    """Remove whatever is there, a folder with everything in it."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError:
        import shutil  # rare

        shutil.rmtree(path, ignore_errors=True)


def make_folder(path: str, mode: int = 0o777) -> None:
    """Make a folder that is this program's own; a file in its place is removed.

    :raises OSError: it cannot be made.
    """
    try:
        os.makedirs(path, mode, exist_ok=True)
    except FileExistsError:
        remove(path)
        os.makedirs(path, mode, exist_ok=True)


def own_folder(path: str, mode: int = 0o777) -> None:
    """Make a folder that this program empties as well: what is in it is nobody else's.

    A symbolic link in its place is removed, and not followed: what it points to may be somebody's.

    :raises OSError: it cannot be made.
    """
    if os.path.islink(path):
        os.unlink(path)
    make_folder(path, mode)


def entries(path: str) -> list[str]:
    """Return the sorted names in a directory; an empty list when it cannot be read."""
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def link_name(path: str) -> str:
    """Return the last part of a symbolic link's target; empty when there is no such link."""
    try:
        return os.readlink(path).rpartition("/")[2]
    except OSError:
        return ""
