# SPDX-License-Identifier: Apache-2.0
"""Processes that wait for one answer of another node."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from thicket.distribution.processes import Process

if TYPE_CHECKING:
    from thicket.distribution.connection import Connection
    from thicket.distribution.handshake import DistributionError
    from thicket.distribution.processes import ProcessTable


class Waiting(Process):
    """A process for one question, so that a late answer finds nobody.

    :param connection: to the node that is asked, None for this one.
    :ivar reference: identifies the answer, and the watch on the process that is asked.
    :ivar answer: the answer; fails when there will be none.
    """

    def __init__(self, node: ProcessTable, connection: Connection | None) -> None:
        super().__init__(node)
        self.reference = node.new_reference()
        self.connection = connection
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def fail(self, error: DistributionError) -> None:
        """Raise ``error`` for the caller who waits, unless there is an answer."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def awaits(self, connection: Connection, reference: Any) -> bool:
        return connection is self.connection and bool(reference == self.reference)

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        super().on_disconnect(connection, reason)
        if connection is self.connection:
            self.fail(reason)
