# SPDX-License-Identifier: Apache-2.0
"""USB devices of the simulator: at a socket, as QEMU has them, and each by itself."""

from __future__ import annotations

import asyncio
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

from meshlab.chip.atecc608 import Atecc608, frame
from meshlab.chip.bus import I2cBus
from meshlab.chip.server import ChipServer
from meshlab.chip.state import serial_for
from meshlab.chip.usb import FUNCTIONS, UsbI2c
from meshlab.usb import ralink
from meshlab.usb import server as usb_server
from meshlab.usb.device import Answer, Description, UsbDevice, standard
from meshlab.usb.ralink import BEACONS, CHIP, Register, Rt5370
from meshlab.usb.server import UsbServer
from meshlab.wire.usbredir import (
    CAPABILITIES,
    HEADER,
    Control,
    Endpoint,
    Kind,
    Speed,
    Status,
)

sys.path.insert(0, str(Path(__file__).parent))  # what the tests of the chip share lies beside them

from vhost_front_end import until

MAC = bytes.fromhex("74da38112233")
SERIAL = serial_for(1, 1)
READ, WRITE = 0xC1, 0x41
"""Request types of i2c-tiny-usb."""


def asks(
    kind: int, request: int, value: int = 0, target: int = 0, *, length: int = 0, data: bytes = b""
) -> Control:
    reads = bool(kind & 0x80)
    return Control(1, 0x80 if reads else 0, kind, request, value, target, length or len(data), data)


class Echo:
    """A device that gives back what it got, after a while if asked, and fails if asked."""

    description = Description(
        0x1234, 0x5678, 0x0100, ("us", "echo"), endpoints=(Endpoint(0x81, 64), Endpoint(2, 64))
    )

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.power_cycles = 0
        self.taken: list[bytes] = []

    def control(self, asked: Control) -> Answer:
        if asked.request == 1:
            return Answer(data=b"late", seconds=asked.value / 1000)
        if asked.request == 2:
            raise RuntimeError("a fault of ours")
        return Answer(data=b"now!")

    def take(self, endpoint: int, data: bytes) -> Answer:
        self.taken.append(data)
        return Answer()

    def power_cycle(self) -> None:
        self.power_cycles += 1


