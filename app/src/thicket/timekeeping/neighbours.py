# SPDX-License-Identifier: Apache-2.0
"""``thicket_time``: what nodes of a cluster say to each other about the time.

    {claim, Grade, Stamp, Origin, Depth, Age, Clock, Number}   what a node's clock is worth
    {want, Number}                                             send me your signed statement
    {statement, Packed}                                        that statement

    gen_server:call({thicket_time, Node}, key)  ->  {ok, Number, Key} | {error, Words}

The time itself goes by NTP. What each peer can make a node keep or do is bounded, and ends with its
connection. A node of Erlang has no process of this name: what is sent to it vanishes there.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv6Address
from logging import getLogger
from typing import TYPE_CHECKING, Any, NamedTuple

from thicket.base.pace import Bucket
from thicket.distribution.etf import Atom, Pid
from thicket.distribution.handshake import DistributionError, address_of, key_of
from thicket.distribution.processes import Process
from thicket.timekeeping import keys, statement
from thicket.timekeeping.claims import SAME, Claim, Heard, pack, unpack
from thicket.timekeeping.keys import ERROR, KEY, MOST_CLIENTS, OK, PairKey

if TYPE_CHECKING:
    from thicket.distribution.connection import Connection
    from thicket.distribution.node import Node

log = getLogger(__name__)

NAME = "thicket_time"
#: Messages of one peer that are looked at: per second on average, and at once.
RATE, BURST = 0.2, 12.0
#: Peers whose claims are kept.
MOST_HEARD = 256
#: Seconds that a node has for a key.
KEY_SECONDS = 10.0

_WANT, _STATEMENT = Atom("want"), Atom("statement")


class Says(NamedTuple):
    """What a node asks its part ``time``.

    :ivar claim: returns what its clock is worth, and the number of its statement.
    :ivar changed: called when others have said something new.
    :ivar serve: makes chronyd know the keys of clients; raises a ThicketError where it cannot.
    :ivar statement: returns the packed statement; empty without one.
    :ivar take: takes a packed statement that a node has sent.
    """

    claim: Callable[[], tuple[Claim, int]]
    changed: Callable[[], None]
    serve: Callable[[], Awaitable[None]]
    statement: Callable[[], bytes]
    take: Callable[[bytes, str], None]


class Neighbours(Process):
    """``thicket_time`` on one node.

    :ivar heard: the claims of the connected nodes.
    :ivar clients: the keys of those who take the time from here.
    :ivar moved: those that have set their clocks; who looks at it empties it.
    """

    def __init__(self, node: Node, says: Says) -> None:
        super().__init__(node)
        self.heard: dict[IPv6Address, Heard] = {}
        self.clients: dict[IPv6Address, PairKey] = {}
        self.moved: set[IPv6Address] = set()
        self._cluster = node
        self._says = says
        self._secret = os.urandom(32)
        self._keys: dict[IPv6Address, PairKey] = {}
        self._buckets: dict[str, Bucket] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        node.register(NAME, self)

    def close(self) -> None:
        """Say no more."""
        for task in self._tasks:
            task.cancel()
        self.on_stop()
        self._cluster.end(self)

    # -- saying

    def tell(self, peer: str) -> None:
        """Say to the node ``peer`` what this node's clock is worth."""
        connection = self._cluster.connections.get(key_of(peer))
        if connection is not None:
            self._send(connection, pack(*self._says.claim()))

    def tell_all(self) -> None:
        """Say it to all connected nodes."""
        for info in self._cluster.nodes():
            if info.state == "up" and info.direct:
                self.tell(info.name)

    def _send(self, connection: Connection, message: Any) -> None:
        self.node.send_to_name(connection, self.pid, NAME, message)

    # -- hearing

    def on_message(self, connection: Connection | None, message: Any) -> None:
        if connection is None:
            return
        address = address_of(connection.name)
        bucket = self._buckets.setdefault(connection.name, Bucket(RATE, BURST))
        if address is None or not bucket.take(time.monotonic()):
            return
        match message:
            case ("claim", *_):
                self._on_claim(connection, address, message)
            case ("want", int()):
                if packed := self._says.statement():
                    self._send(connection, (_STATEMENT, packed))
            case ("statement", bytes() as packed) if len(packed) <= statement.MOST:
                self._says.take(packed, connection.name)
            case ("$gen_call", (Pid() as sender, tag), "key"):
                task = asyncio.create_task(self._give(connection, sender, tag, address))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _on_claim(self, connection: Connection, address: IPv6Address, message: Any) -> None:
        found = unpack(message)
        if found is None or (address not in self.heard and len(self.heard) >= MOST_HEARD):
            return
        claim, number = found
        before = self.heard.get(address)
        now, clock = time.monotonic(), time.time()
        heard = self.heard[address] = Heard(claim, now)
        if before is None:  # it may have begun after we told it ours
            self.tell(connection.name)
        if number > self._says.claim()[1]:
            self._send(connection, (_WANT, number))
        moved = before is not None and (
            abs(before.ahead(clock, now) - heard.ahead(clock, now)) > SAME
        )
        if moved:
            self.moved.add(address)
        if moved or before is None or before.claim[:4] != claim[:4]:
            self._says.changed()

    async def _give(
        self, connection: Connection, sender: Pid, tag: Any, client: IPv6Address
    ) -> None:
        """Answer who asks for the key of its address."""
        key = keys.of_client(self._secret, client)
        taken = {one.number for one in (*self.clients.values(), *self._keys.values())}
        answer: tuple[Any, ...]
        if client not in self.clients and (
            len(self.clients) >= MOST_CLIENTS or key.number in taken
        ):
            answer = (ERROR, b"it gives the time to no more nodes")
        else:
            self.clients[client] = key
            answer = (OK, key.number, key.key)
            try:
                await self._says.serve()
            except Exception as error:
                log.debug("the time is not given to %s", client, exc_info=True)
                answer = (ERROR, str(error)[:200].encode())
        self.reply(connection, sender, tag, answer)

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        super().on_disconnect(connection, reason)
        self._buckets.pop(connection.name, None)
        address = address_of(connection.name)
        if address is not None:
            for known in (self.heard, self.clients, self._keys):
                known.pop(address, None)
            self.moved.discard(address)
            self._says.changed()

    # -- keys of others

    async def key(self, address: IPv6Address) -> PairKey | None:
        """Return the key for taking the time from a connected node; None where it gives none."""
        known = self._keys.get(address)
        if known is not None:
            return known
        name = next((n for n in self._names() if address_of(n) == address), None)
        if name is None:
            return None
        try:
            answer = await self._cluster.request((NAME, name), KEY, KEY_SECONDS)
        except DistributionError as error:
            log.info("%s gives no time: %s", address, error)
            return None
        key = keys.unpack(answer)
        taken = {one.number for one in (*self.clients.values(), *self._keys.values())}
        if key is None or key.number in taken or address not in self.heard:
            log.info("%s gives no time: %s", address, _why(answer))
            return None
        self._keys[address] = key
        return key

    def _names(self) -> Iterable[str]:
        return (info.name for info in self._cluster.nodes() if info.state == "up" and info.direct)


def _why(answer: Any) -> str:
    match answer:
        case ("error", bytes() as words):
            return words[:200].decode("utf-8", "replace")
    return "its answer is no key"
