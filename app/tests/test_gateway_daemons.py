# SPDX-License-Identifier: Apache-2.0
"""Real daemons behind real providers: dhcpcd, tayga and unbound on gateways, in network namespaces.

Each provider (isp.py) has servers of DHCP, DHCPv6 and router advertisements, a resolver, and a host
of the internet that says which address it was asked from.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import isp
import pytest
from daemons import Fleet, NamespaceNode, Secured, fleet_in
from isp import HOST4, HOST6, NAME, NAME4, PORT, Isp

PROGRAMS = ("dhcpcd", "tayga", "unbound", "radvd", "dhcpd", "dnsmasq", "nsenter", "nft")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING) or os.geteuid() != 0, reason=f"needs {', '.join(MISSING) or 'root'}"
)

_numbers = itertools.count(os.getpid() % 5000 * 16)
TREE = Path(__file__).resolve().parents[2]


class World(Fleet):
    """A fleet, some of whose nodes have providers."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.secured = Secured(self)
        self.isps: dict[str, Isp] = {}

    def node(self, kind: str = "", more: str = "") -> NamespaceNode:
        """A node; with a ``kind`` of provider a gateway."""
        text = more
        number = next(_numbers)
        interface = f"up{number}"  # dhcpcd has one file for all that have one name
        if kind:
            text += f'\n[gateway]\nuplink = "{interface}"\n'
        node = self.secured.add(text, start=False)
        (node.folder / "network").touch()
        script = node.folder / "usr/lib/thicket/uplink-event"
        script.parent.mkdir(parents=True)
        script.symlink_to(TREE / "overlay/usr/lib/thicket/uplink-event")
        node.start()
        if kind:
            assert node.process is not None
            provider = Isp(self.folder / f"isp{len(self.isps)}", kind, interface)
            self.isps[node.name] = provider
            provider.connect(node.process.pid)
        return node

    def isp(self, node: NamespaceNode) -> Isp:
        return self.isps[node.name]

    def until_good(self, node: NamespaceNode, *ways: str) -> None:
        def good() -> bool:
            told = gateway(node)
            uplink = told["uplink"] if told is not None else None
            if uplink is None or uplink["state"] != "good":
                return False
            if self.isp(node).kind != "ipv4":
                self.isp(node).route_back(link_local(node, self.isp(node).interface))
            return all(
                uplink[way]["good"] if way.startswith("ipv") else uplink[way] for way in ways
            )

        self.until(good, f"{node.wire} is a gateway of {ways}", 90)

    def until(self, condition: Any, what: str, seconds: float = 90) -> None:
        try:
            super().until(condition, what, seconds)
        except BaseException:
            for node in self.nodes:
                print(node.wire, json.dumps(gateway(node)))
                print(inside(node, "sh", "-c", "ip -6 addr; ip -6 route; ip route; nft list ruleset"))
            for one in self.isps.values():
                print(one.logs(), one.run("sh", "-c", "ip -6 addr; ip -6 route; ip neigh"))
            raise


@pytest.fixture
def world() -> Iterator[World]:
    with (
        tempfile.TemporaryDirectory(prefix="gw-", ignore_cleanup_errors=True) as folder,
        fleet_in(Path(folder)),
    ):
        made = World(Path(folder))
        try:
            yield made
        finally:
            for node in made.nodes:
                if node.process is not None and node.process.poll() is None:
                    node.stop()
            for one in made.isps.values():
                one.close()


def gateway(node: NamespaceNode) -> dict[str, Any] | None:
    found: dict[str, Any] | None = node.ask("status")["gateway"]
    return found


def inside(node: NamespaceNode, *command: str) -> str:
    """What a command says in a node's namespace."""
    assert node.process is not None
    done = subprocess.run(
        ["nsenter", f"--net=/proc/{node.process.pid}/ns/net", *command],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    return done.stdout + done.stderr


def link_local(node: NamespaceNode, interface: str) -> str:
    told = json.loads(inside(node, "ip", "-6", "-j", "address", "show", "dev", interface))
    return next(one["local"] for one in told[0]["addr_info"] if one["scope"] == "link")


def own(node: NamespaceNode) -> IPv6Address:
    return IPv6Address(node.name.partition("@")[2])


ASKS = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 3) as to:
        print(to.recv(99).decode())
except OSError as error:
    print("no:", error)
"""


def asks(node: NamespaceNode, host: str, port: int = PORT) -> str:
    """From which address a host of the internet was asked, as it says."""
    return inside(node, "python3", "-c", ASKS, host, str(port)).strip()


def test_a_delegated_prefix_gives_each_node_a_global_address(world: World) -> None:
    way, plain = world.node("pd"), world.node()
    world.until(lambda: world.formed(way, plain), "the cluster has formed")
    world.until_good(way, "ipv6")

    def taken() -> bool:
        told = gateway(plain)
        return bool(told and told["addresses"])

    world.until(taken, "the other node has a global address")
    told = gateway(plain)
    assert told is not None
    (address,) = map(IPv6Address, told["addresses"])
    assert address in IPv6Network(isp.DELEGATED)
    assert int(address) & (1 << 64) - 1 == int(own(plain)) & (1 << 64) - 1
    assert told["uses"]["ipv6"] == str(own(way))
    # The host is asked from the node's own address: nothing is translated.
    assert asks(plain, HOST6) == str(address)
    assert asks(way, HOST6).startswith("2001:db8:")
