# SPDX-License-Identifier: Apache-2.0
"""thicket.timekeeping.service and .neighbours, with a chronyd that tells what the test wants."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from fleet_for_tests import TestFleet, one_fleet
from private_network import Network, in_private_network

from authority.signing import sign_time
from thicket.base.errors import RequestError, ThicketError
from thicket.base.fields import ConfigError
from thicket.base.paths import Paths
from thicket.base.problems import Problems
from thicket.config.parse import parse as parse_text
from thicket.config.schema import Settings
from thicket.distribution import Node
from thicket.distribution.etf import Atom
from thicket.timekeeping import statement, uplink
from thicket.timekeeping.chrony import Chrony, Setup
from thicket.timekeeping.claims import Claim, Grade, Heard, pack
from thicket.timekeeping.facts import Host
from thicket.timekeeping.judge import Knowledge
from thicket.timekeeping.kept import Kept
from thicket.timekeeping.keys import PairKey, of_client
from thicket.timekeeping.neighbours import NAME, Neighbours, Says
from thicket.timekeeping.report import Report, Source, Tracking
from thicket.timekeeping.service import Timekeeper
from thicket.timekeeping.signed_time import SignedTime, end_of
from thicket.trust import clock as clocks
from thicket.trust import openssl
from thicket.trust.credentials import make_credentials
from thicket.trust.standing import Standing
from thicket.trust.verify import Clock, RefusedError


def parse(text: str) -> Settings:
    return parse_text((text or "# defaults\n").encode(), "thicket.toml")


ME, OTHER, THIRD = (IPv6Address(f"fd00::{n}") for n in (5, 2, 3))
NETWORK = IPv6Network("fd00::/64")


class FakeChrony(Chrony):
    """A chronyd that follows the first of its sources that the test has given a time."""

    def __init__(self) -> None:
        super().__init__("/none", "/none", lambda: None)
        self.offsets: dict[str, float] = {}
        self.state = {"runs": False}
        self.steps: list[float] = []
        self.starts = 0
        self.anew = 0
        self.set: list[float] = []

    @property
    def running(self) -> bool:
        return self.state["runs"]

    async def start(self, network: IPv6Network | None, setup: Setup) -> None:
        self.state["runs"] = True
        self.starts += 1
        self._setup = setup

    async def stop(self) -> None:
        self.state["runs"] = False

    @property
    def setup(self) -> Setup:
        return self._setup

    async def follow(self, setup: Setup) -> None:
        self._setup = setup

    async def has_nts(self) -> bool:
        return False

    async def set_clock(self, clock: float) -> None:
        await self.stop()
        self.set.append(clock)

    async def measure_anew(self) -> None:
        self.anew += 1

    async def step(self) -> None:
        followed = self._followed()
        if followed is not None:
            self.steps.append(self.offsets[followed])
            self.offsets = {name: o - self.offsets[followed] for name, o in self.offsets.items()}

    def _names(self) -> list[str]:
        return [*self._setup.servers, *(str(node.address) for node in self._setup.nodes)]

    def _followed(self) -> str | None:
        return next((name for name in self._names() if name in self.offsets), None)

    async def report(self) -> Report:
        followed = self._followed()
        offset = 0.0 if followed is None else self.offsets[followed]

        def state(name: str) -> str:
            if name == followed:
                return "*"
            if name not in self.offsets:
                return "?"
            return "+" if abs(self.offsets[name] - offset) < 1 else "x"

        known = self.offsets
        return Report(
            Tracking(followed or "", 5 if followed else 0, offset, 0.001, 1.0, 2.0),
            tuple(
                Source(name, state(name), 4, int(name in known), known.get(name, 0.0), 0.0)
                for name in self._names()
            ),
        )


class Bench:
    """A part ``time`` on the table.

    :ivar set: the times that the system's clock was set to.
    """

    def __init__(self, folder: Path, text: str = "", fleet: TestFleet | None = None) -> None:
        self.paths = Paths(str(folder))
        for name in ("run/thicket", "data/thicket", "proc/net", "usr/lib"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.settings = parse(text).time
        self.problems = Problems(lambda: None)
        self.chrony = FakeChrony()
        self.floor = datetime.now(UTC) - timedelta(days=1)
        self.end: float | None = time.time() + 1e9
        self.saved = 0
        self.set = self.chrony.set
        self.standing: Standing | None = None
        if fleet is not None:
            from thicket.trust.certificates import pem

            self.standing = Standing(pem(fleet.fleet.root.der), str(folder), lambda: False)
        signed = SignedTime(lambda: self.standing, Kept(self.paths))

        def save() -> None:
            self.saved += 1

        self.host = Host(
            settings=lambda: self.settings,
            me=lambda: (ME, NETWORK),
            mesh="mesh0",
            trusted=lambda: Clock(self.floor),
            end=lambda: self.end,
            changed=lambda: None,
            save=save,
        )
        self.keeper = Timekeeper(self.paths, self.problems, self.host, signed, self.chrony)

    def problem(self, code: str) -> str:
        found = [p["message"] for p in self.problems.all() if p["code"] == code]
        return found[0] if found else ""

    @property
    def state(self) -> str:
        return str(self.keeper.status()["state"])

    async def until(self, condition: Callable[[], object], what: str) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.keeper.look_again()
                await asyncio.sleep(0.01)


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Bench]:
    """Make a bench; the machine's clock stays."""

    def make(text: str = "", fleet: TestFleet | None = None) -> Bench:
        return Bench(tmp_path, text, fleet)

    return make


