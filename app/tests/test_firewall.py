# SPDX-License-Identifier: Apache-2.0
"""thicket.firewall: the rules that follow from a configuration, and what they let through.

The second half puts the rules in force in a network namespace, with the real ``nft`` and the real
kernel, and knocks at the node from another one that is connected by a wire.
"""

import asyncio
import os
import re
import selectors
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from ctypes import CDLL
from ipaddress import IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any

import network_namespace
import pytest
from daemons import Fleet, NamespaceNode
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from patience import PATIENCE

from thicket.base.fields import ConfigError, show_value
from thicket.base.paths import Paths
from thicket.base.problems import Problems
from thicket.config import parse
from thicket.config.schema import Settings, find_key
from thicket.firewall import counters, service
from thicket.firewall.ruleset import _BEACON_ALL, _SENDERS, REASONS, ruleset
from thicket.firewall.section import Ports
from thicket.firewall.service import Firewall

NODE = "fd12:3456:789a:1::1"
STRANGER = "fd12:3456:789a:1::2"


def made(**sections: dict[str, Any]) -> Settings:
    return Settings(sections)


def chain(text: str, name: str) -> str:
    found = re.search(rf"\tchain {name} {{\n(.*?)\n\t}}", text, re.DOTALL)
    assert found is not None, f"no chain {name}"
    return found[1]


def served(text: str) -> set[int]:
    ports = re.search(r"tcp dport { ([\d, ]+) } goto connections", chain(text, "mesh"))
    assert ports is not None
    return {int(port) for port in ports[1].split(", ")}


