# SPDX-License-Identifier: Apache-2.0
"""Real daemons, each in a network namespace of its own, joined by a bridge in place of the radio.

``OPEN`` is the configuration of an image that asks for no certificates. :class:`Secured` makes
fleets with an authority and chips.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import network_namespace
import pytest
from patience import PATIENCE

from authority.authority import Authority
from meshlab.chip.atecc608 import Atecc608
from meshlab.chip.driver import open_chip
from thicket.base.paths import Paths
from thicket.control.client import ClientError, request

PREFIX = "fd12:3456:789a:1"
#: Runs a script in which asyncio is as the daemon has it.
AS_THE_DAEMON = """
import runpy, sys
from thicket.daemon.start import import_asyncio
import_asyncio()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

OPEN = """[mesh]
security = "open"
[cluster]
security = "cookie"
[discovery]
beacon = "plain"
"""


class NamespaceNode:
    """A daemon in its own namespace, and the end of its wire in ours."""

    def __init__(
        self, folder: Path, number: int, bridge: str, text: str = "", image: str = OPEN
    ) -> None:
        self.folder = folder / f"n{number}"
        self.identity = f"6f44e3c6b8{number:02x}"
        self.serial = bytes.fromhex("0123" + self.identity + "ee")
        self.paths = Paths(str(self.folder))
        self.wire = f"w{number}"
        self.bridge = bridge
        for name in ("etc/thicket", "data/thicket", "proc/self", "usr/share/thicket"):
            (self.folder / name).mkdir(parents=True)
        Path(self.paths.image).write_text(image)
        Path(self.paths.device).write_text(text or "# defaults\n")
        address = IPv6Address(int(IPv6Address(PREFIX + "::")) + int(self.identity, 16))
        self.name = f"thicket@{address}"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        script = Path(__file__).with_name("node_in_namespace.py")
        Path(self.paths.status).unlink(missing_ok=True)  # an earlier life's
        with (self.folder / "log").open("a") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", AS_THE_DAEMON, str(script), str(self.folder), self.identity],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True,
            )  # fmt: skip
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", self.log()
        network_namespace.ip(f"link add {self.wire} type veth peer name mesh0 netns {process.pid}")
        network_namespace.ip(f"link set {self.wire} master {self.bridge} up")
        process.stdin.write("go\n")
        process.stdin.flush()

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """End the process; its namespace, and with it the wire, goes too."""
        assert self.process is not None
        self.process.send_signal(sig)
        status = self.process.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while Path(f"/sys/class/net/{self.wire}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return status

    def end_chronyd(self) -> None:
        """End the chronyd that a killed daemon has left; the next daemon would do so."""
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):
            number = int((self.folder / "run/thicket/time/pid").read_text())
            if str(self.folder).encode() in Path(f"/proc/{number}/cmdline").read_bytes():
                os.kill(number, signal.SIGKILL)

    def ask(self, method: str, **params: Any) -> Any:
        return request(self.paths.control, method, params, 60.0)

    def members(self) -> set[str]:
        """The other nodes that this one says are up."""
        try:
            document = json.loads(Path(self.paths.status).read_text())
        except OSError:
            return set()
        return {n["name"] for n in document["cluster"]["nodes"] if n["state"] == "up"}


class Fleet:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: list[NamespaceNode] = []

    def add(self, text: str = "", *, image: str = OPEN, start: bool = True) -> NamespaceNode:
        node = NamespaceNode(self.folder, len(self.nodes) + 1, "medium", text, image)
        self.nodes.append(node)
        if start:
            node.start()
        return node

    def until(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds

        def holds() -> object:
            try:
                return condition()
            except ClientError:  # a daemon that is starting does not answer yet
                return False

        while not holds():
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {n.wire}\n{n.log()[-3000:]}" for n in self.nodes)
                pytest.fail(f"not within {seconds} s: {what}\n{logs}")
            time.sleep(0.05)

    def formed(self, *nodes: NamespaceNode) -> bool:
        names = {node.name for node in nodes}
        return all(node.members() == names - {node.name} for node in nodes)


@contextmanager
def fleet_in(folder: Path) -> Iterator[Fleet]:
    """A fleet on a bridge; every daemon ends with it."""
    with network_namespace.namespace():
        network_namespace.ip("link add medium type bridge mcast_snooping 0")
        network_namespace.ip("link set medium up")
        made = Fleet(folder)
        try:
            yield made
        finally:
            for node in made.nodes:
                if node.process is not None and node.process.poll() is None:
                    node.process.kill()
                    node.process.wait()
                node.end_chronyd()


class Secured:
    """A fleet's authority, and nodes with chips that it has enrolled."""

    def __init__(self, fleet: Fleet, name: str = "acme", **options: Any) -> None:
        self.fleet = fleet
        self.authority = Authority(fleet.folder / f"authority-{name}", lambda _: "", **options)
        self.authority.init(name, IPv6Network(f"{PREFIX}::/64"), lab=True)
        root = (self.authority.folder / "root.pem").read_text()
        self.image = f'[mesh]\nsecurity = "open"\n[trust]\nroot = """\n{root}"""\n'

    def add(
        self,
        text: str = "",
        *,
        enrolled_by: "Secured | None" = None,
        enroll: bool = True,
        start: bool = True,
    ) -> NamespaceNode:
        """A node that believes in this fleet, with a chip enrolled in it, or ``enrolled_by``."""
        node = self.fleet.add(text, image=self.image, start=False)
        chip = node.folder / "chip.json"
        Atecc608(node.serial, chip)
        if enroll:
            authority = (enrolled_by or self).authority
            authority.enroll_chip(open_chip(chip), write=True, show=lambda _: None)
        if start:
            node.start()
        return node
