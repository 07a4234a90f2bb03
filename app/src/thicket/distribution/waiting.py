# SPDX-License-Identifier: Apache-2.0
"""What waits for one answer of another node."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from thicket.distribution.processes import Process

if TYPE_CHECKING:
    from thicket.distribution.connection import Connection
    from thicket.distribution.handshake import DistributionError
    from thicket.distribution.processes import ProcessTable


class Waiting(Process):
    """A process of its own for one question, so that an answer that comes too late finds nobody.

    :param connection: to the node that is asked, None for this one.
    :ivar reference: tells the answer from others, and is that of the watch on who is asked.
    :ivar answer: the answer; fails when there will be none.
    """

    def __init__(self, node: ProcessTable, connection: Connection | None) -> None:
        super().__init__(node)
        self.reference = node.new_reference()
        self.connection = connection
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def fail(self, error: DistributionError) -> None:
        """Let whoever waits see *error*, unless there is an answer."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def awaits(self, connection: Connection, reference: Any) -> bool:
        """See :meth:`.Process.awaits`: the node that was asked."""
        return connection is self.connection and bool(reference == self.reference)

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        super().on_disconnect(connection, reason)
        if connection is self.connection:
            self.fail(reason)
