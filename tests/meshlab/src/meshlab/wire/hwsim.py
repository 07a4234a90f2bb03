# SPDX-License-Identifier: Apache-2.0
"""The generic netlink messages of the kernel's ``mac80211_hwsim`` (``mac80211_hwsim.h``).

The medium stands where a radio's antenna is. The kernel hands it every frame that a simulated radio
sends (``FRAME`` upwards), it tells the kernel what became of that frame (``TX_INFO_FRAME``) and
hands frames to the radios that received them (``FRAME`` downwards). It also makes and removes
radios. All numbers are in the node's byte order; every machine that Thicket simulates is
little-endian.

``decode_frame``, ``encode_tx_info``, ``inject_head`` and ``inject_tail`` are used for every frame
and avoid intermediate objects. Everything else goes through ``parse`` and ``encode``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple

GENL_VERSION = 1
"""Version of the family (``hwsim_genl_family``)."""

MIN_FRAME = 24
"""Shortest frame in bytes the kernel takes: ``struct ieee80211_hdr_3addr``."""

MAX_FRAME = 2304
"""Longest frame in bytes the kernel takes: ``IEEE80211_MAX_DATA_LEN``."""

MAX_RATES = 4
"""Entries of a rate series: ``IEEE80211_TX_MAX_RATES``."""

MAX_PENDING = 200
"""Unanswered frames of one radio beyond which the kernel drops the oldest: ``MAX_QUEUE``."""

NLMSG_ERROR = 2
NLMSG_DONE = 3
GENL_ID_CTRL = 16

NLM_F_REQUEST = 0x1
NLM_F_MULTI = 0x2
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200

EBUSY = 16
EINVAL = 22
ENODEV = 19
EOPNOTSUPP = 95
"""Error numbers of the node's Linux, whatever the host is."""


class HwsimError(ValueError):
    """A message that is not what the kernel sends."""


class Command(IntEnum):
    """``enum hwsim_commands``."""

    REGISTER = 1
    FRAME = 2
    TX_INFO_FRAME = 3
    NEW_RADIO = 4
    DEL_RADIO = 5
    GET_RADIO = 6
    ADD_MAC_ADDR = 7
    DEL_MAC_ADDR = 8
    START_PMSR = 9
    ABORT_PMSR = 10
    REPORT_PMSR = 11


class Attribute(IntEnum):
    """``enum hwsim_attrs``."""

    ADDR_RECEIVER = 1
    ADDR_TRANSMITTER = 2
    FRAME = 3
    FLAGS = 4
    RX_RATE = 5
    SIGNAL = 6
    TX_INFO = 7
    COOKIE = 8
    CHANNELS = 9
    RADIO_ID = 10
    REG_HINT_ALPHA2 = 11
    REG_CUSTOM_REG = 12
    REG_STRICT_REG = 13
    SUPPORT_P2P_DEVICE = 14
    USE_CHANCTX = 15
    DESTROY_RADIO_ON_CLOSE = 16
    RADIO_NAME = 17
    NO_VIF = 18
    FREQ = 19
    PAD = 20
    TX_INFO_FLAGS = 21
    PERM_ADDR = 22
    IFTYPE_SUPPORT = 23


class TxFlag(IntFlag):
    """``enum hwsim_tx_control_flags``: what a transmission asks for, and how it ended."""

    REQ_TX_STATUS = 1
    NO_ACK = 2
    STAT_ACK = 4


class RateFlag(IntFlag):
    """``enum hwsim_tx_rate_flags``: how the index of a rate is to be read."""

    RTS_CTS = 0x1
    CTS_PROTECT = 0x2
    SHORT_PREAMBLE = 0x4
    MCS = 0x8
    GREEN_FIELD = 0x10
    WIDTH_40 = 0x20
    DUP_DATA = 0x40
    SHORT_GI = 0x80
    VHT_MCS = 0x100
    WIDTH_80 = 0x200
    WIDTH_160 = 0x400


class Iftype(IntEnum):
    """``enum nl80211_iftype``: bit numbers of ``IFTYPE_SUPPORT``."""

    ADHOC = 1
    STATION = 2
    AP = 3
    MONITOR = 6
    MESH_POINT = 7
    P2P_CLIENT = 8
    P2P_GO = 9
    P2P_DEVICE = 10


class Rate(NamedTuple):
    """One entry of a rate series: up to ``tries`` tries at rate ``idx`` read by ``flags``."""

    idx: int
    tries: int
    flags: int


class Header(NamedTuple):
    """The fields of ``struct nlmsghdr`` and, for the family's own messages, the command."""

    length: int
    type: int
    flags: int
    seq: int
    pid: int


