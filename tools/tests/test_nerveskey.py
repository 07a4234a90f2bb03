# SPDX-License-Identifier: Apache-2.0
"""Chips as NervesKey has them: provisioned on the virtual chip, read, and what must not happen."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256

import pytest
import upstream_certificates as upstream
from cryptography import x509 as reference
from emulated_bus import EmulatedBus, NoisyBus, PulledError, Time, emulated
from hypothesis import given
from hypothesis import strategies as st

from authority import nerveskey
from authority.chip import DeskChip, crc_number
from authority.nerveskey import Otp, default_otp
from authority.provisioning import NervesKeyIssuer, Provisioning, ProvisioningError
from meshlab.chip.atecc608 import Atecc608
from meshlab.chip.state import serial_for
from thicket.identity.chip.errors import ChipError, ChipMismatchError, ChipRefusedError
from thicket.trust import openssl
from thicket.trust.certificates import Certificate, CertificateError
from thicket.trust.chip_slots import CertificateSet

VALIDITY = (datetime(2026, 1, 2, 3, tzinfo=UTC), datetime(2057, 1, 2, 3, tzinfo=UTC))
KEY = openssl.generate_key()
OTP = Otp("my_board", "1234578", bytes(range(32)))


def issuer(name: str = OTP.serial, key: bytes = KEY) -> NervesKeyIssuer:
    return NervesKeyIssuer(key, VALIDITY, manufacturer_serial=name, device_validity=VALIDITY)


def provisioned(model: str = "ATECC608A") -> tuple[DeskChip, Atecc608, CertificateSet]:
    clock = Time()
    chip = Atecc608(serial_for(1, 1), clock=clock, model=model)
    driver = DeskChip(EmulatedBus(chip, clock), clock=clock, sleep=clock.sleep)
    return driver, chip, Provisioning(driver, OTP, issuer(), show=lambda _: None).run()


# -- the OTP zone


@pytest.mark.parametrize(
    ("otp", "packed"),
    [
        # nerves_key, test/nerves_key/otp_test.exs
        (OTP, b"Nrvs\0\0my_board\0\0" + b"1234578" + bytes(9) + bytes(range(32))),
        (Otp("my_board", "1234567890123456"), b"Nrvs\0\0my_board\0\0" + b"1234567890123456"),
        (Otp("my_board", "12345678901234567"), b"Nrvs\0\1my_board\0\0" + b"12345678901234567"),
        (
            Otp("my_board", "1234567890" * 3 + "12"),
            b"Nrvs\0\1my_board\0\0" + b"1234567890" * 3 + b"12",
        ),
        # the README says 48 characters; upstream's own function refuses more than 32
        (Otp("b", "x" * 48), b"Nrvs\0\1b" + bytes(9) + b"x" * 48),
    ],
)
def test_otp(otp: Otp, packed: bytes) -> None:
    assert otp.pack() == packed.ljust(64, b"\0")
    read = Otp.unpack(otp.pack())
    assert (read.board, read.serial) == (otp.board, otp.serial)
    assert read.pack() == otp.pack()


def test_otp_that_does_not_fit() -> None:
    for otp, words in (
        (Otp("elevenchars", "1"), "board: 11 bytes"),
        (Otp("b", "x" * 49), "serial number: 49 bytes"),
        (Otp("b", "1", bytes(33)), "user data: 33 bytes"),
        (Otp("b", "x" * 17, b"u"), "leaves no user data"),
    ):
        with pytest.raises(ValueError, match=words):
            otp.pack()
    with pytest.raises(ValueError, match="ffffffff"):
        Otp.unpack(b"\xff" * 64)


def test_default_otp() -> None:
    assert default_otp(bytes.fromhex("0123a23f29f9366a01")) == Otp("NervesKey", "AER2EPZJ7E3GUAI")


# -- provisioning


@pytest.mark.parametrize("model", ["ATECC508A", "ATECC608A", "ATECC608B"])
def test_a_blank_chip_becomes_a_nerves_key(model: str) -> None:
    driver, chip, certificates = provisioned(model)
    memory = chip.memory
    assert memory.config[86:89] == b"\0\0\xfe"
    assert memory.config[20:52] == nerveskey.SLOT_CONFIG
    assert memory.config[96:128] == nerveskey.KEY_CONFIG
    assert bytes(memory.otp) == OTP.pack()
    contents = nerveskey.read(driver)
    assert contents.kind == nerveskey.NERVES_KEY
    assert contents.model == model
    assert contents.otp == OTP
    assert contents.primary == certificates
    assert contents.auxiliary is None
    device, signer = contents.certificates()
    # judged by another implementation
    theirs, root = map(reference.load_der_x509_certificate, (device, signer))
    theirs.verify_directly_issued_by(root)
    root.verify_directly_issued_by(root)
    assert theirs.subject.rfc4514_string() == "CN=1234578"
    assert Certificate(device).public_key == contents.public_key
    with pytest.raises(ChipRefusedError):
        driver.generate_key(0)
    digest = sha256(b"signed").digest()
    assert openssl.verify(contents.public_key, digest, driver.sign(0, digest))


def test_nothing_is_written_by_looking() -> None:
    driver, chip, _, _ = emulated()
    before = chip.memory
    plan = Provisioning(driver, OTP, issuer(), show=pytest.fail)
    text = plan.describe()
    assert chip.memory == before
    assert not {"Write", "Lock", "GenKey", "UpdateExtra"} & set(chip.counters)
    assert [step.irreversible for step in plan.steps()] == [
        False, True, False, False, False, True, False, True,
    ]  # fmt: skip
    assert text.count("FOR EVER") == 3
    assert OTP.pack().hex() in text
    assert serial_for(1, 1).hex() in text


def test_every_lock_is_announced_before_it_happens() -> None:
    driver, chip, _, _ = emulated()
    seen: list[tuple[str, int]] = []
    Provisioning(
        driver, OTP, issuer(), show=lambda text: seen.append((text, chip.counters["Lock"]))
    ).run()
    assert [locks for text, locks in seen if "LOCKING" in text] == [0, 1, 2]
    assert chip.counters["Lock"] == 3


@pytest.mark.parametrize("transactions", [*range(0, 600, 23), *range(600, 900, 60)])
def test_an_interrupted_provisioning_goes_on(transactions: int) -> None:
    """Power lost at any transaction: the next attempt finishes, with the chip's final key."""
    driver, chip, bus, _ = emulated()
    bus.pulled_at = transactions
    with suppress(PulledError):
        Provisioning(driver, OTP, issuer(), show=lambda _: None).run()
    bus.pulled_at = None
    bus.locks = 0
    chip.power_cycle()
    Provisioning(driver, OTP, issuer(), show=lambda _: None).run()
    contents = nerveskey.read(driver)
    theirs, root = map(reference.load_der_x509_certificate, contents.certificates())
    theirs.verify_directly_issued_by(root)
    assert Certificate(contents.certificates()[0]).public_key == contents.public_key
    assert chip.memory.config[86:89] == b"\0\0\xfe"


