# SPDX-License-Identifier: Apache-2.0
"""Updates that travel between real nodes of a fleet, over TLS on loopback."""

from __future__ import annotations

import asyncio
import io
import random
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
from bundles_for_tests import update_key
from fleet_for_tests import CLOCK, one_fleet
from patience import PATIENCE
from private_network import Network, in_private_network, until
from test_fleet_links import FLEET, Policy, a_node, credentials

from thicket.base.errors import CodedError, ThicketError
from thicket.base.problems import Problems
from thicket.distribution import Node
from thicket.distribution.handshake import DistributionError, key_of
from thicket.distribution.processes import Process
from thicket.trust.verify import Rules
from thicket.update import exchange, messages, store
from thicket.update.carrier import Carrier, CarrierError
from thicket.update.exchange import NAME, WAITING, Exchange, Follower
from thicket.update.messages import Data, Get, Has, Have, Offered, Piece
from thicket.update.offer import CHUNK, Offer, Order, Patch, Plan, Target, check_offer, describe
from thicket.update.progress import Progress, State, node_name
from thicket.update.reports import Reports
from thicket.update.spread import Way
from thicket.update.store import Store, StoreError

GONE = DistributionError("gone", "the test says so")
BASE = "ba" * 32
SMALL = random.Random(1).randbytes(5 * CHUNK + 77)
WHOLE = random.Random(2).randbytes(9 * CHUNK + 5)


def described(data: bytes, base: str) -> Patch:
    return describe(io.BytesIO(data), base)[0]


def an_offer(number: int = 1, *patches: Patch) -> Offer:
    target = Target("thicket-rpi64", f"{number}.0", 0, 1 << 20, "ef" * 32)
    made = patches or (described(WHOLE, ""), described(SMALL, BASE))
    return Offer(FLEET.fleet.identifier, number, target, made, Plan(1, 60, (100,), 0, None))


def signed(offer: Offer) -> bytes:
    return update_key(FLEET).message(offer.text())


def folder_of(path: Path, offer: Offer, *files: bytes) -> str:
    path.mkdir(parents=True)
    (path / "offer").write_bytes(signed(offer))
    (path / "readme").write_text("something else")
    (path / "folder").mkdir()
    for number, data in enumerate(files):
        (path / f"{number}.patch").write_bytes(data)
    return str(path)


def damage(path: Path, chunk: int) -> None:
    with path.open("r+b") as file:
        file.seek(chunk * CHUNK)
        file.write(bytes(10))


class Host:
    """Stands in for a daemon."""

    def __init__(self, node: Node, base: str = BASE) -> None:
        self.problems = Problems(lambda: None)
        self.node = node
        self.running = base
        self.taken: list[tuple[bytes, int]] = []
        self.refuse: set[str] = set()
        self.damages = 0
        self.news = True
        self.hops = 1

    def check(self, packed: bytes) -> Offer:
        return check_offer(packed, FLEET.fleet)

    def base(self) -> str:
        return self.running

    def wants(self, offer: Offer) -> bool:
        return self.news

    def share(self) -> float:
        return 0.9

    def ways(self) -> Mapping[str, Way]:
        return {info.name: Way(self.hops, 100) for info in self.node.nodes() if info.state == "up"}

    async def take(self, path: str, offer: Offer, patch: Patch) -> None:
        if patch.base in self.refuse:
            raise CodedError("no-bundle", "no bundle can be made of it")
        if self.damages:
            self.damages -= 1
            damage(Path(path), 3)
            raise CodedError("bad-patch", "a damaged patch")
        self.taken.append((Path(path).read_bytes(), offer.number))


SUBJECT = "image/thicket-rpi64"
APP_SUBJECT = "app/readings"


