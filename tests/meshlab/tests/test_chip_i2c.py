# SPDX-License-Identifier: Apache-2.0
"""The virtual I2C controller: single requests, and a whole chip over shared memory."""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

from meshlab.chip.atecc608 import Atecc608, crc16, read_counter
from meshlab.chip.bus import I2cBus, Nak, Stuck
from meshlab.chip.i2c import VirtioI2c
from meshlab.chip.server import ChipServer
from meshlab.chip.state import serial_for
from meshlab.chip.vhost_user import GuestError

sys.path.insert(0, str(Path(__file__).parent))  # what the tests of the chip share lies beside them

import vhost_front_end as fe
from vhost_front_end import FrontEnd, until

OK, ERROR = b"\x00", b"\x01"
FAIL_NEXT, READ = 1, 2


class Memory:
    """A device at 0x50 that keeps what is written to it."""

    def __init__(self) -> None:
        self.content = b""
        self.power_cycles = 0
        self.stuck = False

    def write(self, address: int, data: bytes) -> None:
        if self.stuck:
            raise Stuck(0.25)
        if address != 0x50:
            raise Nak
        self.content = data

    def read(self, address: int, length: int) -> bytes:
        if self.stuck:
            raise Stuck(0.25)
        if address != 0x50:
            raise Nak
        return self.content[:length].ljust(length, b"\xff")

    def power_cycle(self) -> None:
        self.power_cycles += 1


def header(address: int, flags: int = 0) -> bytes:
    return struct.pack("<HHI", address << 1, 0, flags)


def test_write_and_read() -> None:
    memory = Memory()
    device = VirtioI2c(I2cBus([memory]))
    assert device.process(0, header(0x50) + b"abc", 1) == (OK, 0.0)
    assert memory.content == b"abc"
    assert device.process(0, header(0x50, READ), 5) == (b"abc\xff" + OK, 0.0)
    assert device.process(0, header(0x50), 1) == (OK, 0.0)  # without data: is anybody there?
    assert memory.content == b""
    assert device.process(0, header(0x51), 1) == (ERROR, 0.0)
    assert device.process(0, header(0x51, READ), 3) == (b"\0\0" + ERROR, 0.0)
    assert device.counters == {"writes": 3, "reads": 2, "naks": 2}


def test_several_devices() -> None:
    memory = Memory()
    chip = Atecc608(serial_for(1, 1), scale=0.0)
    device = VirtioI2c(I2cBus([chip, memory]))
    device.process(0, header(0x50) + b"abc", 1)
    assert device.process(0, header(0) + b"\0", 1).data == ERROR  # nobody takes a wake pulse
    assert device.process(0, header(0x60, READ), 5).data == bytes.fromhex("04113343") + OK
    assert device.process(0, header(0x50, READ), 4).data == b"abc" + OK


def test_a_transfer_fails_as_a_whole() -> None:
    memory = Memory()
    device = VirtioI2c(I2cBus([memory]))
    assert device.process(0, header(0x50, FAIL_NEXT) + b"a", 1).data == OK
    assert device.process(0, header(0x51, FAIL_NEXT) + b"b", 1).data == ERROR
    assert device.process(0, header(0x50, FAIL_NEXT) + b"c", 1).data == ERROR
    assert device.process(0, header(0x50, READ), 2).data == b"\0" + ERROR
    assert memory.content == b"a"
    assert device.process(0, header(0x50, READ), 2).data == b"a" + OK


def test_stuck_bus_takes_its_time() -> None:
    memory = Memory()
    device = VirtioI2c(I2cBus([memory]))
    memory.stuck = True
    assert device.process(0, header(0x50, READ), 3) == (b"\0\0" + ERROR, 0.25)
    assert device.counters["stuck"] == 1


@pytest.mark.parametrize(
    ("request_bytes", "room"),
    [
        (header(0x50, READ) + b"x", 4),  # a read that writes
        (header(0x50) + b"x", 4),  # a write that reads
        (struct.pack("<HHI", 0x50 << 1 | 1, 0, 0), 1),
        (struct.pack("<HHI", 0x150, 0, 0), 1),
        (header(0x50, READ), 8194),
        (header(0x50) + bytes(8193), 1),
    ],
)
def test_bad_requests_get_an_error(request_bytes: bytes, room: int) -> None:
    memory = Memory()
    device = VirtioI2c(I2cBus([memory]))
    assert device.process(0, request_bytes, room).data[-1:] == ERROR
    assert device.counters == {"bad requests": 1}
    assert memory.content == b""


@pytest.mark.parametrize(("request_bytes", "room"), [(b"", 1), (bytes(7), 1), (header(0x50), 0)])
def test_requests_that_cannot_be_answered(request_bytes: bytes, room: int) -> None:
    with pytest.raises(GuestError):
        VirtioI2c(I2cBus([Memory()])).process(0, request_bytes, room)


@given(data=st.binary(min_size=8, max_size=300), room=st.integers(1, 300))
def test_every_answer_fills_its_room(data: bytes, room: int) -> None:
    device = VirtioI2c(I2cBus([Memory(), Atecc608(serial_for(1, 1))]))
    reply = device.process(0, data, room)
    assert len(reply.data) == room
    assert reply.data[-1:] in (OK, ERROR)


