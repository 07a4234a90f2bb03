# SPDX-License-Identifier: Apache-2.0
"""The virtual chip at the level of transactions: frames, states, rules, faults.

Frames and CRC vectors come from other implementations: the Elixir library atecc508a and a recording
of Microchip's cryptoauthlib. ``test_chip_oracle.py`` lets that library itself talk to the chip.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlab.chip.atecc608 import (
    COMMANDS,
    COUNTER_MAX,
    FAULTS,
    Atecc608,
    crc16,
    frame,
    parse_fault,
    read_counter,
    write_counter,
)
from meshlab.chip.bus import I2cBus, Nak, Stuck
from meshlab.chip.state import ChipState, ChipStateError, serial_for

AWAKE = bytes.fromhex("04113343")
SERIAL = serial_for(1, 1)
ADDRESS = 0x60


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A chip on the table, and hands for the wires."""

    def __init__(self, path: Path | None = None, **options: Any) -> None:
        self.clock = Clock()
        self.chip = Atecc608(SERIAL, path, clock=self.clock, **options)

    def wake(self) -> bytes:
        with pytest.raises(Nak):
            self.chip.write(0, b"\0")
        self.clock.now += 0.002
        return self.chip.read(ADDRESS, 4)

    def send(self, opcode: int, param1: int = 0, param2: int = 0, data: bytes = b"") -> None:
        packet = bytes((7 + len(data), opcode, param1)) + param2.to_bytes(2, "little") + data
        self.chip.write(ADDRESS, b"\x03" + packet + crc16(packet))

    def reply(self, seconds: float = 0.1) -> bytes:
        self.clock.now += seconds
        count = self.chip.read(ADDRESS, 1)
        rest = self.chip.read(ADDRESS, count[0] - 1)
        packet = count + rest
        assert crc16(packet[:-2]) == packet[-2:]
        return packet[1:-2]

    def command(self, opcode: int, param1: int = 0, param2: int = 0, data: bytes = b"") -> bytes:
        """Give a command in a conversation of its own that ends with idle; return its payload."""
        self.wake()
        self.send(opcode, param1, param2, data)
        payload = self.reply()
        self.chip.write(ADDRESS, b"\x02")
        return payload

    def lock_config(self, changes: dict[int, bytes] | None = None) -> None:
        for at, value in (changes or {}).items():
            self.chip.state.config[at : at + len(value)] = value
        assert self.command(0x17, 0x80) == b"\0"

    def lock_data(self) -> None:
        assert self.command(0x17, 0x81) == b"\0"

    def asleep(self) -> bool:
        try:
            self.chip.read(ADDRESS, 1)
        except Nak:
            return True
        return False


# -- frames


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        ("", "0000"),
        ("80", "0580"),
        ("01", "0383"),
        ("91", "3583"),
        ("01020304", "f085"),
        ("fffefd01", "2d0b"),
        ("67c6697351ff4aec29cdbaabf2fbe346", "81a4"),
    ],
)
def test_crc(data: str, crc: str) -> None:
    assert crc16(bytes.fromhex(data)).hex() == crc


@pytest.mark.parametrize(
    ("status", "expected"),
    [(0, "04000340"), (1, "040100c3"), (3, "04038342"), (15, "040f2342"), (255, "04ff0142")],
)
def test_status_frames(status: int, expected: str) -> None:
    assert frame(bytes((status,))).hex() == expected


@pytest.mark.parametrize(
    ("recorded", "size"),
    [
        ("030730000000035d", 4),  # Info
        ("03070280000009ad", 32),  # Read configuration
        ("03071b00000024cd", 32),  # Random
        ("0307400000000005", 1),  # GenKey, public: refused on a new chip
        ("030741a000007b85", 1),  # Sign: refused
        ("0307170200002d88", 1),  # Lock slot 0: refused
    ],
)
def test_recorded_commands(recorded: str, size: int) -> None:
    bench = Bench()
    bench.wake()
    bench.chip.write(ADDRESS, bytes.fromhex(recorded))
    payload = bench.reply()
    assert len(payload) == size
    assert size > 1 or payload == b"\x0f"


# -- waking, sleeping, reading


def test_wake() -> None:
    bench = Bench()
    assert bench.asleep()
    assert bench.wake() == AWAKE
    # a second pulse does nothing, and does not bring the answer back
    with pytest.raises(Nak):
        bench.chip.write(0, b"\x01")
    assert bench.chip.read(ADDRESS, 4) == b"\xff" * 4


