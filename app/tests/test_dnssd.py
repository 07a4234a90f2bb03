# SPDX-License-Identifier: Apache-2.0
"""thicket.discovery.dnssd: what gets to zeroconf, whom the node tries, and real nodes on a wire."""

import asyncio
import json
import os
import random
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import network_namespace
import pytest

from thicket.discovery import dnssd
from thicket.discovery.dnssd import Gate, Hints

PREFIX = IPv6Network("fd12:3456:789a:1::/64")
OWN = PREFIX[1]
HEADER = struct.Struct("!HHHHHH")  # RFC 1035 4.1.1
ANSWER, QUESTION = 0x8400, 0
PTR, TXT, AAAA, SRV = 12, 16, 28, 33


def name(text: str) -> bytes:
    return b"".join(bytes((len(p),)) + p.encode() for p in text.strip(".").split(".")) + b"\0"


def record(owner: str, kind: int, data: bytes, ttl: int = 120) -> bytes:
    return name(owner) + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


def answers(*records: bytes) -> bytes:
    return HEADER.pack(0, ANSWER, 0, len(records), 0, 0) + b"".join(records)


def question(owner: str, kind: int) -> bytes:
    return HEADER.pack(7, QUESTION, 1, 0, 0, 0) + name(owner) + struct.pack("!HH", kind, 1)


def node_records(number: int, node: str | None = None) -> bytes:
    """What a node publishes, made by hand."""
    host, address = f"m-{number}.local", PREFIX[number]
    service = f"m-{number}.{dnssd.SERVICE}"
    text = f"node={node or f'thicket@{address}'}".encode()
    return answers(
        record(dnssd.SERVICE, PTR, name(service), 4500),
        record(service, SRV, struct.pack("!HHH", 0, 0, 9100) + name(host)),
        record(service, TXT, bytes((len(text),)) + text, 4500),
        record(host, AAAA, address.packed),
    )


