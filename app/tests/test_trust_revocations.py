# SPDX-License-Identifier: Apache-2.0
"""What is revoked stays revoked, whichever lists a node sees and in whatever order."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from fleet_for_tests import NOW, PREFIX, TestFleet, one_fleet
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE
from private_network import Network, in_private_network, until

from authority.authority import Authority
from authority.cli import main as ca_main
from authority.errors import AuthorityError
from authority.signing import sign_revocations
from thicket.base.paths import Paths
from thicket.base.problems import Problems
from thicket.config.schema import Settings
from thicket.distribution import DistributionError, Node
from thicket.distribution.node import NodeInfo
from thicket.identity.source import Identity
from thicket.trust import openssl, revocations
from thicket.trust.certificates import pem
from thicket.trust.exchange import Exchange
from thicket.trust.revocations import (
    MAX_LISTS,
    MAX_NEEDLESS,
    InForce,
    Revocations,
    SignedList,
    all_names,
    needed,
)
from thicket.trust.service import LIST_FILE, ListError, Trust
from thicket.trust.standing import Standing
from thicket.trust.verify import RefusedError

FLEET = one_fleet()
A, B, C = "software-mac-00000000000a", "software-mac-00000000000b", "software-mac-00000000000c"


def packed(number: int, *names: str, fleet: TestFleet = FLEET, key: bytes | None = None) -> bytes:
    return sign_revocations(
        Revocations(number, NOW, frozenset(names)),
        fleet.fleet.identifier,
        lambda digest: openssl.sign(key or fleet.root_key, digest),
    )


def signed(number: int, *names: str) -> SignedList:
    """A list whose signature nobody checks."""
    made = Revocations(number, NOW, frozenset(names))
    return SignedList(made, sign_revocations(made, FLEET.fleet.identifier, lambda _: bytes(64)))


# -- which lists are kept


def test_one_authority_makes_one_list() -> None:
    lists = [signed(1), signed(2, A), signed(3, A, B)]
    for order in permutations(lists):
        kept: tuple[SignedList, ...] = ()
        for one in order:
            kept = needed((*kept, one))
        assert kept == (lists[2],)


def test_a_higher_number_takes_nothing_back() -> None:
    assert all_names(needed([signed(2, A), signed(3, B)])) == {A, B}
    assert all_names(needed([signed(2, A), signed(2, B)])) == {A, B}
    assert all_names(needed([signed(9), signed(2, A)])) == {A}


@settings(max_examples=200)
@given(
    st.lists(
        st.builds(signed, st.integers(1, 4), st.sampled_from((A, B, C)), st.sampled_from((A, B))),
        max_size=6,
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_makes_no_difference(lists: list[SignedList], random: Any) -> None:
    whole = needed(lists)
    random.shuffle(lists)
    kept: tuple[SignedList, ...] = ()
    for one in lists:
        kept = needed((*kept, one))
    assert kept == whole
    assert all_names(kept) == all_names(lists)


def test_files_of_lists() -> None:
    one, two = packed(2, A), packed(3, B)
    assert revocations.pack_parts([one]) == one, "as nodes kept it before there could be several"
    for parts in ([one], [one, two], []):
        assert revocations.split(revocations.pack_parts(parts)) == parts
    both = revocations.pack_parts([one, two])
    for cut in (both[:-1], both[: -len(two) - 2], both + b"\0"):
        with pytest.raises(RefusedError):
            revocations.split(cut)


def test_lists_that_others_make_needless_are_remembered_for_a_while() -> None:
    held = InForce()
    assert (held.number, held.names, held.by_digest()) == (0, frozenset(), {})
    first = signed(1, A)
    assert held.add(first)
    assert not held.add(first)
    assert held.add(signed(2, A, B))
    assert held.by_digest() == {signed(2, A, B).digest: signed(2, A, B).packed}
    assert held.number == 2
    assert held.names == {A, B}
    assert held.knows(first.digest)
    assert held.knows(signed(2, A, B).digest)
    assert not held.knows(signed(1, B).digest)
    for number in range(3, 3 + MAX_NEEDLESS):
        assert held.add(signed(number, A, B))
    assert not held.knows(first.digest), "the oldest is forgotten"
    assert held.knows(signed(3, A, B).digest)


# -- a node


def node(folder: Path, fleet: TestFleet = FLEET) -> Trust:
    """A node of the fleet, as after a start."""
    settings = Settings({"trust": {"root": pem(fleet.fleet.root.der)}})
    trust = Trust(
        Paths(str(folder)),
        lambda: settings,
        Identity("mac", bytes(6)),
        Problems(lambda: None),
        lambda: None,
        open_chip=lambda _: pytest.fail("there is no chip"),
    )
    assert trust.begin()
    return trust


async def written(trust: Trust) -> None:
    if trust.list_file.writing is not None:
        await trust.list_file.writing


def test_a_list_moves_the_clock_and_the_rules(tmp_path: Path) -> None:
    standing = Standing(pem(FLEET.fleet.root.der), str(tmp_path), lambda: True)
    assert standing.clock().floor == FLEET.fleet.root.not_before < NOW
    with pytest.raises(RefusedError):
        standing.adopt(packed(9, B, fleet=one_fleet("another")))
    assert standing.clock().floor == FLEET.fleet.root.not_before
    assert standing.adopt(packed(3, A))
    assert standing.clock().floor == NOW
    assert standing.rules()[1:] == ({A}, 3, True)
    assert not standing.revoked, "who this is is not known yet"


async def test_a_node_keeps_the_union_over_a_restart(tmp_path: Path) -> None:
    trust = node(tmp_path)
    assert trust.take_list(packed(2, A), "one copy")
    assert not trust.problems.all()
    assert trust.take_list(packed(2, B), "another copy, with the same number")
    assert trust.take_list(packed(7, C), "one with a higher number")
    assert not trust.take_list(packed(1, A), "an old one")
    assert not trust.take_list(packed(7, C), "the same, signed again")
    assert trust.lists.names == {A, B, C}
    assert {p["code"] for p in trust.problems.all()} == {"lists-differ"}
    await written(trust)
    again = node(tmp_path)
    assert again.lists.names == {A, B, C}
    assert again.status()["revocations"] == {
        "number": 7, "issued": f"{NOW:%Y-%m-%dT%H:%M:%SZ}", "names": 3, "lists": 3,
    }  # fmt: skip
    # One list that has everything replaces them all.
    assert again.take_list(packed(8, A, B, C), "publish")
    assert again.status()["revocations"]["lists"] == 1
    assert not again.problems.all()
    await written(again)
    assert (tmp_path / "data/thicket" / LIST_FILE).read_bytes() == again.lists.lists[0].packed


async def test_lists_that_a_signer_or_another_fleet_signed_are_refused(tmp_path: Path) -> None:
    trust = node(tmp_path)
    trust.take_list(packed(2, A), "the root")
    other = one_fleet("another")
    for data in (
        packed(9, B, key=FLEET.signer_key),
        packed(9, B, fleet=other),
        packed(9, B, key=other.root_key),
        revocations.pack_parts([packed(9, B, key=FLEET.signer_key), packed(3, A)]),
        b"",
        revocations.pack_parts([packed(3, A)] * 2)[:-1],
    ):
        with pytest.raises(ListError):
            trust.take_list(data, "a signer")
    assert trust.lists.names == {A}
    await written(trust)


async def test_what_is_good_of_a_damaged_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "data/thicket" / LIST_FILE
    path.parent.mkdir(parents=True)
    bad = bytearray(packed(3, B))
    bad[-3] ^= 1
    path.write_bytes(revocations.pack_parts([packed(2, A), bytes(bad), packed(2, C)]))
    assert node(tmp_path).lists.names == {A, C}


async def test_lists_without_end_are_not_kept(tmp_path: Path) -> None:
    trust = node(tmp_path)
    for number in range(MAX_LISTS):
        trust.take_list(packed(2, f"{number}"), "a root gone mad")
    with pytest.raises(ListError, match="lack each other's names"):
        trust.take_list(packed(2, "one more"), "a root gone mad")
    assert len(trust.lists.lists) == MAX_LISTS
    # and what has all of them is taken
    everything = (*map(str, range(MAX_LISTS)), "one more")
    assert trust.take_list(packed(3, *everything), "the root")
    assert len(trust.lists.lists) == 1
    await written(trust)


@in_private_network
async def test_lists_that_lack_each_others_names_meet(network: Network) -> None:
    """Three nodes in a row; the outer ones hear of different copies of the authority."""
    folder = network.folder()
    trusts = [node(folder / name) for name in "abc"]
    nodes = [
        Node(
            name, cookie="c", address=network.address(number), port=0,
            epmd_port=network.epmd_port, tick_time=3600,
        )
        for number, name in enumerate("abc", 1)
    ]  # fmt: skip
    try:
        for one, trust in zip(nodes, trusts, strict=True):
            await one.start()
            await until(lambda one=one: one.listening, "it listens")  # type: ignore[misc]
            trust.attach(one)
        trusts[0].take_list(packed(2, A), "a person")
        trusts[0].take_list(packed(3, A), "a person")
        trusts[2].take_list(packed(3, B), "another person")
        trusts[1].take_list(packed(9), "a third one, who knows nothing")
        for number in (0, 2):
            await nodes[1].connect(nodes[number].name, PATIENCE)
            trusts[1].node_up(nodes[number].name)
        await until(
            lambda: all(trust.lists.names == {A, B} for trust in trusts),
            "all have both names",
            60,
        )
        await until(
            lambda: len({tuple(trust.lists.by_digest()) for trust in trusts}) == 1,
            "all have the same lists",
            60,
        )
    finally:
        for one in nodes:
            await one.stop()
        for trust in trusts:
            await written(trust)


class Line:
    """Nodes in a line, each connected with its neighbours only: the exchange and the lists are the
    product's. Messages take 50 ms over a connection, and those on one that ends are lost.

    :ivar told: messages that arrived.
    """

    def __init__(self, count: int) -> None:
        self.told = 0
        self.names = [f"n@fd12::{number}" for number in range(1, count + 1)]
        self.held = {name: InForce() for name in self.names}
        self.exchanges = {name: Exchange(self._cluster(name), self._lists(name), self._take(name))
                          for name in self.names}  # fmt: skip
        for one, other in pairwise(self.names):
            self.connect(one, other)

    def _lists(self, name: str) -> Callable[[], InForce]:
        return lambda: self.held[name]

    def _take(self, name: str) -> Callable[[bytes, str], bool]:
        return lambda packed, _who: self.held[name].add(
            SignedList(Revocations.unpack(packed, FLEET.fleet), packed)
        )

    def _cluster(self, name: str) -> Any:
        line = self

        class Cluster:
            def __init__(self) -> None:
                self.connections: dict[str, Link] = {}

            def register(self, *_: Any) -> None: ...

            def new_pid(self) -> None: ...

            def nodes(self) -> list[NodeInfo]:
                """All are in the cluster, as in a line that is whole."""
                return [
                    NodeInfo(other, "up", 0.0, direct=other in self.connections)
                    for other in line.names
                    if other != name
                ]

            def send_to_name(self, link: Link, _own: Any, _name: str, message: Any) -> None:
                def arrive() -> None:
                    back = line.links(link.name).get(name)
                    if back is not None and back.made == link.made:
                        line.told += 1
                        line.exchanges[link.name].on_message(cast(Any, back), message)

                asyncio.get_running_loop().call_later(0.05, arrive)

        return Cluster()

    def links(self, name: str) -> dict[str, Link]:
        return cast(Any, self.exchanges[name].cluster).connections  # type: ignore[no-any-return]

    def connect(self, one: str, other: str) -> None:
        made = object()
        self.links(one)[other], self.links(other)[one] = Link(other, made), Link(one, made)
        self.exchanges[one].tell(other)
        self.exchanges[other].tell(one)

    def cut(self, one: str, other: str) -> None:
        for name, peer in ((one, other), (other, one)):
            link = self.links(name).pop(peer)
            self.exchanges[name].on_disconnect(
                cast(Any, link), DistributionError("lost", "it is cut")
            )

    def revoke(self, at: str, packed: bytes) -> None:
        """A person brings a list to a node."""
        assert self._take(at)(packed, "a person")
        self.exchanges[at].tell_all()

    def out(self) -> list[frozenset[str]]:
        return [self.held[name].names for name in self.names]


class Link(NamedTuple):
    name: str
    made: object


@pytest.mark.virtual_time
async def test_revocations_pass_along_a_line_and_wait_at_a_gap() -> None:
    line = Line(5)
    first, _, left, right, last = line.names
    line.revoke(first, packed(1, A))
    await asyncio.sleep(1)
    assert line.out() == [{A}] * 5

    # It is cut while the next list is on its way over the gap; the other end has one of its own.
    line.revoke(first, packed(2, A, B))
    await asyncio.sleep(0.05 * 2 + 0.01)
    line.cut(left, right)
    line.revoke(last, packed(3, A, C))
    await asyncio.sleep(60)
    assert line.out() == [{A, B}] * 3 + [{A, C}] * 2
    for name in line.names:
        line.exchanges[name].tell_all()
    await asyncio.sleep(60)
    assert line.out() == [{A, B}] * 3 + [{A, C}] * 2

    began = line.told
    line.connect(left, right)
    await asyncio.sleep(1)
    assert line.out() == [{A, B, C}] * 5, "what either side has revoked is revoked on both"
    assert {tuple(one.by_digest()) for one in line.held.values()} == {
        tuple(line.held[first].by_digest())
    }
    await asyncio.sleep(60)
    assert line.told - began < 60
    calm = line.told
    for name in line.names:
        line.exchanges[name].tell_all()
    await asyncio.sleep(60)
    assert line.told - calm == 2 * 4, "who has the same is silent"


def test_nodes_with_the_same_lists_are_silent() -> None:
    sent: list[Any] = []

    class Link:
        name = "b"

    class Held(InForce):
        def by_digest(self) -> dict[bytes, bytes]:
            return {b"m" * 32: b"mine"}

        def knows(self, digest: bytes) -> bool:
            return digest != b"x" * 32

    class Cluster:
        def register(self, *_: Any) -> None: ...

        def new_pid(self) -> None: ...

        def send_to_name(self, _link: Any, _own: Any, _name: str, message: Any) -> None:
            sent.append(message)

    cluster: Any = Cluster()
    held = Held()
    exchange = Exchange(
        cluster,
        lambda: held,
        lambda _packed, _origin: pytest.fail("no list came"),
    )
    link: Any = Link()
    exchange.on_message(link, ("lists", [b"m" * 32]))
    for nonsense in ([b"short"], [1], [b"m" * 32] * (MAX_LISTS + 1), "text", b"bytes", 7):
        exchange.on_message(link, ("lists", nonsense))
        exchange.on_message(link, ("want", nonsense))
    assert sent == []
    exchange.on_message(link, ("lists", [b"o" * 32]))
    assert sent == [("list", b"mine")], "the other's is needless here, and mine is not there"
    for _ in range(100):
        exchange.on_message(link, ("lists", [b"x" * 32]))
        exchange.on_message(link, ("want", [b"m" * 32]))
    assert len(sent) < 20, "a node that asks for ever is answered some times"


# -- two copies of an authority


def copies(folder: Path, enrolled: int = 2) -> tuple[Authority, Authority]:
    """Two engineers with copies of one folder, made when two devices were enrolled."""
    first = Authority(folder / "a", lambda _: "x", clock=lambda: NOW)
    first.init("acme", PREFIX)
    for number in range(enrolled):
        key = openssl.public_key(openssl.generate_key())
        first.enroll_software("mac", bytes(5) + bytes((0xA + number,)), key)
    shutil.copytree(folder / "a", folder / "b")
    return first, Authority(folder / "b", lambda _: "x", clock=lambda: NOW)


def test_what_the_other_copy_revoked_is_taken_up(tmp_path: Path) -> None:
    one, two = copies(tmp_path)
    key = openssl.public_key(openssl.generate_key())
    two.enroll_software("mac", bytes(5) + b"\x0c", key)
    of_one, of_two = one.revocations.revoke([A]), two.revocations.revoke([B, C])
    new, merged = one.revocations.merge([of_two])
    found = Revocations.unpack(merged, one.fleet)
    assert new == {B, C}
    assert found.number == 3
    assert found.names == {A, B, C}
    assert needed([SignedList.read(p, one.fleet) for p in (of_one, of_two, merged)])[0].packed == (
        merged
    )
    assert one.revocations.packed == merged
    # C is a device that only the other copy knows, and nobody enrols it here.
    assert one.revocations.names == {A, B, C}
    with pytest.raises(AuthorityError, match="was revoked"):
        one.enroll_software("mac", bytes(5) + b"\x0c", key)
    assert one.revocations.merge([of_one, of_two, merged]) == (frozenset(), merged), (
        "nothing is signed again"
    )
    # The other copy catches up, and needs no new list.
    assert two.revocations.merge([merged])[0] == {A}
    assert Revocations.unpack(two.revocations.packed, two.fleet).names == {A, B, C}


def test_lists_of_the_same_number_end_as_one(tmp_path: Path) -> None:
    one, two = copies(tmp_path)
    one.revocations.revoke([A])
    of_two = two.revocations.revoke([B])
    one.revocations.merge([of_two])
    # The node still has two's list 2; two's own list lacks A and gets a number above one's.
    new, merged = two.revocations.merge([one.revocations.packed])
    assert new == {A}
    kept = needed([SignedList.read(p, one.fleet) for p in (of_two, one.revocations.packed, merged)])
    assert len(kept) == 1


def test_without_the_roots_key_a_merge_fails_and_says_why(tmp_path: Path) -> None:
    one, two = copies(tmp_path)
    of_one, of_two = one.revocations.revoke([A]), two.revocations.revoke([B])
    (one.folder / "root.key").unlink()
    one = Authority(one.folder, lambda _: "x", clock=lambda: NOW)
    with pytest.raises(AuthorityError, match=f"has revoked {B}"):
        one.revocations.merge([of_two])
    assert one.revocations.names == {A}, "nothing was changed"
    assert one.revocations.merge([of_one]) == (frozenset(), of_one), "what is known needs no key"
    with pytest.raises(AuthorityError, match="not of this fleet"):
        one.revocations.merge([packed(3, A)])


def test_what_is_revoked_already_makes_no_new_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, _ = copies(tmp_path)
    monkeypatch.setenv("THICKET_CA", str(one.folder))
    monkeypatch.setenv("THICKET_CA_PASSPHRASE", "x")
    assert ca_main(["revoke", A]) == 0
    first = one.revocations.packed
    assert ca_main(["revoke", A]) == 0
    assert f"{A} is revoked already" in capsys.readouterr().out
    assert one.revocations.packed == first
    assert ca_main(["revoke", A, B]) == 0
    out = capsys.readouterr().out
    assert f"Revoked: {B}." in out
    assert Revocations.unpack(one.revocations.packed, one.fleet).number == 3


def test_a_revocation_that_was_cut_off_is_finished(tmp_path: Path) -> None:
    """The power fails between the two files that a revocation writes."""
    one, _ = copies(tmp_path)
    before = (one.folder / "fleet.json").read_bytes()
    signed_list = one.revocations.revoke([A])
    (one.folder / "fleet.json").write_bytes(before)
    assert one.revocations.names == set()
    last = Revocations.unpack(one.revocations.revoke([B]), one.fleet)
    assert last.names == {A, B}
    assert last.number > Revocations.unpack(signed_list, one.fleet).number


def test_copies_have_the_same_passphrase(tmp_path: Path) -> None:
    one, two = copies(tmp_path)
    assert one.network.secrets() == two.network.secrets()
    assert json.loads((one.folder / "network.json").read_text())