@asynccontextmanager
async def running(made: Bench) -> AsyncIterator[Bench]:
    task = asyncio.create_task(made.keeper.run())
    try:
        yield made
        assert not task.done() or task.result() is None
    finally:
        task.cancel()
        await asyncio.wait({task})
    assert not made.chrony.running


SERVERS = '[time]\nservers = ["a.example", "b.example"]\n'


async def test_a_node_alone_has_a_guess_that_no_certificate_is_judged_by(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clocks, "_library", lambda: None)  # the kernel is not even asked
    async with running(bench()) as made:
        await made.until(lambda: made.state == "guess", "it looks")
        assert not made.keeper.known
        assert made.chrony.setup == Setup(leads=True)
        root = str(made.folder)
        assert not clocks.synchronised(root)
        assert clocks.SystemClock(root).read().now is None
        assert made.problems.all() == [], "that is how every new fleet is"


async def test_servers_set_the_clock_and_then_the_time_is_known(
    bench: Callable[..., Bench],
) -> None:
    async with running(bench(SERVERS)) as made:
        made.chrony.offsets = {"a.example": 5000.0}
        await made.until(lambda: made.state == "network", "it follows")
        assert made.chrony.steps == [5000.0]
        assert clocks.synchronised(str(made.folder))
        await made.until(lambda: made.saved, "the time is kept for the next start")
        told = made.keeper.status()
        assert (told["by"], told["source"]) == ("network", "a.example")
        assert told["origin"] == str(ME)
        # A person's word does not count beside servers.
        with pytest.raises(RequestError) as found:
            await made.keeper.set(time.time() + 60)
        assert found.value.code == "from-network"


async def test_a_time_before_the_floor_is_refused_and_the_servers_are_left_alone(
    bench: Callable[..., Bench],
) -> None:
    async with running(bench(SERVERS)) as made:
        made.chrony.offsets = {"a.example": -2 * 86400.0, "b.example": -2 * 86400.0}
        await made.until(lambda: made.problem("refused"), "it is refused")
        assert "authority has signed" in made.problem("refused")
        assert made.chrony.steps == []
        await made.until(lambda: made.chrony.starts == 2, "chronyd begins anew")
        assert made.chrony.setup.servers == ()
        assert not made.keeper.known


async def test_a_time_behind_the_end_of_the_certificate_is_refused(
    bench: Callable[..., Bench],
) -> None:
    async with running(bench(SERVERS)) as made:
        made.end = time.time() + 1000
        made.chrony.offsets = {"a.example": 2000.0}
        await made.until(lambda: "would have ended" in made.problem("refused"), "it is refused")
        assert made.chrony.steps == []


async def test_one_server_against_what_is_known_waits_and_two_do_not(
    bench: Callable[..., Bench],
) -> None:
    async with running(bench(SERVERS)) as made:
        made.chrony.offsets = {"a.example": 0.0}
        await made.until(lambda: made.keeper.known, "it knows the time")
        made.chrony.offsets = {"a.example": 4000.0}
        await made.until(lambda: made.problem("refused"), "it is refused")
        assert "15 minutes" in made.problem("refused")
        assert made.keeper.known
        assert made.chrony.steps == []
        made.keeper._times.refused_until = 0.0
        made.chrony.offsets = {"a.example": 4000.0, "b.example": 4000.0}
        await made.until(lambda: made.chrony.steps == [4000.0], "two agree")
        await made.until(lambda: not made.problem("refused"), "that is over")


async def test_a_clock_below_the_floor_is_set_to_it(bench: Callable[..., Bench]) -> None:
    made = bench()
    made.floor = datetime.now(UTC) + timedelta(days=30)
    async with running(made):
        await made.until(lambda: made.set, "it is set")
        assert made.set[0] == made.floor.timestamp()
        made.floor = datetime.now(UTC)  # as the kernel's clock does not move here


