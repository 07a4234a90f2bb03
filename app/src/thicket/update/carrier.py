# SPDX-License-Identifier: Apache-2.0
"""A node's part in spreading updates: it keeps the newest offer, fetches the patch that is for it,
serves what it has, and hands a whole patch over to be installed.

``spread`` decides, ``store`` keeps, ``exchange`` talks to other nodes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from logging import getLogger
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from thicket.base import threads
from thicket.base.errors import CodedError, ThicketError
from thicket.base.files import entries, opened, read_kept
from thicket.base.pace import wait
from thicket.trust import cms
from thicket.update import spread
from thicket.update.messages import CHUNKS, LIST, Data, Get, Has, Have, Message, No, Piece
from thicket.update.offer import CHUNK, Offer, Patch, describe
from thicket.update.spread import (
    OUTSIDE,
    Air,
    Ask,
    Fetch,
    Listing,
    Offering,
    Peers,
    Serve,
    Teller,
    Way,
)
from thicket.update.store import (
    NO_ROOM,
    WRONG,
    Held,
    Store,
    StoreError,
    everything,
    is_list,
    list_of,
    parts_of_list,
)

if TYPE_CHECKING:
    from thicket.base.problems import Problems

log = getLogger(__name__)

T = TypeVar("T")

#: A card that has not answered for this many seconds is given up for now.
HANGS = 60.0
#: Seconds until what the card did not take, or had no room for, is tried again.
AGAIN = 60.0
#: Bytes that may wait on a connection; more than that, and its node is served later.
QUEUED = 2 * CHUNK
#: Seconds until a connection on which too much waits is looked at again.
LOOK = 0.05
#: Chunks that wait for the card, beyond which none is taken that nobody was asked for.
UNWRITTEN = spread.WINDOW
#: How often a node is sent as many chunks as an offer has: more is for nobody's good.
GIVEN = 4
#: Seconds within which a folder with a patch of any size is read.
LONG = 900.0

PART = "update"


class CarrierError(CodedError):
    """An update cannot be offered. The text says why."""


class Host(Protocol):
    """What the spreading of updates needs of its daemon."""

    @property
    def problems(self) -> Problems:
        """The node's problems."""

    def check(self, packed: bytes) -> Offer:
        """Return a signed offer that counts here.

        :raises ThicketError: it does not.
        """

    def base(self) -> str:
        """The root hash of the running slot; empty if it is not known."""

    def wants(self, offer: Offer) -> bool:
        """Whether an offer is for this node, and something that it does not run already."""

    def share(self) -> float:
        """The share of the air, from 0 to 1."""

    def ways(self) -> Mapping[str, Way]:
        """The ways to the connected nodes, by their names."""

    def take(self, path: str, offer: Offer, patch: Patch) -> Awaitable[None]:
        """Do what is to be done with a patch that is here as a whole.

        :raises ThicketError: no bundle can be made of it; another patch is tried then.
        """


class Wire(Protocol):
    """What carries messages to other nodes."""

    def send(self, peer: str, message: Message) -> None:
        """Send a message to a connected node."""

    def unsent(self, peer: str) -> int:
        """Return the bytes that wait to be sent to a node."""

    def tell_near(self, but: str = "") -> None:
        """Tell all neighbours, except one, which offer is the newest here."""


class Newest(NamedTuple):
    """The newest offer, as it was signed.

    :ivar identifier: of the offer.
    :ivar signer: the name of who has signed it.
    """

    offer: Offer
    packed: bytes
    identifier: bytes
    signer: str

    @property
    def chunk_count(self) -> int:
        """How many chunks all patches have, and their chunk lists."""
        return sum(one.chunk_count + parts_of_list(one) for one in self.offer.patches)

    @property
    def order(self) -> tuple[int, bytes]:
        """What tells the newer one of two offers, on every node."""
        return self.offer.number, self.identifier


