# SPDX-License-Identifier: Apache-2.0
"""A Ralink RT5370, a USB Wi-Fi adapter, as far as Linux's driver ``rt2800usb`` asks for it.

The driver reaches the chip's registers and memory by vendor's control transfers. This one keeps
what is written, answers the requests that a chip carries out at once (its EEPROM, the registers
behind other registers, its processor), and takes frames for the air. It has no air of its own: the
latest frames are kept for somebody to look at, one for everybody counts as sent, one for a single
station as not acknowledged. Its beacon can be read, as it is in the chip's memory, and a frame can
be put into the form in which the driver receives it. So it shows what a driver and a node do with
an adapter, up to the first frame to a neighbour.

Numbers are those of Linux's ``rt2800.h`` and ``rt2x00usb.h``.
"""

from __future__ import annotations

import enum
import struct
from collections import Counter, deque

from meshlab.usb.device import STALL, Answer, Description
from meshlab.wire.usbredir import Control, Endpoint

FIRMWARE_NAME = "rt2870.bin"
"""The file that the driver asks for before it switches the chip on."""
_FIRMWARE_PART = 4096

CHIP = 0x53900502
"""MAC_CSR0: the chip and its revision (RT5390F)."""
RADIO = 0x5370
"""The radio part, which the EEPROM names."""
EEPROM_SIZE = 0x200
SPACE = 0x10000
"""Bytes that the 16-bit addresses of the control transfers reach."""
MAX_TRANSFER = 4096
"""Most bytes that one of them may carry."""

_VENDOR = 0x40
_KIND = 0x60


class Request(enum.IntEnum):
    """The chip's requests."""

    DEVICE_MODE = 1
    WRITE = 6
    READ = 7
    READ_EEPROM = 9


class Register(enum.IntEnum):
    """Registers with a life of their own."""

    WPDMA_GLO_CFG = 0x0208
    PBF_SYS_CTRL = 0x0400
    RF_CSR_CFG = 0x0500
    MAC_CSR0 = 0x1000
    BBP_CSR_CFG = 0x101C
    BCN_TIME_CFG = 0x1114
    MAC_STATUS_CFG = 0x1200
    TX_STA_FIFO = 0x1718
    H2M_MAILBOX_CSR = 0x7010


PBF_READY = 1 << 7
BEACON_GENERATION = 1 << 20
INDIRECT_BUSY = 1 << 17
BEACONS = 0x7800
"""Where the driver puts the first beacon: words for the transmitter, then the frame."""
_TRANSMIT = struct.Struct("<IIII")
"""The words for the transmitter (TXWI): rate; acknowledgement, station, length, number; more."""
_USB_INFO = 4
"""Bytes before them in a bulk transfer (TXINFO)."""
_MAX_BEACON = 0x200 - _TRANSMIT.size
RECEIVES_AT = 0x81
"""The endpoint at which it says what it received."""
_RECEIVED = struct.Struct("<IIIII")
"""Before a received frame: its length (RXINFO); length, rate, signal and no more (RXWI)."""
_OFDM = 1 << 30
"""A rate: 6 Mbit/s."""
_MAX_FRAME = 2346
_MAX_SENT = 64
"""Sent frames that are kept."""
_MAX_STATUSES = 16
"""Frames whose status the chip keeps for the driver."""


def firmware() -> bytes:
    """Return a file that the driver takes for the chips' firmware.

    Two parts, each with its checksum (CRC-16, polynomial 0x8408 in reflected order, start FFFF), of
    zeros: the chip here has no processor to run them.
    """
    part = bytes(_FIRMWARE_PART - 2)
    crc = 0xFFFF
    for byte in part:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x8408 if crc & 1 else 0)
    return (part + struct.pack("<H", crc)) * 2


def received(frame: bytes, signal_dbm: int = -50) -> bytes:
    """Return a frame from the air as the adapter gives it to its driver.

    :param frame: From frame control on, without its checksum.
    :param signal_dbm: How strong it was: -13 or less.
    """
    if not 10 <= len(frame) <= _MAX_FRAME or not -127 <= signal_dbm <= -13:
        raise ValueError(f"no frame: {len(frame)} bytes at {signal_dbm} dBm")
    padded = frame + bytes(-len(frame) % 4)
    # The chip counts from -12 dBm downward.
    words = (16 + len(padded), len(frame) << 16, _OFDM, -12 - signal_dbm, 0)
    return _RECEIVED.pack(*words) + padded + bytes(4)


