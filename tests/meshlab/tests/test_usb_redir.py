# SPDX-License-Identifier: Apache-2.0
"""The messages of USB redirection: what is taken, what is refused, and that nothing breaks it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlab.wire import usbredir
from meshlab.wire.usbredir import (
    HEADER,
    MAX_DATA,
    MAX_MESSAGE,
    Bulk,
    Control,
    Decoder,
    Endpoint,
    Hello,
    Interface,
    Kind,
    Message,
    Speed,
    Status,
    UsbRedirError,
)

WORDS = sum(1 << one for one in usbredir.CAPABILITIES)
FROM_GUEST = [
    Kind.RESET,
    Kind.SET_CONFIGURATION,
    Kind.GET_CONFIGURATION,
    Kind.SET_ALT_SETTING,
    Kind.GET_ALT_SETTING,
    Kind.START_INTERRUPT_RECEIVING,
    Kind.STOP_INTERRUPT_RECEIVING,
    Kind.CANCEL_DATA_PACKET,
    Kind.DEVICE_DISCONNECT_ACK,
    Kind.CONTROL_PACKET,
    Kind.BULK_PACKET,
]
IDS = st.integers(0, (1 << 64) - 1)
BYTES = st.integers(0, 255)
SHORTS = st.integers(0, 0xFFFF)


def hello(words: tuple[int, ...] = (WORDS,), version: bytes = b"a front end") -> bytes:
    body = version.ljust(64, b"\0") + struct.pack(f"<{len(words)}I", *words)
    return struct.pack("<III", Kind.HELLO, len(body), 0) + body


def message(kind: int, body: bytes = b"", identifier: int = 7) -> bytes:
    return HEADER.pack(kind, len(body), identifier) + body


def control(asked: Control) -> bytes:
    fields = (asked.endpoint, asked.request, asked.request_type, 0)
    body = struct.pack("<BBBBHHH", *fields, asked.value, asked.target, asked.length)
    return message(Kind.CONTROL_PACKET, body + asked.data, asked.id)


def bulk(asked: Bulk) -> bytes:
    body = struct.pack("<BBHIH", asked.endpoint, 0, len(asked.data), 0, 0)
    return message(Kind.BULK_PACKET, body + asked.data, asked.id)


def greeted() -> Decoder:
    decoder = Decoder()
    (first,) = decoder.feed(hello())
    assert isinstance(first, Hello)
    return decoder


def fed(data: bytes) -> list[Message]:
    return list(greeted().feed(data))


@st.composite
def controls(draw: st.DrawFn) -> Control:
    kind, data = draw(BYTES), draw(st.binary(max_size=200))
    reads = bool(kind & 0x80)
    return Control(
        id=draw(IDS),
        endpoint=0x80 if reads else 0,
        request_type=kind,
        request=draw(BYTES),
        value=draw(SHORTS),
        target=draw(SHORTS),
        length=draw(SHORTS) if reads else len(data),
        data=b"" if reads else data,
    )


BULKS = st.builds(Bulk, IDS, st.integers(1, 15), st.binary(max_size=200))


@given(st.lists(controls() | BULKS, max_size=6), st.data())
def test_transfers_come_through_however_the_stream_is_cut(
    asked: list[Control | Bulk], data: st.DataObject
) -> None:
    stream = b"".join(control(one) if isinstance(one, Control) else bulk(one) for one in asked)
    stream = hello() + stream
    decoder, found, at = Decoder(), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, len(stream) - at))
        found += list(decoder.feed(stream[at : at + size]))
        at += size
    assert found[1:] == asked
    assert decoder.pending == 0


@given(st.binary(max_size=400))
def test_any_bytes_are_messages_or_refused(data: bytes) -> None:
    for decoder in (Decoder(), greeted()):
        try:
            list(decoder.feed(data))
        except UsbRedirError:
            continue
        assert decoder.pending <= MAX_MESSAGE


@given(st.sampled_from(FROM_GUEST), st.integers(0, 40), st.data())
def test_any_body_of_a_known_kind_is_a_message_or_refused(
    kind: Kind, length: int, data: st.DataObject
) -> None:
    body = data.draw(st.binary(min_size=length, max_size=length))
    decoder = greeted()
    try:
        found = list(decoder.feed(message(kind, body)))
    except UsbRedirError:
        return
    assert len(found) == 1
    assert decoder.pending == 0


def test_a_hello_says_who_speaks_and_what_it_can_do() -> None:
    (found,) = Decoder().feed(hello((WORDS | 1, 1)))
    assert found == Hello("a front end", usbredir.CAPABILITIES | {0, 32})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (hello((0,)), "cannot do CONNECT_DEVICE_VERSION"),
        (hello((WORDS & ~(1 << 5),)), "cannot do WIDE_IDS"),
        (hello((WORDS,) * 5), "HELLO of 84 bytes"),
        (struct.pack("<III", Kind.HELLO, 63, 0), "HELLO of 63 bytes"),
        (struct.pack("<III", Kind.RESET, 0, 0), "RESET instead of the first message"),
    ],
)
def test_a_bad_first_message_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(UsbRedirError, match=words):
        list(Decoder().feed(data))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (message(Kind.HELLO, bytes(68)), "a second hello"),
        (message(12), "message 12 does not belong here"),
        (message(102), "message 102 does not belong here"),
        (message(Kind.DEVICE_CONNECT, bytes(10)), "only for the side with the device"),
        (message(Kind.SET_CONFIGURATION, bytes(2)), "SET_CONFIGURATION of 2 bytes"),
        (message(Kind.CONTROL_PACKET, bytes(9)), "CONTROL_PACKET of 9 bytes"),
        (HEADER.pack(Kind.BULK_PACKET, 10 + MAX_DATA + 1, 0), "BULK_PACKET of 65546 bytes"),
        (HEADER.pack(Kind.CONTROL_PACKET, 0xFFFFFFFF, 0), "CONTROL_PACKET of 4294967295 bytes"),
        (control(Control(1, 0x80, 0x40, 0, 0, 0, 0, b"")), "control transfer at endpoint 0x80"),
        (control(Control(1, 1, 0x40, 0, 0, 0, 0, b"")), "control transfer at endpoint 0x01"),
        (control(Control(1, 0, 0x40, 0, 0, 0, 4, b"123")), "4 bytes to the device comes with 3"),
        (control(Control(1, 128, 0xC0, 0, 0, 0, 4, b"1")), "4 bytes from the device comes with 1"),
        (bulk(Bulk(1, 0x81, b"")), "bulk transfer at endpoint 0x81"),
        (bulk(Bulk(1, 0, b"")), "bulk transfer at endpoint 0x00"),
        (message(Kind.START_INTERRUPT_RECEIVING, b"\x01"), "receiving from endpoint 0x01"),
    ],
)
def test_what_the_guest_s_side_may_not_say_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(UsbRedirError, match=words):
        fed(data)


def test_a_bad_header_is_refused_before_its_body_is_waited_for() -> None:
    decoder = greeted()
    with pytest.raises(UsbRedirError):
        list(decoder.feed(HEADER.pack(Kind.RESET, 1 << 30, 0)))


def test_what_we_say_is_as_long_as_the_protocol_has_it() -> None:
    """Lengths of usbredirproto.h for the capabilities that we announce."""
    endpoints = [Endpoint(0x81, 64), Endpoint(2, 512)]
    said = {
        usbredir.interface_info([Interface(0, 255)]): 4 + 4 * 32,
        usbredir.ep_info(endpoints, 8): 3 * 32 + 2 * 32,
        usbredir.device_connect(Speed.FULL, bytes(range(18))): 10,
        usbredir.device_disconnect(): 0,
        usbredir.configuration_status(1, Status.SUCCESS, 1): 2,
        usbredir.alt_setting_status(1, Status.STALL, 0, 0): 3,
        usbredir.receiving_status(usbredir.StartReceiving(1, 0x81), Status.SUCCESS): 2,
        usbredir.from_device(0x81, b"abcde"): 4 + 5,
        usbredir.bulk_answer(Bulk(1, 2, b"abc"), Status.SUCCESS): 10,
        usbredir.control_answer(Control(1, 128, 192, 0, 0, 0, 9, b""), Status.SUCCESS, b"ab"): 12,
    }
    for data, length in said.items():
        assert HEADER.unpack_from(data)[1] == length == len(data) - HEADER.size


def test_endpoints_are_told_at_their_places() -> None:
    body = usbredir.ep_info([Endpoint(0x81, 64, 3), Endpoint(2, 512)], 8)[HEADER.size :]
    kinds, interfaces = body[:32], body[64:96]
    sizes = struct.unpack("<32H", body[96:])
    told = {place: kind for place, kind in enumerate(kinds) if kind != 255}
    assert told == {0: 0, 2: 2, 16: 0, 17: 3}, "an endpoint from the device as one of interrupts"
    assert (sizes[0], sizes[2], sizes[16], sizes[17]) == (8, 512, 8, 64)
    assert interfaces[17] == 3


def test_a_refused_transfer_took_nothing() -> None:
    said = usbredir.control_answer(Control(1, 0, 64, 0, 0, 0, 5, b"hello"), Status.STALL)
    assert said[HEADER.size + 3] == Status.STALL
    assert said[-2:] == b"\0\0"