async def test_a_persons_word_is_bounded_and_makes_the_time_known(
    bench: Callable[..., Bench],
) -> None:
    async with running(bench()) as made:
        for seconds, code in ((-2 * 86400, "before-floor"), (2e9, "behind-end")):
            with pytest.raises(RequestError) as found:
                await made.keeper.set(time.time() + seconds)
            assert found.value.code == code
        assert not made.keeper.known
        clock = time.time() + 3600
        await made.keeper.set(clock)
        assert made.set == [clock]
        assert made.state == "held", "at once"
        await made.until(lambda: made.state == "held", "it is known")
        # The next daemon of this boot knows it as well.
        known = Kept(made.paths).known(1e9)
        assert (known.grade, known.by) == (Grade.HELD, "operator")
        assert known.stamp == int(clock)
    assert clocks.synchronised(str(made.folder)), "it stays known while the daemon restarts"


@pytest.mark.parametrize(
    "text",
    ["", "known", "known 1 2", "known x 2 nodes", "known 5 99 nodes", "guess", "known 0 1 x"],
)
def test_what_an_earlier_daemon_has_not_said_soundly_is_not_known(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "run/thicket").mkdir(parents=True)
    (tmp_path / "run/thicket/clock").write_text(text)
    assert Kept(Paths(str(tmp_path))).known(50.0) == Knowledge()


async def test_servers_with_nts_are_not_asked_without_it(bench: Callable[..., Bench]) -> None:
    async with running(bench('[time]\nservers = ["nts:a.example", "b.example"]\n')) as made:
        await made.until(lambda: made.problem("no-nts"), "it says so")
        assert made.chrony.setup.servers == ("b.example",)


async def test_public_servers_are_asked_where_there_is_a_way_out(
    bench: Callable[..., Bench],
) -> None:
    async with running(bench()) as made:
        await made.until(lambda: made.state == "guess", "it looks")
        assert made.chrony.setup.servers == ()
        route = "eth0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        (made.folder / "proc/net/route").write_text("Iface Destination ...\n" + route)
        await made.until(lambda: len(made.chrony.setup.servers) == 3, "it asks")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("eth0 00000000 0202000A 0003 0 0 0 00000000", True),
        ("mesh0 00000000 0202000A 0003 0 0 0 00000000", False),
        ("eth0 0002000A 00000000 0001 0 0 0 00FFFFFF", False),
        ("eth0 00000000 0202000A 0203 0 0 0 00000000", False),
        ("eth0 00000000", False),
    ],
)
def test_default_routes_of_ipv4(tmp_path: Path, line: str, found: bool) -> None:
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/route").write_text(f"Iface ...\n{line}\n")
    assert uplink.has_uplink(str(tmp_path), "mesh0") is found


@pytest.mark.parametrize(
    ("name", "length", "flags", "found"),
    [("eth0", "00", "00000003", True), ("mesh0", "00", "00000003", False),
     ("lo", "00", "00200200", False), ("eth0", "40", "00000001", False)],
)  # fmt: skip
def test_default_routes_of_ipv6(
    tmp_path: Path, name: str, length: str, flags: str, found: bool
) -> None:
    zero = "0" * 32
    (tmp_path / "proc/net").mkdir(parents=True)
    line = f"{zero} {length} {zero} 00 {zero} 00000400 00000001 00000000 {flags} {name}\n"
    (tmp_path / "proc/net/ipv6_route").write_text(line)
    assert uplink.has_uplink(str(tmp_path), "mesh0") is found


# -- dates that the authority has signed


def signed(fleet: TestFleet, when: datetime, question: str = "") -> bytes:
    when = when.replace(microsecond=0)
    return sign_time(
        when, question, fleet.fleet.identifier, lambda d: openssl.sign(fleet.root_key, d)
    )


def test_a_signed_date_is_of_its_fleet_and_unchanged() -> None:
    fleet, when = one_fleet(), datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)
    packed = signed(fleet, when, "ab" * 16)
    found = statement.read(packed, fleet.fleet)
    assert (found.issued, found.question) == (when, "ab" * 16)
    assert found.number == int(when.timestamp())
    for wrong in (packed[:-1], packed[:-1] + b" ", packed.replace(b"2027", b"2028"), b""):
        with pytest.raises(RefusedError):
            statement.read(wrong, fleet.fleet)
    with pytest.raises(RefusedError):
        statement.read(packed, TestFleet("other").fleet)


