# SPDX-License-Identifier: Apache-2.0
"""Netlink sockets: one for requests, one for events.

pyroute2 encodes and decodes the messages. Its sockets are not used, because each brings its own
thread or event loop. Layout and numbers: ``include/uapi/linux/netlink.h``.

A request blocks until the kernel has answered. That costs an asyncio program nothing: the kernel
works on a request inside ``send()``, so the answer is there when it returns. ``SO_RCVTIMEO`` limits
the wait where it is not.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from thicket.netlink.pyroute import ctrlmsg

NETLINK_ROUTE = 0
NETLINK_GENERIC = 16

NLM_F_REQUEST = 0x01
NLM_F_ACK = 0x04
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200

_NLMSG_NOOP = 1
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLMSGERR_ATTR_MSG = 1
#: MAX_ERRNO of include/linux/err.h; the number in a damaged message may not fit into a C int.
_MAX_ERRNO = 4095

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12

_GENL_ID_CTRL = 0x10
_CTRL_CMD_GETFAMILY = 3

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_SEQUENCE_OFFSET = 8
_SEQUENCE = struct.Struct("=I")
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length with this header, type
_NUMBER = struct.Struct("=HHI")  # struct nlattr with a number of 32 bits
_ETH_ALEN = 6  # include/uapi/linux/if_ether.h
_ATTRIBUTE_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

#: Enough for any message: the kernel builds dumps in buffers of at most 32 KiB.
_RECEIVE_BYTES = 64 * 1024
_ANSWER_SECONDS = 5
#: Attempts at a dump that changes while it is read.
_ATTEMPTS = 3


class NetlinkError(OSError):
    """The kernel refused a request.

    ``errno`` is its code; ``strerror`` is the kernel's explanation, else the code's usual text.
    """


def split(data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Yield the messages of one datagram as (type, flags, sequence, port, whole message).

    The iteration ends at a message that claims to be shorter than its header or longer than what is
    left: nothing behind it can be trusted.
    """
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, flags, sequence, port = HEADER.unpack_from(data, offset)
        if length < HEADER.size or offset + length > len(data):
            return
        yield kind, flags, sequence, port, data[offset : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the attributes in ``data`` as (type, payload); ends at the first malformed one.

    For long chains of attributes of which nearly all are unwanted.
    """
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > len(data):
            return
        yield kind & _ATTRIBUTE_TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def facts_of(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the payloads of :func:`attributes` by type, of each the last one.

    It says the same once more because it is the greater part of reading a dump.
    """
    found: dict[int, bytes] = {}
    unpack, size = _ATTRIBUTE.unpack_from, len(data)
    while offset + 4 <= size:
        length, kind = unpack(data, offset)
        end = offset + length
        if length < 4 or end > size:
            break
        found[kind & 0x3FFF] = data[offset + 4 : end]
        offset += (length + 3) & ~3
    return found


def attribute(data: bytes, wanted: int, offset: int = 0) -> bytes | None:
    """Return the payload of the first attribute of one type, None when it is not there."""
    for kind, payload in attributes(data, offset):
        if kind == wanted:
            return payload
    return None


def prepared(kind: int, body: bytes) -> bytearray:
    """Return a request for :meth:`Requests.ask_one`, to be sent again and again."""
    return bytearray(HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST, 0, 0) + body)


def number(kind: int, value: int) -> bytes:
    """Return an attribute that holds a 32-bit number."""
    return _NUMBER.pack(_NUMBER.size, kind, value)


def text(kind: int, value: str) -> bytes:
    """Return an attribute that holds a text, with the zero that ends it."""
    payload = value.encode("ascii") + b"\0"
    return (
        _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), kind) + payload + bytes(-len(payload) % 4)
    )


def integer(payload: bytes | None, size: int, *, signed: bool = False) -> int | None:
    """Return the number in an attribute; None without one, or where it has not ``size`` bytes."""
    if payload is None or len(payload) != size:
        return None
    return int.from_bytes(payload, sys.byteorder, signed=signed)


def hardware_address(payload: bytes | None) -> str | None:
    """Return the MAC address in an attribute, in lower case; None without one."""
    return payload.hex(":") if payload is not None and len(payload) == _ETH_ALEN else None