@pytest.mark.parametrize("data", [b"", b"\0", b"\x01", b"\x55\xaa"])
def test_any_write_to_address_zero_wakes(data: bytes) -> None:
    bench = Bench()
    with pytest.raises(Nak):
        bench.chip.write(0, data)
    bench.clock.now += 0.002
    assert bench.chip.read(ADDRESS, 4) == AWAKE


def test_the_chip_needs_a_moment_to_wake() -> None:
    bench = Bench()
    with pytest.raises(Nak):
        bench.chip.write(0, b"\0")
    bench.clock.now += 0.001
    assert bench.asleep()
    bench.clock.now += 0.001
    assert bench.chip.read(ADDRESS, 4) == AWAKE


def test_other_addresses_are_not_answered() -> None:
    bench = Bench()
    bench.wake()
    for address in (0x35, 0x61, 0x50):
        with pytest.raises(Nak):
            bench.chip.read(address, 1)
        with pytest.raises(Nak):
            bench.chip.write(address, b"\x01")
    assert not bench.asleep()


def test_sleep_forgets_and_idle_keeps() -> None:
    bench = Bench()
    for word, kept in ((b"\x01", False), (b"\x02", True)):
        bench.wake()
        bench.send(0x16, 0x03, 0, bytes(32))
        assert bench.reply() == b"\0"
        bench.chip.write(ADDRESS, word)
        assert bench.asleep()
        with pytest.raises(Nak):
            bench.chip.write(ADDRESS, b"\0")
        assert (bench.chip.temp_key is not None) is kept
        assert bench.wake() == AWAKE


def test_read_pointer() -> None:
    bench = Bench()
    bench.wake()
    bench.send(0x30)
    bench.clock.now += 0.1
    whole = bench.chip.read(ADDRESS, 7)
    assert bench.chip.read(ADDRESS, 3) == b"\xff" * 3
    bench.chip.write(ADDRESS, b"\0")
    parts = [bench.chip.read(ADDRESS, n) for n in (1, 2, 4, 2)]
    assert b"".join(parts) == whole + b"\xff\xff"


def test_busy_is_no_acknowledge() -> None:
    bench = Bench()
    bench.wake()
    bench.send(0x1B)
    for _ in range(2):
        with pytest.raises(Nak):
            bench.chip.read(ADDRESS, 1)
        with pytest.raises(Nak):
            bench.chip.write(ADDRESS, b"\0")
        bench.clock.now += COMMANDS[0x1B].seconds / 2 - 0.0001
    bench.clock.now += 0.0003
    assert bench.chip.read(ADDRESS, 1) == b"\x23"


def test_execution_times_can_be_scaled() -> None:
    bench = Bench(scale=0.0)
    with pytest.raises(Nak):
        bench.chip.write(0, b"\0")
    assert bench.chip.read(ADDRESS, 4) == AWAKE
    bench.send(0x1B)
    assert bench.chip.read(ADDRESS, 1) == b"\x23"


def test_watchdog() -> None:
    bench = Bench()
    bench.wake()
    bench.send(0x16, 0x03, 0, bytes(32))
    assert bench.reply() == b"\0"
    bench.clock.now += 1.1
    assert not bench.asleep()
    bench.clock.now += 0.2
    assert bench.asleep()
    assert bench.chip.temp_key is None
    assert bench.wake() == AWAKE
    assert bench.chip.counters["watchdog"] == 1


def test_a_chip_that_sleeps_has_nothing_to_lose(tmp_path: Path) -> None:
    class Later(Executor):
        """Writes when it is told to."""

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            work: Future[Any] = Future()
            todo.append(lambda: work.set_result(fn(*args, **kwargs)))
            return work

    todo: list[Any] = []
    bench = Bench(tmp_path / "chip.json", executor=Later())
    chip = bench.chip
    assert chip.asleep
    bench.wake()
    assert not chip.asleep
    bench.clock.now += 1.3
    assert chip.asleep, "its watchdog has run out"
    bench.command(0x16, 0x03, 0, bytes(32))
    assert chip.temp_key is not None
    assert not chip.asleep, "it is idle, and keeps what it computes with"
    bench.wake()
    chip.write(ADDRESS, b"\x01")
    assert chip.asleep
    bench.wake()
    bench.send(0x17, 0x80)
    bench.clock.now += 1.3
    assert not chip.asleep, "what it was told is not in its file yet"
    todo.pop()()
    assert chip.asleep


