# SPDX-License-Identifier: Apache-2.0
"""A network of its own for the cables: made by an ordinary user, gone with the program in it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from host import child
from meshlab.cable.errors import CableError

INTERFACE = "cable"
"""The interface that leads to the nodes."""

RESTRICTED = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
CLONE = Path("/proc/sys/kernel/unprivileged_userns_clone")
MOST = Path("/proc/sys/user/max_user_namespaces")


def entering() -> list[str]:
    """Return the command that runs another one in a network of its own, where it may do anything.

    For others than root this takes a user namespace, in which the person is who he is.
    """
    program = shutil.which("unshare")
    if program is None:
        raise CableError("unshare is missing: it is part of the package util-linux")
    if os.geteuid() == 0:
        return [program, "--net", "--mount"]
    return [program, "--user", "--map-current-user", "--keep-caps", "--net", "--mount"]


def check() -> None:
    """Look whether this machine allows such a network.

    :raises CableError: when it does not; the text says what to do.
    """
    command = [*entering(), sys.executable, "-m", "meshlab.cable", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    said = done.stderr.strip().splitlines()
    why = said[-1] if said else f"status {done.returncode}"
    raise CableError(f"this machine has no network for a cable: {why}. {_advice()}")


def _advice() -> str:
    others = "`meshlab ssh`, `meshlab cp` and `thicket --lab` need none"
    for path, wrong, right in ((RESTRICTED, "1", "0"), (CLONE, "0", "1"), (MOST, "0", "10000")):
        try:
            value = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if value == wrong:
            name = ".".join(path.parts[3:])
            return f"`sudo sysctl -w {name}={right}` allows it to everybody; {others}"
    return f"Root may, as `sudo -E`; {others}"


class Network:
    """A network with cables to some nodes.

    :param sockets: Where the other ends of the cables are, by node.
    """

    def __init__(self, sockets: Mapping[str, Path]) -> None:
        self._sockets = dict(sockets)

    async def run(self, command: Sequence[str]) -> int:
        """Run a command in it; return the exit status.

        :raises CableError: when this machine does not allow it.
        """
        await asyncio.to_thread(check)
        paths = json.dumps({name: str(path) for name, path in self._sockets.items()})
        line = [*entering(), sys.executable, "-m", "meshlab.cable", paths, *command]
        loop = asyncio.get_running_loop()
        # Keys of the terminal are for the command. A signal to this program is for both.
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        process = await asyncio.create_subprocess_exec(*child.tied(line))
        try:
            return await process.wait()
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            if process.returncode is None:
                process.terminate()
                await process.wait()
