# SPDX-License-Identifier: Apache-2.0
"""This node's part in the updates of its fleet, while it is in the cluster.

What is offered is about a subject: the image of a kind of device, or an application. Each subject
has a lane of its own, in which an offer travels and is rolled out, and all of them share the
connections and the air. A lane is opened by a signed offer and by nothing else. The lane of this
node's own image is always there; it keeps its files in ``/data/update``, the others in
``/data/update/others``.
"""

from __future__ import annotations

import asyncio
import re
import time
from ipaddress import IPv6Address
from logging import getLogger
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from thicket.base import threads
from thicket.base.errors import RequestError, ThicketError
from thicket.base.files import discard, entries, make_folder, read_kept, write_atomically
from thicket.base.paths import Paths
from thicket.device.boot_slots import Slots
from thicket.identity.address import ID_SIZE, SOURCES
from thicket.trust.signed_beacon import next_start
from thicket.update import journal, lane, terms
from thicket.update.carrier import Carrier, signed_in
from thicket.update.exchange import Exchange
from thicket.update.image_taker import ImageTaker
from thicket.update.journal import Journal
from thicket.update.lane import REPORTS, Lane, Shared, name_of
from thicket.update.offer import APP, BAD_OFFER, IMAGE, Offer, OfferError, check_offer, read_order
from thicket.update.progress import Members, Own, node_name, pack_members, unpack_members
from thicket.update.rebuild import running
from thicket.update.source import Source
from thicket.update.spread import Air
from thicket.update.taker import Taker

if TYPE_CHECKING:
    from thicket.distribution.node import Node as ClusterNode
    from thicket.trust.standing import Standing
    from thicket.update.service import Update

log = getLogger(__name__)

FOLDER = "/update"
OTHERS = "/update/others"
START = "/update/starts"
MEMBERS = "/update/members"
MOST = 32
"""Subjects that offers may be about at the same time: on all nodes those with the newest offers."""
TOO_MANY = "too-many"
#: Bytes of the largest of these files that is read.
MOST_BYTES = 4 << 20
HANGS = 60.0
#: Seconds until a lane that failed goes on.
AGAIN = 60.0

_FOLDER = re.compile(r"(image|app)-([a-z0-9_-]{1,64})")


class Host(lane.Host, Protocol):
    """What this part needs of its daemon."""

    @property
    def paths(self) -> Paths:
        """Where the node keeps its files."""

    @property
    def standing(self) -> Standing | None:
        """What the node is in its fleet; None without one."""

    @property
    def update(self) -> Update | None:
        """The part that knows the slots; None until it has begun."""

    def kernel(self) -> str:
        """Return the last words of a kernel that failed in the run before; empty if none did."""

    def nodes(self) -> list[dict[str, Any]]:
        """Return the other nodes of the cluster: ``name`` and ``state``."""

    def healthy(self) -> bool:
        """Whether everything works that worked before."""

    def application(self, name: str, me: str, folder: str) -> Taker:
        """Return what takes the updates of an application.

        :param me: this node's name in records.
        :param folder: where it may put files.
        """


class Files(NamedTuple):
    """What does not change while the node runs, and what was kept over the restart.

    :ivar own: the subject of this node's image.
    :ivar start: number of this start.
    :ivar others: subjects of the other lanes.
    """

    own: str
    start: int
    members: dict[str, float]
    journal: Journal
    others: list[str]


