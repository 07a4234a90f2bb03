# SPDX-License-Identifier: Apache-2.0
"""Questions and answers over a serial console, which carries other output as well.

Kernel messages land in the middle of a program's output, the terminal may echo its input, the line
may be noisy, and a shell may be at the other end. So each message is a line:

    : tq 5be1 0a 1c291ca3 eyJkbyI6ImhlbGxvIn0=
    |  | |    |  |        the payload in Base64
    |  | |    |  CRC-32 (IEEE 802.3) of everything before it and of the payload
    |  | |    number of the question, which its answer repeats
    |  | the conversation; answers from an older one are ignored
    |  q question, m part of a question (the rest follows), a answer, n not understood, e end
    a command that does nothing, should a shell get the line

Any other line is ignored. A side that misses an answer asks again under the same number; the other
side repeats its answer without doing the work again.
"""

from __future__ import annotations

import binascii
import os
import re
import select
import time
from collections.abc import Callable
from typing import NamedTuple

QUESTION, PART, ANSWER, AGAIN, END = "q", "m", "a", "n", "e"

PART_SIZE = 1024
"""Bytes of payload in one question; two such lines fit into a terminal's buffer (4096)."""

MAX_QUESTION = 1 << 20
"""Bytes of payload in all the parts of a question."""

_MAX_LINE = 64 * 1024
_MARK = b": t"
_FORM = re.compile(
    rb": t([qmane]) ([0-9a-f]{4}) ([0-9a-f]{2}) ([0-9a-f]{8}) ([A-Za-z0-9+/]*={0,2})\s*$"
)


class Frame(NamedTuple):
    """One message."""

    kind: str
    session: str
    """Four hexadecimal digits."""
    number: int
    payload: bytes = b""

    def pack(self) -> bytes:
        """Return it as a line, after a line end that finishes what may precede it."""
        head = f": t{self.kind} {self.session} {self.number:02x} "
        text = binascii.b2a_base64(self.payload, newline=False).decode()
        crc = binascii.crc32(head.encode() + self.payload)
        return f"\n{head}{crc:08x} {text}\n".encode()


def unpack(line: bytes) -> Frame | None:
    """Return the message in ``line``, or None when there is no intact one."""
    at = line.rfind(_MARK)
    found = _FORM.match(line, at) if at >= 0 else None
    if found is None:
        return None
    kind, session, number, crc, text = (part.decode() for part in found.groups())
    try:
        payload = binascii.a2b_base64(text, strict_mode=True) if text else b""
    except ValueError:
        return None
    head = f": t{kind} {session} {number} ".encode()
    if binascii.crc32(head + payload) != int(crc, 16):
        return None
    return Frame(kind, session, int(number, 16), payload)


def damaged(line: bytes) -> bool:
    """Whether a line without an intact message holds a damaged one."""
    return _MARK in line


class Lines:
    """Reads lines from a descriptor."""

    def __init__(self, descriptor: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._descriptor = descriptor
        self._clock = clock
        self._buffer = b""

    def next(self, deadline: float) -> bytes | None:
        """Return the next line, or None when there is none by ``deadline``.

        :raises EOFError: the input has ended.
        :raises OSError: it cannot be read.
        """
        while True:
            line, end, rest = self._buffer.partition(b"\n")
            if end:
                self._buffer = rest
                return line.rstrip(b"\r")
            wait = max(0.0, deadline - self._clock())
            ready, _, _ = select.select([self._descriptor], [], [], wait)
            if not ready:
                return None
            try:
                data = os.read(self._descriptor, 4096)
            except BlockingIOError:
                continue
            if not data:
                raise EOFError
            self._buffer = self._buffer[-_MAX_LINE:] + data

    def rest(self) -> bytes:
        """Return the line that has begun."""
        return self._buffer


def serve_frames(
    session: str,
    answer: Callable[[bytes], bytes],
    source: int,
    sink: int,
    *,
    patience: float = 120.0,
) -> None:
    """Answer the questions of ``session`` until its end, or ``patience`` seconds of silence.

    :param source: descriptor of a terminal in raw mode, to read from.
    :param sink: descriptor of that terminal, to write to.
    """
    lines = Lines(source)
    parts: list[bytes] = []
    number, said = -1, b""
    end = time.monotonic() + patience
    while True:
        try:
            line = lines.next(end)
        except (EOFError, OSError):
            return
        if line is None:
            return
        frame = unpack(line)
        if frame is None:
            if damaged(line):
                _write(sink, Frame(AGAIN, session, 0).pack())
            continue
        if frame.kind == END:  # of any session, as the other side may have forgotten this one
            return
        if frame.session != session or frame.kind not in (QUESTION, PART):
            continue
        if frame.number != number:
            number = frame.number
            parts.append(frame.payload)
            reply = b""
            if sum(map(len, parts)) > MAX_QUESTION:
                return
            if frame.kind == QUESTION:
                question = b"".join(parts)
                parts.clear()
                reply = answer(question)
            said = Frame(ANSWER, session, number, reply).pack()
        _write(sink, said)
        end = time.monotonic() + patience


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
