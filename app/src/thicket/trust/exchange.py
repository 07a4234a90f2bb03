# SPDX-License-Identifier: Apache-2.0
"""How lists of revocations spread: nodes tell each other the digests of theirs.

A node that hears of a list that it lacks asks for it, and one that has a list that the other lacks
sends it. Lists are signed by the fleet's root, so any node may pass them on, and none is lost by
another one (``thicket.trust.revocations``). Nodes of Erlang have no process of this name: what is
sent to it vanishes there.

    {lists, [Digest]}    which lists are in force here
    {want, [Digest]}     send me these
    {list, Packed}       one of them
"""

from __future__ import annotations

from collections.abc import Callable
from logging import getLogger
from time import monotonic
from typing import TYPE_CHECKING, Any

from thicket.base.pace import Bucket
from thicket.distribution.etf import Atom
from thicket.distribution.handshake import key_of
from thicket.distribution.processes import Process
from thicket.trust.revocations import MAX_LIST, MAX_LISTS, InForce

if TYPE_CHECKING:
    from thicket.distribution.connection import Connection
    from thicket.distribution.handshake import DistributionError
    from thicket.distribution.node import Node

log = getLogger(__name__)

NAME = "thicket_trust"

RATE = 0.2
BURST = 8.0
"""Answers that one node gets, and lists from it that are read: per second on average, and at once.
What is dropped comes again with the next :meth:`Exchange.tell_all`."""

_LISTS, _WANT, _LIST = Atom("lists"), Atom("want"), Atom("list")


class Exchange(Process):
    """``thicket_trust`` on one node.

    :param lists: returns the lists in force.
    :param take: takes a packed list and the name of the node that it is from, and returns whether
        what is in force has changed.
    :ivar cluster: the node.
    """

    answers = False

    def __init__(
        self,
        node: Node,
        lists: Callable[[], InForce],
        take: Callable[[bytes, str], bool],
    ) -> None:
        super().__init__(node)
        self.cluster = node
        self._lists = lists
        self._take = take
        self._answers: dict[str, Bucket] = {}
        self._looks: dict[str, Bucket] = {}
        node.register(NAME, self)

    def tell(self, peer: str) -> None:
        """Tell the node ``peer`` which lists are in force here."""
        connection = self.cluster.connections.get(key_of(peer))
        if connection is not None:
            self._send(connection, (_LISTS, list(self._lists().by_digest())))

    def tell_all(self, but: str = "") -> None:
        """Tell all connected nodes, for example because a list is new."""
        for info in self.cluster.nodes():
            if info.state == "up" and info.name != but:
                self.tell(info.name)

    def on_message(self, connection: Connection | None, message: Any) -> None:
        if connection is None:
            return
        name = connection.name
        match message:
            case ("lists", list() as told) if _digests(told):
                self._on_lists(connection, set(told))
            case ("want", list() as wanted) if _digests(wanted):
                for digest, packed in self._lists().by_digest().items():
                    if digest in wanted and self._due(self._answers, name):
                        self._send(connection, (_LIST, packed))
            case ("list", bytes() as packed) if len(packed) <= MAX_LIST:
                if not self._due(self._looks, name):
                    return
                changed = self._take(packed, name)
                if changed:
                    self.tell_all(name)
                # The sender lacks something, unless this is the only list: the usual case.
                if list(self._lists().by_digest().values()) != [packed]:
                    self.tell(name)

    def _on_lists(self, connection: Connection, theirs: set[bytes]) -> None:
        mine = self._lists()
        missing = [digest for digest in theirs if not mine.knows(digest)]
        if missing:
            if self._due(self._answers, connection.name):
                self._send(connection, (_WANT, missing))
            return
        for digest, packed in mine.by_digest().items():
            if digest not in theirs and self._due(self._answers, connection.name):
                self._send(connection, (_LIST, packed))

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        super().on_disconnect(connection, reason)
        self._answers.pop(connection.name, None)
        self._looks.pop(connection.name, None)

    def _send(self, connection: Connection, message: Any) -> None:
        self.node.send_to_name(connection, self.pid, NAME, message)

    @staticmethod
    def _due(buckets: dict[str, Bucket], name: str) -> bool:
        return buckets.setdefault(name, Bucket(RATE, BURST)).take(monotonic())


def _digests(values: list[Any]) -> bool:
    return len(values) <= MAX_LISTS and all(
        isinstance(value, bytes) and len(value) == 32 for value in values
    )