class Inner(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.got: list[bytes] = []

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if data.endswith(b"broken"):
            raise IndexError("a fault of the parser")
        self.got.append(data)


class TestGate:
    @pytest.fixture
    def inner(self) -> Inner:
        return Inner()

    @pytest.fixture
    def gate(self, inner: Inner) -> Gate:
        return Gate(inner, dict.fromkeys(("length", "other", "rate", "fault"), 0))

    def test_what_is_meant_for_us_passes(self, gate: Gate, inner: Inner) -> None:
        good = [question("n-1.local", AAAA), node_records(5), node_records(5).upper()]
        for data in good:
            gate.datagram_received(data, ("fe80::1", 5353))
        assert inner.got == good
        assert set(gate.dropped.values()) == {0}

    def test_what_is_not_is_counted(self, gate: Gate, inner: Inner) -> None:
        printer = answers(record("_ipp._tcp.local", PTR, name("p._ipp._tcp.local")))
        for data in (b"", b"x" * 11, b"\0" * 1453, printer):
            gate.datagram_received(data, ("fe80::1", 5353))
        assert inner.got == []
        assert gate.dropped == {"length": 3, "other": 1, "rate": 0, "fault": 0}

    def test_a_flood_is_cut_off_by_number_and_by_bytes(self, inner: Inner) -> None:
        for data, most in ((question("n-1.local", AAAA), 170), (b"\0" * 1452, 80)):
            inner.got.clear()
            gate = Gate(inner, dict.fromkeys(("length", "other", "rate", "fault"), 0))
            for _ in range(10_000):
                gate.datagram_received(data, ("fe80::1", 5353))
            assert 10 < len(inner.got) <= most + 40 * 60  # a minute, should it take that long
            assert len(inner.got) + gate.dropped["rate"] == 10_000

    def test_a_fault_of_the_parser_is_only_counted(self, gate: Gate, inner: Inner) -> None:
        gate.datagram_received(question("n-1.local", AAAA) + b"broken", ("fe80::1", 5353))
        assert gate.dropped["fault"] == 1


class TestHints:
    def fits(self, address: str, node: str) -> bool:
        found = IPv6Address(address)
        return Hints(PREFIX, OWN).fits(found, node, f"thicket@{found}")

    def test_only_nodes_of_the_cluster_in_our_prefix(self) -> None:
        assert self.fits("fd12:3456:789a:1::2", "thicket@fd12:3456:789a:1::2")
        assert not self.fits("fd12:3456:789a:1::2", "other@fd12:3456:789a:1::2")
        assert not self.fits("fd12:3456:789a:1::2", "thicket@fd12:3456:789a:1::3")
        assert not self.fits("fd12:3456:789a:1::2", "")
        assert self.fits("fd12:3456:789a:1::2", "thicket@fd12:3456:789a:1:0::0002")
        assert not self.fits(str(OWN), f"thicket@{OWN}")
        for outside in ("fd12:3456:789a:2::2", "fe80::2", "2001:db8::2"):
            assert not self.fits(outside, f"thicket@{outside}")

    def test_few_at_a_time(self) -> None:
        hints = Hints(PREFIX, OWN)
        taken = [n for n in range(2, 100) if hints.take(PREFIX[n], 0.0)]
        assert taken == [2, 3, 4, 5]
        assert not hints.take(PREFIX[2], 1.0), "it is on trial"
        hints.settled(PREFIX[2])
        assert hints.take(PREFIX[50], 1.0)
        assert not hints.take(PREFIX[51], dnssd.TRIAL - 1)
        assert hints.take(PREFIX[51], dnssd.TRIAL + 1)


# -- the real thing


class Child:
    """DNS-SD of a node in its own namespace; :meth:`until` waits for what its status shows."""

    def __init__(self, number: int, most_records: int) -> None:
        script = Path(__file__).with_name("dnssd_in_namespace.py")
        self.number = number
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(number), str(most_records)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.output = self.process.stdout.fileno()
        self.rest = b""
        self.status: dict[str, Any] = {}
        self.line(60)
        self.plug()
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()

    def plug(self) -> None:
        wire = f"w{self.number}"
        network_namespace.ip(f"link add {wire} type veth peer mesh0 netns {self.process.pid}")
        network_namespace.ip(f"link set {wire} master medium up")

    def line(self, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.output, selectors.EVENT_READ)
            while b"\n" not in self.rest:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    return b""
                part = os.read(self.output, 65536)
                assert part, f"node {self.number} ended with {self.process.wait(60)}"
                self.rest += part
        found, _, self.rest = self.rest.partition(b"\n")
        return found

    def until(self, condition: Callable[[dict[str, Any]], object], what: str) -> None:
        deadline = time.monotonic() + 60
        while not (self.status and condition(self.status)):
            line = self.line(0.5)
            if line:
                self.status = json.loads(line)
            assert time.monotonic() < deadline, f"not within 60 s: {what}; {self.status}"


class Net:
    def __init__(self) -> None:
        self.children: list[Child] = []
        self.index = socket.if_nametoindex("medium")
        self.socket = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, self.index)
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        self.socket.bind(("::", 0))
        self.socket.settimeout(1.0)

    def node(self, number: int, most_records: int = 4096) -> Child:
        child = Child(number, most_records)
        self.children.append(child)
        return child

    def send(self, data: bytes) -> None:
        self.socket.sendto(data, ("ff02::fb", 5353, 0, self.index))

    def resolve(self, host: str) -> IPv6Address:
        """Ask for a host's address as a simple resolver does (RFC 6762 6.7), and again."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.send(question(host, AAAA))
            try:
                data = self.socket.recv(9000)
            except TimeoutError:
                continue
            found = data.rfind(PREFIX.network_address.packed[:8])
            if found >= 0:
                return IPv6Address(data[found : found + 16])
        raise AssertionError(f"no answer for {host}")


@pytest.fixture
def net() -> Iterator[Net]:
    pytest.importorskip("zeroconf")
    with network_namespace.namespace():
        network_namespace.ip("link add medium type bridge mcast_snooping 0")
        network_namespace.up("medium")
        made = Net()
        try:
            yield made
        finally:
            made.socket.close()
            for child in made.children:
                child.process.kill()
                child.process.wait()


def published(status: dict[str, Any]) -> bool:
    return bool(status["state"] == "published")


class TestOnTheWire:
    def test_two_nodes_find_each_other_and_answer_to_their_names(self, net: Net) -> None:
        a, b = net.node(0x11), net.node(0x22)
        a.until(lambda s: s["tried"] == [str(PREFIX[0x22])], "the first finds the second")
        b.until(lambda s: s["tried"] == [str(PREFIX[0x11])], "the second finds the first")
        assert net.resolve("n-000000000011.local") == PREFIX[0x11]
        assert net.resolve("n-000000000022.local") == PREFIX[0x22]
        assert a.status["codes"] == b.status["codes"] == []

    def test_an_interface_that_is_made_anew(self, net: Net) -> None:
        a = net.node(0x11)
        a.until(published, "it is published")
        network_namespace.ip("link del w17")
        a.until(lambda s: not published(s), "it waits")
        a.plug()
        a.until(published, "it is published again")
        assert net.resolve("n-000000000011.local") == PREFIX[0x11]

    def test_strangers_are_not_tried_and_few_of_the_others(self, net: Net) -> None:
        a = net.node(0x11)
        a.until(published, "it is published")
        net.send(node_records(0x70, "other@fd12:3456:789a:1::70"))
        for number in range(0x80, 0x8A):
            net.send(node_records(number))
        a.until(lambda s: s["services"] >= 11, "it has seen all of them")
        a.until(lambda s: len(s["tried"]) >= dnssd.TRIALS, "some are tried")
        assert str(PREFIX[0x70]) not in a.status["tried"]
        # What was tried counts as known there, so that more of them get their turn after a while.
        assert len(a.status["tried"]) <= 10

    def test_too_much_said_is_forgotten_and_rubbish_does_no_harm(self, net: Net) -> None:
        a = net.node(0x11, most_records=300)
        a.until(published, "it is published")
        rng = random.Random(5)
        for _ in range(150):
            rubbish = bytearray(node_records(rng.randrange(2, 250)))
            for _ in range(rng.randrange(1, 12)):
                rubbish[rng.randrange(2, len(rubbish))] = rng.randrange(256)
            net.send(bytes(rubbish[: rng.randrange(12, len(rubbish) + 1)]))
        assert net.resolve("n-000000000011.local") == PREFIX[0x11]
        a.until(published, "it is published still, or again")
        for start in range(0, 4000, 12):
            names = (f"x{n}.{dnssd.SERVICE}" for n in range(start, start + 12))
            net.send(answers(*(record(dnssd.SERVICE, PTR, name(n), 4500) for n in names)))
            if start % 120 == 0:
                time.sleep(0.1)
        a.until(lambda s: not published(s) or s["dropped"].get("rate"), "it was too much")
        a.until(published, "it is published again")
        assert net.resolve("n-000000000011.local") == PREFIX[0x11]