class TxFrame(NamedTuple):
    """A frame that a radio sends."""

    transmitter: bytes
    """The radio's key: its permanent address."""
    frame: bytes
    """The frame from frame control to body, without FCS."""
    flags: int
    """``TxFlag``."""
    frequency: int
    """Centre of the (primary) channel in MHz."""
    tx_info: bytes
    """``MAX_RATES`` times ``struct hwsim_tx_rate`` (index, count)."""
    tx_info_flags: bytes
    """``MAX_RATES`` times ``struct hwsim_tx_rate_flag`` (index, ``RateFlag``)."""
    cookie: int


class KernelAnswer(NamedTuple):
    """``NLMSG_ERROR``: the kernel's answer to one request."""

    error: int
    """0 or positive: done (NEW_RADIO answers with the radio's number); negative: ``-errno``."""
    seq: int
    text: str | None
    """The kernel's own words (``NLMSGERR_ATTR_MSG``), when it had any."""


@dataclass(frozen=True, slots=True)
class RadioInfo:
    """A radio as ``GET_RADIO`` describes it."""

    radio_id: int
    name: str
    channels: int


@dataclass(frozen=True, slots=True)
class Message:
    """Any message of the family."""

    type: int
    flags: int
    seq: int
    command: int
    attributes: dict[int, bytes]


_NLMSGHDR = struct.Struct("<IHHII")
_GENL = struct.Struct("<BBH")
_ATTR = struct.Struct("<HH")
_U32 = struct.Struct("<I")
_I32 = struct.Struct("<i")
_U64 = struct.Struct("<Q")
_RATES = struct.Struct("<bBbBbBbB")
_RATE_FLAGS = struct.Struct("<bHbHbHbH")

HEADER = _NLMSGHDR.size + _GENL.size
"""Bytes before the first attribute."""


def _attr(size: int, kind: Attribute) -> int:
    """Return the header of an attribute with ``size`` bytes of contents as one number."""
    return 4 + size | kind << 16


# What every frame needs has its constants packed beforehand: an enumeration costs 0.2 us a look.

# The layout in which mac80211_hwsim_tx_frame_nl() puts the attributes of FRAME, before and after
# the frame itself. Another order is decoded as well, but more slowly.
_FRAME_HEAD = struct.Struct("<I6sxxHH")
_FRAME_HEAD_ATTR = _attr(6, Attribute.ADDR_TRANSMITTER)
_FRAME_TYPE = int(Attribute.FRAME)
_FRAME_TAIL = struct.Struct("<IIIII8sI12sIQ")
_FRAME_TAIL_ATTRS = (
    _attr(4, Attribute.FLAGS),
    _attr(4, Attribute.FREQ),
    _attr(8, Attribute.TX_INFO),
    _attr(12, Attribute.TX_INFO_FLAGS),
    _attr(8, Attribute.COOKIE),
)
_FRAME_DATA = HEADER + _FRAME_HEAD.size
_FRAME_TAIL_SIZE = _FRAME_TAIL.size

_TX_INFO = struct.Struct("<IHHI12s6sxxIIIiI8sIQ")
_TX_INFO_HEAD = (
    bytes(4)
    + _GENL.pack(Command.TX_INFO_FRAME, GENL_VERSION, 0)
    + _U32.pack(_attr(6, Attribute.ADDR_TRANSMITTER))
)
_FLAGS_ATTR = _attr(4, Attribute.FLAGS)
_SIGNAL_ATTR = _attr(4, Attribute.SIGNAL)
_TX_INFO_ATTR = _attr(8, Attribute.TX_INFO)
_COOKIE_ATTR = _attr(8, Attribute.COOKIE)

_INJECT_HEAD = struct.Struct("<IHHI12s6sxxIi")
_INJECT_HEAD_HEAD = (
    bytes(4)
    + _GENL.pack(Command.FRAME, GENL_VERSION, 0)
    + _U32.pack(_attr(6, Attribute.ADDR_RECEIVER))
)
_INJECT_TAIL = struct.Struct("<IIIIHH")
_RX_RATE_ATTR = _attr(4, Attribute.RX_RATE)
_FREQ_ATTR = _attr(4, Attribute.FREQ)

TX_INFO_SIZE = _TX_INFO.size
"""Bytes of a whole ``TX_INFO_FRAME`` message."""

INJECT_HEAD_SIZE = _INJECT_HEAD.size

_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")

_new_tuple = tuple.__new__
"""Makes a NamedTuple of its fields at once, in half of the time."""


