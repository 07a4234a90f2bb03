# SPDX-License-Identifier: Apache-2.0
"""``thicket_casts``: the process by which Thicket nodes hand on messages to groups.

It runs the :class:`~thicket.distribution.relay.Relay` over the connections of this node. Nodes of
Erlang have no process of this name, and get no casts; what is for their processes, the node that is
connected with them sends there.

    {cast, Origin, Run, Hops, Scope, Group, Targets, Body}
    {taken, Count}                      I have taken so many more casts of yours
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from thicket.distribution.etf import DecodeError, EncodeError
from thicket.distribution.handshake import ROSTER, DistributionError, key_of
from thicket.distribution.processes import Process
from thicket.distribution.relay import (
    DROPS,
    MAX_BODY,
    MAX_WORD,
    PATIENCE,
    Deliver,
    Pass,
    Relay,
    mark_of,
    pack,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from thicket.distribution.connection import Connection
    from thicket.distribution.node import Node

NAME = "thicket_casts"

AT_ONCE = 8
"""Nodes without a connection that a long message is sent to at the same time."""


class Casts(Process):
    """``thicket_casts`` on one node.

    :ivar relay: what is sent, handed on and received.
    """

    answers = False
    pins = False

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._node = node
        self._roster = node.membership.roster
        self.relay = Relay(key_of(node.name), self._roster.ways, _new_run)
        self._epoch = self._roster.epoch
        self._timer: asyncio.TimerHandle | None = None
        self._room: list[asyncio.Future[None]] = []
        self._stopped = False

    def counters(self) -> dict[str, int]:
        """Return how many casts were sent, handed on and delivered, did not come, and were dropped
        here."""
        counters = self.relay.counters
        found = {name: counters[name] for name in ("sent", "passed", "delivered", "lost")}
        return {**found, "dropped": sum(counters[name] for name in DROPS)}

    # --- sending ------------------------------------------------------------------------------

    def leads_to(self, key: str) -> bool:
        """Return whether casts reach another node (a key, or :func:`.relay.by_way_of`)."""
        way = self._roster.ways().get(mark_of(key)) if self._roster.active else None
        return way is not None and way.hops > 0

    async def send(self, scope: str, group: bytes, names: Collection[str], body: bytes) -> set[str]:
        """Send a message to the members of a group on some nodes; waits while a neighbour on the
        way has no room.

        :param group: the encoded name.
        :param body: the encoded message.
        :returns: the nodes that it was sent to.
        """
        if len(body) > MAX_BODY:
            return await self._send_long(scope, group, names, body)
        await self._room_for(names)
        known = {name for name in names if self.leads_to(name)}
        if known and max(len(scope.encode()), len(group)) <= MAX_WORD:
            cast = self.relay.make(scope, group, sorted(known), body)
            self.relay.send(cast, self._now())
            self._step()
            return known
        return set()

    async def _room_for(self, names: Collection[str]) -> None:
        end = self._now() + PATIENCE
        while (left := end - self._now()) > 0:
            ways = self._roster.ways()
            hops = {ways[mark].hop for mark in map(mark_of, names) if mark in ways}
            if all(map(self.relay.has_room, hops)):
                return
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._room.append(waiter)
            await asyncio.wait({waiter}, timeout=left)

    async def _send_long(
        self, scope: str, group: bytes, names: Collection[str], body: bytes
    ) -> set[str]:
        room = asyncio.Semaphore(AT_ONCE)
        casts = [
            (name, self.relay.make(scope, group, (name,), body))
            for name in sorted(names)
            if self.leads_to(name)
        ]

        async def send(name: str, cast: Any) -> str:
            async with room:
                try:
                    connection = await self._node.connection_to(name, None)
                    await connection.drain()
                except DistributionError:
                    return ""
                self.relay.send(cast, self._now(), to=connection.key)
                self._step()
                return name

        return set(await asyncio.gather(*(send(*cast) for cast in casts))) - {""}

    # --- receiving ----------------------------------------------------------------------------

    def on_message(self, connection: Connection | None, message: Any) -> None:
        if connection is not None and connection.has(ROSTER):
            self.relay.receive(connection.key, unpack(message), self._now())
            self._step()

    def down(self, connection: Connection) -> None:
        """A connection has ended, and the roster knows it."""
        self.relay.peer_down(connection.key, self._now())
        self._step()

    def follow(self) -> None:
        """The roster may have changed."""
        if self._epoch != self._roster.epoch:
            self._epoch = self._roster.epoch
            self.relay.changed(self._now())
            self._step()

    def _step(self) -> None:
        now = self._now()
        actions = self.relay.step(now)
        while actions:
            for action in actions:
                self._do(action)
            actions = self.relay.step(now)
        for waiter in self._room:
            if not waiter.done():
                waiter.set_result(None)
        self._room.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._stopped and (due := self.relay.due()) < float("inf"):
            self._timer = asyncio.get_running_loop().call_at(due, self._step)

    def _do(self, action: Pass | Deliver) -> None:
        if isinstance(action, Pass):
            connection = self._node.connections.get(action.peer)
            if connection is None:
                self.relay.peer_down(action.peer, self._now())
            else:
                self.node.send_to_name(connection, self.pid, NAME, pack(action.message))
            return
        scope = self._node.scopes.get(action.cast.scope)
        if scope is not None:
            try:
                behind = scope.deliver(action.node, action.cast.group, action.cast.body)
                self.relay.counters["stuck"] += behind
            except (DecodeError, EncodeError):
                self.relay.counters["form"] += 1

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def on_stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()


def _new_run() -> int:
    return int.from_bytes(os.urandom(4), "big")
