# SPDX-License-Identifier: Apache-2.0
"""Mounts the contents of applications' files, read-only."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import Protocol

from thicket.applications.app_file import AppError

#: Seconds that mount(8) may take.
_PATIENCE = 30.0
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Mounter(Protocol):
    """Makes the contents of a file a folder."""

    def mount(self, file: str, folder: str, *, executable: bool) -> None:
        """Mount ``file`` at ``folder``, which is there and empty.

        :param executable: whether machine code in it may run: compiled modules.
        :raises AppError: it cannot be mounted.
        """

    def unmount(self, folder: str) -> None:
        """Undo it; what is not mounted stays as it is."""


class LoopMounter:
    """Mounts by a loop device, which the kernel frees when nothing uses it any more."""

    def mount(self, file: str, folder: str, *, executable: bool) -> None:
        options = "ro,nodev,nosuid,loop" + ("" if executable else ",noexec")
        _run("mount", "-t", "squashfs", "-o", options, file, folder)

    def unmount(self, folder: str) -> None:
        # Lazily: extension modules that were loaded keep their files open for ever.
        with contextlib.suppress(AppError):
            _run("umount", "-l", folder)


def _run(*words: str) -> None:
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            check=False,
            timeout=_PATIENCE,
            env={"PATH": _PATH, "LC_ALL": "C"},
        )
    except OSError as error:
        raise AppError("not-mounted", f"{words[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise AppError("not-mounted", f"{words[0]} has not ended in {_PATIENCE:g} s") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()[-300:]
        raise AppError("not-mounted", f"its contents cannot be mounted: {said}")


def clear(run: str, mounter: Mounter) -> None:
    """Unmount what a daemon before has left below ``run``."""
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(run)):
            mounter.unmount(f"{run}/{name}")
            with contextlib.suppress(OSError):
                os.rmdir(f"{run}/{name}")
