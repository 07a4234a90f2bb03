# SPDX-License-Identifier: Apache-2.0
"""Bridge a person's terminal to a node's serial console."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

from meshlab.wire.sockets import socket_address

ESCAPE = b"\x1d"
"""Ctrl-], as in telnet and ``virsh console``."""


class ConsoleError(Exception):
    """There is no console to talk to."""


PATIENCE = 4.0
"""Seconds that a machine with a card has for a restart, in another QEMU, with another console."""


async def attach(
    path: Path,
    *,
    stdin: int = 0,
    stdout: int = 1,
    escape: bytes = ESCAPE,
    patience: float = PATIENCE,
) -> str:
    """Connect the terminal on ``stdin`` and ``stdout`` to the unix socket ``path``.

    The terminal is in raw mode meanwhile and as before afterwards, whatever happens.

    :returns: Why it ended, in words: the person typed ``escape``, or the machine is gone and not
        back within ``patience`` seconds.
    :raises ConsoleError: when nothing listens on ``path``.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(socket_address(path))
    except OSError as error:
        raise ConsoleError(
            f"cannot connect to {path}: {error.strerror or error}: "
            "the node's machine is not running"
        ) from error
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[str] = loop.create_future()

    def finish(reason: str) -> None:
        if not ended.done():
            ended.set_result(reason)

    def typed() -> None:
        try:
            data = os.read(stdin, 1024)
        except OSError as error:
            return finish(f"reading the terminal failed: {error.strerror}")
        before, found, _after = data.partition(escape)
        if before:
            writer.write(before)
        if found:
            finish("left")
        elif not data:
            loop.remove_reader(stdin)
            finish("end of input")
        return None

    async def show() -> None:
        nonlocal reader, writer
        while True:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(4096):
                    view = memoryview(data)
                    while view:
                        try:
                            view = view[os.write(stdout, view) :]
                        except BlockingIOError:
                            await asyncio.sleep(0.01)
            writer.close()
            again = await _reconnect(path, patience)
            if again is None:
                return finish("the machine was switched off")
            reader, writer = again

    task = asyncio.create_task(show())
    try:
        with _raw(stdin):
            # epoll takes no regular file: then nothing is typed, and the console is shown.
            with contextlib.suppress(PermissionError):
                loop.add_reader(stdin, typed)
            try:
                return await ended
            finally:
                loop.remove_reader(stdin)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await task
        with contextlib.suppress(OSError):
            # What was typed last must still go out before the connection is closed.
            async with asyncio.timeout(1.0):
                await writer.drain()
        writer.close()


async def _reconnect(
    path: Path, patience: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    deadline = asyncio.get_running_loop().time() + patience
    while True:
        try:
            return await asyncio.open_unix_connection(socket_address(path))
        except OSError:
            if asyncio.get_running_loop().time() >= deadline:
                return None
            await asyncio.sleep(0.05)


def hint(name: str, *, stdout: int = 1) -> str:
    """Return what a person should know on being connected to the console of ``name``.

    A serial line carries no window size, so the line that sets it is part of the words.
    """
    text = f"Console of {name}. Ctrl-] leaves it; Enter shows the prompt."
    if os.isatty(stdout):
        size = shutil.get_terminal_size()
        text += f" Window: stty rows {size.lines} cols {size.columns}"
    return text


def main(path: Path, name: str) -> int:
    """Run ``attach`` on the standard streams and return an exit status."""
    print(hint(name), file=sys.stderr)
    try:
        reason = asyncio.run(attach(path))
    except ConsoleError as error:
        print(f"meshlab: {error}", file=sys.stderr)
        return 1
    print(f"\n[{reason}]", file=sys.stderr)
    return 0


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
