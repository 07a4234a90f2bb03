# SPDX-License-Identifier: Apache-2.0
"""The signed beacon: who is believed, what is dropped and why, and what a flood costs."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable, Collection, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from fleet_for_tests import CLOCK, NOW, PREFIX, TestFleet, one_fleet
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlab.chip.state import serial_for
from thicket.discovery.beacon import (
    MAX_PAYLOAD,
    PORT,
    REASONS,
    MalformedError,
    PlainBeacons,
    encode,
    in_use,
)
from thicket.discovery.section import DiscoverySection
from thicket.discovery.service import Discovery
from thicket.identity.address import SOURCES, identity_of_serial
from thicket.trust import compressed, openssl, signed_beacon, verify
from thicket.trust import fleet as fleets
from thicket.trust.certificates import Certificate, CertificateError
from thicket.trust.credentials import Credentials, make_credentials
from thicket.trust.signed_beacon import (
    SIZE,
    Claim,
    OwnBeacons,
    SignedBeacons,
    claimed,
    is_replay,
    is_untimely,
    next_start,
    pack_chain,
    refusal,
    unpack_chain,
)
from thicket.trust.verify import Clock, Rules

FLEET = one_fleet()
LINK = IPv6Address("fe80::1")
NO_CLOCK = Clock(datetime(2026, 1, 1, tzinfo=UTC))


class Generous(SignedBeacons):
    """Does without the budgets of unknown senders."""

    SIGNATURES = STRANGERS = SIGNERS = (1e9, 1e9)


def finished(making: Coroutine[Any, Any, Credentials]) -> Credentials:
    """What a coroutine returns that waits for nothing, whether a loop runs or not."""
    try:
        making.send(None)
    except StopIteration as end:
        made: Credentials = end.value
        return made
    raise AssertionError("it waits")


@cache
def device(index: int, fleet: TestFleet = FLEET) -> Any:
    return fleet.device(index)[0]


@cache
def credentials(index: int = 1, clock: Clock = CLOCK, fleet: TestFleet = FLEET) -> Credentials:
    key = FLEET.software()[0] if index == 0 else device(index, fleet)
    return finished(make_credentials(key, fleet.fleet, clock))


def node(
    index: int | None = None,
    start: int = 7,
    *,
    kind: type[SignedBeacons] = SignedBeacons,
    clock: Callable[[], Clock] = lambda: CLOCK,
    revoked: Callable[[], Collection[str]] = frozenset,
    list_number: Callable[[], int] = int,
    chip_required: Callable[[], bool] = bool,
    **more: Any,
) -> SignedBeacons:
    """A node of the fleet: ``index`` 0 is one without chip, None only listens."""

    def rules() -> Rules:
        return Rules(clock(), revoked(), list_number(), chip_required())

    made = kind(FLEET.fleet, start, rules, **more)
    if index is not None:
        made.use(credentials(index))
    return made


def address(index: int) -> IPv6Address:
    return credentials(index).peer.address


def refused(
    by: SignedBeacons, payload: bytes, now: float = 0.0, source: IPv6Address | None = LINK
) -> str:
    with pytest.raises(MalformedError) as caught:
        by.read(payload, source, now)
    assert caught.value.reason in REASONS
    return caught.value.reason


# -- the format


def test_it_fits_into_one_frame_and_is_believed() -> None:
    sender, receiver = node(1), node(2)
    payload = sender.payload(0.0)
    assert len(payload) == SIZE < 600
    assert len(payload) <= MAX_PAYLOAD
    assert receiver.read(payload, LINK, 0.0) == address(1)
    assert sender.claims(payload)
    assert not sender.claims(encode(address(1)))


def test_every_reason_of_a_refusal_is_counted() -> None:
    # Nobody sends a beacon with the certificate of an operator's kind alone.
    assert set(verify.REASONS) - {verify.NOT_AN_OPERATOR} <= set(REASONS)


def test_certificates_are_rebuilt_to_the_byte() -> None:
    for index in (0, 1, 2):
        chain = credentials(index).chain
        assert unpack_chain(pack_chain(chain, FLEET.fleet), FLEET.fleet) == chain


def moments(hours: bool) -> st.SearchStrategy[datetime]:
    begin, end = datetime(2000, 1, 1), datetime(2031, 12, 31, 23)
    return st.datetimes(begin, end).map(
        lambda when: when.replace(
            microsecond=0, tzinfo=UTC, **({"minute": 0, "second": 0} if hours else {})
        )
    )


def years_later(begin: datetime, years: int) -> datetime:
    day = min(begin.day, 28) if begin.month == 2 else begin.day
    return begin.replace(year=begin.year + years, day=day) if years else compressed.NO_END


RAW = st.binary(min_size=64, max_size=64)


@given(
    st.tuples(st.sampled_from(SOURCES), st.binary(min_size=9, max_size=9)),
    st.tuples(RAW, RAW, RAW, RAW, RAW, RAW),
    st.tuples(moments(True), st.integers(0, 31), moments(True), st.integers(0, 31)),
    st.tuples(moments(False), st.integers(0, 40 * 365 * 86400) | st.none()),
    st.tuples(st.integers(0, 0xFFFF), st.integers(0, 2**126 - 1)),
)
def test_any_chain_of_a_fleet_is_rebuilt_to_the_byte(
    who: tuple[str, bytes],
    raw: tuple[bytes, ...],
    dates: tuple[datetime, int, datetime, int],
    leaf: tuple[datetime, int | None],
    numbers: tuple[int, int],
) -> None:
    (source, number), (signer_id, serial) = who, numbers
    fleet = FLEET.fleet
    chip = source == "chip"
    identity = number[2:8]
    if identity == bytes(6) or number == b"\xff" * 9:
        return
    keys, signatures = raw[:3], raw[3:]
    starts = [d.replace(day=min(d.day, 28)) for d in (dates[0], dates[2])]
    ends = [years_later(d, years) for d, years in zip(starts, dates[1::2], strict=True)]
    signer = fleets.signer_profile(fleet, signer_id, keys[0], (starts[0], ends[0]))
    made = fleets.device_profile(
        fleet,
        source=source,
        identity=identity,
        serial=number if chip else None,
        public_key=keys[1],
        signer_id=signer_id,
        signer_key=keys[0],
        validity=(starts[1], ends[1]),
    ).signed(signatures[1])
    end = compressed.NO_END if leaf[1] is None else leaf[0] + timedelta(seconds=leaf[1])
    chain = (
        fleets.node_profile(fleet, Certificate(made), keys[2], serial, (leaf[0], end)).signed(
            signatures[2]
        ),
        made,
        signer.signed(signatures[0]),
    )
    packed = pack_chain(chain, fleet)
    assert len(packed) == signed_beacon.CHAIN_SIZE
    assert unpack_chain(packed, fleet) == chain


def test_a_chain_that_does_not_fit_is_told() -> None:
    chain = credentials(1).chain
    with pytest.raises(CertificateError, match="cannot be rebuilt"):
        pack_chain((chain[0], credentials(2).chain[1], chain[2]), FLEET.fleet)
    root = FLEET.fleet.root.der
    with pytest.raises(CertificateError, match="do not fit"):
        pack_chain((root, root, root), FLEET.fleet)


@pytest.mark.parametrize("size", [0, 1, 4, 12, 30, 466, SIZE - 1, SIZE + 1])
def test_another_length(size: int) -> None:
    payload = (node(1).payload(0.0) + b"x")[:size]
    assert refused(node(2), payload) == "length"


@given(st.binary(min_size=SIZE, max_size=SIZE), st.sampled_from((0, 4, 12, 30, 184, 330, 466)))
@settings(max_examples=300)
def test_any_bytes_behind_a_good_beginning_are_dropped(noise: bytes, kept: int) -> None:
    payload = node(1).payload(0.0)[:kept] + noise[kept:]
    assert refused(node(kind=Generous), payload)


@pytest.mark.parametrize("known", [False, True])
def test_every_flipped_bit_is_refused(known: bool) -> None:
    receiver, sender = node(2, kind=Generous), node(1)
    if known:
        receiver.read(sender.payload(0.0), LINK, 0.0)
    payload = sender.payload(0.0)
    reasons = set()
    for bit in range(8 * SIZE):
        changed = bytearray(payload)
        changed[bit // 8] ^= 1 << bit % 8
        # slowly: a sender's own budget allows no more
        reasons.add(refused(receiver, bytes(changed), 30.0 * bit))
    assert reasons >= {"form", "other-fleet", "time", "malformed", "forged", "bad-signature"}
    assert "sender_rate" not in reasons
    assert receiver.read(payload, LINK, 30.0 * 8 * SIZE) == address(1)


# -- who is refused


def test_the_source_must_be_the_address_or_of_the_link() -> None:
    sender, receiver = node(1), node(2)
    assert refused(receiver, sender.payload(0.0), source=address(3)) == "source"
    assert receiver.genuine.checked == 0
    for source in (address(1), LINK, None):
        assert receiver.read(sender.payload(0.0), source, 0.0) == address(1)


def test_another_fleet() -> None:
    other = SignedBeacons(one_fleet("another").fleet, 1, lambda: Rules(CLOCK))
    other.use(credentials(1, CLOCK, one_fleet("another")))
    receiver = node(2)
    payload = other.payload(0.0)
    assert refused(receiver, payload) == "other-fleet"
    # with our mark in front it is a signer that nobody vouches for
    marked = payload[:4] + FLEET.fleet.identifier[:8] + payload[12:]
    assert refused(receiver, marked) == "bad-signature"
    assert receiver.genuine.checked == 1


def test_a_revoked_device_and_signer_from_the_next_beacon_on() -> None:
    gone: set[str] = set()
    receiver, sender = node(2, revoked=lambda: gone), node(1)
    receiver.read(sender.payload(0.0), LINK, 0.0)
    for name in (credentials(1).peer.device, fleets.signer_name(1)):
        gone.add(name)
        before = receiver.genuine.checked
        assert refused(receiver, sender.payload(0.0), 1.0) == "revoked"
        assert refused(node(2, revoked=lambda: gone), sender.payload(0.0)) == "revoked"
        assert receiver.genuine.checked == before
        gone.clear()
    assert receiver.read(sender.payload(0.0), LINK, 2.0)


def test_an_expired_node() -> None:
    now = [CLOCK]
    receiver, sender = node(2, clock=lambda: now[0]), node(1, clock=lambda: NO_CLOCK)
    receiver.read(sender.payload(0.0), LINK, 0.0)
    now[0] = Clock(CLOCK.floor, NOW + timedelta(days=2))
    assert refused(receiver, sender.payload(0.0), 1.0) == "expired"
    now[0] = Clock(NOW + timedelta(days=2))
    assert refused(node(2, clock=lambda: now[0]), sender.payload(0.0)) == "expired"
    now[0] = NO_CLOCK
    assert receiver.read(sender.payload(0.0), LINK, 2.0)


def test_a_software_identity_where_a_chip_is_asked_for() -> None:
    required = [False]
    receiver, sender = node(2, chip_required=lambda: required[0]), node(0)
    assert receiver.read(sender.payload(0.0), LINK, 0.0) == address(0)
    required[0] = True
    assert refused(receiver, sender.payload(0.0), 1.0) == "software-identity"
    assert refused(node(2, chip_required=lambda: True), sender.payload(0.0)) == "software-identity"
    strict = node(2, chip_required=lambda: True)
    assert strict.read(node(1).payload(0.0), LINK, 0.0) == address(1)


def resign(payload: bytes, key: bytes, change: Callable[[bytearray], None]) -> bytes:
    """A beacon that was changed and signed again by ``key``."""
    body = bytearray(payload[:-64])
    change(body)
    return bytes(body) + openssl.sign(key, signed_beacon.signed_digest(bytes(body)))


def test_a_member_cannot_speak_for_another() -> None:
    """Certificates of one, node certificate of another; and an address that is not its own."""
    one, two = node(1).payload(0.0), node(2).payload(0.0)
    mixed = one[:30] + two[30:184] + one[184:466]

    def nothing(_body: bytearray) -> None:
        pass

    key = credentials(2).private_key
    assert refused(node(3), resign(mixed + bytes(64), key, nothing)) == "bad-signature"

    def other_serial(body: bytearray) -> None:
        body[185:194] = serial_for("fleet", 3)

    def other_signer(body: bytearray) -> None:
        body[326] ^= 1

    assert refused(node(4), resign(two, key, other_signer)) == "bad-chain"
    own = resign(two, key, other_serial)
    assert refused(node(4), own) == "bad-signature"
    assert refused(node(4), resign(two, credentials(1).private_key, nothing)) == "forged"


# -- repetitions


def test_an_old_one_is_no_news() -> None:
    receiver, sender = node(2), node(1)
    first, second, third = (sender.payload(0.0) for _ in range(3))
    assert receiver.read(second, LINK, 0.0)
    before = receiver.genuine.checked
    assert refused(receiver, second, 1.0) == "replay"
    assert refused(receiver, first, 1.0) == "replay"
    assert receiver.genuine.checked == before, "costs no signature"
    assert receiver.read(third, LINK, 1.0)
    assert receiver.genuine.checked == before + 1, "a known sender costs one"


def test_a_restart_and_a_renewal_of_the_sender() -> None:
    receiver = node(2)
    before, after = node(1, start=7), node(1, start=8)
    for _ in range(50):
        old = before.payload(0.0)
    receiver.read(old, LINK, 0.0)
    after.use(finished(make_credentials(device(1), FLEET.fleet, CLOCK)))
    assert receiver.read(after.payload(0.0), LINK, 1.0)
    assert refused(receiver, before.payload(0.0), 2.0) == "replay"
    after.use(finished(make_credentials(device(1), FLEET.fleet, CLOCK)))
    assert receiver.read(after.payload(0.0), LINK, 3.0), "the same start, another key"
    assert refused(receiver, before.payload(0.0), 4.0) == "replay"


def test_a_sender_that_lost_its_memory_is_believed_again_later() -> None:
    receiver = node(2)
    last = node(1, start=1000).payload(0.0)
    receiver.read(last, LINK, 0.0)
    anew = node(1, start=1)
    assert refused(receiver, anew.payload(0.0), signed_beacon.FORGET - 1) == "replay"
    assert refused(receiver, last, signed_beacon.FORGET + 1) == "replay", "never twice the same"
    assert receiver.read(anew.payload(0.0), LINK, signed_beacon.FORGET + 1)


@pytest.mark.parametrize("minutes", [-11, 11])
def test_the_time_counts_when_both_know_it(minutes: int) -> None:
    away = Clock(CLOCK.floor, NOW + timedelta(minutes=minutes))
    sender = node(1, clock=lambda: away)
    receiver = node(2)
    assert refused(receiver, sender.payload(0.0)) == "time"
    assert receiver.genuine.checked == 0
    near = Clock(CLOCK.floor, NOW + timedelta(minutes=minutes * 0.8))
    assert receiver.read(node(1, clock=lambda: near).payload(0.0), LINK, 0.0)
    assert node(2, clock=lambda: NO_CLOCK).read(sender.payload(0.0), LINK, 0.0)
    assert node(2).read(node(1, clock=lambda: NO_CLOCK).payload(0.0), LINK, 0.0)


def test_our_own_ones_are_no_duplicate() -> None:
    one = node(1, start=7)
    earlier = node(1, start=6)
    earlier.use(finished(make_credentials(device(1), FLEET.fleet, CLOCK)))
    assert refused(one, one.payload(0.0)) == "echo"
    assert refused(one, earlier.payload(0.0)) == "replay"
    assert one.genuine.checked == 0
    clone = node(1, start=7)
    clone.use(finished(make_credentials(device(1), FLEET.fleet, CLOCK)))
    payload = clone.payload(0.0)
    assert refused(one, payload) == "own", "the same device twice"
    assert refused(one, payload) == "replay"


def test_the_number_of_the_list_of_revocations() -> None:
    told: list[tuple[IPv6Address, int]] = []
    receiver = node(2, on_list_number=lambda *what: told.append(what))
    numbers = iter([0, 5, 2**32 - 1, 2**40])
    sender = node(1, list_number=lambda: next(numbers))
    payloads = [sender.payload(0.0) for _ in range(4)]
    for payload in payloads:
        receiver.read(payload, LINK, 0.0)
    refused(receiver, payloads[1])
    assert told == [(address(1), n) for n in (0, 5, 2**32 - 1, 2**32 - 1)]


def test_what_tells_nothing_new() -> None:
    numbers = {"mine": 0, "theirs": 0}
    receiver = node(2, list_number=lambda: numbers["mine"])
    sender = node(1, list_number=lambda: numbers["theirs"])
    assert receiver.repeats(sender.payload(0.0), 0.0) is None, "it was never heard"
    receiver.read(sender.payload(0.0), LINK, 5.0)
    checked = receiver.genuine.checked
    repeated = sender.payload(0.0)
    assert receiver.repeats(repeated, 7.0) == (address(1), 2.0)
    assert receiver.repeats(repeated, 8.0) == (address(1), 3.0), "nothing was noted"
    assert receiver.genuine.checked == checked
    receiver.read(repeated, LINK, 9.0)
    assert receiver.repeats(repeated, 9.0) is None, "a replay is dropped as one"
    assert receiver.repeats(node(1, start=8).payload(0.0), 9.0) is None, "a new start"
    assert receiver.repeats(node(1, start=6).payload(0.0), 9.0) is None, "an old start"
    numbers["theirs"] = 3
    news = sender.payload(0.0)
    assert receiver.repeats(news, 9.0) is None, "another list"
    receiver.read(news, LINK, 9.0)
    assert receiver.repeats(sender.payload(0.0), 9.0) is None, "another list than ours"
    numbers["mine"] = 3
    receiver.payload(0.0)
    assert receiver.repeats(sender.payload(0.0), 9.0) == (address(1), 0.0)
    sender.use(finished(make_credentials(device(1), FLEET.fleet, CLOCK)))
    assert receiver.repeats(sender.payload(0.0), 9.0) is None, "another certificate"


@given(st.binary(max_size=SIZE + 8), st.integers(0, SIZE))
def test_any_bytes_tell_nothing_new_or_are_judged(noise: bytes, kept: int) -> None:
    receiver, sender = node(2), node(1)
    receiver.read(sender.payload(0.0), LINK, 0.0)
    receiver.repeats(noise, 0.0)
    payload = sender.payload(0.0)
    receiver.repeats(payload[:kept] + noise, 0.0)
    changed = bytearray(payload)
    changed[kept % SIZE] ^= 1
    tells = receiver.repeats(bytes(changed), 0.0) is None
    # time and signature are not looked at; the counter is 2, and higher with any of these bits
    free = {*range(17, 26), *range(SIZE - 64, SIZE)}
    assert tells == (kept % SIZE not in free)


def test_without_credentials_it_listens() -> None:
    listener = node()
    assert listener.payload(0.0) == b""
    assert listener.read(node(1).payload(0.0), LINK, 0.0) == address(1)
    assert listener.snapshot() == {"senders": 1, "signatures_checked": 4}


def test_the_number_of_a_start_only_rises(tmp_path: Path) -> None:
    path = str(tmp_path / "start")
    assert next_start(path, NO_CLOCK) == 1
    assert next_start(path, NO_CLOCK) == 2
    known = int(NOW.timestamp())
    assert next_start(path, CLOCK) == known
    assert next_start(path, NO_CLOCK) == known + 1
    assert next_start(path, CLOCK) == known + 2
    Path(path).write_text("rubbish")
    assert next_start(path, CLOCK) == known
    Path(path).write_text(str(10**30))
    assert next_start(path, CLOCK) == signed_beacon.MAX_START
    assert next_start("/proc/none/start", CLOCK) == known, "not kept, and good nevertheless"


@pytest.mark.parametrize("start", [0, -1, signed_beacon.MAX_START + 1])
def test_a_start_that_cannot_be_sent(start: int) -> None:
    with pytest.raises(ValueError, match="not the number of a start"):
        node(start=start)


# -- decisions


def test_who_is_refused_by_what_his_certificates_say() -> None:
    claim = Claim(("0123", "Signer 0001"), NOW, software=True)
    late = Clock(NOW + timedelta(seconds=1))
    assert refusal(claim, Rules(CLOCK)) is None
    assert refusal(claim, Rules(CLOCK, chip_required=True)) == "software-identity"
    assert refusal(claim._replace(software=False), Rules(CLOCK, chip_required=True)) is None
    for name in claim.names:
        assert refusal(claim, Rules(CLOCK, {name}, chip_required=True)) == "revoked"
    assert refusal(claim, Rules(CLOCK, {"4567", "Signer 0002"})) is None
    assert refusal(claim, Rules(Clock(NOW))) is None, "it ends with this second"
    assert refusal(claim, Rules(late, claim.names)) == "expired"
    # A clock that was set may be wrong by so much; what the authority has signed is not.
    assert refusal(claim, Rules(Clock(CLOCK.floor, NOW + verify.SKEW))) is None
    past = NOW + verify.SKEW + timedelta(seconds=1)
    assert refusal(claim, Rules(Clock(CLOCK.floor, past))) == "expired"


@pytest.mark.parametrize(
    ("order", "silent", "replay"),
    [
        (b"\x06", 0.0, True),
        (b"\x06", signed_beacon.FORGET - 1, True),
        (b"\x06", signed_beacon.FORGET, False),
        (b"\x07", 0.0, True),
        (b"\x07", 1e9, True),
        (b"\x08", 0.0, False),
    ],
)
def test_what_is_not_newer_than_the_last_is_a_repetition(
    order: bytes, silent: float, replay: bool
) -> None:
    assert is_replay(order, b"\x07", silent) is replay


def test_a_beacon_of_another_time() -> None:
    sent, skew = int(NOW.timestamp()), int(verify.SKEW.total_seconds())
    for away in (-skew - 1, skew + 1):
        assert is_untimely(sent + away, NOW)
        assert not is_untimely(sent + away, None)
    for away in (-skew, 0, skew):
        assert not is_untimely(sent + away, NOW)
    assert not is_untimely(0, NOW)


def test_certificates_say_who_their_node_is() -> None:
    for index in (0, 1):
        made = credentials(index)
        certificates = [Certificate(encoded) for encoded in made.chain]
        assert claimed(pack_chain(made.chain, FLEET.fleet)) == Claim(
            (made.peer.device, made.peer.signer),
            min(certificate.not_after for certificate in certificates),
            made.peer.software,
        )
        assert made.peer.until == certificates[0].not_after
    for at, reason in ((154, "malformed"), (296, "bad-chain"), (432, "bad-chain")):
        changed = bytearray(pack_chain(credentials(1).chain, FLEET.fleet))
        changed[at] ^= 0xFF
        with pytest.raises(MalformedError) as caught:
            claimed(bytes(changed))
        assert caught.value.reason == reason, at


def test_beacons_of_ours_are_known_again() -> None:
    own = OwnBeacons(FLEET.fleet, 7)
    keys = [bytes([number]) * 64 for number in range(6)]
    assert not own.made(keys[0])
    assert not own.made_before(int(address(1)), bytes(9)), "who we are is not known yet"
    made = credentials(1)
    for key in keys:
        own.use(made._replace(peer=made.peer._replace(public_key=key)))
    assert [own.made(key) for key in keys] == [False, False, True, True, True, True]
    start = [number.to_bytes(5, "big") for number in (6, 7)]
    assert own.made_before(int(address(1)), start[0] + b"\xff" * 4)
    assert not own.made_before(int(address(1)), start[1] + bytes(4))
    assert not own.made_before(int(address(2)), start[0] + bytes(4))


# -- floods, in simulated time


RATE = 10_000
SECONDS = 6
OTHERS = range(3, 11)

Storm = Callable[[random.Random], Iterator[bytes]]


def noise(rng: random.Random) -> Iterator[bytes]:
    while True:
        yield rng.randbytes(rng.choice((0, 40, 300, SIZE, SIZE)))


def noise_with_a_mark(rng: random.Random) -> Iterator[bytes]:
    begin = node(1).payload(0.0)[:12]
    while True:
        yield begin + rng.randbytes(SIZE - 12)


def replayed(rng: random.Random) -> Iterator[bytes]:
    sender = node(1)
    heard = [sender.payload(0.0) for _ in range(50)]
    while True:
        yield rng.choice(heard)


def flipped(rng: random.Random) -> Iterator[bytes]:
    sender = node(1)
    heard = [sender.payload(0.0) for _ in range(50)]
    while True:
        changed = bytearray(rng.choice(heard))
        changed[rng.randrange(12, SIZE)] ^= 1 << rng.randrange(8)
        yield bytes(changed)


def invented_signers(rng: random.Random) -> Iterator[bytes]:
    """Whole chains that nobody vouches for; what they look like is right in every byte."""
    payload = bytearray(node(1, clock=lambda: NO_CLOCK).payload(0.0))
    while True:
        payload[187:193] = rng.randbytes(6)
        payload[330:394] = rng.randbytes(64)
        yield bytes(payload)


def invented_devices(rng: random.Random) -> Iterator[bytes]:
    """Unknown devices below the true signer."""
    payload = bytearray(node(1, clock=lambda: NO_CLOCK).payload(0.0))
    while True:
        payload[187:193] = rng.randbytes(6)
        payload[194:258] = rng.randbytes(64)
        yield bytes(payload)


def invented_nodes(rng: random.Random) -> Iterator[bytes]:
    """Node certificates that a known device has not signed."""
    payload = bytearray(node(1, clock=lambda: NO_CLOCK).payload(0.0))
    count = 1
    while True:
        payload[12:21] = (8).to_bytes(5, "big") + count.to_bytes(4, "big")
        payload[56:120] = rng.randbytes(64)
        count += 1
        yield bytes(payload)


def forged(rng: random.Random) -> Iterator[bytes]:
    """In the name of a known node, with its certificates and another signature."""
    payload = bytearray(node(1, clock=lambda: NO_CLOCK).payload(0.0))
    count = 1000
    while True:
        payload[17:21] = count.to_bytes(4, "big")
        payload[466:] = rng.randbytes(64)
        count += 1
        yield bytes(payload)


STORMS: list[Storm] = [
    noise, noise_with_a_mark, replayed, flipped,
    invented_signers, invented_devices, invented_nodes, forged,
]  # fmt: skip

#: Those in which somebody unknown has the same chance as each of the many.
STRANGERS_SUFFER = {invented_devices}
#: Those that use up the budget of the one in whose name they are.
VICTIM_SUFFERS = {flipped, invented_nodes, forged}


@pytest.mark.parametrize("storm", STORMS, ids=lambda storm: storm.__name__)
def test_a_storm_costs_little_and_drowns_nobody_else(storm: Storm) -> None:
    """10,000 datagrams a second, all of which reach us; nine nodes that are known, one that is new.

    Known nodes send every two seconds, the new one every second.
    """
    receiver = node(2)
    rng = random.Random(69)
    known = {index: node(index) for index in (1, *OTHERS)}
    newcomer = node(11)
    for sender in known.values():
        receiver.read(sender.payload(0.0), LINK, 1.0)
    for sender in known.values():
        sender.own.counter += 100  # after all that a storm repeats
    before = receiver.genuine.checked
    drops: dict[str, int] = {}
    missed: list[int] = []
    met = False
    storm_of = storm(rng)
    for i in range(RATE * SECONDS):
        now = 10.0 + i / RATE
        try:
            receiver.read(next(storm_of), LINK, now)
        except MalformedError as error:
            drops[error.reason] = drops.get(error.reason, 0) + 1
        if i % (2 * RATE) == RATE:
            for index, sender in known.items():
                try:
                    assert receiver.read(sender.payload(now), LINK, now) == address(index)
                except MalformedError:
                    missed.append(index)
        if i % RATE == RATE // 2:
            try:
                met = bool(receiver.read(newcomer.payload(now), LINK, now)) or met
            except MalformedError as error:
                assert error.reason == "stranger_rate"
    assert set(drops) <= set(REASONS)
    genuine = len(known) * SECONDS // 2 + 3 * SECONDS
    budget = sum(
        share * (burst + rate * SECONDS)
        for share, (rate, burst) in ((3, receiver.STRANGERS), (4, receiver.SIGNERS))
    )
    victims = 8 + 2 * SECONDS + 3 * (4 + SECONDS)
    assert receiver.genuine.checked - before <= budget + victims + genuine
    if storm not in STRANGERS_SUFFER:
        assert met
    assert set(missed) <= ({1} if storm in VICTIM_SUFFERS else set())
    # and when it is over, everybody is heard
    later = 10.0 + SECONDS + 60.0
    for index, sender in {**known, 11: newcomer}.items():
        assert receiver.read(sender.payload(0.0), LINK, later) == address(index)


def held(thing: Any) -> int:
    """Bytes of an object and what it holds, each once."""
    import gc

    seen: set[int] = set()
    todo, size = [thing], 0
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type) or callable(one):
            continue
        seen.add(id(one))
        size += sys.getsizeof(one)
        todo.extend(gc.get_referents(one))
    return size


def test_memory_is_bounded_even_against_many_genuine_devices() -> None:
    """Stands in for a fleet of more devices than are remembered: nothing is checked here."""
    receiver = node(start=1, clock=lambda: NO_CLOCK, limit=50, verify=lambda *_: True)
    payload = bytearray(node(1, clock=lambda: NO_CLOCK).payload(0.0))
    rng = random.Random(1)
    for i in range(1600):
        # another chip, named so by a node certificate that goes with it
        payload[187:193] = rng.randbytes(6)
        assert receiver.read(bytes(payload), None, 10.0 * i)
    assert len(receiver.senders) == 50
    assert len(receiver.genuine.known) == receiver.genuine.LIMIT == 1024
    assert held([receiver.senders, receiver.genuine.known]) < 500_000


# -- in Discovery


def found(
    own: int,
    choice: str,
    heard: Callable[[IPv6Address, bool], None] = lambda _a, _n: None,
    interface: str = "lo",
    **more: Any,
) -> Discovery:
    plain = PlainBeacons(address(own), PREFIX)
    return Discovery(
        more.pop("settings", DiscoverySection()),
        address(own),
        PREFIX,
        interface,
        heard,
        codecs=in_use(choice, plain, node(own)),
        **more,
    )


def sent_by(one: Discovery) -> list[bytes]:
    return [payload for codec in one.codecs if (payload := codec.payload(0.0))]


@pytest.mark.parametrize("mine", ["plain", "signed", "both"])
@pytest.mark.parametrize("theirs", ["plain", "signed", "both"])
def test_forms_meet_where_both_sides_want_it(mine: str, theirs: str) -> None:
    me, they = found(1, mine), found(2, theirs)
    for payload in sent_by(they):
        me.datagram(payload, (str(LINK), 1, 0, 3), 255, 1.0)
    common = {mine, theirs} != {"plain", "signed"}
    assert (address(2) in me.table.entries) == common
    if mine not in {"both", theirs}:
        assert me.counters.dropped["form"] == 1
    assert set(me.snapshot()["forms"]) == ({"plain", "signed"} if mine == "both" else {mine})


def test_without_certificates_nothing_takes_their_place() -> None:
    plain = PlainBeacons(address(1), PREFIX)
    assert in_use("signed", plain, None) == ()
    assert in_use("both", plain, None) == (plain,)
    deaf = Discovery(DiscoverySection(), address(1), PREFIX, "lo", lambda _a, _n: None, codecs=())
    deaf.datagram(str(address(2)).encode(), (str(LINK), 1, 0, 3), 255, 1.0)
    assert deaf.counters.dropped["form"] == 1
    assert not deaf.table.entries


def test_both_forms_of_one_beacon_are_one() -> None:
    me, they = found(1, "both"), found(2, "both")
    for turn in range(3):
        for payload in sent_by(they):
            me.datagram(payload, (str(LINK), 1, 0, 3), 255, 100.0 + 20.0 * turn)
    assert me.table.entries[address(2)].gap == 20.0


class Sky:
    """A node that hears another one, and what it does then."""

    def __init__(self, connected: bool) -> None:
        self.told: list[tuple[IPv6Address, bool]] = []
        self.answered: list[float] = []
        self.me = found(
            1, "signed", lambda *what: self.told.append(what), pinned=lambda _address: connected
        )
        self.they = node(2)

    def hear(self, now: float, payload: bytes = b"", source: IPv6Address = LINK) -> bool:
        """Hear a beacon; return whether its signature was checked."""
        (codec,) = self.me.codecs
        assert isinstance(codec, SignedBeacons)
        before = codec.genuine.checked
        with mock.patch.object(
            self.me, "_answer", side_effect=lambda *_: self.answered.append(now)
        ):
            payload = payload or self.they.payload(now)
            self.me.datagram(payload, (str(source), 1, 0, 3), 255, now)
        for entry in self.me.table.entries.values():
            entry.answered = max([entry.answered, *self.answered])
        return codec.genuine.checked > before

    def snapshot(self) -> tuple[int, int, dict[str, int]]:
        shown = self.me.snapshot()
        return shown["received"], shown["repeated"], shown["dropped"]


@pytest.mark.parametrize(
    ("connected", "checked", "answered"),
    [
        (False, [0, 9, 18, 40, 60, 80], [0, 9, 18]),
        (True, [0, 15, 60], [0, 15]),
    ],
)
def test_a_node_that_joins_is_checked_as_often_as_it_needs(
    connected: bool, checked: list[float], answered: list[float]
) -> None:
    """It looks for others every 1.5 s, and is calm after 18 s."""
    sky = Sky(connected)
    times = [*(1.5 * turn for turn in range(13)), 40.0, 60.0, 80.0]
    assert [now for now in times if sky.hear(now)] == checked
    assert sky.answered == answered
    assert sky.snapshot() == (len(times), len(times) - len(checked), {})
    assert sky.told == [(address(2), now == 0) for now in checked]
    (entry,) = sky.me.table.entries.values()
    assert (entry.beacons, entry.gap, entry.last) == (len(times), 20.0, checked[-1])


def test_what_is_new_is_checked_at_once() -> None:
    sky = Sky(connected=True)
    assert sky.hear(0.0)
    assert not sky.hear(20.0)
    assert not sky.hear(39.0)
    assert sky.hear(41.0, source=IPv6Address("fe80::2")), "another source"
    assert not sky.hear(50.0, source=IPv6Address("fe80::2"))
    sky.they = node(2, start=8)
    assert sky.hear(60.0), "a new start"
    assert sky.hear(61.9), "it looks for others"
    assert not sky.hear(63.5)
    sky.they = node(2, start=8, list_number=lambda: 4)
    sky.they.own.counter = 50
    assert sky.hear(65.0), "another list"


def test_nodes_with_one_radio_address_are_found_while_connected() -> None:
    sky, third = Sky(connected=True), node(3)
    for now in (0.0, 30.0, 60.0):
        assert sky.hear(now)
        assert sky.hear(now + 10.0, third.payload(0.0))
    assert sky.me.shared.found(70.0)


def test_drops_are_counted_by_reason() -> None:
    me, they = found(1, "signed"), found(2, "signed")
    (payload,) = sent_by(they)
    link = (str(LINK), 1, 0, 3)
    for _ in range(3):
        me.datagram(payload, link, 255, 1.0)
    me.datagram(payload[:-1] + b"x", link, 255, 1.0)
    me.datagram(b"", link, 255, 1.0)
    me.datagram(payload, (str(address(3)), 1, 0, 3), 255, 1.0)
    me.datagram(sent_by(me)[0], link, 255, 1.0)
    assert me.snapshot()["dropped"] == {"replay": 3, "empty": 1, "source": 1, "echo": 1}
    assert me.duplicate_heard is None


def test_a_flood_makes_nobody_forgotten() -> None:
    me, they = found(1, "signed"), found(2, "signed")
    me.datagram(sent_by(they)[0], (str(LINK), 1, 0, 3), 255, 1.0)
    me.table.flooded = 200.0
    assert me.table.forget_silent(250.0) == []
    assert address(2) in me.table.entries
    assert me.table.forget_silent(261.0) == [address(2)]


async def test_two_nodes_find_each_other_by_signed_beacons_in_a_flood() -> None:
    """On a real wire: noise, true-looking chains and repetitions, until the flood is noticed."""
    import network_namespace
    from test_discovery import running, until

    with network_namespace.namespace():
        network_namespace.veth("n1", "n2")
        # most of the flood is in the name of 1
        a, b = found(3, "signed", interface="n1"), found(2, "signed", interface="n2")
        async with running(a, b):
            await until(lambda: address(2) in a.table.entries, "a hears b")
            await until(lambda: address(3) in b.table.entries, "b hears a")
            await flood(a)
            assert a.table.entries[address(2)]
            before = a.table.entries[address(2)].beacons

            def again() -> bool:
                b.peer_up()
                return a.table.entries[address(2)].beacons > before

            await until(again, "a hears b after it")
        assert {"malformed", "stranger_rate"} <= set(a.snapshot()["dropped"])


async def flood(target: Discovery) -> None:
    import socket
    from contextlib import suppress

    rng = random.Random(5)
    storms = [storm(rng) for storm in (noise, noise_with_a_mark, invented_devices, replayed)]
    index = socket.if_nametoindex("n2")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        for i in range(1_000_000):
            with suppress(BlockingIOError):
                s.sendto(next(storms[i % 4]), ("ff02::69", PORT, 0, index))
            if i % 30 == 0:
                await asyncio.sleep(0)
            if i > 5000 and target.counters.dropped["rate"]:
                return
    raise AssertionError("a million datagrams and no drop for the rate")


def test_the_device_is_the_one_of_its_serial_number() -> None:
    """The tests' own ground: the address is of the chip's serial number."""
    assert address(1) == FLEET.fleet.address("chip", identity_of_serial(serial_for("fleet", 1)))
