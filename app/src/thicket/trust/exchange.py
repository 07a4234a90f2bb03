# SPDX-License-Identifier: Apache-2.0
"""How a new list of revocations spreads: nodes tell each other the number of theirs.

Who has the higher number sends the list, who takes it tells everybody else. The list is signed by
the fleet's root, so it does not matter who it comes from. Nodes of Erlang have no process of this
name, where what is sent to it vanishes.
"""

from __future__ import annotations

from collections.abc import Callable
from logging import getLogger
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from thicket.discovery import Bucket
from thicket.distribution.etf import Atom
from thicket.distribution.handshake import key_of
from thicket.distribution.processes import Process
from thicket.trust.verify import MAX_LIST

if TYPE_CHECKING:
    from thicket.distribution.connection import Connection
    from thicket.distribution.handshake import DistributionError
    from thicket.distribution.node import Node

log = getLogger("thicket.trust")

NAME: Final = "thicket_trust"

RATE: Final = 0.2
BURST: Final = 4.0
"""Answers per second that one node gets, and lists of its that are looked at, on average and at
once. What is dropped comes again with the next :meth:`Exchange.tell_all`."""

_NUMBER, _LIST = Atom("number"), Atom("list")


class Exchange(Process):
    """``thicket_trust`` on one node.

    ``current`` returns number and bytes of the list in force (0 and nothing where there is none);
    ``take`` is given the bytes of another one, and says whether it is in force now.
    """

    def __init__(
        self,
        node: Node,
        current: Callable[[], tuple[int, bytes]],
        take: Callable[[bytes, str], bool],
    ) -> None:
        super().__init__(node)
        self._node = node
        self._current = current
        self._take = take
        self._answers: dict[str, Bucket] = {}
        self._looks: dict[str, Bucket] = {}
        node.register(NAME, self)

    def tell(self, peer: str) -> None:
        """Tell the node *peer* the number of our list."""
        connection = self._node._connections.get(key_of(peer))
        if connection is not None:
            self._send(connection, (_NUMBER, self._current()[0]))

    def tell_all(self, but: str = "") -> None:
        """Tell all connected nodes, for example because the list is new."""
        for info in self._node.nodes():
            if info.state == "up" and info.name != but:
                self.tell(info.name)

    def on_message(self, connection: Connection | None, message: Any) -> None:
        if connection is None:
            return
        number, data = self._current()
        match message:
            case ("number", int() as theirs) if theirs != number:
                if self._due(self._answers, connection.name):
                    # ours, or by telling that ours is older we ask for theirs
                    answer = (_LIST, data) if theirs < number else (_NUMBER, number)
                    self._send(connection, answer)
            case ("list", bytes() as packed) if len(packed) <= MAX_LIST:
                if self._due(self._looks, connection.name) and self._take(packed, connection.name):
                    self.tell_all(connection.name)

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        super().on_disconnect(connection, reason)
        self._answers.pop(connection.name, None)
        self._looks.pop(connection.name, None)

    def _send(self, connection: Connection, message: Any) -> None:
        self.node.send_to_name(connection, self.pid, NAME, message)

    @staticmethod
    def _due(buckets: dict[str, Bucket], name: str) -> bool:
        return buckets.setdefault(name, Bucket(RATE, BURST)).take(monotonic())