def header(buffer: bytes, start: int, end: int) -> Header:
    """Return the netlink header of the message at ``buffer[start:end]``.

    :raises HwsimError: when there is none or it claims another length.
    """
    if end - start < _NLMSGHDR.size:
        raise HwsimError(f"{end - start} bytes are no netlink message")
    found = Header(*_NLMSGHDR.unpack_from(buffer, start))
    if not _NLMSGHDR.size <= found.length <= end - start:
        raise HwsimError(f"netlink message claims {found.length} bytes, {end - start} are there")
    return found


def parse_attributes(buffer: bytes, start: int, end: int) -> dict[int, bytes]:
    """Return the netlink attributes in ``buffer[start:end]`` by type; the last of a type wins.

    :raises HwsimError: when lengths make no sense.
    """
    attributes = {}
    while end - start >= 4:
        length, kind = _ATTR.unpack_from(buffer, start)
        if length < 4 or length > end - start:
            raise HwsimError(f"attribute {kind} claims {length} bytes, {end - start} are left")
        # The upper two bits say "nested" and "network byte order" (NLA_TYPE_MASK).
        attributes[kind & 0x3FFF] = buffer[start + 4 : start + length]
        start += (length + 3) & ~3
    return attributes


def parse(buffer: bytes, start: int = 0, end: int | None = None) -> Message:
    """Return a message of the family.

    :raises HwsimError: when it makes no sense.
    """
    if end is None:
        end = len(buffer)
    head = header(buffer, start, end)
    if head.length < HEADER:
        raise HwsimError(f"{head.length} bytes are no generic netlink message")
    command, _version, _reserved = _GENL.unpack_from(buffer, start + _NLMSGHDR.size)
    attributes = parse_attributes(buffer, start + HEADER, start + head.length)
    return Message(head.type, head.flags, head.seq, command, attributes)


def _attribute(attributes: dict[int, bytes], kind: Attribute, size: int) -> bytes:
    value = attributes.get(kind)
    if value is None:
        raise HwsimError(f"no attribute {kind.name}")
    if len(value) != size:
        raise HwsimError(f"attribute {kind.name} has {len(value)} bytes instead of {size}")
    return value


def decode_frame(buffer: bytes, start: int, end: int) -> TxFrame:
    """Return the contents of a ``FRAME`` message from the kernel.

    ``buffer[start:end]`` is the whole message; its header has been checked.

    :raises HwsimError: when it makes no sense.
    """
    try:
        attr1, transmitter, size, kind = _FRAME_HEAD.unpack_from(buffer, start + HEADER)
        if attr1 == _FRAME_HEAD_ATTR and kind == _FRAME_TYPE and size >= 4:
            data = start + _FRAME_DATA
            tail = data + ((size - 1) & ~3)
            if tail + _FRAME_TAIL_SIZE == end:
                (
                    attr3, flags, attr4, frequency, attr5, tx_info,
                    attr6, tx_info_flags, attr7, cookie,
                ) = _FRAME_TAIL.unpack_from(buffer, tail)  # fmt: skip
                if (attr3, attr4, attr5, attr6, attr7) == _FRAME_TAIL_ATTRS:
                    return _new_tuple(
                        TxFrame,
                        (
                            transmitter,
                            buffer[data : data + size - 4],
                            flags,
                            frequency,
                            tx_info,
                            tx_info_flags,
                            cookie,
                        ),
                    )
    except struct.error:
        pass  # shorter than the usual layout: the other way finds out what is missing
    return _decode_frame_any_order(buffer, start, end)


def _decode_frame_any_order(buffer: bytes, start: int, end: int) -> TxFrame:
    attributes = parse_attributes(buffer, start + HEADER, end)
    frame = attributes.get(Attribute.FRAME)
    if frame is None:
        raise HwsimError("no attribute FRAME")
    tx_info_flags = attributes.get(Attribute.TX_INFO_FLAGS)
    if tx_info_flags is None:
        # Kernels before 4.20 have no flags: every index is a legacy rate.
        rates = _RATES.unpack(_attribute(attributes, Attribute.TX_INFO, _RATES.size))
        tx_info_flags = _RATE_FLAGS.pack(*(v for idx in rates[::2] for v in (idx, 0)))
    elif len(tx_info_flags) != _RATE_FLAGS.size:
        raise HwsimError(f"attribute TX_INFO_FLAGS has {len(tx_info_flags)} bytes")
    return TxFrame(
        _attribute(attributes, Attribute.ADDR_TRANSMITTER, 6),
        frame,
        _U32.unpack(_attribute(attributes, Attribute.FLAGS, 4))[0],
        _U32.unpack(_attribute(attributes, Attribute.FREQ, 4))[0],
        _attribute(attributes, Attribute.TX_INFO, _RATES.size),
        tx_info_flags,
        _U64.unpack(_attribute(attributes, Attribute.COOKIE, 8))[0],
    )