def test_longer_watchdog_by_chip_mode() -> None:
    bench = Bench()
    bench.chip.state.config[19] = 0x04
    bench.wake()
    bench.clock.now += 12.0
    assert not bench.asleep()
    bench.clock.now += 1.1
    assert bench.asleep()


def test_self_test() -> None:
    bench = Bench()
    assert bench.command(0x77, 0x3B) == b"\0"
    bench.chip.broken = 0x12
    assert bench.command(0x77, 0x3B) == b"\x12"
    assert bench.command(0x77, 0x02) == b"\x02"
    assert bench.command(0x77, 0x20) == b"\0"


@pytest.mark.parametrize(
    ("model", "revision"),
    [("ATECC508A", "00005000"), ("ATECC608A", "00006002"), ("ATECC608B", "00006003")],
)
def test_models(model: str, revision: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "chip.json", model=model)
    assert bench.command(0x30).hex() == revision
    old = model == "ATECC508A"
    assert bench.command(0x77, 0x3B) == (b"\x03" if old else b"\0")
    assert bench.command(0x16, 0x43, 0, bytes(32)) == (b"\x03" if old else b"\0")
    assert bench.command(0x16, 0x03, 0, bytes(32)) == b"\0"
    again = Atecc608(SERIAL, tmp_path / "chip.json")
    assert again.model == model
    assert again.memory == bench.chip.memory


def test_factory_configuration_of_a_508a() -> None:
    """Against the dump in test/atecc508a/configuration_test.exs of the Elixir library atecc508a.

    Byte 14 and the slots' policies differ between lots; what the model decides must agree.
    """
    dump = bytes.fromhex(
        "01230bc300005000f485f099eec01500c00055008f200f0f0f0f0f0f8f8f8f8f"
        "9f8faf8f0000000000000000000000000000af8fffffffff00000000ffffffff"
        "00000000ffffffffffffffffffffffffffffffff00005555ffff000000000000"
        "3300330033001c001c001c001c001c003c003c003c003c003c003c003c001c00"
    )
    config = ChipState(bytes.fromhex("01230bc3f485f099ee"), "ATECC508A").config
    for part in (slice(0, 14), slice(16, 20), slice(52, 90), slice(92, 128)):
        assert config[part] == dump[part]


def test_command_too_late_for_the_watchdog() -> None:
    bench = Bench()
    bench.lock_config()
    bench.wake()
    bench.clock.now += 1.26
    bench.send(0x40, 0x04, 0)
    assert bench.reply(0.01) == b"\xee"
    assert not bench.chip.memory.keys
    bench.chip.write(ADDRESS, b"\x01")
    bench.wake()
    bench.send(0x40, 0x04, 0)
    assert len(bench.reply()) == 64


def test_power_cycle_forgets_what_is_volatile() -> None:
    bench = Bench()
    bench.wake()
    bench.send(0x16, 0x43, 0, bytes(32))
    bench.reply()
    assert bench.chip.digest_buffer == bytes(32)
    bench.chip.power_cycle()
    assert bench.asleep()
    assert bench.chip.digest_buffer is None


# -- packets that are wrong


@pytest.mark.parametrize(
    ("packet", "status"),
    [
        ("", 0xFF),
        ("07", 0xFF),
        ("0730000000035e", 0xFF),  # CRC
        ("063000000003", 0xFF),  # count too small
        ("ff30000000035d", 0xFF),  # count too large
        ("0830000000035d", 0xFF),  # shorter than its count
    ],
)
def test_damaged_packets(packet: str, status: int) -> None:
    bench = Bench()
    bench.wake()
    bench.chip.write(ADDRESS, b"\x03" + bytes.fromhex(packet))
    assert bench.reply() == bytes((status,))


def test_bytes_after_the_packet_are_ignored() -> None:
    bench = Bench()
    bench.wake()
    bench.chip.write(ADDRESS, bytes.fromhex("030730000000035d") + b"\xaa\xbb")
    assert bench.reply() == bytes.fromhex("00006002")