class Download:
    """The patch that is being fetched.

    :ivar place: of the patch in the offer.
    :ivar fetch: None while the chunk list is not here; ``listing`` fetches that.
    """

    def __init__(self, place: int, patch: Patch, offering: Offering, held: Held | None) -> None:
        self.place = place
        self.patch = patch
        self.listing = Listing(parts_of_list(patch), offering)
        self.fetch: Fetch | None = None
        self.listed = list_of(patch)
        self.writing: list[tuple[int, bytes]] = []
        self._offering = offering
        if held is not None:
            self.begin(held)

    def begin(self, held: Held) -> None:
        """The chunk list is here: fetch the chunks."""
        self.fetch = Fetch(self.patch.chunk_count, held.have, self._offering)
        self.listed = None

    def asks(self, now: float, ways: Mapping[str, Way]) -> list[tuple[str, Piece]]:
        """Return whom to ask for what now."""
        if self.fetch is not None:
            asks = self.fetch.asks(now, ways)
            return [(ask.peer, Piece(self.place, CHUNKS, ask.chunk)) for ask in asks]
        ask = self.listing.ask(now, ways) if self.listed is None else None
        return [] if ask is None else [(ask.peer, Piece(self.place, LIST, ask.chunk))]

    def due(self, now: float) -> float | None:
        """Return when :meth:`asks` is to be called although nothing happened."""
        return self.fetch.due(now) if self.fetch is not None else self.listing.due(now)


class Card:
    """The store, in threads of its own: who reads does not wait for what is written.

    :param part: which part of the node reports its problems.
    :ivar taking: held by whoever puts an offer in the place of another.
    :ivar fault: what it does not do, in words; empty while it is well.
    """

    def __init__(self, store: Store, problems: Problems, part: str) -> None:
        self._problems = problems
        self._part = part
        self.store = store
        self.taking = asyncio.Lock()
        self.fault = ""
        self._writing = threads.InTurn("update-store")
        self._reading = threads.InTurn("update-chunks")

    async def do(self, work: Callable[[], T], patience: float = HANGS) -> T:
        """Do something that may wait for the card.

        :raises StoreError: the card does not answer, or as ``work``.
        """
        return await _answered(self._writing.do(work, patience))

    async def read(self, held: Held, chunk: int) -> bytes | None:
        """Return a chunk, see :meth:`Held.read`.

        A damaged one may be forgotten while another is written: then the next reader finds it.

        :raises StoreError: the card does not answer.
        """
        return await _answered(self._reading.do(lambda: held.read(chunk), HANGS))

    def failed(self, error: StoreError) -> None:
        """Report what the card does not do."""
        self.fault = str(error)
        self._problems.report(
            self._part,
            "no-room" if error.code == NO_ROOM else "not-fetched",
            f"the update that is offered cannot be fetched: {error}",
            "warning",
        )

    def well(self) -> None:
        """What was reported is over."""
        self.fault = ""
        for code in ("no-room", "not-fetched"):
            self._problems.clear(self._part, code)


async def _answered(work: Awaitable[T]) -> T:
    try:
        return await work
    except (TimeoutError, threads.BusyError):
        raise StoreError("hangs", "the card does not answer") from None