class Member:
    """A node of the fleet with its part in updates."""

    def __init__(self, node: Node, folder: Path, base: str = BASE) -> None:
        self.node = node
        self.host = Host(node, base)
        self.exchange = Exchange(node, self.host, self._take)
        self.carrier = Carrier(self.host, Store(str(folder)), self.exchange.wire(SUBJECT))
        self.exchange.followers[SUBJECT] = Follower(self.carrier)
        self.strange: list[str] = []
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.exchange.run())
            tasks.create_task(self.carrier.run())

    async def _take(self, subject: str, packed: bytes, who: str) -> bool:
        if subject != SUBJECT:
            self.strange.append(check_offer(packed, FLEET.fleet).bundle.subject)
            return False
        return await self.carrier.take_offer(packed, who)

    def send(self, other: Member, message: messages.Message) -> None:
        self.exchange.send(other.node.name, SUBJECT, message)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


@asynccontextmanager
async def members(network: Network, root: Path, count: int) -> AsyncIterator[list[Member]]:
    """Nodes in a line, each connected with the next one."""
    async with AsyncExitStack() as stack:
        made: list[Member] = []
        for number in range(1, count + 1):
            policy = Policy(await credentials(FLEET.device(number)[0]))
            node, _ = await stack.enter_async_context(a_node(network, policy))
            made.append(Member(node, root / str(number)))
        await until(lambda: all(m.node.whereis(NAME) for m in made), "all listen")
        try:
            for one, other in pairwise(made):
                await join(one, other)
            yield made
        finally:
            for member in made:
                await member.stop()


async def join(one: Member, other: Member) -> None:
    await one.node.connect(other.node.name, PATIENCE)
    await until(lambda: other.node.connected(one.node.name), "both are connected")
    one.exchange.node_up(other.node.name)
    other.exchange.node_up(one.node.name)


@in_private_network
async def test_an_offer_and_its_patch_go_down_a_line(network: Network) -> None:
    root = network.folder()
    async with members(network, root, 3) as (a, b, c):
        c.host.running = ""  # what it runs is not known: it needs the whole
        folder = folder_of(root / "offered", an_offer(), SMALL, WHOLE)
        assert await a.carrier.offer_folder(folder) == [0, 1]
        # b fetches its own patch only, and c finds no whole at its neighbour
        await until(lambda: b.host.taken == [(SMALL, 1)], "the middle has its patch")
        assert c.host.taken == []
        assert b.carrier.counters["received"] == 6
        await join(a, c)
        await until(lambda: c.host.taken == [(WHOLE, 1)], "the end has the whole")
        assert c.carrier.counters["received"] == 10
        assert a.host.taken == [(SMALL, 1)], "whoever has it takes it as well"
        shown = a.carrier.status()
        assert shown["offer"]["version"] == "1.0"
        await until(
            lambda: [n["percent"] for n in a.carrier.status()["nodes"]] == [100, 100],
            "all is told",
        )
        assert a.carrier.counters["wrong"] == 0


@in_private_network
async def test_a_line_hands_on_what_it_has(network: Network) -> None:
    root = network.folder()
    async with members(network, root, 3) as (a, b, c):
        folder = folder_of(root / "offered", an_offer(), SMALL)
        assert await a.carrier.offer_folder(folder) == [1]
        await until(lambda: c.host.taken == [(SMALL, 1)], "the end has it")
        assert a.carrier.counters["sent"] == 7, "once: the list and six chunks"
        assert b.carrier.counters["sent"] == 7


@in_private_network
async def test_a_patch_of_one_chunk_needs_no_list(network: Network) -> None:
    root = network.folder()
    async with members(network, root, 2) as (a, b):
        one = SMALL[:100]
        folder = folder_of(root / "offered", an_offer(1, described(one, BASE)), one)
        await a.carrier.offer_folder(folder)
        await until(lambda: b.host.taken == [(one, 1)], "it is there")
        assert a.carrier.counters["sent"] == 1