class TestRules:
    def test_only_what_is_served_is_open(self) -> None:
        assert served(ruleset(made(), "mesh0")) == {4369, 9100}
        assert served(ruleset(made(cluster={"port": 9200}), "mesh0")) == {4369, 9200}
        keys = made(access={"ssh_keys": "ssh-ed25519 AAAA"})
        assert served(ruleset(keys, "mesh0")) == {22, 4369, 9100}

    def test_operators_are_let_in_where_there_is_a_fleet(self) -> None:
        assert served(ruleset(made(trust={"root": "x"}), "mesh0")) == {4369, 9100, 9102}
        closed = made(trust={"root": "x"}, access={"operators": False})
        assert served(ruleset(closed, "mesh0")) == {4369, 9100}
        moved = made(trust={"root": "x"}, access={"operator_port": 9200})
        assert served(ruleset(moved, "mesh0")) == {4369, 9100, 9200}

    def test_what_no_rule_names_is_dropped_and_counted(self) -> None:
        text = ruleset(made(), "mesh0")
        assert "hook input priority filter; policy drop;" in chain(text, "input")
        for name in ("input", "mesh", "forward"):
            assert re.search(r"counter name \w+ drop$", chain(text, name)), name
        assert set(re.findall(r"counter name (\w+)", text)) == set(REASONS) - {"cable_flood"}
        text = ruleset(made(access={"ssh_keys": "key"}), "mesh0", frozenset({"eth0"}))
        assert re.search(r"counter name \w+ drop$", chain(text, "cable"))
        assert set(re.findall(r"counter name (\w+)", text)) == set(REASONS)

    def test_nothing_is_open_on_another_interface(self) -> None:
        text = ruleset(made(access={"ssh_keys": "key"}), "mesh7")
        assert 'iifname "mesh7" goto mesh' in chain(text, "input")
        assert "dport" not in chain(text, "input")

    def test_a_cable_is_open_where_a_key_may_log_in(self) -> None:
        cables, keys = frozenset({"eth0", "usb0"}), {"ssh_keys": "key"}
        text = ruleset(made(access=keys), "mesh0", cables)
        assert 'iifname { "eth0", "usb0" } goto cable' in chain(text, "input")
        without = ruleset(made(access=keys), "mesh0")
        for name in ("early", "mdns", "beacons", "neighbours", "mesh", "connections", "forward"):
            assert chain(text, name) == chain(without, name), "what concerns the mesh is as it was"
        for closed in (made(), made(access={**keys, "cable": False})):
            assert ruleset(closed, "mesh0", cables) == ruleset(closed, "mesh0")

    def test_ports_of_applications(self) -> None:
        allow = Ports((), "").check(["udp/5000", "tcp/80-90", "tcp/8080"])
        text = chain(ruleset(made(firewall={"allow": allow}), "mesh0"), "mesh")
        assert "tcp dport { 80-90, 8080 } accept" in text
        assert "udp dport { 5000 } accept" in text

    def test_numbers_are_let_in_where_they_are_served(self) -> None:
        text = ruleset(made(metrics={"listen": ("mesh",), "port": 9970}), "mesh0")
        assert served(text) == {4369, 9100, 9970}
        assert "9970" not in chain(text, "input")
        places = ("eth0", "lo", "192.0.2.7", "fd12::7")
        text = ruleset(made(metrics={"listen": places}), "mesh0")
        assert served(text) == {4369, 9100}
        rules = chain(text, "input").split("\n\t\t")
        mesh = rules.index('iifname "mesh0" goto mesh')
        assert rules[mesh - 3 : mesh] == [
            'iifname "eth0" tcp dport 9969 goto connections',
            "ip daddr 192.0.2.7 tcp dport 9969 goto connections",
            "ip6 daddr fd12::7 tcp dport 9969 goto connections",
        ]

    def test_a_gate_leaves_forwarding_to_rules_of_its_own(self) -> None:
        assert "policy drop" in chain(ruleset(made(), "mesh0"), "forward")
        assert "hook forward" not in ruleset(made(mesh={"gate": True}), "mesh0")

    def test_a_gateway_lets_out_and_in_what_answers(self) -> None:
        settings = made(gateway={"uplink": "eth0"})
        given = IPv6Network("2001:db8:100::/64")
        text = ruleset(settings, "mesh0", delegated=(given,))
        forward = chain(text, "forward").split("\n\t\t")
        assert forward[-1] == "counter name forward drop"
        sources = f"ip6 saddr {{ fd12:3456:789a:1::/64, {given} }}"
        assert f'iifname "mesh0" oifname "eth0" {sources} accept' in forward
        assert not any('iifname "eth0"' in line for line in forward)
        assert 'oifname "eth0" ip6 saddr fd12:3456:789a:1::/64 masquerade' in chain(text, "leave")
        assert served(text) == {53, 4369, 9100}
        # With addresses that mean something outside nothing is replaced.
        prefix = IPv6Interface("2001:db8:1::/64")
        text = ruleset(made(gateway={"uplink": "eth0"}, address={"prefix": prefix}), "mesh0")
        assert "ip6 saddr 2001:db8:1::/64 masquerade" not in text
        text = ruleset(made(gateway={"uplink": "eth0", "nat64": False}), "mesh0")
        assert "nat64" not in text

    def test_logging_only_where_asked_for(self) -> None:
        assert " log " not in ruleset(made(), "mesh0")
        assert "limit rate 10/minute" in ruleset(made(firewall={"log": True}), "mesh0")

    def test_no_firewall_is_no_table(self) -> None:
        text = ruleset(made(firewall={"enabled": False}), "mesh0")
        assert text == "table inet thicket\ndelete table inet thicket\n"

    def test_a_mesh_that_comes_up_at_once_passes(self) -> None:
        """256 nodes, a beacon each at once and then every 1 to 2 s (discovery.Schedule)."""
        rate, burst = _BEACON_ALL
        assert burst >= 2 * 256
        assert rate >= 256 / 1.5
        assert _SENDERS >= 2 * 256


class TestPorts:
    def parse(self, value: str) -> tuple[str, ...]:
        settings = parse.parse(f"[firewall]\nallow = {value}\n".encode(), "f")
        return settings.firewall.allow

    def test_order_and_overlaps_do_not_matter(self) -> None:
        assert self.parse('["udp/7", "tcp/80", "tcp/80", "tcp/70-79", "tcp/75-85"]') == (
            "tcp/70-85",
            "udp/7",
        )
        assert self.parse("[]") == ()

    @pytest.mark.parametrize(
        "value",
        ['"tcp/80"', "[80]", '["80"]', '["tcp/"]', '["tcp/0"]', '["tcp/65536"]', '["sctp/5"]',
         '["tcp/9-8"]', '["tcp/8-8"]', '["tcp/8-"]', '["tcp/ 8"]', '["tcp/٣"]', '["TCP/8"]',
         '["tcp/8 } accept; drop"]', '["tcp/1", 2]', "true", str(["tcp/1"] * 65)],
    )  # fmt: skip
    def test_what_is_refused(self, value: str) -> None:
        with pytest.raises(ConfigError, match="list of ports"):
            self.parse(value)

    def test_the_command_line_and_the_file_have_the_same_form(self) -> None:
        key = find_key("firewall.allow")
        value = key.check(key.from_text("tcp/8080,udp/5000 udp/5001"))
        assert value == ("tcp/8080", "udp/5000-5001")
        assert show_value(key, value) == '["tcp/8080", "udp/5000-5001"]'
        assert self.parse(show_value(key, value)) == value


