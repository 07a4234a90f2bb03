# SPDX-License-Identifier: Apache-2.0
"""A daemon in a network namespace of its own, for test_daemon.py: everything real but the radio.

Run as ``python node_in_namespace.py ROOT IDENTITY``. It leaves the network first and says "ready";
the test then gives it an interface named mesh0 and answers with a line.
"""

import asyncio
import sys
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Interface
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests/helpers"))
sys.path.insert(0, str(Path(__file__).parent))

import network_namespace

from thicket.applications.mounts import Mounter
from thicket.base import log
from thicket.base.events import Listener
from thicket.base.paths import Paths
from thicket.config.load import load
from thicket.config.schema import Settings
from thicket.daemon.daemon import Daemon
from thicket.daemon.parts import Parts
from thicket.identity.source import Identity
from thicket.radio.events import Joined, RadioEvent
from thicket.radio.interface import guard
from thicket.radio.radio import Radio
from thicket.radio.section import MeshSection
from thicket.timekeeping.chrony import Chrony


class WireMesh(Radio):
    """In place of a radio: an interface that is there already."""

    announced: Callable[[str], str | None] = staticmethod(lambda link_local: None)
    joined: bool = False
    outdated: bool = False

    def __init__(
        self, settings: MeshSection, address: IPv6Interface, listener: Listener[RadioEvent]
    ) -> None:
        self._settings = settings
        self.address = address
        self.listener = listener
        self._moved = asyncio.Event()

    @property
    def settings(self) -> MeshSection:
        return self._settings

    def apply(self, settings: MeshSection, address: IPv6Interface | None = None) -> None:
        self._settings = settings
        if address is not None and address != self.address:
            network_namespace.ip(f"address del {self.address} dev mesh0")
            self.address = address
            self._moved.set()

    async def run(self) -> None:
        guard("mesh0")
        network_namespace.up("mesh0")
        while True:
            self._moved.clear()
            network_namespace.ip(f"address replace {self.address} dev mesh0 nodad")
            self.joined = True
            self.listener.on(Joined("mesh0", 1, str(self.address), False))
            await self._moved.wait()

    def renew(self) -> None:
        pass

    def peers(self) -> set[str]:
        return set()

    def refused(self) -> dict[str, int]:
        return {}

    def links(self) -> list[tuple[IPv6Address | None, float]]:
        return []

    def set_doubled(self, macs: set[str]) -> None:
        pass

    async def refresh(self, *, whole: bool = True) -> None:
        pass

    async def listen(self, seconds: float) -> None:
        pass

    async def scan(self) -> list[dict[str, Any]]:
        return []

    async def leave(self) -> None:
        self.joined = False

    def problems(self) -> list[dict[str, Any]]:
        return []

    def snapshot(self) -> dict[str, Any]:
        state = "joined" if self.joined else "starting"
        return {"radio": {"state": state, "interface": "mesh0"}, "peers": [], "paths": []}


class ClockOfItsOwn(Chrony):
    """The real chronyd, which leaves the machine's clock alone."""

    users = ()  # nobody else may enter the folders of a test

    async def set_clock(self, clock: float) -> None:
        await self.stop()


class WireParts(Parts):
    """The daemon's parts, with a wire for a radio and an identity from the command line."""

    def __init__(self, identity: bytes, chip: Path) -> None:
        self._identity = identity
        self._chip = chip

    async def identity(self, settings: Settings) -> Any:
        serial = b"\x01\x23" + self._identity + b"\xee"
        return Identity("chip", self._identity, serial=serial, chip={"model": "ATECC608A"})

    def open_chip(self, identity: Any) -> Any:
        from meshlab.chip.driver import open_chip
        from thicket.identity.aio import AsyncAtecc

        return AsyncAtecc(open_chip(self._chip))

    def prepare_radio(self) -> None:
        pass

    def radio(
        self, settings: Settings, address: IPv6Interface, listener: Listener[RadioEvent]
    ) -> Radio:
        return WireMesh(settings.mesh, address, listener)

    def chrony(self, paths: Paths, on_exit: Callable[[], None]) -> Chrony | None:
        if not Path(paths.root, "chrony").exists():  # most tests have no use for it
            return None
        return ClockOfItsOwn(f"{paths.run}/time", f"{paths.data}/time", on_exit, options=("-x",))

    def owns_network(self, paths: Paths) -> bool:
        # Its namespace is its own. Most tests have no use for rules and routes.
        return Path(paths.root, "network").exists()

    def mounter(self) -> Mounter:
        from apps_for_tests import Unpacking

        return Unpacking()


async def run(paths: Paths, parts: Parts) -> int:
    loaded = load(paths)
    log.setup("debug", path=paths.root + "/dev/log")  # not there, so everything goes to stderr
    return await Daemon(paths, loaded, parts).run()


def main() -> None:
    root, identity = sys.argv[1:]
    network_namespace.unshare_network()
    network_namespace.ip("link set lo up")
    print("ready", flush=True)
    sys.stdin.readline()
    sys.exit(
        asyncio.run(run(Paths(root), WireParts(bytes.fromhex(identity), Path(root, "chip.json"))))
    )


if __name__ == "__main__":
    main()
