# SPDX-License-Identifier: Apache-2.0
"""Runs a program on a node with this terminal, or these files, as its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from remote.errors import RemoteError
from remote.session import Session
from thicket.operators.frames import (
    ALIVE_EVERY,
    GONE_AFTER,
    LONGEST,
    TO_OPERATOR,
    Frame,
    FrameError,
    Kind,
    Reader,
    cut,
    of_size,
)

#: At the beginning of a line of a terminal, this and a dot leave the node, as in ssh.
ESCAPE = b"~"
#: The exit status of who leaves a program that goes on.
LEFT = 255


async def run(session: Session, words: Sequence[str], *, terminal: bool | None = None) -> int:
    """Run a program on the node, and return its exit status.

    :param words: the command; empty for a shell.
    :param terminal: give it a terminal; by default where this program has one on both sides.
    :raises RemoteError: it cannot be run, or the node has gone meanwhile.
    """
    if terminal is None:
        terminal = sys.stdin.isatty() and sys.stdout.isatty()
    params: dict[str, Any] = {"words": list(words)}
    if terminal:
        size = os.get_terminal_size(sys.stdin.fileno())
        kind = os.environ.get("TERM", "dumb")
        params["terminal"] = {"kind": kind, "rows": size.lines, "columns": size.columns}
    await session.request("exec", params)
    if terminal:
        with _raw(sys.stdin.fileno()):
            return await _Program(session, terminal=True).run(_Typed(sys.stdin.fileno()))
    return await _Program(session, terminal=False).run(_Typed(sys.stdin.fileno()))


async def fed(
    session: Session,
    words: Sequence[str],
    contents: Iterable[bytes],
    out: Callable[[bytes], object],
) -> int:
    """Run a program that gets ``contents``; return its exit status.

    What it writes as errors goes to this program's.

    :param out: gets what it writes.
    :raises RemoteError: it cannot be run, or the node has gone meanwhile.
    """
    await session.request("exec", {"words": list(words)})
    return await _Program(session, terminal=False, out=out).run(_Given(iter(contents)))


class _Source:
    """Where a program's input is from. :meth:`next` blocks, in a thread."""

    def next(self) -> bytes:
        """Return the next bytes, none at the end."""
        raise NotImplementedError


class _Typed(_Source):
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def next(self) -> bytes:
        return os.read(self._descriptor, LONGEST)


class _Given(_Source):
    def __init__(self, contents: Iterator[bytes]) -> None:
        self._contents = contents

    def next(self) -> bytes:
        return next(self._contents, b"")


@contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    """Let a terminal pass on everything that is typed."""
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _say(stream: TextIO, data: bytes) -> None:
    stream.flush()
    stream.buffer.write(data)
    stream.buffer.flush()


class Escape:
    """Finds in what is typed that the person wants to leave, as ssh does: ``~.`` at the beginning
    of a line. ``~~`` is one ``~``; everything else passes as it is.

    :ivar left: whether the person has left; nothing passes after that.
    """

    def __init__(self) -> None:
        self.left = False
        self._fresh = True  # at the beginning of a line
        self._held = False  # there was a ~ at the beginning of this one

    def passed(self, data: bytes) -> bytes:
        """Return what of ``data`` is for the program."""
        out = bytearray()
        for byte in data:
            if self._held:
                self._held = False
                if byte == ord("."):
                    self.left = True
                    break
                out += ESCAPE
                if byte == ord(ESCAPE):
                    continue
            elif self._fresh and byte == ord(ESCAPE):
                self._held, self._fresh = True, False
                continue
            self._fresh = byte in b"\r\n"
            out.append(byte)
        return bytes(out)


