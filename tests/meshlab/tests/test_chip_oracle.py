# SPDX-License-Identifier: Apache-2.0
"""The virtual chip against Microchip's own library, cryptoauthlib, as an independent client.

The C library thinks that it talks over its native I2C driver; that driver's functions are replaced
by callbacks that put every transaction on the virtual bus. So its wake-up, polling, two-step reads,
CRC checks and its view of the chip's rules are all exercised unchanged.

There are wheels of cryptoauthlib for x86-64 and Python up to 3.13; elsewhere these tests are
skipped and the chip is still held to the recorded frames in ``test_chip_atecc608.py``.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import load_der_x509_certificate

from authority.chip import DeskChip
from authority.nerveskey import Otp, read
from authority.provisioning import NervesKeyIssuer, Provisioning, slot_contents
from meshlab.chip.atecc608 import Atecc608, crc16
from meshlab.chip.bus import Nak
from meshlab.chip.state import serial_for
from thicket.identity.bus import Bus, NotAcknowledgedError
from thicket.trust import openssl

cal: Any = pytest.importorskip("cryptoauthlib", reason="no wheel of cryptoauthlib for this Python")

SUCCESS = 0x00

EXECUTION_ERROR = int(cal.Status.ATCA_EXECUTION_ERROR)
COMM_FAIL = int(cal.Status.ATCA_COMM_FAIL)
UNIMPLEMENTED = int(cal.Status.ATCA_UNIMPLEMENTED)

CONTROL = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_uint8, ctypes.c_void_p, ctypes.c_size_t
)
SEND = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_uint8,
    ctypes.POINTER(ctypes.c_uint8),
    ctypes.c_int,
)
RECEIVE = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_uint8,
    ctypes.POINTER(ctypes.c_uint8),
    ctypes.POINTER(ctypes.c_uint16),
)
INIT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
ONE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)


class Hal(ctypes.Structure):
    """``ATCAHAL_t`` of the library's atca_iface.h."""

    _fields_ = (
        ("init", INIT),
        ("post_init", ONE),
        ("send", SEND),
        ("receive", RECEIVE),
        ("control", CONTROL),
        ("release", ONE),
    )


class Client:
    """Microchip's library with a virtual chip on its first I2C bus."""

    def __init__(self, chip: Atecc608) -> None:
        self.chip = chip
        self.transactions: list[tuple[str, int, bytes]] = []
        self.config = cal.cfg_ateccx08a_i2c_default()
        self.config.devtype = 3  # ATECC608
        self.config.cfg.atcai2c.address = 0xC0
        self.config.cfg.atcai2c.bus = 0
        # above 100 kHz the library would want to change the clock for the wake pulse
        self.config.cfg.atcai2c.baud = 100_000
        library = cal.get_cryptoauthlib()
        self.hal = Hal(
            INIT(lambda iface, cfg: SUCCESS),
            ONE(lambda iface: SUCCESS),
            SEND(self.send),
            RECEIVE(self.receive),
            CONTROL(lambda iface, option, param, size: UNIMPLEMENTED),
            ONE(lambda data: SUCCESS),
        )
        assert library.hal_iface_register_hal(0, ctypes.byref(self.hal), None, None, None) == 0
        assert cal.atcab_init(self.config) == SUCCESS

    def send(self, _iface: int, word: int, data: Any, size: int) -> int:
        # the library sets the address to 0 in its own settings for the wake pulse
        address = self.config.cfg.atcai2c.address >> 1
        content = bytes((word,)) + (bytes(data[:size]) if size > 0 else b"")
        self.transactions.append(("write", address, content))
        try:
            self.chip.write(address, content)
        except Nak:
            return COMM_FAIL
        return SUCCESS

    def receive(self, _iface: int, address: int, data: Any, size: Any) -> int:
        length = size[0]
        try:
            content = self.chip.read(address >> 1, length)
        except Nak:
            return COMM_FAIL
        self.transactions.append(("read", address >> 1, content))
        for index, byte in enumerate(content):
            data[index] = byte
        return SUCCESS


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """Return the library, connected to a factory-new chip."""
    client = Client(Atecc608(serial_for(1, 1), tmp_path / "chip.json", scale=0.05))
    yield client
    cal.atcab_release()