@pytest.mark.parametrize(
    ("opcode", "param1", "param2", "data"),
    [
        (0x77, 0x04, 0, b""),  # SelfTest of what there is not
        (0x77, 0x01, 1, b""),
        (0x78, 0, 0, b""),
        (0x08, 0, 0, b""),
        (0x30, 5, 0, b""),
        (0x30, 0, 0, b"x"),
        (0x30, 1, 16, b""),
        (0x02, 3, 0, b""),  # no such zone
        (0x02, 0x04, 0, b""),
        (0x02, 0, 32, b""),  # behind the configuration
        (0x02, 0x80, 1, b""),  # blocks start at word 0
        (0x02, 2, 2 << 8, b""),  # behind a slot of 36 bytes
        (0x12, 0x80, 0, bytes(4)),
        (0x12, 0x00, 8, bytes(32)),
        (0x17, 3, 0, b""),
        (0x17, 0x04, 0, b""),
        (0x1B, 2, 0, b""),
        (0x1B, 0, 1, b""),
        (0x16, 2, 0, bytes(20)),
        (0x16, 0, 0, bytes(32)),
        (0x16, 3, 0, bytes(20)),
        (0x16, 0xC3, 0, bytes(32)),
        (0x16, 0xA3, 0, bytes(64)),
        (0x40, 0x08, 0, b""),
        (0x41, 0x02, 0, b""),
        (0x43, 0x01, 0, bytes(64)),
        (0x47, 3, 0, b""),
        (0x47, 2, 5, bytes(4)),
        (0x24, 2, 0, b""),
        (0x24, 0, 2, b""),
        (0x20, 2, 0, b""),
        (0x20, 0, 256, b""),
    ],
)
def test_parse_errors(opcode: int, param1: int, param2: int, data: bytes) -> None:
    assert Bench().command(opcode, param1, param2, data) == b"\x03"


def packed(opcode: int, param1: int, param2: int, data: bytes) -> tuple[int, bytes]:
    """Return a write transaction with a well-formed command."""
    packet = bytes((7 + len(data), opcode, param1)) + param2.to_bytes(2, "little") + data
    return ADDRESS, b"\x03" + packet + crc16(packet)


commands = st.builds(
    packed,
    st.sampled_from(sorted(COMMANDS)),
    st.integers(0, 255),
    st.integers(0, 65535),
    st.sampled_from([bytes(size) for size in (0, 4, 20, 32, 64, 128)]),
)
noise = st.tuples(st.sampled_from((0, ADDRESS)), st.binary(max_size=160))


@settings(max_examples=200, deadline=None)
@given(writes=st.lists(st.one_of(noise, commands), max_size=12))
def test_nothing_on_the_bus_breaks_the_chip(writes: list[tuple[int, bytes]]) -> None:
    bench = Bench()
    for address, data in writes:
        with contextlib.suppress(Nak):
            bench.chip.write(address, data)
        bench.clock.now += 0.1
        try:
            answer = bench.chip.read(ADDRESS, 200)
        except Nak:
            continue
        count = answer[0]
        assert answer == b"\xff" * 200 or crc16(answer[: count - 2]) == answer[count - 2 : count]
    bench.chip.power_cycle()
    with pytest.raises(Nak):
        bench.chip.write(0, b"\0")
    bench.clock.now += 0.1
    # a command may have moved it to another address
    assert bench.chip.read(bench.chip.memory.config[16] >> 1, 4) == AWAKE
    assert bench.chip.serial == SERIAL


# -- the rules of the zones, the slots and their locks


def test_factory_configuration() -> None:
    bench = Bench()
    blocks = [bench.command(0x02, 0x80, block << 3) for block in range(4)]
    config = b"".join(blocks)
    assert config[0:4] + config[8:13] == SERIAL
    assert config[4:8].hex() == "00006002"
    # public dumps of new 608A chips agree on these bytes
    assert config[16:52].hex() == (
        "c0000000832087208f20c48f8f8f8f8f9f8faf8f" + "00" * 12 + "0000af8f"
    )
    assert config[84:92].hex() == "00005555ffff0000"
    assert config[96:].hex() == "3300330033001c001c001c001c001c00" + "3c00" * 7 + "1c00"
    assert bench.command(0x02, 0x00, 4) == config[16:20]


def test_before_the_configuration_is_locked() -> None:
    bench = Bench()
    refused = b"\x0f"
    assert bench.command(0x1B) == bytes.fromhex("ffff0000") * 8
    assert bench.command(0x40, 4, 0) == refused
    assert bench.command(0x41, 0x80, 0) == refused
    assert bench.command(0x02, 0x82, 8 << 3) == refused
    assert bench.command(0x12, 0x82, 8 << 3, bytes(32)) == refused
    assert bench.command(0x17, 0x81) == refused
    assert bench.command(0x17, 0x02) == refused


