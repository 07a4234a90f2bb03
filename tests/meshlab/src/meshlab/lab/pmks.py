# SPDX-License-Identifier: Apache-2.0
"""Master keys of an encrypted mesh, as the nodes know them, for captures in clear.

A node's wpa_supplicant tells them on its control socket (``MESH_PMKSA_GET``) when it was built with
``CONFIG_PMKSA_CACHE_EXTERNAL``, as Debian's is: so those of the lab image do, those of the firmware
do not.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

from meshlab.machine.shell import ShellError
from meshlab.wire.rpc import RpcError

if TYPE_CHECKING:
    from meshlab.lab.lab import Lab

log = logging.getLogger(__name__)

EVERY = 1.0
"""Seconds between looks for nodes with new peers."""

PATIENCE = 30.0
"""Seconds a node has to answer."""

_ASK = """
import glob, os, socket
for path in glob.glob("/run/thicket/wpa/*"):
    with open("/sys/class/net/" + os.path.basename(path) + "/address") as file:
        print("own", file.read())
    asked = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    own = "/tmp/pmks.%d" % os.getpid()
    asked.bind(own)
    try:
        asked.settimeout(5)
        asked.connect(path)
        asked.send(b"MESH_PMKSA_GET any")
        print(asked.recv(65536).decode())
    finally:
        os.unlink(own)
"""

_ADDRESS = r"((?:[0-9a-f]{2}:){5}[0-9a-f]{2})"
_OWN = re.compile(rf"own {_ADDRESS}")
_ENTRY = re.compile(rf"{_ADDRESS} [0-9a-f]{{32}} ([0-9a-f]{{64}}) -?[0-9]+")


def read(answer: str) -> list[tuple[str, str, str]]:
    """Return what a node told: its address, its peer's, and the key in hexadecimal digits."""
    own = ""
    found = []
    for line in answer.splitlines():
        if matched := _OWN.fullmatch(line.strip()):
            own = matched[1].replace(":", "")
        elif (matched := _ENTRY.fullmatch(line.strip())) and own:
            found.append((own, matched[1].replace(":", ""), matched[2]))
    return found


class Pmks:
    """Asks the nodes of a lab, and tells the medium, as long as a capture needs it."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._asked: dict[str, frozenset[str]] = {}
        """The peers of each node when it was asked."""
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Ask every node, and from now on those that have new peers."""
        self._asked.clear()
        await self._look()
        if self._task is None:
            self._task = asyncio.create_task(self._keep())

    async def end(self) -> None:
        """Ask nobody any more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            await self._look()

    async def _look(self) -> None:
        state = self._lab.state
        new = {
            name: peers
            for name in self._lab.nodes
            if (peers := frozenset(state.peers(name))) - self._asked.get(name, frozenset())
        }
        gone = {name: frozenset(state.peers(name)) & old for name, old in self._asked.items()}
        self._asked = {**gone, **await self._ask(new)}

    async def _ask(self, wanted: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
        """Ask nodes; return those that answered."""
        answers = await asyncio.gather(*(self._of(name) for name in wanted))
        pairs = [list(entry) for answer in answers for entry in answer or ()]
        try:
            if pairs:
                await self._lab.medium_call("keys", {"pairs": pairs})
        except RpcError as error:
            log.debug("keys for the medium: %s", error)
            return {}
        return {
            name: peers
            for (name, peers), answer in zip(wanted.items(), answers, strict=True)
            if answer is not None
        }

    async def _of(self, name: str) -> list[tuple[str, str, str]] | None:
        try:
            _, output = await self._lab.run(name, f"python3 -c {shlex.quote(_ASK)}", PATIENCE)
        except (ShellError, RpcError) as error:
            log.debug("keys of %s: %s", name, error)
            return None
        return read(output)
