# SPDX-License-Identifier: Apache-2.0
"""thicket.gateway: which gateway a node takes, and what it makes of what others say."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Interface, IPv6Network
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thicket.base.fields import ConfigError
from thicket.config.schema import Settings, check, find_key
from thicket.daemon.parts import mesh_settings
from thicket.distribution.etf import Atom, Pid, decode, encode
from thicket.distribution.node import NodeInfo
from thicket.gateway import checks, health, lease
from thicket.gateway.choose import NEARER, PATIENCE, Chosen, choose
from thicket.gateway.exchange import Exchange
from thicket.gateway.health import BACK, FAILURES, Health, Look, works
from thicket.gateway.offers import (
    ENDS,
    EVERY,
    MOST,
    MOST_HOPS,
    Heard,
    Offer,
    Offers,
    Way,
    pack,
    unpack,
)
from thicket.gateway.plan import Network, Own, delegated, network, resolver_file
from thicket.gateway.section import NAT64
from thicket.gateway.uplink import unbound_conf
from thicket.netlink.routes import Route

MESH = IPv6Network("fd12:3456:789a:1::/64")
GIVEN = IPv6Network("2001:db8:100::/64")
ME = IPv6Interface("fd12:3456:789a:1:0:6f44:e3c6:b801/64")
ALL = Way.IPV6 | Way.IPV4 | Way.NAMES


def at(number: int) -> IPv6Address:
    return MESH[number]


def offer(number: int, count: int = 1, **other: Any) -> Offer:
    return Offer(7, count, at(number), 0, ALL, None)._replace(**other)


def heard(number: int, now: float, since: float = 0.0, **other: Any) -> Heard:
    return Heard(offer(number, **other), now, since)


# -- offers


OFFERS = st.builds(
    Offer,
    run=st.integers(0, 2**32 - 1),
    number=st.integers(0, 2**53 - 1),
    origin=st.integers(1, 2**64 - 1).map(lambda n: MESH[n]),
    hops=st.integers(0, MOST_HOPS),
    ways=st.integers(0, 7).map(Way),
    prefix=st.none() | st.integers(0, 2**61 - 1).map(
        lambda n: IPv6Network(((0b001 << 125) | n << 64, 64))
    ),
)  # fmt: skip


@given(OFFERS)
def test_an_offer_is_read_as_it_was_said(one: Offer) -> None:
    assert unpack(decode(encode(pack(one))), MESH) == one


BAD: list[tuple[Any, ...]] = [
    (),
    ("offer", 7, 1, at(2).packed, 0, 7),
    ("offer", 7, 1, at(2).packed[:15], 0, 7, b""),
    ("offer", True, 1, at(2).packed, 0, 7, b""),
    ("offer", 2**32, 1, at(2).packed, 0, 7, b""),
    ("offer", 7, -1, at(2).packed, 0, 7, b""),
    ("offer", 7, 1, at(2).packed, MOST_HOPS + 1, 7, b""),
    ("offer", 7, 1, at(2).packed, 0, -1, b""),
    ("offer", 7, 1, IPv6Address("2001:db8::1").packed, 0, 7, b""),  # no address of the mesh
    ("offer", 7, 1, at(0).packed, 0, 7, b""),  # that of all routers
    ("offer", 7, 1, at(2).packed, 0, 7, b"\x20"),
    ("offer", 7, 1, at(2).packed, 0, 7, at(2).packed[:8]),  # the mesh's own prefix
    ("offer", 7, 1, at(2).packed, 0, 7, NAT64.network_address.packed[:8]),
    ("offer", 7, 1, at(2).packed, 0, 7, bytes(8)),
    ("offer", 7, 1, at(2).packed, 0, 7, b"\xfe\x80" + bytes(6)),
    ("offer", 7, 1, at(2).packed, 0, 7, b"\xff\x02" + bytes(6)),
]


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_sound_offer_is_none(message: tuple[Any, ...]) -> None:
    assert unpack(message, MESH) is None


def test_a_way_of_a_later_version_is_left_out() -> None:
    found = unpack(("offer", 7, 1, at(2).packed, 0, 0x41, b""), MESH)
    assert found is not None
    assert found.ways == Way.IPV6


def test_only_news_is_news_and_ends_when_it_is_not_repeated() -> None:
    known = Offers()
    assert known.hear(offer(2, 5), 0.0)
    assert not known.hear(offer(2, 5), 1.0)  # by way of another node
    assert not known.hear(offer(2, 4), 1.0)
    assert known.hear(offer(2, 6), 2.0)
    assert not known.hear(offer(2, 1, run=8, hops=1), 3.0)  # perhaps of an earlier start
    assert known.hear(offer(2, 1, run=8), 3.0)  # of its own word
    known.end(3.0 + ENDS)
    assert not len(known)
    assert not known.hear(offer(2, 9, run=8, ways=Way.NONE), 11.0)


def test_what_is_taken_back_does_not_come_back_by_another_way() -> None:
    known = Offers()
    known.hear(offer(2, 5), 0.0)
    assert known.hear(offer(2, 6, ways=Way.NONE), 1.0)
    assert not known.hear(offer(2, 5, hops=1), 1.5)
    assert [one.offer.ways for one in known] == [Way.NONE]


def test_an_offer_counts_from_when_on_it_leads_to_all_that_it_does_now() -> None:
    known = Offers()
    known.hear(offer(2, 1, ways=Way.IPV6), 0.0)
    known.hear(offer(2, 2, ways=ALL), 2.0)
    assert [one.since for one in known] == [2.0]
    known.hear(offer(2, 3, ways=Way.IPV6), 4.0)
    assert [one.since for one in known] == [2.0]
    known.hear(offer(2, 4, ways=Way.IPV6, prefix=GIVEN), 6.0)
    assert [one.since for one in known] == [6.0]


@given(st.lists(OFFERS, max_size=60))
def test_no_number_of_offers_takes_more_than_their_places(said: list[Offer]) -> None:
    known = Offers()
    for count, one in enumerate(said):
        known.hear(one, count / 10)
        assert len(known) <= MOST


def test_a_gateway_nearby_finds_a_place_among_many_far_ones() -> None:
    known = Offers()
    for number in range(MOST):
        assert known.hear(offer(10 + number, hops=3), 0.0)
    assert not known.hear(offer(50, hops=3), 0.0)
    assert known.hear(offer(51), 0.0)
    assert len(known) == MOST


# -- how they spread


class Wire(NamedTuple):
    """A connection."""

    name: str

    @property
    def key(self) -> str:
        return self.name


class Cluster:
    """In place of a node: what an exchange asks of it, and what it sends."""

    def __init__(self, *direct: int, far: tuple[int, ...] = ()) -> None:
        self.connections = {f"thicket@{at(n)}": Wire(f"thicket@{at(n)}") for n in direct}
        self.far = [f"thicket@{at(n)}" for n in far]
        self.sent: list[tuple[str, Offer]] = []

    def new_pid(self) -> Pid:
        return Pid(Atom("a@b"), 1, 0, 1)

    def register(self, name: str, process: object) -> None:
        assert name == "thicket_gateways"

    def nodes(self) -> list[NodeInfo]:
        return [NodeInfo(name, "up", 0.0) for name in self.connections] + [
            NodeInfo(name, "up", 0.0, direct=False) for name in self.far
        ]

    def send_to_name(self, to: Wire, pid: Pid, name: str, message: Any) -> None:
        found = unpack(message, MESH)
        assert found is not None
        self.sent.append((to.name, found))


def exchange(cluster: Cluster, *near: int) -> Exchange:
    names = [f"thicket@{at(n)}" for n in near]
    return Exchange(cast(Any, cluster), lambda: (at(1), MESH), lambda: names, lambda: None)


def say(to: Exchange, cluster: Cluster, by: int, one: Offer) -> None:
    to.on_message(cast(Any, cluster.connections[f"thicket@{at(by)}"]), pack(one))


def test_a_gateway_is_believed_for_itself_alone() -> None:
    cluster = Cluster(2, 3)
    one = exchange(cluster)
    say(one, cluster, 3, offer(2))  # in the name of another
    say(one, cluster, 3, offer(2, hops=1))  # nobody passes on where all are connected
    say(one, cluster, 3, offer(1))  # in ours
    one.on_message(cast(Any, cluster.connections[f"thicket@{at(2)}"]), ("offer", "nonsense"))
    assert not len(one.offers)
    say(one, cluster, 2, offer(2))
    assert [heard.offer for heard in one.offers] == [offer(2)]
    assert cluster.sent == []


def test_neighbours_pass_on_what_is_news_of_members() -> None:
    cluster = Cluster(2, 3, 4, far=(5,))
    one = exchange(cluster, 2, 3, 4)
    say(one, cluster, 2, offer(2))
    assert cluster.sent == [(f"thicket@{at(n)}", offer(2, hops=1)) for n in (3, 4)]
    cluster.sent.clear()
    say(one, cluster, 2, offer(2))
    assert cluster.sent == []
    say(one, cluster, 3, offer(5, hops=1))
    assert [to for to, _ in cluster.sent] == [f"thicket@{at(n)}" for n in (2, 4)]
    say(one, cluster, 3, offer(6, hops=1))  # of nobody that is in the cluster
    say(one, cluster, 3, offer(4, hops=1))  # who would say it himself
    assert {heard.offer.origin for heard in one.offers} == {at(2), at(5)}


def test_who_says_too_much_is_not_heard() -> None:
    cluster = Cluster(2)
    one = exchange(cluster)
    for number in range(200):
        say(one, cluster, 2, offer(2, number + 1))
    (heard,) = one.offers
    assert heard.offer.number <= 34


# -- the choice


def test_the_nearest_is_taken_at_first() -> None:
    known = [heard(2, 0.0), heard(3, 0.0), heard(4, 0.0)]
    costs = {at(2): 900.0, at(3): 300.0}
    assert choose(Chosen(), known, costs, Way.IPV6, 0.0).gateway == at(3)
    assert choose(Chosen(), known, {}, Way.IPV6, 0.0).gateway == at(2)
    assert choose(Chosen(), [], costs, Way.IPV6, 0.0).gateway is None


def test_a_gateway_counts_for_what_it_leads_to() -> None:
    known = [heard(2, 0.0, ways=Way.IPV4), heard(3, 0.0, ways=Way.IPV6)]
    assert choose(Chosen(), known, {}, Way.IPV6, 0.0).gateway == at(3)
    assert choose(Chosen(), known, {}, Way.IPV4, 0.0).gateway == at(2)


def test_a_good_one_is_left_for_a_nearer_one_only_after_a_while() -> None:
    chosen, costs = Chosen(at(2)), {at(2): 1000.0, at(3): 1000.0 * NEARER - 1}
    now = 100.0
    while chosen.gateway == at(2):
        chosen = choose(chosen, [heard(2, now), heard(3, now)], costs, Way.IPV6, now)
        now += 1.0
        assert now < 200.0
    assert now - 100.0 >= PATIENCE
    # One that is only a little nearer is not worth it.
    costs = {at(3): 1000.0, at(2): 1000.0 * NEARER + 1}
    for later in range(200):
        now = 200.0 + later
        chosen = choose(chosen, [heard(2, now), heard(3, now)], costs, Way.IPV6, now)
    assert chosen == Chosen(at(3))


STEPS = st.lists(
    st.tuples(
        st.integers(1, 40),  # tenths of a second
        st.sets(st.integers(2, 5)),  # who is heard
        st.dictionaries(st.integers(2, 5), st.integers(100, 3000)),  # how far they are
    ),
    max_size=120,
)


@given(STEPS)
def test_no_flapping_and_nobody_who_is_gone(
    steps: list[tuple[int, set[int], dict[int, int]]],
) -> None:
    """Whatever gateways do: a node has one as long as one is offered, none that has ended, and
    leaves a good one at most once in PATIENCE seconds."""
    known, chosen, now = Offers(), Chosen(), 0.0
    last = float("-inf")
    for count, (tenths, present, costs) in enumerate(steps, 1):
        now += tenths / 10
        for number in sorted(present):
            known.hear(offer(number, count), now)
        known.end(now)
        before = chosen
        far = {at(number): float(cost) for number, cost in costs.items()}
        chosen = choose(before, known, far, Way.IPV6, now)
        offered = {one.offer.origin for one in known}
        assert (chosen.gateway in offered) if offered else chosen.gateway is None
        if before.gateway in offered and chosen.gateway != before.gateway:
            assert now - last >= PATIENCE
            last = now
        elif before.gateway != chosen.gateway:
            last = now


@given(st.dictionaries(st.integers(2, 9), st.integers(100, 3000), min_size=1), st.integers(2, 9))
def test_what_stays_leads_to_the_nearest(costs: dict[int, int], first: int) -> None:
    chosen = Chosen(at(first))
    far = {at(number): float(cost) for number, cost in costs.items()}
    for second in range(300):
        known = [heard(number, float(second)) for number in costs]
        chosen = choose(chosen, known, far, Way.IPV6, float(second))
    assert chosen.gateway is not None
    assert far[chosen.gateway] * NEARER <= min(far.values()) + 1


def test_a_gateway_is_left_within_ten_seconds() -> None:
    """What has failed is taken back after three looks; what is gone ends by itself."""
    looks = FAILURES * health.EVERY + health.PATIENCE
    assert looks + EVERY < 10.0
    assert ENDS + EVERY < 10.0


# -- health


def test_three_failures_end_what_is_good_and_the_way_back_grows() -> None:
    one, now = Health(), 0.0
    assert one.note("", now)
    pauses = []
    for _ in range(len(BACK) + 1):
        for count in range(FAILURES):
            now += health.EVERY
            assert one.note("no answer", now) == (count < FAILURES - 1)
        assert one.why == "no answer"
        failed = now
        while True:
            now += health.EVERY
            if one.note("", now):
                break
        pauses.append(now - failed)
    assert pauses == sorted(pauses)
    assert pauses[0] >= BACK[1]
    assert pauses[-1] >= BACK[-1]
    # After a calm time all is forgotten.
    now += health.CALM + 1
    one.note("", now)
    for _ in range(FAILURES):
        one.note("no answer", now)
    assert one.note("", now + 1) is False
    assert one.note("", now + 1 + BACK[1])


def test_one_answer_lost_is_no_failure() -> None:
    one = Health()
    one.note("", 0.0)
    for turn in range(60):
        assert one.note("no answer" if turn % 3 else "", 2.0 * turn)


def test_what_one_look_says() -> None:
    assert works(Look(False, False)) == "it has given no address"
    assert works(Look(True, False)) == "it has no router"
    assert works(Look(True, True, router=False)) == "its router does not answer"
    assert works(Look(True, True, router=True)) == ""
    names = {"192.0.2.1": False, "192.0.2.2": False}
    assert works(Look(True, True, True, names)) == "no name server answers: 192.0.2.1, 192.0.2.2"
    assert works(Look(True, True, False, {**names, "192.0.2.3": True})) == ""
    targets = {"203.0.113.1:443": False}
    assert "203.0.113.1:443" in works(Look(True, True, True, {"192.0.2.3": True}, targets))


def test_questions_and_answers() -> None:
    asked = checks.question(b"\x12\x34")
    assert len(asked) == 17
    good = b"\x12\x34\x81\x80\0\1\0\1\0\0\0\0"
    assert checks.answers(good, b"\x12\x34")
    for bad in (asked, good[:11], b"\x12\x35" + good[2:], good[:3] + b"\x82" + good[4:],
                good[:6] + b"\0\0" + good[8:], b""):  # fmt: skip
        assert not checks.answers(bad, b"\x12\x34")


# -- leases


PD = """new_dhcp6_ia_pd2_prefix1=2001:db8:100::
new_dhcp6_ia_pd2_prefix1_length=56
new_dhcp6_ia_pd2_prefix1_vltime=3600
new_dhcp6_ia_na1_ia_addr1=2001:db8:0:1::1000
"""
RA = """nd1_from=fe80::1
nd1_addr1=2001:db8:0:1::5/64
nd1_rdnss1_servers=2001:db8:0:1::1 fe80::9 ff02::1
"""
DHCP = """new_ip_address=192.0.2.100
new_routers=192.0.2.1
new_domain_name_servers=192.0.2.1 0.0.0.0 nonsense
"""


def test_what_a_network_gives() -> None:
    found = lease.lease({"dhcp6": PD, "ra": RA, "dhcp": DHCP})
    assert found.prefixes == (IPv6Network("2001:db8:100::/56"),)
    assert found.routers6 == (IPv6Address("fe80::1"),)
    assert found.address4 == IPv4Address("192.0.2.100")
    assert [str(one) for one in found.names] == ["192.0.2.1", "2001:db8:0:1::1"]
    assert found.global6
    assert delegated(found, MESH) == (GIVEN, IPv6Network("2001:db8:100::/56"))
    assert lease.lease({}) == lease.Lease()


def test_what_is_delegated_and_cannot_be_used() -> None:
    for text, length in (("fd12:3456:789a:1::", 64), ("2001:db8::", 80), ("fe80::", 64)):
        said = f"new_dhcp6_ia_pd2_prefix1={text}\nnew_dhcp6_ia_pd2_prefix1_length={length}\n"
        assert delegated(lease.lease({"dhcp6": said}), MESH) is None


@given(st.dictionaries(st.sampled_from(lease.PROTOCOLS), st.text(max_size=400)))
def test_any_text_of_a_network_is_read(files: dict[str, str]) -> None:
    lease.lease(files)


@given(st.lists(st.tuples(st.sampled_from([line.partition("=")[0] for line in
       (PD + RA + DHCP).split()]), st.text(max_size=40))))  # fmt: skip
def test_any_value_of_what_is_known_is_read(values: list[tuple[str, str]]) -> None:
    text = "".join(f"{name}={value}\n" for name, value in values)
    found = lease.lease(dict.fromkeys(lease.PROTOCOLS, text))
    assert len(found.names) <= lease.MOST_NAMES
    for one in found.names:
        assert not (one.is_multicast or one.is_link_local or one.is_unspecified or one.is_loopback)


# -- the plan


def plan(own: Own = Own(), six: Offer | None = None, four: Offer | None = None) -> Network:  # noqa: B008
    return network(ME, 3, own, (six, four), [one for one in (six, four) if one])


def test_a_node_leaves_by_its_gateway_with_an_address_of_its_prefix() -> None:
    found = plan(six=offer(2, prefix=GIVEN))
    (address,) = found.addresses
    assert str(address) == "2001:db8:100::6f44:e3c6:b801/64"
    assert Route(IPv6Network("::/0"), 3, at(2), address.ip, 512) in found.routes
    assert Route(GIVEN, 3, metric=512) in found.routes
    assert found.names == (at(2),)
    # Without a prefix it leaves with its address of the mesh, which the gateway replaces.
    found = plan(six=offer(2))
    assert found.addresses == frozenset()
    assert found.routes == {Route(IPv6Network("::/0"), 3, at(2), ME.ip, 512)}


def test_each_kind_has_its_own_gateway() -> None:
    found = plan(six=offer(2, ways=Way.IPV6), four=offer(3, ways=Way.IPV4 | Way.NAMES))
    assert {route.via for route in found.routes} == {at(2), at(3)}
    assert found.names == (at(3),)
    assert Route(NAT64, 3, at(3), ME.ip, 512) in found.routes


def test_a_gateway_keeps_its_own_way_and_takes_anothers_where_it_has_none() -> None:
    whole = IPv6Network("2001:db8:100::/56")
    own = Own(Way.IPV6 | Way.NAMES, GIVEN, whole, 0, ())
    found = plan(own, six=offer(2), four=offer(2))
    assert not any(route.network.prefixlen == 0 for route in found.routes)
    assert Route(NAT64, 3, at(2), ME.ip, 512) in found.routes
    assert Route(whole, 0, metric=4096) in found.routes
    assert [str(one) for one in found.names] == ["::1"]
    lost = plan(Own(), six=offer(2))
    assert any(route.network.prefixlen == 0 for route in lost.routes)


def test_nothing_is_nothing() -> None:
    assert plan() == Network()
    assert resolver_file(()) == ""
    assert resolver_file((at(2),)) == f"nameserver {at(2)}\n"


def test_the_resolver_answers_the_mesh_alone() -> None:
    text = unbound_conf("/run", ME, GIVEN, ["192.0.2.1"], translates=True, user="unbound")
    assert "access-control: fd12:3456:789a:1::/64 allow" in text
    assert f"access-control: {GIVEN} allow" in text
    assert "interface: fd12:3456:789a:1:0:6f44:e3c6:b801\n" in text
    assert 'module-config: "dns64 iterator"' in text
    assert "forward-addr: 192.0.2.1" in text
    assert "dns64 " not in unbound_conf("/run", ME, None, ["::1"], translates=False, user="")


# -- the section


def test_interfaces() -> None:
    uplink = find_key("gateway.uplink")
    for good in ("", "eth0", "wwan0", "enx00e04c6801a2", "eth0.7"):
        assert uplink.check(good) == good
    for bad in ("mesh0", "lo", "nat64", "eth 0", "eth0;", "x" * 16, "..", 7, '"'):
        with pytest.raises(ValueError, match="name of a network interface"):
            uplink.check(bad)


def test_targets() -> None:
    targets = find_key("gateway.check")
    assert targets.check(["192.0.2.7:443", "[2001:DB8::7]:53", "192.0.2.7:443"]) == (
        "192.0.2.7:443",
        "[2001:db8::7]:53",
    )
    for bad in (["192.0.2.7"], ["example.org:443"], ["2001:db8::7:53"], ["192.0.2.7:0"],
                ["[192.0.2.7]:53"], ["[fe80::1]:53"], ["[ff02::1]:53"], ["192.0.2.7:443"] * 5,
                "192.0.2.7:443", [":443"], ["[::]:443"]):  # fmt: skip
        with pytest.raises(ValueError, match="must be"):
            targets.check(bad)


def test_a_gateway_needs_its_firewall_and_a_mesh_not_the_prefix_of_nat64() -> None:
    with pytest.raises(ConfigError, match=r"firewall\.enabled"):
        check({"gateway": {"uplink": "eth0"}, "firewall": {"enabled": False}}, "f")
    with pytest.raises(ConfigError, match=r"address\.prefix"):
        check({"address": {"prefix": "fd64:ff9b::/64"}}, "f")


def test_a_gateway_is_a_gate_of_the_mesh() -> None:
    assert not mesh_settings(Settings()).gate
    settings = Settings({"gateway": {"uplink": "eth0"}, "mesh": {"channel": 6}})
    assert mesh_settings(settings).gate
    assert mesh_settings(settings).channel == 6
