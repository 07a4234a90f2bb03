# SPDX-License-Identifier: Apache-2.0
"""The directory of a lab: held by one supervisor at a time, prepared for a run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from pathlib import Path

from meshlab.lab.errors import LabError
from meshlab.lab.paths import lab_directory, own_call


class LabDirectory:
    """The directory of the lab ``name``."""

    def __init__(self, name: str, cache: Path | None = None) -> None:
        self.name = name
        self.path = lab_directory(name, cache)
        self._lock: int | None = None

    def take(self) -> None:
        """Hold the directory.

        :raises LabError: when another supervisor does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise LabError(
                f"the lab {self.name!r} is already running (process {owner}): "
                f"end it with `{own_call(self.name, 'down')}`, or run a second one beside it "
                "with LAB=other"
            ) from None
        self._lock = fd
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let go of the directory. May be called twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def passphrase(self, given: str, *, keep: bool) -> str:
        """Return the mesh's passphrase, and keep it for the next run.

        No two labs have the same, as no two fleets should: it is made anew unless one is given
        or kept.

        :param given: The passphrase; "": none is given.
        :param keep: Take that of the previous run when none is given.
        """
        path = self.path / "passphrase"
        if not given and keep:
            with contextlib.suppress(FileNotFoundError):
                given = path.read_text(encoding="utf-8")
        passphrase = given or secrets.token_urlsafe(15)
        path.touch(mode=0o600)
        path.write_text(passphrase, encoding="utf-8")
        return passphrase

    def prepare_node(self, name: str, *, keep: bool) -> Path:
        """Return the directory of a node, without what the previous run left.

        Its logs stay beside the new ones as ``*.log.1``.

        :param name: The node.
        :param keep: Its chip and disks stay, too.
        """
        directory = self.path / name
        directory.mkdir(exist_ok=True)
        clear_node(directory, keep=keep)
        return directory


def clear_node(directory: Path, *, keep: bool) -> None:
    """Remove what the previous run left in the directory of a node; logs become ``*.log.1``.

    :param directory: The directory.
    :param keep: Chip and disks stay, too.
    """
    for path in directory.iterdir():
        if path.suffix == ".log":
            path.replace(path.with_suffix(".log.1"))  # the run before can still be read
        elif path.is_dir():
            shutil.rmtree(path)
        elif path.suffix == ".sock" or (not keep and path.suffix != ".1"):
            path.unlink()


def is_held(directory: Path) -> bool:
    """Tell whether a supervisor has a lab's directory."""
    try:
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def last_lines(path: Path, count: int) -> str:
    """Return the last lines of a text file, "" when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(line.rstrip() for line in lines[-count:])