def encode_frame(family: int, frame: TxFrame, seq: int = 0) -> bytes:
    """Return ``FRAME`` as the kernel sends it (for tests and benchmarks)."""
    return encode(
        family,
        Command.FRAME,
        [
            (Attribute.ADDR_TRANSMITTER, frame.transmitter),
            (Attribute.FRAME, frame.frame),
            (Attribute.FLAGS, _U32.pack(frame.flags)),
            (Attribute.FREQ, _U32.pack(frame.frequency)),
            (Attribute.TX_INFO, frame.tx_info),
            (Attribute.TX_INFO_FLAGS, frame.tx_info_flags),
            (Attribute.COOKIE, _U64.pack(frame.cookie)),
        ],
        flags=0,
        seq=seq,
    )


def decode_series(tx_info: bytes, tx_info_flags: bytes) -> tuple[Rate, ...]:
    """Return the rate series of a frame up to its end mark (index -1)."""
    rates = _RATES.unpack(tx_info)
    flags = _RATE_FLAGS.unpack(tx_info_flags)
    series = []
    for i in range(MAX_RATES):
        if rates[2 * i] < 0:
            break
        series.append(Rate(rates[2 * i], rates[2 * i + 1], flags[2 * i + 1]))
    return tuple(series)


def encode_series(series: Iterable[Rate]) -> tuple[bytes, bytes]:
    """Return ``TX_INFO`` and ``TX_INFO_FLAGS`` of at most ``MAX_RATES`` rates."""
    entries = list(series)
    if len(entries) > MAX_RATES:
        raise ValueError(f"a rate series has at most {MAX_RATES} entries")
    entries += [Rate(-1, 0, 0)] * (MAX_RATES - len(entries))
    return (
        _RATES.pack(*(v for r in entries for v in (r.idx, r.tries))),
        _RATE_FLAGS.pack(*(v for r in entries for v in (r.idx, r.flags))),
    )


def encode_tx_info(  # noqa: PLR0917 - called for every frame
    family: int, seq: int, transmitter: bytes, flags: int, signal: int, tx_info: bytes, cookie: int
) -> bytes:
    """Return ``TX_INFO_FRAME``: what became of the frame ``cookie`` of ``transmitter``.

    :param signal: That of the acknowledgement in dBm.
    :param tx_info: The tries made at each rate.
    """
    return _TX_INFO.pack(
        TX_INFO_SIZE,
        family,
        NLM_F_REQUEST,
        seq,
        _TX_INFO_HEAD,
        transmitter,
        _FLAGS_ATTR,
        flags,
        _SIGNAL_ATTR,
        signal,
        _TX_INFO_ATTR,
        tx_info,
        _COOKIE_ATTR,
        cookie,
    )


def inject_tail(rx_rate: int, frequency: int, frame: bytes) -> bytes:
    """Return the part of ``FRAME`` that is the same for every receiver."""
    length = len(frame)
    head = _INJECT_TAIL.pack(_RX_RATE_ATTR, rx_rate, _FREQ_ATTR, frequency, length + 4, _FRAME_TYPE)
    return head + frame + _PADDING[length & 3]


def inject_head(  # noqa: PLR0917 - called for every receiver
    family: int, seq: int, receiver: bytes, signal: int, tail_size: int, flags: int = NLM_F_REQUEST
) -> bytes:
    """Return the part of ``FRAME`` that is the receiver's own; ``inject_tail``'s bytes follow it.

    :param receiver: The key of the receiving radio.
    :param signal: In dBm.
    :param flags: With ``NLM_F_ACK`` the kernel says whether the radio took the frame; without, only
        when it did not.
    """
    return _INJECT_HEAD.pack(
        INJECT_HEAD_SIZE + tail_size,
        family,
        flags,
        seq,
        _INJECT_HEAD_HEAD,
        receiver,
        _SIGNAL_ATTR,
        signal,
    )


def encode(
    family: int,
    command: int,
    attributes: Iterable[tuple[int, bytes]] = (),
    *,
    flags: int = NLM_F_REQUEST | NLM_F_ACK,
    seq: int = 0,
) -> bytes:
    """Return a message of the family with any attributes."""
    parts = []
    for kind, value in attributes:
        parts.append(_ATTR.pack(len(value) + 4, kind))
        parts.append(value)
        parts.append(_PADDING[len(value) & 3])
    body = b"".join(parts)
    return b"".join(
        (
            _NLMSGHDR.pack(HEADER + len(body), family, flags, seq, 0),
            _GENL.pack(command, GENL_VERSION, 0),
            body,
        )
    )


