# SPDX-License-Identifier: Apache-2.0
"""What an installation leaves behind whose daemon was killed: RAUC goes on, or has died with the
bundle mounted. Two RAUCs would write one slot, and the next could not mount its bundle.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from logging import getLogger

from thicket.base.files import entries
from thicket.base.paths import Paths
from thicket.update.judge import InstallError

log = getLogger(__name__)

#: Environment variable of the RAUCs that a daemon has started.
MARK = "THICKET_UPDATE"
#: Where RAUC mounts: ``mountprefix`` of its system.conf.
MOUNTS = "/run/rauc/"
#: Seconds that RAUC may take for ending in order, and for being gone when it is killed.
GRACE, KILLED = 15.0, 5.0
_LOOK = 0.1
_NAME = "rauc"
_MOST = 16 * 1024


def clear(paths: Paths) -> None:
    """End the RAUCs of a daemon that is no more, and unmount what they had mounted; blocking.

    :raises InstallError: somebody has started RAUC by hand, or it cannot be ended.
    """
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, KILLED)):
        if not list(_running(paths)):
            break
        for pid, ours in _running(paths):
            if not ours:
                raise InstallError(
                    "busy", f"RAUC is running, started by hand (process {pid}): wait for its end"
                )
            log.warning("ending process %d of an installation that was cut off", pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        _wait(paths, patience)
    else:
        if pids := [pid for pid, _ in _running(paths)]:
            raise InstallError(
                "busy", f"RAUC (process {pids[0]}) cannot be ended: restart the node"
            )
    for place in _mounted(paths):
        log.warning("unmounting %s, which an installation has left", place)
        subprocess.run(["umount", "-l", place], check=False, timeout=GRACE)


def _wait(paths: Paths, patience: float) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end and any(True for _ in _running(paths)):
        time.sleep(_LOOK)


def _running(paths: Paths) -> Iterator[tuple[int, bool]]:
    """Yield the RAUCs that run, and whether a daemon has started them."""
    folder = f"{paths.root}/proc"
    for name in entries(folder):
        if not name.isdecimal():
            continue
        try:
            with open(f"{folder}/{name}/comm", encoding="utf-8", errors="replace") as file:
                if file.read(64).strip() != _NAME:
                    continue
            with open(f"{folder}/{name}/stat", encoding="utf-8", errors="replace") as file:
                if file.read(_MOST).rpartition(")")[2].split()[:1] == ["Z"]:
                    continue  # it has ended
            with open(f"{folder}/{name}/environ", "rb") as environment:
                marked = environment.read(_MOST).split(b"\0")
        except OSError:
            continue  # it has just ended
        yield int(name), f"{MARK}=1".encode() in marked


def _mounted(paths: Paths) -> list[str]:
    """Return what is mounted where RAUC mounts, the last one first."""
    try:
        with open(paths.mounts, encoding="utf-8", errors="replace") as file:
            places = [line.split(" ", 2)[1] for line in file if line.count(" ") > 2]
    except OSError:
        return []
    return [place for place in reversed(places) if place.startswith(MOUNTS)]
