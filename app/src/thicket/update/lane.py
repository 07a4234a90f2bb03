# SPDX-License-Identifier: Apache-2.0
"""This node's part in the rollout of what is offered about one subject.

What is decided is in ``steps`` and ``rollout``, what travels in ``exchange`` and ``reports``, what
happens to the node in a taker. Here the one is handed to the other: facts are gathered, a step is
asked for, its journal is kept, and then its action is done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from logging import getLogger
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from thicket.base import threads
from thicket.base.errors import RequestError, ThicketError
from thicket.base.files import write_atomically
from thicket.base.pace import wait
from thicket.base.units import Meter
from thicket.update import journal, show, store
from thicket.update.carrier import Carrier
from thicket.update.exchange import Exchange, Follower
from thicket.update.journal import MOST_TRIES, Journal, Phase
from thicket.update.mine import Here, mine
from thicket.update.offer import BAD_OFFER, Offer, OfferError, Order, Patch, check_offer
from thicket.update.progress import Members, Own, Work
from thicket.update.reports import Reports
from thicket.update.rollout import Facts, pending
from thicket.update.steps import (
    Action,
    CallOff,
    Fetch,
    GoBack,
    Install,
    Nothing,
    Now,
    Restart,
    Rollout,
)
from thicket.update.store import Store
from thicket.update.taker import SPOILT, Look, Taker

if TYPE_CHECKING:
    from thicket.base.problems import Problems
    from thicket.config.schema import Settings
    from thicket.trust.standing import Standing
    from thicket.update.spread import Air, Way

log = getLogger(__name__)

#: Seconds between two steps while an update is under way, and while nothing is to be done. A step
#: reads the card.
STEP, IDLE = 3.0, 60.0
#: Seconds between two times that what is known of the others is kept.
KEEP = 600.0
#: Seconds in which the others hear that this node restarts.
GRACE = 2.0
HANGS = 60.0
#: Seconds until what cannot be installed now is tried again, or made once more of a patch, and
#: codes of errors that say so.
AGAIN = 60.0
LATER = frozenset(("no-room", "no-space", "no-memory", "no-data", "busy", "starting", "trial"))

REPORTS = "/reports"


class Host(Protocol):
    """What a lane needs of its daemon."""

    @property
    def settings(self) -> Settings:
        """The settings in force."""

    @property
    def problems(self) -> Problems:
        """The node's problems."""

    def ways(self) -> Mapping[str, Way]:
        """Return the ways to the connected nodes, by their names."""

    async def look_for_ways(self) -> None:
        """Ask the kernel for the ways of now, if it was not asked just before."""


class Shared(NamedTuple):
    """What all lanes of a node have in common.

    :ivar own: the subject of this node's own image.
    :ivar members: who was heard of in the cluster.
    :ivar hear: hears who is in the cluster now.
    :ivar air: what this node may take of the air.
    :ivar disk: does what waits for the card.
    :ivar recalling: held by the lane that takes in what it has kept.
    """

    own: str
    host: Host
    standing: Standing
    exchange: Exchange
    members: Members
    hear: Callable[[float], None]
    air: Air
    disk: threads.InTurn
    recalling: asyncio.Lock


class Kept(NamedTuple):
    """What was kept over the restart.

    :ivar own: makes the records of this node.
    """

    own: Own
    reports: bytes
    journal: Journal


class Again:
    """What is tried again by itself, and when.

    :ivar words: why it was not possible.
    """

    def __init__(self) -> None:
        self.words = ""
        self._until = 0.0
        self._hand_at = 0.0

    def hinder(self, words: str, now: float) -> None:
        """What is to be installed cannot be now."""
        self.words, self._until = words, now + AGAIN

    def hindered(self, now: float) -> str:
        """Return why it is not to be installed now; empty if it may."""
        return self.words if now < self._until else ""

    def may_hand(self, now: float) -> bool:
        """Whether it is time to make the bundle once more; not again before long."""
        if now < self._hand_at:
            return False
        self._hand_at = now + AGAIN
        return True


