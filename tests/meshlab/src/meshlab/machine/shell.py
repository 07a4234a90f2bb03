# SPDX-License-Identifier: Apache-2.0
"""Run commands in a node's shell over a unix socket.

A node's init keeps a plain ``/bin/sh`` on a virtio console (``hvc0``), whose other end is a unix
socket of QEMU. Nothing else of the node takes part: no network, no agent. The driver types one line
that replaces the shell by a loop of its own (``_STAGE``), gives that loop a few functions, and from
then on a command is one line in and, out, its bytes between two markers that hold a random number:

``RS nonce <`` output ``RS nonce >`` status ``RS``    (RS is the byte 0x1E, record separator)

- A command runs as a background job with its own process group while the loop goes on reading, so a
  command that runs too long is ended by the loop itself, first by SIGINT, then by SIGKILL.
- A line counts only when it ends in `` #~``: a line torn by a lost connection is not run.
- The terminal is raw, so output is passed unchanged, binary or not.
- Whatever the shell's state is (a fresh prompt, the loop of an earlier client, a running command,
  still booting), the same opening brings it to the loop: it is repeated until it is answered.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
import shlex
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from meshlab.machine.given import Given, Pids, within
from meshlab.wire.sockets import socket_address

_RS = b"\x1e"
_GS = b"\x1d"
_END_OF_LINE = " #~\n"

_STAGE = (
    " jobs >/dev/null; kill -9 %% 2>/dev/null; exec sh -c '"
    'trap : INT; stty raw -echo isig; set -m; printf "\\036%s>0\\036" $1; '
    "while :; do IFS= read -r l; s=$?; "
    'case $l in *" #~") eval "$l"; continue; esac; [ $s = 1 ] && exit; done\' sh {nonce}'
)
"""Typed at a prompt: at most 1023 bytes, the limit of BusyBox's line editor. ^C (SIGINT) drops an
incomplete line; end of file ends the loop, and init starts a new shell."""

_FUNCTIONS = (
    # A command as a job with its own process group. `jobs` forgets the ones that have ended.
    # The outer process outlives SIGINT, to give the status whatever the command makes of it.
    r"""R() { jobs >/dev/null; { trap : INT; printf '\036%s<' $1; (eval "$2") </dev/null 2>&1;"""
    r""" printf '\036%s>%s\036' $1 $?; } & J=$!; }""",
    # The same with an input that W fills: a pipe, whose writing end is the loop's descriptor 7. It
    # is opened for reading as well, which waits for nobody.
    r"""S() { jobs >/dev/null; if ! mkfifo "$2" 2>/dev/null; then printf '\036%s<no pipe for its"""
    r""" input can be made in /tmp\036%s>126\036' $1 $1; return; fi; { trap : INT; exec <"$2";"""
    r""" rm -f "$2"; printf '\036%s<' $1; (eval "$3") 2>&1; printf '\036%s>%s\036' $1 $?; } &"""
    r""" J=$!; exec 7<>"$2"; }""",
    # A piece of it: a job in the foreground reads the terminal, as in P; one in the background
    # waits for the command to take it, so that the loop goes on reading. The marker says that it is
    # taken.
    r"""W() { Y=$3; (head -c $2 | base64 -d >"$3"); { cat "$3" >&7; printf '\035%s\035' $1; }"""
    r""" 2>/dev/null & X=$!; }""",
    # No more input: an end of file for the command, and what it did not take is dropped.
    r"""E() { [ -z "$X" ] || { kill -KILL -$X 2>/dev/null; rm -f "$Y"; }; X=; exec 7>&-; }""",
    # A signal to the running job, if there still is one.
    r"""I() { jobs >/dev/null; kill -$1 -$J 2>/dev/null; }""",
    # The job is gone for certain when this marker comes.
    r"""K() { E; I KILL; wait; printf '\036%s>137\036' $1; }""",
    # One line of a file, by a process that stays: a new one for each question costs a node of a
    # busy host more than all else here. The shell's own `read` takes each byte with a call of its
    # own. The awk of BusyBox hands on what there is; others wait for more questions.
    r"""A() { command -v busybox >/dev/null || return; A=/tmp/.shell-reader-$$; rm -f "$A";"""
    r""" mkfifo "$A" || { A=; return 1; }; exec 8<>"$A" 9>&1; Q=$({ exec <"$A" >&9 8>&- 9>&-;"""
    r""" rm -f "$A"; exec busybox awk '{ n = $1; p = substr($0, length(n) + 2);"""
    r""" printf "\036%s<", n; if (s = (getline l < p) < 1); else print l; close(p);"""
    r""" printf "\036%s>%s\036", n, s; fflush() }'; } & echo $!); exec 9>&-; }""",
    # Somebody may have killed it.
    r"""F() { if { [ -n "$A" ] && kill -0 $Q 2>/dev/null; } || A; then"""
    r""" printf '%s %s\n' $1 "$2" >&8; else printf '\036%s<' $1;"""
    r""" head -n 1 2>/dev/null <"$2"; printf '\036%s>%s\036' $1 $?; fi; }""",
    # The same, status 2 when a stamp is newer than the file. Times are as coarse as the kernel's
    # tick: a file as old as its stamp counts as changed, so no change is ever missed.
    r"""G() { if [ "$3" -nt "$2" ]; then printf '\036%s<\036%s>2\036' $1 $1;"""
    r""" else { : >"$3"; } 2>/dev/null; F $1 "$2"; fi; }""",
    # Data from the host: a job in the foreground reads the terminal; ^C would end it.
    r"""P() { printf '\036%s<' $1; (head -c $2 | base64 -d >"$3") 2>&1;"""
    r""" printf '\036%s>%s\036' $1 $?; }""",
)

