# SPDX-License-Identifier: Apache-2.0
"""This node's part in the updates of its fleet, while it is in the cluster.

What is decided is in ``steps`` and ``rollout``, what travels in ``exchange`` and ``reports``, what
happens to the card in ``rebuild`` and ``install``. Here the one is handed to the other: facts are
gathered, a step is asked for, its journal is kept, and then its action is done.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from ipaddress import IPv6Address
from logging import getLogger
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from thicket.base import threads
from thicket.base.errors import RequestError, ThicketError
from thicket.base.files import entries, remove, write_atomically
from thicket.base.pace import wait
from thicket.base.paths import Paths
from thicket.device.boot_record import BootRecord, Slot
from thicket.device.boot_slots import Slots
from thicket.identity.address import ID_SIZE, SOURCES
from thicket.trust.signed_beacon import next_start
from thicket.update import image, install, journal, kept, show, store, terms
from thicket.update.carrier import Carrier
from thicket.update.exchange import Exchange
from thicket.update.journal import Journal, Phase
from thicket.update.offer import Offer, Order, Patch, check_offer
from thicket.update.progress import (
    Members,
    Own,
    node_name,
    pack_members,
    unpack_members,
)
from thicket.update.rebuild import rebuild, running
from thicket.update.reports import Reports
from thicket.update.rollout import Facts, Node
from thicket.update.source import Source
from thicket.update.steps import Action, Fetch, GoBack, Install, Nothing, Now, Restart, Rollout
from thicket.update.store import Store

if TYPE_CHECKING:
    from thicket.base.problems import Problems
    from thicket.config.schema import Settings
    from thicket.distribution.node import Node as ClusterNode
    from thicket.trust.standing import Standing
    from thicket.update.service import Update
    from thicket.update.spread import Way

log = getLogger(__name__)

#: Seconds between two steps while an update is under way, and while nothing is to be done. A step
#: reads the card.
STEP, IDLE = 3.0, 60.0
#: Seconds between two times that what is known of the others is kept.
KEEP = 600.0
#: Seconds in which the others hear that this node restarts.
GRACE = 2.0
HANGS = 60.0

FOLDER = "/update"
START = "/update/starts"
REPORTS = "/update/reports"
MEMBERS = "/update/members"
BUNDLE = "/update/bundle-{}.raucb"
#: Bytes of the largest of these files that is read.
MOST = 4 << 20


class Host(Protocol):
    """What this part needs of its daemon."""

    @property
    def paths(self) -> Paths:
        """Where the node keeps its files."""

    @property
    def settings(self) -> Settings:
        """The settings in force."""

    @property
    def standing(self) -> Standing | None:
        """What the node is in its fleet; None without one."""

    @property
    def problems(self) -> Problems:
        """The node's problems."""

    @property
    def update(self) -> Update | None:
        """The part that knows the slots; None until it has begun."""

    def kernel(self) -> str:
        """Return the last words of a kernel that failed in the run before; empty if none did."""

    def nodes(self) -> list[dict[str, Any]]:
        """Return the other nodes of the cluster: ``name`` and ``state``."""

    def ways(self) -> Mapping[str, Way]:
        """Return the ways to the connected nodes, by their names."""

    async def look_for_ways(self) -> None:
        """Ask the kernel for the ways of now, if it was not asked just before."""

    def healthy(self) -> bool:
        """Whether everything works that worked before."""


class Card(NamedTuple):
    """What a step looks at on the card.

    :ivar content: what the slot that runs was written with; None where that is not known.
    :ivar ready: whether the bundle that is offered is here.
    """

    record: BootRecord
    content: kept.Content | None
    ready: bool


class Files(NamedTuple):
    """What does not change while the node runs, and what was kept over the restart.

    :ivar compatible: the kind of device that this is.
    :ivar version: that of the image.
    """

    compatible: str
    version: str

    start: int
    reports: bytes
    members: dict[str, float]
    journal: Journal