@pytest.mark.parametrize("seed", range(25))
def test_provisioning_over_a_bad_bus(seed: int) -> None:
    quiet, chip, _, clock = emulated(seed)
    driver = DeskChip(NoisyBus(chip, clock, seed, 0.05), clock=clock, sleep=clock.sleep)
    for _ in range(10):
        with suppress(ChipError, ProvisioningError):
            Provisioning(driver, OTP, issuer(), show=lambda _: None).run()
            break
    else:
        pytest.fail("ten attempts did not provision the chip")
    theirs, root = map(reference.load_der_x509_certificate, nerveskey.read(quiet).certificates())
    theirs.verify_directly_issued_by(root)


def surprise(change: Callable[[Atecc608], None]) -> tuple[DeskChip, Atecc608]:
    driver, chip, _, _ = emulated()
    change(chip)
    return driver, chip


def _locked_otherwise(chip: Atecc608) -> None:
    chip.state.config[87] = 0


def _slot_locked(chip: Atecc608) -> None:
    chip.state.config[88] = 0xF7


def _only_data(chip: Atecc608) -> None:
    chip.state.config[86] = 0


def _model(chip: Atecc608) -> None:
    chip.state.config[4:8] = b"\0\x02\0\x04"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_locked_otherwise, "configuration locked, and it is not NervesKey's: byte"),
        (_slot_locked, "locked slots"),
        (_only_data, "data locked but not its configuration"),
        (_model, "unknown"),
    ],
)
def test_chips_that_are_not_blank_are_refused(
    change: Callable[[Atecc608], None], words: str
) -> None:
    driver, chip = surprise(change)
    before = chip.memory
    with pytest.raises(ProvisioningError, match=words):
        Provisioning(driver, OTP, issuer(), show=pytest.fail)
    assert chip.memory == before