def encode(message: Any, kind: int, flags: int, sequence: int = 0) -> bytes:
    """Return the bytes of a pyroute2 message with this header; pyroute2 fills in the length."""
    message["header"]["type"] = kind
    message["header"]["flags"] = flags
    message["header"]["sequence_number"] = sequence
    message["header"]["pid"] = 0
    message.encode()
    return bytes(message.data)


def decode(message_class: Callable[[bytes], Any], data: bytes) -> Any | None:
    """Decode ``data`` as a pyroute2 message; None when it is malformed."""
    message = message_class(data)
    try:
        message.decode()
    except Exception:  # pyroute2 raises anything on broken bytes
        return None
    return message


def _refusal(kind: int, flags: int, data: bytes) -> NetlinkError | None:
    """Return the error in an NLMSG_ERROR or NLMSG_DONE message, None when it reports success."""
    offset = HEADER.size + 4
    if len(data) < offset:
        return None
    (code,) = struct.unpack_from("=i", data, HEADER.size)
    if code >= 0:
        return None
    text = os.strerror(min(-code, _MAX_ERRNO))
    if flags & _NLM_F_ACK_TLVS:
        if kind == _NLMSG_ERROR:
            # the refused request follows the code; NETLINK_CAP_ACK leaves only its header
            length = HEADER.size
            if not flags & _NLM_F_CAPPED and len(data) >= offset + 4:
                (length,) = struct.unpack_from("=I", data, offset)
            offset += (length + 3) & ~3
        for attribute, payload in attributes(data, offset):
            if attribute == _NLMSGERR_ATTR_MSG:
                text = payload.rstrip(b"\0").decode("utf-8", "replace") + f" ({text})"
    return NetlinkError(-code, text)


class Requests:
    """Requests to one netlink protocol, answered one after the other."""

    def __init__(self, protocol: int) -> None:
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        try:
            for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            if protocol == NETLINK_ROUTE:
                # makes the kernel filter dumps; since Linux 4.20
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
            self._socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _ANSWER_SECONDS, 0)
            )
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def request(
        self, kind: int, message: Any, flags: int = NLM_F_ACK, reply: Any = None
    ) -> list[Any]:
        """Send ``message`` with type ``kind``, and return the answers.

        Malformed answers are left out. A dump that changed while it was read is repeated.

        :param flags: NLM_F_ACK, or NLM_F_DUMP for a dump.
        :param reply: the class that decodes the answers.
        :raises NetlinkError: the kernel refuses.
        :raises TimeoutError: the kernel does not answer.
        """
        read = partial(decode, reply) if reply is not None else None
        return self.ask(encode(message, kind, NLM_F_REQUEST | flags), read)

    def ask(self, request: bytes, read: Callable[[bytes], Any] | None) -> list[Any]:
        """Send an encoded request, and return what ``read`` makes of the answers, None left out.

        For frequent requests, as pyroute2 takes long to encode and to decode. Otherwise the same
        as :meth:`request`.
        """
        data = bytearray(request)
        answers: list[Any] = []
        for _ in range(_ATTEMPTS):
            answers, intact = self._exchange(data, read)
            if intact:
                break
        return answers

    def ask_one(self, request: bytearray) -> bytes:
        """Send a prepared request for one thing, and return the one message that is the answer.

        For what is asked all the time. The request has neither NLM_F_ACK nor NLM_F_DUMP: the answer
        is all that the kernel sends, and is found in its datagram without a copy of the rest.

        :param request: see :func:`prepared`; its sequence number is filled in here.
        :raises NetlinkError: the kernel refuses; EPROTO when it answers with something else.
        :raises TimeoutError: the kernel does not answer.
        """
        for _ in range(_ATTEMPTS):
            sequence = self._send(request)
            while (data := self._receive()) is not None:
                if len(data) < HEADER.size:
                    continue
                length, kind, flags, of, _ = HEADER.unpack_from(data)
                if of != sequence:
                    continue  # left over from an exchange that was given up
                if not HEADER.size <= length <= len(data):
                    raise NetlinkError(errno.EPROTO, "the kernel's answer is damaged")
                if kind not in (_NLMSG_ERROR, _NLMSG_DONE, _NLMSG_NOOP):
                    return data if length == len(data) else data[:length]
                refusal = _refusal(kind, flags, data[:length])
                raise refusal or NetlinkError(errno.EPROTO, "the kernel's answer has no content")
        raise NetlinkError(errno.ENOBUFS, "the kernel's answers are lost again and again")

    def _send(self, request: bytearray) -> int:
        """Send a request.

        :returns: the sequence number that its answers will have.
        """
        self._sequence = sequence = (self._sequence + 1) & 0xFFFFFFFF or 1
        _SEQUENCE.pack_into(request, _SEQUENCE_OFFSET, sequence)
        self._socket.send(request)
        return sequence

    def _receive(self) -> bytes | None:
        """The next datagram of the kernel, None when one was lost.

        :raises TimeoutError: there is none for long.
        """
        while True:
            try:
                data, (port, _) = self._socket.recvfrom(_RECEIVE_BYTES)
            except BlockingIOError:
                raise TimeoutError(
                    errno.ETIMEDOUT, f"no answer from the kernel within {_ANSWER_SECONDS} s"
                ) from None
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return None
                raise
            if port == 0:  # from the kernel and nobody else
                return data

    def _exchange(
        self, request: bytearray, read: Callable[[bytes], Any] | None
    ) -> tuple[list[Any], bool]:
        sequence = self._send(request)
        answers: list[Any] = []
        intact = True
        while True:
            data = self._receive()
            if data is None:  # part of a dump was lost: ask again
                return answers, False
            for answer, answer_flags, answer_sequence, _, body in split(data):
                if answer_sequence != sequence:
                    continue  # left over from an exchange that was given up
                if answer_flags & NLM_F_DUMP_INTR:
                    intact = False
                if answer in (_NLMSG_ERROR, _NLMSG_DONE):
                    refusal = _refusal(answer, answer_flags, body)
                    if refusal is not None:
                        raise refusal
                    return answers, intact
                if answer != _NLMSG_NOOP and read is not None:
                    found = read(body)
                    if found is not None:
                        answers.append(found)


