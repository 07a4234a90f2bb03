# SPDX-License-Identifier: Apache-2.0
"""Serves this machine's I2C bus to another machine over two pipes, for example those of ``ssh``.

    ssh node python3 -m thicket.trust.agent /dev/i2c-1

serves that bus on its standard input and output, with one JSON object per line in each direction.
The chip's driver runs on the engineer's machine, which decides what is provisioned; this side only
moves bytes and holds the lock of the bus. The other side is ``authority.remote_bus``.
"""

from __future__ import annotations

import time
from typing import Any, BinaryIO

from thicket.base import jsonlines
from thicket.identity.bus import (
    Bus,
    BusError,
    BusFaultError,
    BusLockedError,
    NotAcknowledgedError,
)

MAX_LINE = 1 << 20
"""Bytes of the longest line; the longest holds a list of revocations (``revocations.MAX_LIST``)."""

ERRORS: dict[str, type[BusError]] = {
    "nak": NotAcknowledgedError,
    "locked": BusLockedError,
    "fault": BusFaultError,
}
"""The words for the failures of the bus."""


class BusServer:
    """Carries out requests on a bus.

    :param bus: the bus; None when there is none to serve.
    """

    def __init__(self, bus: Bus | None) -> None:
        self._bus = bus
        self._held = False

    def answer(self, line: bytes) -> bytes:
        """Carry out the request in ``line``, and return the answer, also a line."""
        try:
            request = jsonlines.unpack(line)
            result = self.do(str(request["do"]), request)
        except BusError as error:
            kinds = (kind for kind, cls in ERRORS.items() if isinstance(error, cls))
            result = {"error": next(kinds, "fault"), "text": str(error)}
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            result = {"error": "fault", "text": f"not understood: {error}"}
        return jsonlines.pack(result)

    def do(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one operation.

        :raises BusError: the bus failed.
        :raises ValueError: the operation is unknown.
        """
        bus, answer = self._bus, dict[str, Any]()
        if bus is None:
            raise BusFaultError("no bus was named when this was started")
        if operation == "write":
            bus.write(int(request["address"]), bytes.fromhex(request["data"]))
        elif operation == "read":
            length = int(request["length"])
            answer["data"] = bus.read(int(request["address"]), length).hex()
        elif operation == "lock":
            bus.lock(time.monotonic() + float(request["seconds"]))
            self._held = True
        elif operation == "unlock":
            bus.unlock()
            self._held = False
        elif operation == "name":
            answer["name"] = bus.name
        else:
            raise ValueError(f"unknown operation {operation!r}")
        return answer

    def release(self) -> None:
        """Unlock the bus if the other side has left it locked."""
        if self._held and self._bus is not None:
            self._held = False
            self._bus.unlock()


def serve(server: BusServer, source: BinaryIO, sink: BinaryIO) -> None:
    """Answer the lines of ``source`` on ``sink`` until ``source`` ends."""
    try:
        while line := source.readline(MAX_LINE):
            sink.write(server.answer(line))
            sink.flush()
    finally:
        server.release()