def config_of(client: Client) -> bytearray:
    data = bytearray(128)
    assert cal.atcab_read_config_zone(data) == SUCCESS
    return data


def lock_config(client: Client) -> None:
    assert (
        cal.atcab_lock_config_zone_crc(int.from_bytes(crc16(bytes(config_of(client))), "little"))
        == 0
    )


def test_what_it_is(client: Client) -> None:
    serial, revision = bytearray(9), bytearray(4)
    assert cal.atcab_read_serial_number(serial) == SUCCESS
    assert bytes(serial) == client.chip.serial
    assert cal.atcab_info(revision) == SUCCESS
    assert revision == bytes.fromhex("00006002")
    assert cal.get_device_name(revision) == "ATECC608"
    assert config_of(client) == client.chip.memory.config


def test_the_library_really_uses_the_bus(client: Client) -> None:
    assert cal.atcab_info(bytearray(4)) == SUCCESS
    written = [(a, d.hex()) for kind, a, d in client.transactions if kind == "write"]
    assert (0, "01") in written  # the wake pulse
    assert (0x60, "030730000000035d") in written
    assert written[-1] == (0x60, "02")  # idle
    read = [d for kind, _, d in client.transactions if kind == "read"]
    assert read[0] == bytes.fromhex("04113343")
    # the count alone, then the rest in a transaction of its own
    assert [len(d) for d in read[1:]] == [1, 6]


def test_locks(client: Client) -> None:
    state = cal.AtcaReference(True)
    assert cal.atcab_is_locked(0, state) == SUCCESS
    assert state == 0
    assert cal.atcab_lock_config_zone_crc(0x1234) != SUCCESS
    lock_config(client)
    assert cal.atcab_is_locked(0, state) == SUCCESS
    assert state == 1
    assert cal.atcab_is_locked(1, state) == SUCCESS
    assert state == 0
    contents = client.chip.data_zone_contents(client.chip.memory)
    assert cal.atcab_lock_data_zone_crc(int.from_bytes(crc16(contents), "little")) == SUCCESS
    assert cal.atcab_is_locked(1, state) == SUCCESS
    assert state == 1
    assert cal.atcab_lock_data_slot(0) == SUCCESS
    assert cal.atcab_is_slot_locked(0, state) == SUCCESS
    assert state == 1
    assert cal.atcab_lock_data_slot(0) == EXECUTION_ERROR


def test_write_whole_configuration(client: Client) -> None:
    wanted = config_of(client)
    wanted[16:20] = bytes.fromhex("c000aa00")
    # NervesKey's slots: one key, settings, certificates
    wanted[20:52] = bytes.fromhex("8720" + "0f0f" * 9 + "0f2f" * 4 + "0f0f" * 2)
    wanted[84:86] = b"\x12\x34"
    wanted[92:96] = b"abcd"
    wanted[96:128] = bytes.fromhex("3300" + "1c00" * 7 + "3c00" * 3 + "3000" + "3c00" * 4)
    assert cal.atcab_write_config_zone(wanted) == SUCCESS
    assert config_of(client) == wanted
    same = cal.AtcaReference(False)
    assert cal.atcab_cmp_config_zone(wanted, same) == SUCCESS
    assert same == 1
    lock_config(client)
    assert cal.atcab_write_config_zone(config_of(client)) != SUCCESS


def test_random(client: Client) -> None:
    number = bytearray(32)
    assert cal.atcab_random(number) == SUCCESS
    assert number == bytes.fromhex("ffff0000") * 8
    lock_config(client)
    assert cal.atcab_random(number) == SUCCESS
    assert number != bytes.fromhex("ffff0000") * 8


def test_nonce_as_the_library_computes_it(client: Client) -> None:
    lock_config(client)
    number, out = bytearray(os.urandom(20)), bytearray(32)
    assert cal.atcab_nonce_rand(number, out) == SUCCESS
    expected = sha256(bytes(out) + bytes(number) + b"\x16\x00\x00").digest()
    # the chip is idle now, which keeps TempKey
    assert client.chip.temp_key == expected