class Carrier:
    """Keeps and carries the newest offer about one subject.

    :param wire: to other nodes.
    :param air: what this node may take of the air for all subjects.
    :param part: which part of the node reports its problems.
    :ivar newest: None as long as there was no offer.
    :ivar held: the patches of which the chunk list is here, by their places in the offer.
    :ivar theirs: what others have of each patch.
    :ivar failed: patches of which no bundle could be made, and why.
    :ivar counters: chunks ``received``, those of them that came over more than one hop (``far``),
        ``sent`` and ``wrong``.
    """

    def __init__(
        self, host: Host, store: Store, wire: Wire, air: Air | None = None, part: str = PART
    ) -> None:
        self.newest: Newest | None = None
        self.held: dict[int, Held] = {}
        self.theirs: list[Offering] = []
        self.failed: dict[int, str] = {}
        self.download: Download | None = None
        self.counters = dict.fromkeys(("received", "far", "sent", "wrong"), 0)
        self._host = host
        self._wire = wire
        self._card = Card(store, host.problems, part)
        self._peers = Peers()
        self._serve: Serve[Piece] = Serve(host.share(), air)
        self._teller = Teller()
        self._wake = asyncio.Event()
        self._again = 0.0
        self._handing: tuple[int, asyncio.Task[None]] | None = None

    # -- the newest offer

    def news(self, number: int, identifier: bytes) -> int:
        """Compare what another node has with what is here: 1 if that is newer, -1 if older."""
        mine = self.newest.order if self.newest is not None else (0, b"")
        return ((number, identifier) > mine) - ((number, identifier) < mine)

    @property
    def identifier(self) -> bytes | None:
        """What stands for the newest offer; None without one."""
        return self.newest.identifier if self.newest is not None else None

    def have(self) -> Have:
        """Return what tells others of the newest offer."""
        return Have(*self.newest.order) if self.newest is not None else Have(0, b"")

    async def take_offer(self, packed: bytes, who: str) -> bool:
        """Check an offer, keep it, and pass it on if it is the newest; whether it was news.

        :raises ThicketError: it does not count, or cannot be kept.
        """
        offer = self._host.check(packed)
        newest = _newest(offer, packed)
        async with self._card.taking:
            if self.news(*newest.order) <= 0:
                return False
            await self._card.do(lambda: self._card.store.keep(packed, offer.patches))
            log.info("%s offers %s", who, offer.bundle.words)
            await self._adopt(newest)
        self._wire.tell_near(who)
        return True

    async def load(self) -> None:
        """Take the offer that is on the card, if that is not done yet."""
        await self._or_report(self._load())

    async def _load(self) -> None:
        packed = await self._card.do(self._card.store.offer)
        if not packed:
            return
        try:
            offer = self._host.check(packed)
        except ThicketError as error:
            log.warning("the offer on the card is not used: %s", error)
            return
        if self.news(offer.number, offer.identifier) > 0:
            await self._adopt(_newest(offer, packed))

    async def _adopt(self, newest: Newest) -> None:
        held: dict[int, Held] = {}
        for place, patch in enumerate(newest.offer.patches):
            found = await self._card.do(partial(self._card.store.open, patch), LONG)
            if found is not None:
                held[place] = found
        if self.news(*newest.order) <= 0:
            return  # it was adopted meanwhile, or a newer one, and something may have come since
        if self._handing is not None:
            self._handing[1].cancel()
        self.newest, self.held = newest, held
        self.failed, self.download, self._handing = {}, None, None
        self.theirs = [Offering(self._peers) for _ in newest.offer.patches]
        self._serve = Serve(self._host.share(), self._serve.air, GIVEN * newest.chunk_count)
        self._teller = Teller()
        self._teller.changed()
        self._again = 0.0
        self._card.well()
        self._wake.set()

    async def drop(self) -> None:
        """Do without the newest offer, as it does not count any more; others may have an older one.

        On the card it stays until there is another one: after a restart it is judged anew.
        """
        async with self._card.taking:
            if self._handing is not None:
                self._handing[1].cancel()
            self.newest, self.download, self._handing = None, None, None
            self.held, self.failed, self.theirs = {}, {}, []
        self._wire.tell_near()

    async def offer_folder(self, folder: str) -> list[int]:
        """Offer what is in a folder on this node: ``offer`` and patches, whatever their names.

        :returns: the places of the patches that are here now.
        :raises ThicketError: it cannot be offered.
        """
        packed, found = await self._card.do(lambda: _look_into(folder, self._host.check), LONG)
        news = await self.take_offer(packed, "a person")
        newest, identifier = self.newest, self._host.check(packed).identifier
        if newest is None or (not news and newest.identifier != identifier):
            raise CarrierError(
                "older", "a newer offer is known here: make this one anew, so that it is the newest"
            )
        here: list[Held] = []
        for place, (path, listed) in found.items():
            patch = newest.offer.patches[place]
            held = await self._card.do(partial(self._card.store.adopt, path, patch, listed), LONG)
            here.append(held)
            if self.newest is newest:
                self._keep(place, held)
        if not self.held:
            raise CarrierError(
                "no-patch", f"there is none of the offer's patches in {folder}: copy them there"
            )
        await self._card.do(self._card.store.settle)
        for held in here:
            await self._card.do(held.finish, LONG)
        return sorted(self.held)

    def _keep(self, place: int, held: Held) -> None:
        self.held[place] = held
        if self.download is not None and self.download.place == place:
            self.download = None
        self._teller.changed()
        self._wake.set()

    # -- other nodes

    def on(self, peer: str, message: Has | Get | Data | No) -> None:
        """Follow what a node says about the chunks of the newest offer."""
        newest = self.newest
        if newest is None or message.offer != newest.identifier:
            return
        now = time.monotonic()
        if isinstance(message, Has):
            self._on_has(peer, message)
        elif message.piece.patch >= len(newest.offer.patches):
            return
        elif isinstance(message, Get):
            self._on_get(peer, message, newest, now)
        elif isinstance(message, Data):
            self._on_data(peer, message, now)
        else:
            self._on_no(peer, message, now)
        self._wake.set()

    def tell(self, peer: str) -> None:
        """Tell a node which chunks are here."""
        if self.newest is not None and self.held:
            self._teller.told(peer, time.monotonic())
            self._wire.send(peer, self._has(self.newest))

    def knows(self, peer: str) -> bool:
        """Whether a node has told which chunks of the newest offer it has, if there is one."""
        return self.newest is None or any(peer in offering.bits for offering in self.theirs)

    def gone(self, peer: str) -> None:
        """A node is not connected any more."""
        for offering in self.theirs:
            offering.bits.pop(peer, None)
        self._serve.gone(peer, time.monotonic())
        self._teller.gone(peer)
        self._wake.set()

    def _has(self, newest: Newest) -> Has:
        held = tuple((place, held.have) for place, held in sorted(self.held.items()))
        return Has(newest.identifier, held)

    def _on_has(self, peer: str, message: Has) -> None:
        assert self.newest is not None
        patches = self.newest.offer.patches
        told = dict(message.held)
        if any(place >= len(patches) for place in told):
            return
        for place, offering in enumerate(self.theirs):
            if place in told:
                offering.bits[peer] = told[place] & everything(patches[place])
            else:
                offering.bits.pop(peer, None)

    def _on_get(self, peer: str, message: Get, newest: Newest, now: float) -> None:
        piece, held = message.piece, self.held.get(message.piece.patch)
        here = held is not None and (
            held.part_of_list(piece.number) if piece.part == LIST else held.have >> piece.number & 1
        )
        if not here:
            self._wire.send(peer, No(newest.identifier, piece, 0))
            return
        cost = self._host.ways().get(peer, Way()).airtime()
        blocked = self._wire.unsent(peer) > QUEUED
        pause = self._serve.ask(peer, piece, cost, now, blocked=blocked)
        if pause is not None:
            self._wire.send(peer, No(newest.identifier, piece, int(pause * 1000)))

    def _on_no(self, peer: str, message: No, now: float) -> None:
        download, piece = self.download, message.piece
        if download is None or piece.patch != download.place:
            return
        if piece.part == LIST:
            download.listing.refused(peer, message.wait / 1000, now)
        elif download.fetch is not None:
            download.fetch.refused(peer, piece.number, message.wait / 1000, now)

    def _on_data(self, peer: str, message: Data, now: float) -> None:
        download, piece = self.download, message.piece
        if download is None or piece.patch != download.place:
            return
        if piece.part == LIST:
            self._on_list(download, peer, message, now)
        elif piece.number < download.patch.chunk_count:
            self.arrived(peer, piece.number, message.data, now)

    def _on_list(self, download: Download, peer: str, message: Data, now: float) -> None:
        if download.fetch is not None or download.listed is not None:
            return
        found = download.listing.arrived(peer, message.piece.number, message.data, now)
        if isinstance(found, Ask):
            following = Piece(download.place, LIST, found.chunk)
            self._wire.send(peer, Get(message.offer, following))
        elif found is not None:
            self.take_list(peer, found, now)

    def take_list(self, peer: str, listed: bytes, now: float) -> None:
        """A chunk list has come; it is taken if it is the one that was signed."""
        download = self.download
        if download is None or download.fetch is not None:
            return
        if is_list(download.patch, listed):
            download.listed = listed
        else:
            self._blame(peer)
            download.listing.wrong(peer, now)
        self._wake.set()

    def arrived(self, peer: str, chunk: int, data: bytes, now: float) -> None:
        """A chunk of the patch that is being fetched has come."""
        download = self.download
        fetch = download.fetch if download is not None else None
        if download is None or fetch is None or not fetch.wants(chunk):
            return
        unasked = peer != OUTSIDE and not fetch.is_asked(peer, chunk)
        if unasked and (len(download.writing) >= UNWRITTEN or self._peers.is_shunned(peer, now)):
            return  # it is asked for later, if need be
        if self.held[download.place].is_right(chunk, data):
            self.counters["received"] += 1
            way = self._host.ways().get(peer)
            self.counters["far"] += way is not None and way.hops > spread.NEAR
            fetch.kept(peer, chunk)
            download.writing.append((chunk, data))
        else:
            self._blame(peer)
            fetch.wrong(peer, now)
        self._wake.set()

    def _blame(self, peer: str) -> None:
        self.counters["wrong"] += 1
        log.warning("%s sent something else than was signed; it is not asked for a while", peer)

    # -- running

    async def run(self) -> None:
        """Fetch, serve and hand over until cancelled."""
        try:
            await self.load()
            while True:
                self._wake.clear()
                await self._or_report(self._work())
                await wait(self._wake, await self._step())
        finally:
            if self._handing is not None:
                self._handing[1].cancel()

    async def _or_report(self, work: Awaitable[None]) -> None:
        """Do something with the card, and report what it does not do."""
        try:
            await work
        except StoreError as error:
            self._again = time.monotonic() + AGAIN
            self.download = None
            self._card.failed(error)

    async def _work(self) -> None:
        """Do what needs the card: begin, write, and finish the patch that is for this node."""
        now = time.monotonic()
        newest = self.newest
        if newest is None or now < self._again:
            return
        place = None
        if self._host.wants(newest.offer):
            place = spread.choose(newest.offer, self._host.base(), self.failed.keys())
        elif self._handing is not None:
            place = self._handing[0]  # for others, if the card has damaged a part of it
        if place is None:
            self.download = None
            return
        held = self.held.get(place)
        if self._is_handed(place) and held is not None and held.complete:
            return
        if self.download is None or self.download.place != place:
            patch = newest.offer.patches[place]
            if held is None:
                await self._make_room(newest, patch)
            if self.newest is not newest:
                return
            self.download = Download(place, patch, self.theirs[place], self.held.get(place))
        await self._write(self.download, newest)

    def _is_handed(self, place: int) -> bool:
        return self._handing is not None and self._handing[0] == place

    async def _make_room(self, newest: Newest, patch: Patch) -> None:
        """Look for room before anything is fetched; what was of no use makes way."""
        store = self._card.store
        try:
            await self._card.do(lambda: store.check_room(patch))
        except StoreError as error:
            useless = [place for place in self.failed if place in self.held]
            if error.code != NO_ROOM or not useless:
                raise
        else:
            return
        for place in useless:
            self.held.pop(place)
            await self._card.do(partial(store.drop, newest.offer.patches[place]))
        await self._card.do(lambda: store.check_room(patch))

    async def _write(self, download: Download, newest: Newest) -> None:
        place, listed = download.place, download.listed
        if listed is not None:
            store = self._card.store
            held = await self._card.do(lambda: store.begin(download.patch, listed))
            if self.download is not download:
                return
            self.held[place] = held
            download.begin(held)
            self._teller.changed()
            self._card.well()
        if download.fetch is None:
            return
        held = self.held[place]
        while download.writing and self.download is download:
            chunk, data = download.writing[0]
            try:
                await self._card.do(partial(held.write, chunk, data))
            except StoreError:
                # what is on the card counts from now on
                await self._card.do(held.look)
                raise
            download.writing.pop(0)
            self._card.well()
            self._teller.changed()
        if download.fetch.complete and self.download is download:
            self.download = None
            if self._is_handed(place):  # a chunk on the card was damaged, and is here again
                await self._card.do(held.finish, LONG)
                return
            task = asyncio.create_task(self._or_report(self._finish(newest, place, held)))
            self._handing = (place, task)

    async def _finish(self, newest: Newest, place: int, held: Held) -> None:
        """Write a patch out to the card, and hand it over; others are served meanwhile."""
        writing = asyncio.ensure_future(self._card.do(held.finish, LONG))
        writing.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.shield(writing)  # the card ends it, also where a newer offer cancels this
        except StoreError as error:
            if self.newest is not newest:
                return
            self._handing = None
            self._wake.set()
            if error.code != WRONG:
                raise
            self._fail(place, error)
        else:
            if self.newest is newest:
                self._card.well()
                await self._hand_over(newest, place, held)

    async def _hand_over(self, newest: Newest, place: int, held: Held) -> None:
        log.info("the patch is here: %d bytes, base %s", held.patch.size, held.patch.base or "none")
        try:
            await self._host.take(held.path, newest.offer, held.patch)
        except ThicketError as error:
            await self._or_report(self._not_taken(newest, place, error))
        except Exception:
            log.exception("the update is not installed")

    async def _not_taken(self, newest: Newest, place: int, error: ThicketError) -> None:
        """Pass over a patch that was of no use; one that the card has damaged is fetched again."""
        held = self.held.get(place)
        if held is not None:
            await self._card.do(held.look, LONG)
        if self.newest is not newest:
            return
        if held is None or held.complete:
            self._fail(place, error)
            return
        log.warning("the patch on the card is damaged; it is fetched again: %s", error)
        self.download, self._handing = None, None
        self._teller.changed()
        self._wake.set()

    def _fail(self, place: int, error: ThicketError) -> None:
        """No bundle can be made of a patch: another one has its turn."""
        log.warning("a patch is of no use: %s", error)
        self.failed[place] = str(error)
        self.download, self._handing = None, None
        self._wake.set()

    async def _step(self) -> float | None:
        """Ask, tell and send what is due; return the seconds until there is more to do."""
        newest, now = self.newest, time.monotonic()
        if newest is None:
            return None
        ways = self._host.ways()
        times: list[float | None] = [self._again if now < self._again else None]
        if self.download is not None:
            for peer, piece in self.download.asks(now, ways):
                self._wire.send(peer, Get(newest.identifier, piece))
            times.append(self.download.due(now))
        if self.held:
            sated = self._sated()
            for peer in self._teller.take(now, ways, sated):
                self._wire.send(peer, self._has(newest))
            times.append(self._teller.due(ways, sated))
        sent = await self._send(newest, ways)
        pause = self._serve.pause(time.monotonic())
        if pause is not None:
            times.append(time.monotonic() + (pause if sent or pause else LOOK))
        soonest = min((at for at in times if at is not None), default=None)
        return None if soonest is None else max(0.0, soonest - time.monotonic())

    def _sated(self) -> set[str]:
        """Return the nodes that have every patch of which something is here."""
        assert self.newest is not None
        found: set[str] | None = None
        for place, patch in enumerate(self.newest.offer.patches):
            if place in self.held:
                whole = everything(patch)
                have = {p for p, bits in self.theirs[place].bits.items() if bits == whole}
                found = have if found is None else found & have
        return found or set()

    async def _send(self, newest: Newest, ways: Mapping[str, Way]) -> bool:
        """Send one chunk, if the share of the air permits it; whether something was sent."""
        self._serve.air.share = self._host.share()
        now = time.monotonic()
        item = self._serve.take(now, lambda peer: self._wire.unsent(peer) > QUEUED)
        while self._serve.lost:
            late, lost = self._serve.lost.pop()
            self._wire.send(late, No(newest.identifier, lost, int(spread.AGAIN[1] * 1000)))
        if item is None:
            return False
        peer, piece = item
        held = self.held.get(piece.patch)
        data: bytes | None = None
        if held is not None and piece.part == LIST:
            data = held.part_of_list(piece.number)
        elif held is not None:
            data = await self._read(held, piece.number)
        if data is None:
            self._wire.send(peer, No(newest.identifier, piece, 0))
            return True
        self._serve.air.spend(ways.get(peer, Way()).airtime(len(data)), now)
        self.counters["sent"] += 1
        self._wire.send(peer, Data(newest.identifier, piece, data))
        return True

    async def _read(self, held: Held, chunk: int) -> bytes | None:
        try:
            data = await self._card.read(held, chunk)
        except StoreError as error:
            log.warning("a chunk cannot be read: %s", error)
            return None
        if data is None:
            log.warning("a chunk on the card is damaged; it is fetched again")
            self._teller.changed()
        return data

    # -- people

    def status(self) -> dict[str, Any]:
        """Return what is known of the newest offer; docs/node.md has the members."""
        newest = self.newest
        if newest is None:
            return {"offer": None, "patches": [], "nodes": [], "counters": dict(self.counters)}
        offer = newest.offer
        ways = self._host.ways()
        return {
            "offer": {
                "number": offer.number,
                "identifier": newest.identifier.hex(),
                "compatible": offer.bundle.compatible,
                "application": offer.bundle.application,
                "version": offer.bundle.version,
                "wanted": self._host.wants(offer),
            },
            "patches": [
                {
                    "base": patch.base,
                    "size": patch.size,
                    "here": self.held[place].size if place in self.held else 0,
                    "fetching": self.download is not None and self.download.place == place,
                    "failed": self.failed.get(place, ""),
                }
                for place, patch in enumerate(offer.patches)
            ],
            "nodes": [
                {"name": peer, "hops": way.hops, "percent": self._percent(offer, peer)}
                for peer, way in sorted(ways.items())
            ],
            "counters": dict(self.counters),
        }

    @property
    def fetched(self) -> int:
        """How much of the patch that is for this node is here, in thousandths."""
        done, size = self.here
        return 1000 * done // size if size else 0

    @property
    def here(self) -> tuple[int, int]:
        """Bytes of the patch that is for this node: those that are here, and all of them."""
        newest = self.newest
        if newest is None:
            return 0, 0
        if self._handing is not None:
            place: int | None = self._handing[0]
        elif self.download is not None:
            place = self.download.place
        else:
            place = spread.choose(newest.offer, self._host.base(), self.failed)
        if place is None:
            return 0, 0
        held, patch = self.held.get(place), newest.offer.patches[place]
        return (0 if held is None else held.size), patch.size

    @property
    def trouble(self) -> str:
        """Why the offer cannot be had, in words; empty if it can."""
        newest = self.newest
        if newest is None:
            return ""
        if spread.choose(newest.offer, self._host.base(), self.failed) is None:
            return "; ".join(self.failed.values()) or "no patch of it is for what runs here"
        return ""

    @property
    def fault(self) -> str:
        """Why nothing is fetched for now, in words; empty while the card is well."""
        return self._card.fault

    @property
    def busy(self) -> bool:
        """Whether something is being fetched or sent."""
        return self.download is not None or len(self._serve) > 0

    @property
    def handed(self) -> bool:
        """Whether a patch was handed over, and the host has done with it what is to be done."""
        return self._handing is not None and self._handing[1].done()

    def hand_again(self) -> None:
        """Hand over once more: what the host has made of the patch is gone."""
        if self.handed:
            self._handing = None
            self._wake.set()

    def look_again(self) -> None:
        """What the host wants is something else now."""
        self._wake.set()

    def _percent(self, offer: Offer, peer: str) -> int:
        """Return how much a node has of the patch of which it has the most."""
        have = [
            100 * theirs.bits.get(peer, 0).bit_count() // patch.chunk_count
            for theirs, patch in zip(self.theirs, offer.patches, strict=True)
        ]
        return max(have, default=0)