def test_somebody_elses_nerves_key_is_refused() -> None:
    driver, _, _ = provisioned()
    with pytest.raises(ProvisioningError, match="provisioned already, for somebody else"):
        Provisioning(driver, Otp("other", "1"), issuer())
    # the same OTP zone, another signer
    other = issuer(key=openssl.generate_key())
    with pytest.raises(ProvisioningError, match="not by this signer"):
        Provisioning(driver, OTP, other, show=lambda _: None).run()
    # the same once more changes nothing
    plan = Provisioning(driver, OTP, issuer(), show=lambda _: None)
    assert [step.done for step in plan.steps()] == [True] * 6 + [False, True]
    plan.run()


def test_a_configuration_that_does_not_stick_locks_nothing() -> None:
    driver, chip, _, _ = emulated()
    plan = Provisioning(driver, OTP, issuer(), show=lambda _: None)
    chip.keeps = False
    with pytest.raises(ChipMismatchError):
        plan.run()
    assert chip.counters["Lock"] == 0


def test_contents_that_do_not_stick_are_not_locked() -> None:
    """The chip checks the CRC of what was meant: one wrong byte in a slot, and no lock."""
    driver, chip, _, _ = emulated()

    def spoil(text: str) -> None:
        if text.startswith("LOCKING data"):
            chip.state.slots[13][5] ^= 1

    with pytest.raises(ChipRefusedError):
        Provisioning(driver, OTP, issuer(), show=spoil).run()
    assert not driver.info().data_locked
    assert driver.read_config()[88] == 0xFF


# -- the auxiliary slots and the settings


def test_auxiliary_certificates() -> None:
    driver, chip, primary = provisioned()
    other = issuer(key=openssl.generate_key())
    auxiliary = other.certificates(chip.serial, driver.public_key(0))
    nerveskey.write_auxiliary(driver, auxiliary)
    contents = nerveskey.read(driver)
    assert (contents.primary, contents.auxiliary) == (primary, auxiliary)
    device, signer = map(
        reference.load_der_x509_certificate, contents.certificates(contents.auxiliary)
    )
    device.verify_directly_issued_by(signer)
    nerveskey.clear_auxiliary(driver)
    assert nerveskey.read(driver).auxiliary is None
    with pytest.raises(ChipRefusedError):
        driver.write_slot(10, bytes(72))


def test_an_interrupted_auxiliary_set_is_none() -> None:
    driver, chip, _ = provisioned()
    bus = driver.bus
    assert isinstance(bus, EmulatedBus)
    old = issuer(key=openssl.generate_key()).certificates(chip.serial, driver.public_key(0))
    new = issuer(key=openssl.generate_key()).certificates(chip.serial, driver.public_key(0))
    for limit in range(0, 200, 13):
        nerveskey.write_auxiliary(driver, old)
        bus.pulled_at = bus.transactions + limit
        with suppress(PulledError):
            nerveskey.write_auxiliary(driver, new)
        bus.pulled_at = None
        bus.locks = 0
        chip.power_cycle()
        found = nerveskey.read(driver).auxiliary
        if found not in (None, old, new):
            # The end of the device certificate, with its dates, is written last of all.
            with pytest.raises(CertificateError):
                nerveskey.read(driver).certificates(found)


@given(data=st.binary(max_size=524))
def test_settings(data: bytes) -> None:
    driver, _, _ = _CHIP
    nerveskey.write_settings(driver, data)
    assert nerveskey.read_settings(driver) == data.ljust(524, b"\0")