# -- in force


class Wire:
    """A node's network namespace and a stranger's, connected: mesh0 here, far0 there."""

    def __init__(self) -> None:
        self.stranger = _namespace()
        network_namespace.unshare_network()
        self.node = _namespace()
        network_namespace.ip("link set lo up")
        there = f"/proc/{os.getpid()}/fd/{self.stranger}"
        network_namespace.ip(f"link add mesh0 type veth peer name far0 netns {there}")
        network_namespace.up("mesh0")
        network_namespace.ip(f"address add {NODE}/64 dev mesh0 nodad")
        with self.at_stranger():
            network_namespace.up("far0")
            network_namespace.ip(f"address add {STRANGER}/64 dev far0 nodad")
            self.far_index = socket.if_nametoindex("far0")

    @contextmanager
    def at_stranger(self) -> Iterator[None]:
        _enter(self.stranger)
        try:
            yield
        finally:
            _enter(self.node)

    def close(self) -> None:
        os.close(self.stranger)
        os.close(self.node)


def _namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _enter(namespace: int) -> None:
    assert CDLL(None).setns(namespace, network_namespace.CLONE_NEWNET) == 0


@pytest.fixture
def wire() -> Iterator[Wire]:
    if shutil.which("nft") is None:
        pytest.skip("needs the program nft (package nftables)")
    with network_namespace.namespace():
        made = Wire()
        try:
            yield made
        finally:
            made.close()


async def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)