def _newest(offer: Offer, packed: bytes) -> Newest:
    """Return an offer that was checked."""
    return Newest(offer, packed, offer.identifier, cms.read(packed).certificate.common_name)


def signed_in(folder: str) -> bytes:
    """Return the signed offer in a folder; blocking. Nobody has checked it.

    :raises CarrierError: there is none that can be read.
    """
    try:
        return read_kept(f"{folder}/offer", cms.MAX_SIZE + 1)
    except FileNotFoundError:
        words = f"{folder} has no offer in it" if os.path.isdir(folder) else f"there is no {folder}"
    except NotADirectoryError:
        words = f"{folder} is a file"
    except OSError as error:
        words = f"{folder}/offer cannot be read: {error.strerror or error}"
    raise CarrierError(
        "no-offer",
        f"{words}; the folder is needed that `thicket update offer` on the engineer's machine has "
        "made",
    )


def _look_into(
    folder: str, check: Callable[[bytes], Offer]
) -> tuple[bytes, dict[int, tuple[str, bytes]]]:
    """Return the offer in a folder, and by place the files and chunk lists of its patches."""
    packed = signed_in(folder)
    patches = check(packed).patches
    found: dict[int, tuple[str, bytes]] = {}
    for name in entries(folder):
        path = f"{folder}/{name}"
        try:
            with opened(path) as file:
                size = file.seek(0, 2)
                if all(patch.size != size for patch in patches):
                    continue
                file.seek(0)
                described, listed = describe(file, "")
        except OSError:
            continue  # a folder, or a file of somebody else
        for place, patch in enumerate(patches):
            if described._replace(base=patch.base) == patch:
                found[place] = (path, listed)
    return packed, found
