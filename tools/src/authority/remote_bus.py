# SPDX-License-Identifier: Apache-2.0
"""The I2C bus of a node, as the engineer's machine sees it.

The chip's driver is here, so that what is provisioned is decided here; the node
(``thicket.identity.remote``) only moves bytes and holds the lock of the bus. A round trip must take
a few ten milliseconds at most: a conversation with the chip has to end within its watchdog.

What carries questions and answers is a ``Channel``: ``Pipe`` here, a serial console in
``authority.console``.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from thicket.base import jsonlines
from thicket.identity.bus import Bus, BusError, BusFaultError
from thicket.identity.remote import ERRORS, MAX_LINE

ANSWER_TIME = 10.0
"""Seconds until an answer that does not come is given up (besides waiting for the lock)."""


class Channel(Protocol):
    """A way to the other side, one question at a time."""

    name: str

    def ask(self, request: dict[str, Any], seconds: float = ANSWER_TIME) -> dict[str, Any]:
        """Return the answer to ``request``; it may be an error of the other side's.

        :param seconds: how long to wait.
        :raises BusFaultError: when no answer comes.
        """

    def close(self) -> None:
        """End the other side."""


class Pipe:
    """A ``Channel`` to a program that is started here and answers line by line."""

    def __init__(
        self, command: Sequence[str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start ``command``.

        :raises BusFaultError: when it cannot be started.
        """
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
        self._send(jsonlines.pack(request), end, seconds)
        try:
            return jsonlines.unpack(self._line(end, seconds))
        except ValueError as error:
            raise BusFaultError(f"{self.name}: not an answer of a bus: {error}") from None

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
        """Take over ``channel``.

        :raises BusFaultError: when no bus is served there.
        """
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
            kind = ERRORS.get(str(answer["error"]), BusFaultError)
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
