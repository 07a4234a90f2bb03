# SPDX-License-Identifier: Apache-2.0
"""hwsim messages against pyroute2's netlink encoder and decoder, and against themselves."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink import genlmsg

from meshlab.wire import hwsim
from meshlab.wire.hwsim import Command, Header, HwsimError, KernelAnswer, Rate, TxFrame

FAMILY = 0x1D


class Oracle(genlmsg):  # type: ignore[misc]
    """The family as pyroute2 would declare it, types from ``hwsim_genl_policy``."""

    nla_map = (
        ("HWSIM_ATTR_UNSPEC", "none"),
        ("HWSIM_ATTR_ADDR_RECEIVER", "l2addr"),
        ("HWSIM_ATTR_ADDR_TRANSMITTER", "l2addr"),
        ("HWSIM_ATTR_FRAME", "cdata"),
        ("HWSIM_ATTR_FLAGS", "uint32"),
        ("HWSIM_ATTR_RX_RATE", "uint32"),
        ("HWSIM_ATTR_SIGNAL", "int32"),
        ("HWSIM_ATTR_TX_INFO", "cdata"),
        ("HWSIM_ATTR_COOKIE", "uint64"),
        ("HWSIM_ATTR_CHANNELS", "uint32"),
        ("HWSIM_ATTR_RADIO_ID", "uint32"),
        ("HWSIM_ATTR_REG_HINT_ALPHA2", "cdata"),
        ("HWSIM_ATTR_REG_CUSTOM_REG", "uint32"),
        ("HWSIM_ATTR_REG_STRICT_REG", "flag"),
        ("HWSIM_ATTR_SUPPORT_P2P_DEVICE", "flag"),
        ("HWSIM_ATTR_USE_CHANCTX", "flag"),
        ("HWSIM_ATTR_DESTROY_RADIO_ON_CLOSE", "flag"),
        ("HWSIM_ATTR_RADIO_NAME", "cdata"),
        ("HWSIM_ATTR_NO_VIF", "flag"),
        ("HWSIM_ATTR_FREQ", "uint32"),
        ("HWSIM_ATTR_PAD", "none"),
        ("HWSIM_ATTR_TX_INFO_FLAGS", "cdata"),
        ("HWSIM_ATTR_PERM_ADDR", "l2addr"),
        ("HWSIM_ATTR_IFTYPE_SUPPORT", "uint32"),
    )


def oracle_encode(command: int, attributes: list[tuple[str, Any]], **header: int) -> bytes:
    message = Oracle()
    message["header"]["type"] = FAMILY
    for key, value in header.items():
        message["header"][key] = value
    message["cmd"] = command
    message["version"] = 1
    message["attrs"] = [(f"HWSIM_ATTR_{name}", value) for name, value in attributes]
    message.encode()
    return bytes(message.data)


def oracle_decode(data: bytes) -> tuple[Any, dict[str, Any]]:
    message = Oracle(data)
    message.decode()
    return message, {name.removeprefix("HWSIM_ATTR_"): value for name, value in message["attrs"]}


def mac_text(mac: bytes) -> str:
    return mac.hex(":")


macs = st.binary(min_size=6, max_size=6)
u32 = st.integers(0, 2**32 - 1)
frames = st.builds(
    TxFrame,
    transmitter=macs,
    frame=st.binary(max_size=hwsim.MAX_FRAME),
    flags=u32,
    frequency=u32,
    tx_info=st.binary(min_size=8, max_size=8),
    tx_info_flags=st.binary(min_size=12, max_size=12),
    cookie=st.integers(0, 2**64 - 1),
)


def frame_attributes(frame: TxFrame) -> list[tuple[str, Any]]:
    return [
        ("ADDR_TRANSMITTER", mac_text(frame.transmitter)),
        ("FRAME", frame.frame),
        ("FLAGS", frame.flags),
        ("FREQ", frame.frequency),
        ("TX_INFO", frame.tx_info),
        ("TX_INFO_FLAGS", frame.tx_info_flags),
        ("COOKIE", frame.cookie),
    ]


@given(frames, st.randoms(use_true_random=False))
def test_decode_frame_of_pyroute2_in_any_order(frame: TxFrame, random: Any) -> None:
    usual = oracle_encode(Command.FRAME, frame_attributes(frame))
    assert hwsim.decode_frame(usual, 0, len(usual)) == frame
    shuffled = frame_attributes(frame)
    random.shuffle(shuffled)
    message = oracle_encode(Command.FRAME, shuffled)
    assert hwsim.decode_frame(message, 0, len(message)) == frame


@given(frames, st.binary(max_size=30), st.binary(max_size=30))
def test_decode_frame_inside_of_a_buffer(frame: TxFrame, before: bytes, after: bytes) -> None:
    message = hwsim.encode_frame(FAMILY, frame)
    buffer = before + message + after
    assert hwsim.decode_frame(buffer, len(before), len(before) + len(message)) == frame


@given(frames)
def test_encode_frame_is_what_pyroute2_encodes(frame: TxFrame) -> None:
    expected = oracle_encode(Command.FRAME, frame_attributes(frame), sequence_number=5)
    assert hwsim.encode_frame(FAMILY, frame, seq=5) == expected


def test_padding_before_the_cookie_is_understood() -> None:
    """Kernels without unaligned access put an empty HWSIM_ATTR_PAD before 64-bit values."""
    tx_info, flags = hwsim.encode_series([Rate(1, 2, 3)])
    frame = TxFrame(b"\x02abcde", b"x" * 30, 1, 2412, tx_info, flags, 77)
    attributes = frame_attributes(frame)
    attributes.insert(-1, ("PAD", None))
    message = oracle_encode(Command.FRAME, attributes)
    assert hwsim.decode_frame(message, 0, len(message)) == frame


@pytest.mark.parametrize(
    "missing", ["ADDR_TRANSMITTER", "FRAME", "FLAGS", "FREQ", "TX_INFO", "COOKIE"]
)
def test_a_frame_message_lacks_something(missing: str) -> None:
    frame = TxFrame(bytes(6), bytes(24), 0, 2412, bytes(8), bytes(12), 1)
    message = oracle_encode(Command.FRAME, [a for a in frame_attributes(frame) if a[0] != missing])
    with pytest.raises(HwsimError, match=missing):
        hwsim.decode_frame(message, 0, len(message))


def test_old_kernels_send_no_rate_flags() -> None:
    tx_info, flags = hwsim.encode_series([Rate(4, 2, 0), Rate(0, 3, 0)])
    frame = TxFrame(bytes(6), bytes(24), 0, 2412, tx_info, flags, 1)
    attributes = [a for a in frame_attributes(frame) if a[0] != "TX_INFO_FLAGS"]
    message = oracle_encode(Command.FRAME, attributes)
    got = hwsim.decode_frame(message, 0, len(message))
    assert hwsim.decode_series(got.tx_info, got.tx_info_flags) == (Rate(4, 2, 0), Rate(0, 3, 0))


@given(
    st.lists(
        st.builds(Rate, st.integers(0, 127), st.integers(0, 255), st.integers(0, 65535)),
        max_size=4,
    )
)
def test_rate_series_round_trip(series: list[Rate]) -> None:
    tx_info, flags = hwsim.encode_series(series)
    assert (len(tx_info), len(flags)) == (8, 12)
    assert hwsim.decode_series(tx_info, flags) == tuple(series)


def test_rate_series_layout() -> None:
    """``struct hwsim_tx_rate`` and ``struct hwsim_tx_rate_flag``, both packed."""
    tx_info, flags = hwsim.encode_series([Rate(7, 3, 0x0108)])
    assert tx_info == bytes.fromhex("0703 ff00 ff00 ff00")
    assert flags == bytes.fromhex("070801 ff0000 ff0000 ff0000")
    with pytest.raises(ValueError, match="at most 4"):
        hwsim.encode_series([Rate(0, 1, 0)] * 5)


@given(macs, u32, st.integers(-128, 127), st.binary(min_size=8, max_size=8), u32)
def test_tx_info_as_pyroute2_reads_it(
    mac: bytes, flags: int, signal: int, tx_info: bytes, seq: int
) -> None:
    message = hwsim.encode_tx_info(FAMILY, seq, mac, flags, signal, tx_info, 2**40 + 1)
    assert len(message) == hwsim.TX_INFO_SIZE
    got, attributes = oracle_decode(message)
    assert (got["header"]["length"], got["header"]["type"]) == (len(message), FAMILY)
    assert got["header"]["sequence_number"] == seq
    assert got["cmd"] == Command.TX_INFO_FRAME
    assert attributes["ADDR_TRANSMITTER"] == mac_text(mac)
    assert attributes["FLAGS"] == flags
    assert attributes["SIGNAL"] == signal
    assert attributes["COOKIE"] == 2**40 + 1
    assert attributes["TX_INFO"] == tx_info


@given(macs, st.binary(min_size=24, max_size=2304), st.integers(0, 11), st.integers(-128, 0), u32)
def test_injected_frames_as_pyroute2_reads_them(
    mac: bytes, frame: bytes, rate: int, signal: int, seq: int
) -> None:
    ack = seq % 2 == 0
    tail = hwsim.inject_tail(rate, 5180, frame)
    flags = hwsim.NLM_F_REQUEST | (hwsim.NLM_F_ACK if ack else 0)
    message = hwsim.inject_head(FAMILY, seq, mac, signal, len(tail), flags) + tail
    got, attributes = oracle_decode(message)
    assert got["header"]["length"] == len(message)
    assert got["header"]["flags"] == (5 if ack else 1)
    assert got["cmd"] == Command.FRAME
    assert attributes["ADDR_RECEIVER"] == mac_text(mac)
    assert attributes["FRAME"] == frame
    assert (attributes["RX_RATE"], attributes["FREQ"], attributes["SIGNAL"]) == (rate, 5180, signal)


def test_requests_as_pyroute2_reads_them() -> None:
    message = hwsim.new_radio(FAMILY, 9, bytes.fromhex("027468000001"), "radio0", 0x8C)
    got, attributes = oracle_decode(message)
    assert (got["cmd"], got["header"]["flags"]) == (4, 5)
    assert attributes["PERM_ADDR"] == "02:74:68:00:00:01"
    assert attributes["CHANNELS"] == 1
    assert attributes["IFTYPE_SUPPORT"] == 0x8C
    assert attributes["RADIO_NAME"] == b"radio0"
    assert oracle_decode(hwsim.register(FAMILY, 1))[0]["cmd"] == 1
    got, _ = oracle_decode(hwsim.get_radios(FAMILY, 1))
    assert (got["cmd"], got["header"]["flags"]) == (6, 0x301)
    got, attributes = oracle_decode(hwsim.del_radio(FAMILY, 1, "radio0"))
    assert got["cmd"] == 5


def test_answers_to_get_radio() -> None:
    message = oracle_encode(
        Command.GET_RADIO,
        [("RADIO_ID", 3), ("CHANNELS", 1), ("RADIO_NAME", b"radio0"), ("USE_CHANCTX", True)],
    )
    assert hwsim.radio_info(hwsim.parse(message)) == hwsim.RadioInfo(3, "radio0", 1)
    with pytest.raises(HwsimError, match="RADIO_ID"):
        hwsim.radio_info(hwsim.parse(oracle_encode(Command.GET_RADIO, [])))


def test_address_changes() -> None:
    message = oracle_encode(
        Command.ADD_MAC_ADDR,
        [("ADDR_TRANSMITTER", "02:00:00:00:00:01"), ("ADDR_RECEIVER", "02:00:00:00:00:02")],
    )
    assert hwsim.address_change(hwsim.parse(message)) == (
        bytes.fromhex("020000000001"),
        bytes.fromhex("020000000002"),
    )


def test_kernel_answers() -> None:
    request = hwsim.register(FAMILY, 77)
    for error, text in ((0, None), (5, None), (-16, None), (-22, "MAC is no valid source addr")):
        message = hwsim.encode_answer(error, request, text)
        assert hwsim.decode_answer(message, 0, len(message)) == KernelAnswer(error, 77, text)


ANSWERS_OF_LINUX = [
    # NEW_RADIO with PERM_ADDR ff:ff:ff:ff:ff:ff: NLMSGERR_ATTR_MSG and NLMSGERR_ATTR_OFFS follow.
    (
        "4c000000020000032a0000003e000000eaffffff3c000000190005002a00000000000000"
        "200001004d4143206973206e6f2076616c696420736f757263652061646472000800020014000000",
        KernelAnswer(-22, 42, "MAC is no valid source addr"),
    ),
    # REGISTER, and again.
    (
        "24000000020000012b0000003e0000000000000014000000190005002b00000000000000",
        KernelAnswer(0, 43, None),
    ),
    (
        "24000000020000012c0000003e000000f0ffffff14000000190005002c00000000000000",
        KernelAnswer(-16, 44, None),
    ),
    # NEW_RADIO: the number of the radio, here the second one.
    (
        "24000000020000012e0000003e000000010000003c000000190005002e00000000000000",
        KernelAnswer(1, 46, None),
    ),
]
"""Recorded from Linux 6.12.117 through hwsim-relay (NETLINK_CAP_ACK, NETLINK_EXT_ACK)."""


@pytest.mark.parametrize(("recorded", "answer"), ANSWERS_OF_LINUX)
def test_answers_of_linux(recorded: str, answer: KernelAnswer) -> None:
    message = bytes.fromhex(recorded)
    assert hwsim.decode_answer(message, 0, len(message)) == answer


def test_a_dump_of_linux() -> None:
    """Recorded likewise."""
    message = bytes.fromhex(
        "30000000190002002f0000003e00000006010000"
        "08000a000000000008000900010000000a001100726164696f300000"
    )
    assert hwsim.radio_info(hwsim.parse(message)) == hwsim.RadioInfo(0, "radio0", 1)


@given(st.binary(max_size=120))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    for parse in (hwsim.parse, _parse_frame, _parse_answer, _parse_header):
        try:
            parse(data)
        except HwsimError:
            continue


def _parse_frame(data: bytes) -> TxFrame:
    return hwsim.decode_frame(data, 0, len(data))


def _parse_answer(data: bytes) -> KernelAnswer:
    return hwsim.decode_answer(data, 0, len(data))


def _parse_header(data: bytes) -> Header:
    return hwsim.header(data, 0, len(data))


@given(frames, st.data())
def test_damaged_frames_are_decoded_or_refused(frame: TxFrame, data: st.DataObject) -> None:
    message = bytearray(hwsim.encode_frame(FAMILY, frame))
    message[data.draw(st.integers(20, len(message) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(20, len(message)))
    try:
        got = hwsim.decode_frame(bytes(message[:cut]), 0, cut)
    except HwsimError:
        return
    assert len(got.frame) <= len(message)


def test_attribute_lengths_beyond_the_message() -> None:
    with pytest.raises(HwsimError, match="claims"):
        hwsim.parse_attributes(struct.pack("<HH", 9, 1) + b"abcd", 0, 8)
    with pytest.raises(HwsimError, match="claims"):
        hwsim.parse_attributes(struct.pack("<HH", 3, 1), 0, 4)
