# SPDX-License-Identifier: Apache-2.0
"""thicket.discovery.dnssd: what gets to zeroconf, whom the node tries, and real nodes on a wire."""

import asyncio
import contextlib
import json
import os
import random
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, cast

import network_namespace
import pytest
from patience import PATIENCE
from virtual_time import VirtualTimeLoop

from thicket.base.problems import Problems
from thicket.discovery import hints
from thicket.discovery.dnssd import DnsSd, Told
from thicket.discovery.gate import REASONS, Gate
from thicket.discovery.hints import SERVICE, Hints
from thicket.discovery.questions import MOST_BYTES, browse, first_labels, probe

PREFIX = IPv6Network("fd12:3456:789a:1::/64")
OWN = PREFIX[1]
HEADER = struct.Struct("!HHHHHH")  # RFC 1035 4.1.1
ANSWER, QUESTION = 0x8400, 0
PTR, TXT, AAAA, SRV, ANY = 12, 16, 28, 33, 255


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
    service = f"m-{number}.{SERVICE}"
    text = f"node={node or f'thicket@{address}'}".encode()
    return answers(
        record(SERVICE, PTR, name(service), 4500),
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


def asking(*questions: tuple[bytes, int], header: int = QUESTION, known: bytes = b"") -> bytes:
    parts = b"".join(owner + struct.pack("!HH", kind, 1) for owner, kind in questions)
    return HEADER.pack(7, header, len(questions), bool(known), 0, 0) + parts + known


class TestGate:
    """A node with the name n-1, which knows the nodes with even numbers."""

    @pytest.fixture
    def inner(self) -> Inner:
        return Inner()

    @pytest.fixture
    def gate(self, inner: Inner) -> Gate:
        def known(address: IPv6Address) -> bool:
            return int(address) % 2 == 0

        return Gate(inner, "n-1", PREFIX, known, dict.fromkeys(REASONS, 0))

    @pytest.mark.parametrize(
        "packet",
        [
            question("n-1.local", AAAA),
            question("N-1.LOCAL", ANY),
            question(SERVICE, PTR),
            question(SERVICE.upper(), PTR),
            question("_services._dns-sd._udp.local", PTR),
            asking((name("_ipp._tcp.local"), PTR), (name(SERVICE), PTR)),
            asking((name("x.local"), PTR), (b"\x08_thicket\xc0\x0e", PTR)),
            # the rest of what a questioner knows (RFC 6762 7.2)
            asking(known=record(SERVICE, PTR, name(f"n-1.{SERVICE}"))),
            # another station with our name
            answers(record("n-1.local", AAAA, PREFIX[4].packed)),
            node_records(5),
            node_records(5).upper(),
            # of two nodes one is known
            node_records(4) + record("m-5.local", AAAA, PREFIX[5].packed),
            # nothing is said of an address
            answers(record(SERVICE, PTR, name(f"m-4.{SERVICE}"))),
        ],
    )
    def test_what_is_meant_for_us_passes(self, gate: Gate, inner: Inner, packet: bytes) -> None:
        gate.datagram_received(packet, ("fe80::1", 5353))
        assert inner.got == [packet]
        assert set(gate.dropped.values()) == {0}

    @pytest.mark.parametrize(
        ("reason", "packet"),
        [
            ("length", b""),
            ("length", b"x" * 11),
            ("length", b"\0" * 1453),
            ("other", answers(record("_ipp._tcp.local", PTR, name("p._ipp._tcp.local")))),
            ("other", question("n-2.local", AAAA)),
            # another node's probe
            ("other", probe(f"n-2.{SERVICE}", "n-2.local.", 9100, PREFIX[2])),
            ("other", asking(known=record(SERVICE, PTR, name(f"n-2.{SERVICE}")))),
            ("known", node_records(4)),
            ("known", node_records(4) + node_records(6)),
        ],
    )  # fmt: skip
    def test_what_is_not_is_counted(
        self, gate: Gate, inner: Inner, reason: str, packet: bytes
    ) -> None:
        gate.datagram_received(packet, ("fe80::1", 5353))
        assert inner.got == []
        assert {why: n for why, n in gate.dropped.items() if n} == {reason: 1}

    def test_questions_that_cannot_be_read_are_left_to_zeroconf(self) -> None:
        whole = asking((name("a.b.local"), PTR), (b"\x01c\xc0\x0c", PTR), (b"\0", PTR))
        assert first_labels(whole) == [b"\x01a", b"\x01c", b"\0"]
        ends = [first_labels(whole[:end]) for end in range(12, len(whole))]
        # the type and the class of the last question are not looked at
        assert [end for end in ends if end is not None] == [first_labels(whole)] * 4
        assert first_labels(asking((b"\xc0\x0c", PTR))) is None, "a name that is elsewhere"
        assert first_labels(asking(*[(b"\0", PTR)] * 17)) is None, "too many"

    def test_rubbish_is_read_to_an_end(self) -> None:
        rng = random.Random(3)
        for _ in range(2000):
            first_labels(rng.randbytes(rng.randrange(12, 80)))

    def test_a_flood_is_cut_off_by_number_and_by_bytes(self, inner: Inner) -> None:
        short = question("n-1.local", AAAA)
        for data, most in ((short, 170), (short.ljust(1452, b"\0"), 80)):
            inner.got.clear()
            gate = Gate(inner, "n-1", PREFIX, lambda _: False, dict.fromkeys(REASONS, 0))
            for _ in range(10_000):
                gate.datagram_received(data, ("fe80::1", 5353))
            assert 10 < len(inner.got) <= most + 40 * 60  # a minute, should it take that long
            assert len(inner.got) + gate.dropped["rate"] == 10_000

    def test_a_fault_of_the_parser_is_only_counted(self, gate: Gate) -> None:
        gate.datagram_received(question("n-1.local", AAAA) + b"broken", ("fe80::1", 5353))
        assert gate.dropped["fault"] == 1


class TestQuestions:
    """Read by zeroconf, which did not write them."""

    def test_a_probe(self) -> None:
        incoming = pytest.importorskip("zeroconf").DNSIncoming
        service = f"n-2.{SERVICE}"
        packet = incoming(probe(service, "n-2.local.", 9100, PREFIX[2]))
        assert packet.valid
        assert packet.is_probe()
        asked = [(one.name, one.type, one.unicast) for one in packet.questions]
        assert asked == [(service, ANY, True), ("n-2.local.", ANY, True)]
        srv, aaaa = packet.answers()  # the authorities among them
        assert (srv.name, srv.type, srv.port, srv.server) == (service, SRV, 9100, "n-2.local.")
        assert (aaaa.name, aaaa.type, aaaa.address) == ("n-2.local.", AAAA, PREFIX[2].packed)

    def test_a_question_for_others_says_whom_it_knows_as_far_as_there_is_room(self) -> None:
        incoming = pytest.importorskip("zeroconf").DNSIncoming
        known = [f"n-{number:012x}.{SERVICE}" for number in range(100)]
        written = browse(SERVICE, [f"{'long' * 16}.{SERVICE}", *known])
        assert MOST_BYTES - 64 < len(written) <= MOST_BYTES
        packet = incoming(written)
        assert packet.valid
        assert not packet.is_probe()
        assert [(one.name, one.type, one.unicast) for one in packet.questions] == [
            (SERVICE, PTR, False)
        ]
        found = [(one.name, one.type, one.ttl, one.alias) for one in packet.answers()]
        assert found == [(SERVICE, PTR, 4500, one) for one in known[: len(found)]]
        assert len(found) > 40


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
        tried = Hints(PREFIX, OWN)
        taken = [n for n in range(2, 100) if tried.take(PREFIX[n], 0.0)]
        assert taken == [2, 3, 4, 5]
        assert not tried.take(PREFIX[2], 1.0), "it is on trial"
        assert [n for n in (2, 5, 6) if tried.tried(PREFIX[n], 1.0)] == [2, 5]
        tried.settled(PREFIX[2])
        assert tried.take(PREFIX[50], 1.0)
        assert not tried.take(PREFIX[51], hints.TRIAL - 1)
        assert tried.take(PREFIX[51], hints.TRIAL + 1)


class _OpenedError(Exception):
    """zeroconf has opened its sockets."""


@pytest.mark.virtual_time
async def test_a_node_without_a_processor_is_late_and_has_no_trouble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("zeroconf")
    loop = cast("VirtualTimeLoop", asyncio.get_running_loop())

    def turn() -> None:
        """Each turn of the event loop takes four seconds."""
        loop.now += 4.0
        turns.append(loop.call_soon(turn))

    def opened(service: DnsSd) -> None:
        raise _OpenedError

    monkeypatch.setattr(DnsSd, "_install_gates", opened)
    turns = [loop.call_soon(turn)]
    with network_namespace.namespace():
        service = DnsSd(
            Told("n-1", OWN, 9100, {}), PREFIX, "lo", Problems(lambda: None), name_of=str,
            known=lambda _: False, others=lambda: 0, growth=lambda: 0, on_hint=lambda _: None,
        )  # fmt: skip
        with pytest.raises(_OpenedError):
            await service._serve()
    turns[-1].cancel()
    assert loop.now - 1000.0 > 9.0


@pytest.mark.virtual_time
async def test_it_starts_when_the_mesh_has_come_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    async def serve(service: DnsSd) -> str:
        raise _OpenedError

    async def starts(grows_until: float) -> float:
        """Return when it starts where nodes are connected until a time, in seconds from now."""
        begin = loop.time()
        service = DnsSd(
            Told("n-1", OWN, 9100, {}), PREFIX, "lo", Problems(lambda: None), name_of=str,
            known=lambda _: False, others=lambda: 3, on_hint=lambda _: None,
            growth=lambda: min(loop.time() - begin, grows_until),
        )  # fmt: skip
        with pytest.raises(_OpenedError):
            await service.run()
        return loop.time() - begin

    monkeypatch.setattr(DnsSd, "_serve", serve)
    assert 25.0 <= await starts(0.0) <= 40.0
    assert 110.0 <= await starts(100.0) <= 120.0
    assert 255.0 <= await starts(1e9) <= 280.0, "a mesh that never rests"


# -- the real thing


class Child:
    """DNS-SD of a node in its own namespace; :meth:`until` waits for what its status shows.

    :param beacons: the numbers of the nodes that beacons have told.
    """

    def __init__(self, number: int, most_records: int, beacons: Iterable[int]) -> None:
        script = Path(__file__).with_name("dnssd_in_namespace.py")
        self.number = number
        self.process = subprocess.Popen(
            [
                sys.executable, str(script), str(number), str(most_records),
                *(str(PREFIX[n]) for n in beacons),
            ],
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
                assert part, f"node {self.number} ended with {self.process.wait(PATIENCE)}"
                self.rest += part
        found, _, self.rest = self.rest.partition(b"\n")
        return found

    def until(self, condition: Callable[[dict[str, Any]], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
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

    def node(self, number: int, most_records: int = 4096, beacons: Iterable[int] = ()) -> Child:
        child = Child(number, most_records, beacons)
        self.children.append(child)
        return child

    def send(self, data: bytes) -> None:
        self.socket.sendto(data, ("ff02::fb", 5353, 0, self.index))

    def resolve(self, host: str) -> IPv6Address:
        """Ask for a host's address as a simple resolver does (RFC 6762 6.7), and again."""
        deadline = time.monotonic() + PATIENCE
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

    def test_nodes_that_know_each_other_by_beacons_say_nothing_more_than_their_own(
        self, net: Net
    ) -> None:
        numbers = range(0x11, 0x16)
        # Other packets than multicast DNS make no difference to this socket.
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as ear:
            ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            ear.bind(("::", 5353))
            group = socket.inet_pton(socket.AF_INET6, "ff02::fb") + struct.pack("@I", net.index)
            ear.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
            ear.setblocking(False)
            nodes = [net.node(n, beacons=set(numbers) - {n}) for n in numbers]
            for node in nodes:
                node.until(published, "it is published")
            for node in nodes:
                node.until(lambda s: s["announced"] == 2, "it has announced itself")
            heard = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    heard.append(ear.recv(9000))
        told = [packet for packet in heard if packet[2] & 0x80]
        assert len(told) == 2 * len(numbers), "announcements, and no answers"
        assert len(heard) - len(told) == 3 * len(numbers), "probes, and no other questions"
        for node in nodes:
            assert (node.status["tried"], node.status["services"]) == ([], 1)

    def test_a_name_that_another_station_has_is_not_taken(self, net: Net) -> None:
        a = net.node(0x11)
        a.until(published, "it is published")
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("::", 5353))
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            group = socket.inet_pton(socket.AF_INET6, "ff02::fb") + struct.pack("@I", net.index)
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
            other.settimeout(PATIENCE)
            b = net.node(0x22)
            while True:
                packet = other.recv(9000)
                if not packet[2] & 0x80 and b"n-000000000022" in packet:
                    taken = record("n-000000000022.local", AAAA, PREFIX[0x99].packed)
                    other.sendto(answers(taken), ("ff02::fb", 5353, 0, net.index))
                    break
            b.until(lambda s: "not-served" in s["codes"], "it says that the name is taken")
        b.until(published, "it is published when nobody has the name any more")
        assert net.resolve("n-000000000022.local") == PREFIX[0x22]

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
        a.until(lambda s: len(s["tried"]) >= hints.TRIALS, "some are tried")
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
            names = (f"x{n}.{SERVICE}" for n in range(start, start + 12))
            net.send(answers(*(record(SERVICE, PTR, name(n), 4500) for n in names)))
            if start % 120 == 0:
                time.sleep(0.1)
        a.until(lambda s: not published(s) or s["dropped"].get("rate"), "it was too much")
        a.until(published, "it is published again")
        assert net.resolve("n-000000000011.local") == PREFIX[0x11]
