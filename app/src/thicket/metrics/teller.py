# SPDX-License-Identifier: Apache-2.0
"""``thicket_metrics``: the process that tells other nodes of the cluster how this one is.

Every node has one, so it is small, and imports what it needs when somebody asks first.

    gen_server:call({thicket_metrics, Node}, numbers)  ->  {ok, Packed} | {error, Words}
    gen_server:call({thicket_metrics, Node}, summary)  ->  the same

All numbers (:mod:`.numbers`), or what people want to see of each node of a fleet (:mod:`.summary`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from logging import getLogger
from time import monotonic
from typing import TYPE_CHECKING, Any

from thicket.base.pace import Bucket
from thicket.distribution.etf import Atom, Pid
from thicket.distribution.processes import Process

if TYPE_CHECKING:
    from thicket.distribution.connection import Connection
    from thicket.distribution.handshake import DistributionError
    from thicket.distribution.node import Node

log = getLogger(__name__)

NAME = "thicket_metrics"
NUMBERS, SUMMARY = Atom("numbers"), Atom("summary")
#: Answers that one node gets: per second on average, and at once.
RATE = 0.5
BURST = 6.0
#: Questions that are answered at the same time.
MOST = 4

_OK, _ERROR = Atom("ok"), Atom("error")


class Teller(Process):
    """``thicket_metrics`` on one node.

    :param shared: whether others may know the numbers.
    :param document: returns the status document with figures of this moment.
    :param root: the folder that the machine's facts are read in.
    """

    def __init__(
        self,
        node: Node,
        shared: Callable[[], bool],
        document: Callable[[], Awaitable[dict[str, Any]]],
        root: str,
    ) -> None:
        super().__init__(node)
        self._shared = shared
        self._document = document
        self._root = root
        self._buckets: dict[str, Bucket] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        node.register(NAME, self)

    def close(self) -> None:
        """Answer nobody any more."""
        for task in self._tasks:
            task.cancel()

    def on_message(self, connection: Connection | None, message: Any) -> None:
        match message:
            case ("$gen_call", (Pid() as sender, tag), ("numbers" | "summary") as asked):
                if why := self._refusal(connection):
                    self.reply(connection, sender, tag, (_ERROR, why.encode()))
                    return
                task = asyncio.create_task(self._tell(connection, sender, tag, asked))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case ("$gen_call", (Pid() as sender, tag), _):
                self.reply(
                    connection, sender, tag, (_ERROR, b"it tells numbers and a summary alone")
                )

    def _refusal(self, connection: Connection | None) -> str:
        """Return why a question is not answered; empty where it is."""
        if not self._shared():
            return "it does not share its numbers (metrics.share)"
        name = connection.name if connection is not None else ""
        bucket = self._buckets.setdefault(name, Bucket(RATE, BURST))
        if len(self._tasks) >= MOST or not bucket.take(monotonic()):
            return "it is asked too often"
        return ""

    async def _tell(self, connection: Connection | None, sender: Pid, tag: Any, asked: str) -> None:
        from thicket.metrics import machine

        try:
            document, facts = await self._document(), machine.read(self._root)
            if asked == SUMMARY:
                from thicket.metrics import summary

                answer = (_OK, summary.pack(summary.summary(document, facts)))
            else:
                from thicket.metrics.gather import pack
                from thicket.metrics.numbers import numbers

                answer = (_OK, pack(numbers(document, facts)))
        except Exception:
            log.exception("the %s cannot be told", asked)
            answer = (_ERROR, b"an error of the node; see its log")
        self.reply(connection, sender, tag, answer)

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        super().on_disconnect(connection, reason)
        self._buckets.pop(connection.name, None)