class Guard:
    """A firewall that runs, as the daemon has one."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.problems = Problems(lambda: None)
        self.firewall = Firewall(Paths(str(folder)), "mesh0", self.problems, settings)
        self.firewall.ours = True  # this namespace is

    def dropped(self, reason: str) -> int:
        self.firewall.refresh()
        return self.firewall.dropped.get(reason, 0)

    def codes(self) -> list[tuple[str, str]]:
        return [(p["code"], p["severity"]) for p in self.problems.all()]


@asynccontextmanager
async def guarded(
    folder: Path, settings: Settings, wait: bool = True, **attributes: Any
) -> AsyncIterator[Guard]:
    guard = Guard(folder, settings)
    for name, value in attributes.items():
        setattr(guard.firewall, name, value)
    task = asyncio.create_task(guard.firewall.run())
    try:
        if wait:
            await asyncio.wait_for(guard.firewall.in_force.wait(), PATIENCE)
        yield guard
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled(), task.exception()


def listeners(*ports: int) -> list[socket.socket]:
    return [socket.create_server(("::", port), family=socket.AF_INET6) for port in ports]


def datagrams(port: int) -> socket.socket:
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.setblocking(False)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    s.bind(("::", port))
    return s


def drain(s: socket.socket) -> list[tuple[bytes, str]]:
    found: list[tuple[bytes, str]] = []
    while True:
        try:
            payload, source = s.recvfrom(2048)
        except BlockingIOError:
            return found
        found.append((payload, source[0]))


def link_local(interface: str) -> str:
    """Wait for the address that the kernel gives when both ends are up."""
    deadline = time.monotonic() + PATIENCE
    while True:
        shown = network_namespace.ip(f"address show {interface}")
        if found := re.findall(r"inet6 (fe80\S+)/64", shown):
            return str(found[0])
        assert time.monotonic() < deadline, shown
        time.sleep(0.01)


def _both(port: int) -> socket.socket:
    """A server of both versions of IP."""
    return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)


def _call(to: tuple[Any, ...]) -> socket.socket:
    s = socket.socket(socket.AF_INET6 if ":" in to[0] else socket.AF_INET)
    s.setblocking(False)
    assert s.connect_ex(to) in {0, 115}  # EINPROGRESS
    return s


async def _connected(s: socket.socket) -> None:
    while True:
        with selectors.DefaultSelector() as selector:
            selector.register(s, selectors.EVENT_WRITE)
            if selector.select(0):
                return
        await asyncio.sleep(0.02)


class TestInForce:
    @pytest.mark.parametrize("places", [("eth9", "mesh", "192.0.2.7"), ("fd12::7", NODE)])
    async def test_a_stranger_reaches_what_is_served_and_nothing_else(
        self, wire: Wire, tmp_path: Path, places: tuple[str, ...]
    ) -> None:
        open_ports, shut_ports = [22, 4369, 9100, 8080, 9969], [21, 23, 80, 4368, 9101, 8081]
        settings = made(
            access={"ssh_keys": "key"},
            firewall={"allow": ("tcp/8080", "udp/5000")},
            metrics={"listen": places},
        )
        async with guarded(tmp_path, settings) as guard:
            servers = listeners(*open_ports, *shut_ports)
            udp = {port: datagrams(port) for port in (5000, 5001)}
            callers: dict[int, socket.socket] = {}
            with wire.at_stranger():
                for port in open_ports + shut_ports:
                    s = callers[port] = socket.socket(socket.AF_INET6)
                    s.setblocking(False)
                    assert s.connect_ex((NODE, port)) in {0, 115}  # EINPROGRESS
                sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
                for port in udp:
                    sender.sendto(b"hello", (NODE, port))

            def reached() -> set[int]:
                with selectors.DefaultSelector() as selector:
                    for port, s in callers.items():
                        selector.register(s, selectors.EVENT_WRITE, port)
                    return {key.data for key, _ in selector.select(0)}

            await until(lambda: reached() == set(open_ports), "what is served answers")
            shut = len(shut_ports) + 1
            await until(lambda: guard.dropped("closed") >= shut, "the rest was dropped")
            assert reached() == set(open_ports)
            assert len(drain(udp[5000])) == 1
            assert drain(udp[5001]) == []
            assert guard.codes() == []
            with wire.at_stranger():
                echo = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
            echo.setblocking(False)
            # ICMPv6 echo request (RFC 4443 4.1); raw sockets fill the checksum in
            echo.sendto(bytes((128, 0, 0, 0)) + b"\0\x07\0\x01ping", (NODE, 0))
            answers: list[bytes] = []

            def answered() -> bool:
                answers.extend(payload for payload, _ in drain(echo))
                return any(a[0] == 129 and a.endswith(b"\0\x07\0\x01ping") for a in answers)

            await until(answered, "a ping is answered")
            for s in [*servers, *udp.values(), *callers.values(), sender, echo]:
                s.close()

    async def test_a_cable_lets_in_ssh_and_questions_for_the_name(
        self, wire: Wire, tmp_path: Path
    ) -> None:
        """And nothing of it is a way to the mesh, or to the address that the node has there."""
        there = f"/proc/{os.getpid()}/fd/{wire.stranger}"
        network_namespace.ip(f"link add eth0 type veth peer name lap0 netns {there}")
        network_namespace.up("eth0")
        network_namespace.ip("address add 169.254.1.1/16 dev eth0")
        for version in ("ipv4", "ipv6"):
            # as if somebody had let the node be a router
            Path(f"/proc/sys/net/{version}/conf/all/forwarding").write_text("1")
        with wire.at_stranger():
            network_namespace.up("lap0")
        near = link_local("eth0")
        with wire.at_stranger():
            network_namespace.ip("address add 169.254.1.2/16 dev lap0")
            # by the cable to the node's address in the mesh, and through the node
            network_namespace.ip(f"route add {NODE}/128 via {near} dev lap0 metric 1")
            network_namespace.ip(f"route add fd12:3456:789a:1::3/128 via {near} dev lap0 metric 1")
            index = socket.if_nametoindex("lap0")
        ports = [22, 23, 80, 4369, 9100, 9102, 9969]
        settings = made(access={"ssh_keys": "key"}, trust={"root": "x"})
        async with guarded(tmp_path, settings) as guard:
            guard.firewall.use_cables(frozenset({"eth0"}))
            await until(lambda: "goto cable" in guard.firewall._text, "the cable is let in")
            servers = listeners(*ports)
            servers += [socket.create_server(("169.254.1.1", port)) for port in (24, 25)]
            servers.append(_both(26))
            heard = {port: datagrams(port) for port in (5353, 123, 49999)}
            callers: dict[tuple[str, int], socket.socket] = {}
            with wire.at_stranger():
                sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
                for port in ports:
                    callers["link", port] = _call((near, port, 0, index))
                    callers["mesh", port] = _call((NODE, port))
                for port in (24, 25, 26):
                    callers["ipv4", port] = _call(("169.254.1.1", port))
                for port in heard:
                    sender.sendto(b"hello", (near, port, 0, index))
                sender.sendto(b"on", ("fd12:3456:789a:1::3", 9))
                echo = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
                echo.setblocking(False)
                echo.sendto(bytes((128, 0, 0, 0)) + b"\0\x07\0\x01ping", (near, 0, 0, index))

            def reached() -> set[tuple[str, int]]:
                with selectors.DefaultSelector() as selector:
                    for what, s in callers.items():
                        selector.register(s, selectors.EVENT_WRITE, what)
                    return {key.data for key, _ in selector.select(0)}

            await until(lambda: reached() == {("link", 22)}, "SSH answers")
            await until(lambda: drain(heard[5353]), "a question for the name")
            shut = len(callers) - 1 + 2 + 1
            await until(lambda: guard.dropped("closed") >= shut, "all else was dropped")
            await until(lambda: guard.dropped("forward") >= 1, "nothing goes through")
            assert reached() == {("link", 22)}
            assert [drain(heard[port]) for port in (123, 49999)] == [[], []]
            assert not any(payload[0] == 129 for payload, _ in drain(echo))
            assert guard.codes() == []
            # the same node is open at its mesh as ever
            with wire.at_stranger():
                network_namespace.ip(f"route del {NODE}/128 dev lap0")
                mesh = _call((NODE, 4369))
            await asyncio.wait_for(_connected(mesh), PATIENCE)
            # and shut again without the cable, also for who is in
            guard.firewall.use_cables(frozenset())
            await until(lambda: "goto cable" not in guard.firewall._text, "the cable is shut")
            with wire.at_stranger():
                last = _call((near, 22, 0, index))
            before = guard.dropped("closed")
            await until(lambda: guard.dropped("closed") > before, "SSH is shut")
            for s in [*servers, *heard.values(), *callers.values(), sender, echo, mesh, last]:
                s.close()

    async def test_a_flood_by_cable_is_cut_off_and_the_mesh_goes_on(
        self, wire: Wire, tmp_path: Path
    ) -> None:
        there = f"/proc/{os.getpid()}/fd/{wire.stranger}"
        network_namespace.ip(f"link add eth0 type veth peer name lap0 netns {there}")
        network_namespace.up("eth0")
        with wire.at_stranger():
            network_namespace.up("lap0")
            index = socket.if_nametoindex("lap0")
            sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            link_local("lap0")
        near = link_local("eth0")
        (tmp_path / "run/thicket").mkdir(parents=True)
        (tmp_path / "run/thicket/cables").write_text("eth0\n")  # as the start's script leaves it
        async with guarded(tmp_path, made(access={"ssh_keys": "key"})) as guard:
            began = time.monotonic()
            heard = datagrams(5353)
            for _ in range(20):
                for _ in range(500):
                    sender.sendto(b"flood", (near, 5353, 0, index))
                await asyncio.sleep(0)
            elapsed = time.monotonic() - began
            await until(lambda: guard.dropped("cable_flood") > 5000, "it is cut off")
            assert 0 < len(drain(heard)) <= 200 + 100 * elapsed + 1
            (server,) = listeners(4369)
            with wire.at_stranger():
                mesh = _call((NODE, 4369))
            await asyncio.wait_for(_connected(mesh), PATIENCE)
            for s in (server, mesh, heard, sender):
                s.close()

    async def test_the_node_itself_reaches_everything(self, wire: Wire, tmp_path: Path) -> None:
        async with guarded(tmp_path, made()):
            with wire.at_stranger():
                (server,) = listeners(5555)
            near = listeners(5556)
            loop = asyncio.get_running_loop()
            for address in ((STRANGER, 5555), (NODE, 5556), ("::1", 5556)):
                with socket.socket(socket.AF_INET6) as s:
                    s.setblocking(False)
                    await asyncio.wait_for(loop.sock_connect(s, address), PATIENCE)
            for s in [server, *near]:
                s.close()

    async def test_a_storm_of_beacons_leaves_room_for_others(
        self, wire: Wire, tmp_path: Path
    ) -> None:
        async with guarded(tmp_path, made()) as guard:
            began = time.monotonic()
            node = datagrams(49999)
            group = socket.inet_pton(socket.AF_INET6, "ff02::69")
            index = socket.if_nametoindex("mesh0")
            request = group + struct.pack("@I", index)
            node.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
            with wire.at_stranger():
                storm, honest = (self.beacons(wire, address) for address in (None, STRANGER))
            target = ("ff02::69", 49999, 0, wire.far_index)
            heard: dict[bytes, int] = {}
            sent = 0

            def both() -> bool:
                nonlocal sent
                for _ in range(500):
                    storm.sendto(b"storm", target)
                    sent += 1
                honest.sendto(b"honest", target)
                for payload, _ in drain(node):
                    heard[payload] = heard.get(payload, 0) + 1
                return sent >= 10_000 and heard.get(b"honest", 0) >= 3

            await until(both, "somebody else's beacons come through a storm of 10,000")
            elapsed = time.monotonic() - began
            assert 0 < heard[b"storm"] <= 20 + 10 * elapsed + 1
            assert guard.dropped("beacon_sender") > sent // 2
            assert guard.dropped("beacon_flood") == 0
            far = self.beacons_through_a_router(wire, target)
            await until(lambda: guard.dropped("beacon_router") >= 1, "a routed beacon is dropped")
            for s in (node, storm, honest, far):
                s.close()

    @staticmethod
    def beacons(wire: Wire, source: str | None) -> socket.socket:
        s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, wire.far_index)
        if source is not None:
            s.bind((source, 0))
        return s

    def beacons_through_a_router(self, wire: Wire, target: tuple[str, int, int, int]) -> Any:
        with wire.at_stranger():
            s = self.beacons(wire, None)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 254)
        s.sendto(b"far", target)
        return s

    async def test_invented_senders_are_bounded_together(self, wire: Wire, tmp_path: Path) -> None:
        async with guarded(tmp_path, made()) as guard:
            began = time.monotonic()
            node = datagrams(49999)
            mac = network_namespace.ip("-br link show mesh0").split()[2]
            destination = bytes.fromhex(mac.replace(":", ""))
            with wire.at_stranger():
                raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                raw.bind(("far0", 0))
            heard = number = 0
            while guard.dropped("beacon_flood") < 500:
                assert time.monotonic() - began < 120, "nothing is dropped"
                for _ in range(500):
                    number += 1
                    raw.send(_beacon(destination, f"fd12:3456:789a:1::9:{number:x}"))
                heard += len(drain(node))
                await asyncio.sleep(0)
            heard += len(drain(node))
            assert 0 < heard <= 600 + 300 * (time.monotonic() - began) + 1
            listed = nft("list set inet thicket beacon_senders")
            assert 0 < listed.count("fd12:3456:789a:1:") <= _SENDERS
            node.close()
            raw.close()

    async def test_one_caller_does_not_use_up_all_connections(
        self, wire: Wire, tmp_path: Path
    ) -> None:
        async with guarded(tmp_path, made()) as guard:
            (server,) = listeners(9100)
            callers = []
            with wire.at_stranger():
                network_namespace.ip("address add fd12:3456:789a:1::3/64 dev far0 nodad")
                deadline = time.monotonic() + PATIENCE
                while not guard_dropped(guard, wire, "connection_sender"):
                    assert time.monotonic() < deadline, "nothing is dropped"
                    s = socket.socket(socket.AF_INET6)
                    s.bind((STRANGER, 0))
                    s.setblocking(False)
                    s.connect_ex((NODE, 9100))
                    callers.append(s)
                    assert len(callers) < 5000
                other = socket.socket(socket.AF_INET6)
                other.bind(("fd12:3456:789a:1::3", 0))
            other.setblocking(False)
            await asyncio.wait_for(
                asyncio.get_running_loop().sock_connect(other, (NODE, 9100)), PATIENCE
            )
            for s in [*callers, other, server]:
                s.close()


def guard_dropped(guard: Guard, wire: Wire, reason: str) -> int:
    _enter(wire.node)
    try:
        return guard.dropped(reason)
    finally:
        _enter(wire.stranger)


def _beacon(destination: bytes, source: str) -> bytes:
    """A frame with a beacon from an invented address (RFC 8200 3, RFC 768)."""
    payload = source.encode()
    length = 8 + len(payload)
    addresses = IPv6Address(source).packed + IPv6Address(NODE).packed
    header = struct.pack("!HHHH", 49999, 49999, length, 0)
    total = addresses + struct.pack("!II", length, 17) + header + payload
    total += b"\0" * (len(total) % 2)
    checksum = sum(struct.unpack(f"!{len(total) // 2}H", total))
    while checksum >> 16:
        checksum = (checksum & 0xFFFF) + (checksum >> 16)
    header = struct.pack("!HHHH", 49999, 49999, length, (checksum ^ 0xFFFF) or 0xFFFF)
    packet = struct.pack("!IHBB", 6 << 28, length, 17, 255) + addresses + header + payload
    return destination + b"\x02\0\0\0\0\x09" + b"\x86\xdd" + packet


def _nested(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _counter(name: bytes, packets: bytes, table: bytes = b"thicket\0") -> bytes:
    """NFT_MSG_NEWOBJ with a counter, by include/uapi/linux/netfilter/nf_tables.h."""
    data = _nested(1, bytes(8)) + _nested(2, packets)
    body = b"\1\0\0\0" + _nested(1, table) + _nested(2, name) + _nested(3, b"\0\0\0\1")
    body += _nested(0x8000 | 4, data) + _nested(5, b"\0\0\0\1")
    return struct.pack("=IHHII", 16 + len(body), 0xA12, 2, 1, 0) + body


class TestCounters:
    def test_the_request_asks_for_the_counters_of_one_table(self) -> None:
        asked = counters.request("thicket")
        assert asked == struct.pack("=IHHII", len(asked), 0xA13, 0x301, 0, 0) + b"\1\0\0\0" + (
            _nested(1, b"thicket\0") + _nested(3, b"\0\0\0\1")
        )

    def test_a_counter(self) -> None:
        told = _counter(b"closed\0", struct.pack(">Q", 2**40 + 3))
        assert counters.counter(told) == ("thicket", "closed", 2**40 + 3)

    @pytest.mark.parametrize(
        "told",
        [
            b"",
            _counter(b"closed\0", b"\0\0\0\1"),
            _counter(b"\xff\0", bytes(8)),
            _counter(b"closed\0", bytes(8))[:40],
        ],
    )
    def test_a_damaged_counter_is_none(self, told: bytes) -> None:
        assert counters.counter(told) is None

    @given(st.binary(max_size=120))
    def test_a_counter_is_read_from_anything(self, told: bytes) -> None:
        assert counters.counter(told) is None or len(told) > 20


class TestFollowing:
    async def test_settings_are_followed_and_counters_outlast_what_changes_nothing(
        self, wire: Wire, tmp_path: Path
    ) -> None:
        async with guarded(tmp_path, made()) as guard:
            with wire.at_stranger():
                s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
                s.sendto(b"x", (NODE, 7))
            await until(lambda: guard.dropped("closed"), "a packet is dropped")
            guard.firewall.follow(made(mesh={"id": "elsewhere"}))
            await until(lambda: not guard.firewall._changed.is_set(), "it was looked at")
            assert guard.dropped("closed") >= 1
            guard.firewall.follow(made(cluster={"port": 9300}))
            await until(lambda: "9300" in rules(), "the new rules are in force")
            guard.firewall.follow(made(firewall={"enabled": False}))
            await until(lambda: "table" not in rules(), "the table is gone")
            await until(lambda: guard.codes() == [("off", "warning")], "status says so")
            assert guard.firewall.in_force.is_set()
            guard.firewall.follow(made())
            await until(lambda: "9100" in rules(), "the rules are back")
            await until(lambda: guard.codes() == [], "the problem is over")
            s.close()

    async def test_rules_that_were_taken_away_are_put_back(
        self, wire: Wire, tmp_path: Path
    ) -> None:
        async with guarded(tmp_path, made()) as guard:
            nft("flush ruleset")
            assert "table" not in rules()
            guard.firewall.refresh()
            await until(lambda: "9100" in rules(), "the rules are back")
            assert guard.firewall.in_force.is_set()

    async def test_without_nft_the_network_stays_closed_until_it_is_there(
        self, wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service, "_PAUSES", (0.05,))
        program = tmp_path / "nft"
        async with guarded(tmp_path, made(), wait=False, program=str(program)) as guard:
            await until(lambda: guard.codes() == [("not-set-up", "error")], "it is reported")
            assert not guard.firewall.in_force.is_set()
            assert guard.firewall.snapshot() == {"state": "failed", "dropped": {}}
            assert "not installed" in guard.problems.all()[0]["message"]
            program.symlink_to(str(shutil.which("nft")))
            await asyncio.wait_for(guard.firewall.in_force.wait(), PATIENCE)
            assert guard.codes() == []
            assert guard.firewall.snapshot()["state"] == "on"
            # A later failure leaves the rules as they are.
            program.unlink()
            program.write_text("#!/bin/sh\necho 'Error: no memory' >&2\nexit 1\n")
            program.chmod(0o755)
            guard.firewall.follow(made(cluster={"port": 9300}))
            await until(lambda: guard.codes() == [("not-set-up", "error")], "it is reported")
            message = guard.problems.all()[0]["message"]
            assert "status 1: Error: no memory; the rules from before" in message
            assert guard.firewall.in_force.is_set()
            assert served_in_force() == {4369, 9100}

    async def test_no_firewall_wanted_and_no_program_is_no_failure(
        self, wire: Wire, tmp_path: Path
    ) -> None:
        off = made(firewall={"enabled": False})
        async with guarded(tmp_path, off, program=str(tmp_path / "none")) as guard:
            assert guard.codes() == [("off", "warning")]

    async def test_elsewhere_than_on_a_node_nothing_is_touched(self, tmp_path: Path) -> None:
        problems = Problems(lambda: None)
        guard = Firewall(Paths(str(tmp_path)), "mesh0", problems, made())
        guard.program = str(tmp_path / "none")
        task = asyncio.create_task(guard.run())
        await asyncio.wait_for(guard.in_force.wait(), PATIENCE)
        guard.refresh()
        assert guard.snapshot() == {"state": "none", "dropped": {}}
        assert problems.all() == []
        assert not Path(guard.path).exists()
        task.cancel()
        await asyncio.wait({task})


def nft(words: str) -> str:
    command = ["nft", *words.split()]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def rules() -> str:
    return nft("list ruleset")


def served_in_force() -> set[int]:
    ports = re.search(r"tcp dport { ([\d, ]+) } goto connections", rules())
    assert ports is not None
    return {int(port) for port in ports[1].split(", ")}


PORT = st.integers(1, 65535)
ENTRIES = st.lists(
    st.one_of(
        st.builds("{}/{}".format, st.sampled_from(["tcp", "udp"]), PORT),
        st.builds(
            lambda kind, a, b: f"{kind}/{min(a, b)}-{max(a, b)}",
            st.sampled_from(["tcp", "udp"]), PORT, PORT,
        ).filter(lambda e: len(set(e.partition("/")[2].split("-"))) == 2),
    ),
    max_size=64,
)  # fmt: skip


@hypothesis_settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(ENTRIES, st.booleans(), st.booleans(), st.integers(1024, 65535))
def test_nft_takes_the_rules_of_every_configuration(
    wire: Wire, entries: list[str], gate: bool, logged: bool, port: int
) -> None:
    allow = Ports((), "").check(entries)
    settings = made(
        firewall={"allow": allow, "log": logged}, mesh={"gate": gate}, cluster={"port": port},
        access={"ssh_keys": "key" if gate else ""},
    )  # fmt: skip
    done = subprocess.run(
        ["nft", "-c", "-f", "-"], input=ruleset(settings, "mesh0"), text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


class TestDaemons:
    """Real daemons behind real rules; only the radio is a wire."""

    def test_a_storm_of_beacons_loses_no_member(self, fleet: Fleet) -> None:
        if shutil.which("nft") is None:
            pytest.skip("needs the program nft (package nftables)")
        nodes = [fleet.add() for _ in range(3)]
        for node in nodes:
            # A daemon of a test leaves the network alone: its rules are put there for it.
            assert node.process is not None
            namespace = os.open(f"/proc/{node.process.pid}/ns/net", os.O_RDONLY)
            own = _namespace()
            try:
                _enter(namespace)
                done = subprocess.run(
                    ["nft", "-f", "-"], input=ruleset(made(), "mesh0"), text=True,
                    capture_output=True, check=False,
                )  # fmt: skip
            finally:
                _enter(own)
                os.close(namespace)
                os.close(own)
            assert (done.returncode, done.stderr) == (0, "")
        fleet.until(lambda: fleet.formed(*nodes), "a cluster behind firewalls")
        index = socket.if_nametoindex("medium")
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as storm:
            storm.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            storm.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)

            def send() -> bool:
                try:
                    storm.sendto(b"fd12:3456:789a:1::bad", ("ff02::69", 49999, 0, index))
                except OSError:
                    return False
                return True

            fleet.until(send, "the bridge's own address is confirmed")
            before = [self.members(node) for node in nodes]
            received = nodes[0].ask("status")["discovery"]["received"]
            began = time.monotonic()
            for sent in range(30_000):
                send()
                if sent % 100 == 99:  # 10,000 a second, or what the machine can do
                    time.sleep(max(0.0, began + sent / 10_000 - time.monotonic()))
        for node in nodes:
            assert node.ask("ping", node=nodes[0].name)["node"] == nodes[0].name
        elapsed = time.monotonic() - began
        assert [self.members(node) for node in nodes] == before, "none came or went"
        # Its own rate is 10 a second, and each of three nodes sends one a second at most.
        heard = nodes[0].ask("status")["discovery"]["received"] - received
        assert 0 < heard <= 20 + 10 * elapsed + 3 * 20

    @staticmethod
    def members(node: NamespaceNode) -> list[tuple[str, str, float]]:
        nodes = node.ask("nodes")["cluster"]["nodes"]
        return [(n["name"], n["state"], n["since"]) for n in nodes if n["state"] == "up"]
