# SPDX-License-Identifier: Apache-2.0
"""What the nodes of a cluster tell each other about changes of the mesh's passphrase."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from logging import getLogger
from typing import TYPE_CHECKING, Any

from thicket.base.pace import Bucket
from thicket.cluster.passphrase_file import PassphraseError
from thicket.distribution.etf import Atom, Pid
from thicket.distribution.handshake import DistributionError
from thicket.distribution.processes import Process

if TYPE_CHECKING:
    from thicket.cluster.passphrase import Passphrase
    from thicket.distribution.connection import Connection
    from thicket.distribution.node import Node

log = getLogger(__name__)

#: The name under which each node answers.
NAME = "thicket_passphrase"
#: Seconds that another node may take: it writes to its card, and may have to wait for that.
ANSWER = 20.0
#: Nodes that are told at the same time.
AT_ONCE = 32
#: Answers per second that one node gets about changes, on average and at once.
RATE = 0.2
BURST = 6.0

PREPARE = Atom("prepare")
CHANGE = Atom("change")
CANCEL = Atom("cancel")
SIGNED = Atom("signed")
_HAVE = Atom("have")
_OK = Atom("ok")
_ERROR = Atom("error")


async def tell(node: Node, nodes: list[dict[str, Any]], message: Any) -> dict[str, Any]:
    """Tell other nodes what to do with the passphrase.

    :param node: this node.
    :param nodes: the others: ``name`` and ``state``.
    :returns: ``done`` (names of nodes, this one among them), ``failed`` (why, by name) and
        ``missing`` (nodes that are not connected).
    """
    others = [str(one["name"]) for one in nodes if one["state"] == "up"]
    missing = [str(one["name"]) for one in nodes if one["state"] != "up"]
    room = asyncio.Semaphore(AT_ONCE)

    async def tell_one(name: str) -> str | None:
        async with room:
            return await _tell_one(node, name, message)

    answers = await asyncio.gather(*map(tell_one, others))
    failed = {name: why for name, why in zip(others, answers, strict=True) if why is not None}
    done = [name for name in others if name not in failed]
    return {"done": sorted([node.name, *done]), "failed": failed, "missing": sorted(missing)}


async def _tell_one(node: Node, name: str, message: Any) -> str | None:
    """Why the node ``name`` has not done it, None when it has."""
    why = ""
    for _ in range(2):  # a lost connection comes back
        try:
            answer = await node.request((NAME, name), message, ANSWER / 2)
        except DistributionError as error:
            why = str(error)
            if error.code == "noproc":
                return "it is no Thicket node, or one that has just started"
            continue
        match answer:
            case "ok":
                return None
            case ("error", (str() | bytes()) as words):
                return words.decode(errors="replace") if isinstance(words, bytes) else words
            case _:
                return "it gave an answer that makes no sense"
    return why


class Listener(Process):
    """What other nodes ask, by ``gen_server:call``, and the news that nodes of a fleet exchange."""

    #: Requests of one node that are worked on at the same time. What others ask takes no part of
    #: these: a change that many tell of at once must not turn away who asks for it.
    MOST = 4

    def __init__(self, node: Node, passphrase: Passphrase) -> None:
        super().__init__(node)
        self._node = node
        self._passphrase = passphrase
        #: What is being worked on, and for which node.
        self._tasks: dict[asyncio.Task[None], str] = {}
        #: The signed changes among these that came as news: the same one often comes from several.
        self._news: set[bytes] = set()
        self._buckets: dict[str, Bucket] = {}

    def tell(self, peer: str) -> None:
        """Tell the node ``peer`` which change is the newest here; it asks for it, or sends a newer.

        This is done over authenticated and encrypted connections only.
        """
        connection = self._node.connections.get(peer)
        if connection is not None and self._spreads:
            self._cast(connection, (_HAVE, *self._passphrase.kept.newest()))

    def tell_all(self, but: str = "") -> None:
        """Tell all connected nodes, except the one named ``but``."""
        for info in self._node.nodes():
            if info.state == "up" and info.name != but:
                self.tell(info.name)

    @property
    def _spreads(self) -> bool:
        return self._node.encrypted and self._passphrase.kept.fleet() is not None

    def _cast(self, connection: Connection, message: Any) -> None:
        self.node.send_to_name(connection, self.pid, NAME, message)

    def _due(self, name: str) -> bool:
        return self._buckets.setdefault(name, Bucket(RATE, BURST)).take(time.monotonic())

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        super().on_disconnect(connection, reason)
        self._buckets.pop(connection.name, None)

    def on_message(self, connection: Connection | None, message: Any) -> None:
        match message:
            case ("have", int() as number, bytes() as digest):
                if connection is not None and self._spreads and self._due(connection.name):
                    lacks = self._passphrase.heard(number, digest)
                    if lacks is not None:
                        newest = (_HAVE, *self._passphrase.kept.newest())
                        self._cast(connection, (SIGNED, lacks) if lacks else newest)
            case ("signed", bytes() as packed):
                if connection is None or not self._spreads or not self._due(connection.name):
                    return
                if packed not in self._news and self._has_room(connection.name):
                    self._news.add(packed)
                    self._begin(self._take(packed, connection.name), connection.name)
            case ("$gen_call", (Pid() as sender, tag), request):
                who = connection.name if connection is not None else self.node.name
                if self._has_room(who):
                    self._begin(self._answer(connection, sender, tag, request, who), who)
                else:
                    self.reply(connection, sender, tag, (_ERROR, b"it is busy"))

    def _has_room(self, who: str) -> bool:
        return list(self._tasks.values()).count(who) < self.MOST

    def _begin(self, work: Coroutine[Any, Any, None], who: str) -> None:
        task = asyncio.create_task(work)
        self._tasks[task] = who
        task.add_done_callback(self._tasks.pop)

    async def _take(self, packed: bytes, who: str) -> None:
        try:
            await self._passphrase.take(packed, who)
        except PassphraseError as error:
            if error.code != "older":
                log.warning("a change of the passphrase from %s is not done: %s", who, error)
        finally:
            self._news.discard(packed)

    async def _answer(
        self, connection: Connection | None, sender: Pid, tag: Any, request: Any, who: str
    ) -> None:
        answer: Any = _OK
        try:
            await self._do(request, who)
        except PassphraseError as error:
            log.warning("%s asked for what cannot be done: %s", who, error)
            answer = (_ERROR, str(error).encode())
        except Exception as error:
            log.exception("a request of %s failed", who)
            answer = (_ERROR, f"{type(error).__name__} there".encode())
        self.reply(connection, sender, tag, answer)

    async def _do(self, request: Any, who: str) -> None:
        subject = self._passphrase
        if subject.kept.fleet() is not None:
            match request:
                case ("signed", bytes() as packed) if self._node.encrypted:
                    await subject.take(packed, who)
                    return
                case _:
                    raise subject.refuse(who, "it is not signed")
        match request:
            case ("prepare", bytes() as passphrase):
                log.info("%s hands over the mesh's next passphrase", who)
                await subject.prepare(_text(passphrase))
            case ("change", bytes() as passphrase):
                await subject.change_to(_text(passphrase), who)
            case "cancel":
                log.info("%s drops the mesh's next passphrase", who)
                await subject.cancel()
            case _:
                raise PassphraseError("bad-request", "this node does not know such a request")

    def on_stop(self) -> None:
        self.close()

    def close(self) -> None:
        """End what is being worked on."""
        for task in self._tasks:
            task.cancel()


def _text(passphrase: bytes) -> str:
    try:
        return passphrase.decode()
    except UnicodeDecodeError:
        raise PassphraseError("bad-passphrase", "a passphrase must be UTF-8") from None
