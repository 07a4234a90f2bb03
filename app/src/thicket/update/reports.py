# SPDX-License-Identifier: Apache-2.0
"""What goes from node to node about a rollout: records, orders, and what it takes to compare them.

All of it travels as *items*, which whoever carries them need not understand. An item begins with a
mark of 4 bytes and its kind:

    1  a record of a node, signed by it (``member``)
    2  an order by a member that the configuration names, signed by it (``member``)
    3  certificates of a member, as a beacon has them
    4  send me these certificates: their digests, 8 bytes each
    5  the digest of what I have (32 bytes), which is the same where all of it is
    6  a part of what I have: node (7 bytes) and number (8) of records
    7  an order signed by an update signer (``offer``)
    8  beginnings (8 bytes) of the digests of the orders that I have

A new item is handed on to everybody, so it reaches the whole cluster. What got lost on the way, or
was told while a node was off, comes when digests are compared: the one with the other digest says
what it has, and gets what it lacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from enum import IntEnum
from hashlib import sha256
from logging import getLogger
from typing import TYPE_CHECKING, NamedTuple

from thicket.base.pace import Bucket
from thicket.trust.signed_beacon import CHAIN_SIZE
from thicket.trust.update_signer import SignerRefusedError
from thicket.trust.verify import verify_signature
from thicket.update import member, progress
from thicket.update.member import DIGEST, MARK, UNKNOWN, Author, Authors, Kind, MemberError, Sealed
from thicket.update.offer import OfferError, Order, check_order, parse_order, read_order
from thicket.update.progress import Entry, Progress, RecordError, Table

if TYPE_CHECKING:
    from thicket.trust.credentials import Credentials
    from thicket.trust.fleet import Fleet
    from thicket.trust.verify import Rules, Verify

log = getLogger(__name__)

MAX_ITEM = 1536
"""Bytes of the largest item; those of the kinds 1 to 6 and 8 have at most 600."""

MAX_ITEMS = 64
"""Items that are read of one message."""

MOST_ORDERS = 8
"""Orders that are kept, the newest ones."""

AHEAD = 86400
"""Seconds that an order may be numbered ahead of the time, where that is known."""

COMPARISONS = (0.5, 8.0)
"""Comparisons that one peer gets an answer to: per second on average, and at once."""

MOST_ANSWERED = 32
"""Records in one answer. Whoever lacks more asks again."""

NEW_ORDERS = (0.2, 8.0)
"""New orders of one peer whose signature is checked: per second on average, and at once."""

_LINES = 39
"""Records in one part of a summary."""

_LINE = 15
_HEAD = len(MARK) + 1


class Item(IntEnum):
    """Kinds of items besides those of ``member.Kind``."""

    CERTIFICATES = 3
    WANT = 4
    DIGEST = 5
    SUMMARY = 6
    SIGNED = 7
    ORDERS = 8


class Taken(NamedTuple):
    """What follows from items that came.

    :ivar onward: to be sent to every peer but the one that they came from.
    :ivar answer: to be sent to that peer.
    :ivar changed: whether records or orders are new, so that there is something to decide.
    """

    onward: list[bytes]
    answer: list[bytes]
    changed: bool = False


class Kept(NamedTuple):
    """An order that counts.

    :ivar items: what carries it.
    :ivar names: of its signer, or of the device and the signer of the member that gave it: what can
        be revoked.
    :ivar member: the host name of the member that gave it; empty for an update signer's.
    """

    order: Order
    items: tuple[bytes, ...]
    names: tuple[str, ...]
    member: str = ""


class Reports:
    """All records and orders that this node knows, and the talk with others about them.

    :param rules: returns the rules in force.
    :param control: returns the host names of the members that may give orders.
    :param verify: checks a signature; OpenSSL by default.
    :ivar table: the newest record of each node.
    :ivar authors: who has signed what.
    :ivar orders: the newest order for each offer (empty for any).
    :ivar counters: items that were not taken, by reason.
    :ivar news: set when a record or an order is new.
    """

    def __init__(
        self,
        fleet: Fleet,
        rules: Callable[[], Rules],
        control: Callable[[], Collection[str]],
        *,
        verify: Verify = verify_signature,
    ) -> None:
        self.table = Table()
        self.authors = Authors(fleet, rules, verify=verify)
        self.orders: dict[bytes, Kept] = {}
        self.counters: dict[str, int] = {}
        self.news = asyncio.Event()
        self._fleet = fleet
        self._rules = rules
        self._control = control
        self._verify = verify
        self._written_by: dict[str, Author] = {}
        self._comparisons: dict[str, Bucket] = {}
        self._new_orders: dict[str, Bucket] = {}

    # -- ours

    def publish(self, record: Progress, credentials: Credentials, now: float) -> list[bytes]:
        """Take in a record of this node; return the items that tell everybody.

        :raises CertificateError: its certificates do not fit into a beacon.
        """
        sealed, chain = member.seal(Kind.PROGRESS, progress.pack(record), credentials, self._fleet)
        return self.take(_both(chain, sealed), "", now).onward

    def give(self, order: Order, credentials: Credentials, now: float) -> list[bytes]:
        """Give an order as this member; return the items that tell everybody.

        :raises MemberError: the configuration does not name this member.
        :raises CertificateError: its certificates do not fit into a beacon.
        """
        sealed, chain = member.seal(Kind.ORDER, order.text(), credentials, self._fleet)
        self._on_member_order(sealed, chain, "", now)
        return _both(chain, sealed)

    def greeting(self) -> list[bytes]:
        """Return what a peer gets at the beginning, and again and again."""
        return [_item(Item.DIGEST, self._digest())]

    def records(self) -> dict[str, Entry]:
        """Return the records that count now, by the nodes' names; forget the others, and orders
        that do not count."""
        self._forget_orders()
        authors = self.authors
        gone = {name for name, who in self._written_by.items() if authors.gone(who)}
        if gone:
            self.table.drop(lambda entry: entry.record.node in gone)
            for name in gone:
                del self._written_by[name]
        return self.table.entries

    def order(self, offer: bytes, number: int) -> Order | None:
        """Return the newest order about an offer.

        :param number: that of the offer: an order about whichever is in force is not about one
            that was made later.
        """
        found = [
            kept.order
            for kept in self.orders.values()
            if kept.order.offer in (offer, b"")
            and (kept.order.offer or kept.order.number >= number)
            and self._counts(kept)
        ]
        return max(found, key=lambda order: order.number, default=None)

    def _counts(self, kept: Kept) -> bool:
        """Whether whoever has given an order may still give some."""
        revoked = self._rules().revoked
        return not any(name in revoked for name in kept.names) and (
            not kept.member or kept.member in self._control()
        )

    def _forget_orders(self) -> None:
        """Forget the orders that do not count any more: they would stand in the way of others."""
        self.orders = {offer: kept for offer, kept in self.orders.items() if self._counts(kept)}

    # -- those of others

    def take(self, items: Sequence[bytes], peer: str, now: float) -> Taken:
        """Take items that came from a peer.

        :param peer: its name; empty for what is from this node itself.
        :param now: seconds of a clock that only goes forward.
        """
        taken, wanted = Taken([], []), set[bytes]()
        chains: dict[bytes, bytes] = {}
        summary: list[bytes] = []
        changed = False
        for item in items[:MAX_ITEMS]:
            kind, content = _split(item)
            try:
                match kind:
                    case Item.CERTIFICATES if len(content) == CHAIN_SIZE:
                        chains[member.key_of(content)] = content
                    case Kind.PROGRESS | Kind.ORDER:
                        changed |= self._on_sealed(item, chains, peer, now, taken)
                    case Item.SIGNED:
                        changed |= self._on_signed(item, peer, now, taken)
                    case Item.WANT:
                        if self._due(peer, now):
                            taken.answer.extend(self._certificates(content))
                    case Item.DIGEST:
                        # What is allowed first: a digest takes some time with many nodes.
                        if self._due(peer, now) and content != self._digest():
                            taken.answer.extend(self._summary())
                    case Item.SUMMARY | Item.ORDERS:
                        summary.append(item)
                    case _:
                        self._count("malformed")
            except MemberError as error:
                self._count(error.code)
                if error.code == UNKNOWN:
                    wanted.add(member.read(item).key)
            except (RecordError, OfferError) as error:
                self._count(error.code)
        if summary and self._due(peer, now):
            taken.answer.extend(self._lacking(summary))
        if wanted:
            taken.answer.append(_item(Item.WANT, b"".join(sorted(wanted))))
        if changed:
            self.news.set()
        return taken._replace(changed=changed)

    def _on_sealed(
        self, item: bytes, chains: dict[bytes, bytes], peer: str, now: float, taken: Taken
    ) -> bool:
        sealed = member.read(item)
        chain = chains.get(sealed.key, b"")
        if sealed.kind is Kind.ORDER:
            new = self._on_member_order(sealed, chain, peer, now)
        else:
            new = self._on_record(sealed, chain, peer, now)
        if new:
            taken.onward.extend([_item(Item.CERTIFICATES, chain), item] if chain else [item])
        return new

    def _on_record(self, sealed: Sealed, chain: bytes, peer: str, now: float) -> bool:
        record = progress.unpack(sealed.content)
        if not self.table.is_news(record) or not self.table.may_take(record.node, now):
            return False
        author = self.authors.check(sealed, peer, now, chain, record.node)
        items = _both(self.authors.known[sealed.key][0], sealed)
        if not self.table.take(record, now, tuple(items)):
            return False
        self._written_by[record.node] = author
        return True

    def _on_member_order(self, sealed: Sealed, chain: bytes, peer: str, now: float) -> bool:
        order = parse_order(sealed.content)
        if not self._is_newer(order):
            return False
        self._check_turn(peer, now)
        author = self.authors.check(sealed, peer, now, chain)
        host = author.node.partition(".")[0]
        if host not in self._control():
            raise MemberError(
                "not-allowed",
                f"{host} may give no orders here: [update] control does not name it. `thicket "
                f"config set update.control={host}` on the nodes that are to obey lets it, or an "
                "update signer signs the order (`thicket update order` on the engineer's machine)",
            )
        items = _both(self.authors.known[sealed.key][0], sealed)
        return self._obey(Kept(order, tuple(items), author.names, host))

    def _on_signed(self, item: bytes, peer: str, now: float, taken: Taken) -> bool:
        if any(item in kept.items for kept in self.orders.values()):
            return False
        self._check_turn(peer, now)
        packed = item[_HEAD:]
        try:
            order = self._check_order(packed)
        except SignerRefusedError as error:
            raise OfferError(error.reason, str(error)) from None
        signer = read_order(packed)[1].certificate.common_name
        new = self._is_newer(order) and self._obey(Kept(order, (item,), (signer,)))
        if new:
            taken.onward.append(item)
        return new

    def _check_turn(self, peer: str, now: float) -> None:
        """Make sure that a peer has not had too many orders checked; this node itself never has."""
        if peer and not self._new_orders.setdefault(peer, Bucket(*NEW_ORDERS)).take(now):
            raise OfferError("too-often", "too many orders")

    def take_order(self, packed: bytes, now: float) -> Taken:
        """Take an order signed by an update signer (a CMS message), from a person at this node.

        :raises OfferError: it is none, is for another fleet, or is no news.
        :raises SignerRefusedError: its signature does not count.
        """
        order = self._check_order(packed)
        if not self._is_newer(order):
            raise OfferError("old-order", "this node has a newer order already: give a new one")
        return self.take([_item(Item.SIGNED, packed)], "", now)

    def _check_order(self, packed: bytes) -> Order:
        revoked = self._rules().revoked
        return check_order(packed, self._fleet, revoked=revoked, verify=self._verify)

    def _is_newer(self, order: Order) -> bool:
        if order.fleet != self._fleet.identifier:
            raise OfferError("other-fleet", "the order is for another fleet")
        known = self._rules().clock.now
        if known is not None and order.number > known.timestamp() + AHEAD:
            raise OfferError(
                "ahead", "the order is from the future: look at the clock of its maker"
            )
        kept = self.orders.get(order.offer)
        if kept is not None and not self._counts(kept):
            return True
        return kept is None or (order.number, order.text()) > (kept.order.number, kept.order.text())

    def _obey(self, kept: Kept) -> bool:
        self._forget_orders()
        self.orders[kept.order.offer] = kept
        while len(self.orders) > MOST_ORDERS:
            oldest = min(self.orders.values(), key=lambda one: one.order.number)
            del self.orders[oldest.order.offer]
            if oldest is kept:
                return False
        return True

    # -- comparing

    def _digest(self) -> bytes:
        return sha256(self.table.digest() + b"".join(sorted(self._order_digests()))).digest()

    def _order_digests(self) -> dict[bytes, Kept]:
        """Return the orders here by the beginnings of their digests."""
        return {sha256(kept.order.text()).digest()[:DIGEST]: kept for kept in self.orders.values()}

    def _summary(self) -> Iterator[bytes]:
        lines, step = self.table.summary(), _LINES * _LINE
        yield _item(Item.ORDERS, b"".join(sorted(self._order_digests())))
        for at in range(0, len(lines), step):
            yield _item(Item.SUMMARY, lines[at : at + step])

    def _lacking(self, items: list[bytes]) -> list[bytes]:
        """Return what the sender of these parts of a summary lacks."""
        parts: dict[int, bytes] = {Item.SUMMARY: b"", Item.ORDERS: b""}
        for item in items:
            kind, content = _split(item)
            parts[kind] += content
        told = parts[Item.ORDERS]
        theirs = {told[at : at + DIGEST] for at in range(0, len(told), DIGEST)}
        found: list[bytes] = []
        for digest, kept in self._order_digests().items():
            if digest not in theirs:
                found += kept.items
        try:
            lacking = self.table.lacking(parts[Item.SUMMARY])
        except RecordError as error:
            self._count(error.code)
            lacking = []
        for entry in lacking[:MOST_ANSWERED]:
            found += entry.items
        if len(lacking) > MOST_ANSWERED:
            found += self.greeting()  # which has the sender compare again
        return found

    def _certificates(self, keys: bytes) -> list[bytes]:
        """Return what a peer needs that lacks these certificates."""
        wanted = {keys[at : at + DIGEST] for at in range(0, MAX_ITEMS * DIGEST, DIGEST)}
        carried = [kept.items for kept in self.orders.values()]
        carried += [entry.items for entry in self.table.entries.values()]
        found: list[bytes] = []
        for items in carried:
            if _split(items[-1])[0] in tuple(Kind) and member.read(items[-1]).key in wanted:
                found += items
        return found

    def _due(self, peer: str, now: float) -> bool:
        return self._comparisons.setdefault(peer, Bucket(*COMPARISONS)).take(now)

    def _count(self, reason: str) -> None:
        self.counters[reason] = self.counters.get(reason, 0) + 1

    def disconnected(self, peer: str) -> None:
        """A peer has gone; what it may do again is kept with its signatures alone."""
        self._comparisons.pop(peer, None)
        self._new_orders.pop(peer, None)

    # -- over a restart

    def pack(self) -> bytes:
        """Return the file that keeps all records and orders."""
        items = [item for kept in self.orders.values() for item in kept.items]
        items += [item for entry in self.records().values() for item in entry.items]
        return b"".join(len(item).to_bytes(2, "big") + item for item in items)

    def recall(self, data: bytes, now: float) -> Iterator[None]:
        """Take in such a file, one record or order in each step: each takes some milliseconds, as
        its signatures are checked. What is damaged, or does not count any more, is left out."""
        certificates, at = b"", 0
        for _ in range(2 * (progress.MOST_NODES + MOST_ORDERS)):
            size = int.from_bytes(data[at : at + 2], "big")
            item = data[at + 2 : at + 2 + size]
            at += 2 + size
            if _split(item)[0] == Item.CERTIFICATES:
                certificates = item
            elif item:
                self.take([certificates, item] if certificates else [item], "", now)
                yield


def _both(chain: bytes, sealed: Sealed) -> list[bytes]:
    return [_item(Item.CERTIFICATES, chain), sealed.packed()]


def _item(kind: Item, content: bytes) -> bytes:
    return MARK + bytes((kind,)) + content


def _split(item: bytes) -> tuple[int, bytes]:
    """Return kind and content of an item; the kind 0 of one that is none."""
    if not item.startswith(MARK) or not _HEAD <= len(item) <= MAX_ITEM:
        return 0, b""
    return item[_HEAD - 1], item[_HEAD:]
