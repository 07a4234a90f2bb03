# SPDX-License-Identifier: Apache-2.0
"""The I2C bus of another machine, through any program that connects two pipes, such as ``ssh``.

    ssh node python3 -m thicket.trust.agent /dev/i2c-1

serves that bus on its standard input and output: one JSON object a line each way. The chip's driver
stays here, so that what is provisioned is decided on the engineer's machine; the other one only
moves bytes and holds the lock of the bus. A round trip must take a few ten milliseconds at most: a
conversation with the chip has to end within its watchdog.

What carries questions and answers is a ``Channel``: ``Pipe`` here, a serial console in
``trust.console``.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Protocol

from thicket.identity.bus import (
    Bus,
    BusError,
    BusFaultError,
    BusLockedError,
    NotAcknowledgedError,
)

MAX_LINE = 1 << 20
"""Bytes of the longest line; the longest holds a list of revocations (``verify.MAX_LIST``)."""

ANSWER_TIME = 10.0
"""Seconds until an answer that does not come is given up (besides waiting for the lock)."""

_ERRORS: dict[str, type[BusError]] = {
    "nak": NotAcknowledgedError,
    "locked": BusLockedError,
    "fault": BusFaultError,
}


class BusServer:
    """Does to a bus what the lines of a conversation ask for."""

    def __init__(self, bus: Bus | None) -> None:
        """Serve ``bus``; None when there is none to serve."""
        self._bus = bus
        self._held = False

    def answer(self, line: bytes) -> bytes:
        """Do what ``line`` asks for and return the answer, without the end of the line."""
        try:
            request = json.loads(line)
            result = self.do(str(request["do"]), request)
        except BusError as error:
            kinds = (kind for kind, cls in _ERRORS.items() if isinstance(error, cls))
            result = {"error": next(kinds, "fault"), "text": str(error)}
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
            result = {"error": "fault", "text": f"not understood: {error}"}
        return json.dumps(result, separators=(",", ":")).encode()

    def do(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """Do one operation. Raises ``BusError``, and ``ValueError`` for what it does not know."""
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
        """Let the bus go, when the other side has left without doing so."""
        if self._held and self._bus is not None:
            self._held = False
            self._bus.unlock()


def serve(server: BusServer, source: BinaryIO, sink: BinaryIO) -> None:
    """Answer the lines of ``source`` on ``sink`` until it ends."""
    try:
        while line := source.readline(MAX_LINE):
            sink.write(server.answer(line) + b"\n")
            sink.flush()
    finally:
        server.release()


class Channel(Protocol):
    """A way to the other side, one question at a time."""

    name: str

    def ask(self, request: dict[str, Any], seconds: float = ANSWER_TIME) -> dict[str, Any]:
        """Return the answer to ``request``; it may be an error of the other side's.

        Raises ``BusFaultError`` when none comes within ``seconds``.
        """

    def close(self) -> None:
        """End the other side."""


class Pipe:
    """A ``Channel`` to a program that is started here and answers line by line."""

    def __init__(
        self, command: Sequence[str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start ``command``. Raises ``BusFaultError`` when it cannot be started."""
        self.name = command[0]
        self._ended = f"{self.name}: the other side has ended; see its message above"
        self._clock = clock
        self._buffer = b""
        try:
            self._process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
        except OSError as error:
            raise BusFaultError(f"{' '.join(command)}: {error.strerror or error}") from error
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)

    def ask(self, request: dict[str, Any], seconds: float = ANSWER_TIME) -> dict[str, Any]:
        """See ``Channel``."""
        end = self._clock() + seconds
        self._send(json.dumps(request).encode() + b"\n", end, seconds)
        try:
            answer = json.loads(self._line(end, seconds))
            if not isinstance(answer, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            raise BusFaultError(f"{self.name}: not an answer of a bus: {error}") from None
        return answer

    def _send(self, data: bytes, end: float, seconds: float) -> None:
        assert self._process.stdin is not None
        pipe = self._process.stdin.fileno()
        while data:
            _, ready, _ = select.select([], [pipe], [], max(0.0, end - self._clock()))
            if not ready:
                raise BusFaultError(f"{self.name}: it has not listened for {seconds:g} s")
            try:
                data = data[os.write(pipe, data) :]
            except BlockingIOError:
                continue
            except OSError:
                raise BusFaultError(self._ended) from None

    def _line(self, end: float, seconds: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, end - self._clock()))
            if not ready:
                raise BusFaultError(f"{self.name}: no answer within {seconds:g} s")
            data = os.read(descriptor, 1 << 16)
            if not data or len(self._buffer) > MAX_LINE:
                raise BusFaultError(self._ended)
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def close(self) -> None:
        """See ``Channel``: the other side lets its bus go."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class RemoteBus(Bus):
    """The bus at the other end of a ``channel``."""

    def __init__(self, channel: Channel, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take over ``channel``. Raises ``BusFaultError`` when no bus is served there."""
        self.name = channel.name
        self._clock = clock
        self._channel = channel
        try:
            # ssh may ask for a password first
            self.name = f"{channel.name}: {self._ask({'do': 'name'}, 120.0).get('name')}"
        except BusError:
            self.close()
            raise

    def _ask(self, request: dict[str, Any], seconds: float = ANSWER_TIME) -> dict[str, Any]:
        answer = self._channel.ask(request, seconds)
        if "error" in answer:
            kind = _ERRORS.get(str(answer["error"]), BusFaultError)
            raise kind(str(answer.get("text", "")))
        return answer

    def write(self, address: int, data: bytes) -> None:
        """See ``Bus.write``."""
        self._ask({"do": "write", "address": address, "data": data.hex()})

    def read(self, address: int, length: int) -> bytes:
        """See ``Bus.read``."""
        answer = self._ask({"do": "read", "address": address, "length": length})
        try:
            data = bytes.fromhex(answer["data"])
        except (LookupError, TypeError, ValueError):
            data = b""
        if len(data) != length:
            raise BusFaultError(f"{self.name}: {len(data)} bytes came instead of {length}")
        return data

    def lock(self, deadline: float) -> None:
        """See ``Bus.lock``."""
        seconds = max(0.0, deadline - self._clock())
        self._ask({"do": "lock", "seconds": seconds}, seconds + ANSWER_TIME)

    def unlock(self) -> None:
        """See ``Bus.unlock``. A connection that is gone has let the bus go."""
        with contextlib.suppress(BusFaultError):
            self._ask({"do": "unlock"})

    def close(self) -> None:
        """End the other side, which lets its bus go."""
        self._channel.close()