_OPENING_PATIENCE = 3.0
_OPENING_AT_MOST = 12.0
_OPENING_PAUSE = 3.0
_OPENING_SILENCE = 0.3
_STAGE_PATIENCE = 10.0
_SETTLE = 0.05
_START_PATIENCE = 10.0
_INTERRUPT_PATIENCE = 1.0
_KILL_PATIENCE = 5.0
_PLACE = "/tmp"
"""Where a node has the pipe and the pieces of a command's input."""
_PIECE = 32 * 1024
"""Bytes of a command's input that are sent at a time; a pipe of Linux takes more at once."""
MAX_OUTPUT = 64 * 1024 * 1024
"""Most bytes of output that one command may have when they are collected."""


class ShellError(Exception):
    """The shell cannot be used now; the text says what was tried and what was found."""


class ShellTimeoutError(ShellError):
    """A command did not end in time. It has been ended and the shell is usable again."""

    def __init__(self, message: str, output: bytes) -> None:
        super().__init__(message)
        self.output = output


class Result(NamedTuple):
    """What a command left behind."""

    status: int
    """The exit status, 128 + N when it died of signal N."""
    output: str
    """Standard output and standard error, in the order of writing, as UTF-8."""


class _Wire(asyncio.Protocol):
    """The connection: bytes go to whoever listens, and nowhere when nobody does."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.listener: Callable[[bytes], None] | None = None
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.heard = asyncio.Event()
        self.received = 0
        self.last_heard = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard.set()
        self.received += len(data)
        self.last_heard = asyncio.get_running_loop().time()
        if self.listener is not None:
            self.listener(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(str(exc) if exc else "closed")

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        if not self.closed.done():
            self.closed.set_result("closed")


class _Capture:
    """Cut one command's output out of the stream, wherever the stream is cut into pieces."""

    def __init__(self, nonce: str, on_output: Callable[[bytes], None]) -> None:
        self._start = _RS + nonce.encode() + b"<"
        self._end = _RS + nonce.encode() + b">"
        self._buffer = b""
        self._on_output = on_output
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def feed(self, data: bytes) -> None:
        """Take what arrived."""
        if self.status.done():
            return
        self._buffer += data
        if not self.started.done():
            at = self._buffer.find(self._start)
            # K and the opening have no start marker.
            end = self._buffer.find(self._end)
            if at < 0 and end < 0:
                self._buffer = self._buffer[-len(self._start) :]
                return
            self.started.set_result(None)
            self._buffer = self._buffer[at + len(self._start) if at >= 0 else end :]
        at = self._buffer.find(self._end)
        if at >= 0:
            tail = self._buffer[at + len(self._end) :]
            self._emit(self._buffer[:at])
            self._buffer = self._buffer[at:]
            digits, mark, _rest = tail.partition(_RS)
            if mark:
                self.status.set_result(int(digits) if digits.isdigit() else 255)
            return
        # Hold back what may be the beginning of the end marker.
        keep = 0
        at = self._buffer.rfind(_RS, max(0, len(self._buffer) - len(self._end)))
        if at >= 0 and self._end.startswith(self._buffer[at:]):
            keep = len(self._buffer) - at
        cut = len(self._buffer) - keep
        self._emit(self._buffer[:cut])
        self._buffer = self._buffer[cut:]

    def _emit(self, data: bytes) -> None:
        if data:
            self._on_output(data)


