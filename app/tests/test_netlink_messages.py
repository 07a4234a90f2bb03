# SPDX-License-Identifier: Apache-2.0
"""Netlink framing, refusals and sockets, the latter against the running kernel.

The bytes are built here with struct after include/uapi/linux/netlink.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from private_network import until

from thicket.netlink import messages, rtnl
from thicket.netlink.messages import NETLINK_GENERIC, NETLINK_ROUTE, Events, NetlinkError, Requests
from thicket.radio.nl80211 import Message

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200


def message(
    kind: int, payload: bytes, *, flags: int = 0, sequence: int = 1, port: int = 0
) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, sequence, port) + payload


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=40)), max_size=6))
def test_split_finds_every_message(parts: list[tuple[int, bytes]]) -> None:
    data = b"".join(padded(message(kind, payload)) for kind, payload in parts)
    found = [(kind, body[16:]) for kind, _, _, _, body in messages.split(data)]
    assert found == parts


@given(st.binary(max_size=200))
def test_split_and_attributes_survive_anything(data: bytes) -> None:
    for _, _, _, _, body in messages.split(data):
        assert 16 <= len(body) <= len(data)
    assert sum(4 + len(payload) for _, payload in messages.attributes(data)) <= len(data) + 3


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=8))
def test_attributes_round_trip(parts: list[tuple[int, bytes]]) -> None:
    data = b"".join(attribute(*part) for part in parts)
    assert list(messages.attributes(data)) == parts
    assert messages.facts_of(b"xyz" + data, 3) == dict(parts)


@given(st.binary(max_size=200), st.integers(0, 20))
def test_facts_are_the_attributes_of_anything(data: bytes, offset: int) -> None:
    assert messages.facts_of(data, offset) == dict(messages.attributes(data, offset))


def test_a_text_ends_with_a_zero_and_is_padded() -> None:
    assert messages.text(1, "mesh0") == attribute(1, b"mesh0\0")
    assert messages.text(1, "abc") == attribute(1, b"abc\0")


def test_the_flags_in_an_attribute_type_are_left_out() -> None:
    assert list(messages.attributes(attribute(0x8000 | 5, b"ab"))) == [(5, b"ab")]


def test_a_message_longer_than_the_datagram_ends_the_reading() -> None:
    good = message(20, b"1234")
    assert [kind for kind, *_ in messages.split(good + struct.pack("=IHHII", 99, 21, 0, 1, 0))] == [
        20
    ]


@given(st.binary(max_size=300))
def test_decoding_anything_gives_a_message_or_nothing(data: bytes) -> None:
    for message_class in (Message, rtnl.LinkMessage, rtnl.AddressMessage):
        decoded = messages.decode(message_class, data)
        if decoded is not None:
            decoded.get_attr("NL80211_ATTR_MAC")


class FakeSocket(socket.socket):
    """A netlink socket whose answers are written before. It is readable while there is one left."""

    def __init__(self, *datagrams: bytes | OSError) -> None:
        super().__init__(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
        self.sent: list[bytes] = []
        self.datagrams = list(datagrams)
        flags = os.EFD_SEMAPHORE | os.EFD_NONBLOCK
        self.readable = os.eventfd(len(datagrams), flags)

    def fileno(self) -> int:
        return self.readable if super().fileno() >= 0 else -1

    def send(self, data: Any, flags: int = 0, /) -> int:
        self.sent.append(bytes(data))
        return len(data)

    def recvfrom(self, size: int, flags: int = 0, /) -> tuple[bytes, Any]:
        os.eventfd_read(self.readable)
        one = self.datagrams.pop(0)
        if isinstance(one, OSError):
            raise one
        return one, (0, 0)

    def close(self) -> None:
        if self.fileno() >= 0:
            os.close(self.readable)
        super().close()


Over = Callable[..., tuple[Requests, FakeSocket]]


@pytest.fixture
def requests_over() -> Iterator[Over]:
    made: list[Requests] = []

    def make(*datagrams: bytes | OSError) -> tuple[Requests, FakeSocket]:
        fake = FakeSocket(*datagrams)
        with mock.patch.object(socket, "socket", lambda *_: fake):
            made.append(Requests(NETLINK_GENERIC))
        return made[-1], fake

    yield make
    for one in made:
        one.close()


def test_refusal_carries_the_kernels_words(requests_over: Over) -> None:
    refused = struct.pack("=i", -errno.EINVAL) + struct.pack("=IHHII", 48, 1, 5, 7, 0)
    words = attribute(1, b"Attribute failed policy validation\0")
    flags = NLM_F_CAPPED | NLM_F_ACK_TLVS
    requests, _ = requests_over(message(NLMSG_ERROR, refused + words, flags=flags))
    with pytest.raises(NetlinkError, match="Attribute failed policy validation") as caught:
        requests.request(1, Message())
    assert caught.value.errno == errno.EINVAL


def test_refusal_behind_the_whole_request(requests_over: Over) -> None:
    request = message(1, b"x" * 9)
    refused = struct.pack("=i", -errno.EPERM) + padded(request)
    requests, _ = requests_over(
        message(NLMSG_ERROR, refused + attribute(1, b"no\0"), flags=NLM_F_ACK_TLVS)
    )
    with pytest.raises(NetlinkError, match=r"no \("):
        requests.request(1, Message())


def test_refusal_at_the_end_of_a_dump(requests_over: Over) -> None:
    requests, _ = requests_over(message(NLMSG_DONE, struct.pack("=i", -errno.ENODEV)))
    with pytest.raises(NetlinkError) as caught:
        requests.request(1, Message(), messages.NLM_F_DUMP)
    assert caught.value.errno == errno.ENODEV


def test_a_dump_that_was_interrupted_is_read_again(requests_over: Over) -> None:
    interrupted = message(NLMSG_DONE, bytes(4), flags=messages.NLM_F_DUMP_INTR)
    requests, fake = requests_over(interrupted, message(NLMSG_DONE, bytes(4), sequence=2))
    assert requests.request(1, Message(), messages.NLM_F_DUMP) == []
    assert [struct.unpack_from("=I", sent, 8)[0] for sent in fake.sent] == [1, 2]
    assert fake.sent[0][12:] == fake.sent[1][12:]


def test_a_dump_with_lost_parts_is_read_again(requests_over: Over) -> None:
    lost = OSError(errno.ENOBUFS, "No buffer space available")
    requests, fake = requests_over(lost, message(NLMSG_DONE, bytes(4), sequence=2))
    assert requests.request(1, Message(), messages.NLM_F_DUMP) == []
    assert len(fake.sent) == 2


def test_silence_is_a_timeout(requests_over: Over) -> None:
    requests, _ = requests_over(BlockingIOError())
    with pytest.raises(TimeoutError, match="no answer from the kernel"):
        requests.request(1, Message())


def test_answers_to_older_requests_are_left_out(requests_over: Over) -> None:
    requests, _ = requests_over(
        BlockingIOError(),
        message(NLMSG_ERROR, struct.pack("=i", -errno.EPERM))
        + message(NLMSG_ERROR, bytes(4), sequence=2),
    )
    with pytest.raises(TimeoutError):
        requests.request(1, Message())
    assert requests.request(1, Message()) == []


REQUEST = messages.prepared(0x1C, b"what")


def test_one_answer_to_a_prepared_request(requests_over: Over) -> None:
    body = attribute(3, b"5678")
    requests, fake = requests_over(
        message(0x1C, b"of before", sequence=7),
        message(0x1C, body),
        padded(message(0x1C, body, sequence=2)) + message(NLMSG_DONE, bytes(4), sequence=2),
    )
    for _ in range(2):
        assert requests.ask_one(REQUEST)[16:] == body
    assert [struct.unpack("=IHHII", sent[:16]) for sent in fake.sent] == [
        (20, 0x1C, 1, number, 0) for number in (1, 2)
    ]
    assert [sent[16:] for sent in fake.sent] == [b"what"] * 2


def test_one_answer_that_is_a_refusal(requests_over: Over) -> None:
    requests, _ = requests_over(
        message(NLMSG_ERROR, struct.pack("=i", -errno.ENOENT)),
        message(NLMSG_ERROR, bytes(4), sequence=2),
    )
    with pytest.raises(NetlinkError) as caught:
        requests.ask_one(REQUEST)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(NetlinkError, match="has no content") as caught:
        requests.ask_one(REQUEST)
    assert caught.value.errno == errno.EPROTO


@pytest.mark.parametrize("length", [0, 15, 21, 2**32 - 1])
def test_one_answer_of_a_wrong_length(requests_over: Over, length: int) -> None:
    requests, _ = requests_over(b"short", struct.pack("=IHHII", length, 20, 0, 1, 0) + b"1234")
    with pytest.raises(NetlinkError, match="is damaged") as caught:
        requests.ask_one(REQUEST)
    assert caught.value.errno == errno.EPROTO


def test_one_answer_that_is_lost_is_asked_for_again(requests_over: Over) -> None:
    lost = OSError(errno.ENOBUFS, "No buffer space available")
    requests, fake = requests_over(lost, message(0x1C, b"good", sequence=2), lost, lost, lost)
    assert requests.ask_one(REQUEST)[16:] == b"good"
    assert len(fake.sent) == 2
    with pytest.raises(NetlinkError, match="lost again and again"):
        requests.ask_one(REQUEST)
    assert len(fake.sent) == 5


def test_one_answer_that_never_comes(requests_over: Over) -> None:
    requests, _ = requests_over(BlockingIOError())
    with pytest.raises(TimeoutError, match="no answer from the kernel"):
        requests.ask_one(REQUEST)


@given(st.binary(max_size=80))
def test_one_answer_of_anything(data: bytes) -> None:
    fake = FakeSocket(data, BlockingIOError())
    with mock.patch.object(socket, "socket", lambda *_: fake):
        requests = Requests(NETLINK_GENERIC)
    try:
        answer = requests.ask_one(bytearray(REQUEST))
        assert answer == data[: len(answer)]
    except (NetlinkError, TimeoutError):
        pass
    finally:
        requests.close()


def test_the_first_attribute_of_a_type() -> None:
    data = b"xx" + attribute(3, b"a") + attribute(4, b"b") + attribute(4, b"c")
    assert messages.attribute(data, 4, 2) == b"b"
    assert messages.attribute(data, 5, 2) is None


def test_the_kernel_answers() -> None:
    links = rtnl.Links()
    try:
        index = links.index("lo")
        assert index == socket.if_nametoindex("lo")
        assert links.flags(index) is not None
        assert links.index("no-such-thing") is None
        assert links.flags(0x7FFFFFFF) is None
    finally:
        links.close()


def test_a_family_that_the_kernel_lacks() -> None:
    requests = Requests(NETLINK_GENERIC)
    try:
        with pytest.raises(NetlinkError) as caught:
            messages.family(requests, "no_such_family")
        assert caught.value.errno == errno.ENOENT
        number, _ = messages.family(requests, "nlctrl")
        assert number == 0x10  # GENL_ID_CTRL
    finally:
        requests.close()


async def test_events_tell_of_a_loss() -> None:
    seen: list[tuple[int, bytes]] = []
    losses: list[int] = []
    link = message(16, bytes(16))
    fake = FakeSocket(
        OSError(errno.ENOBUFS, "No buffer space available"), link + b"\1\2", BlockingIOError()
    )
    with mock.patch.object(socket, "socket", lambda *_: fake):
        events = Events(
            NETLINK_ROUTE, [1], lambda *event: seen.append(event), lambda: losses.append(1)
        )
    try:
        await until(lambda: not fake.datagrams, "all is read")
        assert losses == [1]
        assert seen == [(16, link)]
    finally:
        events.close()