@pytest.mark.parametrize(
    ("word", "size", "good"),
    [
        (3, 4, False),  # bytes 12-15
        (4, 4, True),  # 16-19
        (20, 4, True),  # 80-83
        (21, 4, False),  # 84-87
        (22, 4, True),  # 88-91
        (31, 4, True),
        (0, 32, False),
        (8, 32, True),
        (16, 32, False),  # touches 84-87
        (24, 32, True),
    ],
)
def test_what_may_be_written_in_the_configuration(word: int, size: int, good: bool) -> None:
    bench = Bench()
    before = bytes(bench.chip.memory.config)
    data = bytes(range(0xC0, 0xC0 + size))
    mode = 0x80 if size == 32 else 0
    assert bench.command(0x12, mode, word, data) == (b"\0" if good else b"\x0f")
    expected = bytearray(before)
    if good:
        expected[word * 4 : word * 4 + size] = data
    assert bench.chip.memory.config == expected
    bench.lock_config()
    assert bench.command(0x12, mode, word, data) == b"\x0f"


def test_update_extra() -> None:
    bench = Bench()
    assert bench.command(0x20, 0, 0x12) == b"\0"
    assert bench.command(0x20, 0, 0x13) == b"\0"
    bench.lock_config()
    assert bench.command(0x20, 0, 0x14) == b"\x0f"
    assert bench.command(0x20, 1, 0x21) == b"\0"  # was still 0
    assert bench.command(0x20, 1, 0x22) == b"\x0f"
    assert bench.chip.memory.config[84:86] == b"\x13\x21"


def test_lock_crc() -> None:
    bench = Bench()
    right = int.from_bytes(crc16(bytes(bench.chip.memory.config)), "little")
    assert bench.command(0x17, 0x00, right ^ 1) == b"\x0f"
    assert bench.command(0x17, 0x00, right) == b"\0"
    assert bench.command(0x17, 0x00, right) == b"\x0f"
    memory = bench.chip.memory
    # slots 0 to 2 hold private keys in the factory's configuration and do not count
    contents = b"".join(bytes(slot) for slot in memory.slots[3:]) + bytes(memory.otp)
    right = int.from_bytes(crc16(contents), "little")
    assert bench.command(0x17, 0x01, right ^ 1) == b"\x0f"
    assert bench.command(0x17, 0x01, right) == b"\0"
    assert bench.command(0x17, 0x81) == b"\x0f"


def test_data_while_it_is_not_locked() -> None:
    bench = Bench()
    bench.lock_config()
    block = bytes(range(32))
    assert bench.command(0x12, 0x02, 8 << 3, block[:4]) == b"\x0f"
    assert bench.command(0x12, 0x82, 8 << 3, block) == b"\0"
    assert bench.command(0x02, 0x82, 8 << 3) == b"\x0f"
    # the last block of a 72-byte slot has room for 8 bytes
    assert bench.command(0x12, 0x82, 2 << 8 | 9 << 3, block) == b"\0"
    assert bench.chip.memory.slots[9][64:] == block[:8]
    assert bench.command(0x12, 0x81, 0, block) == b"\0"
    assert bench.command(0x12, 0x01, 8, block[:4]) == b"\x0f"
    assert bench.command(0x02, 0x81, 0) == b"\x0f"
    # a slot for a private key takes no data
    assert bench.command(0x12, 0x82, 0, block) == b"\x0f"
    assert bench.command(0x17, 0x02 | 8 << 2) == b"\0"  # lockable: 3C 00
    assert bench.command(0x12, 0x82, 8 << 3, block) == b"\x0f"


def test_data_when_it_is_locked() -> None:
    bench = Bench()
    bench.lock_config()
    bench.lock_data()
    block = bytes(range(32))
    # SlotConfig of slot 8 is 0000: always writable, readable
    assert bench.command(0x12, 0x82, 1 << 8 | 8 << 3, block) == b"\0"
    assert bench.command(0x12, 0x02, 1 << 8 | 8 << 3 | 7, b"abcd") == b"\0"
    assert bench.command(0x02, 0x82, 1 << 8 | 8 << 3) == block[:28] + b"abcd"
    assert bench.command(0x02, 0x02, 1 << 8 | 8 << 3 | 7) == b"abcd"
    # beyond the end of the slot there are zeros
    assert bench.command(0x02, 0x82, 2 << 8 | 9 << 3) == b"\xff" * 8 + bytes(24)
    # slot 3 (C4 8F): secret and never writable; slot 15 (AF 8F) likewise
    for slot in (3, 15):
        assert bench.command(0x02, 0x82, slot << 3) == b"\x0f"
        assert bench.command(0x12, 0x82, slot << 3, block) == b"\x0f"
    assert bench.command(0x02, 0x82, 0) == b"\x0f"
    assert bench.command(0x02, 0x81, 0) == b"\xff" * 32
    assert bench.command(0x12, 0x81, 0, block) == b"\x0f"
    assert bench.command(0x12, 0xC2, 8 << 3, bytes(64)) == b"\x0f"