@in_private_network
async def test_a_node_serves_while_its_card_is_slow(network: Network) -> None:
    root = network.folder()
    async with members(network, root, 3) as (a, b, c):
        finish, go_on = store.Held.finish, threading.Event()

        def slow(held: store.Held) -> None:
            if held.path.startswith(f"{root}/2/"):
                go_on.wait(PATIENCE)
            finish(held)

        with mock.patch.object(store.Held, "finish", slow):
            folder = folder_of(root / "offered", an_offer(), SMALL)
            await a.carrier.offer_folder(folder)
            await until(lambda: c.host.taken == [(SMALL, 1)], "the end has it")
            assert b.host.taken == []
            go_on.set()
            await until(lambda: b.host.taken == [(SMALL, 1)], "then the middle takes it")


@in_private_network
async def test_a_patch_that_is_not_written_out_is_tried_again(network: Network) -> None:
    root = network.folder()
    async with members(network, root, 2) as (a, b):
        finish, tries = store.Held.finish, []

        def fails_once(held: store.Held) -> None:
            if held.path.startswith(f"{root}/2/"):
                tries.append(b.host.problems.all())
                if len(tries) == 1:
                    raise StoreError(store.NOT_KEPT, "the card does not take it")
            finish(held)

        with (
            mock.patch.object(store.Held, "finish", fails_once),
            mock.patch("thicket.update.carrier.AGAIN", 0.1),
        ):
            folder = folder_of(root / "offered", an_offer(), SMALL)
            await a.carrier.offer_folder(folder)
            await until(lambda: b.host.taken == [(SMALL, 1)], "it is tried again")
        assert "does not take it" in str(tries[1])
        assert (b.host.problems.all(), b.carrier.fault) == ([], ""), "it is over"
        assert b.carrier.counters["received"] == 6, "nothing is fetched again"


@in_private_network
async def test_who_is_far_hears_of_an_offer_a_little_later(network: Network) -> None:
    root = network.folder()
    async with members(network, root, 2) as (a, b):
        a.host.hops = 2
        begun = time.monotonic()
        with (
            mock.patch("thicket.update.exchange.SOON", (0.5, 0.5)),
            mock.patch("thicket.update.spread.STALLED", 0.5),
        ):
            folder = folder_of(root / "offered", an_offer(), SMALL)
            await a.carrier.offer_folder(folder)
            await until(lambda: b.carrier.newest is not None, "it knows the offer")
            assert time.monotonic() - begun >= 0.5
            await until(lambda: b.host.taken == [(SMALL, 1)], "it is there")


@in_private_network
async def test_what_is_said_too_often_is_asked_for_later(network: Network) -> None:
    root = network.folder()
    async with members(network, root, 2) as (a, b):
        rates = {**exchange.RATES, "offer": (2.0, 2.0)}
        with mock.patch.object(exchange, "RATES", rates):
            b.exchange.on_disconnect(b.node.connections[key_of(a.node.name)], GONE)
            for _ in range(5):
                a.send(b, Have(0, b""))
            folder = folder_of(root / "offered", an_offer(), SMALL)
            await a.carrier.offer_folder(folder)
            await until(lambda: b.host.taken == [(SMALL, 1)], "it is there")
            assert b.exchange.ignored > 0


@in_private_network
async def test_a_node_that_comes_late_or_again_goes_on(network: Network) -> None:
    root = network.folder()
    async with members(network, root, 2) as (a, b):
        folder = folder_of(root / "offered", an_offer(), SMALL)
        await a.carrier.offer_folder(folder)
        await until(lambda: b.host.taken == [(SMALL, 1)], "it is there")
        await b.stop()
        path = next((root / "2").glob("*.patch"))
        damage(path, 3)  # meanwhile
        again = Member(b.node, root / "2")
        try:
            await until(lambda: again.node.whereis(NAME) is not None, "it listens again")
            await until(lambda: again.carrier.newest is not None, "it knows the offer")
            again.exchange.node_up(a.node.name)
            await until(lambda: again.host.taken == [(SMALL, 1)], "it is there again")
            assert again.carrier.counters["received"] == 1
        finally:
            await again.stop()


