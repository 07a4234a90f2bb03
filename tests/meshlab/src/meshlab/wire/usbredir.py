# SPDX-License-Identifier: Apache-2.0
"""The messages of USB redirection, by which QEMU's ``usb-redir`` reaches a USB device elsewhere.

The protocol is version 0.7 of "USB Network Redirection", as QEMU 1.5 and later speak it. A message
is a header (kind, length, identifier), a fixed part for each kind, and, of data messages, the
data. We are the side with the device (the protocol's usb-host), QEMU is the side with the guest
(its usb-guest). All numbers are little-endian.

``Decoder`` takes what QEMU sends. It is strict: a message that the other side may not send, or of
another length than its kind has, ends the connection, and nothing is kept but one unfinished
message of ``MAX_MESSAGE`` bytes. Kinds that only concern isochronous transfers are refused, as no
device here has them.

**Endpoints from the device** are told as interrupt endpoints, whatever they are. Of a bulk endpoint
QEMU asks for data and waits for the answer, and there is no word for "nothing yet". The controller
of an emulated Raspberry Pi 3 (DWC2) does not survive that: it keeps a transfer that the guest has
cancelled, and aborts when its channel is used again (``!usb_packet_is_inflight(p)``; QEMU 7.2, and
its source in 2025). Of an interrupt endpoint QEMU takes what comes when it comes, and says "nothing
yet" to the guest itself. The guest knows the kind from the device's own descriptor.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from typing import NamedTuple

HEADER = struct.Struct("<IIQ")
_EARLY_HEADER = struct.Struct("<III")
"""The header of the first message: capabilities, the wide identifier among them, come with it."""

VERSION_SIZE = 64
"""Bytes of the hello that say in words who speaks."""
MAX_CAPABILITY_WORDS = 4
MAX_DATA = 0xFFFF
"""Most data in one message: no controller here has longer transfers."""
MAX_MESSAGE = HEADER.size + 16 + MAX_DATA
ENDPOINTS = 32
"""Places in a table of endpoints: 16 from the host and 16 to it."""
NO_ENDPOINT = 255


class Kind(enum.IntEnum):
    """The messages that occur here."""

    HELLO = 0
    DEVICE_CONNECT = 1
    DEVICE_DISCONNECT = 2
    RESET = 3
    INTERFACE_INFO = 4
    EP_INFO = 5
    SET_CONFIGURATION = 6
    GET_CONFIGURATION = 7
    CONFIGURATION_STATUS = 8
    SET_ALT_SETTING = 9
    GET_ALT_SETTING = 10
    ALT_SETTING_STATUS = 11
    START_INTERRUPT_RECEIVING = 15
    STOP_INTERRUPT_RECEIVING = 16
    INTERRUPT_RECEIVING_STATUS = 17
    CANCEL_DATA_PACKET = 21
    DEVICE_DISCONNECT_ACK = 24
    CONTROL_PACKET = 100
    BULK_PACKET = 101
    INTERRUPT_PACKET = 103


class Status(enum.IntEnum):
    """How a transfer ended."""

    SUCCESS = 0
    CANCELLED = 1
    INVALID = 2
    IO_ERROR = 3
    STALL = 4
    TIMEOUT = 5


class Speed(enum.IntEnum):
    """The speed of a device."""

    LOW = 0
    FULL = 1
    HIGH = 2


class Transfer(enum.IntEnum):
    """The kind of an endpoint."""

    CONTROL = 0
    BULK = 2
    INTERRUPT = 3


class Capability(enum.IntEnum):
    """What a side can do: a bit of its hello."""

    CONNECT_DEVICE_VERSION = 1
    DEVICE_DISCONNECT_ACK = 3
    EP_INFO_MAX_PACKET_SIZE = 4
    WIDE_IDS = 5
    WIDE_BULK_LENGTHS = 6


CAPABILITIES = frozenset(Capability)
"""What we say that we can do. The other side must be able to do all of it, as QEMU is, whose XHCI
asks the same of us."""


class UsbRedirError(Exception):
    """The other side sent what the protocol does not allow; the text says what."""


class Hello(NamedTuple):
    """The first message of each side."""

    version: str
    capabilities: frozenset[int]


class Reset(NamedTuple):
    """The guest resets the device."""


class SetConfiguration(NamedTuple):
    """The guest chooses a configuration."""

    id: int
    configuration: int


class GetConfiguration(NamedTuple):
    """The guest asks for the configuration."""

    id: int


class SetAltSetting(NamedTuple):
    """The guest chooses an alternate setting of an interface."""

    id: int
    interface: int
    setting: int


class GetAltSetting(NamedTuple):
    """The guest asks for the alternate setting of an interface."""

    id: int
    interface: int


class StartReceiving(NamedTuple):
    """The guest wants what an endpoint from the device has to say."""

    id: int
    endpoint: int


class StopReceiving(NamedTuple):
    """It does not any more."""

    id: int
    endpoint: int


class Cancel(NamedTuple):
    """The guest wants no answer to an earlier data message any more."""

    id: int


class DisconnectAck(NamedTuple):
    """The other side knows that the device is gone."""


class Control(NamedTuple):
    """A control transfer: its setup packet, and the data that go to the device."""

    id: int
    endpoint: int
    request_type: int
    request: int
    value: int
    target: int
    """What the request is about: wIndex."""
    length: int
    """Of ``data``, or of what may come from the device."""
    data: bytes

    @property
    def reads(self) -> bool:
        """Whether data come from the device."""
        return bool(self.request_type & 0x80)


class Bulk(NamedTuple):
    """A bulk transfer: data for the device."""

    id: int
    endpoint: int
    data: bytes


Message = (
    Hello
    | Reset
    | SetConfiguration
    | GetConfiguration
    | SetAltSetting
    | GetAltSetting
    | StartReceiving
    | StopReceiving
    | Cancel
    | DisconnectAck
    | Control
    | Bulk
)

_CONTROL = struct.Struct("<BBBBHHH")
_BULK = struct.Struct("<BBHIH")
_INTERRUPT = struct.Struct("<BBH")
_FIXED = {
    Kind.RESET: 0,
    Kind.SET_CONFIGURATION: 1,
    Kind.GET_CONFIGURATION: 0,
    Kind.SET_ALT_SETTING: 2,
    Kind.GET_ALT_SETTING: 1,
    Kind.START_INTERRUPT_RECEIVING: 1,
    Kind.STOP_INTERRUPT_RECEIVING: 1,
    Kind.CANCEL_DATA_PACKET: 0,
    Kind.DEVICE_DISCONNECT_ACK: 0,
}
"""Kinds of the usb-guest that have no data, and their length."""
_DATA = {Kind.CONTROL_PACKET: _CONTROL.size, Kind.BULK_PACKET: _BULK.size}
"""Its kinds with data, and the length before the data."""


class Decoder:
    """Takes the bytes of the other side and gives its messages.

    :ivar greeted: Whether its hello has come, which must be the first message.
    """

    def __init__(self) -> None:
        self.greeted = False
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Return the bytes of an unfinished message that are kept."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterable[Message]:
        """Give the messages that are complete with ``data``, one after the other.

        :raises UsbRedirError: when the other side breaks a rule. Then no more can be taken.
        """
        self._buffer += data
        while (message := self._next()) is not None:
            yield message

    def _next(self) -> Message | None:
        header = HEADER if self.greeted else _EARLY_HEADER
        if len(self._buffer) < header.size:
            return None
        number, length, identifier = header.unpack_from(self._buffer)
        kind = self._kind(number, length)
        if len(self._buffer) < header.size + length:
            return None
        body = bytes(self._buffer[header.size : header.size + length])
        del self._buffer[: header.size + length]
        return self._message(kind, identifier, body)

    def _kind(self, number: int, length: int) -> Kind:
        """Judge a header before anything behind it is waited for."""
        try:
            kind = Kind(number)
        except ValueError:
            raise UsbRedirError(f"message {number} does not belong here") from None
        if self.greeted == (kind is Kind.HELLO):
            raise UsbRedirError(f"{kind.name} instead of the first message, or a second hello")
        if kind is Kind.HELLO:
            words, rest = divmod(length - VERSION_SIZE, 4)
            good = not rest and 0 <= words <= MAX_CAPABILITY_WORDS
        elif kind in _DATA:
            good = 0 <= length - _DATA[kind] <= MAX_DATA
        elif kind in _FIXED:
            good = length == _FIXED[kind]
        else:
            raise UsbRedirError(f"{kind.name} is only for the side with the device to say")
        if not good:
            raise UsbRedirError(f"{kind.name} of {length} bytes")
        return kind

    def _message(self, kind: Kind, identifier: int, body: bytes) -> Message:
        match kind:
            case Kind.HELLO:
                return self._hello(body)
            case Kind.RESET:
                return Reset()
            case Kind.SET_CONFIGURATION:
                return SetConfiguration(identifier, body[0])
            case Kind.GET_CONFIGURATION:
                return GetConfiguration(identifier)
            case Kind.SET_ALT_SETTING:
                return SetAltSetting(identifier, body[0], body[1])
            case Kind.GET_ALT_SETTING:
                return GetAltSetting(identifier, body[0])
            case Kind.START_INTERRUPT_RECEIVING:
                return StartReceiving(identifier, _from_device(body[0]))
            case Kind.STOP_INTERRUPT_RECEIVING:
                return StopReceiving(identifier, _from_device(body[0]))
            case Kind.CANCEL_DATA_PACKET:
                return Cancel(identifier)
            case Kind.DEVICE_DISCONNECT_ACK:
                return DisconnectAck()
            case Kind.CONTROL_PACKET:
                return _control(identifier, body)
            case _:
                return _bulk(identifier, body)

    def _hello(self, body: bytes) -> Hello:
        words = struct.unpack(f"<{(len(body) - VERSION_SIZE) // 4}I", body[VERSION_SIZE:])
        bits = frozenset(
            32 * place + bit
            for place, word in enumerate(words)
            for bit in range(32)
            if word >> bit & 1
        )
        missing = sorted(one.name for one in CAPABILITIES - bits)
        if missing:
            raise UsbRedirError(f"it cannot do {', '.join(missing)}, which is needed")
        self.greeted = True
        version = body[:VERSION_SIZE].split(b"\0", 1)[0].decode("ascii", "replace")
        return Hello(version, bits)


def _control(identifier: int, body: bytes) -> Control:
    endpoint, request, request_type, _, value, index, length = _CONTROL.unpack_from(body)
    data = body[_CONTROL.size :]
    made = Control(identifier, endpoint, request_type, request, value, index, length, data)
    if endpoint & 0x7F or bool(endpoint & 0x80) != made.reads:
        raise UsbRedirError(f"a control transfer at endpoint {endpoint:#04x}")
    _check_data("a control transfer", made.reads, length, data)
    return made


def _bulk(identifier: int, body: bytes) -> Bulk:
    endpoint, _, low, stream, high = _BULK.unpack_from(body)
    data = body[_BULK.size :]
    if endpoint & 0xF0 or not endpoint or stream:
        raise UsbRedirError(f"a bulk transfer at endpoint {endpoint:#04x}, stream {stream}")
    _check_data("a bulk transfer", False, high << 16 | low, data)
    return Bulk(identifier, endpoint, data)


def _from_device(endpoint: int) -> int:
    if endpoint & 0xF0 != 0x80 or endpoint == 0x80:
        raise UsbRedirError(f"receiving from endpoint {endpoint:#04x}")
    return endpoint


def _check_data(what: str, reads: bool, length: int, data: bytes) -> None:
    if len(data) != (0 if reads else length):
        where = "from" if reads else "to"
        raise UsbRedirError(f"{what} of {length} bytes {where} the device comes with {len(data)}")


# -- what the side with the device says


class Endpoint(NamedTuple):
    """A bulk endpoint of a device."""

    address: int
    """Its number; bit 7 says that data come from the device."""
    size: int
    """Bytes of its largest packet."""
    interface: int = 0


class Interface(NamedTuple):
    """An interface of a device: number, class, subclass, protocol."""

    number: int
    kind: int
    subkind: int = 0
    protocol: int = 0


def hello(version: str) -> bytes:
    """Return the first message: who speaks, and what it can do."""
    words = sum(1 << bit for bit in CAPABILITIES)
    body = version.encode("ascii")[: VERSION_SIZE - 1].ljust(VERSION_SIZE, b"\0")
    body += struct.pack("<I", words)
    return _EARLY_HEADER.pack(Kind.HELLO, len(body), 0) + body


def _pack(kind: Kind, identifier: int, body: bytes) -> bytes:
    return HEADER.pack(kind, len(body), identifier) + body


def interface_info(interfaces: Iterable[Interface]) -> bytes:
    """Tell which interfaces the configuration has."""
    known = list(interfaces)
    columns = zip(*known, strict=True) if known else [()] * 4
    body = b"".join(bytes(column).ljust(ENDPOINTS, b"\0") for column in columns)
    return _pack(Kind.INTERFACE_INFO, 0, struct.pack("<I", len(known)) + body)


def ep_info(endpoints: Iterable[Endpoint], control_size: int) -> bytes:
    """Tell which endpoints the configuration has beside the two of number 0; see the module."""
    kinds, intervals, interfaces = ([NO_ENDPOINT] * ENDPOINTS, [0] * ENDPOINTS, [0] * ENDPOINTS)
    sizes = [0] * ENDPOINTS
    for place in (0, 16):
        kinds[place], sizes[place] = Transfer.CONTROL, control_size
    for endpoint in endpoints:
        place = (endpoint.address & 0x80) >> 3 | endpoint.address & 0x0F
        kinds[place] = Transfer.INTERRUPT if endpoint.address & 0x80 else Transfer.BULK
        intervals[place] = 1
        sizes[place], interfaces[place] = endpoint.size, endpoint.interface
    body = bytes(kinds) + bytes(intervals) + bytes(interfaces)
    return _pack(Kind.EP_INFO, 0, body + struct.pack(f"<{ENDPOINTS}H", *sizes))


def device_connect(speed: Speed, device_descriptor: bytes) -> bytes:
    """Tell that a device is there.

    :param device_descriptor: Its 18 bytes (USB 2.0, table 9-8).
    """
    kind, subkind, protocol = device_descriptor[4:7]
    numbers = struct.unpack_from("<HHH", device_descriptor, 8)
    body = struct.pack("<BBBBHHH", speed, kind, subkind, protocol, *numbers)
    return _pack(Kind.DEVICE_CONNECT, 0, body)


def device_disconnect() -> bytes:
    """Tell that the device is gone."""
    return _pack(Kind.DEVICE_DISCONNECT, 0, b"")


def configuration_status(identifier: int, status: Status, configuration: int) -> bytes:
    """Answer ``SetConfiguration`` and ``GetConfiguration``."""
    return _pack(Kind.CONFIGURATION_STATUS, identifier, bytes((status, configuration)))


def alt_setting_status(identifier: int, status: Status, interface: int, setting: int) -> bytes:
    """Answer ``SetAltSetting`` and ``GetAltSetting``."""
    return _pack(Kind.ALT_SETTING_STATUS, identifier, bytes((status, interface, setting)))


def control_answer(asked: Control, status: Status, data: bytes = b"") -> bytes:
    """Answer a control transfer; ``data`` is what comes from the device."""
    length = len(data) if asked.reads else (asked.length if status is Status.SUCCESS else 0)
    setup = (asked.endpoint, asked.request, asked.request_type, status, asked.value, asked.target)
    return _pack(Kind.CONTROL_PACKET, asked.id, _CONTROL.pack(*setup, length) + data)


def bulk_answer(asked: Bulk, status: Status) -> bytes:
    """Answer a bulk transfer."""
    length = len(asked.data) if status is Status.SUCCESS else 0
    return _pack(Kind.BULK_PACKET, asked.id, _BULK.pack(asked.endpoint, status, length, 0, 0))


def receiving_status(asked: StartReceiving | StopReceiving, status: Status) -> bytes:
    """Answer ``StartReceiving`` and ``StopReceiving``."""
    return _pack(Kind.INTERRUPT_RECEIVING_STATUS, asked.id, bytes((status, asked.endpoint)))


def from_device(endpoint: int, data: bytes) -> bytes:
    """Bring what the device says by itself, after ``StartReceiving``: one packet.

    :param endpoint: Where it says it.
    :param data: At most ``MAX_DATA`` bytes.
    """
    head = _INTERRUPT.pack(endpoint, Status.SUCCESS, len(data))
    return _pack(Kind.INTERRUPT_PACKET, 0, head + data)
