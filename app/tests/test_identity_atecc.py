# SPDX-License-Identifier: Apache-2.0
"""The chip's driver: wire bytes from other implementations, and conversations with a virtual chip.

The CRC vectors are those of the Elixir library atecc508a (computed there with Microchip's C code);
the frames were read from the wire between Microchip's cryptoauthlib and a chip emulator.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from hashlib import sha256

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from emulated_bus import EmulatedBus, NoisyBus, Time, emulated
from hypothesis import given
from hypothesis import strategies as st

from authority.chip import ZONE_OTP, DeskChip, DeskSession, crc_number, differences
from meshlab.chip.atecc608 import Atecc608
from meshlab.chip.bus import Nak
from meshlab.chip.state import serial_for
from thicket.base.patience import Stopwatch
from thicket.identity.bus import Bus
from thicket.identity.chip.atecc import ChipInfo
from thicket.identity.chip.errors import (
    ChipAbsentError,
    ChipBusError,
    ChipError,
    ChipFaultError,
    ChipMismatchError,
    ChipParseError,
    ChipProtocolError,
    ChipRefusedError,
    ChipTimeoutError,
    ChipWatchdogError,
)
from thicket.identity.chip.memory import (
    ZONE_CONFIG,
    ZONE_DATA,
    data_address,
    model_of,
)
from thicket.identity.chip.packet import crc16, pack_command, unpack_reply

# -- wire format


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
    assert crc16(bytes.fromhex(data)) == bytes.fromhex(crc)


@pytest.mark.parametrize(
    ("frame", "opcode", "param1", "param2"),
    [
        ("030730000000035d", 0x30, 0x00, 0),  # Info
        ("03070280000009ad", 0x02, 0x80, 0),  # Read the first block of the configuration
        ("03071b00000024cd", 0x1B, 0x00, 0),  # Random
        ("0307400000000005", 0x40, 0x00, 0),  # GenKey, public key of slot 0
        ("030741a000007b85", 0x41, 0xA0, 0),  # Sign what is in the Message Digest Buffer
        ("0307170200002d88", 0x17, 0x02, 0),  # Lock slot 0
    ],
)
def test_command_frames(frame: str, opcode: int, param1: int, param2: int) -> None:
    assert pack_command(opcode, param1, param2) == bytes.fromhex(frame)


@pytest.mark.parametrize(
    ("frame", "status"),
    [("04000340", 0), ("040100c3", 1), ("04038342", 3), ("040f2342", 0x0F), ("04ff0142", 0xFF)],
)
def test_status_frames(frame: str, status: int) -> None:
    assert unpack_reply(bytes.fromhex(frame)) == bytes((status,))
    # the chip sends FF when more is read than it has
    assert unpack_reply(bytes.fromhex(frame) + b"\xff" * 31) == bytes((status,))


def framed(payload: bytes) -> bytes:
    packet = bytes((len(payload) + 3,)) + payload
    return packet + crc16(packet)


@given(payload=st.binary(min_size=1, max_size=64))
def test_replies_are_unpacked(payload: bytes) -> None:
    assert unpack_reply(framed(payload)) == payload


@given(payload=st.binary(min_size=1, max_size=64), bit=st.integers(min_value=0))
def test_a_flipped_bit_is_noticed(payload: bytes, bit: int) -> None:
    frame = bytearray(framed(payload))
    bit %= len(frame) * 8
    frame[bit >> 3] ^= 1 << (bit & 7)
    with pytest.raises(ChipProtocolError):
        unpack_reply(bytes(frame))


@given(raw=st.binary(max_size=80))
def test_any_other_bytes_are_no_reply(raw: bytes) -> None:
    try:
        payload = unpack_reply(raw)
    except ChipProtocolError:
        return
    assert raw.startswith(framed(payload))


def test_commands_that_do_not_fit() -> None:
    assert len(pack_command(0x12, data=bytes(148))) == 156
    with pytest.raises(ValueError, match="do not fit"):
        pack_command(0x12, data=bytes(149))


def test_models() -> None:
    names = [model_of(bytes.fromhex(r)) for r in ("00005000", "00006001", "00006002", "00006003")]
    assert names == ["ATECC508A", "ATECC608A", "ATECC608A", "ATECC608B"]
    assert "unknown" in model_of(bytes.fromhex("00020004"))


def test_data_addresses() -> None:
    assert data_address(0, 0) == 0
    assert data_address(10, 64) == 0x0250
    assert data_address(8, 412) == 12 << 8 | 8 << 3 | 7


# -- conversations


def provisioned() -> tuple[DeskChip, Atecc608, EmulatedBus, Time]:
    """Return a chip with the configuration of its factory locked and nothing else done."""
    driver, chip, bus, clock = emulated()
    driver.lock_config(int.from_bytes(crc16(driver.read_config()), "little"))
    return driver, chip, bus, clock


def checks(public_key: bytes, signature: bytes, digest: bytes) -> bool:
    """Verify with an implementation that is neither the driver's nor the emulator's."""
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + public_key)
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(r, s), digest, ec.ECDSA(Prehashed(SHA256())))
    except InvalidSignature:
        return False
    return True


def test_what_the_chip_is() -> None:
    driver, chip, _, _ = emulated(7)
    info = driver.info()
    assert info.serial == chip.serial == serial_for(1, 7)
    assert info.as_dict() == {
        "model": "ATECC608A",
        "bus": "emulated",
        "address": 0x60,
        "revision": "00006002",
        "serial": serial_for(1, 7).hex(),
        "config_locked": False,
        "data_locked": False,
    }
    assert driver.serial_number() == chip.serial
    assert driver.revision() == bytes.fromhex("00006002")
    assert driver.read_config() == bytes(chip.memory.config)


def test_the_chip_sleeps_after_each_conversation() -> None:
    driver, chip, bus, _ = emulated()
    driver.serial_number()
    bus.locks = 1
    with pytest.raises(Exception, match="emulated"):
        bus.read(0x60, 1)
    assert chip.temp_key is None


def test_random_numbers() -> None:
    driver, _, _, _ = provisioned()
    numbers = {driver.random() for _ in range(8)}
    assert len(numbers) == 8
    assert {len(number) for number in numbers} == {32}


def test_random_before_the_configuration_is_locked() -> None:
    driver, _, _, _ = emulated()
    assert driver.random() == bytes.fromhex("ffff0000") * 8


def test_nonce_is_what_the_data_sheet_says() -> None:
    driver, chip, _, _ = provisioned()
    number = bytes(range(20))

    def conversation(session: DeskSession) -> bytes:
        random = session.nonce(number)
        assert chip.temp_key == sha256(random + number + b"\x16\x00\x00").digest()
        return random

    assert len(driver.run(conversation)) == 32
    assert len(driver.nonce(number)) == 32


def test_sign_and_verify() -> None:
    driver, _, _, _ = provisioned()
    digest = sha256(b"thicket").digest()
    public_key = driver.generate_key(0)
    assert driver.public_key(0) == public_key
    signature = driver.sign(0, digest)
    assert checks(public_key, signature, digest)
    assert driver.verify(digest, signature, public_key)
    assert not driver.verify(sha256(b"other").digest(), signature, public_key)


def test_nonce_and_sign_share_one_wake() -> None:
    driver, _, bus, _ = provisioned()
    driver.generate_key(0)
    pulses = 0
    original = bus.write

    def counting(address: int, data: bytes) -> None:
        nonlocal pulses
        pulses += address == 0
        original(address, data)

    bus.write = counting  # type: ignore[method-assign]
    driver.sign(0, bytes(32))
    assert pulses == 1


def test_counters() -> None:
    driver, _, _, _ = provisioned()
    assert [driver.count_up(1) for _ in range(40)] == list(range(1, 41))
    assert (driver.counter(0), driver.counter(1)) == (0, 40)


def test_zones_and_locks() -> None:
    driver, chip, _, _ = emulated()
    with pytest.raises(ChipRefusedError):
        driver.write(ZONE_DATA, data_address(8, 0), bytes(32))
    driver.write(ZONE_CONFIG, 92 >> 2, b"abcd")
    assert driver.read_config()[92:96] == b"abcd"
    with pytest.raises(ChipRefusedError):
        driver.lock_config(0x1234)
    driver.lock_config(int.from_bytes(crc16(driver.read_config()), "little"))
    assert driver.info().config_locked
    with pytest.raises(ChipRefusedError):
        driver.write(ZONE_CONFIG, 92 >> 2, b"efgh")
    driver.write(ZONE_DATA, data_address(8, 32), b"x" * 32)
    driver.write(ZONE_OTP, 0, b"y" * 32)
    with pytest.raises(ChipRefusedError):
        driver.read_slot(8, 64)
    contents = chip.data_zone_contents(chip.memory)
    driver.lock_data(int.from_bytes(crc16(contents), "little"))
    assert driver.info().data_locked
    assert driver.read_slot(8, 72) == b"\xff" * 32 + b"x" * 32 + b"\xff" * 8
    driver.lock_slot(1)
    assert driver.read_config()[88:90] == b"\xfd\xff"
    with pytest.raises(ChipRefusedError):
        driver.lock_slot(1)


# -- what can go wrong, and how it is told


def test_absent() -> None:
    driver, chip, _, clock = emulated()
    chip.fault = "absent"
    begin = clock()
    with pytest.raises(ChipAbsentError, match=r"0x60 on emulated \(woken 5 times\)"):
        driver.info()
    assert clock() - begin < 0.2


def test_stuck_bus() -> None:
    driver, chip, _, clock = emulated()
    chip.fault = "stuck"
    begin = clock()
    with pytest.raises(ChipBusError, match="timed out"):
        driver.info()
    assert clock() - begin < driver.patience + 1.1


def test_bus_locked_by_another_program() -> None:
    driver, _, bus, clock = emulated()
    bus.locked_by_others = True
    begin = clock()
    with pytest.raises(ChipBusError, match="another program"):
        driver.info()
    assert clock() - begin <= driver.patience


def test_answers_with_bad_crc() -> None:
    driver, chip, _, clock = emulated()
    chip.fault = "bad-crc"
    begin = clock()
    with pytest.raises(ChipProtocolError, match="instead of 04113343"):
        driver.info()
    assert clock() - begin < driver.patience + 0.1


def test_a_chip_that_never_becomes_ready() -> None:
    driver, chip, _, clock = emulated()
    chip.scale = 500.0
    chip.watchdog = 1e6
    begin = clock()
    with pytest.raises((ChipTimeoutError, ChipAbsentError)):
        driver.info()
    assert clock() - begin < driver.patience + 1.5


@pytest.mark.parametrize("seed", range(20))
def test_a_node_that_gets_a_tenth_of_a_processor_begins_again_as_often_as_it_is_late(
    seed: int,
) -> None:
    """The chip's watchdog does not wait for it."""
    _, chip, _, clock = provisioned()
    rng = random.Random(seed)

    def sleep(seconds: float) -> None:
        clock.now += seconds
        if rng.random() < 0.1 + seconds:  # the longer, the likelier
            clock.now += rng.uniform(0.3, 2.0)

    driver = DeskChip(EmulatedBus(chip, clock), clock=clock, sleep=sleep)
    for _ in range(3):
        assert driver.info().serial == chip.serial
    public = driver.generate_key(0)
    assert checks(public, driver.sign(0, bytes(32)), bytes(32))