def test_keys_and_signatures(client: Client) -> None:
    public, again, signature = bytearray(64), bytearray(64), bytearray(64)
    assert cal.atcab_genkey(0, public) == EXECUTION_ERROR
    lock_config(client)
    assert cal.atcab_genkey(0, public) == SUCCESS
    assert cal.atcab_get_pubkey(0, again) == SUCCESS
    assert again == public
    digest = bytearray(sha256(b"thicket").digest())
    assert cal.atcab_sign(0, digest, signature) == SUCCESS
    good = cal.AtcaReference(False)
    assert cal.atcab_verify_extern(digest, signature, public, good) == SUCCESS
    assert good == 1
    signature[5] ^= 1
    assert cal.atcab_verify_extern(digest, signature, public, good) == SUCCESS
    assert good == 0
    # a slot that is no key, and one without a key in it yet
    assert cal.atcab_sign(8, digest, signature) == EXECUTION_ERROR
    assert cal.atcab_get_pubkey(1, public) == EXECUTION_ERROR
    assert cal.atcab_lock_data_slot(0) == SUCCESS
    assert cal.atcab_genkey(0, public) == EXECUTION_ERROR


def test_verify_by_a_stored_key(client: Client) -> None:
    wanted = config_of(client)
    wanted[96 + 2 * 10 : 98 + 2 * 10] = b"\x30\x00"  # slot 10 holds a P-256 public key
    wanted[20 + 2 * 10 : 22 + 2 * 10] = b"\x0f\x0f"
    assert cal.atcab_write_config_zone(wanted) == SUCCESS
    lock_config(client)
    public, signature, stored = bytearray(64), bytearray(64), bytearray(64)
    assert cal.atcab_genkey(0, public) == SUCCESS
    assert cal.atcab_write_pubkey(10, public) == SUCCESS
    assert cal.atcab_lock_data_zone() == SUCCESS
    assert cal.atcab_read_pubkey(10, stored) == SUCCESS
    assert stored == public
    digest = bytearray(sha256(b"stored").digest())
    assert cal.atcab_sign(0, digest, signature) == SUCCESS
    good = cal.AtcaReference(False)
    assert cal.atcab_verify_stored(digest, signature, 10, good) == SUCCESS
    assert good == 1


def test_ecdh(client: Client) -> None:
    wanted = config_of(client)
    wanted[20:22] = b"\x87\x20"  # slot 0: ECDH in the clear allowed
    assert cal.atcab_write_config_zone(wanted) == SUCCESS
    lock_config(client)
    public, secret = bytearray(64), bytearray(32)
    assert cal.atcab_genkey(0, public) == SUCCESS
    host = ec.generate_private_key(ec.SECP256R1())
    numbers = host.public_key().public_numbers()
    point = bytearray(numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big"))
    assert cal.atcab_ecdh(0, point, secret) == SUCCESS
    chip = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + bytes(public))
    assert bytes(secret) == host.exchange(ec.ECDH(), chip)
    assert cal.atcab_ecdh_base(0x0C, 0, point, secret, bytearray(32)) == SUCCESS
    assert bytes(secret) == host.exchange(ec.ECDH(), chip)
    point[10] ^= 1  # not on the curve
    assert cal.atcab_ecdh(0, point, secret) != SUCCESS


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 200])
def test_sha256(client: Client, size: int) -> None:
    message, digest = os.urandom(size), bytearray(32)
    assert cal.atcab_sha(size, message, digest) == SUCCESS
    assert digest == sha256(message).digest()