class FleetUpdate:
    """The part itself; made anew each time that the node enters the cluster.

    It is what ``carrier`` needs of its daemon, and what understands the records of ``exchange``.

    :param me: this node's name in records.
    :ivar reports: what all nodes tell of themselves, and orders.
    """

    def __init__(
        self, host: Host, standing: Standing, files: Files, me: str, node: ClusterNode
    ) -> None:
        now = time.monotonic()
        self.reports = Reports(standing.fleet, standing.rules, lambda: host.settings.update.control)
        self.reports.unpack(files.reports, now)
        self.members = Members(files.members, now)
        self.rollout = Rollout(Own(me, files.start), files.journal)
        self._host = host
        self._standing = standing
        self.exchange = Exchange(node, self, Store(host.paths.data + store.FOLDER))
        self.exchange.recorder = self
        self._slots = Slots(host.paths)
        self._image = files
        self._wake = asyncio.Event()
        self._action: Action = Nothing("")
        self._work: asyncio.Task[None] | None = None
        self._offering: tuple[str, asyncio.Task[list[int]]] | None = None
        self._seen: Now | None = None
        self._threads = threads.InTurn("fleet-update")
        self._kept_at = now

    async def run(self) -> None:
        """Take part until cancelled."""
        source = Source(self.carrier, lambda: self._host.settings.update.source)
        carrying = asyncio.create_task(self.exchange.run())
        looking = asyncio.create_task(source.run())
        try:
            while not carrying.done():
                await self._step()
                await wait(self._wake, self._pause)
                self._wake.clear()
            carrying.result()
        finally:
            carrying.cancel()
            looking.cancel()
            if self._work is not None:
                self._work.cancel()
            await self._keep_what_is_known()

    @property
    def carrier(self) -> Carrier:
        """What keeps and carries the newest offer."""
        return self.exchange.carrier

    # -- for the carrier, see carrier.Host

    @property
    def problems(self) -> Problems:
        """The node's problems."""
        return self._host.problems

    def check(self, packed: bytes) -> Offer:
        """Return a signed offer that counts here.

        :raises ThicketError: it does not.
        """
        standing = self._standing
        return check_offer(packed, standing.fleet, revoked=standing.lists.names)

    def base(self) -> str:
        """The root hash of the running slot; empty if it is not known."""
        found = running(self._host.paths)
        return "" if found is None else found.hash

    def wants(self, offer: Offer) -> bool:
        """Whether this node is to get a patch of an offer now."""
        if self._seen is None or self._seen.offer is not offer:
            self._wake.set()  # it is new
        return isinstance(self._action, Fetch) and self._action.offer == offer

    def share(self) -> float:
        """The share of the air, from 0 to 1."""
        return self._host.settings.update.air_share / 100

    def ways(self) -> Mapping[str, Way]:
        """The ways to the connected nodes, by their names."""
        return self._host.ways()

    async def take(self, path: str, offer: Offer, patch: Patch) -> None:
        """Make the bundle of a patch that is complete, and judge it as an installation would.

        :raises ThicketError: it cannot be made or is not for this node.
        """
        target = self._bundle(offer)
        base = running(self._host.paths) if patch.base else None
        await rebuild(path, target, offer.bundle, base)
        try:
            await self._judge(target)
        except ThicketError:
            await self._do(lambda: remove(target))
            raise
        self._wake.set()

    async def _judge(self, path: str) -> None:
        update = self._host.update
        if update is None:
            raise RequestError("starting", "the node is still starting")
        found = await update.terms()
        await self._do(lambda: install.check(path, found, again=True))

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

    async def offer(self, folder: str, patience: float) -> bool:
        """Offer the fleet what is in a folder; return whether that is done.

        :param patience: seconds to wait for it; it goes on behind that, and whoever asks again
            with the same folder waits for the same work.
        :raises ThicketError: it cannot be offered.
        """
        if self._offering is None or self._offering[0] != folder:
            self._offering = folder, asyncio.create_task(self.carrier.offer_folder(folder))
        task = self._offering[1]
        await asyncio.wait({task}, timeout=patience)
        if not task.done():
            return False
        self._offering = None
        task.result()
        self._wake.set()
        return True

    def give(self, word: str) -> None:
        """Give an order about the newest offer as this member, and hand it on.

        :raises ThicketError: there is no offer, or this node may give no orders.
        """
        newest, credentials = self.carrier.newest, self._standing.credentials
        if newest is None or credentials is None:
            raise RequestError("no-offer", "there is no offer that an order could be about")
        fleet = self._standing.fleet.identifier
        found = self._standing.clock().now
        last = self._order(newest.offer)
        number = max(
            newest.offer.number if found is None else int(found.timestamp()),
            0 if last is None else last.number + 1,
        )
        order = Order(fleet, number, newest.identifier, word)
        self.exchange.publish(self.reports.give(order, credentials, time.monotonic()))
        self._wake.set()

    def order(self, packed: bytes) -> None:
        """Take a signed order, and hand it on.

        :raises ThicketError: it is none, or does not count.
        """
        taken = self.reports.take_order(packed, time.monotonic())
        self.exchange.publish(taken.onward)
        self._wake.set()

    def status(self) -> dict[str, Any]:
        """Return the rollout for programs, see :func:`thicket.update.show.document`."""
        facts = self._facts()
        if facts is None:
            return {"offer": None, "order": None, "stopped": None, "nodes": []}
        return show.document(facts)

    def table(self) -> dict[str, Any]:
        """Return the rollout for people: ``headline``, ``heads`` and ``rows``."""
        facts = self._facts()
        if facts is None:
            return {"headline": "there is no offer", "heads": show.HEADS, "rows": []}
        found = show.lines(facts)
        return {
            "headline": show.headline(facts, found),
            "heads": show.HEADS,
            "rows": show.rows(found),
        }

    # -- a step

    async def _step(self) -> None:
        now = time.monotonic()
        self._hear(now)
        if self.carrier.busy:
            await self._host.look_for_ways()
        newest = self.carrier.newest
        offer = newest.offer if newest is not None else None
        card = await self._do(lambda: self._look_at_card(offer))
        if self._was_kept(card.record):
            await self._keep(self.rollout.kept())
        facts = self._seen = self._gather(now, offer, card)
        step = self.rollout.step(now, facts)
        if step.journal is not None and not await self._keep(step.journal):
            return
        credentials = self._standing.credentials
        if step.tell is not None and credentials is not None:
            self.exchange.publish(self.reports.publish(step.tell, credentials, now))
        self._act(step.action)
        if now - self._kept_at > KEEP:
            await self._keep_what_is_known()

    def _was_kept(self, record: BootRecord) -> bool:
        """Whether the slot that was on trial is kept now."""
        going = self.rollout.journal
        return (
            going.phase in (Phase.TRIAL, Phase.LEAVING)
            and going.slot == self._slots.running.name
            and record.trial is Slot.NONE
        )

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
        if self._work is not None and not self._work.done():
            return
        match action:
            case Install(offer):
                self._begin(self._install(offer))
            case Restart():
                self._begin(self._restart())
            case GoBack():
                self._begin(self._go_back())
            case Fetch() | Nothing():
                pass

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = asyncio.create_task(work)
        self._work.add_done_callback(lambda _: self._wake.set())

    async def _install(self, offer: Offer) -> None:
        update = self._host.update
        if update is None:
            return
        installer = update.installer

        def follow() -> None:
            self.rollout.progress(installer.progress.percent * 10)

        update.followers.append(follow)
        try:
            await installer.install(self._bundle(offer), again=True, digest=offer.bundle.sha256)
        except (ThicketError, OSError, TimeoutError) as error:
            log.warning("version %s is not installed: %s", offer.bundle.version, error)
            words = str(error) or "the card does not answer"
            await self._keep(self.rollout.not_installed(words, self._order(offer)))
        else:
            await self._keep(self.rollout.installed())
        finally:
            update.followers.remove(follow)

    async def _restart(self) -> None:
        """Restart in order, once the others have heard of it."""
        log.warning("restarting for the update")
        await asyncio.sleep(GRACE)
        await self._keep_what_is_known()
        await reboot()

    async def _go_back(self) -> None:
        update = self._host.update
        if update is None:
            return
        try:
            await update.back()
        except ThicketError as error:
            await self._keep(self.rollout.not_left(str(error)))
        else:
            await self._restart()

    # -- facts

    def _look_at_card(self, offer: Offer | None) -> Card:
        """Look at the card; in a thread, so at nothing else."""
        memory = kept.load(self._host.paths)
        self._sweep(offer)
        return Card(
            self._slots.read(),
            memory.slots.get(self._slots.running),
            offer is not None and os.path.exists(self._bundle(offer)),
        )

    def _gather(self, now: float, offer: Offer | None, card: Card) -> Now:
        """Return the facts of a step."""
        host, carrier, content = self._host, self.carrier, card.content
        found = self._standing.clock().now
        return Now(
            Node(
                self.rollout.own.node,
                self._image.compatible,
                content.version if content is not None else self._image.version,
                content.file if content is not None else "",
                card.record.epoch,
            ),
            self._slots.running.name,
            offer,
            self._order(offer) if offer is not None else None,
            self.reports.records(),
            self.members.ages(now),
            None if found is None else found.hour * 60 + found.minute,
            carrier.fetched,
            card.ready,
            carrier.trouble,
            host.healthy(),
            0 if found is None else int(found.timestamp()),
        )

    def _sweep(self, offer: Offer | None) -> None:
        """Remove bundles that are not needed any more; patches stay, for the others."""
        going = self.rollout.journal
        wanted = ""
        if offer is not None and (going.phase, going.offer) != (Phase.DONE, offer.identifier):
            wanted = os.path.basename(self._bundle(offer))
        folder = self._host.paths.data + FOLDER
        begin, _, end = os.path.basename(BUNDLE).partition("{}")
        for name in entries(folder):
            if name.startswith(begin) and name.endswith(end) and name != wanted:
                remove(f"{folder}/{name}")

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
            self.members.ages(now),
            now,
            now,
            seen.minute,
            seen.ready,
            order=self._order(seen.offer),
        )

    def _order(self, offer: Offer) -> Order | None:
        return self.reports.order(offer.identifier, offer.number)

    def _hear(self, now: float) -> None:
        names = {name for one in self._host.nodes() if (name := name_of(str(one["name"])))}
        self.members.hear(names, now)

    def _bundle(self, offer: Offer) -> str:
        return self._host.paths.data + BUNDLE.format(offer.bundle.sha256)

    # -- what is kept

    async def _keep(self, new: Journal) -> bool:
        """Write the journal; False where that fails, so that nothing is begun."""
        try:
            await self._do(lambda: journal.keep(self._host.paths.data, new))
        except (OSError, TimeoutError, ThicketError) as error:
            log.warning("no update is begun, as /data cannot be written: %s", error)
            return False
        return True

    async def _keep_what_is_known(self) -> None:
        now = self._kept_at = time.monotonic()
        reports, members = self.reports.pack(), pack_members(self.members.ages(now))

        def work() -> None:
            folder = self._host.paths.data
            for name, data in ((REPORTS, reports), (MEMBERS, members)):
                write_atomically(folder + name, data, mode=0o600)

        try:
            await self._do(work)
        except (OSError, TimeoutError, ThicketError) as error:
            log.debug("what the others told is not kept: %s", error)

    async def _do(self, work: Callable[[], threads.T]) -> threads.T:
        return await self._threads.do(work, HANGS)


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
    return FleetUpdate(host, standing, files, me, node)


def _load(paths: Paths, standing: Standing, start: journal.Start) -> Files:
    os.makedirs(paths.data + FOLDER, mode=0o700, exist_ok=True)
    went_on = journal.after_restart(journal.load(paths.data), start)
    journal.keep(paths.data, went_on)
    return Files(
        terms.compatible(paths),
        image.version(paths),
        next_start(paths.data + START, standing.clock()),
        _read(paths.data + REPORTS),
        unpack_members(_read(paths.data + MEMBERS)),
        went_on,
    )


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MOST)
    except OSError:
        return b""


def name_of(node: str) -> str:
    """Return the name in records of the node ``cluster@address``; empty where it has none."""
    try:
        number = int(IPv6Address(node.partition("@")[2]))
    except ValueError:
        return ""
    source = number >> 8 * ID_SIZE & 0xFFFF
    identity = (number & (1 << 8 * ID_SIZE) - 1).to_bytes(ID_SIZE, "big")
    return node_name(SOURCES[source], identity) if source < len(SOURCES) else ""


async def reboot() -> None:
    """Restart the node in order.

    :raises OSError: init cannot be told.
    """
    child = await asyncio.create_subprocess_exec("/sbin/reboot")
    await child.wait()
