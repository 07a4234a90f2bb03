# SPDX-License-Identifier: Apache-2.0
"""What devices are called: the signed document, and how it spreads."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest
from fleet_for_tests import NOW, TestFleet, one_fleet
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE
from private_network import Network, in_private_network, until

from authority.signing import sign_revocations
from thicket.base.problems import Problems
from thicket.distribution import Node
from thicket.fleet import label_store
from thicket.fleet.label_store import FILE, LabelError, LabelStore
from thicket.trust import labels as wire
from thicket.trust import openssl
from thicket.trust.certificates import pem
from thicket.trust.labels import (
    KIND,
    LONGEST,
    MAX_LABELS,
    MOST,
    Entries,
    Entry,
    Labels,
    SignedLabels,
    merged,
    pack,
    signed_contents,
)
from thicket.trust.revocations import Revocations
from thicket.trust.standing import Standing
from thicket.trust.verify import RefusedError

FLEET = one_fleet()
A, B = 0x6F44E3C6B802, 0x2_8BD0_51C6_06D9


def signed(
    number: int,
    entries: Entries | None = None,
    *,
    fleet: TestFleet = FLEET,
    text: bytes = b"",
    key: bytes = b"",
    certificate: bytes = b"",
    issued: datetime = NOW,
) -> bytes:
    """A document that a signer of the fleet has signed, if nothing else is said."""
    contents = text or signed_contents(
        Labels(number, issued, entries or {}), fleet.fleet.identifier
    )
    digest = sha256(KIND.line + contents).digest()
    signature = openssl.sign(key or fleet.signer_key, digest)
    return pack(contents, signature, certificate or fleet.signer)


def read(packed: bytes) -> SignedLabels:
    return SignedLabels.read(packed, FLEET.fleet)


def printable(most: int) -> st.SearchStrategy[str]:
    return st.text(max_size=most).filter(lambda t: t.isprintable() and t == t.strip())


PLACES = st.one_of(
    printable(LONGEST["place"]),
    st.tuples(st.floats(-90, 90), st.floats(-180, 180)),
)
ENTRIES = st.dictionaries(
    st.integers(0, 2**64 - 1),
    st.builds(
        Entry,
        st.integers(0, wire.MAX_NUMBER),
        printable(LONGEST["label"]),
        PLACES,
        printable(LONGEST["note"]),
    ),
    max_size=4,
).filter(lambda entries: not wire.double(entries))


class TestDocument:
    @given(ENTRIES, st.integers(1, wire.MAX_NUMBER))
    def test_what_is_signed_is_read(self, entries: Entries, number: int) -> None:
        found = read(signed(number, entries))
        assert found.labels == Labels(number, NOW, entries)
        assert found.signer == "Signer 0001"
        assert found.order == (number, found.digest)
        assert read(signed(number, entries)).digest == found.digest, "another signature"

    @settings(max_examples=60)
    @given(st.lists(ENTRIES, max_size=3), st.randoms(use_true_random=False))
    def test_what_was_said_last_does_not_depend_on_the_order(
        self, documents: list[Entries], luck: random.Random
    ) -> None:
        whole = merged(documents)
        luck.shuffle(documents)
        once: Entries = {}
        for one in documents:
            once = merged((once, one, one))
        assert once == whole
        for device, entry in whole.items():
            of_it = [one[device].changed for one in documents if device in one]
            assert entry.changed == max(of_it)

    @given(st.data())
    def test_a_byte_that_changes_is_noticed(self, data: Any) -> None:
        packed = bytearray(signed(3, {A: Entry(5, "north mast", "roof", "x")}))
        at = data.draw(st.integers(0, len(packed) - 1))
        packed[at] ^= data.draw(st.integers(1, 255))
        with pytest.raises(RefusedError):
            read(bytes(packed))

    @given(st.binary(max_size=600))
    def test_garbage_is_refused(self, data: bytes) -> None:
        for garbage in (data, KIND.line + data, signed(1)[:-2] + data):
            if garbage != signed(1):
                with pytest.raises(RefusedError):
                    read(garbage)

    @pytest.mark.parametrize(
        "labels",
        [
            5, [], {"x": [1]}, {"0" * 15: [1]}, {"g" * 16: [1]}, {"0" * 16: []},
            {"0" * 16: {}}, {"0" * 16: ["1"]}, {"0" * 16: [-1]}, {"0" * 16: [True]},
            {"0" * 16: [1.5]}, {"0" * 16: [1, 5]}, {"0" * 16: [1, None]},
            {"0" * 16: [1, "a\x1b[2J"]}, {"0" * 16: [1, "a\nb"]}, {"0" * 16: [1, "a\u202eb"]},
            {"0" * 16: [1, " a"]}, {"0" * 16: [1, "a" * 33]}, {"0" * 16: [1, "", "a" * 65]},
            {"0" * 16: [1, "", "", "a" * 161]}, {"0" * 16: [1, "", [1]]},
            {"0" * 16: [1, "", [91, 0]]}, {"0" * 16: [1, "", [0, "1"]]},
            {"0" * 16: [1, "", [0, 1, 2]]}, {"0" * 16: [1, "", {}]},
            {"0" * 16: [1, "x"], "1" * 16: [1, "X"]}, {f"{n:016x}": [1] for n in range(MOST + 1)},
            {"00" * 8: [1], "0_0" + "0" * 13: [1]},
        ],
    )  # fmt: skip
    def test_what_a_signer_must_not_say(self, labels: Any) -> None:
        members = {
            "format": 1, "fleet": FLEET.fleet.identifier.hex(), "number": 1,
            "issued": "2026-11-24T12:00:00Z", "labels": labels,
        }  # fmt: skip
        with pytest.raises(RefusedError):
            read(signed(1, text=json.dumps(members).encode()))

    @pytest.mark.parametrize("number", [0, -1, True, "1", 1.0, wire.MAX_NUMBER + 1, None])
    def test_numbers_that_are_none(self, number: Any) -> None:
        members = {
            "format": 1, "fleet": FLEET.fleet.identifier.hex(), "number": number,
            "issued": "2026-11-24T12:00:00Z", "labels": {},
        }  # fmt: skip
        with pytest.raises(RefusedError):
            read(signed(1, text=json.dumps(members).encode()))

    def test_others_must_not_sign(self) -> None:
        other = one_fleet("other")
        device, key = FLEET.device()
        chain = device.chain
        cases = {
            "another fleet's signer": signed(1, certificate=other.signer, key=other.signer_key),
            "another fleet's document": signed(1, fleet=other),
            "another key": signed(1, key=other.signer_key),
            "a device": signed(1, certificate=chain[0], key=key),
            "the root itself": signed(1, certificate=FLEET.fleet.root.der, key=FLEET.root_key),
            "nobody": signed(1, certificate=b"x"),
            "before its certificate": signed(1, issued=datetime(2025, 1, 1, tzinfo=UTC)),
            "behind its certificate": signed(1, issued=datetime(2037, 1, 1, tzinfo=UTC)),
        }
        for who, packed in cases.items():
            with pytest.raises(RefusedError):
                pytest.fail(f"{who}: {read(packed)}")

    def test_the_largest(self) -> None:
        entries = {n: Entry(1, f"{n}", "p" * 64, "n" * 40) for n in range(MOST)}
        packed = signed(1, entries)
        assert len(packed) > MAX_LABELS
        with pytest.raises(RefusedError):
            read(packed)


# -- on a node


def standing() -> Standing:
    return Standing(pem(FLEET.fleet.root.der), "", lambda: False)


def revoke(one: Standing, *names: str) -> None:
    made = Revocations(1, NOW, frozenset(names))
    one.adopt(
        sign_revocations(
            made, FLEET.fleet.identifier, lambda digest: openssl.sign(FLEET.root_key, digest)
        )
    )


class Cluster:
    """A node without connections."""

    def __init__(self) -> None:
        self.connections: dict[str, Any] = {}
        self.sent: list[tuple[str, Any]] = []
        self.registered = False

    def register(self, *_: Any) -> None:
        self.registered = True

    def new_pid(self) -> None: ...

    def nodes(self) -> list[Any]:
        return []

    def send_to_name(self, link: Any, _own: Any, _name: str, message: Any) -> None:
        self.sent.append((link.name, message))


class Link:
    def __init__(self, name: str) -> None:
        self.name = name


def store(folder: Path, mine: Standing | None, cluster: Any = None) -> LabelStore:
    folder.mkdir(parents=True, exist_ok=True)
    return LabelStore(
        cast(Any, cluster or Cluster()), lambda: mine, str(folder), Problems(lambda: None),
        lambda: None,
    )  # fmt: skip


def label(of: LabelStore, device: int = A) -> str:
    entry = of.entries().get(device)
    return entry.label if entry is not None else ""


class TestStore:
    async def test_the_newest_holds_and_an_old_one_does_nothing(self, tmp_path: Path) -> None:
        kept = store(tmp_path, standing())
        assert kept.take(signed(2, {A: Entry(1, "two")}), "a person")
        assert not kept.take(signed(1, {A: Entry(9, "one")}), "a replay")
        assert not kept.take(signed(2, {A: Entry(1, "two")}), "the same, signed again")
        assert label(kept) == "two"
        twins = [signed(3, {A: Entry(1, name)}) for name in ("x", "y")]
        for packed in twins:
            kept.take(packed, "a copy of the authority")
        highest = max(map(read, twins), key=lambda one: one.order)
        assert kept.current() == highest
        await kept.written()
        assert (tmp_path / FILE).read_bytes() == highest.packed

    async def test_a_node_knows_after_a_start_what_it_knew(self, tmp_path: Path) -> None:
        kept = store(tmp_path, standing())
        kept.take(signed(2, {A: Entry(1, "two")}), "a person")
        await kept.written()
        again = store(tmp_path, standing())
        task = asyncio.create_task(again.run())
        await until(lambda: label(again) == "two", "it has read them")
        task.cancel()

    @pytest.mark.parametrize(
        "data", [b"", b"x" * 99, b"\0" * (MAX_LABELS + 9)], ids=["empty", "garbage", "long"]
    )
    async def test_a_damaged_file_is_not_used(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / FILE).write_bytes(data)
        cluster = Cluster()
        kept = store(tmp_path, standing(), cluster)
        task = asyncio.create_task(kept.run())
        await until(lambda: cluster.registered, "it has looked at the file")
        assert kept.current() is None
        assert kept.take(signed(1, {A: Entry(1, "new")}), "a person")
        await kept.written()
        task.cancel()

    async def test_what_a_revoked_signer_said_is_over(self, tmp_path: Path) -> None:
        mine = standing()
        kept = store(tmp_path, mine)
        stolen = signed(wire.MAX_NUMBER, {A: Entry(1, "stolen")})
        kept.take(stolen, "a thief")
        assert not kept.take(signed(5, {A: Entry(1, "ours")}), "a person"), "it stands above all"
        revoke(mine, "Signer 0001")
        assert (kept.current(), kept.entries()) == (None, {})
        with pytest.raises(LabelError, match="Signer 0001 is revoked"):
            kept.take(stolen, "a thief")
        await kept.written()

    async def test_without_a_fleet_nothing_is_taken(self, tmp_path: Path) -> None:
        kept = store(tmp_path, None)
        with pytest.raises(LabelError, match="no fleet"):
            kept.take(signed(1), "a person")
        kept.on_message(cast(Any, Link("x")), ("have", 5, b"x" * 32))
        assert kept.entries() == {}

    async def test_a_disk_that_keeps_nothing_is_a_problem(self, tmp_path: Path) -> None:
        problems = Problems(lambda: None)
        folder, held = tmp_path / "folder", standing()
        folder.write_text("a file is in its place")
        kept = LabelStore(cast(Any, Cluster()), lambda: held, str(folder), problems, lambda: None)
        kept.take(signed(1, {A: Entry(1, "x")}), "a person")
        await kept.written()
        (problem,) = problems.all()
        assert (problem["part"], problem["code"]) == ("fleet", "not-kept")
        folder.unlink()
        kept.take(signed(2, {A: Entry(1, "x")}), "a person")
        await kept.written()
        assert problems.all() == []


class TestExchange:
    def links(self, one: LabelStore, *names: str) -> dict[str, Any]:
        cluster = cast(Any, one._cluster)
        cluster.connections = {name: Link(name) for name in names}
        return cluster.connections  # type: ignore[no-any-return]

    def sent(self, one: LabelStore) -> list[Any]:
        return cast(Any, one._cluster).sent  # type: ignore[no-any-return]

    async def test_a_member_cannot_make_it_do_much(self, tmp_path: Path) -> None:
        kept = store(tmp_path, standing())
        kept.take(signed(2, {A: Entry(1, "two")}), "a person")
        link = self.links(kept, "liar")["liar"]
        for _ in range(100):
            kept.on_message(link, ("have", 0, b""))
            kept.on_message(link, ("have", 2**60, b"\xff" * 32))
            kept.on_message(link, ("labels", b"x" * 1000))
        assert len(self.sent(kept)) <= 2 * label_store.BURST
        for message in (
            "have", ("have",), ("have", -1), ("have", 1, "x"), ("have", 1, b"x"),
            ("have", None, b""),
            ("labels", "x"), ("labels", b"x" * (MAX_LABELS + 1)), ("labels",), (), None, 5, [1],
        ):  # fmt: skip
            kept.on_message(link, message)
        assert label(kept) == "two"
        await kept.written()

    async def test_one_of_many_neighbours_has_to_send_it(self, tmp_path: Path) -> None:
        kept = store(tmp_path, standing())
        new = read(signed(2, {A: Entry(1, "two")}))
        links = self.links(kept, *map(str, range(9)))
        for link in links.values():
            kept.on_message(link, ("have", *new.order))
        assert self.sent(kept) == [("0", ("have", 0, b""))]
        kept.on_message(links["0"], ("labels", new.packed))
        assert label(kept) == "two"
        await kept.written()

    async def test_equal_ones_are_silent(self, tmp_path: Path) -> None:
        kept = store(tmp_path, standing())
        kept.take(signed(2, {A: Entry(1, "two")}), "a person")
        link = self.links(kept, "other")["other"]
        current = kept.current()
        assert current is not None
        kept.on_message(link, ("have", *current.order))
        assert self.sent(kept) == []
        await kept.written()

    def test_it_spreads_along_a_line_and_to_who_comes_later(self) -> None:
        run_line()


@in_private_network
async def run_line(network: Network) -> None:
    """Real nodes in a row: the outer ones have other labels, and end up with the newest."""
    folder = network.folder()
    nodes = [
        Node(
            name, cookie="c", address=network.address(number), port=0,
            epmd_port=network.epmd_port, tick_time=3600,
        )
        for number, name in enumerate("abcd", 1)
    ]  # fmt: skip
    stores = [store(folder / one.name, standing(), one) for one in nodes]
    tasks = [asyncio.create_task(one.run()) for one in stores]
    try:
        for one in nodes:
            await one.start()
            await until(lambda one=one: one.listening, "it listens")  # type: ignore[misc]
        stores[0].take(signed(4, {A: Entry(1, "old")}), "a person")
        stores[2].take(signed(5, {A: Entry(1, "new"), B: Entry(1, "é")}), "another person")
        for left, right in ((0, 1), (1, 2)):
            await nodes[left].connect(nodes[right].name, PATIENCE)
            for here, there in ((left, right), (right, left)):
                stores[here].node_up(nodes[there].name)
        await until(lambda: [label(s) for s in stores[:3]] == ["new"] * 3, "three have it", 60)
        # The last one has nothing, and says so only when it begins.
        await nodes[2].connect(nodes[3].name, PATIENCE)
        stores[2].node_up(nodes[3].name)
        await until(lambda: label(stores[3], B) == "é", "the last one has it", 60)
        # What comes in the middle goes both ways.
        stores[1].take(signed(6, {A: Entry(2, "newest")}), "a person")
        stores[1].tell_all()
        await until(lambda: [label(s) for s in stores] == ["newest"] * 4, "all have it", 60)
        for held in stores:
            await held.written()
    finally:
        for task in tasks:
            task.cancel()
        for one in nodes:
            await one.stop()
