# SPDX-License-Identifier: Apache-2.0
"""``thicket logs``, ``reboot`` and ``support``: what somebody needs who cares for a node."""

from __future__ import annotations

import os
import subprocess
import sys

from thicket.cli.common import OK, UsageError, node_paths
from thicket.control.client import ClientError


def logs(words: list[str]) -> int:
    """Run ``thicket logs [-f] [-n LINES] [--before]``."""
    follow = before = False
    lines: int | None = None
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "-f":
            follow = True
        elif word == "--before":
            before = True
        elif word == "-n" and rest and rest[0].isascii() and rest[0].isdigit():
            lines = int(rest.pop(0)[:9])
        else:
            raise UsageError("logs takes -f, -n LINES and --before")
    if before:
        if follow:
            raise UsageError(
                "the log from before the last start does not go on: --before without -f"
            )
        from thicket.upkeep import kept_log

        text = kept_log.before(node_paths())
        if text is None:
            raise ClientError("no-log", "there is no log from before the last start on /data")
    else:
        text = _run(["logread"])
    shown = text.splitlines()
    print("\n".join(shown if lines is None else shown[len(shown) - min(lines, len(shown)) :]))
    sys.stdout.flush()
    # What comes between the two is not shown; logread cannot begin at a line.
    return subprocess.run(["logread", "-F"], check=False).returncode if follow else OK


def reboot(words: list[str]) -> int:
    """Run ``thicket reboot``: restart the device in order."""
    if words:
        raise UsageError("reboot takes no arguments")
    _run(["reboot"])
    print("restarting")
    return OK


def support(words: list[str]) -> int:
    """Run ``thicket support [FILE|-]``: gather what helps to find a fault, without secrets."""
    if len(words) > 1 or (words and words[0].startswith("-") and words[0] != "-"):
        raise UsageError('support takes a FILE ("-" is standard output)')
    from thicket.upkeep import support as gathered

    packed = gathered.pack(node_paths())
    if words == ["-"]:
        if sys.stdout.isatty():
            raise UsageError("a terminal shows no archive: `thicket support FILE`")
        sys.stdout.buffer.write(packed)
        return OK
    path = words[0] if words else "/data/support.tar.gz"
    with open(path, "wb", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
        file.write(packed)
    print(f"{path}: {len(packed)} bytes; look into it before you give it to anybody")
    return OK


def _run(words: list[str]) -> str:
    """Return what a program of the system says.

    :raises ClientError: it is not there, or fails.
    """
    try:
        done = subprocess.run(words, capture_output=True, check=False, timeout=30.0)
    except (OSError, subprocess.TimeoutExpired) as e:
        why = getattr(e, "strerror", None) or str(e)
        raise ClientError("failed", f"{words[0]}: {why}") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise ClientError("failed", f"{words[0]}: {said or f'status {done.returncode}'}")
    return done.stdout.decode("utf-8", "replace")


COMMANDS = {"logs": logs, "reboot": reboot, "support": support}
