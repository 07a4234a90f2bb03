# SPDX-License-Identifier: Apache-2.0
"""``make bench-peer``: what each further node of a mesh costs a node, until the mesh has formed.

Whole daemons in one process and in virtual time, with real certificates, TLS over loopback and
signed beacons; only radio, chip and the socket of beacons stand in. They are switched on one after
the other, in a grid. Each figure is the difference between fleets of two sizes, for one node and
one more peer. Calls of functions, those of C among them, by part: nearly the same in each run,
however busy the machine is. What a call of OpenSSL costs is not in them, so signatures are counted
besides. The processor time is one run's without counting. Nothing passes or fails.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from ipaddress import IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests/helpers"))

from daemons import PREFIX
from node_in_namespace import WireMesh
from private_network import Network, enter
from virtual_time import VirtualTimeLoop, one_clock

from authority.authority import Authority
from meshlab.bench.membership import grid
from meshlab.chip.atecc608 import Atecc608
from meshlab.chip.driver import open_chip
from thicket.base.events import Listener
from thicket.base.paths import Paths
from thicket.cluster import membership, passphrase_exchange, topology
from thicket.cluster.passphrase import Passphrase
from thicket.config.load import load
from thicket.config.schema import Settings
from thicket.daemon import document
from thicket.daemon.daemon import Daemon
from thicket.daemon.parts import Parts
from thicket.discovery import service
from thicket.discovery.beacon import GROUP
from thicket.distribution import members
from thicket.distribution.connection import Connection
from thicket.distribution.secure import TlsTransport
from thicket.identity.aio import AsyncAtecc
from thicket.identity.source import Identity
from thicket.radio.events import Joined, PeerUp, RadioEvent
from thicket.radio.radio import Radio
from thicket.radio.section import MeshSection
from thicket.trust import openssl
from thicket.trust.exchange import Exchange

APART = 2.0
"""Virtual seconds between the starts of two nodes."""

SETTLE = 40.0
"""Virtual seconds after the last start, in which the mesh forms."""

TEXT = '[mesh]\nsecurity = "open"\n[discovery]\ndns_sd = false\n'


class Air:
    """Carries beacons to all, and knows who is linked with whom."""

    def __init__(self, count: int, luck: random.Random) -> None:
        self.graph = grid(count)
        self.luck = luck
        self.sockets: dict[str, Ether] = {}
        self.radios: dict[int, Linked] = {}
        self.datagrams = 0

    def send(self, sender: Ether, payload: bytes, to: str) -> None:
        for address, other in self.sockets.items():
            if other is not sender and to in (GROUP, address):
                self.datagrams += 1
                asyncio.get_running_loop().call_later(
                    self.luck.uniform(0.001, 0.05), other.take, payload, sender.address, to == GROUP
                )


class Ether:
    """In place of a socket for beacons."""

    usable = True

    def __init__(
        self, interface: str, received: Callable[..., None], _flooded: Callable[[float], None]
    ) -> None:
        self.air = AIR[0]
        self.address = f"fe80::{int(interface.removeprefix('mesh')) + 1:x}"
        self._received = received
        self.air.sockets[self.address] = self

    def send(self, payload: bytes, to: str = GROUP) -> None:
        self.air.send(self, payload, to)

    def take(self, payload: bytes, source: str, to_all: bool) -> None:
        if self.usable:
            self._received(payload, (source, 49999, 0, 1), 255, time.monotonic(), to_all)

    def close(self) -> None:
        self.usable = False


AIR: list[Air] = []


class Linked(WireMesh):
    """In place of a radio, linked with its neighbours in the grid as soon as these are there."""

    def __init__(
        self,
        at: int,
        settings: MeshSection,
        address: IPv6Interface,
        listener: Listener[RadioEvent],
    ) -> None:
        super().__init__(settings, address, listener)
        self.at = at
        self.linked: set[int] = set()

    def apply(self, settings: MeshSection, address: IPv6Interface | None = None) -> None:
        self._settings = settings

    async def run(self) -> None:
        self.joined = True
        air = AIR[0]
        air.radios[self.at] = self
        self.listener.on(Joined(f"mesh{self.at}", 1, str(self.address), False))
        for other in sorted(air.graph[self.at] & air.radios.keys()):
            asyncio.get_running_loop().call_later(1.0, self.link, air.radios[other])
        await asyncio.Event().wait()

    def link(self, other: Linked) -> None:
        for one, two in ((self, other), (other, self)):
            one.linked.add(two.at)
            one.listener.on(PeerUp(two.mac))

    @property
    def mac(self) -> str:
        return f"02:74:68:00:01:{self.at:02x}"

    def peers(self) -> set[str]:
        return {AIR[0].radios[at].mac for at in self.linked}

    def links(self) -> list[tuple[IPv6Address | None, float]]:
        luck = AIR[0].luck
        return [(AIR[0].radios[at].address.ip, luck.uniform(0.0, 1.0)) for at in self.linked]

    def snapshot(self) -> dict[str, Any]:
        radio = {
            "state": "joined" if self.joined else "starting",
            "interface": "mesh0",
            "mac": self.mac,
        }
        peers = [
            {"mac": AIR[0].radios[at].mac, "state": "ESTAB", "signal_dbm": -60 - at, "metric": 200}
            for at in sorted(self.linked)
        ]
        return {"radio": radio, "peers": peers, "paths": []}


class Made(Parts):
    """The daemon's parts."""

    def __init__(self, at: int, chip: Path, network: Network) -> None:
        self.at = at
        self.interface = f"mesh{at}"
        self._chip = chip
        self._network = network

    def own(self) -> bytes:
        """Return the node's identity."""
        return bytes.fromhex(f"6f44e3c6b8{self.at:02x}")

    async def identity(self, settings: Settings) -> Any:
        serial = b"\x01\x23" + self.own() + b"\xee"
        return Identity("chip", self.own(), serial=serial, chip={"model": "ATECC608A"})

    def open_chip(self, identity: Any) -> Any:
        return AsyncAtecc(open_chip(self._chip))

    def prepare_radio(self) -> None:
        pass

    def radio(
        self, settings: Settings, address: IPv6Interface, listener: Listener[RadioEvent]
    ) -> Radio:
        self._network.add(address.ip)
        return Linked(self.at, settings.mesh, address, listener)