def test_slot_locks_are_for_lockable_slots() -> None:
    bench = Bench()
    bench.lock_config()
    assert bench.command(0x17, 0x02 | 4 << 2) == b"\x0f"  # KeyConfig 1C 00
    assert bench.command(0x17, 0x02) == b"\0"
    assert bench.command(0x17, 0x02) == b"\x0f"
    assert bench.chip.memory.config[88:90] == b"\xfe\xff"


def test_keys() -> None:
    bench = Bench()
    bench.lock_config({20: b"\x83\x20\x82\x20\x83\x00", 100: b"\x31\x00"})
    assert bench.command(0x40, 0, 0) == b"\x0f"  # no key yet
    assert bench.command(0x30, 1, 0) == bytes(4)
    public = bench.command(0x40, 4, 0)
    assert len(public) == 64
    assert bench.command(0x40, 0, 0) == public
    assert bench.command(0x40, 0, 0, b"\0\0\0") == public
    assert bench.command(0x30, 1, 0) == b"\x01\0\0\0"
    assert bench.command(0x40, 4, 8) == b"\x0f"  # not a key slot
    assert bench.command(0x40, 4, 2) == b"\x0f"  # WriteConfig does not allow GenKey
    assert len(bench.command(0x40, 4, 1)) == 64
    bench.command(0x16, 0x03, 0, bytes(32))
    assert bench.command(0x41, 0x80, 1) == b"\x0f"  # external signatures not allowed
    bench.lock_data()
    assert len(bench.command(0x40, 4, 0)) == 64  # the data lock does not matter
    assert bench.command(0x17, 0x02) == b"\0"
    assert bench.command(0x40, 4, 0) == b"\x0f"


def test_sign_uses_its_message_up() -> None:
    bench = Bench()
    bench.lock_config()
    bench.command(0x40, 4, 0)
    for nonce, sign in ((0x03, 0x80), (0x43, 0xA0)):
        assert bench.command(0x41, sign, 0) == b"\x0f"
        assert bench.command(0x16, nonce, 0, bytes(32)) == b"\0"
        assert bench.command(0x41, sign ^ 0x20, 0) == b"\x0f"
        assert bench.command(0x16, nonce, 0, bytes(32)) == b"\0"
        assert len(bench.command(0x41, sign, 0)) == 64
        assert bench.command(0x41, sign, 0) == b"\x0f"
    assert bench.command(0x41, 0x00, 0) == b"\x0f"  # internal messages are not there


def test_required_random_nonce() -> None:
    bench = Bench()
    bench.lock_config({96: b"\x73\x00"})  # KeyConfig.ReqRandom
    bench.command(0x40, 4, 0)
    bench.command(0x16, 0x03, 0, bytes(32))
    assert bench.command(0x41, 0x80, 0) == b"\x0f"
    random = bench.command(0x16, 0x00, 0, bytes(20))
    assert bench.chip.temp_key == sha256(random + bytes(20) + b"\x16\0\0").digest()
    assert len(bench.command(0x41, 0x80, 0)) == 64


def test_required_authorization_cannot_be_given() -> None:
    bench = Bench()
    bench.lock_config({96: b"\xb3\x00"})
    assert bench.command(0x40, 4, 0) == b"\x0f"


def test_nonce_targets() -> None:
    bench = Bench()
    assert bench.command(0x16, 0x23, 0, bytes(64)) == b"\0"
    assert bench.chip.temp_key == bytes(64)
    assert bench.command(0x16, 0x63, 0, b"a" * 64) == b"\0"
    assert bench.chip.digest_buffer == b"a" * 64
    assert bench.command(0x16, 0x83, 0, b"b" * 32) == b"\0"
    assert bench.chip.alternate_key == b"b" * 32
    bench.lock_config()
    key = bench.command(0x16, 0x01, 0x8000, bytes(20))
    assert key == bench.chip.temp_key