# -- the whole: a guest's driver, shared memory, the chip

OUT, ROOM, STATUS = 0x100100, 0x102000, 0x104000


class Guest:
    """Requests as Linux's i2c-virtio makes them: header, data and status in their own buffers."""

    def __init__(self, end: FrontEnd, indirect: bool) -> None:
        self.end = end
        self.indirect_at = 0x106000 if indirect else 0

    async def transfer(self, address: int, data: bytes | int) -> bytes | None:
        """Write bytes or read a number of them; None when there is no acknowledge."""
        read = isinstance(data, int)
        size = data if isinstance(data, int) else len(data)
        self.end.put(OUT, header(address, READ if read else 0))
        self.end.put(STATUS, b"\xaa")
        self.end.put(ROOM, b"\0" * size if isinstance(data, int) else data)
        chain = [(OUT, 8, 0, 0), (ROOM, size, fe.WRITE if read else 0, 0), (STATUS, 1, fe.WRITE, 0)]
        head, written = await self.end.run(chain, indirect_at=self.indirect_at)
        assert (head, written) == (0, (size if read else 0) + 1)
        if self.end.get(STATUS, 1) != OK:
            return None
        return self.end.get(ROOM, size) if read else b""

    async def wake(self) -> bytes | None:
        assert await self.transfer(0, b"\0") is None
        return await self.transfer(0x60, 4)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ChipServer]:
    chip = Atecc608(serial_for(1, 5), tmp_path / "chip.json", scale=0.0)
    server = ChipServer(tmp_path / "chip.sock", chip, name="n5")
    await server.start()
    yield server
    await server.stop()


@pytest.mark.parametrize("indirect", [False, True])
async def test_chip_over_shared_memory(server: ChipServer, indirect: bool) -> None:
    end = FrontEnd(server.server.path)
    await end.set_up(indirect=indirect)
    guest = Guest(end, indirect)
    assert await guest.transfer(0x60, 4) is None  # asleep
    assert await guest.wake() == bytes.fromhex("04113343")
    assert await guest.transfer(0x60, bytes.fromhex("03070280000009ad")) == b""
    reply = await guest.transfer(0x60, 35)
    assert reply is not None
    assert reply[1:5] + reply[9:14] == server.chip.serial
    assert await guest.transfer(0x60, b"\x01") == b""
    assert await guest.transfer(0x60, b"") is None
    status = server.status()
    assert status["connected"] is True
    assert status["serial"] == serial_for(1, 5).hex()
    assert status["commands"] == {"Read": 1}
    assert "guest errors" not in status["vhost_user"]
    end.close()


async def test_power_off_makes_the_chip_forget(server: ChipServer) -> None:
    for _ in range(3):
        end = FrontEnd(server.server.path)
        await end.set_up()
        guest = Guest(end, indirect=True)
        # a chip that had been left awake would not answer a pulse
        assert await guest.wake() == bytes.fromhex("04113343")
        end.close()
    await until(lambda: not server.connected)
    assert server.status()["vhost_user"]["connections"] == 3


async def test_file_is_written_in_the_background_and_before_the_end(
    server: ChipServer, tmp_path: Path
) -> None:
    end = FrontEnd(server.server.path)
    await end.set_up()
    guest = Guest(end, indirect=True)
    await guest.wake()
    for count in range(1, 4):
        packet = bytes.fromhex("0724010000")
        assert await guest.transfer(0x60, b"\x03" + packet + crc16(packet)) == b""
        if count < 3:  # not waited for at the last
            reply = None
            async with asyncio.timeout(PATIENCE):
                while reply is None:
                    reply = await guest.transfer(0x60, 7)
            assert reply[:5] == b"\x07" + count.to_bytes(4, "little")
    end.close()
    await server.stop()
    kept = Atecc608(server.chip.serial, tmp_path / "chip.json").memory
    assert read_counter(kept, 0) == 3


async def test_many_chips_share_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshlab.chip.atecc608.BUS_TIMEOUT", 0.3)
    servers, guests = [], []
    for index in range(12):
        server = ChipServer(tmp_path / f"{index}.sock", Atecc608(serial_for(1, index)))
        await server.start()
        end = FrontEnd(server.server.path)
        await end.set_up()
        servers.append(server)
        guests.append(Guest(end, indirect=True))
    servers[0].chip.fault = "stuck"
    stuck = asyncio.create_task(guests[0].transfer(0x60, 4))
    for guest in guests[1:]:
        await guest.transfer(0, b"\0")
    # every chip takes its 1.5 ms to wake up, at the same time
    for guest in guests[1:]:
        reply = None
        async with asyncio.timeout(PATIENCE):
            while reply is None:
                reply = await guest.transfer(0x60, 4)
        assert reply == bytes.fromhex("04113343")
    assert await stuck is None
    assert servers[0].device.counters["stuck"] == 1
    for server, guest in zip(servers, guests, strict=True):
        guest.end.close()
        await server.stop()