@in_private_network
async def test_a_patch_of_which_no_bundle_can_be_made_gives_way(network: Network) -> None:
    root = network.folder()
    async with members(network, root, 2) as (a, b):
        b.host.refuse.add(BASE)
        a.host.news = False
        folder = folder_of(root / "offered", an_offer(), SMALL, WHOLE)
        await a.carrier.offer_folder(folder)
        await until(lambda: b.host.taken == [(WHOLE, 1)], "the whole has its turn")
        assert b.carrier.status()["patches"][1]["failed"] == "no bundle can be made of it"
        assert a.host.taken == []


@in_private_network
async def test_a_newer_offer_takes_the_place_of_an_older_one(network: Network) -> None:
    root = network.folder()
    async with members(network, root, 2) as (a, b):
        one = folder_of(root / "one", an_offer(1), SMALL)
        two = folder_of(root / "two", an_offer(2, described(WHOLE, "")), WHOLE)
        await a.carrier.offer_folder(one)
        await until(lambda: b.host.taken == [(SMALL, 1)], "the first")
        await b.carrier.offer_folder(two)
        await until(lambda: a.host.taken[1:] == [(WHOLE, 2)], "the second, the other way")
        assert len(list((root / "1").glob("*.patch"))) == 1
        with pytest.raises(CarrierError, match="a newer offer is known"):
            await b.carrier.offer_folder(one)


@in_private_network
async def test_rubbish_is_refused_and_costs_the_peer_its_turn(network: Network) -> None:
    root = network.folder()
    async with members(network, root, 2) as (a, b):
        offer = an_offer()
        packed = signed(offer)
        identifier = offer.identifier
        a.send(b, Offered(packed[:-1] + b"x"))
        await until(lambda: bool(b.host.problems.all()), "a tampered offer is a problem")
        assert b.carrier.newest is None
        foreign = update_key(one_fleet("other")).message(offer.text())
        a.send(b, Offered(foreign))
        await until(lambda: "another fleet" in str(b.host.problems.all()), "and a foreign one")
        assert b.carrier.newest is None
        await a.stop()  # from here on the test is the peer
        connection = a.node.connections[key_of(b.node.name)]

        def send(message: messages.Message) -> None:
            wrapped = messages.wrap(SUBJECT, message)
            a.node.send_to_name(connection, a.node.pid, NAME, wrapped)

        send(Offered(packed))
        await until(lambda: b.carrier.newest is not None, "a good one is taken")
        send(Has(identifier, ((1, 0b111111),)))
        await until(lambda: b.carrier.download is not None, "it begins")
        listing = b.carrier.download.listing if b.carrier.download else None
        assert listing is not None
        await until(lambda: listing.peer is not None, "it asks for the list")
        send(Data(identifier, Piece(1, "list", 0), bytes(6 * 32)))
        await until(lambda: b.carrier.counters["wrong"] == 1, "a wrong list")
        assert listing.peer is None
        for stray in (
            Have(5, bytes(32)),
            Has(identifier, ((15, 1),)),
            Get(identifier, Piece(15, "chunk", 0)),
            Get(identifier, Piece(0, "chunk", 9999)),
            Data(identifier, Piece(1, "chunk", 0), b"x"),
            Data(bytes(32), Piece(1, "chunk", 0), b"x"),
        ):
            send(stray)
        for what in (("what", 1), (b"image/x", ("what", 1)), (b"else/x", ("have", 0, b""))):
            a.node.send_to_name(connection, a.node.pid, NAME, what)
        await until(lambda: b.exchange.ignored == 3, "what is no message is counted")
        assert b.host.taken == []
        assert not b.task.done()


