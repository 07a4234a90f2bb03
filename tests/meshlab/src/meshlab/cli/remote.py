# SPDX-License-Identifier: Apache-2.0
"""``python -m meshlab.cli.remote``: ``thicket --lab`` in a checkout, into a simulated fleet.

One ssh leads to the node's control socket, as often as is asked: a channel of the same connection
for each. So it costs the node a socket, and not a program.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address
from pathlib import Path

from host import child
from meshlab.cli.common import CommandError, connected
from meshlab.cli.inside import CONNECT, ssh_command
from meshlab.cli.main import explained
from meshlab.lab.errors import LabError
from meshlab.lab.fleet import FOLDER
from meshlab.lab.paths import lab_directory
from meshlab.lab.topology import node_index
from meshlab.wire.rpc import RpcError
from remote import cli
from remote.errors import RemoteError
from remote.ways import Ends, Entrance
from thicket.base.paths import Paths
from thicket.cli.main import guarded
from thicket.control.server import MAX_ANSWER

_PAUSE = 0.05
_END = 5.0


def main(words: list[str]) -> int:
    """Run ``thicket --lab NAME ...``; return the exit status."""
    return cli.main(words, open_lab=_opened)


@contextmanager
def _opened(name: str) -> Iterator[Entrance]:
    """Open the way into a running lab, see :data:`remote.cli.OpenLab`.

    :raises RemoteError: when it does not run, or cannot be entered.
    """
    lab, _, node = name.partition("/")
    try:
        directory = lab_directory(lab)
        node = asyncio.run(_first(lab, node))
        command = ssh_command(lab)
    except RpcError as error:
        raise RemoteError("no-lab", explained(error, lab)) from None
    except (CommandError, LabError, ValueError) as error:
        raise RemoteError("no-lab", str(error)) from None
    with tempfile.TemporaryDirectory(prefix="thicket-") as folder:
        door = _Door(command, node, Path(folder, "control.sock"))
        try:
            yield Entrance(lambda: _LabWay(door), directory / FOLDER)
        finally:
            door.close()


async def _first(lab: str, node: str) -> str:
    """Return the node at which a lab is entered: the one that is named, or the first that is on."""
    async with connected(lab) as client:
        if node:
            found = await client.call("node", {"node": node})
            if found["power"] != "running":
                raise CommandError(f"{found['name']} is {found['power']}")
            return str(found["name"])
        nodes = (await client.call("status"))["nodes"]
    # One that this machine runs: no other has a way in.
    here = [name for name, each in nodes.items() if each["power"] == "running" and not each["host"]]
    if not here:
        raise CommandError(f"the lab {lab!r} has no node that is on and runs on this machine")
    return str(min(here, key=node_index))


class _Door:
    """The connection with a node's control socket.

    :param command: The beginning of a call of ssh.
    :param node: The node.
    :param path: Where this program connects to it.
    """

    def __init__(self, command: list[str], node: str, path: Path) -> None:
        self.node = node
        self._command = command
        self._path = path
        self._child: subprocess.Popen[bytes] | None = None

    async def open(self) -> Ends:
        """Connect.

        :raises RemoteError: when the node cannot be reached.
        """
        if self._child is None:
            forward = f"{self._path}:{Paths().control}"
            options = ["-N", "-T", "-o", "ExitOnForwardFailure=yes", "-L", forward]
            self._child = self._started(options)
        try:
            async with asyncio.timeout(CONNECT):
                while not self._path.exists():
                    if (status := self._child.poll()) is not None:
                        message = f"ssh to {self.node} ended with status {status}; it has said why"
                        raise RemoteError("unreachable", message)
                    await asyncio.sleep(_PAUSE)
                ends = await asyncio.open_unix_connection(self._path, limit=MAX_ANSWER)
        except TimeoutError:
            message = f"{self.node} does not answer within {CONNECT:g} s"
            raise RemoteError("unreachable", message) from None
        except OSError as error:
            raise RemoteError("unreachable", f"{self.node}: {error.strerror or error}") from None
        return Ends(*ends)

    def _started(self, options: list[str]) -> subprocess.Popen[bytes]:
        # Not as one of asyncio's: it is ended where no loop runs any more.
        return subprocess.Popen(
            child.tied([*self._command, *options, self.node]),
            stdin=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for this program, or for the node's
        )

    def close(self) -> None:
        """End it."""
        if self._child is None:
            return
        self._child.terminate()
        try:
            self._child.wait(_END)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


class _LabWay:
    """See :class:`remote.ways.Way`."""

    address: IPv6Address | None = None

    def __init__(self, door: _Door) -> None:
        self._door = door

    def __str__(self) -> str:
        return self._door.node

    async def open(self) -> Ends:
        """See ``Way``."""
        return await self._door.open()

    async def close(self) -> None:
        """See ``Way``: others may still use the connection."""

    async def failure(self) -> str | None:
        """See ``Way``."""
        return None


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
