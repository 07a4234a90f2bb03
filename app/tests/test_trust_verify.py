# SPDX-License-Identifier: Apache-2.0
"""Who is refused, with the reason for each; and that nobody else is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from typing import Any

import pytest
from fleet_for_tests import CLOCK, NOW, TestFleet, one_fleet
from hypothesis import given, settings
from hypothesis import strategies as st

from authority.signing import sign_revocations
from meshlab.chip.state import serial_for
from thicket.identity.address import identity_of_serial
from thicket.trust import certificates as x509
from thicket.trust import der, openssl, verify
from thicket.trust import fleet as fleets
from thicket.trust.certificates import Certificate, CertificateError, Profile
from thicket.trust.credentials import Credentials, FileKey, keep_renewed, make_credentials
from thicket.trust.revocations import Revocations
from thicket.trust.verify import Clock, Peer, Proven, RefusedError, check_peer, verify_signature

FLEET = one_fleet()


def credentials(
    device: FileKey, clock: Clock = CLOCK, fleet: TestFleet = FLEET, **more: Any
) -> Credentials:
    return asyncio.run(make_credentials(device, fleet.fleet, clock, **more))


DEVICE, DEVICE_KEY = FLEET.device(1)
GOOD = credentials(DEVICE)


def check(chain: tuple[bytes, ...] = GOOD.chain, **more: Any) -> Peer:
    return check_peer(chain, more.pop("fleet", FLEET.fleet), clock=more.pop("clock", CLOCK), **more)


def refused(reason: str, chain: tuple[bytes, ...] = GOOD.chain, **more: Any) -> str:
    with pytest.raises(RefusedError) as caught:
        check(chain, **more)
    assert caught.value.reason == reason, str(caught.value)
    assert verify.REASONS[reason] in str(caught.value)
    return str(caught.value)


def signed(profile: Profile, key: bytes) -> bytes:
    return profile.signed(openssl.sign(key, profile.digest()))


def leaf(change: Callable[[Profile], Profile] = lambda p: p) -> tuple[bytes, ...]:
    """A chain whose node certificate was changed before the device signed it."""
    key = openssl.generate_key()
    profile = fleets.node_profile(
        FLEET.fleet,
        Certificate(DEVICE.chain[0]),
        openssl.public_key(key),
        7,
        (NOW, NOW + timedelta(days=1)),
    )
    return (signed(change(profile), DEVICE_KEY), *DEVICE.chain)


def device_chain(change: Callable[[Profile], Profile]) -> tuple[bytes, ...]:
    """A chain whose device certificate was changed before the signer signed it."""
    serial, key = serial_for("fleet", 1), openssl.generate_key()
    profile = fleets.device_profile(
        FLEET.fleet,
        source="chip",
        identity=identity_of_serial(serial),
        serial=serial,
        public_key=openssl.public_key(key),
        signer_id=1,
        signer_key=openssl.public_key(FLEET.signer_key),
        validity=(datetime(2026, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC)),
    )
    device = signed(change(profile), FLEET.signer_key)
    node_key = openssl.generate_key()
    node = fleets.node_profile(
        FLEET.fleet,
        Certificate(signed(profile, FLEET.signer_key)),
        openssl.public_key(node_key),
        7,
        (NOW, NOW + timedelta(days=1)),
    )
    node = node._replace(issuer=Certificate(device).subject)
    return signed(node, key), device, FLEET.signer


def without(kind: str, *new: bytes) -> Callable[[Profile], Profile]:
    """Take an extension out, put others in."""
    marker = der.oid(kind)

    def change(profile: Profile) -> Profile:
        kept = tuple(e for e in profile.extensions if marker not in e[: len(marker) + 4])
        assert len(kept) < len(profile.extensions)
        return profile._replace(extensions=kept + new)

    return change


# -- who is let in


def test_a_node_with_a_chip() -> None:
    serial = serial_for("fleet", 1)
    identity = identity_of_serial(serial)
    peer = check(
        address=FLEET.fleet.address("chip", identity),
        node=f"thicket@{FLEET.fleet.address('chip', identity)}",
        chip_required=True,
    )
    assert peer == GOOD.peer
    assert peer.device == serial.hex()
    assert peer.host == f"n-{identity.hex()}.mesh"
    assert not peer.software
    assert peer.public_key == openssl.public_key(GOOD.private_key)
    assert repr(GOOD) == f"Credentials({peer.host}, {peer.device})"
    for node in (f"x@{peer.host}", f"x@n-{identity.hex()}", f"x@{peer.address.exploded}"):
        check(node=node)
    check((*GOOD.chain, FLEET.fleet.root.der))


def test_a_software_identity_is_seen_to_be_one() -> None:
    device, _ = FLEET.software()
    chain = credentials(device).chain
    peer = check(chain)
    assert (peer.software, peer.source, peer.device) == (True, "mac", "software-mac-010203040506")
    assert peer.address == IPv6Address("fd12:3456:789a:1:2:102:304:506")
    assert "software-mac" in refused(verify.SOFTWARE, chain, chip_required=True)


@settings(max_examples=30)
@given(
    identity=st.binary(min_size=6, max_size=6).filter(any),
    source=st.sampled_from(["chip", "board", "mac", "random"]),
)
def test_every_identity_gets_its_own_address_only(identity: bytes, source: str) -> None:
    serial = b"\x01\x23" + identity + b"\xee" if source == "chip" else None
    key = openssl.generate_key()
    device = FileKey(
        key,
        (FLEET.issuer.device(source, identity, serial, openssl.public_key(key)), FLEET.signer),
    )
    peer = check(credentials(device).chain)
    assert peer.address == FLEET.fleet.address(source, identity)
    assert peer.software is (source != "chip")
    other = IPv6Address(int(peer.address) ^ 1)
    refused(verify.NOT_ITS_ADDRESS, credentials(device).chain, address=other)


# -- who is not


def test_malformed() -> None:
    refused(verify.MALFORMED, (b"junk", *GOOD.chain[1:]))
    for length in (0, 1, 2, 5):
        refused(verify.BAD_CHAIN, (GOOD.chain * 2)[:length])


@settings(max_examples=200)
@given(which=st.integers(0, 2), at=st.integers(0, 5000), bit=st.integers(0, 7))
def test_no_bit_of_the_chain_can_be_flipped(which: int, at: int, bit: int) -> None:
    damaged = [bytearray(c) for c in GOOD.chain]
    damaged[which][at % len(damaged[which])] ^= 1 << bit
    with pytest.raises(RefusedError):
        check(tuple(map(bytes, damaged)))


def test_another_fleet() -> None:
    other = one_fleet("other")
    device, _ = other.device(1)
    text = refused(verify.OTHER_FLEET, credentials(device, fleet=other).chain)
    assert "'test'" in text
    refused(verify.OTHER_FLEET, fleet=other.fleet)
    # the same name and prefix, another key
    refused(verify.OTHER_FLEET, fleet=TestFleet("test").fleet)


def test_chains_put_together_from_others() -> None:
    second = credentials(FLEET.device(2)[0])
    refused(verify.BAD_CHAIN, (GOOD.chain[0], *second.chain[1:]))
    refused(verify.BAD_CHAIN, (GOOD.chain[1], GOOD.chain[1], GOOD.chain[2]))
    refused(verify.OTHER_FLEET, (GOOD.chain[0], GOOD.chain[2], GOOD.chain[1], GOOD.chain[2]))
    refused(verify.OTHER_FLEET, (GOOD.chain[0], GOOD.chain[1], FLEET.fleet.root.der))


def test_forged_signatures() -> None:
    key = openssl.generate_key()
    profile = fleets.node_profile(
        FLEET.fleet,
        Certificate(DEVICE.chain[0]),
        openssl.public_key(key),
        7,
        (NOW, NOW + timedelta(days=1)),
    )
    assert "node" in refused(verify.BAD_SIGNATURE, (signed(profile, key), *DEVICE.chain))
    device = Certificate(DEVICE.chain[0])
    other = FLEET.issuer.device(
        "chip", identity_of_serial(serial_for("fleet", 2)), serial_for("fleet", 2), bytes(64)
    )
    swapped = other[: -len(device.signature)] + device.signature
    with pytest.raises(RefusedError):
        check((GOOD.chain[0], swapped, FLEET.signer))


def test_a_device_cannot_name_another() -> None:
    """What root on one device can make its chip sign is no good for any other name or address."""
    san = x509.ALTERNATIVE_NAMES
    own = Certificate(DEVICE.chain[0])
    host, address = own.permitted_dns[0], GOOD.peer.address
    other = IPv6Address("fd12:3456:789a:1::42")
    for names in (
        x509.alternative_names((host,), (other,)),
        x509.alternative_names(("n-000000000042.mesh",), (address,)),
        x509.alternative_names((host,), (address, other)),
        x509.alternative_names((host, "evil.mesh"), (address,)),
        x509.alternative_names((host,), ()),
    ):
        refused(verify.NOT_ITS_NAME, leaf(without(san, names)))
    refused(verify.NOT_ITS_NAME, leaf(lambda p: p._replace(subject=x509.common_name("n-42.mesh"))))


@pytest.mark.parametrize(
    "change",
    [
        without(x509.BASIC_CONSTRAINTS, x509.basic_constraints(True, 0)),
        without(x509.KEY_USAGE, x509.key_usage(x509.KEY_CERT_SIGN)),
        without(x509.EXTENDED_KEY_USAGE, x509.extended_key_usage(x509.CLIENT_AUTH)),
        without(x509.AUTHORITY_KEY, x509.authority_key(bytes(20))),
    ],
)
def test_node_certificates_that_are_something_else(change: Callable[[Profile], Profile]) -> None:
    refused(verify.BAD_CHAIN, leaf(change))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without(x509.BASIC_CONSTRAINTS, x509.basic_constraints(False)), verify.BAD_CHAIN),
        (without(x509.BASIC_CONSTRAINTS, x509.basic_constraints(True, 3)), verify.BAD_CHAIN),
        (without(x509.KEY_USAGE, x509.key_usage(x509.DIGITAL_SIGNATURE)), verify.BAD_CHAIN),
        (
            without(x509.NAME_CONSTRAINTS, x509.name_constraints(("n-6f44e3c6b802.mesh",), ())),
            verify.NOT_ITS_NAME,
        ),
        (
            without(
                x509.NAME_CONSTRAINTS,
                x509.name_constraints((Certificate(DEVICE.chain[0]).permitted_dns[0], "mesh"), ()),
            ),
            verify.BAD_CHAIN,
        ),
        (without(x509.NAME_CONSTRAINTS), verify.BAD_CHAIN),
        (lambda p: p._replace(subject=x509.common_name("01" * 9)), verify.NOT_ITS_NAME),
        (lambda p: p._replace(subject=x509.common_name("somebody")), verify.NOT_ITS_NAME),
        (
            lambda p: p._replace(subject=x509.common_name("software-mac-010203040506")),
            verify.NOT_ITS_NAME,
        ),
    ],
)
def test_device_certificates_that_are_something_else(
    change: Callable[[Profile], Profile], reason: str
) -> None:
    check(device_chain(lambda p: p))
    refused(reason, device_chain(change))


def test_addresses_and_names_of_others() -> None:
    text = refused(verify.NOT_ITS_ADDRESS, address=IPv6Address("fd12:3456:789a:1::42"))
    assert "speaks from fd12:3456:789a:1::42" in text
    for node in ("x@n-42", "x@fd12:3456:789a:1::42", "nohost", "x@", "x@localhost"):
        refused(verify.NOT_ITS_ADDRESS, node=node)


def test_time() -> None:
    day = timedelta(days=1)
    late = Clock(CLOCK.floor, NOW + 3 * day)
    refused(verify.EXPIRED, clock=late)
    # a clock that nobody has set is not believed, the floor is
    check(clock=Clock(CLOCK.floor))
    check(clock=Clock(datetime(1970, 1, 1, tzinfo=UTC)))
    assert "at least" in refused(verify.EXPIRED, clock=Clock(NOW + 3 * day))
    # what begins in the future is no reason
    check(clock=Clock(CLOCK.floor - 900 * day, CLOCK.floor - 900 * day))
    # a few minutes between two clocks are none either
    end = Certificate(GOOD.chain[0]).not_after
    check(clock=Clock(CLOCK.floor, end + verify.SKEW))
    refused(verify.EXPIRED, clock=Clock(CLOCK.floor, end + verify.SKEW + timedelta(seconds=1)))
    # devices and signers end as well
    device, _ = FLEET.device(3)
    assert "signer" in refused(verify.EXPIRED, clock=Clock(NOW + 4000 * day))
    unset = credentials(device, Clock(CLOCK.floor))
    assert unset.renew_at is None
    assert Certificate(unset.chain[0]).not_after == Certificate(device.chain[0]).not_after
    check(unset.chain, clock=late)


def test_dates_signed_by_the_authority_raise_the_floor() -> None:
    clock = Clock(datetime(1970, 1, 1, tzinfo=UTC)).raised(*GOOD.peer.signed)
    assert clock.floor == datetime(2026, 1, 1, tzinfo=UTC)
    assert clock.raised(datetime(1980, 1, 1, tzinfo=UTC)) == clock


def test_revoked() -> None:
    assert serial_for("fleet", 1).hex() in refused(verify.REVOKED, revoked=[GOOD.peer.device])
    refused(verify.REVOKED, revoked=["Signer 0001"])
    check(revoked=[serial_for("fleet", 2).hex(), "Signer 0002"])


# -- the list of revocations


def packed(names: frozenset[str], fleet: TestFleet = FLEET, number: int = 3) -> bytes:
    return sign_revocations(
        Revocations(number, NOW, names),
        fleet.fleet.identifier,
        lambda digest: openssl.sign(fleet.root_key, digest),
    )


@settings(max_examples=25)
@given(st.frozensets(st.text(max_size=30), max_size=20), st.integers(0, 2**40))
def test_revocations_round_trip(names: frozenset[str], number: int) -> None:
    data = packed(names, number=number)
    assert Revocations.unpack(data, FLEET.fleet) == Revocations(number, NOW, names)


def test_revocations_of_others() -> None:
    with pytest.raises(RefusedError) as caught:
        Revocations.unpack(packed(frozenset(), one_fleet("other")), FLEET.fleet)
    assert caught.value.reason == verify.BAD_SIGNATURE
    foreign = sign_revocations(
        Revocations(1, NOW, frozenset()),
        bytes(20),
        lambda digest: openssl.sign(FLEET.root_key, digest),
    )
    with pytest.raises(RefusedError) as caught:
        Revocations.unpack(foreign, FLEET.fleet)
    assert caught.value.reason == verify.OTHER_FLEET
    for junk in (b"", b"thicket revocations 1\n", bytes(300_000)):
        with pytest.raises(RefusedError):
            Revocations.unpack(junk, FLEET.fleet)


@settings(max_examples=100)
@given(at=st.integers(0, 400), bit=st.integers(0, 7))
def test_no_bit_of_the_list_can_be_flipped(at: int, bit: int) -> None:
    data = bytearray(packed(frozenset(("a", "b"))))
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(RefusedError):
        Revocations.unpack(bytes(data), FLEET.fleet)


# -- the node's own certificate


def test_lifetime_and_renewal() -> None:
    certificate = Certificate(GOOD.chain[0])
    assert certificate.not_after == NOW + timedelta(hours=24)
    assert certificate.not_before < NOW
    assert GOOD.renew_at == NOW + timedelta(hours=16)
    again = credentials(DEVICE)
    assert again.private_key != GOOD.private_key
    assert Certificate(again.chain[0]).serial != certificate.serial


async def test_certificates_are_renewed_before_they_end() -> None:
    now = [NOW]
    made: list[Credentials] = []
    trouble: list[str] = []

    class Device(FileKey):
        async def sign(self, digest: bytes) -> bytes:
            if trouble:
                raise OSError(trouble.pop())
            return await super().sign(digest)

    device = Device(DEVICE_KEY, DEVICE.chain)

    def use(new: Credentials) -> None:
        made.append(new)

    async def wait(seconds: float) -> None:
        assert seconds <= 3600
        now[0] += timedelta(hours=1)
        if now[0] == NOW + timedelta(hours=16):
            trouble.append("the chip does not answer")
        if len(made) == 4:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await keep_renewed(
            device, FLEET.fleet, lambda: Clock(CLOCK.floor, now[0]), use, wait=wait, look_again=3600
        )
    begins = [Certificate(c.chain[0]).not_after - timedelta(hours=24) for c in made]
    # the second is an hour late because the chip failed once; what there was had not ended
    assert [(b - NOW) // timedelta(hours=1) for b in begins] == [0, 17, 33, 49]


async def test_a_clock_that_is_set_later_shortens_the_certificate() -> None:
    clock = [Clock(CLOCK.floor)]
    made: list[Credentials] = []

    def use(new: Credentials) -> None:
        made.append(new)
        if len(made) == 2:
            raise asyncio.CancelledError

    async def wait(_: float) -> None:
        clock[0] = CLOCK

    with pytest.raises(asyncio.CancelledError):
        await keep_renewed(DEVICE, FLEET.fleet, lambda: clock[0], use, wait=wait)
    assert Certificate(made[0].chain[0]).not_after > NOW + timedelta(days=1000)
    assert Certificate(made[1].chain[0]).not_after == NOW + timedelta(days=1)


def test_a_node_notices_itself_that_it_would_be_refused() -> None:
    with pytest.raises(RefusedError) as caught:
        credentials(DEVICE, Clock(NOW + timedelta(days=5000)))
    assert caught.value.reason == verify.EXPIRED
    with pytest.raises(CertificateError):
        credentials(FileKey(DEVICE_KEY, (FLEET.signer, FLEET.signer)))


# -- chains that were proven before


class Counted:
    """Checks signatures, and counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, key: bytes, digest: bytes, signature: bytes) -> bool:
        self.count += 1
        return verify_signature(key, digest, signature)