def register(family: int, seq: int) -> bytes:
    """Return ``REGISTER``: from now on the sender is the medium of all radios of the node.

    Fails with EBUSY while somebody else is, with EOPNOTSUPP when a radio has several channels.
    """
    return encode(family, Command.REGISTER, seq=seq)


def new_radio(family: int, seq: int, address: bytes, name: str, iftypes: int) -> bytes:
    """Return ``NEW_RADIO``: a radio on one channel at a time.

    The answer's ``error`` is the number of the radio.

    :param address: Its permanent address and, because it is given, also the key by which messages
        name the radio; the kernel does not refuse one that is taken.
    :param iftypes: The bits of ``Iftype`` that it can be.
    """
    return encode(
        family,
        Command.NEW_RADIO,
        [
            (Attribute.PERM_ADDR, address),
            (Attribute.RADIO_NAME, name.encode()),
            (Attribute.CHANNELS, _U32.pack(1)),
            (Attribute.IFTYPE_SUPPORT, _U32.pack(iftypes)),
        ],
        seq=seq,
    )


def del_radio(family: int, seq: int, name: str) -> bytes:
    """Return ``DEL_RADIO``. Fails with ENODEV when there is no radio of that name."""
    return encode(family, Command.DEL_RADIO, [(Attribute.RADIO_NAME, name.encode())], seq=seq)


def get_radios(family: int, seq: int) -> bytes:
    """Return ``GET_RADIO`` for all radios: answered by one message each and ``NLMSG_DONE``."""
    return encode(family, Command.GET_RADIO, flags=NLM_F_REQUEST | NLM_F_DUMP, seq=seq)


def radio_info(message: Message) -> RadioInfo:
    """Return what an answer to ``GET_RADIO`` says.

    :raises HwsimError: when it makes no sense.
    """
    attributes = message.attributes
    name = attributes.get(Attribute.RADIO_NAME, b"").rstrip(b"\0")
    channels = attributes.get(Attribute.CHANNELS)
    return RadioInfo(
        _U32.unpack(_attribute(attributes, Attribute.RADIO_ID, 4))[0],
        name.decode(errors="replace"),
        _U32.unpack(channels)[0] if channels is not None and len(channels) == 4 else 0,
    )


def address_change(message: Message) -> tuple[bytes, bytes]:
    """Return the radio's key and the address that ``ADD_``/``DEL_MAC_ADDR`` adds or removes."""
    return (
        _attribute(message.attributes, Attribute.ADDR_TRANSMITTER, 6),
        _attribute(message.attributes, Attribute.ADDR_RECEIVER, 6),
    )


def decode_answer(buffer: bytes, start: int, end: int) -> KernelAnswer:
    """Return the contents of an ``NLMSG_ERROR`` message.

    :raises HwsimError: when it makes no sense.
    """
    body = start + _NLMSGHDR.size
    if end - body < _I32.size + _NLMSGHDR.size:
        raise HwsimError(f"an answer of {end - body} bytes")
    error: int = _I32.unpack_from(buffer, body)[0]
    length, _type, _flags, seq, _pid = _NLMSGHDR.unpack_from(buffer, body + _I32.size)
    text = None
    if error < 0:
        flags = _NLMSGHDR.unpack_from(buffer, start)[2]
        if flags & NLM_F_ACK_TLVS:
            inner = _NLMSGHDR.size if flags & NLM_F_CAPPED else (length + 3) & ~3
            attributes = parse_attributes(buffer, body + _I32.size + inner, end)
            words = attributes.get(1)  # NLMSGERR_ATTR_MSG
            if words is not None:
                text = words.rstrip(b"\0").decode(errors="replace")
    return KernelAnswer(error, seq, text)


def encode_answer(error: int, request: bytes, text: str | None = None) -> bytes:
    """Return ``NLMSG_ERROR`` as a kernel answers ``request`` with (for tests and benchmarks)."""
    words = b""
    if text is not None:
        value = text.encode() + b"\0"
        words = _ATTR.pack(len(value) + 4, 1) + value + _PADDING[len(value) & 3]
    _length, _type, _flags, seq, pid = _NLMSGHDR.unpack_from(request)
    body = _I32.pack(error) + request[: _NLMSGHDR.size] + words
    flags = NLM_F_CAPPED | (NLM_F_ACK_TLVS if words else 0)
    return _NLMSGHDR.pack(_NLMSGHDR.size + len(body), NLMSG_ERROR, flags, seq, pid) + body
