# SPDX-License-Identifier: Apache-2.0
"""thicket.discovery: the beacon's bytes, its schedule, and nodes on a real wire."""

import asyncio
import ipaddress
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv6Address, IPv6Network
from time import monotonic

import network_namespace
import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

from thicket.base.pace import Bucket, uniform
from thicket.discovery.beacon import (
    MAX_TEXT,
    PORT,
    REASONS,
    MalformedError,
    PlainBeacons,
    decode,
    encode,
)
from thicket.discovery.schedule import CALM, Schedule
from thicket.discovery.section import DiscoverySection
from thicket.discovery.service import Discovery
from thicket.discovery.table import Heard, SharedSources, Table, mac_of
from thicket.discovery.wire import BeaconSocket

PREFIX = IPv6Network("fd12:3456:789a:1::/64")
OWN = IPv6Address("fd12:3456:789a:1:0:6f44:e3c6:b802")
OTHER = IPv6Address("fd12:3456:789a:1:0:e0f9:2f20:de47")
# What the published Nerves application sends: "fd12:3456:789a:1::" and six bytes of the serial
# number in groups of four digits (its text shows these two nodes).
POST_OWN = b"fd12:3456:789a:1::6f44:e3c6:b802"
POST_OTHER = b"fd12:3456:789a:1::e0f9:2f20:de47"


def reason(payload: bytes) -> str:
    with pytest.raises(MalformedError) as caught:
        decode(payload, PREFIX, OWN)
    return caught.value.reason


class TestWire:
    def test_the_post_s_beacon_is_understood(self) -> None:
        assert decode(POST_OTHER, PREFIX, OWN) == OTHER
        assert decode(POST_OWN, PREFIX, None) == OWN

    def test_ours_is_an_address_that_the_post_parses(self) -> None:
        # :inet.parse_ipv6_address is RFC 4291 text, as inet_pton
        assert encode(OWN) == b"fd12:3456:789a:1:0:6f44:e3c6:b802"
        assert socket.inet_pton(socket.AF_INET6, encode(OWN).decode()) == OWN.packed

    @pytest.mark.parametrize(
        "text",
        [
            b"fd12:3456:789a:1::0bc3:e3c6:b802",  # leading zeros, as the post's groups can have
            b"FD12:3456:789A:1::BC3:E3C6:B802",
            b"fd12:3456:789a:0001:0000:0bc3:e3c6:b802",
            b"fd12:3456:789a:1:0:bc3:227.198.184.2",
        ],
    )
    def test_every_form_is_the_same_address(self, text: bytes) -> None:
        assert str(decode(text, PREFIX, OWN)) == "fd12:3456:789a:1:0:bc3:e3c6:b802"

    @pytest.mark.parametrize(
        ("payload", "why"),
        [
            (b"", "empty"),
            (b"a" * 46, "length"),
            (b"fd12:3456:789a:1::1%mesh0", "characters"),
            (b"fd12:3456:789a:1::1\n", "characters"),
            (b"fd12:3456:789a:1::1\0", "characters"),
            (b" fd12:3456:789a:1::1", "characters"),
            (b"[fd12:3456:789a:1::1]", "characters"),
            (b"fd12:3456:789a:1::1/64", "characters"),
            ("fd12:3456:789a:1::１".encode(), "characters"),
            (b"\xff\xfe", "characters"),
            (b"10.0.0.1", "syntax"),
            (b"fd12:3456:789a:1:::1", "syntax"),
            (b"fd12:3456:789a:1::12345", "syntax"),
            (b":", "syntax"),
            (b"::", "kind"),
            (b"::1", "kind"),
            (b"ff02::69", "kind"),
            (b"fd12:3456:789a:1::", "kind"),
            (b"fe80::1", "prefix"),
            (b"fd12:3456:789a:2::1", "prefix"),
            (b"::ffff:10.0.0.1", "prefix"),
            (POST_OWN, "own"),
        ],
    )
    def test_malformed(self, payload: bytes, why: str) -> None:
        assert reason(payload) == why
        assert why in REASONS

    def test_the_whole_site_with_the_post_s_prefix_length(self) -> None:
        site = IPv6Network("fd12:3456:789a::/48")
        assert decode(b"fd12:3456:789a:7::5", site, OWN)

    @given(st.binary(max_size=80))
    def test_any_bytes_are_an_address_or_a_counted_drop(self, payload: bytes) -> None:
        try:
            address = decode(payload, PREFIX, OWN)
        except MalformedError as e:
            assert e.reason in REASONS
        else:
            assert address in PREFIX
            assert address != OWN

    @given(st.text("0123456789abcdefABCDEF:.", max_size=50))
    def test_agrees_with_inet_pton_on_what_an_address_is(self, text: str) -> None:
        everything = IPv6Network("::/0")
        try:
            expected: bytes | None = socket.inet_pton(socket.AF_INET6, text)
        except OSError:
            expected = None
        try:
            got: bytes | None = decode(text.encode(), everything, None).packed
        except MalformedError as e:
            if e.reason == "kind":
                return
            got = None
        assert got == expected

    @given(st.integers(min_value=1, max_value=2**64 - 1))
    def test_round_trip(self, identifier: int) -> None:
        address = IPv6Address(int(PREFIX.network_address) + identifier)
        payload = encode(address)
        assert len(payload) <= MAX_TEXT
        assert decode(payload, PREFIX, None) == address


