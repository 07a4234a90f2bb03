# SPDX-License-Identifier: Apache-2.0
"""``thicket_labels``: the labels of devices on one node, and how they spread from node to node.

    {have, Number, Digest}   the newest document here; 0 and nothing for none
    {labels, Packed}         a document (``thicket.trust.labels``)

A node that hears of an older document than its own sends that, and one that hears of a newer one
says what it has, and so gets it. Documents are signed, so any node may pass them on. Nodes of
Erlang have no process of this name: what is sent to it vanishes there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from logging import getLogger
from time import monotonic
from typing import TYPE_CHECKING, Any

from thicket.base.errors import ThicketError
from thicket.base.files import read_kept, write_atomically
from thicket.base.pace import Bucket
from thicket.base.threads import finish
from thicket.distribution.etf import Atom
from thicket.distribution.handshake import key_of
from thicket.distribution.processes import Process

if TYPE_CHECKING:
    from thicket.base.problems import Problems
    from thicket.distribution.connection import Connection
    from thicket.distribution.handshake import DistributionError
    from thicket.distribution.node import Node
    from thicket.trust.labels import Entries, SignedLabels
    from thicket.trust.standing import Standing

log = getLogger(__name__)

NAME = "thicket_labels"
FILE = "labels.bin"
#: Bytes of the largest document, as :mod:`thicket.trust.labels` has it, which is imported when
#: there is one.
MOST_BYTES = 128 * 1024
#: Questions that one node gets for what it says it has, and documents that it gets or that are read
#: from it: per second on average, and at once. What is dropped comes again with :data:`TELL`.
RATE, BURST = 1 / 15, 8.0
#: Seconds for which nobody else is asked: all neighbours tell of a new document at once, and one of
#: them has to send it.
HOLD = 3.0
#: Seconds between two times at which one of the connected nodes, in turn, hears what is here.
TELL = 60.0

_HAVE, _LABELS = Atom("have"), Atom("labels")


class LabelError(ThicketError):
    """Labels that are not taken; the text says why."""

    code = "not-taken"


class LabelStore(Process):
    """The labels on one node of the cluster.

    :param standing: returns what this node is in its fleet, None without one.
    :param folder: where the file is.
    :param changed: called when there are other labels.
    """

    answers = False

    def __init__(
        self,
        node: Node,
        standing: Callable[[], Standing | None],
        folder: str,
        problems: Problems,
        changed: Callable[[], None],
    ) -> None:
        super().__init__(node)
        self._cluster = node
        self._standing = standing
        self._path = f"{folder}/{FILE}"
        self._problems = problems
        self._changed = changed
        self._held: SignedLabels | None = None
        self._questions: dict[str, Bucket] = {}
        self._documents: dict[str, Bucket] = {}
        self._asked = float("-inf")
        self._writing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Read the file, then take part in the exchange until cancelled."""
        try:
            packed = await finish(lambda: read_kept(self._path, MOST_BYTES + 1))
            self.take(packed, "the disk", keep=False)
        except FileNotFoundError:
            pass
        except (OSError, LabelError) as error:  # of another fleet, or damaged: others have them
            log.warning("%s is not used: %s", self._path, error)
        self._cluster.register(NAME, self)
        for info in self._cluster.nodes():  # also with nothing: they send what they have
            if info.state == "up":
                self.tell(info.name)
        for turn in count():
            await asyncio.sleep(TELL)
            up = [one.name for one in self._cluster.nodes() if one.state == "up" and one.direct]
            if up and self.current() is not None:
                self.tell(up[turn % len(up)])

    # -- what others ask

    def current(self) -> SignedLabels | None:
        """Return the document in force; none of a signer that was revoked since."""
        held, standing = self._held, self._standing()
        if held is None or standing is None or held.signer in standing.lists.names:
            return None
        return held

    def entries(self) -> Entries:
        """Return what is said about devices."""
        current = self.current()
        return current.labels.entries if current is not None else {}

    def take(self, packed: bytes, origin: str, *, keep: bool = True) -> bool:
        """Take a document; return whether it is newer than what was in force.

        :param origin: who has brought it, in words.
        :param keep: write it to the disk.
        :raises LabelError: it is not of this fleet, or its signer is revoked.
        """
        from thicket.trust.labels import SignedLabels
        from thicket.trust.verify import RefusedError

        standing = self._standing()
        if standing is None:
            raise LabelError("this node belongs to no fleet")
        try:
            found = SignedLabels.read(packed, standing.fleet)
        except RefusedError as error:
            raise LabelError(str(error)) from None
        if found.signer in standing.lists.names:
            raise LabelError(f"{found.signer} is revoked")
        current = self.current()
        if current is not None and found.order <= current.order:
            return False
        self._held = found
        named = sum(bool(entry.label) for entry in found.labels.entries.values())
        log.info("labels %d from %s are in force: %d", found.labels.number, origin, named)
        if keep:
            self._writing = asyncio.create_task(self._write(found, self._writing))
        self._changed()
        return True

    async def _write(self, labels: SignedLabels, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        try:
            await finish(lambda: write_atomically(self._path, labels.packed))
        except OSError as error:
            message = f"the labels of devices cannot be kept: {error}"
            self._problems.report("fleet", "not-kept", message, "warning")
        else:
            self._problems.clear("fleet", "not-kept")

    async def written(self) -> None:
        """Wait until what was taken is on the disk, or cannot be kept."""
        if self._writing is not None:
            await asyncio.wait({self._writing})

    # -- the exchange

    def tell(self, peer: str) -> None:
        """Tell the node ``peer`` which document is in force here."""
        connection = self._cluster.connections.get(key_of(peer))
        if connection is not None:
            self._send(connection, (_HAVE, *self._order()))

    def tell_all(self, but: str = "") -> None:
        """Tell all connected nodes, except the one named ``but``."""
        if self.current() is None:
            return
        for info in self._cluster.nodes():
            if info.state == "up" and info.name != but:
                self.tell(info.name)

    def node_up(self, name: str) -> None:
        """The node ``name`` is connected."""
        if self.current() is not None:
            self.tell(name)

    def _order(self) -> tuple[int, bytes]:
        current = self.current()
        return (0, b"") if current is None else current.order

    def on_message(self, connection: Connection | None, message: Any) -> None:
        if connection is None or self._standing() is None:
            return
        match message:
            case ("have", int() as number, bytes() as digest) if len(digest) in {0, 32}:
                self._on_have(connection, (number, digest))
            case ("labels", bytes() as packed) if len(packed) <= MOST_BYTES:
                if self._due(self._documents, connection):
                    self._on_labels(connection, packed)

    def _on_have(self, connection: Connection, theirs: tuple[int, bytes]) -> None:
        mine = self._order()
        if theirs > mine:
            if monotonic() - self._asked >= HOLD and self._due(self._questions, connection):
                self._asked = monotonic()
                self._send(connection, (_HAVE, *mine))
        elif theirs < mine:
            current = self.current()
            if current is not None and self._due(self._documents, connection):
                self._send(connection, (_LABELS, current.packed))

    def _on_labels(self, connection: Connection, packed: bytes) -> None:
        try:
            if self.take(packed, connection.name):
                self._asked = float("-inf")
                self.tell_all(connection.name)
        except LabelError as error:
            log.warning("labels from %s are not taken: %s", connection.name, error)

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        super().on_disconnect(connection, reason)
        self._questions.pop(connection.name, None)
        self._documents.pop(connection.name, None)

    def _send(self, connection: Connection, message: Any) -> None:
        self.node.send_to_name(connection, self.pid, NAME, message)

    @staticmethod
    def _due(buckets: dict[str, Bucket], peer: Connection) -> bool:
        return buckets.setdefault(peer.name, Bucket(RATE, BURST)).take(monotonic())