# --- what is counted ------------------------------------------------------------------------------


class Spent:
    """Function calls and processor time by part; what a nested part does counts for that one alone.

    :ivar profiles: of each part; calls of functions of C are among the calls.
    """

    REST = "the rest"

    def __init__(self) -> None:
        self.profiles: dict[str, cProfile.Profile] = {}
        self.entries: Counter[str] = Counter()
        self._stack: list[str] = []
        self._running: cProfile.Profile | None = None

    def _turn(self) -> None:
        """Let the profile of the innermost part run."""
        if self._running is not None:
            self._running.disable()
            part = self._stack[-1] if self._stack else self.REST
            self._running = self.profiles.setdefault(part, cProfile.Profile())
            self._running.enable()

    def begin(self) -> None:
        self.entries.clear()
        self._running = self.profiles.setdefault(self.REST, cProfile.Profile())
        self._running.enable()

    def end(self) -> None:
        if self._running is not None:
            self._running.disable()
        self._running = None

    def within(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.entries[part] += 1
            self._stack.append(part)
            self._turn()
            try:
                return function(*args, **kwargs)
            finally:
                self._stack.pop()
                self._turn()

        return counted

    def calls(self) -> dict[str, int]:
        found = {}
        for part, profile in self.profiles.items():
            profile.create_stats()
            stats: dict[tuple[str, int, str], Any] = profile.stats
            found[part] = sum(
                row[1]
                for (file, _, name), row in stats.items()
                if file != __file__ and "_lsprof" not in name
            )
        return found

    def dump(self, path: str) -> None:
        for part, profile in self.profiles.items():
            profile.dump_stats(f"{path}.{part.replace(' ', '-')}")


PARTS: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    ("beacons received", service.Discovery, ("datagram",)),
    ("beacons sent", service.Discovery, ("_send",)),
    ("TLS handshake", TlsTransport, ("_begin", "_shake")),
    ("node handshake", Connection, ("_shake", "secured")),
    ("TCP, TLS, frames", TlsTransport, ("buffer_updated", "write", "connection_made")),
    ("roster", members.Members, ("_step", "up", "down", "_received", "choose", "state")),
    ("overlay", topology.Topology, ("follow",)),
    ("cluster membership", membership.Membership, ("heard", "_start_due", "node_up")),
    ("document", document.Writer, ("write",)),
    ("document", Daemon, ("document",)),
    ("refresh", service.Discovery, ("snapshot",)),
    ("lists of revocations", Exchange, ("tell", "tell_all", "on_message")),
    ("passphrase", Passphrase, ("node_up", "status")),
    ("passphrase", passphrase_exchange.Listener, ("tell", "tell_all", "on_message")),
)

COUNTED: tuple[tuple[str, Any, str], ...] = (
    ("signatures checked", openssl, "verify"),
    ("signatures made", openssl, "sign"),
    ("messages sent", Connection, "send"),
    ("writes to sockets", TlsTransport, "write"),
    ("reads of sockets", TlsTransport, "buffer_updated"),
    ("documents written", document.Writer, "write"),
    ("beacons read", service.Discovery, "datagram"),
)


