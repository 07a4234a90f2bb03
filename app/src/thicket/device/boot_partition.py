# SPDX-License-Identifier: Apache-2.0
"""The boot partition: mounted, written and unmounted by one program at a time."""

from __future__ import annotations

import contextlib
import os

from thicket.base import patience
from thicket.base.errors import ThicketError
from thicket.base.files import locked, write_atomically
from thicket.base.paths import Paths, boot_mounted

#: Seconds to wait while another program uses the boot partition.
LOCK_PATIENCE = 20.0
#: Seconds that a command gets.
_SECONDS = 20.0


class StoreError(ThicketError):
    """The configuration could not be written; the old one is still there."""

    code = "not-written"


def boot_lock(paths: Paths) -> contextlib.AbstractContextManager[None]:
    """Use the boot partition exclusively; other threads, commands and the report wait.

    :raises StoreError: when it is entered, and does not become free.
    """
    words = f"the boot partition was in use for {LOCK_PATIENCE:.0f} s; try again"
    return locked(paths.run + "/boot.lock", LOCK_PATIENCE, StoreError(words))


def unmount_boot(paths: Paths) -> None:
    """Unmount the boot partition.

    :raises StoreError: it cannot be unmounted, for example because a file on it is open.
    """
    run(["umount", paths.boot])


def write_to_boot(paths: Paths, device: str, target: str, data: bytes) -> None:
    """Replace a file on the boot partition, which is writable only meanwhile."""
    mount_boot(paths, device)
    _mount(["-o", "remount,rw", paths.boot])
    try:
        write_atomically(target, data)
        os.sync()
    finally:
        _mount(["-o", "remount,ro", paths.boot])


def remove_from_boot(paths: Paths, device: str | None, target: str) -> None:
    """Remove a file from the boot partition, which is writable only meanwhile.

    :param device: None where the partition is a folder of a node without one.
    """
    if device is None:
        os.unlink(target)
        return
    mount_boot(paths, device)
    _mount(["-o", "remount,rw", paths.boot])
    try:
        os.unlink(target)
        os.sync()
    finally:
        _mount(["-o", "remount,ro", paths.boot])


def mount_boot(paths: Paths, device: str) -> None:
    """Mount the boot partition as init does, unless it is mounted."""
    if not boot_mounted(paths):
        _mount(["-t", "vfat", "-o", "ro,nosuid,nodev,noexec,noatime", device, paths.boot])


def _mount(arguments: list[str]) -> None:
    run(["mount", *arguments])


def run(command: list[str]) -> None:
    """Run a command.

    :raises StoreError: it fails.
    """
    try:
        status, said = patience.run(command, _SECONDS)
    except OSError as e:
        raise StoreError(f"cannot run {' '.join(command)}: {e}") from e
    if status != 0:
        raise StoreError(f"{' '.join(command)} failed: {said or f'status {status}'}")