async def test_a_signed_date_is_a_floor_and_an_answer_is_the_time(
    bench: Callable[..., Bench],
) -> None:
    fleet = one_fleet()
    made = bench(fleet=fleet)
    assert made.standing is not None
    device, _ = fleet.device()
    made.standing.use(await make_credentials(device, fleet.fleet, made.standing.clock()))
    async with running(made):
        later = datetime.now(UTC) + timedelta(days=3)
        came = await made.keeper.take(signed(fleet, later))
        assert not came["answers"]
        assert made.standing.floor == later.replace(microsecond=0)
        await made.until(lambda: made.set, "the clock is not below it")
        assert made.set[0] == int(later.timestamp())
        assert not made.keeper.known
        made.set.clear()
        with pytest.raises(RequestError) as found:
            await made.keeper.take(signed(fleet, later))
        assert found.value.code == "not-newer"
        # An answer to a question is the time, once.
        answer = signed(fleet, later + timedelta(hours=1), made.keeper.question())
        came = await made.keeper.take(answer)
        assert came["answers"]
        assert made.keeper.known
        with pytest.raises(RequestError):
            await made.keeper.take(answer)
        # A question too old, and a date at which the device's certificate has ended.
        question = made.keeper.question()
        made.keeper._signed._asked -= statement.ANSWER + 1
        with pytest.raises(RequestError) as found:
            await made.keeper.take(signed(fleet, later + timedelta(hours=2), question))
        assert found.value.code == "too-late"
        assert made.standing.credentials is not None
        end = end_of(made.standing.credentials.chain)
        with pytest.raises(RequestError) as found:
            await made.keeper.take(signed(fleet, end + timedelta(days=1)))
        assert found.value.code == "behind-end"

    # And it is kept.
    async with asyncio.timeout(10):
        while True:
            if Kept(made.paths).statement() == answer:
                break
            await asyncio.sleep(0.01)
    again = bench(fleet=fleet)
    async with running(again):
        await again.until(lambda: again.keeper.status()["signed"], "it is read again")
        assert again.standing is not None
        assert again.standing.floor == (later + timedelta(hours=1)).replace(microsecond=0)


# -- nodes


class Saying:
    """What a node says, and what it was made to do."""

    def __init__(self, address: IPv6Address) -> None:
        self.claim = Claim(Grade.GUESS, 0, address, 0, 0.0, time.time())
        self.changes = 0
        self.served = 0
        self.taken: list[bytes] = []
        self.statement = (0, b"")

    def says(self) -> Says:
        def changed() -> None:
            self.changes += 1

        async def serve() -> None:
            self.served += 1

        return Says(
            lambda: (self.claim, self.statement[0]), changed, serve,
            lambda: self.statement[1], lambda packed, _name: self.taken.append(packed),
        )  # fmt: skip


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


@in_private_network
async def test_nodes_tell_claims_keys_and_signed_dates(network: Network) -> None:
    addresses = [network.address(n) for n in (1, 2)]
    nodes = [
        Node("t", cookie="c", address=address, port=0, epmd_port=network.epmd_port, tick_time=3600)
        for address in addresses
    ]
    said = [Saying(address) for address in addresses]
    try:
        for node in nodes:
            await node.start()
        ends = [Neighbours(node, one.says()) for node, one in zip(nodes, said, strict=True)]
        await nodes[0].connect(nodes[1].name, 30)
        await until(lambda: all(node.connected(nodes[1 - n].name) for n, node in enumerate(nodes)))
        said[0].claim = said[0].claim._replace(grade=Grade.HELD, stamp=77)
        ends[0].tell_all()
        await until(lambda: addresses[0] in ends[1].heard)
        # Who is heard first is answered: it may not have listened before.
        await until(lambda: addresses[1] in ends[0].heard)
        assert ends[1].heard[addresses[0]].claim.stamp == 77
        assert said[1].changes
        # The same again is no news.
        before = said[1].changes
        ends[0].tell(nodes[1].name)
        ends[0].tell(nodes[1].name)
        key = await ends[1].key(addresses[0])
        assert key is not None
        assert said[1].changes == before, "a key is no news"
        # Who sets his clock is noticed.
        said[0].claim = said[0].claim._replace(clock=said[0].claim.clock + 100)
        ends[0].tell(nodes[1].name)
        await until(lambda: ends[1].moved == {addresses[0]})
        # A key is for the one that asks, and asking again makes no more of them.
        assert ends[0].clients == {addresses[1]: key}
        assert await ends[1].key(addresses[0]) == key
        assert await ends[1].key(IPv6Address("fd00::99")) is None
        assert said[0].served == 1
        # Who hears of a newer signed date asks for it.
        said[0].statement = (5, b"signed")
        ends[0].tell_all()
        await until(lambda: said[1].taken == [b"signed"])
        # What is no claim changes nothing, and too many messages are not looked at.
        for message in ((), 7, (Atom("claim"), 1), (Atom("statement"), bytes(5000))):
            await nodes[0].send((NAME, nodes[1].name), message)
        for number in range(100):
            wrong = said[0].claim._replace(stamp=number)
            await nodes[0].send((NAME, nodes[1].name), pack(wrong, 0))
        await nodes[0].ping(nodes[1].name, 30)
        assert ends[1].heard[addresses[0]].claim.stamp < 99
        # With the connection goes what was known of each other.
        nodes[0].disconnect(nodes[1].name)
        await until(lambda: not ends[0].clients and not ends[1].heard)
        assert await ends[1].key(addresses[0]) is None
        for end in ends:
            end.close()
    finally:
        for node in nodes:
            await node.stop()