class FrontEnd:
    """QEMU's side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, path: Path) -> FrontEnd:
        made = cls(*await asyncio.open_unix_connection(str(path)))
        kind, length, _ = struct.unpack("<III", await made.take(12))
        assert kind == Kind.HELLO
        await made.take(length)
        return made

    async def take(self, size: int) -> bytes:
        return await asyncio.wait_for(self._reader.readexactly(size), PATIENCE)

    def greet(self) -> None:
        words = sum(1 << one for one in CAPABILITIES)
        body = b"test".ljust(64, b"\0") + struct.pack("<I", words)
        self._writer.write(struct.pack("<III", Kind.HELLO, len(body), 0) + body)

    def say(self, kind: int, body: bytes = b"", identifier: int = 1) -> None:
        self._writer.write(HEADER.pack(kind, len(body), identifier) + body)

    def control(self, asked: Control, identifier: int = 1) -> None:
        fields = (asked.endpoint, asked.request, asked.request_type, 0)
        body = struct.pack("<BBBBHHH", *fields, asked.value, asked.target, asked.length)
        self.say(Kind.CONTROL_PACKET, body + asked.data, identifier)

    async def hears(self) -> tuple[int, int, bytes]:
        """Return kind, identifier and body of the next message."""
        kind, length, identifier = HEADER.unpack(await self.take(HEADER.size))
        return kind, identifier, await self.take(length)

    async def answer(self) -> tuple[int, int, bytes]:
        """Return identifier, status and data of the answer to a control transfer."""
        kind, identifier, body = await self.hears()
        assert kind == Kind.CONTROL_PACKET
        return identifier, body[3], body[10:]

    async def attached(self) -> bytes:
        """Return what connects the device."""
        kinds = [await self.hears() for _ in range(3)]
        assert [k for k, _, _ in kinds] == [
            Kind.INTERFACE_INFO,
            Kind.EP_INFO,
            Kind.DEVICE_CONNECT,
        ]
        return kinds[2][2]

    async def hung_up(self) -> bool:
        return await asyncio.wait_for(self._reader.read(), PATIENCE) == b""

    def close(self) -> None:
        self._writer.close()


class Bench:
    def __init__(self, path: Path) -> None:
        self.device = Echo()
        self.server = UsbServer(path, self.device)

    async def front_end(self) -> FrontEnd:
        end = await FrontEnd.connect(self.server.path)
        end.greet()
        return end


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path / "usb.sock")
    await made.server.start()
    yield made
    await made.server.stop()
    assert not made.server.path.exists()


# -- at a socket


async def test_a_front_end_gets_the_device_and_its_configuration(bench: Bench) -> None:
    end = await bench.front_end()
    connect = await end.attached()
    assert connect == bytes((Speed.FULL, 0, 0, 0)) + struct.pack("<HHH", 0x1234, 0x5678, 0x100)
    end.say(Kind.SET_CONFIGURATION, b"\x01", 5)
    assert [(await end.hears())[0] for _ in range(2)] == [Kind.INTERFACE_INFO, Kind.EP_INFO]
    assert await end.hears() == (Kind.CONFIGURATION_STATUS, 5, bytes((Status.SUCCESS, 1)))
    end.say(Kind.SET_CONFIGURATION, b"\x02", 6)
    assert await end.hears() == (Kind.CONFIGURATION_STATUS, 6, bytes((Status.STALL, 1)))
    end.say(Kind.GET_CONFIGURATION, b"", 7)
    assert await end.hears() == (Kind.CONFIGURATION_STATUS, 7, bytes((Status.SUCCESS, 1)))
    end.say(Kind.SET_ALT_SETTING, b"\x00\x00", 8)
    assert await end.hears() == (Kind.ALT_SETTING_STATUS, 8, bytes((Status.SUCCESS, 0, 0)))
    end.say(Kind.SET_ALT_SETTING, b"\x00\x01", 9)
    assert await end.hears() == (Kind.ALT_SETTING_STATUS, 9, bytes((Status.STALL, 0, 0)))
    end.close()
    await until(lambda: bench.server.connection is None)
    assert bench.device.power_cycles == 2, "when it was connected, and when its machine went"


async def test_transfers_are_answered(bench: Bench) -> None:
    end = await bench.front_end()
    await end.attached()
    end.control(asks(0xC0, 9, length=64), 11)
    assert await end.answer() == (11, Status.SUCCESS, b"now!")
    end.control(asks(0xC0, 9, length=2), 12)
    assert await end.answer() == (12, Status.SUCCESS, b"no"), "never more than was asked for"
    end.control(asks(0x80, 6, 0x0100, length=18), 13)
    assert await end.answer() == (13, Status.SUCCESS, Echo.description.device())
    end.say(Kind.BULK_PACKET, struct.pack("<BBHIH", 2, 0, 5, 0, 0) + b"hello", 14)
    kind, identifier, body = await end.hears()
    assert (kind, identifier, body) == (Kind.BULK_PACKET, 14, struct.pack("<BBHIH", 2, 0, 5, 0, 0))
    assert bench.device.taken == [b"hello"]
    end.say(Kind.START_INTERRUPT_RECEIVING, b"\x81", 15)
    assert await end.hears() == (Kind.INTERRUPT_RECEIVING_STATUS, 15, b"\x00\x81")


@pytest.mark.parametrize(
    ("packets", "taken"),
    [
        ([64, 64, 6], [134]),
        ([134], [134]),
        ([64, 0, 1], [64, 1]),
        ([63, 64, 64], [63]),
        ([64] * 1024 + [1, 2], [2]),
    ],
)
async def test_a_bulk_transfer_ends_with_a_short_packet(
    bench: Bench, packets: list[int], taken: list[int]
) -> None:
    end = await bench.front_end()
    await end.attached()
    for number, size in enumerate(packets):
        end.say(Kind.BULK_PACKET, struct.pack("<BBHIH", 2, 0, size, 0, 0) + bytes(size), number)
        kind, identifier, body = await end.hears()
        assert (kind, identifier) == (Kind.BULK_PACKET, number)
        assert body[1] == (Status.STALL if number == 1024 else Status.SUCCESS), "too long"
    assert [len(one) for one in bench.device.taken] == taken
    end.say(Kind.BULK_PACKET, struct.pack("<BBHIH", 3, 0, 0, 0, 0))
    assert (await end.hears())[2][1] == Status.STALL, "no such endpoint"


async def test_a_device_speaks_while_the_guest_listens(bench: Bench) -> None:
    assert not bench.server.send(0x81, b"to nobody")
    end = await bench.front_end()
    await end.attached()
    assert not bench.server.send(0x81, b"too early")
    end.say(Kind.START_INTERRUPT_RECEIVING, b"\x83", 1)
    assert await end.hears() == (Kind.INTERRUPT_RECEIVING_STATUS, 1, bytes((Status.INVALID, 0x83)))
    end.say(Kind.START_INTERRUPT_RECEIVING, b"\x81", 2)
    assert await end.hears() == (Kind.INTERRUPT_RECEIVING_STATUS, 2, b"\x00\x81")
    assert bench.server.send(0x81, b"hello")
    kind, _, body = await end.hears()
    assert (kind, body) == (Kind.INTERRUPT_PACKET, b"\x81\x00\x05\x00hello")
    for length, packets in ((130, [64, 64, 2]), (64, [64, 0])):
        assert bench.server.send(0x81, bytes(length))
        said = [await end.hears() for _ in packets]
        assert [len(body) - 4 for _, _, body in said] == packets
    end.say(Kind.STOP_INTERRUPT_RECEIVING, b"\x81", 3)
    assert await end.hears() == (Kind.INTERRUPT_RECEIVING_STATUS, 3, b"\x00\x81")
    assert not bench.server.send(0x81, b"too late")
    end.say(Kind.START_INTERRUPT_RECEIVING, b"\x81", 4)
    await end.hears()
    bench.server.unplug()
    assert not bench.server.send(0x81, b"pulled")


async def test_a_fault_of_a_device_is_an_error_of_the_transfer(bench: Bench) -> None:
    end = await bench.front_end()
    await end.attached()
    end.control(asks(0xC0, 2, length=4))
    assert (await end.answer())[1] == Status.IO_ERROR
    assert bench.server.counters["device errors"] == 1


async def test_a_slow_transfer_ends_when_it_is_cancelled_or_the_device_is_pulled(
    bench: Bench,
) -> None:
    end = await bench.front_end()
    await end.attached()
    end.control(asks(0xC0, 1, value=50, length=4), 1)
    assert await end.answer() == (1, Status.SUCCESS, b"late")
    end.control(asks(0xC0, 1, value=60_000, length=4), 2)
    end.control(asks(0xC0, 1, value=60_000, length=4), 3)
    end.say(Kind.CANCEL_DATA_PACKET, b"", 2)
    assert await end.answer() == (2, Status.CANCELLED, b"")
    end.say(Kind.CANCEL_DATA_PACKET, b"", 2)  # again: nothing
    bench.server.unplug()
    assert await end.answer() == (3, Status.IO_ERROR, b"")
    assert (await end.hears())[0] == Kind.DEVICE_DISCONNECT


async def test_a_device_may_be_plugged_in_and_out_at_any_time(tmp_path: Path) -> None:
    device = Echo()
    server = UsbServer(tmp_path / "usb.sock", device, plugged=False)
    await server.start()
    end = await FrontEnd.connect(server.path)
    server.plug()
    server.unplug()  # before the front end has said hello: it never hears of it
    end.greet()
    end.control(asks(0xC0, 9, length=4))
    assert (await end.answer())[1] == Status.IO_ERROR
    for _ in range(2):
        server.plug()
        server.plug()
        await end.attached()
        server.unplug()
        server.unplug()
        assert (await end.hears())[0] == Kind.DEVICE_DISCONNECT
        end.say(Kind.DEVICE_DISCONNECT_ACK)
    server.plug()
    end.close()
    await until(lambda: server.connection is None)
    again = await FrontEnd.connect(server.path)
    again.greet()
    await again.attached()
    await server.stop()
    assert await again.hung_up()


async def test_a_second_front_end_is_turned_away(bench: Bench) -> None:
    first = await bench.front_end()
    await first.attached()
    second, _ = await asyncio.open_unix_connection(str(bench.server.path))
    assert await asyncio.wait_for(second.read(), PATIENCE) == b""
    assert bench.server.counters["refused"] == 1
    first.control(asks(0xC0, 9, length=4))
    assert (await first.answer())[1] == Status.SUCCESS


@pytest.mark.parametrize("bad", ["kind", "twice", "many"])
async def test_a_front_end_that_breaks_the_rules_is_left(bench: Bench, bad: str) -> None:
    end = await bench.front_end()
    await end.attached()
    if bad == "kind":
        end.say(12)
    for number in range(usb_server.MAX_OPEN + 1 if bad == "many" else 2):
        end.control(asks(0xC0, 1, value=60_000, length=4), number if bad == "many" else 1)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await end.hears()
    assert bench.server.counters["protocol errors"] == 1
    await until(lambda: bench.server.connection is None)
    again = await bench.front_end()
    await again.attached()


async def test_a_front_end_that_says_nothing_is_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usb_server, "HELLO_PATIENCE", 0.05)
    end = await FrontEnd.connect(bench.server.path)
    assert await end.hung_up()


# -- what every device says


def test_descriptors_are_whole() -> None:
    description = Rt5370(MAC).description
    device, configuration = description.device(), description.configuration()
    assert (device[0], len(device)) == (18, 18)
    assert struct.unpack_from("<HH", device, 8) == (0x148F, 0x5370)
    assert struct.unpack_from("<H", configuration, 2) == (len(configuration),)
    at, kinds = 0, []
    while at < len(configuration):
        kinds.append(configuration[at + 1])
        at += configuration[at]
    assert at == len(configuration)
    assert kinds == [2, 4] + [5] * 7
    assert configuration[9 + 4] == 7
    for place in device[14:17]:
        text = description.string(place)
        assert text is not None
        assert text[0] == len(text)
    assert description.string(4) is None


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 0xFFFF), st.integers(0, 255))
def test_any_request_of_the_standard_has_an_answer(
    kind: int, request: int, value: int, length: int
) -> None:
    asked = asks(kind, request, value, length=length)
    answer = standard(Echo.description, asked)
    assert (answer is None) == bool(kind & 0x60)
    if answer is not None:
        assert len(answer.data) <= asked.length


DEVICES = st.sampled_from([lambda: Rt5370(MAC), lambda: UsbI2c(I2cBus([]))])


@given(DEVICES, st.data())
def test_no_request_breaks_a_device(make: object, data: st.DataObject) -> None:
    device: UsbDevice = make()  # type: ignore[operator]
    for _ in range(data.draw(st.integers(1, 8))):
        kind = data.draw(st.sampled_from([0x40, 0xC0, 0x41, 0xC1, 0xFF]))
        content = b"" if kind & 0x80 else data.draw(st.binary(max_size=64))
        length = data.draw(st.integers(0, 0xFFFF)) if kind & 0x80 else len(content)
        request = data.draw(st.integers(0, 12))
        value, target = (data.draw(st.integers(0, 0xFFFF)) for _ in range(2))
        asked = Control(1, kind & 0x80, kind, request, value, target, length, content)
        answer = device.control(asked)
        assert len(answer.data) <= max(length, len(struct.pack("<I", FUNCTIONS)))
        assert device.take(1, data.draw(st.binary(max_size=40))).data == b""


# -- the chip's adapter


async def test_a_chip_answers_through_its_adapter(tmp_path: Path) -> None:
    chip = Atecc608(SERIAL, tmp_path / "chip.json")
    server = ChipServer(tmp_path / "chip.sock", chip, usb=True)
    await server.start()
    try:
        end = await FrontEnd.connect(tmp_path / "chip.sock")
        end.greet()
        await end.attached()
        end.control(asks(READ, 1, length=4))
        assert (await end.answer())[2] == struct.pack("<I", FUNCTIONS)
        end.control(asks(WRITE, 2, 10))
        assert (await end.answer())[1] == Status.SUCCESS
        end.control(asks(READ, 7, 1, 0x60, length=4))
        assert (await end.answer())[1] == Status.SUCCESS
        end.control(asks(READ, 3, length=1))
        assert (await end.answer())[2] == b"\x02", "it sleeps"
        end.control(asks(WRITE, 7, 0, 0, data=b"\x00"))  # the wake-up
        await end.answer()
        await asyncio.sleep(0.01)
        end.control(asks(READ, 7, 1, 0x60, length=4))
        assert (await end.answer())[2] == frame(b"\x11")
        end.control(asks(READ, 3, length=1))
        assert (await end.answer())[2] == b"\x01"
        chip.fault = "stuck"
        began = asyncio.get_running_loop().time()
        end.control(asks(READ, 7, 1, 0x60, length=4))
        assert (await end.answer())[1] == Status.STALL
        assert asyncio.get_running_loop().time() - began > 0.5
        status = server.status()
        assert status["connected"]
        assert status["usbredir"]["transfers"] == 8
        assert status["bus"] == {"reads": 3, "writes": 1, "naks": 2, "stuck": 1}
    finally:
        await server.stop()


@pytest.mark.parametrize(
    "asked",
    [
        asks(READ, 7, 1, 0x80, length=1),
        asks(READ, 7, 0, 0x60, length=1),
        asks(READ, 7, 1, 0x60, length=8193),
        asks(WRITE, 3),
        asks(READ, 8, length=1),
        asks(0xA1, 1, length=4),
    ],
)
def test_what_the_adapter_does_not_know_it_refuses(asked: Control) -> None:
    assert UsbI2c(I2cBus([])).control(asked).status == Status.STALL


# -- the Wi-Fi adapter


def word(device: Rt5370, register: int) -> int:
    answer = device.control(asks(0xC0, 7, target=register, length=4))
    return int(struct.unpack("<I", answer.data)[0])


def write(device: Rt5370, register: int, value: int) -> None:
    device.control(asks(0x40, 6, target=register, data=struct.pack("<I", value)))


def test_an_adapter_says_what_it_is() -> None:
    device = Rt5370(MAC)
    assert word(device, Register.MAC_CSR0) == CHIP
    eeprom = device.control(asks(0xC0, 9, length=512)).data
    assert (len(eeprom), eeprom[:2], eeprom[4:10]) == (512, b"\x70\x53", MAC)
    with pytest.raises(ValueError, match="6 bytes"):
        Rt5370(b"")


@given(st.integers(0, 255), st.integers(0, 255))
def test_registers_behind_a_register(place: int, value: int) -> None:
    device = Rt5370(MAC)
    busy, read = 1 << 17, 1 << 16
    write(device, Register.BBP_CSR_CFG, busy | place << 8 | value)
    assert not word(device, Register.BBP_CSR_CFG) & busy
    write(device, Register.BBP_CSR_CFG, busy | read | place << 8)
    assert word(device, Register.BBP_CSR_CFG) & (busy | 0xFF) == value
    write(device, Register.RF_CSR_CFG, busy | 1 << 16 | (place & 63) << 8 | value)
    write(device, Register.RF_CSR_CFG, busy | (place & 63) << 8)
    assert word(device, Register.RF_CSR_CFG) & (busy | 0xFF) == value


def test_frames_have_a_status_each_and_only_so_many_are_kept() -> None:
    device = Rt5370(MAC)
    for number in range(20):
        acknowledged = number & 1
        about = acknowledged | 7 << 8 | 5 << 16 | (number & 15) << 28
        frame_ = struct.pack("<IIIII", 0, 0x80010000, about, 0, 0) + b"frame and more"
        assert device.take(1, frame_).status == Status.SUCCESS
    found = []
    while (status := word(device, Register.TX_STA_FIFO)) & 1:
        found.append((status >> 1 & 15, status >> 5 & 1, status >> 7 & 1, status >> 8 & 255))
    assert found == [(n & 15, 1 - (n & 1), n & 1, 7) for n in range(4, 20)]
    assert set(device.sent) == {b"frame"}
    assert device.take(1, bytes(19)).status == Status.STALL
    assert device.counters == {"frames sent": 20, "short frames": 1}


def test_a_received_frame_has_its_length_and_signal_before_it() -> None:
    data = ralink.received(b"a frame of 17 b..", -62)
    info, length, rate, signal, _ = struct.unpack_from("<IIIII", data)
    assert data[20 : 20 + (length >> 16)] == b"a frame of 17 b.."
    assert len(data) == 4 + info + 4
    assert info % 4 == 0
    assert (rate >> 30, -12 - signal) == (1, -62)
    for frame_, dbm in ((b"short", -50), (bytes(2347), -50), (bytes(10), -12), (bytes(10), -128)):
        with pytest.raises(ValueError, match="no frame"):
            ralink.received(frame_, dbm)


def test_a_beacon_is_what_the_driver_has_put_there() -> None:
    device = Rt5370(MAC)
    assert device.beacon is None
    data = struct.pack("<IIII", 0, 6 << 16, 0, 0) + b"beacon\0\0"
    device.control(asks(0x40, 6, target=BEACONS, data=data))
    assert device.beacon is None, "beacons are not switched on"
    write(device, Register.BCN_TIME_CFG, 1 << 20)
    assert device.beacon == b"beacon"
    device.power_cycle()
    assert device.beacon is None


def test_the_placeholder_of_a_firmware_has_the_sum_that_the_driver_checks() -> None:
    data = ralink.firmware()
    assert len(data) == 8192
    for part in (data[:4096], data[4096:]):
        # The CRC over data and sum together is a constant: zero.
        crc = 0xFFFF
        for byte in part:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (0x8408 if crc & 1 else 0)
        assert crc == 0
