# SPDX-License-Identifier: Apache-2.0
"""Who may sign updates, and who may not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from bundles_for_tests import UpdateKey, update_key
from fleet_for_tests import CLOCK, NOW, one_fleet

from thicket.trust import certificates as x509
from thicket.trust import cms, openssl
from thicket.trust.certificates import Certificate
from thicket.trust.cms import Message
from thicket.trust.credentials import make_credentials
from thicket.trust.update_signer import (
    ADVICE,
    CHANGED,
    EXPIRED,
    FORGED,
    NOT_A_SIGNER,
    OTHER_FLEET,
    REASONS,
    REVOKED,
    SignerRefusedError,
    check_signature,
    is_signer,
    signer_name,
    signer_profile,
)
from thicket.trust.verify import BAD_CHAIN, RefusedError, check_peer

TEXT = b"[update]\n"


def message(key: UpdateKey | None = None, when: datetime = NOW) -> Message:
    return cms.read((key or update_key()).message(TEXT, when))


def refused(one: Message, revoked: frozenset[str] = frozenset()) -> str:
    with pytest.raises(SignerRefusedError) as caught:
        check_signature(one, one_fleet().fleet, revoked=revoked)
    error = caught.value
    assert error.code == error.reason
    assert REASONS[error.reason] in str(error)
    assert ADVICE[error.reason] in str(error)
    return error.reason


def by(key: bytes, certificate: bytes) -> Message:
    """A message that somebody else signs, whatever the certificate says."""
    return cms.read(cms.sign(TEXT, certificate, NOW, lambda digest: openssl.sign(key, digest)))


def test_a_signer_of_the_fleet_counts() -> None:
    assert check_signature(message(), one_fleet().fleet) == "Update signer release"


def test_every_reason_has_words_and_advice() -> None:
    assert set(REASONS) == set(ADVICE)


def test_another_fleets_signer() -> None:
    assert refused(message(update_key(one_fleet("other")))) == OTHER_FLEET


def test_a_forged_certificate() -> None:
    """Names and identifiers of this fleet's root, and another key has signed it."""
    key = openssl.generate_key()
    validity = (datetime(2026, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC))
    profile = signer_profile(one_fleet().fleet, "release", openssl.public_key(key), validity)
    forged = profile.signed(openssl.sign(key, profile.digest()))
    assert refused(by(key, forged)) == FORGED


def test_a_signature_by_another_key() -> None:
    assert refused(by(openssl.generate_key(), update_key().certificate)) == FORGED


def test_content_that_was_changed() -> None:
    assert refused(message()._replace(content=b"[update]\n#")) == CHANGED


def test_another_time_than_the_one_that_was_signed() -> None:
    assert refused(message()._replace(signed_at=NOW + timedelta(days=1))) == FORGED


@pytest.mark.parametrize("days", [-1, 32])
def test_a_certificate_that_was_not_valid(days: int) -> None:
    begin = datetime(2026, 11, 1, tzinfo=UTC)
    key = UpdateKey(one_fleet(), "brief", (begin, begin + timedelta(days=31)))
    assert refused(message(key, begin + timedelta(days=days))) == EXPIRED
    check_signature(message(key, begin), one_fleet().fleet)
    check_signature(message(key, begin + timedelta(days=31)), one_fleet().fleet)


def test_a_revoked_signer() -> None:
    name = signer_name("release")
    assert refused(message(), revoked=frozenset((name, "another"))) == REVOKED
    check_signature(message(), one_fleet().fleet, revoked=frozenset(("release",)))


async def test_no_other_certificate_of_the_fleet_signs_updates() -> None:
    """The fleet's root, its signers, devices and nodes: each is good, and for something else."""
    fleet = one_fleet()
    device, device_key = fleet.device()
    node = await make_credentials(device, fleet.fleet, CLOCK)
    for key, certificate in (
        (device_key, device.chain[0]),
        (fleet.signer_key, fleet.signer),
        (fleet.root_key, fleet.fleet.root.der),
        (node.private_key, node.chain[0]),
    ):
        assert not is_signer(Certificate(certificate))
        assert refused(by(key, certificate)) == NOT_A_SIGNER


@pytest.mark.parametrize(
    "extensions",
    [
        (True, (0,), (x509.CODE_SIGNING,)),
        (False, (0,), (x509.CODE_SIGNING, x509.CLIENT_AUTH)),
        (False, (0, x509.KEY_CERT_SIGN), (x509.CODE_SIGNING,)),
        (False, (), (x509.CODE_SIGNING,)),
        (False, (0,), (x509.SERVER_AUTH,)),
    ],
)
def test_a_certificate_for_anything_more_or_less(
    extensions: tuple[bool, tuple[int, ...], tuple[str, ...]],
) -> None:
    """Even where the root has signed it."""
    ca, usage, purposes = extensions
    fleet, key = one_fleet(), openssl.generate_key()
    validity = (datetime(2026, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC))
    good = signer_profile(fleet.fleet, "release", openssl.public_key(key), validity)
    profile = good._replace(
        extensions=(
            x509.basic_constraints(ca),
            x509.key_usage(*usage),
            x509.extended_key_usage(*purposes),
            x509.authority_key(fleet.fleet.identifier),
        )
    )
    certificate = profile.signed(openssl.sign(fleet.root_key, profile.digest()))
    assert refused(by(key, certificate)) == NOT_A_SIGNER


def test_another_name_below_the_root() -> None:
    fleet, key = one_fleet(), openssl.generate_key()
    validity = (datetime(2026, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC))
    good = signer_profile(fleet.fleet, "release", openssl.public_key(key), validity)
    profile = good._replace(subject=x509.common_name("Signer 0001"))
    certificate = profile.signed(openssl.sign(fleet.root_key, profile.digest()))
    assert refused(by(key, certificate)) == NOT_A_SIGNER


async def test_an_update_signer_is_no_peer_in_any_place_of_a_chain() -> None:
    fleet = one_fleet()
    device, _ = fleet.device()
    good = list((await make_credentials(device, fleet.fleet, CLOCK)).chain)
    assert check_peer(good, fleet.fleet, clock=CLOCK).address in fleet.fleet.network
    for place in range(3):
        chain = list(good)
        chain[place] = update_key().certificate
        with pytest.raises(RefusedError) as caught:
            check_peer(chain, fleet.fleet, clock=CLOCK)
        assert caught.value.reason == BAD_CHAIN


async def test_what_an_update_signer_signs_is_no_device() -> None:
    """Its key can sign anything; nobody takes a chain through its certificate."""
    fleet = one_fleet()
    key = openssl.generate_key()
    validity = (datetime(2026, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC))
    own = signer_profile(fleet.fleet, "rogue", openssl.public_key(key), validity)
    certificate = own.signed(openssl.sign(fleet.root_key, own.digest()))
    device, device_key = fleet.device()
    read = Certificate(device.chain[0])
    issued = x509.Profile(
        read.serial,
        own.subject,
        read.subject,
        *validity,
        openssl.public_key(device_key),
        (
            x509.basic_constraints(True, 0),
            x509.key_usage(x509.DIGITAL_SIGNATURE, x509.KEY_CERT_SIGN),
            x509.authority_key(x509.key_identifier(openssl.public_key(key))),
            x509.name_constraints(read.permitted_dns, ()),
        ),
    )
    chain = issued.signed(openssl.sign(key, issued.digest())), certificate
    node = await make_credentials(device, fleet.fleet, CLOCK)
    with pytest.raises(RefusedError) as caught:
        check_peer([node.chain[0], *chain], fleet.fleet, clock=CLOCK)
    assert caught.value.reason == BAD_CHAIN