class _Taken:
    """Take the marks that a piece of input was taken out of the stream, wherever they stand."""

    def __init__(self, nonce: str, then: Callable[[bytes], None]) -> None:
        # Another byte than that of a command's own marks, so that none of them is held back.
        self._mark = _GS + nonce.encode() + _GS
        self._buffer = b""
        self._then = then
        self.marks = asyncio.Semaphore(0)

    def feed(self, data: bytes) -> None:
        """Take what arrived, and hand on the rest."""
        *pieces, rest = (self._buffer + data).split(self._mark)
        for piece in pieces:
            self.marks.release()
            self._hand_on(piece)
        # What may be the beginning of a mark waits for the rest of it.
        at = rest.rfind(_GS, max(0, len(rest) - len(self._mark) + 1))
        cut = at if at >= 0 and self._mark.startswith(rest[at:]) else len(rest)
        self._buffer = rest[cut:]
        self._hand_on(rest[:cut])

    def _hand_on(self, data: bytes) -> None:
        if data:
            self._then(data)


class Shell:
    """A shell of a node.

    Any number of tasks may call it; one command runs at a time. It connects by itself, also after
    the machine or the guest restarted.
    """

    def __init__(self, path: Path, name: str = "", pids: Pids = tuple) -> None:
        """Drive a shell.

        :param path: Its unix socket.
        :param name: The node's, for messages.
        :param pids: The node's processes: all limits are seconds as these are given them.
        """
        self._pids = pids
        self._path = path
        self._name = name or path.parent.name
        self._lock = asyncio.Lock()
        self._wire: _Wire | None = None
        self._open = False
        self._lost: asyncio.Future[str] | None = None
        self._seen: set[str] = set()
        self._opener: asyncio.Task[None] | None = None
        self._cleanups: set[asyncio.Task[None]] = set()

    async def ready(self, timeout: float) -> None:
        """Return when the shell answers.

        :raises ShellError: when it does not within ``timeout`` seconds.
        """
        try:
            async with within(timeout, self._pids), self._locked():
                while True:
                    try:
                        await self._ensure()
                        return
                    except ShellError:
                        # The socket may not be there yet.
                        await asyncio.sleep(0.1)
        except TimeoutError:
            raise ShellError(self._silent(timeout)) from None

    async def run(
        self,
        command: str,
        timeout: float = 30.0,
        on_output: Callable[[bytes], None] | None = None,
    ) -> Result:
        """Run ``command`` by sh and return its status and output.

        The command has no input, an environment of its own (``cd`` and variables end with it), and
        may have several lines. When the task is cancelled the command is ended.

        :param on_output: Called with the bytes as they arrive, besides.
        :raises ShellTimeoutError: when it takes more than ``timeout`` seconds; it has the output so
            far.
        :raises ShellError: when the node is not there or restarts meanwhile.
        """
        status, output = await self.run_bytes(command, timeout, on_output)
        return Result(status, output.decode(errors="replace"))

    async def run_bytes(
        self,
        command: str,
        timeout: float = 30.0,
        on_output: Callable[[bytes], None] | None = None,
    ) -> tuple[int, bytes]:
        """Do what ``run`` does, and return the output as it is."""
        output = bytearray()

        def collect(data: bytes) -> None:
            output.extend(data)
            if on_output is not None:
                on_output(data)

        try:
            status = await self._job(f"R {{nonce}} {_argument(command)}", timeout, collect, output)
        except TimeoutError:
            raise ShellTimeoutError(
                f"{self._name}: not finished after {timeout:g} s and ended: {command}"
                + (f"\nits output: {_end_of(output)}" if output else ", no output"),
                bytes(output),
            ) from None
        return status, bytes(output)

    async def stream(
        self,
        command: str,
        on_output: Callable[[bytes], None],
        timeout: float | None = None,
        source: AsyncIterator[bytes] | None = None,
    ) -> int:
        """Run ``command``, hand its output to ``on_output`` piece by piece, return its status.

        Nothing is collected, so it may run for ever: cancel the task to end it. Raises as ``run``.

        :param source: Its input, taken no faster than the command does; without one it has none.
        """
        pipe = f"{_PLACE}/.shell-input-{secrets.token_hex(8)}"
        line = f"R {{nonce}} {_argument(command)}"
        if source is not None:
            line = f"S {{nonce}} {pipe} {_argument(command)}"
        try:
            return await self._job(line, timeout, on_output, None, source=source, pipe=pipe)
        except TimeoutError:
            raise ShellTimeoutError(
                f"{self._name}: not finished after {timeout:g} s and ended: {command}", b""
            ) from None

    async def read_file(self, path: str, timeout: float = 5.0) -> str | None:
        """Return the first line of the file ``path``, ``None`` when it is not there or empty.

        :raises ShellError: when the node does not answer in ``timeout`` seconds.
        """
        output = bytearray()
        try:
            status = await self._job(
                f"F {{nonce}} {shlex.quote(path)}", timeout, output.extend, output
            )
        except TimeoutError:
            raise ShellError(self._silent(timeout)) from None
        return _line(status, output)

    async def read_if_changed(self, path: str, timeout: float = 5.0) -> str | None:
        """Return the first line of ``path`` when it has changed since the last call, else ``None``.

        Cheaper than ``read_file`` while nothing changes: the file's time is looked at, no more. The
        first call after (re)connecting and after a restart of the guest returns the line in any
        case. ``None`` as well when the file is not there.

        :raises ShellError: when the node does not answer in ``timeout`` seconds.
        """
        output = bytearray()
        stamp = f"/tmp/.shell-{zlib.crc32(path.encode()):08x}"
        quoted = shlex.quote(path)

        def line() -> str:
            # Without a stamp the file counts as changed.
            forget = "" if path in self._seen else f"rm -f {stamp};"
            return f"{forget}G {{nonce}} {quoted} {stamp}"

        try:
            status = await self._job(line, timeout, output.extend, output)
        except TimeoutError:
            raise ShellError(self._silent(timeout)) from None
        self._seen.add(path)
        return _line(status, output)

    async def pull(self, path: str, timeout: float = 60.0) -> bytes:
        """Return the content of the node's file ``path``.

        :raises ShellError: when it cannot be read.
        """
        status, output = await self.run_bytes(f"cat -- {shlex.quote(path)}", timeout)
        if status:
            raise ShellError(f"{self._name}: reading {path}: {_end_of(output)}")
        return output

    async def push(self, path: str, content: bytes, timeout: float = 60.0) -> None:
        """Write ``content`` to the node's file ``path``, replacing it.

        :raises ShellError: when it cannot be written.
        """
        # Base64 keeps the terminal's interrupt character out of the data.
        data = base64.b64encode(content) + b"\n"
        output = bytearray()
        try:
            status = await self._job(
                f"P {{nonce}} {len(data)} {shlex.quote(path)}",
                timeout,
                output.extend,
                output,
                data,
            )
        except TimeoutError:
            raise ShellTimeoutError(
                f"{self._name}: writing {len(content)} bytes to {path} took more than "
                f"{timeout:g} s",
                bytes(output),
            ) from None
        if status or output:
            raise ShellError(f"{self._name}: writing {path}: {_end_of(output)}")

    def reset(self, reason: str) -> None:
        """Say that the guest has restarted: a running command fails with ``reason``."""
        self._open = False
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(reason)

    async def close(self) -> None:
        """Give the connection back. The next call connects again."""
        for task in list(self._cleanups):
            task.cancel()
        await asyncio.gather(*self._cleanups, return_exceptions=True)
        self._disconnect()

    def _disconnect(self) -> None:
        self._open = False
        if self._opener is not None:
            self._opener.cancel()
            self._opener = None
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def _silent(self, timeout: float) -> str:
        if not self._path.exists():
            return f"{self._name}: there is no {self._path}: the node's machine is not running"
        return (
            f"{self._name}: the shell did not answer within {timeout:g} s: the node is still "
            "booting, hangs, or another program holds its shell"
        )

    @contextlib.asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        await self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def _send(self, line: str) -> None:
        if self._wire is not None and self._wire.transport is not None:
            self._wire.transport.write(line.encode() + _END_OF_LINE.encode())

    async def _ensure(self) -> None:
        """Connect and bring the shell to the loop. Repeats until it answers or is cancelled."""
        if self._wire is None or self._wire.closed.done():
            self._disconnect()
            try:
                _transport, self._wire = await asyncio.get_running_loop().create_unix_connection(
                    _Wire, socket_address(self._path)
                )
            except OSError as error:
                raise ShellError(
                    f"{self._name}: cannot connect to {self._path}: "
                    f"{error.strerror or error}: the node's machine is not running"
                ) from error
        if self._open:
            return
        # A task of its own, which goes on when the call that began it is given up: every new
        # beginning types ^C, and one that meets a shell just starting on a busy host ends it.
        if self._opener is None or self._opener.done():
            self._opener = asyncio.create_task(self._until_open(self._wire))
            self._opener.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._opener)

    async def _until_open(self, wire: _Wire) -> None:
        # One for all that the opened shell is used for: a restart between two waits counts.
        self._lost = asyncio.get_running_loop().create_future()
        # Each attempt begins with ^C, which ends a shell that is just starting; init starts the
        # next one a second later. So attempts become longer than any start: at a steady pace each
        # of them could meet, and end, another one.
        patience = _OPENING_PATIENCE
        while not await self._opening(wire, patience):
            patience = min(2 * patience, _OPENING_AT_MOST)
        self._open = True
        self._seen.clear()

    async def _opening(self, wire: _Wire, patience: float) -> bool:
        """Try once, for ``patience`` seconds."""
        assert wire.transport is not None
        # ^C ends a half-typed line, whoever reads it. The pause lets the shell act on it before the
        # next arrives: ^C also empties the terminal.
        wire.transport.write(b"\x03\n")
        await asyncio.sleep(_SETTLE)
        # A short question first: what is typed before the node has opened its terminal is echoed
        # by it, byte by byte, and lost.
        probe = r" printf '\036%s>0\036' {nonce}"
        if not await self._ask(wire, probe, patience, _OPENING_SILENCE):
            return False
        # From here on somebody is there; on a busy host it may be slow.
        if not await self._ask(wire, _STAGE, _STAGE_PATIENCE, _STAGE_PATIENCE):
            return False
        for function in _FUNCTIONS:
            self._send(function)
        return await self._ask(wire, probe, _STAGE_PATIENCE, _STAGE_PATIENCE)

    async def _ask(self, wire: _Wire, line: str, patience: float, silence: float) -> bool:
        """Send ``line`` and tell whether its marker came within ``patience`` seconds.

        :param silence: Seconds after which a node that has said something, and then nothing, gets
            the line again: what it said may be a prompt, before which the line was lost. It gets it
            more and more rarely, as it may be slow.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        nonce = secrets.token_hex(8)
        capture = _Capture(nonce, lambda _data: None)
        wire.listener = capture.feed
        sent = wire.received
        self._send(line.replace("{nonce}", nonce))
        asked = loop.time()
        try:
            while (now := loop.time()) < deadline:
                spoke = wire.received > sent
                due = max(wire.last_heard, asked) + silence if spoke else now + _SETTLE
                if spoke and now >= due:
                    self._send(line.replace("{nonce}", nonce))
                    asked, silence = now, 2 * silence
                    continue
                step = min(due, deadline) - now
                with contextlib.suppress(TimeoutError):
                    await self._first(wire, capture.status, step)
                    return True
            if wire.received == sent:
                # Nobody there. A fresh prompt makes itself heard, an earlier loop does not.
                wire.heard.clear()
                heard = asyncio.ensure_future(wire.heard.wait())
                try:
                    await self._first(wire, heard, _OPENING_PAUSE)
                except TimeoutError:
                    pass
                finally:
                    heard.cancel()
            return False
        finally:
            wire.listener = None

    @staticmethod
    def _nonce_of(capture: _Capture) -> str:
        return capture._end[1:-1].decode()

    async def _first(self, wire: _Wire, future: asyncio.Future[Any], timeout: float | None) -> None:
        """Wait for ``future``; raise ``ShellError`` when the connection or the guest goes first."""
        assert self._lost is not None
        await asyncio.wait(
            {future, wire.closed, self._lost},
            timeout=timeout,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if future.done():
            return
        if self._lost.done():
            raise ShellError(f"{self._name}: {self._lost.result()}")
        if wire.closed.done():
            self._open = False
            raise ShellError(
                f"{self._name}: the machine has closed the shell ({wire.closed.result()})"
            )
        raise TimeoutError

    async def _job(
        self,
        line: str | Callable[[], str],
        timeout: float | None,
        on_output: Callable[[bytes], None],
        collected: bytearray | None,
        data: bytes = b"",
        *,
        source: AsyncIterator[bytes] | None = None,
        pipe: str = "",
    ) -> int:
        """Send ``line`` (with ``{nonce}`` in it), then ``data``; return the status.

        ``source`` gives the command's input, by way of files beside ``pipe``.
        """
        had = Given(self._pids, asyncio.get_running_loop().time)

        def left() -> float | None:
            return None if timeout is None else max(0.0, timeout - had.seconds())

        try:
            async with had.within(timeout):
                await self._lock.acquire()
        except TimeoutError:
            raise ShellError(
                f"{self._name}: the shell was busy with another command for {timeout:g} s"
            ) from None
        handed_over = False
        try:
            for patience in _start_patiences():
                try:
                    async with had.within(timeout):
                        await self._ensure()
                except TimeoutError:
                    raise ShellError(self._silent(timeout or 0.0)) from None
                wire = self._wire
                assert wire is not None
                nonce = secrets.token_hex(8)
                overflow = asyncio.get_running_loop().create_future()

                def deliver(piece: bytes, overflow: asyncio.Future[int] = overflow) -> None:
                    if overflow.done():
                        return
                    on_output(piece)
                    if collected is not None and len(collected) > MAX_OUTPUT:
                        overflow.set_result(0)

                capture = _Capture(nonce, deliver)
                wire.listener = capture.feed
                feeder: asyncio.Task[None] | None = None
                running = False
                try:
                    text = line if isinstance(line, str) else line()
                    self._send(text.replace("{nonce}", nonce, 1))
                    running = True
                    rest = left()
                    try:
                        await self._first(
                            wire, capture.started, patience if rest is None else min(patience, rest)
                        )
                    except TimeoutError:
                        if left() == 0:
                            raise
                        # The loop may be gone (a new shell since), or slow: open it again. A line
                        # that was not begun by then never will be, and is sent again.
                        self._open = False
                        running = False
                        continue
                    if data and wire.transport is not None:
                        wire.transport.write(data)
                    if source is not None:
                        feeder = asyncio.create_task(self._give(wire, capture, source, pipe))
                    done = asyncio.ensure_future(_either(capture.status, overflow))
                    try:
                        while not done.done():
                            with contextlib.suppress(TimeoutError):
                                await self._first(wire, done, left())
                            if left() == 0 and not done.done():
                                raise TimeoutError
                    finally:
                        done.cancel()
                        if feeder is not None:
                            feeder.cancel()
                            self._send("E")
                    if overflow.done():
                        raise ShellError(
                            f"{self._name}: more than {MAX_OUTPUT} bytes of output; use stream()"
                        )
                    running = False
                    return capture.status.result()
                except ShellError:
                    if not overflow.done():
                        running = False
                    raise
                finally:
                    if running:
                        # Timeout, cancellation or flood: end the command before the next.
                        handed_over = True
                        task = asyncio.ensure_future(self._end(wire, capture, bool(data)))
                        self._cleanups.add(task)
                        task.add_done_callback(self._cleanups.discard)
                    else:
                        wire.listener = None
            raise AssertionError("only the deadline ends the attempts")
        finally:
            if not handed_over:
                self._lock.release()

    async def _give(
        self, wire: _Wire, capture: _Capture, source: AsyncIterator[bytes], pipe: str
    ) -> None:
        """Give a running command its input, one piece after the other has been taken."""
        nonce = secrets.token_hex(8)
        taken = _Taken(nonce, capture.feed)
        wire.listener = taken.feed
        async for given in source:
            for at in range(0, len(given), _PIECE):
                data = base64.b64encode(given[at : at + _PIECE]) + b"\n"
                if wire.transport is None:
                    return
                line = f"W {nonce} {len(data)} {pipe}-piece{_END_OF_LINE}"
                wire.transport.write(line.encode() + data)
                await taken.marks.acquire()
        self._send("E")

    async def _end(self, wire: _Wire, capture: _Capture, foreground: bool) -> None:
        """End the running command and release the lock."""
        try:
            if foreground:
                self._open = False  # ^C of the opening ends what reads the terminal
                return
            self._send("I INT")
            try:
                await self._first(wire, capture.status, _INTERRUPT_PATIENCE)
            except TimeoutError:
                last = _Capture(secrets.token_hex(8), lambda _data: None)
                wire.listener = last.feed
                self._send(f"K {self._nonce_of(last)}")
                await self._first(wire, last.status, _KILL_PATIENCE)
        except (ShellError, TimeoutError):
            self._open = False
        finally:
            wire.listener = None
            self._lock.release()


def _start_patiences() -> Iterator[float]:
    """How long to wait for the begin of a command, attempt after attempt: a node may be slow."""
    patience = _START_PATIENCE
    while True:
        yield patience
        patience *= 2


async def _either(first: asyncio.Future[int], second: asyncio.Future[int]) -> int:
    await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
    return 0


def _argument(command: str) -> str:
    """Return ``command`` as one word of one line of shell."""
    if "\0" in command:
        raise ValueError("a command cannot contain a NUL")
    if "\n" not in command:
        return shlex.quote(command)
    escaped = command.replace("\\", "\\\\").replace("\n", "\\0012")
    # The x keeps newlines at the end, which a command substitution would remove.
    return f"\"$(printf '%b' {shlex.quote(escaped)})\""


def _line(status: int, output: bytes | bytearray) -> str | None:
    """Return the line that ``F`` or ``G`` gave, ``None`` when it gave none."""
    line = bytes(output).rstrip(b"\n").decode(errors="replace")
    return line if status == 0 and line else None


def _end_of(output: bytes | bytearray, limit: int = 2000) -> str:
    text = bytes(output[-limit:]).decode(errors="replace").strip()
    return ("..." + text) if len(output) > limit else text