@in_private_network
async def test_what_nobody_follows_is_asked_for_and_bounded(network: Network) -> None:
    root = network.folder()
    async with members(network, root, 2) as (a, b):
        target = Target("", "1.2", 0, 1 << 20, "ef" * 32, "readings")
        offer = an_offer()._replace(bundle=target)
        assert offer.bundle.subject == APP_SUBJECT
        await a.stop()  # from here on the test is the peer
        heard: list[object] = []
        peer = Listening(a.node, heard)
        connection = a.node.connections[key_of(b.node.name)]

        def send(message: messages.Message) -> None:
            wrapped = messages.wrap(APP_SUBJECT, message)
            a.node.send_to_name(connection, peer.pid, NAME, wrapped)

        send(Have(0, b""))
        send(Get(offer.identifier, Piece(0, "chunk", 0)))
        send(Have(*(1, offer.identifier)))
        nothing = messages.wrap(APP_SUBJECT, Have(0, b""))
        await until(lambda: heard == [nothing], "it asks for the offer")
        send(Offered(signed(offer)))
        await until(lambda: b.strange == [APP_SUBJECT], "the offer is handed on to be judged")
        for _ in range(100):
            send(Have(1, offer.identifier))
        await until(lambda: b.exchange.ignored >= 70, "the rest is dropped")
        assert len(heard) < 30
        # Offers that come faster than they are checked are dropped, and told of again.
        for _ in range(WAITING + 5):
            b.exchange._on_offer("a", APP_SUBJECT, signed(offer))
        assert b.exchange._offers.qsize() <= WAITING


class Listening(Process):
    """Stands under the name of updates on a node, and keeps what it hears."""

    answers = False

    def __init__(self, node: Node, heard: list[object]) -> None:
        super().__init__(node)
        self.heard = heard
        node.register(NAME, self)

    def on_message(self, connection: object, message: object) -> None:
        self.heard.append(message)


class Recording:
    """Understands records, as a node's part in updates does."""

    def __init__(self) -> None:
        self.reports = Reports(FLEET.fleet, lambda: Rules(CLOCK), lambda: ())

    def greeting(self) -> list[bytes]:
        return self.reports.greeting()

    def take_records(self, records: Sequence[bytes], peer: str) -> tuple[list[bytes], list[bytes]]:
        taken = self.reports.take(records, peer, 0.0)
        return taken.onward, taken.answer

    def gone(self, peer: str) -> None:
        self.reports.disconnected(peer)


@in_private_network
async def test_reports_reach_everybody_and_a_late_one(network: Network) -> None:
    root = network.folder()
    async with members(network, root, 3) as made:
        known = [Recording() for _ in made]
        for number, (one, mine) in enumerate(zip(made, known, strict=True), start=1):
            one.exchange.followers[SUBJECT] = Follower(one.carrier, mine)
            own = await credentials(FLEET.device(number)[0])
            name = node_name(own.peer.source, own.peer.address.packed[-6:])
            record = Progress(name, bytes(32), 5, State.WAITING, 0, "for its turn")
            one.exchange.publish(SUBJECT, mine.reports.publish(record, own, 0.0))
        await join(made[0], made[2])
        for one in made:
            one.exchange.greet_all(SUBJECT)
        await until(lambda: all(len(mine.reports.records()) == 3 for mine in known), "all know all")
        order = Order(FLEET.fleet.identifier, 5, b"", "pause")
        packed = update_key(FLEET).message(order.text())
        made[0].exchange.publish(SUBJECT, known[0].reports.take_order(packed, 0.0).onward)
        await until(lambda: all(mine.reports.orders for mine in known), "all know the order")


@in_private_network
async def test_a_full_card_is_a_problem_and_nothing_is_fetched(network: Network) -> None:
    root = network.folder()
    async with members(network, root, 2) as (a, b):
        b.host.news = False
        folder = folder_of(root / "offered", an_offer(), SMALL)
        await a.carrier.offer_folder(folder)
        await until(lambda: bool(b.carrier.theirs and b.carrier.theirs[1].bits), "it knows all")
        b.host.news = True
        with mock.patch.object(store, "RESERVE", 1 << 60):
            b.exchange.node_up(a.node.name)
            await until(lambda: bool(b.host.problems.all()), "there is no room")
        (problem,) = b.host.problems.all()
        assert problem["code"] == "no-room"
        assert "remove something from /data" in b.carrier.fault
        assert "remove something from /data" in problem["message"]
        assert a.carrier.counters["sent"] == 0
        assert [path.name for path in (root / "2").iterdir()] == ["offer"]