class Events:
    """Receives the multicast messages of one netlink protocol in the event loop.

    :param on_message: gets the type and the bytes of each message.
    :param on_loss: called when the kernel had to drop messages (ENOBUFS); the listener then reads
        the present state.
    """

    def __init__(
        self,
        protocol: int,
        groups: list[int],
        on_message: Callable[[int, bytes], None],
        on_loss: Callable[[], None],
    ) -> None:
        self._on_message = on_message
        self._on_loss = on_loss
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol
        )
        try:
            self._socket.bind((0, 0))
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
            self._loop.add_reader(self._socket.fileno(), self._readable)
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _readable(self) -> None:
        try:
            data, (port, _) = self._socket.recvfrom(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self._on_loss()
                return
            raise
        if port == 0:
            for kind, _, _, _, message in split(data):
                self._on_message(kind, message)


def family(requests: Requests, name: str) -> tuple[int, dict[str, int]]:
    """Return the id and the multicast groups of the generic netlink family ``name``.

    :raises NetlinkError: with ENOENT, the kernel has no such family.
    """
    message = ctrlmsg()
    message["cmd"] = _CTRL_CMD_GETFAMILY
    message["version"] = 1
    message["attrs"] = [("CTRL_ATTR_FAMILY_NAME", name)]
    for answer in requests.request(_GENL_ID_CTRL, message, reply=ctrlmsg):
        number = answer.get_attr("CTRL_ATTR_FAMILY_ID")
        if isinstance(number, int):
            groups = {}
            for group in answer.get_attr("CTRL_ATTR_MCAST_GROUPS") or ():
                groups[group.get_attr("CTRL_ATTR_MCAST_GRP_NAME")] = group.get_attr(
                    "CTRL_ATTR_MCAST_GRP_ID"
                )
            return number, groups
    raise NetlinkError(errno.ENOENT, f"the kernel did not describe the netlink family {name!r}")