class FleetUpdate:
    """The part itself; made anew each time that the node enters the cluster.

    :param me: this node's name in records.
    :ivar lanes: by the subjects of their offers.
    """

    def __init__(
        self, host: Host, standing: Standing, files: Files, me: str, node: ClusterNode
    ) -> None:
        self.lanes: dict[str, Lane] = {}
        self.exchange = Exchange(node, host, self._take_offer)
        self._host = host
        self._me = me
        self._files = files
        self._running: dict[str, asyncio.Task[None]] = {}
        self._opening = asyncio.Lock()
        self._offering: tuple[str, asyncio.Task[Lane]] | None = None
        self._shared = Shared(
            files.own,
            host,
            standing,
            self.exchange,
            Members(files.members, time.monotonic()),
            self._hear,
            Air(host.settings.update.air_share / 100),
            threads.InTurn("fleet-update"),
            asyncio.Lock(),
        )

    async def begin(self) -> None:
        """Open the lanes that were open before the restart; :meth:`run` is to follow."""
        await self._open(self._files.own, self._files.journal)
        for subject in self._files.others:
            try:
                await self._open(subject)
            except ThicketError as error:
                log.warning("updates of %s rest: %s", name_of(subject), error)

    async def end(self) -> None:
        """End all lanes."""
        for task in self._running.values():
            task.cancel()
        if self._running:
            await asyncio.wait(self._running.values())

    async def run(self) -> None:
        """Take part until cancelled."""
        source = Source(self._carriers, self.take, lambda: self._host.settings.update.source)
        beside = {asyncio.create_task(self.exchange.run()), asyncio.create_task(source.run())}
        try:
            while True:
                done, _ = await asyncio.wait(
                    beside, timeout=lane.KEEP, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()  # it never ends by itself
                await self._keep_members()
        finally:
            for task in beside:
                task.cancel()
            await self.end()
            await self._keep_members()

    @property
    def own(self) -> Lane:
        """The lane of this node's image."""
        return self.lanes[self._files.own]

    def _carriers(self) -> list[Carrier]:
        return [one.carrier for one in self.lanes.values()]

    # -- lanes

    async def _open_for(self, offer: Offer) -> Lane:
        """Return the lane of an offer; it is made where there is none.

        :raises OfferError: there are as many already, with newer offers.
        """
        async with self._opening:
            subject = offer.bundle.subject
            found = self.lanes.get(subject)
            if found is not None:
                return found
            if len(self.lanes) >= MOST:
                others = [one for one in self.lanes.values() if one is not self.own]
                oldest = min(others, key=lambda one: one.carrier.have().number)
                if oldest.carrier.have().number >= offer.number:
                    raise OfferError(
                        TOO_MANY, f"there are newer offers about {MOST} images and applications"
                    )
                await self._close(oldest)
            return await self._open(subject)

    async def _close(self, one: Lane) -> None:
        """Forget a subject; what was installed stays."""
        log.warning("offers about %s are forgotten, as there are too many", name_of(one.subject))
        del self.lanes[one.subject], self.exchange.followers[one.subject]
        task = self._running.pop(one.subject)
        task.cancel()
        await asyncio.wait({task})
        folder = self._folder(one.subject)
        await self._shared.disk.do(lambda: discard(folder), HANGS)

    def _folder(self, subject: str) -> str:
        own = subject == self._files.own
        return self._host.paths.data + (FOLDER if own else f"{OTHERS}/{subject.replace('/', '-')}")

    async def _open(self, subject: str, went_on: Journal | None = None) -> Lane:
        """Make the lane of a subject.

        :param went_on: its journal; without it that on the card holds.
        """
        folder = self._folder(subject)

        def work() -> tuple[bytes, Journal]:
            make_folder(folder, 0o700)
            # An image for other devices is never begun here, whatever the card says.
            begun = journal.load(folder) if subject.startswith(APP) else Journal()
            return _read(folder + REPORTS), begun

        try:
            reports, written = await self._shared.disk.do(work, HANGS)
        except OSError as error:  # a TimeoutError is one as well
            words = error.strerror or "the card does not answer"
            raise RequestError("not-kept", f"/data does not take it: {words}") from None
        own = Own(self._me, self._files.start)
        before = lane.Kept(own, reports, written if went_on is None else went_on)
        made = Lane(subject, folder, self._shared, self._taker(subject, folder), before)
        self.lanes[subject] = made
        self._running[subject] = asyncio.create_task(_supervised(made))
        return made

    def _taker(self, subject: str, folder: str) -> Taker:
        if subject.startswith(APP):
            return self._host.application(name_of(subject), self._me, folder)
        return ImageTaker(self._host, self._me, folder, self._shared.disk)

    def check(self, packed: bytes) -> Offer:
        """Return a signed offer that counts here, whatever it is about.

        :raises ThicketError: it does not.
        """
        standing = self._shared.standing
        return check_offer(packed, standing.fleet, revoked=standing.lists.names)

    async def take(self, packed: bytes, who: str) -> bool:
        """Take a signed offer; whether it was news.

        :raises ThicketError: it does not count, or cannot be kept.
        """
        opened = await self._open_for(self.check(packed))
        return await opened.carrier.take_offer(packed, who)

    async def _take_offer(self, subject: str, packed: bytes, who: str) -> bool:
        if subject in self.lanes:
            return await self.lanes[subject].carrier.take_offer(packed, who)
        offer = self.check(packed)
        if offer.bundle.subject != subject:
            raise OfferError(BAD_OFFER, f"an offer of {offer.bundle.words} where none belongs")
        try:
            return await self.take(packed, who)
        except OfferError as error:
            if error.code != TOO_MANY:
                raise
            return False  # the sender will forget it as well

    # -- requests of people

    async def offer(self, folder: str, patience: float) -> Lane | None:
        """Offer the fleet what is in a folder; return the lane when that is done.

        :param patience: seconds to wait for it; it goes on behind that, and whoever asks again
            with the same folder waits for the same work.
        :raises ThicketError: it cannot be offered.
        """
        if self._offering is None or self._offering[0] != folder:
            self._offering = folder, asyncio.create_task(self._offer(folder))
        task = self._offering[1]
        await asyncio.wait({task}, timeout=patience)
        if not task.done():
            return None
        self._offering = None
        return task.result()

    async def _offer(self, folder: str) -> Lane:
        packed = await self._shared.disk.do(lambda: signed_in(folder), HANGS)
        opened = await self._open_for(self.check(packed))
        await opened.carrier.offer_folder(folder)
        opened.wake()
        return opened

    def give(self, word: str, application: str = "") -> Lane:
        """Give an order about the newest offer as this member, and hand it on.

        :param application: which one it is about; empty for this node's image.
        :raises ThicketError: there is no offer, or this node may give no orders.
        """
        found = self.lanes.get(APP + application) if application else self.own
        if found is None:
            raise RequestError("no-offer", self._no_offer_of(application))
        found.give(word)
        return found

    def _no_offer_of(self, application: str) -> str:
        subjects = [one.subject for one in self._others()]
        names = [name_of(subject) for subject in subjects if subject.startswith(APP)]
        there = f"offered are {', '.join(names)}" if names else "no application is offered"
        return f"there is no offer of an application {application[:40]!r}: {there}"

    def order(self, packed: bytes) -> list[Lane]:
        """Take a signed order about one offer, or about all that are in force, and hand it on.

        :returns: those that it is about.
        :raises ThicketError: it is none, or does not count.
        """
        about = read_order(packed)[0].offer
        lanes = [one for one in self.lanes.values() if one.carrier.identifier == about]
        refused: list[ThicketError] = []
        taken: list[Lane] = []
        for one in lanes or list(self.lanes.values()):
            try:
                one.order(packed)
                taken.append(one)
            except ThicketError as error:
                refused.append(error)
        if not taken:
            raise refused[0]
        return [one for one in taken if one is self.own or one.carrier.newest is not None]

    async def followed(self, lanes: list[Lane], patience: float) -> None:
        """Wait until all nodes that are connected follow the orders that were given.

        :param patience: seconds; who has not said it by then is told by :meth:`.Lane.pending`.
        """
        until = time.monotonic() + patience
        for one in lanes:
            await one.followed(until)

    def status(self) -> dict[str, Any]:
        """Return for programs what is offered; docs/node.md has the members."""
        return {**_status(self.own), "others": [_status(one) for one in self._others()]}

    def brief(self) -> list[dict[str, Any]]:
        """Return for the status document what this node does about each offer."""
        found = (one.brief() for one in (self.own, *self._others()))
        return [one for one in found if one is not None]

    def tables(self) -> list[dict[str, Any]]:
        """Return the rollouts for people, this node's image first."""
        return [self.own.table(), *(one.table() for one in self._others())]

    def _others(self) -> list[Lane]:
        others = (one for subject, one in sorted(self.lanes.items()) if one is not self.own)
        return [one for one in others if one.carrier.newest is not None]

    # -- members

    def _hear(self, now: float) -> None:
        names = {name for one in self._host.nodes() if (name := name_in(str(one["name"])))}
        self._shared.members.hear(names, now)

    async def _keep_members(self) -> None:
        path = self._host.paths.data + MEMBERS
        data = pack_members(self._shared.members.ages(time.monotonic()))
        try:
            await self._shared.disk.do(
                lambda: write_atomically(path, data, mode=0o600, own=True), HANGS
            )
        except (OSError, TimeoutError, ThicketError) as error:
            log.debug("who is in the fleet is not kept: %s", error)


async def _supervised(one: Lane) -> None:
    """Keep a lane running: where one fails, the others go on."""
    while True:
        try:
            await one.run()
        except Exception:
            log.exception("updates of %s rest for a while", name_of(one.subject))
        await asyncio.sleep(AGAIN)


async def make(host: Host, node: ClusterNode, me: str) -> FleetUpdate:
    """Return this node's part; what was kept over the restart is read and judged.

    :param me: this node's name in records.
    :raises ThicketError: the node is in no fleet, or its card does not answer.
    """
    standing, update = host.standing, host.update
    if standing is None or update is None:
        raise RequestError("starting", "the node is still starting")
    words, kernel = update.words_of_trial, host.kernel()

    def work() -> Files:
        slots = Slots(host.paths)
        found = running(host.paths)
        root = "" if found is None else found.hash
        start = journal.Start(slots.running, slots.read(), root, words, kernel)
        return _load(host.paths, standing, start)

    files = await threads.OneAtATime("fleet-update").do(work, HANGS)
    made = FleetUpdate(host, standing, files, me, node)
    try:
        await made.begin()
    except BaseException:
        await made.end()
        raise
    return made


def _load(paths: Paths, standing: Standing, start: journal.Start) -> Files:
    folder = paths.data + FOLDER
    make_folder(folder, 0o700)
    make_folder(paths.data + OTHERS, 0o700)
    went_on = journal.after_restart(journal.load(folder), start)
    journal.keep(folder, went_on)
    own = IMAGE + terms.compatible(paths)
    found = [
        f"{match[1]}/{match[2]}"
        for match in map(_FOLDER.fullmatch, sorted(entries(paths.data + OTHERS)))
        if match
    ]
    return Files(
        own,
        next_start(paths.data + START, standing.clock()),
        unpack_members(_read(paths.data + MEMBERS)),
        went_on,
        [subject for subject in found if subject != own][: MOST - 1],
    )


def _read(path: str) -> bytes:
    try:
        return read_kept(path, MOST_BYTES)
    except OSError:
        return b""


def _status(one: Lane) -> dict[str, Any]:
    return {"subject": one.subject, "spread": one.carrier.status(), "rollout": one.status()}


def name_in(node: str) -> str:
    """Return the name in records of the node ``cluster@address``; empty where it has none."""
    try:
        number = int(IPv6Address(node.partition("@")[2]))
    except ValueError:
        return ""
    source = number >> 8 * ID_SIZE & 0xFFFF
    identity = (number & (1 << 8 * ID_SIZE) - 1).to_bytes(ID_SIZE, "big")
    return node_name(SOURCES[source], identity) if source < len(SOURCES) else ""
