# SPDX-License-Identifier: Apache-2.0
"""The chip's driver: wire bytes from other implementations, and conversations with a virtual chip.

The CRC vectors are those of the Elixir library atecc508a (computed there with Microchip's C code);
the frames were read from the wire between Microchip's cryptoauthlib and a chip emulator.
"""

from __future__ import annotations

from hashlib import sha256

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from emulated_bus import EmulatedBus, NoisyBus, Time, emulated
from hypothesis import given
from hypothesis import strategies as st

from meshlab.chip import Atecc608, serial_for
from thicket.identity.atecc import (
    ZONE_CONFIG,
    ZONE_DATA,
    ZONE_OTP,
    Atecc,
    ChipAbsentError,
    ChipBusError,
    ChipError,
    ChipFaultError,
    ChipParseError,
    ChipProtocolError,
    ChipRefusedError,
    ChipTimeoutError,
    Session,
    crc16,
    data_address,
    model_of,
    pack_command,
    unpack_reply,
)
from thicket.identity.bus import Bus

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


def provisioned() -> tuple[Atecc, Atecc608, EmulatedBus, Time]:
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

    def conversation(session: Session) -> bytes:
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


def test_unknown_commands() -> None:
    driver, _, _, clock = emulated()
    begin = clock()
    with pytest.raises(ChipParseError):
        driver.run(lambda session: session.execute(0x77))
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
    driver = Atecc(ScriptedBus(bytes.fromhex(answer)), clock=clock, sleep=clock.sleep)
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
    driver = Atecc(bus, clock=clock, sleep=clock.sleep)
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
