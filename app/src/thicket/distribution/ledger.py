# SPDX-License-Identifier: Apache-2.0
"""What every node of a cluster says of itself, kept on every node.

A node states something about itself under a topic, and numbers its statements. Nodes hand what is
news to them on to their neighbours in the overlay; two that meet compare sums of what they keep,
and exchange what differs. Statements of nodes that nobody reaches are kept for a while, but neither
compared nor handed out, so that they die out everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

BUCKETS = 64
"""Parts of the ledger that are compared on their own."""

MAX_TOPIC = 255
MAX_NAME = 255
MAX_VERSION = 2**62

MAX_BODY = 64 * 1024
"""Longest statement, in bytes."""

MAX_TOPICS = 8
"""Limit of topics of one node."""


class Record(NamedTuple):
    """A statement of a node.

    :ivar origin: the node.
    :ivar topic: what it is about.
    :ivar version: grows with each statement of the node on the topic.
    :ivar body: what it says.
    """

    origin: str
    topic: str
    version: int
    body: bytes


Key = tuple[str, str]
"""Origin and topic."""


class Found(Enum):
    """What a received statement is to this node."""

    NEWS = "news"
    KNOWN = "known"
    OLD = "old"
    OURS = "ours"
    """It is of this node, which says something else: it was made by the run before."""
    REFUSED = "refused"
    """There is no room for it, or it has no valid form."""


class Ledger:
    """The statements of all nodes.

    :param own: this node.
    :param limit: number of other nodes whose statements are kept.
    :param most_bytes: limit of all bodies together.
    :ivar records: the statements.
    :ivar total: the sum of those that count, see :meth:`count`.
    :ivar size: bytes of all bodies.
    """

    def __init__(self, own: str, limit: int, most_bytes: int) -> None:
        self.own = own
        self.limit = limit
        self.most_bytes = most_bytes
        self.records: dict[Key, Record] = {}
        self.topics: dict[str, set[str]] = {own: set()}
        self.total = 0
        self.size = 0
        self._sums = [0] * BUCKETS
        self._counted: set[str] = {own}

    def __len__(self) -> int:
        return len(self.records)

    def state(self, topic: str, body: bytes) -> Record | None:
        """Make a statement of this node; None when it says so already.

        :raises ValueError: it is too long, or there are too many topics.
        """
        known = self.records.get((self.own, topic))
        if known is not None and known.body == body:
            return None
        topics = self.topics[self.own]
        if len(body) > MAX_BODY or (topic not in topics and len(topics) >= MAX_TOPICS):
            raise ValueError(f"{len(body)} bytes about {topic!r} are more than other nodes keep")
        record = Record(self.own, topic, known.version + 1 if known is not None else 1, body)
        self._keep(record)
        return record

    def overtake(self, record: Record) -> Record | None:
        """Repeat this node's statement with a greater number than that of ``record``; None when
        there is no greater one."""
        if record.version + 1 >= MAX_VERSION:
            return None
        known = self.records.get((self.own, record.topic))
        body = known.body if known is not None else b""
        made = Record(self.own, record.topic, record.version + 1, body)
        self._keep(made)
        return made

    def take(self, record: Record) -> Found:
        """Keep a statement that another node has handed on, if it is news."""
        origin, topic, version, body = record
        known = self.records.get((origin, topic))
        if origin == self.own:
            if known is not None and version < known.version:
                return Found.OLD
            if known is not None and (version, body) == (known.version, known.body):
                return Found.KNOWN
            return Found.OURS
        if known is not None and version <= known.version:
            return Found.KNOWN if version == known.version else Found.OLD
        if not self._fits(record, known):
            return Found.REFUSED
        self._keep(record)
        return Found.NEWS

    def _fits(self, record: Record, known: Record | None) -> bool:
        origin, topic, version, body = record
        if len(body) > MAX_BODY or not 0 < version < MAX_VERSION:
            return False
        if self.size + len(body) - (len(known.body) if known is not None else 0) > self.most_bytes:
            return False
        topics = self.topics.get(origin)
        if topics is None:
            return len(self.topics) <= self.limit and 0 < len(origin) <= MAX_NAME
        return topic in topics or (len(topics) < MAX_TOPICS and len(topic) <= MAX_TOPIC)

    def _keep(self, record: Record) -> None:
        key = record.origin, record.topic
        known = self.records.get(key)
        if known is not None:
            self.size -= len(known.body)
        if record.origin in self._counted:
            if known is not None:
                self._add(known)
            self._add(record)
        self.size += len(record.body)
        self.records[key] = record
        self.topics.setdefault(record.origin, set()).add(record.topic)

    def _add(self, record: Record) -> None:
        """Add a statement to the sums, or take it out."""
        mark = mark_of(record)
        self.total ^= mark
        self._sums[bucket_of(record.origin)] ^= mark

    def forget(self, origin: str) -> None:
        """Drop what another node has said."""
        self.count((), (origin,))
        for topic in self.topics.pop(origin, ()):
            self.size -= len(self.records.pop((origin, topic)).body)

    def count(self, come: Iterable[str], gone: Iterable[str]) -> None:
        """Compare the statements of some nodes from now on, and those of others no more."""
        for origin in come:
            if origin not in self._counted:
                self._counted.add(origin)
                for record in self.of(origin):
                    self._add(record)
        for origin in gone:
            if origin in self._counted and origin != self.own:
                self._counted.discard(origin)
                for record in self.of(origin):
                    self._add(record)

    def of(self, origin: str) -> Iterator[Record]:
        """Return the statements of a node."""
        for topic in self.topics.get(origin, ()):
            yield self.records[origin, topic]

    def counted(self) -> Iterator[Record]:
        """Return the statements that are compared."""
        for origin in self._counted:
            yield from self.of(origin)

    # --- comparing ----------------------------------------------------------------------------

    def sums(self) -> list[int]:
        """Return the sum of each part."""
        return list(self._sums)

    def differing(self, sums: list[int]) -> list[int]:
        """Return the parts whose sums differ from those of another node."""
        return [at for at, own in enumerate(self._sums) if own != sums[at]]

    def versions(self, parts: Iterable[int]) -> dict[Key, int]:
        """Return the numbers of the statements in some parts."""
        wanted = set(parts)
        return {
            (record.origin, record.topic): record.version
            for record in self.counted()
            if bucket_of(record.origin) in wanted
        }

    def compare(self, parts: Iterable[int], theirs: dict[Key, int]) -> tuple[list[Key], list[Key]]:
        """Return what another node lacks of some parts, and what this one lacks.

        What does not count here is told to one that it counts for: it may be a forged statement,
        by which nobody reaches its node any more, and which that node is to hear of.
        """
        mine = self.versions(parts)
        lacking = [key for key, version in mine.items() if theirs.get(key, 0) < version]
        records = self.records
        lacking += [
            key
            for key, version in theirs.items()
            if key not in mine and key in records and records[key].version > version
        ]
        wanted = [
            key
            for key, version in theirs.items()
            if key not in records or records[key].version < version
        ]
        return lacking, wanted


@lru_cache(maxsize=16384)
def bucket_of(origin: str) -> int:
    """Return the part that a node's statements are in."""
    from hashlib import blake2b  # loading OpenSSL is slow, and a small fleet does not need it

    return blake2b(origin.encode(), digest_size=1).digest()[0] % BUCKETS


def mark_of(record: Record) -> int:
    """Return the share of a statement in the sums: not linear, or changes could cancel out."""
    from hashlib import blake2b  # as above

    said = f"{record.origin}\n{record.topic}\n{record.version}".encode()
    return int.from_bytes(blake2b(said, digest_size=8).digest(), "big")
