# SPDX-License-Identifier: Apache-2.0
"""The bridge between a person's terminal and a node's console."""

from __future__ import annotations

import asyncio
import os
import pty
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import PATIENCE

from meshlab.machine import console


class Terminal:
    """A person at a terminal: ``master`` is the person, ``slave`` the program's end."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        os.set_blocking(self.master, False)

    async def read(self, size: int) -> bytes:
        """Return ``size`` bytes that the person sees."""
        seen = b""
        async with asyncio.timeout(PATIENCE):
            while len(seen) < size:
                try:
                    seen += os.read(self.master, 4096)
                except BlockingIOError:
                    await asyncio.sleep(0.01)
        return seen

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    async def until_raw(self) -> None:
        async with asyncio.timeout(PATIENCE):
            while not self.is_raw():  # noqa: ASYNC110 - nothing tells it
                await asyncio.sleep(0.01)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    it = Terminal()
    yield it
    os.close(it.master)
    os.close(it.slave)


class Node:
    """The console's other end."""

    def __init__(self) -> None:
        self.typed = asyncio.Queue[bytes]()
        self.writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        writer.write(b"login: ")
        while data := await reader.read(100):
            self.typed.put_nowait(data)
        self.typed.put_nowait(b"")
        writer.close()


async def test_what_is_typed_and_shown(tmp_path: Path, terminal: Terminal) -> None:
    node = Node()
    before = termios.tcgetattr(terminal.slave)
    server = await asyncio.start_unix_server(node.serve, tmp_path / "console.sock")
    async with server:
        task = asyncio.create_task(
            console.attach(tmp_path / "console.sock", stdin=terminal.slave, stdout=terminal.slave)
        )
        assert await terminal.read(7) == b"login: "
        await terminal.until_raw()
        terminal.type(b"root\r\x03")
        typed = await asyncio.wait_for(node.typed.get(), PATIENCE)
        while len(typed) < 6:
            typed += await asyncio.wait_for(node.typed.get(), PATIENCE)
        assert typed == b"root\r\x03", "^C is the node's"
        assert node.writer is not None
        node.writer.write(b"\x1b[1mhi\xff\r\n")
        assert await terminal.read(9) == b"\x1b[1mhi\xff\r\n"
        terminal.type(b"bye" + console.ESCAPE + b"not sent")
        assert await asyncio.wait_for(task, PATIENCE) == "left"
        rest = b""
        while piece := await asyncio.wait_for(node.typed.get(), PATIENCE):
            rest += piece
        assert rest == b"bye"
    assert termios.tcgetattr(terminal.slave) == before, "the terminal is as it was"


async def test_machine_that_goes_away(tmp_path: Path, terminal: Terminal) -> None:
    node = Node()
    before = termios.tcgetattr(terminal.slave)
    server = await asyncio.start_unix_server(node.serve, tmp_path / "console.sock")
    path = tmp_path / "console.sock"
    async with server:
        task = asyncio.create_task(
            console.attach(path, stdin=terminal.slave, stdout=terminal.slave, patience=0.1)
        )
        await terminal.read(7)
        assert node.writer is not None
        path.unlink()
        node.writer.close()
        assert await asyncio.wait_for(task, PATIENCE) == "the machine was switched off"
    assert termios.tcgetattr(terminal.slave) == before


async def test_machine_that_restarts_as_another_qemu(tmp_path: Path, terminal: Terminal) -> None:
    path = tmp_path / "console.sock"
    first, second = Node(), Node()
    server = await asyncio.start_unix_server(first.serve, path)
    async with server:
        task = asyncio.create_task(
            console.attach(path, stdin=terminal.slave, stdout=terminal.slave, patience=60)
        )
        assert await terminal.read(7) == b"login: "
        assert first.writer is not None
        path.unlink()
        first.writer.close()
    await asyncio.sleep(0.2)
    async with await asyncio.start_unix_server(second.serve, path):
        assert await terminal.read(7) == b"login: "
        terminal.type(b"again" + console.ESCAPE)
        assert await asyncio.wait_for(task, PATIENCE) == "left"
        assert await asyncio.wait_for(second.typed.get(), PATIENCE) == b"again"


async def test_without_a_terminal(tmp_path: Path) -> None:
    node = Node()
    server = await asyncio.start_unix_server(node.serve, tmp_path / "console.sock")
    read_typed, write_typed = os.pipe()
    read_shown, write_shown = os.pipe()
    async with server:
        task = asyncio.create_task(
            console.attach(tmp_path / "console.sock", stdin=read_typed, stdout=write_shown)
        )
        os.write(write_typed, b"uptime\n")
        assert await asyncio.wait_for(node.typed.get(), PATIENCE) == b"uptime\n"
        os.close(write_typed)
        assert await asyncio.wait_for(task, PATIENCE) == "end of input"
    assert os.read(read_shown, 100) == b"login: "
    for fd in (read_typed, read_shown, write_shown):
        os.close(fd)


async def test_nobody_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(console.ConsoleError, match="the node's machine is not running"):
        await console.attach(tmp_path / "console.sock")
    assert await asyncio.to_thread(console.main, tmp_path / "console.sock", "n1") == 1
    shown = capfd.readouterr().err
    assert "Console of n1. Ctrl-] leaves it" in shown
    assert "cannot connect" in shown