@in_private_network
async def test_a_folder_without_what_it_needs(network: Network) -> None:
    root = network.folder()
    async with members(network, root, 1) as (a,):
        (root / "hollow").mkdir()
        (root / "file").write_text("mine")
        for name, words in (
            ("nothing", f"there is no {root}/nothing; the folder is needed that"),
            ("hollow", f"{root}/hollow has no offer in it; the folder is needed that"),
            ("file", f"{root}/file is a file; the folder is needed that"),
        ):
            with pytest.raises(CarrierError, match=words):
                await a.carrier.offer_folder(f"{root}/{name}")
        tampered = an_offer()
        folder = folder_of(root / "offered", tampered)
        (Path(folder) / "offer").write_bytes(signed(tampered)[:-1] + b"x")
        with pytest.raises(ThicketError, match="get it anew"):
            await a.carrier.offer_folder(folder)
        assert a.carrier.newest is None
        empty = folder_of(root / "empty", an_offer())
        with pytest.raises(CarrierError, match="none of the offer's patches"):
            await a.carrier.offer_folder(empty)


@in_private_network
async def test_damage_on_the_card_of_who_serves_is_mended(network: Network) -> None:
    root = network.folder()
    async with members(network, root, 2) as (a, b):
        folder = folder_of(root / "offered", an_offer(), SMALL)
        b.host.news = False
        await a.carrier.offer_folder(folder)
        await until(lambda: bool(b.carrier.theirs and b.carrier.theirs[1].bits), "it knows all")
        await until(lambda: len(a.host.taken) == 1, "its own node has it")
        damage(Path(a.carrier.held[1].path), 4)
        b.host.news = True
        b.exchange.node_up(a.node.name)
        await until(lambda: b.carrier.counters["received"] == 5, "the others are there")
        folder = folder_of(root / "again", an_offer(), SMALL)
        await a.carrier.offer_folder(folder)
        await until(lambda: b.host.taken == [(SMALL, 1)], "the person has brought it again")
        assert a.host.taken == [(SMALL, 1)]
        assert b.carrier.counters["received"] == 6


@in_private_network
async def test_damage_before_a_bundle_is_made_is_mended(network: Network) -> None:
    root = network.folder()
    async with members(network, root, 2) as (a, b):
        b.host.damages = 1
        await a.carrier.offer_folder(folder_of(root / "offered", an_offer(), SMALL))
        await until(lambda: b.host.taken == [(SMALL, 1)], "it is fetched again")
        assert b.carrier.counters == {"received": 7, "far": 0, "sent": 0, "wrong": 0}
        assert b.carrier.failed == {}


@in_private_network
async def test_damage_on_a_node_that_needs_it_no_more_is_mended_for_the_others(
    network: Network,
) -> None:
    root = network.folder()
    async with members(network, root, 3) as (a, b, c):
        c.host.news = False
        await a.carrier.offer_folder(folder_of(root / "offered", an_offer(), SMALL))
        await until(lambda: b.host.taken == [(SMALL, 1)], "the one in the middle has it")
        b.host.news = False
        damage(Path(b.carrier.held[1].path), 4)
        c.host.news = True
        c.exchange.node_up(b.node.name)
        await until(lambda: c.host.taken == [(SMALL, 1)], "the last one has it")
        assert b.carrier.counters["received"] == 7
        assert b.carrier.held[1].complete
        assert b.host.taken == [(SMALL, 1)]
        assert c.carrier.counters == {"received": 6, "far": 0, "sent": 0, "wrong": 0}