def test_a_node_that_gets_no_processor_at_all_gives_up_after_a_bound() -> None:
    _, chip, _, clock = emulated()

    def sleep(seconds: float) -> None:
        clock.now += seconds + 2.0

    driver = DeskChip(EmulatedBus(chip, clock), clock=clock, sleep=sleep)
    begin = clock()
    with pytest.raises(ChipError):
        driver.info()
    assert clock() - begin <= driver.patience + Stopwatch.MOST + 3.0


def test_unknown_commands() -> None:
    driver, _, _, clock = emulated()
    begin = clock()
    with pytest.raises(ChipParseError):
        driver.run(lambda session: session.execute(0x78))
    assert clock() - begin < 0.5


def test_refusal_is_not_repeated() -> None:
    driver, chip, _, _ = emulated()
    with pytest.raises(ChipRefusedError, match="locks"):
        driver.generate_key(0)
    assert chip.counters["GenKey"] == 1


class ScriptedBus(Bus):
    """A chip that always gives the same answer."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def write(self, address: int, data: bytes) -> None:
        pass

    def read(self, address: int, length: int) -> bytes:
        return self.answer[:length].ljust(length, b"\xff")


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ("0407c440", ChipFaultError, "self-test"),
        ("00000000", ChipProtocolError, "00000000 came back"),
        ("ffffffff", ChipProtocolError, "ffffffff came back"),
        ("04113343", ChipProtocolError, "just been woken"),
    ],
)
def test_other_things_at_the_address(answer: str, error: type[ChipError], words: str) -> None:
    clock = Time()
    driver = DeskChip(ScriptedBus(bytes.fromhex(answer)), clock=clock, sleep=clock.sleep)
    clock.sleep(0)
    with pytest.raises(error, match=words):
        driver.info()


def test_arguments_are_checked_before_anything_is_sent() -> None:
    driver, _, _, _ = provisioned()
    for wrong in (
        lambda s: s.read(ZONE_CONFIG, 0, 8),
        lambda s: s.write(ZONE_CONFIG, 0, bytes(8)),
        lambda s: s.nonce(bytes(32)),
        lambda s: s.load(bytes(20)),
        lambda s: s.verify(bytes(63), bytes(64)),
    ):
        with pytest.raises(ValueError):
            driver.run(wrong)


@pytest.mark.parametrize("fault", ["nak:0.2", "bad-crc:0.2", "watchdog:0.2", "stuck:0.02"])
def test_faults_of_the_chip_now_and_then(fault: str) -> None:
    driver, chip, _, _ = provisioned()
    chip.fault = fault
    for count in range(1, 61):
        assert driver.serial_number() == chip.serial
        assert driver.count_up(0) == count
    assert chip.counters["fault " + fault.partition(":")[0]] > 5


@pytest.mark.parametrize("seed", range(6))
def test_noise_never_gives_a_wrong_result(seed: int) -> None:
    """Hundreds of seeded transactions with every kind of trouble: a right result or an error."""
    quiet, chip, _, clock = provisioned()
    public_key = quiet.generate_key(0)
    quiet.lock_data(int.from_bytes(crc16(chip.data_zone_contents(chip.memory)), "little"))
    config = quiet.read_config()
    bus = NoisyBus(chip, clock, seed, rate=(0.02, 0.05, 0.1)[seed % 3])
    driver = DeskChip(bus, clock=clock, sleep=clock.sleep)
    done = 0
    for number in range(60):
        digest = sha256(bytes((seed, number))).digest()
        before = quiet.counter(0)
        begin, good = clock(), False
        try:
            match number % 6:
                case 0:
                    assert driver.serial_number() == chip.serial
                case 1:
                    assert driver.count_up(0) == before + 1
                case 2:
                    assert checks(public_key, driver.sign(0, digest), digest)
                case 3:
                    now = driver.read_config()
                    assert now[:52] + now[68:] == config[:52] + config[68:]
                case 4:
                    assert driver.public_key(0) == public_key
                case 5:
                    assert driver.read_slot(8, 36) == b"\xff" * 36
            good = True
        except ChipError:
            pass
        done += good
        assert clock() - begin < driver.patience + 4
        assert bus.locks == 0
        counted = quiet.counter(0) - before
        assert counted == (number % 6 == 1) or (number % 6 == 1 and not good)
    assert bus.trouble > 10
    assert done > 40


# -- the rest of the commands


def test_configuration_is_written_word_by_word_and_read_back() -> None:
    driver, chip, _, _ = emulated()
    wanted = bytearray(driver.read_config())
    wanted[16:20] = bytes.fromhex("c000aa00")
    wanted[20:52] = bytes.fromhex("8720" + "0f0f" * 9 + "0f2f" * 4 + "0f0f" * 2)
    wanted[84:86] = b"\x12\x34"
    wanted[90:92] = b"\x04\x01"
    wanted[96:128] = bytes.fromhex("3300" + "1c00" * 7 + "3c00" * 3 + "3000" + "3c00" * 4)
    assert "byte 18: 00, not aa" in driver.compare_config(bytes(wanted))
    driver.write_config(bytes(wanted))
    assert bytes(chip.memory.config) == wanted
    assert driver.compare_config(bytes(wanted)) == ""
    written = chip.counters["Write"]
    driver.write_config(bytes(wanted))
    assert chip.counters["Write"] == written  # nothing differs, nothing is written
    driver.lock_config(crc_number(bytes(wanted)))
    with pytest.raises(ChipRefusedError, match="is locked"):
        driver.write_config(bytes(wanted))


def test_the_writes_of_a_configuration_are_those_of_nerves_key() -> None:
    """Against the 12 writes in test/atecc508a/configuration_test.exs of the Elixir library."""
    driver, chip, bus, _ = emulated()
    config = bytes(chip.memory.config)
    packets: list[bytes] = []
    original = bus.write

    def recording(address: int, data: bytes) -> None:
        if data[:1] == b"\x03" and data[2] == 0x12:
            packets.append(data[2:6])
        original(address, data)

    bus.write = recording  # type: ignore[method-assign]
    driver.write_config(config, whole=True)
    assert [p.hex() for p in packets] == [
        *(f"1200{word:02x}00" for word in (4, 5, 6, 7)),
        "12800800",
        *(f"1200{word:02x}00" for word in (16, 17, 18, 19, 20, 23)),
        "12801800",
    ]


def test_a_configuration_that_does_not_stick_is_noticed() -> None:
    driver, chip, _, _ = emulated()
    wanted = bytearray(driver.read_config())
    wanted[18] = 0xAA
    chip.keeps = False
    with pytest.raises(ChipMismatchError, match=r"read back.*byte 18: 00, not aa"):
        driver.write_config(bytes(wanted))


def test_differences_name_the_bytes() -> None:
    assert differences(b"abc", b"abc") == ""
    assert differences(b"abcd", b"aXXd") == "bytes 1 to 2: 6263, not 5858"
    assert differences(b"abcd", b"aXXd", skip=(1, 2)) == ""
    assert differences(b"ab", b"abc") == "byte 2: nothing, not 63"


@given(found=st.binary(max_size=40), wanted=st.binary(max_size=40))
def test_differences_are_found_exactly_when_there_are_any(found: bytes, wanted: bytes) -> None:
    assert bool(differences(found, wanted)) == (found != wanted)


def test_otp_and_slots() -> None:
    driver, chip, _, _ = provisioned()
    otp, data = bytes(range(64)), bytes(n & 0xFF for n in range(416))
    driver.write_otp(otp)
    driver.write_slot(8, data, locked=False)
    driver.write_slot(9, data[:72], locked=False)
    with pytest.raises(ChipRefusedError):
        driver.read_otp()
    driver.lock_data(crc_number(chip.data_zone_contents(chip.memory)))
    assert driver.read_otp() == otp
    assert driver.read_slot(8) == data
    assert driver.read_slot(9) == data[:72]
    driver.write_slot(9, b"new!")
    assert driver.read_slot(9) == b"new!" + data[4:72]
    with pytest.raises(ChipRefusedError):
        driver.write_otp(otp)
    for wrong in (bytes(73), bytes(3)):
        with pytest.raises(ValueError, match="multiple of 4"):
            driver.write_slot(9, wrong)
    with pytest.raises(ValueError, match="64 bytes"):
        driver.write_otp(bytes(63))


def test_ecdh() -> None:
    driver, _, _, _ = emulated()
    wanted = bytearray(driver.read_config())
    wanted[20:22] = b"\x87\x20"
    driver.write_config(bytes(wanted))
    driver.lock_config(crc_number(driver.read_config()))
    public = driver.generate_key(0)
    host = ec.generate_private_key(ec.SECP256R1())
    numbers = host.public_key().public_numbers()
    point = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
    theirs = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + public)
    assert driver.ecdh(0, point) == host.exchange(ec.ECDH(), theirs)
    with pytest.raises(ChipFaultError):
        driver.ecdh(0, point[:63] + bytes((point[63] ^ 1,)))
    with pytest.raises(ChipRefusedError):
        driver.ecdh(8, point)
    with pytest.raises(ValueError, match="64 bytes"):
        driver.ecdh(0, point[:32])


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 512])
def test_sha256(size: int) -> None:
    driver, _, _, _ = emulated()
    message = bytes(n * 7 & 0xFF for n in range(size))
    assert driver.sha256(message) == sha256(message).digest()


def test_sha256_of_too_much() -> None:
    with pytest.raises(ValueError, match="on the host"):
        emulated()[0].sha256(bytes(513))


def test_self_test() -> None:
    driver, chip, _, _ = emulated()
    assert driver.self_test() == []
    chip.broken = 0x12
    assert driver.self_test() == ["ECDSA", "AES"]
    assert driver.self_test(0x20) == []
    clock = Time()
    old = Atecc608(serial_for(1, 1), model="ATECC508A", clock=clock)
    with pytest.raises(ChipParseError, match="508A"):
        DeskChip(EmulatedBus(old, clock), clock=clock, sleep=clock.sleep).self_test()


def test_update_extra() -> None:
    driver, _, _, _ = provisioned()
    driver.update_extra(0, 0x42)
    assert driver.read_config()[84] == 0x42
    with pytest.raises(ChipRefusedError):
        driver.update_extra(0, 0x43)
    with pytest.raises(ValueError, match="UpdateExtra"):
        driver.update_extra(2, 0)


def test_keys_in_slots() -> None:
    driver, chip, _, _ = provisioned()
    assert not driver.key_valid(0)
    public = driver.generate_key(0)
    assert driver.key_valid(0)
    digest = sha256(b"stored").digest()

    def conversation(session: DeskSession) -> bytes:
        session.load_digest(digest)
        return session.sign(0, buffer=True)

    signature = driver.run(conversation)
    assert checks(public, signature, digest)
    # slot 10 is made one for a public key, as Microchip's library stores it
    chip.state.config[116:118] = b"\x30\x00"
    chip.state.slots[10][:] = bytes(4) + public[:32] + bytes(4) + public[32:]
    assert driver.verify_stored(digest, signature, 10)
    assert not driver.verify_stored(sha256(b"other").digest(), signature, 10)


def test_idle_keeps_what_the_chip_remembers() -> None:
    driver, chip, bus, clock = provisioned()
    driver.run(lambda session: session.load(bytes(32)))
    assert chip.temp_key is None  # asleep

    def conversation(session: DeskSession) -> bytes:
        session.load(bytes(range(32)))
        session.renew()
        return bus.read(0x60, 1)

    driver.run(conversation)
    with suppress(Nak):
        chip.write(0, b"\0")  # the pulse that wakes it
    clock.now += 0.01
    chip.temp_key = bytes(32)
    driver.idle()
    with pytest.raises(Exception, match="emulated"):
        bus.locks = 1
        bus.read(0x60, 1)


def test_signing_late_in_a_conversation_is_renewed_not_risked() -> None:
    """TempKey and Sign far apart: without a renewal the watchdog would come in between."""
    driver, _, _, clock = provisioned()
    public = driver.generate_key(0)
    digest = sha256(b"late").digest()

    def slow(session: DeskSession, renew: bool) -> bytes:
        session.load(digest)
        clock.now += 0.65
        if renew:
            session.renew()
        clock.now += 0.3
        return session.sign(0)

    assert checks(public, driver.run(lambda session: slow(session, True)), digest)
    begin = clock()
    with pytest.raises(ChipWatchdogError, match="watchdog"):
        driver.run(lambda session: slow(session, False))
    assert clock() - begin < driver.patience + 1.5


def test_a_digest_that_somebody_else_erased_is_loaded_again() -> None:
    driver, _, bus, clock = provisioned()
    public = driver.generate_key(0)
    digest = sha256(b"shared bus").digest()
    disturbances = 1

    def conversation(session: DeskSession) -> bytes:
        nonlocal disturbances
        session.load(digest)
        if disturbances:
            disturbances -= 1
            bus.write(0x60, b"\x01")
            with pytest.raises(Exception, match="emulated"):
                bus.write(0, b"\0")
            clock.now += 0.002
        return session.sign(0)

    assert checks(public, driver.run(conversation), digest)
    disturbances = 2
    with pytest.raises(ChipRefusedError):
        driver.run(conversation)


# -- fault injection


class SharedBus(NoisyBus):
    """A noisy bus on which another program, one without manners, talks to the chip as well.

    It wakes it, sends it to sleep, lets it idle and resets its pointer between our transactions. It
    gives no commands: the answer to a command does not say whose it is, which is what the lock of
    the bus is for.
    """

    def begin(self) -> None:
        super().begin()
        if self.random.random() < self.rate:
            self.trouble += 1
            for address, byte in self.random.choice(
                (((0, 0),), ((0x60, 1),), ((0x60, 2),), ((0x60, 0),), ((0x60, 1), (0, 0)))
            ):
                with suppress(Nak):
                    self.chip.write(address, bytes((byte,)))


def test_ten_thousand_transactions_with_every_fault() -> None:
    """Every command, every fault, some 10,000 transactions by a seed: right result or an error.

    ``quiet`` is a second driver on a bus without faults that tells what is true.
    """
    quiet, chip, _, clock = emulated(3)
    wanted = bytearray(quiet.read_config())
    wanted[20:52] = bytes.fromhex("8720" + "0f0f" * 9 + "0f2f" * 4 + "0f0f" * 2)
    wanted[22:24] = b"\x87\x20"
    wanted[96:128] = bytes.fromhex("33003300" + "1c00" * 6 + "3c00" * 3 + "3000" + "3c00" * 4)
    quiet.write_config(bytes(wanted))
    quiet.lock_config(crc_number(quiet.read_config()))
    key = quiet.generate_key(0)
    settings_slot = bytes(n * 5 & 0xFF for n in range(416))
    quiet.write_slot(8, settings_slot, locked=False)
    quiet.lock_data(crc_number(chip.data_zone_contents(chip.memory)))
    config = quiet.read_config()
    host = ec.generate_private_key(ec.SECP256R1())
    numbers = host.public_key().public_numbers()
    point = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
    secret = host.exchange(
        ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + key)
    )
    other = quiet.run(lambda session: session.random())

    bus = SharedBus(chip, clock, 608, 0.04)
    driver = DeskChip(bus, clock=clock, sleep=clock.sleep)
    done: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    number = 0

    def sign() -> None:
        digest = sha256(str(number).encode()).digest()
        assert checks(key, driver.sign(0, digest), digest)

    def verify() -> None:
        digest = sha256(str(number).encode()).digest()
        signature = quiet.sign(0, digest)
        assert driver.verify(digest, signature, key)
        assert not driver.verify(other, signature, key)

    def generate() -> None:
        assert driver.generate_key(1) == quiet.public_key(1)

    def write() -> None:
        data = sha256(str(number).encode()).digest() * 2 + bytes(8)
        driver.write_slot(9, data)
        assert quiet.read_slot(9) == data

    def count() -> None:
        before = quiet.counter(0)
        try:
            assert driver.count_up(0) == before + 1
        finally:
            assert quiet.counter(0) - before in (0, 1)

    def read() -> None:
        now = driver.read_config()
        assert now[:52] + now[60:] == config[:52] + config[60:]

    def randomly() -> None:
        assert driver.random() not in (other, bytes.fromhex("ffff0000") * 8)

    def ecdh() -> None:
        assert driver.ecdh(0, point) == secret

    def data() -> None:
        assert driver.read_slot(8) == settings_slot

    def hashing() -> None:
        assert driver.sha256(settings_slot[:200]) == sha256(settings_slot[:200]).digest()

    def who() -> None:
        assert driver.info().serial == chip.serial

    def tests() -> None:
        assert driver.self_test() == []

    work = (sign, verify, generate, write, count, read, randomly, ecdh, data, hashing, who, tests)
    while bus.transactions < 10_000:
        operation = work[number % len(work)]
        begin = clock()
        try:
            operation()
        except ChipError as error:
            failed[f"{operation.__name__}: {type(error).__name__}"] += 1
        else:
            done[operation.__name__] += 1
        assert clock() - begin < 2 * (driver.patience + 4), operation
        assert bus.locks == 0
        number += 1
    assert bus.trouble > 500
    assert set(done) == {operation.__name__ for operation in work}
    assert done.total() > 0.9 * number, failed


@pytest.mark.parametrize("seed", range(40))
def test_locking_on_a_bad_bus(seed: int) -> None:
    """What is reported as locked is locked, and only with the contents that were meant."""
    quiet, chip, _, clock = emulated(seed)
    driver = DeskChip(SharedBus(chip, clock, seed, 0.1), clock=clock, sleep=clock.sleep)
    config = quiet.read_config()
    locked = False
    with suppress(ChipError):
        driver.lock_config(crc_number(config) ^ 1)
        pytest.fail("a lock with another CRC was reported as done")
    assert not quiet.info().config_locked
    with suppress(ChipError):
        driver.lock_config(crc_number(config))
        locked = True
    assert quiet.info().config_locked or not locked
    if not locked:
        return
    with suppress(ChipError):
        driver.lock_slot(3)
        assert quiet.read_config()[88] == 0xF7


@pytest.mark.parametrize("seed", range(30))
def test_another_address_on_a_bad_bus(seed: int) -> None:
    """The chip moves while the bus is bad: the driver knows where it is, or says that it failed."""
    quiet, chip, _, clock = emulated(seed)
    wanted = bytearray(quiet.read_config())
    wanted[16] = 0xB0
    driver = DeskChip(SharedBus(chip, clock, seed, 0.15), clock=clock, sleep=clock.sleep)
    with suppress(ChipError):
        driver.write_config(bytes(wanted))
        quiet.address = 0x58
        assert quiet.read_config()[16] == 0xB0
    quiet.address = driver.address
    assert quiet.read_config()[16] >> 1 == driver.address


# -- configurations of others

CONFIGURATIONS = {
    # cryptoauthlib, python/tests/test_device.py (788acf6): the vectors of a 508A and a 608
    "508A": (
        "012372e800006002b963b2d3ee002d00b00055008f20c444872087208f0fc436"
        "9f0f82200f0fc4440f0f0f0f0f0f0f0f0f0f0f0fffffffff00000000ffffffff"
        "00000000ffffffffffffffffffffffffffffffff00005555ffff000000000000"
        "33001c00130013007c001c003c0033003c003c003c0030003c003c003c003000",
        "012372e8b963b2d3ee",
        (False, False),
    ),
    "608": (
        "012372e800006002b963b2d3ee012d00b00055018f20c444872087208f0fc436"
        "9f0f82200f0fc4440f0f0f0f0f0f0f0f0f0f0f0fffffffff00000000ffffffff"
        "0000000000000000000000000000000000000000" + "00000000" + "ffff064000000000"
        "33001c00130013007c001c003c0033003c003c003c0030003c003c003c003000",
        "012372e8b963b2d3ee",
        (True, True),
    ),
    # cryptoauthlib, test/api_calib/test_calib_config.c: what its own tests configure a 608 with
    "608 test": (
        "012300000000600004050607ee010100c000a100af2fc4448720c4f48f0f0f0f"
        "9f8f8364c444c4640f0f0f0f0f0f0f0f0f0f0f0fffffffff00000000ffffffff"
        "00000000ff8403bc0969760000000000000000000000000" + "0ffff0e4000000000"
        "33001c0013001c003c003a101c0033001c001c00380030003c003c0032003000",
        "0123000004050607ee",
        (True, True),
    ),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configurations_of_others(name: str) -> None:
    text, serial, locks = CONFIGURATIONS[name]
    config = bytes.fromhex(text)
    assert len(config) == 128
    info = ChipInfo("bus", 0x60, config[:32], config[84:88])
    assert info.serial.hex() == serial
    assert (info.config_locked, info.data_locked) == locks
    # and a blank chip takes everything over but what is its own
    driver, chip, _, _ = emulated()
    own = bytes(chip.memory.config)
    driver.write_config(config)
    written = bytes(chip.memory.config)
    assert driver.address == config[16] >> 1
    assert driver.serial_number() == chip.serial
    assert written[:16] == own[:16]
    assert written[86:90] == own[86:90]
    assert written[16:84] == config[16:84]
    assert written[84:86] == config[84:86]
    assert written[90:] == config[90:]
