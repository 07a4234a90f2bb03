# SPDX-License-Identifier: Apache-2.0
"""thicket.cluster.membership: who is connected, by whom, when, and what happens when that fails."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv6Address
from itertools import pairwise
from time import monotonic

import pytest
from patience import PATIENCE

from thicket.base.errors import RequestError
from thicket.cluster import membership
from thicket.cluster.lost import LONGEST, MOST, Lost
from thicket.cluster.membership import Candidate, Link, Membership
from thicket.cluster.names import resolve

# Nothing here waits for the kernel or another process.
pytestmark = pytest.mark.virtual_time

LOW = IPv6Address("fd12:3456:789a:1::10")
OWN = IPv6Address("fd12:3456:789a:1::50")
HIGH = IPv6Address("fd12:3456:789a:1::90")


class RefusedError(Exception):
    code = "refused"


class FakeLink(Link):
    """A distribution whose connections succeed, fail or hang as told."""

    def __init__(self) -> None:
        self.name = f"thicket@{OWN}"
        self.calls: list[str] = []
        self.fails: set[str] = set()
        self.hangs: set[str] = set()
        self.at_once = 0
        self.most_at_once = 0
        self.membership: Membership | None = None

    async def probe(self, peer: str, seconds: float) -> bool:
        raise AssertionError("nothing is to be probed here")

    def give_up(self, peer: str) -> None:
        raise AssertionError("nobody is to be given up here")

    def share_suspicion(self, peer: str) -> None:
        raise AssertionError("nothing is to be shared here")

    async def connect(self, peer: str, timeout: float = 7.0) -> object:
        self.calls.append(peer)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if peer in self.hangs:
                await asyncio.sleep(3600)
            await asyncio.sleep(0.01)
            if peer in self.fails:
                raise RefusedError("nobody is listening there")
        finally:
            self.at_once -= 1
        assert self.membership is not None
        self.membership.node_up(peer)
        return None


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "PATIENCE", (0.3, 0.4))
    monkeypatch.setattr(membership, "PAUSES", (0.05, 0.1, 0.1))


@asynccontextmanager
async def running(link: FakeLink) -> AsyncIterator[Membership]:
    made = Membership("thicket", link, lambda _candidate: None)
    link.membership = made
    task = asyncio.create_task(made.run())
    try:
        yield made
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def add_probing(link: FakeLink, answers: set[str]) -> tuple[list[str], list[str]]:
    """Give ``link`` what probes need; the lists of what was probed and shared."""
    probed: list[str] = []
    shared: list[str] = []

    async def probe(peer: str, seconds: float) -> bool:
        probed.append(peer)
        await asyncio.sleep(0 if peer in answers else seconds)
        return peer in answers

    def give_up(peer: str) -> None:
        assert link.membership is not None
        link.membership.node_down(peer)

    def share(peer: str) -> None:
        shared.append(peer)

    link.probe = probe  # type: ignore[method-assign]
    link.give_up = give_up  # type: ignore[method-assign]
    link.share_suspicion = share  # type: ignore[method-assign]
    return probed, shared


async def test_a_node_under_suspicion_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "PROBE", 0.2)
    monkeypatch.setattr(membership, "DOUBT", 0.05)
    monkeypatch.setattr(membership, "PEACE", 600.0)
    monkeypatch.setattr(membership, "PATIENCE", (5, 5))
    link = FakeLink()
    probed, shared = add_probing(link, set(names(LOW)))
    async with running(link) as made:
        for address in (LOW, HIGH):
            made.node_up(f"thicket@{address}")
        made.suspect(LOW)
        made.suspect(LOW)
        await until(lambda: probed == names(LOW), "one probe")
        await asyncio.sleep(0.1)
        assert shared == []
        assert made.is_up(LOW)
        made.suspect()  # of all; LOW has its peace
        await until(lambda: probed == names(LOW, HIGH), "the other one")
        await until(lambda: shared == names(HIGH), "the others are told")
        await until(lambda: not made.is_up(HIGH), "it is given up")
        made.suspect(HIGH)  # is not connected
        monkeypatch.setattr(membership, "PEACE", 0.0)
        made.suspect(name=f"thicket@{LOW}")
        await until(lambda: probed == names(LOW, HIGH, LOW), "probed for another node")
        assert shared == names(HIGH), "what others fear is not passed on"


async def test_a_node_that_the_radio_hears_is_not_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(membership, "PROBE", 0.1)
    monkeypatch.setattr(membership, "DOUBT", 0.02)
    monkeypatch.setattr(membership, "PEACE", 0.0)
    monkeypatch.setattr(membership, "PATIENCE", (5, 5))
    link = FakeLink()
    probed, shared = add_probing(link, set())
    silence: list[float | None] = [0.01]

    async def radio_silence(address: IPv6Address) -> float | None:
        assert address == HIGH
        return silence[0]

    async with running(link) as made:
        made.radio_silence = radio_silence
        made.node_up(f"thicket@{HIGH}")
        made.suspect(HIGH)
        await asyncio.sleep(2 * membership.PROBE)
        assert probed == names(HIGH)
        assert shared == []
        assert made.is_up(HIGH)
        for silence[0] in (None, 3.0):
            made.node_up(f"thicket@{HIGH}")
            made.suspect(HIGH)
            await until(lambda: not made.is_up(HIGH), "given up")
            await asyncio.sleep(membership.PROBE)  # the probe is over
        assert shared == names(HIGH, HIGH)


async def test_only_neighbours_are_connected_where_that_is_wanted() -> None:
    link = FakeLink()
    async with running(link) as made:
        made.set_neighbours(set())
        made.heard(LOW, True)
        await asyncio.sleep(0.1)
        assert link.calls == []
        made.set_neighbours({LOW})
        await until(lambda: made.is_up(LOW), "a neighbour is connected")
        made.node_up(f"thicket@{HIGH}")  # for a call, or by the other side
        made.node_down(f"thicket@{HIGH}")
        made.set_neighbours(set())
        made.node_down(f"thicket@{LOW}")
        await asyncio.sleep(0.6)
        assert link.calls == names(LOW)


async def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.005)


def names(*addresses: IPv6Address) -> list[str]:
    return [f"thicket@{address}" for address in addresses]


async def test_the_higher_name_connects_at_once_the_lower_one_waits() -> None:
    link = FakeLink()
    async with running(link) as made:
        made.heard(HIGH, True)
        made.heard(LOW, True)
        await until(lambda: made.is_up(LOW), "the lower one is connected by us")
        assert link.calls == names(LOW), "the higher one has its time"
        await until(lambda: made.is_up(HIGH), "in the end we connect the higher one too")


async def test_nothing_is_done_when_the_other_side_connects_in_time() -> None:
    link = FakeLink()
    async with running(link) as made:
        made.heard(HIGH, True)
        made.node_up(f"thicket@{HIGH}")
        await asyncio.sleep(0.5)  # longer than the patience of this test
        assert link.calls == []


async def test_a_failure_is_told_and_tried_again() -> None:
    link = FakeLink()
    failures: list[tuple[str, str]] = []

    def failed(candidate: Candidate) -> None:
        assert candidate.error is not None
        failures.append(candidate.error)

    link.fails.add(f"thicket@{LOW}")
    async with running(link) as made:
        made.on_failure = failed
        made.heard(LOW, True)
        await until(lambda: len(link.calls) >= 3, "three attempts")
        assert failures[0] == ("refused", "nobody is listening there")
        assert made.candidates[LOW].backoff.failures >= 2
        link.fails.clear()
        await until(lambda: made.is_up(LOW), "connected once it listens")
        assert made.candidates[LOW].error is None


async def test_a_lost_connection_is_made_again() -> None:
    link = FakeLink()
    async with running(link) as made:
        made.heard(LOW, True)
        await until(lambda: made.is_up(LOW), "connected")
        made.node_down(f"thicket@{LOW}")
        assert not made.is_up(LOW)
        await until(lambda: made.is_up(LOW), "connected again")
        assert len(link.calls) == 2


async def test_a_forgotten_node_is_not_tried_any_more() -> None:
    link = FakeLink()
    link.hangs.add(f"thicket@{LOW}")
    async with running(link) as made:
        made.heard(LOW, True)
        await until(lambda: link.at_once, "an attempt is under way")
        made.gone(LOW)
        await until(lambda: not link.at_once, "it is ended")
        assert made.candidates == {}
        made.heard(HIGH, True)
        await until(lambda: made.is_up(HIGH), "its place is free again")


async def test_attempts_at_the_same_time_are_bounded() -> None:
    link = FakeLink()
    addresses = [IPv6Address(int(LOW) + i) for i in range(30)]
    async with running(link) as made:
        for address in addresses:
            made.heard(address, True)
        await until(lambda: all(made.is_up(a) for a in addresses), "all are connected")
    assert link.most_at_once == membership.PARALLEL
    assert len(link.calls) == len(addresses)


async def test_a_large_fleet_is_connected_at_a_pace_and_neighbours_first() -> None:
    link = FakeLink()
    addresses = [IPv6Address(int(LOW) + i) for i in range(12)]
    near = set(addresses[6:8])
    async with running(link) as made:
        made.at_once = 8
        began = monotonic()
        made.set_neighbours(None, first=near)
        for address in addresses:
            made.heard(address, True)
        await until(lambda: all(made.is_up(a) for a in near), "the neighbours are up")
        assert set(link.calls) == set(names(*near)), "the others come later"
        assert monotonic() - began < 1.0
        await until(lambda: len(link.calls) == 3, "the first of them")
        assert membership.PACE_FIRST <= monotonic() - began < membership.PACE_FIRST + 1.0
        first = monotonic()
        await until(lambda: all(map(made.is_up, addresses)), "all are")
        least, most = membership.PACE
        assert 9 * least <= monotonic() - first <= 9 * most + 1.0
        # One that is lost is not the tenth in a row.
        await asyncio.sleep(most)
        made.node_down(link.calls[-1])
        await until(lambda: all(map(made.is_up, addresses)), "all are again", 1.0)


async def test_a_small_fleet_and_neighbours_alone_wait_for_nobody() -> None:
    link = FakeLink()
    addresses = [IPv6Address(int(LOW) + i) for i in range(12)]
    async with running(link) as made:
        made.at_once = 8
        for address in addresses[:7]:
            made.heard(address, True)
        await until(lambda: all(map(made.is_up, addresses[:7])), "all are up", 1.0)
        made.set_neighbours(set(addresses))
        for address in addresses[7:]:
            made.heard(address, True)
        await until(lambda: all(map(made.is_up, addresses)), "all are up", 1.0)


async def test_beacons_that_change_nothing_wake_nobody() -> None:
    link = FakeLink()
    looks = 0
    async with running(link) as made:
        made.set_neighbours(set())
        made.heard(LOW, True)
        await asyncio.sleep(0.1)
        look = made._start_due

        def counted() -> float | None:
            nonlocal looks
            looks += 1
            return look()

        made._start_due = counted  # type: ignore[method-assign]
        for _ in range(20):
            made.heard(LOW, False)
            await asyncio.sleep(1.0)
        assert looks == 0
        made.set_neighbours({LOW})
        await until(lambda: made.is_up(LOW), "connected")


async def test_an_attempt_is_not_repeated_sooner_than_half_of_what_it_took() -> None:
    link = FakeLink()
    begun: list[float] = []

    async def connect(peer: str, timeout: float = 7.0) -> object:
        begun.append(monotonic())
        await asyncio.sleep(8.0)
        raise RefusedError("too slow")

    link.connect = connect  # type: ignore[method-assign]
    async with running(link) as made:
        made.heard(LOW, True)
        await until(lambda: len(begun) == 3, "three attempts")
    for one, next_one in pairwise(begun):
        assert 8.0 + 3.0 <= next_one - one <= 8.0 + 5.1


async def test_hanging_nodes_do_not_block_places_for_ever() -> None:
    """Cancelled before their first step, in the middle, or never: places are given back."""
    link = FakeLink()
    addresses = [IPv6Address(int(LOW) + i) for i in range(membership.PARALLEL)]
    link.hangs.update(names(*addresses))
    async with running(link) as made:
        for address in addresses:
            made.heard(address, True)
            made.gone(address)
        for address in addresses:
            made.heard(address, True)
        await until(lambda: link.at_once == membership.PARALLEL, "all places are taken")
        for address in addresses:
            made.gone(address)
        made.heard(HIGH, True)
        await until(lambda: made.is_up(HIGH), "and given back")


async def test_a_beacon_after_a_silence_makes_a_node_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "PAUSES", (600.0,))
    link = FakeLink()
    link.fails.add(f"thicket@{LOW}")
    async with running(link) as made:
        made.heard(LOW, True)
        await until(lambda: made.candidates[LOW].backoff.failures == 1, "the first attempt failed")
        link.fails.clear()
        made.heard(LOW, False)
        assert made.candidates[LOW].due > monotonic() + 60, "an ordinary beacon changes nothing"
        made.candidates[LOW].heard -= membership.SILENCE + 1
        made.heard(LOW, False)
        await until(lambda: made.is_up(LOW), "connected at once")


async def test_who_finds_us_first_is_known_from_then_on() -> None:
    link = FakeLink()
    async with running(link) as made:
        made.node_up(f"thicket@{LOW}")
        made.node_up("other@fd12:3456:789a:1::77")  # another cluster's name: not ours to keep
        made.node_up("thicket@nowhere")
        assert made.is_up(LOW)
        assert list(made.candidates) == [LOW]
        made.node_down(f"thicket@{LOW}")
        await until(lambda: link.calls == names(LOW), "we connect it when it is lost")


async def test_a_node_is_dialled_as_it_spells_itself_and_is_one_in_all_spellings() -> None:
    link = FakeLink()
    spelled = f"thicket@{HIGH.exploded}"
    probed, _ = add_probing(link, set())
    async with running(link) as made:
        made.heard(HIGH, True, HIGH.exploded)
        await until(lambda: made.is_up(HIGH), "connected")
        assert link.calls == [spelled]
        # It is connected under the name it told; a beacon that says otherwise changes nothing.
        made.heard(HIGH, False, str(HIGH))
        assert [c.name for c in made.candidates.values()] == [spelled]
        # Others may fear for it by another spelling; that is one probe.
        made.suspect(name=f"thicket@{HIGH}")
        made.suspect(name=spelled)
        made.suspect(address=HIGH)
        await until(lambda: not made.is_up(HIGH), "given up")
        assert probed == [spelled]
        made.node_up(f"thicket@{HIGH}")
        assert [(c.name, c.up) for c in made.candidates.values()] == [(f"thicket@{HIGH}", True)]
        made.node_down(spelled)
        assert not made.is_up(HIGH)


class TestNames:
    """Which node a person means; a label never hides what a node is really called."""

    A, B = "thicket@fd12::1:6f44:e3c6:b802", "thicket@fd12::2:0:cafe"

    def test_what_everybody_can_type(self) -> None:
        labels = {self.B: "North Mast"}
        for text in ("b802", "B802", "n-6f44e3c6b802", "02", "N-6F44E3C6B802"):
            assert resolve(text, {self.A}, labels) == self.A
        for text in ("north mast", "NORTH MAST", " North Mast ", "cafe", "n-00020000cafe"):
            assert resolve(text, {self.A}, labels) == self.B

    def test_a_label_that_looks_like_a_host_name_hides_none(self) -> None:
        labels = {self.B: "n-6f44e3c6b802"}  # which `thicket ca` refuses
        assert resolve("n-6f44e3c6b802", {self.A}, labels) == self.A

    def test_what_may_be_two_nodes_is_none(self) -> None:
        for text, labels in (("b802", {self.B: "B802"}), ("x", {self.A: "x", self.B: "X"})):
            with pytest.raises(RequestError, match="may be") as error:
                resolve(text, {self.A}, labels)
            assert error.value.code == "ambiguous"
        assert resolve("cafe", {self.A}, {self.B: "Cafe"}) == self.B, "both ways lead to one"

    @pytest.mark.parametrize("text", ["", "n-", "nobody", "mast", "  "])
    def test_who_is_not_known_is_named_with_those_who_are(self, text: str) -> None:
        with pytest.raises(RequestError, match=r"known are: .*cafe \(mast 1\)") as error:
            resolve(text, {self.A}, {self.B: "mast 1"})
        assert error.value.code == "unknown-node"
        with pytest.raises(RequestError, match="known are: none"):
            resolve(text, set(), {})

    def test_devices_without_a_label_are_no_answer_to_nothing(self) -> None:
        with pytest.raises(RequestError):
            resolve("", {self.A}, {self.B: ""})


class TestLost:
    def test_the_last_sign_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [1000.0]
        monkeypatch.setattr("thicket.cluster.lost.boottime", lambda: now[0])
        lost = Lost()
        assert (lost.age("n@fd12::1"), lost.all()) == (None, {})
        lost.note("n@fd12::1", 300.0)
        lost.note("n@fd12:0::1", 10.0)
        lost.note("n@fd12::1", 900.0)
        now[0] += 5
        assert lost.age("n@fd12::0:1") == 15.0
        assert list(lost.all().values()) == [15.0]
        lost.back("n@fd12::0:1")
        assert lost.all() == {}

    def test_it_forgets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [1000.0]
        monkeypatch.setattr("thicket.cluster.lost.boottime", lambda: now[0])
        lost = Lost()
        for number in range(MOST + 9):
            lost.note(f"n@fd12::{number + 1:x}")
        assert len(lost.all()) == MOST
        assert lost.age("n@fd12::9") is None
        now[0] += LONGEST + 1
        assert lost.all() == {}