def test_settings_as_a_term() -> None:
    driver, _, _ = _CHIP
    term = {"name": "eight", "numbers": [1, 2, 300]}
    nerveskey.write_settings_term(driver, term)
    # Text is written as NervesKey writes it, as a binary, and is bytes here.
    assert nerveskey.read_settings_term(driver) == {b"name": b"eight", b"numbers": [1, 2, 300]}
    # term_to_binary(#{<<"a">> => 1}) of Erlang/OTP.
    nerveskey.write_settings(driver, bytes.fromhex("8374000000016d00000001616101"))
    assert nerveskey.read_settings_term(driver) == {b"a": 1}
    nerveskey.write_settings(driver, b"")
    with pytest.raises(ValueError, match="not as an Erlang term"):
        nerveskey.read_settings_term(driver)
    with pytest.raises(ValueError, match="room for 524"):
        nerveskey.write_settings(driver, bytes(525))
    # slots 8, 7, 6 and 5 in this order
    nerveskey.write_settings(driver, bytes(416) + b"a" * 36 + b"b" * 36 + b"c" * 36)
    assert [driver.read_slot(s)[:1] for s in (7, 6, 5)] == [b"a", b"b", b"c"]


_CHIP = provisioned()


# -- chips of others


def trust_and_go() -> tuple[DeskChip, Atecc608]:
    """A virtual chip with what was read from a Trust&GO kit; its key cannot be had."""
    clock = Time()
    chip = Atecc608(upstream.TNG_SERIAL, clock=clock, model="ATECC608B")
    state = chip.state
    state.config[16] = 0x35 << 1
    state.config[20:52] = nerveskey.SLOT_CONFIG
    state.config[96:128] = nerveskey.KEY_CONFIG
    state.config[86:88] = b"\0\0"
    state.slots[5][:12] = upstream.TNG_MAC
    state.slots[10][:] = upstream.TNG_DEVICE
    state.slots[11][:] = upstream.TNG_SIGNER_KEY
    state.slots[12][:] = upstream.TNG_SIGNER
    chip.power_cycle()
    driver = DeskChip(EmulatedBus(chip, clock), 0x35, clock=clock, sleep=clock.sleep)
    driver.public_key = lambda slot: upstream.TNG_KEY  # type: ignore[method-assign]
    return driver, chip


def test_trust_and_go() -> None:
    driver, _ = trust_and_go()
    contents = nerveskey.read(driver)
    assert contents.kind == nerveskey.TRUST_AND_GO
    assert contents.mac == "E8EB1B202027"
    assert contents.manufacturer_serial == "0123A23F29F9366A01"
    device, signer = contents.certificates()
    assert device == upstream.TNG_CERTIFICATE
    reference.load_der_x509_certificate(device).verify_directly_issued_by(
        reference.load_der_x509_certificate(signer)
    )
    nerveskey.write_settings(driver, b"x" * 416, contents.kind)
    assert nerveskey.read_settings(driver, contents.kind) == b"x" * 416


def test_a_nerves_key_made_upstream_is_read() -> None:
    """Slots as nerves_key writes them (test/nerves_key/data_test.exs): the signer to the byte."""
    driver, chip, _ = provisioned()
    chip.state.slots[10][:] = upstream.NERVES_KEY_SLOT_10
    chip.state.slots[11][:] = upstream.NERVES_KEY_SLOT_11
    chip.state.slots[12][:] = upstream.NERVES_KEY_SLOT_12
    from thicket.trust.certificates import from_pem

    assert nerveskey.read(driver).certificates()[1:] == from_pem(
        upstream.NERVES_KEY_SIGNER_CERTIFICATE
    )


def test_chips_that_cannot_be_read() -> None:
    driver, chip, _, _ = emulated()
    with pytest.raises(ValueError, match="not provisioned: configuration open, data open"):
        nerveskey.read(driver)
    driver.lock_config(crc_number(driver.read_config()))
    with pytest.raises(ValueError, match="not provisioned: configuration locked, data open"):
        nerveskey.read(driver)
    driver.lock_data(crc_number(chip.data_zone_contents(chip.memory)))
    with pytest.raises(ValueError, match="provisioned by others"):
        nerveskey.read(driver)
    driver, chip, _ = provisioned()
    chip.state.slots[10][:] = bytes(72)
    contents = nerveskey.read(driver)
    assert contents.primary is None
    with pytest.raises(CertificateError, match="no certificate"):
        contents.certificates()