class TestBucket:
    def test_rate_and_burst(self) -> None:
        bucket = Bucket(rate=10.0, burst=5.0)
        taken = sum(bucket.take(100.0 + i * 0.01) for i in range(1000))  # ten seconds
        assert 100 <= taken <= 106

    def test_a_clock_that_steps_back_gives_nothing(self) -> None:
        bucket = Bucket(rate=1.0, burst=1.0)
        assert bucket.take(100.0)
        assert not bucket.take(50.0)


class TestTable:
    def addresses(self, n: int) -> list[IPv6Address]:
        return [IPv6Address(int(PREFIX.network_address) + i + 1) for i in range(n)]

    def test_is_bounded_whatever_is_heard(self) -> None:
        table = Table(limit=50, expire=60)
        full = 0
        for address in self.addresses(5000):
            try:
                table.hear(address, 1.0)
            except MalformedError as e:
                assert e.reason == "full"
                full += 1
        assert len(table.entries) == 50
        assert full == 4950

    def test_known_nodes_are_still_heard_when_it_is_full(self) -> None:
        table = Table(limit=8, expire=60)
        known = self.addresses(8)
        for address in known:
            table.hear(address, 1.0)
        with pytest.raises(MalformedError):
            table.hear(OTHER, 2.0)
        entry, new = table.hear(known[0], 2.0)
        assert not new
        assert entry.beacons == 2

    def test_the_silent_make_room(self) -> None:
        table = Table(limit=8, expire=60)
        for address in self.addresses(8):
            table.hear(address, 1.0)
        _, new = table.hear(OTHER, 62.0)
        assert new
        assert list(table.entries) == [OTHER]

    def test_pinned_nodes_stay(self) -> None:
        table = Table(limit=8, expire=60, pinned=lambda address: address == OTHER)
        table.hear(OTHER, 0.0)
        table.hear(OWN, 0.0)
        assert table.expire(100.0) == [OWN]
        assert list(table.entries) == [OTHER]

    def test_invented_addresses_come_in_slowly(self) -> None:
        table = Table(limit=20, expire=10)
        new = 0
        for i, address in enumerate(self.addresses(20000)):
            with suppress(MalformedError):
                new += table.hear(address, i * 0.01)[1]  # 200 s at 100 per second
        assert new <= 20 + 200 * 8 + 1


class TestSchedule:
    def test_fast_first_then_slow_with_jitter(self) -> None:
        schedule = Schedule(20.0, uniform)
        now = 1000.0
        schedule.hurry(now)
        gaps = []
        for _ in range(40):
            assert schedule.due <= now + 30.0
            gaps.append(max(0.0, schedule.due - now))
            now = max(now, schedule.due)
            schedule.sent(now)
        assert gaps[0] <= Schedule.GATHER
        assert all(1.0 <= gap <= 2.0 for gap in gaps[1 : 1 + Schedule.FAST])
        assert all(10.0 <= gap <= 30.0 for gap in gaps[1 + Schedule.FAST :])
        assert len(set(gaps[1 + Schedule.FAST :])) > 10

    def test_a_peer_makes_it_due_at_once_but_never_later(self) -> None:
        schedule = Schedule(20.0, uniform)
        for _ in range(10):
            schedule.sent(100.0)
        schedule.hurry(101.0, 2)
        first = schedule.due
        assert first <= 101.0 + Schedule.GATHER
        schedule.hurry(101.05, 2)
        assert schedule.due <= first

    def test_many_nodes_beacon_more_seldom_and_are_forgotten_later(self) -> None:
        found = make()
        for nodes, longer in ((1, 1.0), (CALM, 1.0), (200, 4.0), (1000, 20.0)):
            found.table.entries = {
                address: Heard(address, 0.0) for address in TestTable().addresses(nodes - 1)
            }
            found._stretch()
            assert found.schedule.interval == pytest.approx(20 * longer)
            assert found.table.lifetime == pytest.approx(120 * longer)
            # the beacons of all of them in a second
            assert nodes / found.schedule.interval <= CALM / 20 + 1e-9