def test_counters_as_the_library_encodes_them(client: Client) -> None:
    value = cal.AtcaReference(0)
    for start in (0, 1, 15, 16, 17, 31, 32, 33, 47, 48, 1000, 2_097_150):
        # the library writes its own encoding into the configuration, the chip counts on from it
        assert cal.atcab_write_config_counter(1, start) == SUCCESS
        assert cal.atcab_counter_read(1, value) == SUCCESS
        assert value == start
        before = config_of(client)
        assert cal.atcab_counter_increment(1, value) == SUCCESS
        assert value == start + 1
        after = config_of(client)
        assert cal.atcab_write_config_counter(1, start + 1) == SUCCESS
        assert config_of(client) == after != before
    assert cal.atcab_counter_increment(1, value) == EXECUTION_ERROR
    assert cal.atcab_counter_read(0, value) == SUCCESS
    assert value == 0


def test_data_and_otp(client: Client) -> None:
    data = bytearray(os.urandom(416))
    assert cal.atcab_write_bytes_zone(2, 8, 0, data, 32) == EXECUTION_ERROR
    lock_config(client)
    assert cal.atcab_write_bytes_zone(2, 8, 0, data, 416) == SUCCESS
    assert cal.atcab_write_bytes_zone(1, 0, 0, data, 64) == SUCCESS
    read = bytearray(416)
    assert cal.atcab_read_bytes_zone(2, 8, 0, read, 32) == EXECUTION_ERROR
    assert cal.atcab_lock_data_zone() == SUCCESS
    assert cal.atcab_read_bytes_zone(2, 8, 0, read, 416) == SUCCESS
    assert read == data
    otp = bytearray(64)
    assert cal.atcab_read_bytes_zone(1, 0, 0, otp, 64) == SUCCESS
    assert otp == data[:64]
    assert cal.atcab_write_bytes_zone(1, 0, 0, data, 64) == EXECUTION_ERROR
    # the factory's slot 8 is always writable, slot 9 is too, slot 15 (AF 8F) never
    assert cal.atcab_write_bytes_zone(2, 8, 36, data, 4) == SUCCESS
    assert cal.atcab_read_bytes_zone(2, 8, 0, read, 416) == SUCCESS
    assert read[36:40] == data[:4]
    assert cal.atcab_write_bytes_zone(2, 15, 0, data, 32) == EXECUTION_ERROR
    # a private key can neither be read nor written
    assert cal.atcab_read_zone(2, 0, 0, 0, read, 32) == EXECUTION_ERROR
    assert cal.atcab_write_zone(2, 0, 0, 0, data, 32) == EXECUTION_ERROR


def test_state_survives(client: Client, tmp_path: Path) -> None:
    lock_config(client)
    public, again = bytearray(64), bytearray(64)
    assert cal.atcab_genkey(0, public) == SUCCESS
    client.chip = Atecc608(client.chip.serial, tmp_path / "chip.json", scale=0.05)
    assert cal.atcab_get_pubkey(0, again) == SUCCESS
    assert again == public


@pytest.mark.parametrize("fault", ["absent", "bad-crc", "nak:1"])
def test_faults_are_errors_for_the_library_too(client: Client, fault: str) -> None:
    client.config.rx_retries = 1
    client.chip.fault = fault
    assert cal.atcab_info(bytearray(4)) != SUCCESS
    client.chip.fault = None
    assert cal.atcab_info(bytearray(4)) == SUCCESS