@contextmanager
def counted(spent: Spent, *, timed: bool) -> Iterator[Counter[str]]:
    """Count while this lasts."""
    counts: Counter[str] = Counter()

    def count(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def counting(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        return counting

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "BeaconSocket", Ether)
        for name, owner, attribute in COUNTED:
            patch.setattr(owner, attribute, count(name, getattr(owner, attribute)))
        if timed:
            for part, owner, attributes in PARTS:
                for attribute in attributes:
                    inside = spent.within(part, getattr(owner, attribute))
                    patch.setattr(owner, attribute, inside)
        yield counts


# --- the fleet ------------------------------------------------------------------------------------


class Run(NamedTuple):
    """What a fleet did: all its nodes together."""

    nodes: int
    seconds: float
    calls: dict[str, int]
    entries: dict[str, int]
    formed: bool


class FleetOfDaemons:
    def __init__(self, folder: Path, network: Network) -> None:
        self.folder = folder
        self.network = network
        self.authority = Authority(folder / "authority", lambda _: "")
        self.authority.init("acme", IPv6Network(f"{PREFIX}::/64"), lab=True)
        root = (self.authority.folder / "root.pem").read_text()
        self.image = TEXT + f'[trust]\nroot = """\n{root}"""\n'
        self.enrolled: set[int] = set()
        self.profiled = False
        self.seconds = 0.0

    def chip(self, at: int) -> Path:
        path = self.folder / f"chip{at}.json"
        if at not in self.enrolled:
            Atecc608(b"\x01\x23" + Made(at, path, self.network).own() + b"\xee", path)
            self.authority.enroll_chip(open_chip(path), write=True, show=lambda _: None)
            self.enrolled.add(at)
        return path

    def daemon(self, at: int, folder: Path) -> Daemon:
        root = folder / f"n{at}"
        for name in ("etc/thicket", "data/thicket", "proc/self", "usr/share/thicket"):
            (root / name).mkdir(parents=True)
        paths = Paths(str(root))
        Path(paths.image).write_text(self.image)
        Path(paths.device).write_text("# defaults\n")
        return Daemon(paths, load(paths), Made(at, self.chip(at), self.network))

    async def form(self, count: int, spent: Spent) -> bool:
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            daemons = [self.daemon(at, Path(folder)) for at in range(count)]
            AIR[:] = [Air(count, random.Random(1))]
            loop = asyncio.get_running_loop()
            tasks = []
            gc.collect()
            begin = time.process_time()
            if self.profiled:
                spent.begin()
            for daemon in daemons:
                tasks.append(loop.create_task(daemon._run(loop)))
                await asyncio.sleep(APART)
            await asyncio.sleep(SETTLE)
            spent.end()
            self.seconds = time.process_time() - begin
            formed = all(
                sum(n["state"] == "up" for n in d.document()["cluster"]["nodes"]) == count - 1
                for d in daemons
            )
            for daemon in daemons:
                daemon.stop()
            await asyncio.gather(*tasks)
            return formed


def run(
    fleet: FleetOfDaemons, count: int, *, profiled: bool, dump: str = ""
) -> tuple[Run, Counter[str]]:
    spent = Spent()
    random.seed(1)
    fleet.profiled = profiled
    with (
        one_clock(),
        counted(spent, timed=profiled) as counts,
        asyncio.Runner(loop_factory=VirtualTimeLoop) as runner,
    ):
        formed = runner.run(fleet.form(count, spent))
    calls = spent.calls()
    if dump:
        spent.dump(f"{dump}.{count}")
    return Run(count, fleet.seconds, calls, dict(spent.entries), formed), counts


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs=2, type=int, default=[6, 12])
    parser.add_argument("--profile", default="", help="write the profiles of all parts to NAME...")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    network = Network(enter())
    if not network.private:
        print("bench-peer: this machine permits no network of its own to this user")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        fleet = FleetOfDaemons(Path(folder), network)
        run(fleet, 3, profiled=False)  # imports
        found, seconds = [], []
        for count in options.sizes:
            seconds.append(run(fleet, count, profiled=False)[0].seconds)
            found.append(run(fleet, count, profiled=True, dump=options.profile))
            print(f"{count} nodes: {seconds[-1]:.2f} s, formed {found[-1][0].formed}", flush=True)
        (small, few), (large, many) = found

        def each(one: float, two: float) -> float:
            return (two / large.nodes - one / small.nodes) / (large.nodes - small.nodes)

        print("| part | calls of functions | begun |\n|---|---|---|")
        for part in sorted(large.calls, key=lambda p: -large.calls[p]):
            calls = each(small.calls.get(part, 0), large.calls[part])
            begun = each(small.entries.get(part, 0), large.entries.get(part, 0))
            print(f"| {part} | {calls:.0f} | {begun:.1f} |")
        print(f"| all | {each(sum(small.calls.values()), sum(large.calls.values())):.0f} | |")
        print(f"| processor time, ms | {1e3 * each(*seconds):.2f} | |")
        print("| count | for each peer |\n|---|---|")
        for name in many:
            print(f"| {name} | {each(few[name], many[name]):.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