def make(
    interface: str = "lo",
    address: IPv6Address = OWN,
    heard: Callable[[IPv6Address, bool], None] = lambda _address, _new: None,
    settings: DiscoverySection | None = None,
) -> Discovery:
    return Discovery(settings or DiscoverySection(), address, PREFIX, interface, heard)


class TestDatagram:
    """Judging datagrams, without a socket."""

    def test_source_must_be_link_local_or_the_address_itself(self) -> None:
        found = make()
        found.datagram(POST_OTHER, ("fe80::1%mesh0", 1, 0, 3), 255, 1.0)
        found.datagram(POST_OTHER, (str(OTHER), 1, 0, 0), 255, 2.0)
        found.datagram(POST_OTHER, ("fd12:3456:789a:1::bad", 1, 0, 0), 255, 3.0)
        assert found.table.entries[OTHER].beacons == 2
        assert found.counters.dropped["source"] == 1

    def test_who_announced_an_address_is_remembered(self) -> None:
        found = make()
        assert found.announced_from("fe80::1") is None
        found.datagram(POST_OTHER, ("fe80::1%mesh0", 1, 0, 3), 255, 1.0)
        assert found.announced_from("fe80::1") == OTHER
        assert found.announced_from("fe80::2") is None

    def test_the_source_check_can_be_switched_off(self) -> None:
        found = make(settings=DiscoverySection({"check_source": False}))
        found.datagram(POST_OTHER, ("fd12:3456:789a:1::bad", 1, 0, 0), 255, 3.0)
        assert OTHER in found.table.entries

    def test_what_passed_a_router_is_dropped(self) -> None:
        found = make()
        found.datagram(POST_OTHER, ("fe80::1", 1, 0, 3), 254, 1.0)
        assert found.counters.dropped["hop_limit"] == 1
        assert not found.table.entries

    def test_our_own_address_from_another_station_is_remembered(self) -> None:
        found = make()
        assert found.duplicate_heard is None
        found.datagram(POST_OWN, ("fe80::1", 1, 0, 3), 255, 7.0)
        assert found.duplicate_heard == 7.0

    def test_every_drop_is_counted_in_the_snapshot(self) -> None:
        found = make()
        for payload in (b"", b"x", b"::", b"fe80::1"):
            found.datagram(payload, ("fe80::1", 1, 0, 3), 255, 1.0)
        snapshot = found.snapshot()
        assert snapshot["received"] == 4
        assert snapshot["malformed"] == 4
        assert sum(snapshot["dropped"].values()) == 4

    def test_new_is_told_once(self) -> None:
        calls: list[tuple[IPv6Address, bool]] = []
        found = make(heard=lambda address, new: calls.append((address, new)))
        for _ in range(3):
            found.datagram(POST_OTHER, ("fe80::1", 1, 0, 3), 255, 1.0)
        assert calls == [(OTHER, True), (OTHER, False), (OTHER, False)]


# -- real sockets


@pytest.fixture
def wire() -> Iterator[None]:
    """Two interfaces, n1 and n2, that are connected, in a network of their own."""
    with network_namespace.namespace():
        network_namespace.veth("n1", "n2")
        yield


@asynccontextmanager
async def running(*nodes: Discovery) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(node.run()) for node in nodes]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)