async def test_a_node_follows_the_one_that_knows_and_a_liar_is_outvoted(
    bench: Callable[..., Bench],
) -> None:
    """A part without connections, whose neighbours the test plays."""
    made = bench()
    keeper, now = made.keeper, time.monotonic

    class Played:
        clients: dict[IPv6Address, PairKey] = {}  # noqa: RUF012
        heard: dict[IPv6Address, Heard] = {}  # noqa: RUF012
        moved: set[IPv6Address] = set()  # noqa: RUF012
        told = 0

        async def key(self, address: IPv6Address) -> PairKey:
            return of_client(b"s", address)

        def tell_all(self) -> None:
            self.told += 1

        def close(self) -> None:
            pass

    def says(address: IPv6Address, grade: Grade, stamp: int, ahead: float, origin: Any) -> None:
        claim = Claim(grade, stamp, origin, 0 if origin == address else 1, 0.0, time.time() + ahead)
        played.heard[address] = Heard(claim, now())

    played = Played()
    played.heard, played.clients = {}, {}
    keeper._neighbours = played  # type: ignore[assignment]
    async with running(made):
        # nobody knows, and the other's clock is later
        says(OTHER, Grade.GUESS, 0, 30.0, OTHER)
        made.chrony.offsets = {str(OTHER): 30.0}
        await made.until(lambda: made.chrony.steps == [30.0], "the later guess is taken")
        assert not keeper.known
        assert made.state == "guess"
        # it sets its clock: what was measured before would only confuse
        played.moved.add(OTHER)
        await made.until(lambda: made.chrony.anew == 1, "it is measured anew")
        assert not played.moved
        # it is told, and this node knows by it
        says(OTHER, Grade.HELD, 1000, 500.0, OTHER)
        made.chrony.offsets = {str(OTHER): 500.0}
        await made.until(lambda: made.state == "nodes", "it knows")
        assert made.chrony.steps == [30.0, 500.0]
        told = keeper.status()
        assert (told["source"], told["origin"]) == (str(OTHER), str(OTHER))
        assert keeper._claim_now()[0][:4] == (Grade.HELD, 1000, OTHER, 1)
        # a third one says another time, and that it knows better
        says(OTHER, Grade.HELD, 1000, 0.0, OTHER)
        says(THIRD, Grade.NETWORK, 0, 90000.0, THIRD)
        made.chrony.offsets = {str(THIRD): 90000.0, str(OTHER): 0.0}
        await made.until(lambda: made.problem("refused"), "it is refused")
        assert str(THIRD) in made.problem("refused")
        assert "this node and others" in made.problem("refused")
        await made.until(lambda: made.state == "nodes", "it follows the first again")
        assert made.chrony.steps == [30.0, 500.0]
        assert THIRD in keeper._shunned


async def test_without_neighbours_nobody_is_followed_or_served(
    bench: Callable[..., Bench],
) -> None:
    async with running(bench("[time]\nneighbours = false\n")) as made:
        await made.until(lambda: made.state == "guess", "it looks")
        assert made.keeper._heard(time.monotonic()) == {}
        with pytest.raises(ThicketError):
            await made.keeper._serve()


def test_servers_in_the_configuration() -> None:
    good = '[time]\nservers = ["ntp.example.org", "nts:t.example", "192.0.2.7", "2001:db8::1"]\n'
    assert len(parse(good).time.servers) == 4
    for wrong in ("a b", "-x", "nts:", "fe80::1%eth0", "a\\nlocal", "x" * 300, "a/b"):
        with pytest.raises(ConfigError):
            parse(f'[time]\nservers = ["{wrong}"]\n')