def test_the_library_provisions_a_nerves_key(client: Client) -> None:
    """The whole of it by Microchip's library; what Thicket then reads verifies, and is locked."""
    wanted = config_of(client)
    wanted[18:20] = b"\xaa\x00"
    wanted[20:52] = bytes.fromhex("8720" + "0f0f" * 9 + "0f2f" * 4 + "0f0f" * 2)
    wanted[92:96] = bytes(4)
    wanted[96:128] = bytes.fromhex("3300" + "1c00" * 7 + "3c00" * 3 + "3000" + "3c00" * 4)
    assert cal.atcab_write_config_zone(wanted) == SUCCESS
    lock_config(client)
    otp = bytearray(Otp("NervesKey", "12345678").pack())
    assert cal.atcab_write_bytes_zone(1, 0, 0, otp, 64) == SUCCESS
    public = bytearray(64)
    assert cal.atcab_genkey(0, public) == SUCCESS
    now = datetime(2026, 1, 2, 3, tzinfo=UTC)
    validity = (now, now.replace(year=2057))
    signer = NervesKeyIssuer(
        openssl.generate_key(), validity, manufacturer_serial="12345678", device_validity=validity
    )
    certificates = signer.certificates(client.chip.serial, bytes(public))
    contents = slot_contents(certificates)
    for slot, data in contents.items():
        blocks = bytearray(data.ljust(-len(data) % 32 + len(data), b"\0"))
        for at in range(0, len(blocks), 32):
            assert cal.atcab_write_zone(2, slot, at // 32, 0, blocks[at : at + 32], 32) == SUCCESS
    crc = int.from_bytes(crc16(b"".join(contents.values()) + bytes(otp)), "little")
    assert cal.atcab_lock_data_zone_crc(crc ^ 1) != SUCCESS
    assert cal.atcab_lock_data_zone_crc(crc) == SUCCESS
    assert cal.atcab_lock_data_slot(0) == SUCCESS

    # what the library's provisioning and ours leave behind is the same, but for the key
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    class Wire(Bus):
        name = "oracle"

        def write(self, address: int, data: bytes) -> None:
            try:
                client.chip.write(address, data)
            except Nak:
                raise NotAcknowledgedError(self.name) from None

        def read(self, address: int, length: int) -> bytes:
            try:
                return client.chip.read(address, length)
            except Nak:
                raise NotAcknowledgedError(self.name) from None

    client.chip.clock = lambda: clock[0]
    client.chip.power_cycle()
    driver = DeskChip(Wire(), clock=lambda: clock[0], sleep=sleep)
    found = read(driver)
    assert found.primary == certificates
    assert found.otp == Otp("NervesKey", "12345678", bytes(32))
    assert found.public_key == public
    device, root = (load_der_x509_certificate(c) for c in found.certificates())
    device.verify_directly_issued_by(root)
    plan = Provisioning(driver, Otp("NervesKey", "12345678"), signer, show=lambda _: None)
    assert [step.done for step in plan.steps()] == [True] * 6 + [False, True]
    plan.run()

    # a signature by the library, verified by the library and by OpenSSL
    client.chip.clock = monotonic
    client.chip.power_cycle()
    digest, signature = bytearray(sha256(b"nerves").digest()), bytearray(64)
    assert cal.atcab_sign(0, digest, signature) == SUCCESS
    good = cal.AtcaReference(False)
    assert cal.atcab_verify_extern(digest, signature, public, good) == SUCCESS
    assert good == 1
    assert openssl.verify(bytes(public), bytes(digest), bytes(signature))
    # nothing can be changed any more, but the auxiliary and settings slots can
    assert cal.atcab_genkey(0, public) == EXECUTION_ERROR
    block = bytearray(32)
    for slot in range(1, 16):
        expected = EXECUTION_ERROR if 10 <= slot <= 13 else SUCCESS
        assert cal.atcab_write_zone(2, slot, 0, 0, block, 32) == expected


def test_self_test(client: Client) -> None:
    result = cal.AtcaReference(0xFF)
    assert cal.atcab_selftest(0x3B, 0, result) == SUCCESS
    assert result == 0


def test_update_extra(client: Client) -> None:
    lock_config(client)
    assert cal.atcab_updateextra(0, 0x42) == SUCCESS
    assert config_of(client)[84] == 0x42
    assert cal.atcab_updateextra(0, 0x43) == EXECUTION_ERROR


def test_digest_buffer_of_a_608(client: Client) -> None:
    """The library signs by way of the Message Digest Buffer on a 608, by TempKey on a 508A."""
    lock_config(client)
    public, signature = bytearray(64), bytearray(64)
    assert cal.atcab_genkey(0, public) == SUCCESS
    client.transactions.clear()
    assert cal.atcab_sign(0, bytearray(32), signature) == SUCCESS
    commands = [d[2:4].hex() for kind, _, d in client.transactions if kind == "write" and d[0] == 3]
    assert commands[-1] == "41a0"
    assert openssl.verify(bytes(public), bytes(32), bytes(signature))