class TestWithSockets:
    async def test_two_nodes_find_each_other(self, wire: None) -> None:
        a, b = make("n1"), make("n2", OTHER)
        async with running(a, b):
            await until(lambda: OTHER in a.table.entries, "a hears b")
            await until(lambda: OWN in b.table.entries, "b hears a")
        assert a.trouble == "not running"

    async def test_one_beacon_is_enough_for_both(self, wire: None) -> None:
        """The newly heard node is answered by unicast, so one direction of multicast suffices."""
        a, b = make("n1"), make("n2", OTHER)
        a._announce = lambda: a.schedule.sent(monotonic())  # type: ignore[method-assign]
        async with running(a):
            await until(lambda: a.counters.opened, "a listens")
            async with running(b):
                await until(lambda: OWN in b.table.entries, "b hears a's answer")
                assert b.table.entries[OWN].answered < 0, "an answer is not answered"
        assert a.snapshot()["answers"] >= 1
        assert a.counters.sent == 0

    async def test_what_is_on_the_wire_is_the_post_s_format(self, wire: None) -> None:
        """A plain socket that knows only the post's few lines hears and is heard."""
        index = socket.if_nametoindex("n2")
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"n2\0")
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            s.setsockopt(
                socket.IPPROTO_IPV6,
                socket.IPV6_JOIN_GROUP,
                socket.inet_pton(socket.AF_INET6, "ff02::69") + struct.pack("@I", index),
            )
            s.bind(("::", PORT))
            s.setblocking(False)
            a = make("n1")
            async with running(a):
                loop = asyncio.get_running_loop()
                payload, source = await asyncio.wait_for(loop.sock_recvfrom(s, 2000), PATIENCE)
                assert payload == b"fd12:3456:789a:1:0:6f44:e3c6:b802"
                assert ipaddress.IPv6Address(source[0].partition("%")[0]).is_link_local
                assert source[1] == PORT
                s.sendto(POST_OTHER, ("ff02::69", PORT, 0, index))
                await until(lambda: OTHER in a.table.entries, "the post's beacon is heard")

    async def test_survives_the_interface_being_made_anew(self, wire: None) -> None:
        a, b = make("n1"), make("n2", OTHER)
        async with running(a, b):
            await until(lambda: OTHER in a.table.entries, "a hears b")
            network_namespace.ip("link del n1")
            a.interface_changed()
            b.interface_changed()
            await until(lambda: a.trouble, "a notices")
            assert "there is no interface n1" in str(a.trouble)
            network_namespace.veth("n1", "n2")
            before = a.table.entries[OTHER].beacons
            await until(
                lambda: a.counters.opened >= 2 and b.counters.opened >= 2,
                "the sockets are opened again",
            )
            await until(lambda: a.table.entries[OTHER].beacons > before, "a hears b again")

    async def test_a_late_interface_is_waited_for(self) -> None:
        with network_namespace.namespace():
            a = make("n1")
            async with running(a):
                await until(lambda: a.trouble != "not started", "a has tried")
                network_namespace.veth("n1", "n2")
                a.interface_changed()
                await until(lambda: a.counters.sent, "a announces itself")

    async def test_a_flood_is_bounded_and_does_not_starve_the_loop(self, wire: None) -> None:
        a, b = make("n1"), make("n2", OTHER)
        async with running(a, b):
            await until(lambda: OTHER in a.table.entries, "a hears b")
            index = socket.if_nametoindex("n2")
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
                s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
                s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
                started = monotonic()
                turns = 0
                for i in range(1_000_000):
                    if i >= 20_000 and a.counters.dropped["rate"]:
                        break
                    text = f"fd12:3456:789a:1::{i >> 16:x}:{i & 0xFFFF:x}:1".encode()
                    with suppress(BlockingIOError):
                        s.sendto(text, ("ff02::69", PORT, 0, index))
                    if i % 100 == 0:
                        await asyncio.sleep(0)
                        turns += 1
                took = monotonic() - started
            assert turns == -(-i // 100)
            judged = a.counters.received
            assert a.counters.dropped["rate"] >= 1, "the flood was noticed"
            assert (
                judged <= BeaconSocket.BURST + BeaconSocket.RATE * (took + 1) + BeaconSocket.BATCH
            )
            assert len(a.table.entries) <= a.settings.max_nodes
            # and afterwards beacons get through again
            before = a.table.entries[OTHER].beacons
            b.peer_up()
            await until(lambda: a.table.entries[OTHER].beacons > before, "a hears b after it")

    async def test_random_datagrams_never_end_it(self, wire: None) -> None:
        import random

        rng = random.Random(49999)
        a = make("n1")
        async with running(a):
            await until(lambda: a.counters.opened, "a listens")
            index = socket.if_nametoindex("n2")
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
                s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
                for _ in range(300):
                    payload = rng.randbytes(rng.choice((0, 1, 33, 45, 46, 1000, 1400)))
                    s.sendto(payload, ("ff02::69", PORT, 0, index))
                    await asyncio.sleep(0)
                s.sendto(POST_OTHER, ("ff02::69", PORT, 0, index))
            await until(lambda: OTHER in a.table.entries, "a good one after the bad ones")
            assert a.snapshot()["malformed"] == 300


def test_the_spelling_of_the_last_beacon_is_kept() -> None:
    """A stock node's name has the address as its beacon writes it."""
    found = make()
    assert found.spelling(OTHER) == str(OTHER)
    for spelling in (POST_OTHER.decode(), OTHER.exploded, str(OTHER)):
        found.datagram(spelling.encode(), ("fe80::1%mesh0", 1, 0, 3), 255, 1.0)
        assert found.spelling(OTHER) == spelling
    found.datagram(b"fd12:3456:789a:1::0e0f9:2f20:de47", ("fe80::1%mesh0", 1, 0, 3), 255, 1.0)
    assert found.spelling(OTHER) == str(OTHER)


class SignedBeacons(PlainBeacons):
    """The form that proves who sent it."""

    form = "signed"


FIRST, SECOND = IPv6Address("fd12:3456:789a:1::a1"), IPv6Address("fd12:3456:789a:1::a2")
ONE_RADIO = "fe80::74:68ff:fe00:2"


class TestSharedSources:
    def test_two_nodes_in_turns_from_one_source_share_a_radio_address(self) -> None:
        shared = SharedSources()
        for now, node in enumerate((FIRST, SECOND, FIRST)):
            assert shared.found(now) == {}
            shared.hear(ONE_RADIO, node, now)
        assert shared.found(3) == {ONE_RADIO: (FIRST, SECOND)}
        shared.hear(ONE_RADIO, SECOND, 4)
        assert shared.found(5) == {ONE_RADIO: (FIRST, SECOND)}

    def test_a_node_with_another_identity_than_before_does_not(self) -> None:
        shared = SharedSources()
        for now, node in enumerate((FIRST, FIRST, SECOND, SECOND, SECOND)):
            shared.hear(ONE_RADIO, node, now)
        assert shared.found(5) == {}

    def test_nor_do_nodes_whose_beacons_others_send_on_from_their_own_sources(self) -> None:
        shared = SharedSources()
        for now in range(9):
            shared.hear("fe80::1", FIRST, now)
            shared.hear("fe80::2", SECOND, now)
        assert shared.found(9) == {}

    def test_it_is_over_when_one_of_them_is_silent_for_long(self) -> None:
        shared = SharedSources()
        for now, node in enumerate((FIRST, SECOND, FIRST)):
            shared.hear(ONE_RADIO, node, now)
        for now in range(3, int(shared.WINDOW) + 10, 10):
            shared.hear(ONE_RADIO, FIRST, now)
        assert shared.found(shared.WINDOW + 10) == {}

    def test_what_is_kept_is_bounded(self) -> None:
        shared = SharedSources()
        for now in range(2000):
            shared.hear(f"fe80::{now:x}", FIRST, now / 100)
            shared.hear(ONE_RADIO, IPv6Address(int(FIRST) + now), now / 100)
        assert len(shared._heard) == shared.LIMIT
        assert len(shared._heard[ONE_RADIO]) <= 4

    @pytest.mark.parametrize(
        ("source", "mac"),
        [
            (ONE_RADIO, "02:74:68:00:00:02"),
            ("fe80::1234:56ff:fe78:9abc", "10:34:56:78:9a:bc"),
            ("fe80::1", None),
            ("nonsense", None),
        ],
    )
    def test_the_mac_address_is_read_from_the_source(self, source: str, mac: str | None) -> None:
        assert mac_of(source) == mac

    @pytest.mark.parametrize("kind", [PlainBeacons, SignedBeacons])
    def test_only_signed_beacons_count(self, kind: type[PlainBeacons]) -> None:
        found = make()
        found.use([kind(OWN, PREFIX)])
        for now, node in enumerate((FIRST, SECOND, FIRST, SECOND)):
            found.datagram(str(node).encode(), (f"{ONE_RADIO}%mesh0", 1, 0, 3), 255, float(now))
        assert bool(found.shared.found(4.0)) == (kind is SignedBeacons)
