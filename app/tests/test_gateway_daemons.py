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
from isp import HOST4, HOST6, NAME4, PORT, Isp

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
                print(
                    inside(node, "sh", "-c", "ip -6 addr; ip -6 route; ip route; nft list ruleset")
                )
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


SNIFFS = """
import socket
with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x86DD)) as air:
    air.bind(("mesh0", 0x86DD))
    air.settimeout(50)
    heard = 0
    while heard < 2:
        packet = air.recv(2048)
        heard += len(packet) > 40 and packet[6] == 58 and packet[40] == 134
"""


def advertisements(node: NamespaceNode) -> subprocess.Popen[bytes]:
    """A process in a node's namespace that ends when it has heard a router twice on the mesh."""
    assert node.process is not None
    command = ["nsenter", f"--net=/proc/{node.process.pid}/ns/net", "python3", "-c", SNIFFS]
    return subprocess.Popen(command)


def link_local(node: NamespaceNode, interface: str) -> str:
    told = json.loads(inside(node, "ip", "-6", "-j", "address", "show", "dev", interface))
    return next(str(one["local"]) for one in told[0]["addr_info"] if one["scope"] == "link")


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


SENDS = """
import socket, sys
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as to:
    to.bind((sys.argv[1], 0))
    to.sendto(b"x", (sys.argv[2], 7))
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


def leads(world: World, node: NamespaceNode, *, six: NamespaceNode | None = None,
          four: NamespaceNode | None = None) -> bool:  # fmt: skip
    """Whether a node takes these gateways."""
    told = gateway(node)
    return told is not None and told["uses"] == {
        "ipv6": str(own(six)) if six is not None else None,
        "ipv4": str(own(four)) if four is not None else None,
    }


def test_where_one_prefix_is_given_nodes_leave_by_the_address_of_the_gateway(world: World) -> None:
    way, plain = world.node("slaac"), world.node()
    world.until(lambda: world.formed(way, plain), "the cluster has formed")
    world.until_good(way, "ipv6")
    world.until(lambda: leads(world, plain, six=way), "the other node takes the gateway")
    told = gateway(plain)
    assert told is not None
    assert told["addresses"] == []  # there is none for it to have
    seen = IPv6Address(asks(plain, HOST6))
    assert seen in IPv6Network("2001:db8:0:1::/64")
    assert f" {seen}/" in inside(
        way, "ip", "-6", "address", "show", "dev", world.isp(way).interface
    )

    # What the mesh does not ask for does not come in: to the gateway, and through it.
    provider = world.isp(way)
    address = link_local(way, provider.interface)
    provider.run(
        "ip", "-6", "route", "replace", "fd12:3456:789a:1::/64", "via", address, "dev", "wan"
    )
    for host, port in ((seen, 53), (seen, 9100), (own(way), 9100), (own(plain), 9100)):
        refused = provider.run("python3", "-c", ASKS, str(host), str(port))
        assert refused.startswith("no:"), (host, port)
    dropped = way.ask("status")["firewall"]["dropped"]
    assert dropped.get("forward", 0) > 0

    # Another source than the mesh's does not go out.
    before = dropped["forward"]
    inside(plain, "ip", "-6", "address", "add", "2001:db8:dead::1/128", "dev", "mesh0", "nodad")
    inside(plain, "python3", "-c", SENDS, "2001:db8:dead::1", HOST6)
    assert way.ask("status")["firewall"]["dropped"]["forward"] > before


def test_places_that_have_only_ipv4_are_reached_by_their_names(world: World) -> None:
    way, plain = world.node("ipv4"), world.node()
    world.until(lambda: world.formed(way, plain), "the cluster has formed")
    world.until_good(way, "ipv4", "nat64", "resolver")
    world.until(lambda: leads(world, plain, four=way), "the other node takes the gateway")
    resolver = (plain.folder / "run/resolv.conf").read_text()
    assert resolver == f"nameserver {own(way)}\n"
    address = look_up(plain, own(way), NAME4)
    assert address == IPv6Address(f"fd64:ff9b::{HOST4}")
    assert asks(plain, str(address)).startswith("192.0.2.")
    # The provider's own network is reached as well, and nothing of the mesh from there.
    provider = world.isp(way)
    refused = provider.run("python3", "-c", ASKS, "192.0.2.100", "53")
    assert refused.startswith("no:")


def look_up(node: NamespaceNode, server: IPv6Address, name: str) -> IPv6Address:
    """What a name server says of a name, to a node."""
    script = (
        "import socket, sys; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); "
        "s.settimeout(5); s.connect((sys.argv[1], 53)); "
        "labels = b''.join(bytes([len(l)]) + l.encode() for l in sys.argv[2].split('.')); "
        "s.send(b'\\x11\\x22\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0' + labels + b'\\0\\0\\x1c\\0\\1'); "
        "print(s.recv(2048)[-16:].hex())"
    )
    said = inside(node, "python3", "-c", script, str(server), name).strip()
    assert len(said) == 32, said
    return IPv6Address(bytes.fromhex(said))


def test_when_one_of_two_gateways_dies_the_other_is_taken(world: World) -> None:
    first, second, plain = world.node("slaac"), world.node("slaac"), world.node()
    world.until(lambda: world.formed(first, second, plain), "the cluster has formed")
    for one in (first, second):
        world.until_good(one, "ipv6")
    world.until(
        lambda: len((gateway(plain) or {"known": []})["known"]) == 2, "both gateways are known"
    )

    def used() -> NamespaceNode:
        told = gateway(plain)
        assert told is not None
        return next(one for one in (first, second) if told["uses"]["ipv6"] == str(own(one)))

    world.until(lambda: IPv6Address(asks(plain, HOST6)), "there is a way out")
    dying = used()
    other = second if dying is first else first

    # Its network fails: no resolver answers there any more.
    began = time.monotonic()
    world.isp(dying).stop("servers")
    world.until(lambda: leads(world, plain, six=other), "the other gateway is taken")
    print(f"after {time.monotonic() - began:.1f} s the other gateway is taken: its checks failed")
    assert asks(plain, HOST6).startswith("2001:db8:0:1:")
    # The gateway itself takes the other one as well.
    world.until(lambda: leads(world, dying, six=other), "who has lost its way takes the other's")
    assert asks(dying, HOST6).startswith("2001:db8:0:1:")

    world.isp(dying).serve()
    world.until_good(dying, "ipv6")
    assert used() is other  # nobody returns at once

    # The other one loses its power.
    began = time.monotonic()
    assert other.process is not None
    inside(other, "ip", "link", "set", "mesh0", "down")
    world.until(lambda: leads(world, plain, six=dying), "the first one is taken again")
    print(f"after {time.monotonic() - began:.1f} s the other gateway is taken: it has disappeared")
    assert asks(plain, HOST6).startswith("2001:db8:0:1:")


def test_nodes_believe_no_router_of_the_mesh(world: World) -> None:
    way, plain = world.node("slaac"), world.node()
    world.until(lambda: world.formed(way, plain), "the cluster has formed")
    world.until_good(way, "ipv6")
    world.until(lambda: leads(world, plain, six=way), "the node takes the gateway")
    liar = Isp(world.folder / "liar", "slaac", "unused")
    try:
        world.isps["liar"] = liar
        subprocess.run(
            ["ip", "link", "add", "wliar", "type", "veth", "peer", "name", "wan", "netns",
             str(liar.pid)], check=True,
        )  # fmt: skip
        subprocess.run(["ip", "link", "set", "wliar", "master", "medium", "up"], check=True)
        liar.run("ip", "link", "set", "lo", "up")
        liar.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
        liar.run("ip", "link", "set", "wan", "up")
        liar.run("ip", "address", "add", "2001:db8:bad::1/64", "dev", "wan", "nodad")
        (liar.folder / "radvd.conf").write_text(
            "interface wan { AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; "
            "AdvDefaultPreference high; prefix 2001:db8:bad::/64 { }; };\n"
        )
        sniffed = advertisements(plain)
        liar.start("radvd", "radvd", "-n", "-m", "stderr", "-C",
                   f"{liar.folder}/radvd.conf", "-p", f"{liar.folder}/radvd.pid")  # fmt: skip
        assert sniffed.wait(60) == 0, "the liar says that it is a router, and is heard"
        for node in (way, plain):
            assert "2001:db8:bad" not in inside(node, "ip", "-6", "address")
            routes = inside(node, "ip", "-6", "route", "show", "default", "dev", "mesh0")
            assert "proto ra" not in routes
        assert IPv6Address(asks(plain, HOST6)) in IPv6Network("2001:db8:0:1::/64")
    finally:
        liar.close()