class _Program:
    """A program that runs on a node."""

    def __init__(
        self,
        session: Session,
        *,
        terminal: bool,
        out: Callable[[bytes], object] = lambda data: _say(sys.stdout, data),
    ) -> None:
        self._out = out
        self._session = session
        self._terminal = terminal
        self._loop = asyncio.get_running_loop()
        self._sent = self._loop.time()
        self._over = False
        self._left = asyncio.Event()
        self._stops = 0

    async def run(self, source: _Source) -> int:
        """Carry frames until the program has ended; return its exit status."""
        taking = asyncio.create_task(self._take())
        leaving = asyncio.create_task(self._left.wait())
        beside = [asyncio.create_task(self._give(source)), asyncio.create_task(self._stay_alive())]
        try:
            with self._signals():
                # What cannot be sent is learned from what the node says, or from its silence.
                await asyncio.wait({taking, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return taking.result() if taking.done() else LEFT
        finally:
            self._over = True
            for task in (taking, leaving, *beside):
                task.cancel()
            await asyncio.gather(taking, leaving, *beside, return_exceptions=True)

    # -- what the node sends

    async def _take(self) -> int:
        frames, node = Reader(TO_OPERATOR), self._session.node
        while True:
            try:
                async with asyncio.timeout(GONE_AFTER):
                    data = await self._session.reader.read(LONGEST)
            except TimeoutError:
                raise RemoteError("gone", f"{node} has been silent for {GONE_AFTER:g} s") from None
            except OSError as error:
                raise RemoteError("gone", f"{node}: {error.strerror or error}") from None
            if not data:
                raise RemoteError("gone", f"the connection to {node} has ended")
            try:
                found = frames.feed(data)
            except FrameError as error:
                raise RemoteError("bad-answer", f"{node} sends {error}") from None
            for frame in found:
                if frame.kind is Kind.EXIT:
                    return frame.data[0]
                self._show(frame)

    def _show(self, frame: Frame) -> None:
        if frame.kind is Kind.OUT:
            self._out(frame.data)
        elif frame.kind is Kind.ERROR:
            _say(sys.stderr, frame.data)

    # -- what is sent to the node

    async def _send(self, frame: Frame) -> None:
        self._sent = self._loop.time()
        self._session.writer.write(frame.packed())
        await self._session.writer.drain()

    async def _stay_alive(self) -> None:
        while True:
            await asyncio.sleep(ALIVE_EVERY)
            if self._loop.time() - self._sent >= ALIVE_EVERY:
                await self._send(Frame(Kind.ALIVE, b""))

    async def _give(self, source: _Source) -> None:
        """Send the input. A thread reads it, as a file cannot be waited for."""
        pieces: asyncio.Queue[bytes] = asyncio.Queue(1)
        reader = threading.Thread(target=self._read, args=(source, pieces), daemon=True)
        reader.start()
        escape = Escape()
        while True:
            data = await pieces.get()
            if not data:
                await self._send(Frame(Kind.IN, b""))
                return
            if self._terminal:
                data = escape.passed(data)
            for frame in cut(Kind.IN, data):
                await self._send(frame)
            if escape.left:
                self._left.set()
                return

    def _read(self, source: _Source, pieces: asyncio.Queue[bytes]) -> None:
        data = b"-"
        while data and not self._over:
            try:
                data = source.next()
            except OSError:
                data = b""
            with suppress(RuntimeError):  # the loop has ended
                asyncio.run_coroutine_threadsafe(pieces.put(data), self._loop).result()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Tell the node of a terminal's size, and of what is to end the program."""
        tasks: set[asyncio.Task[None]] = set()

        def begin(frame: Frame) -> None:
            task = self._loop.create_task(self._send(frame))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        def resized() -> None:
            with suppress(OSError):
                size = os.get_terminal_size(sys.stdin.fileno())
                begin(of_size(size.lines, size.columns))

        def stop(number: int) -> None:
            self._stops += 1
            if self._stops > 1:  # the program does not end, or the node is away
                self._left.set()
            begin(Frame(Kind.SIGNAL, bytes((number,))))

        numbers: list[signal.Signals] = []
        if threading.current_thread() is threading.main_thread():
            if self._terminal:
                numbers = [signal.SIGWINCH]
                self._loop.add_signal_handler(signal.SIGWINCH, resized)
            else:
                numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
                for number in numbers:
                    self._loop.add_signal_handler(number, stop, number)
        try:
            yield
        finally:
            for number in numbers:
                self._loop.remove_signal_handler(number)
