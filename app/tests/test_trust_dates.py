# SPDX-License-Identifier: Apache-2.0
"""A fleet lives through every date at which somebody's count of time ends.

2032: the five bits of a compressed certificate's year. 2036: NTP's first era. 2038: signed seconds
in 32 bits. 2050: the two digits of a UTCTime. 2106: unsigned seconds in 32 bits.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from emulated_bus import emulated
from fleet_for_tests import PREFIX, one_fleet
from hypothesis import given
from hypothesis import strategies as st

from authority.authority import Authority
from authority.issuer import FleetIssuer, years_from
from authority.nerveskey import Otp
from authority.provisioning import Provisioning, ProvisioningError
from thicket.identity.address import identity_of_serial
from thicket.identity.aio import AsyncAtecc
from thicket.trust import certificates as x509
from thicket.trust import clock as clocks
from thicket.trust import compressed, der, openssl
from thicket.trust import fleet as fleets
from thicket.trust.certificates import Certificate
from thicket.trust.change import SignedChange
from thicket.trust.chip_slots import PRIMARY, CertificateSet, read_set
from thicket.trust.compressed import NO_END, Compressed, decode_dates, encode_dates
from thicket.trust.credentials import ChipKey, make_credentials
from thicket.trust.fleet import Fleet
from thicket.trust.revocations import Revocations
from thicket.trust.signed_beacon import SignedBeacons, next_start
from thicket.trust.verify import EXPIRED, Clock, RefusedError, Rules, check_peer

DATES = [
    datetime(2026, 11, 28, 12),
    datetime(2028, 2, 29, 23, 59, 59),
    datetime(2031, 12, 31, 23, 59, 59),
    datetime(2032, 1, 1),
    datetime(2036, 2, 7, 6, 28, 15),
    datetime(2036, 2, 7, 6, 28, 16),
    datetime(2038, 1, 19, 3, 14, 7),
    datetime(2038, 1, 19, 3, 14, 8),
    datetime(2049, 12, 31, 23, 59, 59),
    datetime(2050, 1, 1),
    datetime(2095, 12, 31, 23, 59, 59),
    datetime(2096, 2, 29),
    datetime(2106, 2, 7, 6, 28, 15),
    datetime(2106, 2, 7, 6, 28, 16),
    datetime(2127, 12, 31, 23, 59, 59),
]

FLOOR = datetime(2026, 1, 1, tzinfo=UTC)


def quiet(_: str) -> None:
    pass


def openssl_agrees(folder: Path, chain: tuple[bytes, ...], fleet: Fleet, when: datetime) -> None:
    """Let OpenSSL's own program check the chain at this time."""
    leaf, device, signer = chain[:3]
    names = {"root": [fleet.root.der], "between": [device, signer], "leaf": [leaf]}
    for name, certificates in names.items():
        (folder / name).write_text("".join(map(x509.pem, certificates)), encoding="ascii")
    done = subprocess.run(
        [
            "openssl", "verify", "-attime", f"{int(when.timestamp())}", "-x509_strict",
            "-CAfile", folder / "root", "-untrusted", folder / "between", folder / "leaf",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("date", DATES, ids=lambda date: f"{date:%Y-%m-%d}")
def test_a_fleet_begins_and_enrols_a_chip_whose_node_is_believed(
    tmp_path: Path, date: datetime
) -> None:
    now = date.replace(tzinfo=UTC)
    ca = Authority(tmp_path / "fleet", lambda _: "", clock=lambda: now)
    fleet = ca.init("acme", PREFIX, lab=True)
    driver, chip, _, _ = emulated()
    assert ca.enroll_chip(driver, write=True, show=quiet) == chip.serial.hex()
    known = Clock(FLOOR, now)

    async def node() -> Any:
        key = await ChipKey.load(AsyncAtecc(driver), fleet)
        return await make_credentials(key, fleet, known)

    credentials = asyncio.run(node())
    peer = check_peer(credentials.chain, fleet, clock=known)
    assert peer.device == chip.serial.hex()
    # and without a clock, which dates signed by the authority replace
    check_peer(credentials.chain, fleet, clock=Clock(FLOOR).raised(*peer.signed))
    openssl_agrees(tmp_path, credentials.chain, fleet, now)
    device = Certificate(credentials.chain[1])
    assert device.not_before <= now
    # 31 years, as ever; the day after that it has ended
    assert device.not_after.year == device.not_before.year + 31
    late = device.not_after + timedelta(days=1)
    with pytest.raises(Exception, match="expired"):
        check_peer(credentials.chain, fleet, clock=Clock(FLOOR, late))

    # A beacon carries the certificates in the chip's form, and the time.
    made, heard = (SignedBeacons(fleet, 7, lambda: Rules(known)) for _ in range(2))
    made.use(credentials)
    assert heard.read(made.payload(0.0), None, 0.0) == peer.address

    # What the root signs besides has its date.
    packed = ca.revocations.revoke([chip.serial.hex()])
    assert Revocations.unpack(packed, fleet).issued == now.replace(microsecond=0)
    offer = SignedChange.read(ca.network.offer_passphrase("another passphrase"), fleet)
    assert offer.change.issued == now.replace(microsecond=0)
    assert next_start(str(tmp_path / "start"), known) >= int(now.timestamp())


@pytest.mark.parametrize("date", DATES, ids=lambda date: f"{date:%Y-%m-%d}")
def test_a_fleet_of_today_enrols_then(tmp_path: Path, date: datetime) -> None:
    """With a new signer, as the first one lasts ten years."""
    now = [DATES[0].replace(tzinfo=UTC)]
    ca = Authority(tmp_path / "fleet", lambda _: "", clock=lambda: now[0])
    fleet = ca.init("acme", PREFIX, lab=True)
    now[0] = date.replace(tzinfo=UTC)
    ca.signer()
    key = openssl.public_key(openssl.generate_key())
    device, signer = map(Certificate, ca.enroll_software("mac", bytes(6), key))
    assert device.not_before <= now[0] < device.not_after
    assert signer.not_after.year == signer.not_before.year + 10
    # what a chip would keep gives the same certificates back
    assert fleets.rebuild_signer(
        fleet, fleets.compress_signer(signer.der, 2), signer.public_key
    ) == (signer.der)
    again = fleets.rebuild_device_of(
        fleet, fleets.compress_device(device.der, 2), source="mac", identity=bytes(6),
        serial=None, public_key=key, signer_key=signer.public_key,
    )  # fmt: skip
    assert again == device.der


@pytest.mark.parametrize("date", DATES, ids=lambda date: f"{date:%Y-%m-%d}")
def test_the_clock_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, date: datetime) -> None:
    now = date.replace(tzinfo=UTC)
    image = tmp_path / clocks.IMAGE.lstrip("/")
    image.parent.mkdir(parents=True)
    image.touch()
    os.utime(image, (now.timestamp(), now.timestamp()))
    if image.stat().st_mtime != now.timestamp():
        pytest.skip("this disk has no such times")
    monkeypatch.setattr(clocks, "synchronised", lambda _root: False)
    assert clocks.SystemClock(str(tmp_path)).read().floor == now


# -- the formats


def test_times_in_certificates_change_their_form_in_2050() -> None:
    last, first = datetime(2049, 12, 31, 23, 59, 59), datetime(2050, 1, 1)
    assert der.time(last) == b"\x17\x0d491231235959Z"
    assert der.time(first) == b"\x18\x0f20500101000000Z"
    for when in (*DATES, last, first, datetime(1950, 1, 1), datetime(9999, 12, 31, 23, 59, 59)):
        encoded = der.time(when)
        assert der.decode_time(encoded[0], encoded[2:]) == when.replace(tzinfo=UTC)


def library() -> ctypes.CDLL:
    """Microchip's own library, which defines the format."""
    cryptoauthlib = pytest.importorskip("cryptoauthlib", reason="no wheel for this Python")
    return ctypes.CDLL(str(Path(cryptoauthlib.__file__).with_name("libcryptoauth.so")))


SERIAL = bytes.fromhex("0123010203040506ee")
_DEVICE_SERIAL_HASH = 15


@given(
    begin=st.datetimes(datetime(2000, 1, 1), datetime(2127, 12, 31)),
    years=st.integers(0, 127),
)
def test_dates_are_those_of_the_vendors_library(begin: datetime, years: int) -> None:
    begin = begin.replace(minute=0, second=0, microsecond=0)
    if (begin.month, begin.day) == (2, 29):
        begin = begin.replace(day=28)
    end = begin.replace(year=begin.year + years) if years else NO_END.replace(tzinfo=None)
    validity = (begin.replace(tzinfo=UTC), end.replace(tzinfo=UTC))
    dates = encode_dates(*validity)
    assert decode_dates(dates) == validity
    ours = Compressed(bytes(64), dates, 0, 0, 0, compressed.FROM_SERIAL)
    packed = ours.pack()
    assert Compressed.unpack(packed) == ours
    # version 1 of the format only where it is needed, so that others read all the rest
    assert packed[70] & 0x0F == (begin.year > 2031 or years > 31)
    theirs = (ctypes.c_uint8 * 72)()
    theirs[70] = packed[70]
    when = (ctypes.c_int * 6)(0, 0, begin.hour, begin.day, begin.month - 1, begin.year - 1900)
    lib = library()
    assert lib.atcacert_date_enc_compcert_ext(when, ctypes.c_uint8(years), theirs) == 0
    assert bytes(theirs)[64:67] == packed[64:67]
    assert bytes(theirs)[70:] == packed[70:]
    number = (ctypes.c_uint8 * 16)()
    assert lib.atcacert_generate_sn(_DEVICE_SERIAL_HASH, SERIAL, None, theirs, 16, number) == 0
    digest = int.from_bytes(bytes(number), "big")
    # the library's raw form; ours has 01 as its two highest bits
    assert ours.serial(SERIAL, bytes(64)) == digest & (1 << 126) - 1 | 1 << 126


def test_a_format_that_is_not_known_is_refused() -> None:
    good = Compressed(b"s" * 64, bytes.fromhex("00859f40"), 1, 2, 0, 11).pack()
    assert good[70:].hex() == "b140"
    Compressed.unpack(good)
    for end in ("b040", "b141", "b14f", "b240", "bf00", "b001"):
        with pytest.raises(x509.CertificateError, match="unknown format"):
            Compressed.unpack(good[:70] + bytes.fromhex(end))


# -- nothing for ever before all is known


class LateIssuer(FleetIssuer):
    """An issuer that fails when it has to give certificates."""

    def certificates(self, serial: bytes, public_key: bytes) -> CertificateSet:
        raise ValueError("2128 cannot be kept")


class WrongIssuer(FleetIssuer):
    """An issuer whose certificates are not for the chip that they are for."""

    def certificates(self, serial: bytes, public_key: bytes) -> CertificateSet:
        return super().certificates(SERIAL, public_key)


@pytest.mark.parametrize("kind", [LateIssuer, WrongIssuer])
def test_certificates_that_cannot_be_made_leave_a_blank_chip_blank(
    tmp_path: Path, kind: type[FleetIssuer]
) -> None:
    ca = Authority(tmp_path / "fleet", lambda _: "")
    ca.init("acme", PREFIX, lab=True)
    good = ca.issuer()
    now = datetime.now(UTC)
    issuer = kind(ca.fleet, 1, good.certificate, good.key, years_from(now, 31))
    driver, chip, _, _ = emulated()
    before = chip.memory
    plan = Provisioning(driver, Otp("board", "1"), issuer, show=quiet)
    with pytest.raises(ProvisioningError, match="nothing was written"):
        plan.run()
    assert chip.memory == before
    assert chip.memory.config[86:88] == b"\x55\x55", "nothing is locked"
    # The same chip is enrolled afterwards.
    assert ca.enroll_chip(driver, write=True, show=quiet) == chip.serial.hex()
    assert read_set(driver, PRIMARY) is not None
    assert identity_of_serial(chip.serial)


@pytest.mark.parametrize(
    "now", [datetime.min, datetime(1970, 1, 1), datetime(9999, 12, 31, 23, 59), datetime.max]
)
def test_a_clock_at_the_end_of_the_calendar_costs_no_credentials(now: datetime) -> None:
    """The certificates have no end, so that they are good until then."""
    fleet = one_fleet()
    clock = Clock(datetime(2026, 1, 1, tzinfo=UTC), now.replace(tzinfo=UTC))
    try:
        made = asyncio.run(make_credentials(fleet.device(1)[0], fleet.fleet, clock))
    except RefusedError as error:
        assert now.year == 9999, error
        assert error.reason == EXPIRED
    else:
        assert made.renew_at is not None
        assert made.renew_at > clock.floor


@pytest.mark.parametrize("seconds", [-(1 << 40), -1, 0, 1 << 40, 1 << 55])
def test_an_image_of_any_time_tells_a_time(
    seconds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "stat", lambda _: SimpleNamespace(st_mtime=float(seconds)))
    assert clocks.SystemClock(str(tmp_path)).read().floor >= datetime(2024, 1, 1, tzinfo=UTC)
