# SPDX-License-Identifier: Apache-2.0
"""The I2C bus of another machine, through any program that connects two pipes, such as ``ssh``.

    ssh node python3 -m thicket.identity.remote /dev/i2c-1

serves that bus on its standard input and output: one JSON object a line each way. The chip's driver
stays here, so that what is provisioned is decided on the engineer's machine; the other one only
moves bytes and holds the lock of the bus. A round trip must take a few ten milliseconds at most: a
conversation with the chip has to end within its watchdog.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from thicket.identity.bus import (
    Bus,
    BusError,
    BusFaultError,
    BusLockedError,
    NotAcknowledgedError,
)

MAX_LINE = 4096
"""Bytes of the longest line; the largest packet of a chip has 155."""

ANSWER_TIME = 10.0
"""Seconds until an answer that does not come is given up (besides waiting for the lock)."""

_ERRORS: dict[str, type[BusError]] = {
    "nak": NotAcknowledgedError,
    "locked": BusLockedError,
    "fault": BusFaultError,
}


def serve(bus: Bus, source: BinaryIO, sink: BinaryIO) -> None:
    """Do what the lines of ``source`` ask for until it ends; answers go to ``sink``."""
    held = False
    try:
        while line := source.readline(MAX_LINE):
            answer: dict[str, Any] = {}
            try:
                request = json.loads(line)
                operation = request["do"]
                if operation == "write":
                    bus.write(int(request["address"]), bytes.fromhex(request["data"]))
                elif operation == "read":
                    length = int(request["length"])
                    answer["data"] = bus.read(int(request["address"]), length).hex()
                elif operation == "lock":
                    bus.lock(time.monotonic() + float(request["seconds"]))
                    held = True
                elif operation == "unlock":
                    bus.unlock()
                    held = False
                elif operation != "name":
                    raise ValueError(f"unknown operation {operation!r}")
                answer["name"] = bus.name
            except BusError as error:
                kinds = (kind for kind, cls in _ERRORS.items() if isinstance(error, cls))
                answer = {"error": next(kinds, "fault"), "text": str(error)}
            except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
                answer = {"error": "fault", "text": f"not understood: {error}"}
            sink.write(json.dumps(answer).encode() + b"\n")
            sink.flush()
    finally:
        if held:
            bus.unlock()


class RemoteBus(Bus):
    """The bus that a started ``command`` serves, see ``serve``."""

    def __init__(self, command: Sequence[str], *, clock: Callable[[], float] = time.monotonic):
        """Start ``command``. Raises ``BusFaultError`` when it does not serve a bus."""
        self.name = " ".join(command)
        self._clock = clock
        self._buffer = b""
        try:
            self._process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
        except OSError as error:
            raise BusFaultError(f"{self.name}: {error.strerror or error}") from error
        try:
            # ssh may ask for a password first
            self.name = f"{command[0]}: {self._ask({'do': 'name'}, 120.0)['name']}"
        except BusError:
            self.close()
            raise

    def _ask(self, request: dict[str, Any], seconds: float = ANSWER_TIME) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise BusFaultError(
                f"{self.name}: the connection is gone ({error.strerror})"
            ) from error
        try:
            answer = json.loads(self._line(seconds))
            if not isinstance(answer, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise BusFaultError(f"{self.name}: not an answer of a bus: {error}") from None
        if "error" in answer:
            kind = _ERRORS.get(str(answer["error"]), BusFaultError)
            raise kind(str(answer.get("text", "")))
        return answer

    def _line(self, seconds: float) -> bytes:
        assert self._process.stdout is not None
        descriptor, end = self._process.stdout.fileno(), self._clock() + seconds
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, end - self._clock()))
            if not ready:
                raise BusFaultError(f"{self.name}: no answer within {seconds:g} s")
            data = os.read(descriptor, MAX_LINE)
            if not data or len(self._buffer) > MAX_LINE:
                raise BusFaultError(f"{self.name}: the other side has ended; see its message above")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

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
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> int:
    """Serve the bus device that the command line names."""
    from thicket.identity.bus import LinuxBus  # noqa: PLC0415

    if len(sys.argv) != 2:
        sys.stderr.write("usage: python3 -m thicket.identity.remote /dev/i2c-N\n")
        return 2
    try:
        bus = LinuxBus(sys.argv[1])
    except BusError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    serve(bus, sys.stdin.buffer, sys.stdout.buffer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
