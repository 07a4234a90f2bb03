# SPDX-License-Identifier: Apache-2.0
"""The link between a lab and its agent: requests, notes, streams and silence."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

from meshlab.chip.atecc608 import Atecc608
from meshlab.chip.bus import I2cBus
from meshlab.chip.i2c import FLAG_READ, HEADER, VirtioI2c
from meshlab.hosts.chip_line import ChipLine, answer
from meshlab.hosts.link import WINDOW, Handlers, Json, Link, LinkError, Stream, pump

SERIAL = bytes.fromhex("0123000000000001ee")


class Side(Handlers):
    """Remembers what comes."""

    def __init__(self) -> None:
        self.notes: list[Json] = []
        self.streams: asyncio.Queue[Stream] = asyncio.Queue()
        self.free = asyncio.Event()
        self.device: VirtioI2c | None = None

    async def request(self, method: str, params: Json) -> Json:
        if method == "chip":
            assert self.device is not None
            return answer(self.device, params)
        if method == "wait":
            await asyncio.Event().wait()
        if method != "double":
            return await super().request(method, params)
        return 2 * params

    def note(self, note: Json) -> None:
        self.notes.append(note)

    async def stream(self, stream: Stream) -> None:
        self.streams.put_nowait(stream)
        await self.free.wait()


class Pair:
    """Both sides."""

    def __init__(self, lab: Link, there: Link, sides: tuple[Side, Side]) -> None:
        self.lab = lab
        self.there = there
        self.sides = sides

    async def streams(self, what: Json = "x") -> tuple[Stream, Stream]:
        here = self.lab.open(what)
        return here, await self.sides[1].streams.get()


@contextlib.asynccontextmanager
async def pair(patience: float = 60.0) -> AsyncIterator[Pair]:
    ends = socket.socketpair()
    links, sides = [], (Side(), Side())
    for number, end in enumerate(ends):
        reader, writer = await asyncio.open_connection(sock=end)
        link = Link(reader, writer, sides[number], first=number, patience=patience)
        links.append(link)
    for link in links:
        link.start()
    try:
        async with asyncio.timeout(PATIENCE):
            yield Pair(links[0], links[1], sides)
    finally:
        for link in links:
            await link.close()


async def test_requests_are_answered_or_refused() -> None:
    async with pair() as both:
        assert await both.lab.call("double", 21) == 42
        assert await both.there.call("double", "ab") == "abab"
        with pytest.raises(LinkError, match="no request 'other'"):
            await both.lab.call("other")
        with pytest.raises(LinkError, match="no answer within"):
            await both.lab.call("wait", timeout=0.01)
        both.lab.note({"a": 1})
        await both.lab.call("double", 1)
        assert both.sides[1].notes == [{"a": 1}]
        assert both.lab.round_trips, "pulses are answered"


async def test_a_stream_carries_both_directions_to_their_ends() -> None:
    async with pair() as both:
        here, there = await both.streams({"node": "n1"})
        assert there.what == {"node": "n1"}
        await here.write(b"question")
        here.finish()
        assert await there.read_all() == b"question"
        await there.write(b"answer")
        there.finish()
        assert await here.read_all() == b"answer"
        assert await here.read() == b""


async def test_a_stream_that_nobody_reads_holds_up_no_other() -> None:
    async with pair() as both:
        slow, slow_there = await both.streams()
        writing = asyncio.create_task(slow.write(bytes(3 * WINDOW)))
        quick, quick_there = await both.streams()
        await quick.write(b"urgent")
        assert await quick_there.read() == b"urgent"
        assert not writing.done()
        got = 0
        while got < 3 * WINDOW:
            got += len(await slow_there.read())
        await writing


async def test_a_reset_ends_both_directions() -> None:
    async with pair() as both:
        here, there = await both.streams()
        there.reset()
        assert await here.read() == b""
        with pytest.raises(ConnectionError):
            await here.write(b"x")
        await both.lab.call("double", 1)


async def test_a_stream_that_is_not_served_is_over() -> None:
    async with pair() as both:
        both.sides[1].free.set()
        here, _there = await both.streams()
        assert await here.read() == b""


async def test_the_end_of_a_link_ends_all_of_it() -> None:
    async with pair() as both:
        here, _there = await both.streams()
        asking = asyncio.create_task(both.lab.call("wait"))
        await both.lab.call("double", 1)
        await both.there.close()
        with pytest.raises(LinkError, match="connection was closed"):
            await asking
        assert await here.read() == b""
        with pytest.raises(LinkError):
            await both.lab.call("double", 1)
        assert await both.lab.open("late").read() == b""


async def test_silence_is_an_end() -> None:
    ends = socket.socketpair()
    with ends[1]:
        reader, writer = await asyncio.open_connection(sock=ends[0])
        link = Link(reader, writer, Side(), first=0, patience=0.2)
        link.start()
        async with asyncio.timeout(PATIENCE):
            assert "nothing came for" in await asyncio.shield(link.ended)
        await link.close()


async def test_nonsense_is_an_end() -> None:
    ends = socket.socketpair()
    with ends[1]:
        reader, writer = await asyncio.open_connection(sock=ends[0])
        link = Link(reader, writer, Side(), first=0)
        link.start()
        ends[1].send(b"Welcome to Linux, have a nice day\n" * 10)
        async with asyncio.timeout(PATIENCE):
            assert "the connection broke" in await asyncio.shield(link.ended)
        await link.close()


async def test_a_socket_here_is_one_there(tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())
        writer.write(heard[0].upper())
        writer.close()

    async with pair() as both:
        far = await asyncio.start_unix_server(upper, str(tmp_path / "far"))

        async def there(stream: Stream) -> None:
            await pump(stream, *await asyncio.open_unix_connection(str(tmp_path / "far")))

        both.sides[1].stream = there  # type: ignore[method-assign]

        async def visited(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await pump(both.lab.open("far"), reader, writer)

        door = await asyncio.start_unix_server(visited, str(tmp_path / "door"))
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "door"))
        writer.write(b"hello")
        writer.write_eof()
        assert await reader.read() == b"HELLO"
        assert heard == [b"hello"]
        writer.close()
        door.close()
        far.close()


async def test_a_chip_answers_over_the_link(tmp_path: Path) -> None:
    async with pair() as both:
        chip = Atecc608(SERIAL, tmp_path / "chip.json", seed=1)
        both.sides[0].device = VirtioI2c(I2cBus([chip]))
        line = ChipLine(both.there, "n1")

        async def transfer(header: tuple[int, int, int], data: bytes, room: int) -> Any:
            return await line.process(0, HEADER.pack(*header) + data, room + 1)

        # A word address of 0 wakes it; then it says so: 04 11 33 43.
        await transfer((0, 0, 0), b"\0", 0)
        while (reply := await transfer((0x60 << 1, 0, FLAG_READ), b"", 4)).data[-1]:
            pass  # it takes its time to wake up
        assert reply.data == bytes.fromhex("0411334300")
        chip.fault = "absent"
        reply = await transfer((0x60 << 1, 0, FLAG_READ), b"", 4)
        assert reply.data[-1] == 1
        line.reset()
        await both.there.call("double", 1)
        assert both.sides[0].notes == [{"node": "n1", "chip": "reset"}]
        with pytest.raises(LinkError, match="without header or status"):
            await line.process(0, b"", 0)
