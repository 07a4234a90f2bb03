# SPDX-License-Identifier: Apache-2.0
"""Runs a program for an operator, with a terminal or without, over a connection of frames.

The program belongs to its connection: it ends when the operator has gone, and what it writes waits
until the operator has read what came before.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from logging import getLogger
from typing import Any, NamedTuple

from thicket.base.errors import RequestError
from thicket.base.patience import Patience
from thicket.base.sockets import writable
from thicket.operators.frames import (
    ALIVE_EVERY,
    GONE_AFTER,
    LONGEST,
    TO_NODE,
    Frame,
    FrameError,
    Kind,
    Reader,
    cut,
)

log = getLogger(__name__)

#: Most words of a command, and bytes of all of them.
MOST_WORDS = 256
MOST_BYTES = 64 * 1024
#: Seconds for what a program wrote before its end; children of it may hold its output for ever.
REST = 1.0
#: Seconds that a program has to end when its operator has gone.
END = 3.0

_SHELL = ("sh", "-l")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
#: Opens the terminal in a session that has none, so that it becomes the session's own, and becomes
#: the program. Its first word is the terminal.
_IN_TERMINAL = ("sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1')
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
_SIZE = struct.Struct("HHHH")  # struct winsize of asm-generic/termios.h


class Terminal(NamedTuple):
    """The terminal that an operator has.

    :ivar kind: its name for terminfo.
    """

    kind: str
    rows: int
    columns: int


class Program(NamedTuple):
    """What is to run.

    :ivar words: the command; empty for a login shell.
    :ivar terminal: None without one: then what it writes to its two outputs is kept apart.
    """

    words: tuple[str, ...]
    terminal: Terminal | None


class Whose(NamedTuple):
    """What a program's environment says.

    :ivar operator: who has started it; empty for root on this node.
    :ivar root: the prefix of the node's paths.
    """

    operator: str
    root: str


def asked(params: Mapping[str, Any]) -> Program:
    """Return what the request ``exec`` asks for.

    :raises RequestError: it asks for nothing that can be run.
    """
    words, terminal = params.get("words", []), params.get("terminal")
    good = isinstance(words, list) and all(isinstance(w, str) and "\0" not in w for w in words)
    if not good or len(words) > MOST_WORDS or sum(map(len, words)) > MOST_BYTES:
        raise RequestError("bad-params", f"words are up to {MOST_WORDS} texts, {MOST_BYTES} bytes")
    if words and not words[0]:
        raise RequestError("bad-params", "the first word is the name of a program")
    if terminal is None:
        return Program(tuple(words), None)
    match terminal:
        case {"kind": str(kind), "rows": int(rows), "columns": int(columns)} if (
            kind.isascii() and kind.isprintable() and len(kind) <= 64
        ):
            size = (min(max(number, 0), 0xFFFF) for number in (rows, columns))
            return Program(tuple(words), Terminal(kind, *size))
    raise RequestError("bad-params", "a terminal has kind, rows and columns")


async def run(
    program: Program, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, whose: Whose
) -> None:
    """Run a program until it ends, or the operator has gone.

    :raises OSError: it cannot be started; nothing was sent.
    """
    environment = _environment(whose, program.terminal)
    if program.terminal is None:
        start = _with_pipes(program, environment)
    else:
        start = _with_terminal(program, program.terminal, environment)
    async with start as running:
        await _Session(running, reader, writer).run()


def refuse(writer: asyncio.StreamWriter, words: str, status: int) -> None:
    """Send what a program would that says ``words`` and ends at once."""
    for frame in cut(Kind.ERROR, words.encode()):
        writer.write(frame.packed())
    writer.write(Frame(Kind.EXIT, bytes((status,))).packed())


class _Running(NamedTuple):
    """A program that runs.

    :ivar write: gives it bytes; none is their end.
    :ivar outputs: what it writes, by the kind of frame that carries it.
    :ivar resize: tells it rows and columns of the terminal.
    :ivar release: lets go of what keeps its outputs open on our side, once it has ended.
    """

    process: asyncio.subprocess.Process
    write: Callable[[bytes], Awaitable[None]]
    outputs: Mapping[Kind, asyncio.StreamReader]
    resize: Callable[[int, int], None]
    release: Callable[[], None]


def _environment(whose: Whose, terminal: Terminal | None) -> dict[str, str]:
    found = {
        "PATH": f"{whose.root}/usr/bin:{_PATH}" if whose.root else _PATH,
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/sh",
        "THICKET_OPERATOR": whose.operator,
    }
    if whose.root:
        found["THICKET_ROOT"] = whose.root
    if terminal is not None:
        found["TERM"] = terminal.kind
    return found


async def _started(
    words: tuple[str, ...], streams: int, environment: dict[str, str]
) -> asyncio.subprocess.Process:
    """Start a command in a session of its own.

    :param streams: what its input and outputs are: pipes, or nothing.
    """
    return await asyncio.create_subprocess_exec(
        *words,
        stdin=streams,
        stdout=streams,
        stderr=streams,
        env=environment,
        cwd="/",
        start_new_session=True,
        limit=LONGEST,
    )


@contextlib.asynccontextmanager
async def _with_pipes(program: Program, environment: dict[str, str]) -> AsyncIterator[_Running]:
    process = await _started(program.words or _SHELL, asyncio.subprocess.PIPE, environment)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    stdin = process.stdin

    async def write(data: bytes) -> None:
        with contextlib.suppress(OSError):  # it reads no more
            if data:
                stdin.write(data)
                await stdin.drain()
            else:
                stdin.close()

    outputs = {Kind.OUT: process.stdout, Kind.ERROR: process.stderr}
    try:
        yield _Running(process, write, outputs, lambda _rows, _columns: None, lambda: None)
    finally:
        await _end(process)


@contextlib.asynccontextmanager
async def _with_terminal(
    program: Program, terminal: Terminal, environment: dict[str, str]
) -> AsyncIterator[_Running]:
    ours, theirs = os.openpty()
    # While we hold the program's end, too, reading ours waits for it to be opened.
    held = os.fdopen(theirs, "rb", 0)

    def resize(rows: int, columns: int) -> None:
        fcntl.ioctl(ours, termios.TIOCSWINSZ, _SIZE.pack(rows, columns, 0, 0))

    with held:
        async with _Terminal(ours) as device:
            resize(terminal.rows, terminal.columns)
            words = (*_IN_TERMINAL, os.ttyname(theirs), *(program.words or _SHELL))
            process = await _started(words, asyncio.subprocess.DEVNULL, environment)
            try:
                yield _Running(process, device.write, {Kind.OUT: device.reader}, resize, held.close)
            finally:
                device.hang_up()
                await _end(process)


class _Terminal:
    """Our end of a pseudo-terminal.

    :ivar reader: what the program writes.
    """

    def __init__(self, descriptor: int) -> None:
        self.reader = asyncio.StreamReader(limit=LONGEST)
        self._descriptor = descriptor
        self._transport: asyncio.ReadTransport | None = None

    async def __aenter__(self) -> _Terminal:
        file = os.fdopen(self._descriptor, "rb", 0)
        try:
            self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(self.reader), file
            )
        except BaseException:
            file.close()
            raise
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        """Close it: those whose terminal it is get SIGHUP."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    async def write(self, data: bytes) -> None:
        """Type bytes; none types the end of a file."""
        data = data or b"\4"
        while data and self._transport is not None:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                await writable(self._descriptor)
            except OSError:
                return  # the program has gone


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a program, if it has not ended, and let go of its pipes, which others may still hold."""
    try:
        await _ended(process)
    finally:
        process._transport.close()  # type: ignore[attr-defined]


async def _ended(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGHUP, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with Patience(END):
                await process.wait()


class _Session:
    """One program and its operator."""

    def __init__(
        self, running: _Running, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._running = running
        self._reader = reader
        self._writer = writer
        self._sent = 0.0
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Carry frames until one of both has gone."""
        end = asyncio.create_task(self._to_its_end())
        beside = [asyncio.create_task(self._take()), asyncio.create_task(self._stay_alive())]
        try:
            await asyncio.wait({end, *beside}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (end, *beside):
                task.cancel()
            results = await asyncio.gather(end, *beside, return_exceptions=True)
        for result in results:
            if isinstance(result, FrameError):
                log.warning("the program of an operator is ended: %s", result)
            elif isinstance(result, Exception) and not isinstance(result, OSError | TimeoutError):
                raise result

    async def _to_its_end(self) -> None:
        """Send what the program writes, and its exit status."""
        process, outputs = self._running.process, self._running.outputs
        pumps = [asyncio.create_task(self._pump(k, output)) for k, output in outputs.items()]
        try:
            status = await process.wait()
            self._running.release()
            await asyncio.wait(pumps, timeout=REST)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        await self._send(Frame(Kind.EXIT, bytes((status if status >= 0 else 128 - status,))))

    async def _pump(self, kind: Kind, output: asyncio.StreamReader) -> None:
        # A terminal that nobody holds any more ends by an error.
        with contextlib.suppress(OSError):
            while data := await output.read(LONGEST):
                for frame in cut(kind, data):
                    await self._send(frame)

    async def _send(self, frame: Frame) -> None:
        self._sent = self._loop.time()
        self._writer.write(frame.packed())
        await self._writer.drain()

    async def _stay_alive(self) -> None:
        while True:
            await asyncio.sleep(ALIVE_EVERY)
            if self._loop.time() - self._sent >= ALIVE_EVERY:
                await self._send(Frame(Kind.ALIVE, b""))

    async def _take(self) -> None:
        """Give the program what the operator sends, until the operator has gone."""
        frames = Reader(TO_NODE)
        while True:
            async with Patience(GONE_AFTER):
                data = await self._reader.read(LONGEST)
            if not data:
                return
            for frame in frames.feed(data):
                await self._obey(frame)

    async def _obey(self, frame: Frame) -> None:
        if frame.kind is Kind.IN:
            await self._running.write(frame.data)
        elif frame.kind is Kind.SIZE:
            self._running.resize(*frame.size())
        elif frame.kind is Kind.SIGNAL and frame.data[0] in _SIGNALS:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._running.process.pid, frame.data[0])