def test_sha_needs_a_start_and_survives_idle() -> None:
    bench = Bench()
    assert bench.command(0x47, 1, 64, bytes(64)) == b"\x0f"
    assert bench.command(0x47, 2, 0) == b"\x0f"
    assert bench.command(0x47, 0) == b"\0"
    assert bench.command(0x47, 1, 64, bytes(64)) == b"\0"
    digest = bench.command(0x47, 2, 3, b"abc")
    assert digest == hashlib.sha256(bytes(64) + b"abc").digest()
    assert bench.chip.temp_key == digest
    bench.command(0x47, 0)
    assert bench.command(0x47, 0x42, 0) == bench.chip.digest_buffer


@given(value=st.integers(0, COUNTER_MAX), number=st.integers(0, 1))
def test_counter_encoding(value: int, number: int) -> None:
    state = ChipState(SERIAL)
    write_counter(state, number, value)
    assert read_counter(state, number) == value
    assert read_counter(state, 1 - number) == 0


def test_counters_end() -> None:
    bench = Bench()
    write_counter(bench.chip.state, 0, COUNTER_MAX - 1)
    assert bench.command(0x24, 1, 0) == COUNTER_MAX.to_bytes(4, "little")
    assert bench.command(0x24, 1, 0) == b"\x0f"
    assert bench.command(0x24, 0, 0) == COUNTER_MAX.to_bytes(4, "little")
    assert bench.command(0x24, 0, 1) == bytes(4)


# -- faults


@pytest.mark.parametrize("text", [*FAULTS, "nak:0.5", "bad-crc:1", None, "", "none"])
def test_faults_can_be_set(text: str | None) -> None:
    chip = Atecc608(SERIAL)
    chip.fault = text
    assert parse_fault(chip.fault) == parse_fault(text)


@pytest.mark.parametrize("text", ["broken", "nak:", "nak:2", "nak:0", "nak:x", ":0.5", "nak:nan"])
def test_unknown_faults(text: str) -> None:
    chip = Atecc608(SERIAL)
    if text == "nak:":
        chip.fault = text
        assert chip.fault == "nak"
        return
    with pytest.raises(ValueError, match="absent, nak, bad-crc, stuck, watchdog"):
        chip.fault = text


def test_absent() -> None:
    bench = Bench()
    bench.chip.fault = "absent"
    with pytest.raises(Nak):
        bench.chip.write(0, b"\0")
    bench.clock.now += 0.01
    assert bench.asleep()
    bench.chip.fault = None
    assert bench.asleep()  # it never saw the pulse
    assert bench.wake() == AWAKE


def test_nak() -> None:
    bench = Bench()
    bench.wake()
    bench.chip.fault = "nak:0.5"
    heard = [bench.asleep() for _ in range(200)]
    assert 50 < sum(heard) < 150
    bench.chip.fault = "nak:1"
    assert all(bench.asleep() for _ in range(20))


def test_bad_crc() -> None:
    bench = Bench()
    bench.chip.fault = "bad-crc"
    answers = []
    for _ in range(20):
        answers.append(bench.wake())
        bench.chip.power_cycle()
    assert AWAKE not in answers
    assert len(set(answers)) > 5


def test_stuck() -> None:
    bench = Bench()
    bench.wake()
    bench.chip.fault = "stuck"
    bus = I2cBus([bench.chip])
    with pytest.raises(Stuck) as caught:
        bus.read(ADDRESS, 1)
    assert caught.value.seconds == 1.0
    with pytest.raises(Stuck):
        bus.write(0x35, b"\0")


def test_watchdog_trips() -> None:
    bench = Bench()
    bench.chip.fault = "watchdog:1"
    for _ in range(30):
        bench.wake()
        bench.send(0x24, 1, 0)
        assert bench.asleep()
    # some commands were done before the chip fell asleep, some were not
    assert 5 < read_counter(bench.chip.memory, 0) < 25


def test_faults_follow_the_seed() -> None:
    def run(seed: int) -> list[bool]:
        bench = Bench(seed=seed)
        bench.wake()
        bench.chip.fault = "nak:0.5"
        return [bench.asleep() for _ in range(64)]

    assert run(1) == run(1) != run(2)


# -- the file


def test_state_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "chip.json"
    bench = Bench(path)
    bench.lock_config()
    public = bench.command(0x40, 4, 0)
    bench.command(0x24, 1, 1)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not path.with_name("chip.json.new").exists()
    again = Bench(path)
    assert again.chip.memory == bench.chip.memory
    assert again.command(0x40, 0, 0) == public
    assert again.command(0x24, 0, 1) == b"\x01\0\0\0"
    assert json.loads(path.read_text())["format"] == 1