def test_signatures_are_checked_once_and_everything_that_changes_each_time() -> None:
    proven, counted = Proven(), Counted()
    again: dict[str, Any] = {"proven": proven, "verify": counted}
    assert check(**again) == GOOD.peer
    assert counted.count == 3
    assert check((*GOOD.chain, FLEET.fleet.root.der), **again) == GOOD.peer
    for name in (GOOD.peer.device, GOOD.peer.signer):
        refused(verify.REVOKED, revoked=[name], **again)
    refused(verify.EXPIRED, clock=Clock(GOOD.peer.until + timedelta(days=1)), **again)
    other = IPv6Address(int(GOOD.peer.address) + 1)
    refused(verify.NOT_ITS_ADDRESS, address=other, **again)
    refused(verify.NOT_ITS_ADDRESS, node=f"thicket@{other}", **again)
    assert check(**again) == GOOD.peer
    assert counted.count == 3
    software = credentials(FLEET.software()[0]).chain
    assert check(software, **again).software
    refused(verify.SOFTWARE, software, chip_required=True, **again)
    assert len(proven) == 2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_chain_that_differs_in_one_bit_is_not_the_proven_one(data: st.DataObject) -> None:
    proven = Proven()
    check(proven=proven)
    chain = [bytearray(encoded) for encoded in GOOD.chain[:3]]
    changed = chain[data.draw(st.integers(0, 2))]
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(RefusedError):
        check(tuple(map(bytes, chain)), proven=proven)
    assert len(proven) == 1


def test_a_chain_that_is_proven_in_one_fleet_is_not_in_another() -> None:
    proven = Proven()
    check(proven=proven)
    refused(verify.OTHER_FLEET, fleet=one_fleet("other").fleet, proven=proven)
    # the same chain in other pieces
    joined = (GOOD.chain[0] + GOOD.chain[1], *GOOD.chain[1:])
    refused(verify.MALFORMED, joined, proven=proven)


def test_the_chains_used_longest_ago_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Proven, "LIMIT", 2)
    proven, counted = Proven(), Counted()
    chains = [leaf() for _ in range(3)]
    for chain in (chains[0], chains[1], chains[0], chains[2], chains[0]):
        check(chain, proven=proven, verify=counted)
    assert counted.count == 9
    check(chains[1], proven=proven, verify=counted)
    assert counted.count == 12
    assert len(proven) == 2