class Rt5370:
    """The adapter: a ``device.UsbDevice``.

    :param mac: Its address, 6 bytes.
    :ivar sent: The latest frames that it was given for the air.
    """

    def __init__(self, mac: bytes) -> None:
        self.description = Description(
            vendor=0x148F,
            product=0x5370,
            version=0x0101,
            strings=("Ralink", "802.11 n WLAN", "1.0"),
            endpoints=tuple(Endpoint(address, 64) for address in (RECEIVES_AT, 1, 2, 3, 4, 5, 6)),
        )
        self.counters: Counter[str] = Counter()
        self.sent: deque[bytes] = deque(maxlen=_MAX_SENT)
        self._eeprom = _eeprom(mac)
        self._space = bytearray(SPACE)
        self._baseband: dict[int, int] = {}
        self._radio: dict[int, int] = {}
        self._statuses: deque[int] = deque(maxlen=_MAX_STATUSES)
        self.power_cycle()

    # -- what a test asks

    @property
    def beacon(self) -> bytes | None:
        """Return the frame that it sends as its beacon; None when it sends none."""
        if not self._word(Register.BCN_TIME_CFG) & BEACON_GENERATION:
            return None
        _, about, _, _ = _TRANSMIT.unpack_from(self._space, BEACONS)
        length, start = about >> 16 & 0x0FFF, BEACONS + _TRANSMIT.size
        return bytes(self._space[start : start + min(length, _MAX_BEACON)])

    # -- the device

    def power_cycle(self) -> None:
        """See ``UsbDevice``."""
        self._space[:] = bytes(SPACE)
        self._baseband = {0: 1}  # the driver takes 0 and FF for one that does not answer
        self._radio = {}
        self._statuses.clear()
        self._set(Register.MAC_CSR0, CHIP)
        self._set(Register.PBF_SYS_CTRL, PBF_READY)

    def take(self, endpoint: int, data: bytes) -> Answer:
        """See ``UsbDevice``: a frame for the air."""
        if len(data) < _USB_INFO + _TRANSMIT.size:
            self.counters["short frames"] += 1
            return STALL
        self.counters["frames sent"] += 1
        rate, about, _, _ = _TRANSMIT.unpack_from(data, _USB_INFO)
        acknowledged, station, identifier = about & 1, about >> 8 & 0xFF, about >> 28
        # TX_STA_FIFO: valid, identifier, success, acknowledgement wanted, station, rate
        status = 1 | identifier << 1 | (not acknowledged) << 5 | acknowledged << 7 | station << 8
        start = _USB_INFO + _TRANSMIT.size
        self.sent.append(data[start : start + (about >> 16 & 0x0FFF)])
        self._statuses.append(status | rate & 0xFFFF0000)
        return Answer()

    def control(self, asked: Control) -> Answer:
        """See ``UsbDevice``."""
        if asked.request_type & _KIND != _VENDOR or asked.length > MAX_TRANSFER:
            return STALL
        end = asked.target + asked.length
        match asked.request:
            case Request.DEVICE_MODE:
                # Asked for its mode it says that it does not start by itself.
                return Answer(data=bytes(asked.length if asked.reads else 0))
            case Request.READ_EEPROM if asked.reads and end <= EEPROM_SIZE:
                return Answer(data=self._eeprom[asked.target : end])
            case Request.READ if asked.reads and end <= SPACE:
                if asked.target == Register.TX_STA_FIFO and asked.length:
                    self._set(
                        Register.TX_STA_FIFO, self._statuses.popleft() if self._statuses else 0
                    )
                return Answer(data=bytes(self._space[asked.target : end]))
            case Request.WRITE if not asked.reads and end <= SPACE:
                self._space[asked.target : end] = asked.data
                self._written(asked.target, asked.length)
                return Answer()
            case _:
                self.counters["unknown requests"] += 1
                return STALL

    def _word(self, register: int) -> int:
        return int(struct.unpack_from("<I", self._space, register)[0])

    def _set(self, register: int, value: int) -> None:
        struct.pack_into("<I", self._space, register, value)

    def _written(self, start: int, length: int) -> None:
        """Do what the registers do that were written: all of it is done at once."""
        for register in Register:
            if start <= register < start + length:
                self._act(register, self._word(register))

    def _act(self, register: Register, value: int) -> None:
        match register:
            case Register.MAC_CSR0:
                self._set(register, CHIP)
            case Register.PBF_SYS_CTRL:
                self._set(register, value | PBF_READY)
            case Register.WPDMA_GLO_CFG:
                self._set(register, value & ~0b1010)  # its two DMA engines are idle
            case Register.MAC_STATUS_CFG | Register.TX_STA_FIFO | Register.H2M_MAILBOX_CSR:
                self._set(register, 0)  # idle, nobody's to write, the processor is done
            case Register.BBP_CSR_CFG:
                self._indirect(register, self._baseband, value >> 8 & 0xFF, not value >> 16 & 1)
            case Register.RF_CSR_CFG:
                self._indirect(register, self._radio, value >> 8 & 0x3F, bool(value >> 16 & 1))
            case _:
                pass

    def _indirect(self, register: int, behind: dict[int, int], place: int, write: bool) -> None:
        """Write or read one of the 8-bit registers that are behind another one."""
        value = self._word(register)
        if write:
            behind[place] = value & 0xFF
        self._set(register, value & ~(INDIRECT_BUSY | 0xFF) | behind.get(place, 0))


def _eeprom(mac: bytes) -> bytes:
    if len(mac) != 6:
        raise ValueError(f"an address has 6 bytes, not {len(mac)}")
    made = bytearray(b"\xff" * EEPROM_SIZE)
    struct.pack_into("<H", made, 0, RADIO)
    made[4:10] = mac
    words = {
        0x1A: 0x0011,  # one chain to send, one to receive
        0x1B: 0x0000,  # no button, no external parts
        0x1D: 0x0000,  # frequency offset, LED mode
        0x22: 0x0000,  # gains
        0x23: 0x0000,
        0x24: 0x0000,
    }
    for place, value in words.items():
        struct.pack_into("<H", made, 2 * place, value)
    made[2 * 0x29 : 2 * 0x37] = b"\x05" * 28  # power for each channel, of both chains
    return bytes(made)