def test_reading_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "chip.json"
    bench = Bench(path)
    before = path.stat().st_ino
    bench.command(0x02, 0x80)
    bench.command(0x1B)
    assert path.stat().st_ino == before


def edited(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.write_text(""), "damaged"),
        (lambda path: path.write_text(path.read_text()[:-40]), "damaged"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read"),
        (lambda path: path.write_text("[]"), "damaged"),
        (lambda path: path.write_text("{}"), "damaged.*format"),
        (lambda path: edited(path, format=2), "format 2, this program knows 1"),
        (lambda path: edited(path, model="ATECC508A"), "ATECC508A"),
        (lambda path: edited(path, config="00" * 127), "127 bytes instead of 128"),
        (lambda path: edited(path, config="00" * 128), "disagree"),
        (lambda path: edited(path, slots=["00"] * 16), "slot 0 has 1 bytes"),
        (lambda path: edited(path, slots=[]), "0 slots"),
        (lambda path: edited(path, otp="zz"), "damaged"),
        (lambda path: edited(path, private_keys={"0": "00" * 32}), "private key of slot 0"),
        (lambda path: edited(path, private_keys={"16": "01" * 32}), "private key of slot 16"),
        (lambda path: edited(path, private_keys=None), "damaged"),
    ],
)
def test_damaged_state_is_told_and_left_alone(tmp_path: Path, change: Any, words: str) -> None:
    path = tmp_path / "chip.json"
    Atecc608(SERIAL, path)
    change(path)
    damaged = path.read_bytes()
    with pytest.raises(ChipStateError, match=words) as caught:
        Atecc608(SERIAL, path)
    assert str(path) in str(caught.value)
    assert "factory-new" in str(caught.value)
    assert path.read_bytes() == damaged


def test_state_of_another_chip(tmp_path: Path) -> None:
    path = tmp_path / "chip.json"
    Atecc608(serial_for(1, 2), path)
    with pytest.raises(ChipStateError, match="belongs to chip"):
        Atecc608(SERIAL, path)


def test_state_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ChipStateError, match="cannot be written"):
        Atecc608(SERIAL, tmp_path / "missing" / "chip.json")


def test_command_is_refused_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path / "chip.json")

    def full(state: ChipState, path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ChipState, "save", full)
        assert bench.command(0x24, 1, 0) == b"\x0f"
    assert "No space left" in (bench.chip.problem or "")
    assert bench.command(0x24, 0, 0) == bytes(4)
    assert bench.command(0x24, 1, 0) == b"\x01\0\0\0"


class Slow(Executor):
    """Runs a job when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Future[Any], Any]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.jobs.append((future, lambda: fn(*args, **kwargs)))
        return future

    def run(self) -> None:
        for future, job in self.jobs:
            try:
                future.set_result(job())
            except OSError as error:
                future.set_exception(error)
        self.jobs.clear()


def test_command_is_busy_until_it_is_on_the_disk(tmp_path: Path) -> None:
    slow = Slow()
    bench = Bench(tmp_path / "chip.json", executor=slow)
    bench.wake()
    bench.send(0x24, 1, 0)
    bench.clock.now += 0.2
    assert bench.asleep()
    slow.run()
    assert bench.reply() == b"\x01\0\0\0"
    assert Bench(tmp_path / "chip.json").command(0x24, 0, 0) == b"\x01\0\0\0"
    # and when it does not get there, the command did not happen
    (tmp_path / "chip.json.new").mkdir()
    bench.send(0x24, 1, 0)
    slow.run()
    assert bench.reply() == b"\x0f"
    assert bench.chip.problem is not None
    (tmp_path / "chip.json.new").rmdir()
    bench.send(0x24, 0, 0)
    assert bench.reply() == b"\x01\0\0\0"


def test_real_executor(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        bench = Bench(tmp_path / "chip.json", executor=pool)
        bench.wake()
        bench.send(0x24, 1, 0)
        bench.clock.now += 0.1
        saving = bench.chip.saving
        assert saving is not None
        saving.result(30)
        assert bench.reply() == b"\x01\0\0\0"
    assert threading.active_count() >= 1


def test_serials() -> None:
    serials = {serial_for(seed, index) for seed in (1, 2, "x") for index in range(50)}
    assert len(serials) == 150
    assert all(len(s) == 9 and s[:2] == b"\x01\x23" and s[8] == 0xEE for s in serials)
    assert serial_for(1, 1) == serial_for(1, 1)
    with pytest.raises(ValueError, match="9 bytes"):
        ChipState(b"\x01\x23")