class Lane:
    """The part itself. It is what its ``carrier`` needs of its daemon, and what understands the
    records of ``exchange``.

    :param folder: where it keeps what is to outlive a restart.
    :ivar subject: of its offers, see :class:`.offer.Target`.
    :ivar reports: what all nodes tell of themselves, and orders.
    """

    def __init__(
        self, subject: str, folder: str, shared: Shared, taker: Taker, before: Kept
    ) -> None:
        now = time.monotonic()
        host, standing = shared.host, shared.standing
        self.subject = subject
        self._folder = folder
        self._shared = shared
        self._taker = taker
        self.reports = Reports(standing.fleet, standing.rules, lambda: host.settings.update.control)
        self._recalled = before.reports
        self.rollout = Rollout(before.own, before.journal)
        self.carrier = Carrier(
            self,
            Store(folder + store.FOLDER),
            shared.exchange.wire(subject),
            shared.air,
            "update" if subject == shared.own else f"update of {name_of(subject)}",
        )
        shared.exchange.followers[subject] = Follower(self.carrier)
        self._wake = asyncio.Event()
        self._action: Action = Nothing("")
        self._work: asyncio.Task[None] | None = None
        self._seen: Now | None = None
        self._again = Again()
        self._meter = Meter()
        self._kept_at = now

    async def run(self) -> None:
        """Take part until cancelled."""
        await self._recall()
        await self.carrier.load()  # what was made for an offer is not removed before that is known
        carrying = asyncio.create_task(self.carrier.run())
        try:
            while not carrying.done():
                await self._step()
                await wait(self._wake, self._pause)
                self._wake.clear()
            carrying.result()
        finally:
            carrying.cancel()
            if self._work is not None:
                self._work.cancel()
            await self.keep_what_is_known()

    async def _recall(self) -> None:
        """Take in what was known before the restart, while others go on; then compare it with what
        the neighbours know."""
        data, self._recalled, shared = self._recalled, b"", self._shared
        async with shared.recalling:
            for _ in self.reports.recall(data, time.monotonic()):
                await asyncio.sleep(0)
        shared.exchange.followers[self.subject] = Follower(self.carrier, self)
        shared.exchange.greet_all(self.subject)

    def wake(self) -> None:
        """Something is new: take a step."""
        self._wake.set()

    # -- for the carrier, see carrier.Host

    @property
    def problems(self) -> Problems:
        """The node's problems."""
        return self._shared.host.problems

    def check(self, packed: bytes) -> Offer:
        """Return a signed offer that counts here.

        :raises ThicketError: it does not.
        """
        standing = self._shared.standing
        offer = check_offer(packed, standing.fleet, revoked=standing.lists.names)
        if offer.bundle.subject != self.subject:
            raise OfferError(BAD_OFFER, f"an offer of {offer.bundle.words} where none belongs")
        return offer

    def base(self) -> str:
        """What patches for this node are a change of; empty if that is not known."""
        return self._taker.base()

    def wants(self, offer: Offer) -> bool:
        """Whether this node is to get a patch of an offer now."""
        if self._seen is None or self._seen.offer is not offer:
            self._wake.set()  # it is new
        return isinstance(self._action, Fetch) and self._action.offer == offer

    def share(self) -> float:
        """The share of the air, from 0 to 1."""
        return self._shared.host.settings.update.air_share / 100

    def ways(self) -> Mapping[str, Way]:
        """The ways to the connected nodes, by their names."""
        return self._shared.host.ways()

    async def take(self, path: str, offer: Offer, patch: Patch) -> None:
        """Make the bundle of a patch that is complete, and judge it as an installation would.

        :raises ThicketError: it cannot be made or is not for this node.
        """
        try:
            await self._taker.take(path, offer, patch, self._make)
        finally:
            self.rollout.making = None
            self._wake.set()

    def _make(self, work: Work) -> None:
        """The bundle is made so far."""
        if self.rollout.making is None:
            self._wake.set()  # the others are told at once
        self.rollout.making = work

    # -- for the exchange, see exchange.Recorder

    def greeting(self) -> list[bytes]:
        """Return what a peer gets at the beginning, and again and again."""
        return self.reports.greeting()

    def take_records(self, records: Sequence[bytes], peer: str) -> tuple[list[bytes], list[bytes]]:
        """Take records of a peer; return those that go to all others, and those for the peer."""
        taken = self.reports.take(records, peer, time.monotonic())
        if taken.changed:
            self._wake.set()
        return taken.onward, taken.answer

    def gone(self, peer: str) -> None:
        """A peer is not connected any more."""
        self.reports.disconnected(peer)

    # -- requests of people

    def give(self, word: str) -> None:
        """Give an order about the newest offer as this member, and hand it on.

        :raises ThicketError: there is no offer, or this node may give no orders.
        """
        standing = self._shared.standing
        newest, credentials = self.carrier.newest, standing.credentials
        if newest is None:
            raise RequestError(
                "no-offer",
                f"nothing is offered that an order to {word} could be about: `thicket update "
                "offer` offers something, and an order about an application needs its name",
            )
        if credentials is None:
            raise RequestError(
                "not-enrolled",
                "this node cannot sign an order: it has no certificate of the fleet (`thicket ca "
                "enroll` gives it one)",
            )
        found = standing.clock().now
        last = self._order(newest.offer)
        number = max(
            newest.offer.number if found is None else int(found.timestamp()),
            0 if last is None else last.number + 1,
        )
        order = Order(standing.fleet.identifier, number, newest.identifier, word)
        self._publish(self.reports.give(order, credentials, time.monotonic()))
        self._wake.set()

    def order(self, packed: bytes) -> None:
        """Take a signed order, and hand it on.

        :raises ThicketError: it is none, or does not count.
        """
        taken = self.reports.take_order(packed, time.monotonic())
        self._publish(taken.onward)
        self._wake.set()

    def status(self) -> dict[str, Any]:
        """Return the rollout for programs, see :func:`thicket.update.show.document`."""
        facts = self._facts()
        if facts is None:
            return show.NOTHING
        return show.document(facts, mine(facts, self._here(facts.now)))

    def table(self) -> dict[str, Any]:
        """Return the rollout for people, see :func:`thicket.update.show.table`."""
        return show.table(self._facts())

    def brief(self) -> dict[str, Any] | None:
        """Return what this node last told of itself, for the status document; None without it."""
        newest, record = self.carrier.newest, self.rollout.own.newest
        if newest is None or record is None or record.offer != newest.identifier:
            return None
        return {
            "subject": self.subject,
            "version": newest.offer.bundle.version,
            "state": record.called,
            "percent": show.percent_of(record),
            "why": record.why,
        }

    def pending(self) -> list[str]:
        """Return the nodes that are connected and do not follow the newest order yet."""
        facts = self._facts()
        return [] if facts is None else pending(facts)

    async def followed(self, until: float) -> None:
        """Wait until all nodes that are connected follow the newest order.

        :param until: when to give up, by the clock that only goes forward.
        """
        while self.pending() and (left := until - time.monotonic()) > 0:
            self.reports.news.clear()
            await wait(self.reports.news, left)

    # -- a step

    async def _step(self) -> None:
        now, shared = time.monotonic(), self._shared
        shared.hear(now)
        if self.carrier.busy:
            await shared.host.look_for_ways()
        newest = self.carrier.newest
        if newest is not None and newest.signer in shared.standing.lists.names:
            log.warning("the offer does not count any more: %s is revoked", newest.signer)
            await self.carrier.drop()
            newest = None
        offer = newest.offer if newest is not None else None
        before, busy, handed = self.rollout.journal, self._busy, self.carrier.handed
        look = await self._taker.look(offer, before)
        # What was seen while something was under way is old when that has ended meanwhile.
        if look.journal is not None and not busy and self.rollout.journal is before:
            await self._keep(self.rollout.follow(look.journal))
        facts = self._seen = self._gather(now, offer, look)
        step = self.rollout.step(now, facts)
        if step.journal is not None and not await self._keep(step.journal):
            return
        credentials = shared.standing.credentials
        if step.tell is not None and credentials is not None:
            self._publish(self.reports.publish(step.tell, credentials, now))
        self._act(step.action)
        lost = handed and not look.ready and self.carrier.newest is newest
        self._measure(now)
        if lost and isinstance(step.action, Fetch) and self._again.may_hand(now):
            self.carrier.hand_again()
        if now - self._kept_at > KEEP:
            await self.keep_what_is_known()

    @property
    def _busy(self) -> bool:
        return self._work is not None and not self._work.done()

    @property
    def _pause(self) -> float:
        """Seconds until the next step, if nothing happens."""
        seen = self._seen
        if seen is None or seen.offer is None:
            return IDLE
        settled = self.rollout.journal.well and isinstance(self._action, Nothing)
        return IDLE if settled else STEP

    def _act(self, action: Action) -> None:
        before, self._action = self._action, action
        if isinstance(action, Fetch) and action != before:
            self.carrier.look_again()
        if self._busy:
            return
        match action:
            case Install(offer):
                self._begin(self._install(offer))
            case Restart():
                self._begin(self._restart())
            case GoBack():
                self._begin(self._go_back())
            case CallOff():
                self._begin(self._call_off())
            case Fetch() | Nothing():
                pass

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = asyncio.create_task(work)
        self._work.add_done_callback(lambda _: self._wake.set())

    async def _install(self, offer: Offer) -> None:
        rollout = self.rollout
        try:
            after = await self._taker.install(offer, rollout.journal, rollout.progress)
        except (ThicketError, OSError, TimeoutError) as error:
            log.warning("%s is not installed: %s", offer.bundle.words, error)
            words = str(error) or "the card does not answer"
            code = error.code if isinstance(error, ThicketError) else ""
            tries = rollout.journal.tries + 1
            if code == SPOILT and tries < MOST_TRIES:
                again = rollout.journal.enter(Phase.NONE)._replace(tries=tries)
                await self._keep(rollout.follow(again))
            elif code in LATER:
                self._again.hinder(words, time.monotonic())
                await self._keep(rollout.follow(rollout.journal.enter(Phase.NONE)))
            else:
                await self._keep(rollout.not_installed(words, self._order(offer)))
        else:
            await self._keep(rollout.follow(after))

    async def _restart(self) -> None:
        """Restart in order, once the others have heard of it."""
        log.warning("restarting for the update")
        await asyncio.sleep(GRACE)
        await self.keep_what_is_known()
        await self._taker.restart()

    async def _go_back(self) -> None:
        try:
            after = await self._taker.go_back(self.rollout.journal)
        except ThicketError as error:
            if error.code in LATER:
                log.warning("it does not go back yet: %s", error)
                return
            await self._keep(self.rollout.not_left(str(error)))
        else:
            if after is None:
                await self._restart()
            else:
                await self._keep(self.rollout.follow(after))

    async def _call_off(self) -> None:
        log.warning(
            "version %s is not started: nobody offers it any more", self.rollout.journal.version
        )
        try:
            after = await self._taker.call_off(self.rollout.journal)
        except (ThicketError, OSError, TimeoutError) as error:
            log.warning("it cannot be called off: %s", error)  # the next step tries it again
        else:
            await self._keep(self.rollout.follow(after))

    # -- facts

    def _gather(self, now: float, offer: Offer | None, look: Look) -> Now:
        """Return the facts of a step."""
        shared, carrier = self._shared, self.carrier
        found = shared.standing.clock().now
        hindered = self._again.hindered(now)
        return Now(
            look.node,
            look.slot,
            offer,
            self._order(offer) if offer is not None else None,
            self.reports.records(),
            shared.members.ages(now),
            None if found is None else found.hour * 60 + found.minute,
            carrier.fetched,
            look.ready and not hindered,
            hindered or carrier.trouble,
            self._taker.healthy(),
            0 if found is None else int(found.timestamp()),
            look.root,
            carrier.fault,
        )

    def _facts(self) -> Facts | None:
        """Return what people are shown."""
        seen = self._seen
        if seen is None or seen.offer is None:
            return None
        now = time.monotonic()
        return Facts(
            seen.offer,
            seen.node,
            self.reports.records(),
            self._shared.members.ages(now),
            now,
            now,
            seen.minute,
            seen.ready,
            self.rollout.rejection(seen.offer, self._order(seen.offer)),
            self._order(seen.offer),
        )

    @property
    def _working(self) -> Work | None:
        """What is made, checked or written now."""
        return self.rollout.making or self.rollout.installing

    def _measure(self, now: float) -> None:
        """Look how far it is, for the rate."""
        work = self._working
        if work is None:
            self._meter.add(now, self.carrier.here[0], self.carrier.identifier)
        elif work.measured:
            self._meter.add(now, work.done, work.stage)

    def _here(self, now: float) -> Here:
        """Return what only this node knows of its part."""
        self._measure(now)
        work, fetched = self._working, self.carrier.here
        total = work.total if work is not None and work.measured else fetched[1]
        return Here(
            self.rollout.own.newest,
            self.rollout.journal,
            fetched,
            work,
            self._meter.rate(now),
            self._meter.left(now, total),
            bool(self._again.hindered(now)),
            self._shared.host.settings.update.health_time,
        )

    def _order(self, offer: Offer) -> Order | None:
        return self.reports.order(offer.identifier, offer.number)

    def _publish(self, records: list[bytes]) -> None:
        self._shared.exchange.publish(self.subject, records)

    # -- what is kept

    async def _keep(self, new: Journal) -> bool:
        """Write the journal; False where that fails, so that nothing is begun."""
        try:
            await self._do(lambda: journal.keep(self._folder, new))
        except (OSError, TimeoutError, ThicketError) as error:
            log.warning("no update is begun, as /data cannot be written: %s", error)
            return False
        return True

    async def keep_what_is_known(self) -> None:
        """Keep what the others told, for the next start."""
        self._kept_at = time.monotonic()
        data, path = self.reports.pack(), self._folder + REPORTS
        try:
            await self._do(lambda: write_atomically(path, data, mode=0o600, own=True))
        except (OSError, TimeoutError, ThicketError) as error:
            log.debug("what the others told is not kept: %s", error)

    async def _do(self, work: Callable[[], threads.T]) -> threads.T:
        return await self._shared.disk.do(work, HANGS)


def name_of(subject: str) -> str:
    """Return the kind of device, or the application, that a subject is about."""
    return subject.partition("/")[2]
