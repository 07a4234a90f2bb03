# SPDX-License-Identifier: Apache-2.0
"""The signed beacon: a node's address with its whole chain of certificates, in 530 bytes.

A beacon must be judged by somebody who has never heard its sender, and a mesh has no server that
could be asked. So it carries the certificates of node, device and signer. They are taken apart as a
chip keeps them, and rebuilt byte for byte: whatever is not in the datagram follows from the fleet's
root. All numbers are big endian:

    ====== ===== ==================================================================
    offset bytes
    ====== ===== ==================================================================
         0     4 mark and version of the format (``discovery.SIGNED_MARK``)
         4     8 the fleet: first bytes of the identifier of its root's key
        12     5 start: a number that is higher at each start of the sender
        17     4 counter: higher in each beacon of this start
        21     5 time (Unix seconds), 0 when the sender does not know it
        26     4 number of the sender's list of revocations, 0 for none
        30   154 node: serial number (16), begin and end (5 + 5), key (64), signature (64)
       184   146 device: source of its identity (1), the chip's serial number or 6 bytes of
                 identity and three zeros (9), key (64), compressed certificate (72)
       330   136 signer: key (64), compressed certificate (72)
       466    64 signature of everything before it, by the node's key
    ====== ===== ==================================================================

The signature is of a text that nothing else of Thicket signs, followed by the 466 bytes.

**What keeps a flood cheap.** What costs nothing is looked at first. A known sender then costs one
signature check for each new beacon and none for an old one, and no sender, real or forged, gets
more than its own budget. Unknown senders share one; those with a signer that was never seen share a
smaller one, because anybody can make up such chains. A chain is checked from its top, so a made-up
one costs a single signature check. All memory is bounded, and only who holds a genuine certificate
gets a place in it.

**What a repetition can do.** A beacon is only taken when start and counter are higher than all that
was heard of its sender before. Who has never heard the sender, or not for ``FORGET`` seconds, can
be shown an old one, at most for as long as its node certificate lasts and, if both clocks are set,
for ten minutes. It then tries to connect to that address, where TLS decides. It believes nothing
else but that a list of revocations with that number once existed.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Container
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import IPv6Address
from typing import Any, Final

from thicket.base.pace import Bucket
from thicket.discovery.beacon import SIGNED_MARK, MalformedError, check_source
from thicket.identity.address import ID_SIZE, SERIAL_SIZE, SOURCES, identity_of_serial
from thicket.trust import compressed
from thicket.trust import fleet as fleets
from thicket.trust.certificates import Certificate, CertificateError
from thicket.trust.compressed import Compressed
from thicket.trust.credentials import Credentials
from thicket.trust.fleet import Fleet
from thicket.trust.verify import (
    BAD_CHAIN,
    BAD_SIGNATURE,
    EXPIRED,
    OTHER_FLEET,
    REVOKED,
    SKEW,
    SOFTWARE,
    Clock,
    RefusedError,
    Verify,
    check_peer,
)

_HEADER: Final = struct.Struct("!4s8s5sI5sI")
_LEAF: Final = struct.Struct("!16s5s5s64s64s")
_DEVICE: Final = struct.Struct(f"!B{SERIAL_SIZE}s64s{compressed.SIZE}s")
_SIGNER: Final = struct.Struct(f"!64s{compressed.SIZE}s")

_CHAIN: Final = _HEADER.size
_DEVICE_AT: Final = _CHAIN + _LEAF.size
_SIGNER_AT: Final = _DEVICE_AT + _DEVICE.size
_SIGNATURE: Final = _SIGNER_AT + _SIGNER.size

SIZE: Final = _SIGNATURE + 64
"""Bytes of every signed beacon."""

CHAIN_SIZE: Final = _SIGNATURE - _CHAIN
"""Bytes of the three certificates in it."""

_TAG: Final = b"thicket beacon 1\n"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

MAX_START: Final = (1 << 40) - 1
"""Largest number of a start."""

FORGET: Final = 600.0
"""Seconds after the last beacon of a sender from which one with lower numbers is taken: it has lost
its memory (its data partition was made anew, for example)."""

# -- certificates in a datagram


def pack_chain(chain: tuple[bytes, ...], fleet: Fleet) -> bytes:
    """Return node, device and signer certificate (DER) as a beacon has them (436 bytes).

    Raises ``CertificateError`` when the same bytes cannot be made of it again.
    """
    leaf, device, signer = (Certificate(encoded) for encoded in chain[:3])
    try:
        source, identity = fleets.split_host_name(leaf.common_name)
        who = bytes.fromhex(device.common_name) if source == "chip" else identity + bytes(3)
        signer_id = int(signer.common_name.removeprefix("Signer "), 16)
        packed = b"".join(
            (
                _LEAF.pack(
                    leaf.serial.to_bytes(16, "big"),
                    _pack_time(leaf.not_before),
                    _pack_time(leaf.not_after),
                    leaf.public_key,
                    leaf.signature,
                ),
                _DEVICE.pack(
                    SOURCES.index(source),
                    who,
                    device.public_key,
                    fleets.compress_device(device.der, signer_id),
                ),
                _SIGNER.pack(signer.public_key, fleets.compress_signer(signer.der, signer_id)),
            )
        )
    except (ValueError, OverflowError, struct.error) as error:
        raise CertificateError(f"these certificates do not fit into a beacon: {error}") from None
    if unpack_chain(packed, fleet) != tuple(chain[:3]):
        raise CertificateError("these certificates cannot be rebuilt of what fits into a beacon")
    return packed


def unpack_chain(packed: bytes, fleet: Fleet) -> tuple[bytes, bytes, bytes]:
    """Return node, device and signer certificate (DER) of these 436 bytes.

    Nothing is verified. Raises ``CertificateError`` when no certificates can be made of them.
    """
    if len(packed) != CHAIN_SIZE:
        raise CertificateError(f"{len(packed)} bytes instead of {CHAIN_SIZE}")
    parts = _LEAF.size, _LEAF.size + _DEVICE.size
    if packed[parts[1] - 5 : parts[1] - 3] != packed[-5:-3]:
        raise CertificateError("device and signer do not agree on the signer's number")
    signer_key, signer = _signer(fleet, packed[parts[1] :])
    device = _device(fleet, packed[parts[0] : parts[1]], signer_key)
    return _leaf(fleet, packed[: parts[0]], Certificate(device)), device, signer


def _signer(fleet: Fleet, part: bytes) -> tuple[bytes, bytes]:
    """Return the key of a signer and its certificate (DER)."""
    key, data = _SIGNER.unpack(part)
    _one_form(data, compressed.FROM_PUBLIC_KEY)
    return key, fleets.rebuild_signer(fleet, data, key)


def _device(fleet: Fleet, part: bytes, signer_key: bytes) -> bytes:
    index, who, key, data = _DEVICE.unpack(part)
    _one_form(data, compressed.FROM_SERIAL)
    source, identity, serial = _identity(index, who)
    return fleets.rebuild_device_of(
        fleet,
        data,
        source=source,
        identity=identity,
        serial=serial,
        public_key=key,
        signer_key=signer_key,
    )


def _leaf(fleet: Fleet, part: bytes, device: Certificate) -> bytes:
    serial, begin, end, key, signature = _LEAF.unpack(part)
    validity = _unpack_time(begin), _unpack_time(end)
    number = int.from_bytes(serial, "big")
    return fleets.node_profile(fleet, device, key, number, validity).signed(signature)


def _one_form(data: bytes, source: int) -> None:
    """Refuse what would give the same certificate as other bytes."""
    kept = Compressed.unpack(data)
    if kept.chain or kept.source != source:
        raise CertificateError("a compressed certificate of a kind that no fleet has")


def _identity(index: int, who: bytes) -> tuple[str, bytes, bytes | None]:
    """Return source, identity and the chip's serial number."""
    try:
        if index == 0:
            return "chip", identity_of_serial(who), who
        if any(who[ID_SIZE:]):
            raise ValueError("an identity with something behind it")
        return SOURCES[index], who[:ID_SIZE], None
    except (ValueError, LookupError) as error:
        raise CertificateError(str(error)) from None


def _pack_time(when: datetime) -> bytes:
    return int((when - _EPOCH).total_seconds()).to_bytes(5, "big")


def _unpack_time(encoded: bytes) -> datetime:
    try:
        return _EPOCH + timedelta(seconds=int.from_bytes(encoded, "big"))
    except OverflowError:
        raise CertificateError("a time beyond the year 9999") from None


# -- the number of a start


def next_start(path: str, clock: Clock) -> int:
    """Return a number that is higher than at each start before, and keep it in the file ``path``.

    Blocks on the disk. Where the last number is lost, the time stands in for it if it is known.
    When it cannot be kept that is logged, and the number is good nevertheless.
    """
    from thicket.base.files import write_atomically

    try:
        with open(path, "rb") as file:
            last = int(file.read(32))
    except (OSError, ValueError):
        last = 0
    known = 0 if clock.now is None else int(clock.now.timestamp())
    start = min(max(last + 1, known, 1), MAX_START)
    try:
        write_atomically(path, b"%d\n" % start, mode=0o600)
    except OSError as error:
        from logging import getLogger

        getLogger(__name__).warning("cannot keep the number of this start in %s: %s", path, error)
    return start


# -- sending and judging


class _Sender:
    """A node whose certificates were found good."""

    __slots__ = (
        "chain",
        "heard",
        "key",
        "names",
        "order",
        "renewals",
        "software",
        "turns",
        "until",
    )

    def __init__(self) -> None:
        self.chain = b""
        #: Start and counter of its last beacon, comparable as bytes.
        self.order = b""
        self.heard = 0.0
        self.key = b""
        self.names: tuple[str, str] = ("", "")
        #: The first of its certificates' ends.
        self.until = _EPOCH
        self.software = False
        #: A node sends at most one beacon a second, and answers.
        self.turns = Bucket(rate=2.0, burst=8.0)
        #: A new certificate comes with each start, and then about twice a day.
        self.renewals = Bucket(rate=0.1, burst=4.0)


class SignedBeacons:
    """Signs our beacons and judges those of others: a ``discovery.Codec``.

    ``clock`` and ``revoked`` (names as ``Revocations.names`` has them) are asked for each beacon,
    so what changes holds from the next one on. ``list_number`` is the number of our list of
    revocations; ``on_list_number(address, number)`` is told that of every sender that was found
    good. ``start`` is from ``next_start``. Until ``use`` has been called, nothing is sent, and what
    is heard is judged all the same.
    """

    form = "signed"

    #: Signature checks a second, and at once, for known senders together. A mesh of 256 nodes has
    #: 13 beacons a second; a check takes 0.15 ms on a PC.
    SIGNATURES = (50.0, 256.0)
    #: The same for beacons (of three checks at most) of unknown senders, and (of four) of unknown
    #: signers. A fleet of 64 nodes that comes up at once is learnt at once.
    STRANGERS = (8.0, 64.0)
    SIGNERS = (0.5, 4.0)
    #: How many signers and devices are remembered as genuine.
    GENUINE = 1024

    def __init__(
        self,
        fleet: Fleet,
        start: int,
        *,
        clock: Callable[[], Clock],
        revoked: Callable[[], Container[str]] = frozenset,
        list_number: Callable[[], int] = lambda: 0,
        on_list_number: Callable[[IPv6Address, int], None] | None = None,
        chip_required: bool = False,
        limit: int = 1024,
        verify: Verify | None = None,
    ) -> None:
        """Judge for ``fleet``. ``limit`` bounds how many senders are remembered."""
        if not 0 < start <= MAX_START:
            raise ValueError(f"{start} is not the number of a start (1 to {MAX_START})")
        self.fleet = fleet
        self.start = start
        self.clock = clock
        self.revoked = revoked
        self.list_number = list_number
        self.on_list_number = on_list_number
        self.chip_required = chip_required
        self.limit = limit
        #: Signatures that were checked; what a flood costs.
        self.checked = 0
        if verify is None:
            from thicket.trust import openssl  # ctypes takes a while to load

            verify = openssl.verify
        self._verify_with = verify
        self._fleet_tag = fleet.identifier[:8]
        self._network = int(fleet.network.network_address)
        self._senders: OrderedDict[int, _Sender] = OrderedDict()
        #: Digests of signers and devices whose certificates are genuine.
        self._genuine: OrderedDict[bytes, None] = OrderedDict()
        self._signatures = Bucket(*self.SIGNATURES)
        self._strangers = Bucket(*self.STRANGERS)
        self._signers = Bucket(*self.SIGNERS)
        self._counter = 0
        self._key = self._chain = b""
        self._address: int | None = None
        #: Our own keys of this start, the last ones: a few renewals.
        self._own_keys: list[bytes] = []

    def use(self, credentials: Credentials) -> None:
        """Sign with these (renewed) credentials.

        Raises ``CertificateError`` when they do not fit into a beacon.
        """
        self._chain = pack_chain(credentials.chain, self.fleet)
        self._key = credentials.private_key
        self._address = int(credentials.peer.address)
        self._own_keys = [*self._own_keys[-3:], credentials.peer.public_key]
        # what vouches for us is genuine, or we would not have it
        self._remember(self._chain[_SIGNER_AT - _CHAIN :])
        self._remember(self._chain[_DEVICE_AT - _CHAIN :])

    def payload(self, now: float) -> bytes:
        """See ``Codec``. Each has a number of its own."""
        if not self._chain:
            return b""
        from thicket.trust import openssl

        self._counter += 1
        time = self.clock().now
        body = (
            _HEADER.pack(
                SIGNED_MARK,
                self._fleet_tag,
                self.start.to_bytes(5, "big"),
                self._counter,
                bytes(5) if time is None else _pack_time(time),
                min(self.list_number(), 0xFFFFFFFF),
            )
            + self._chain
        )
        return body + openssl.sign(self._key, sha256(_TAG + body).digest())

    def claims(self, payload: bytes) -> bool:
        """See ``Codec``."""
        return payload.startswith(SIGNED_MARK)

    def snapshot(self) -> dict[str, Any]:
        """See ``Codec``."""
        return {"senders": len(self._senders), "signatures_checked": self.checked}

    def read(self, payload: bytes, source: IPv6Address | None, now: float) -> IPv6Address:
        """See ``Codec``. What is dropped costs the less, the easier it is to send it."""
        if len(payload) != SIZE:
            raise MalformedError("length")
        if not payload.startswith(SIGNED_MARK):
            raise MalformedError("form")
        if payload[4:12] != self._fleet_tag:
            raise MalformedError(OTHER_FLEET)
        number = self._number(payload)
        check_source(address := IPv6Address(number), source)
        if payload[_CHAIN + 26 : _CHAIN + 90] in self._own_keys:
            raise MalformedError("echo")
        sender, order = self._senders.get(number), payload[12:21]
        if sender is not None and order <= sender.order:
            # What is exactly the last one is never new, however long ago it was.
            if now - sender.heard < FORGET or order == sender.order:
                raise MalformedError("replay")
        elif sender is None and number == self._address and order < self._own_order():
            raise MalformedError("replay")
        clock = self.clock()
        self._check_time(payload[21:26], clock)
        chain = payload[_CHAIN:_SIGNATURE]
        if sender is not None and sender.chain == chain:
            self._check_still_good(sender.names, sender.until, sender.software, clock)
            self._take(sender.turns, now, "sender_rate")
            self._take(self._signatures, now, "signature_rate")
            found = sender
        else:
            found = self._admit(chain, sender, clock, now)
        digest = sha256(_TAG + payload[:_SIGNATURE]).digest()
        if not self._verify(found.key, digest, payload[_SIGNATURE:]):
            raise MalformedError("forged")
        found.order, found.heard = order, now
        self._senders[number] = found
        self._senders.move_to_end(number)
        while len(self._senders) > self.limit:
            self._senders.popitem(last=False)
        if number == self._address:
            raise MalformedError("own")
        if self.on_list_number is not None:
            self.on_list_number(address, int.from_bytes(payload[26:30], "big"))
        return address

    # -- steps of it

    def _own_order(self) -> bytes:
        """What another station with our address must exceed, not to be our own from earlier."""
        return self.start.to_bytes(5, "big") + bytes(4)

    def _number(self, payload: bytes) -> int:
        """Return the address that a beacon is for, as a number."""
        index = payload[_DEVICE_AT]
        who = payload[_DEVICE_AT + 1 : _DEVICE_AT + 1 + SERIAL_SIZE]
        identity = who[2:8] if index == 0 else who[:ID_SIZE]
        if index >= len(SOURCES):
            raise MalformedError("malformed")
        return self._network | index << 48 | int.from_bytes(identity, "big")

    @staticmethod
    def _check_time(encoded: bytes, clock: Clock) -> None:
        sent = int.from_bytes(encoded, "big")
        if sent and clock.now is not None:
            away = sent - clock.now.timestamp()
            if abs(away) > SKEW.total_seconds():
                raise MalformedError("time")

    def _check_still_good(
        self, names: tuple[str, str], until: datetime, software: bool, clock: Clock
    ) -> None:
        """Refuse what ``check_peer`` would, as far as it can have changed."""
        if until < clock.lower_bound:
            raise MalformedError(EXPIRED)
        revoked = self.revoked()
        if names[0] in revoked or names[1] in revoked:
            raise MalformedError(REVOKED)
        if software and self.chip_required:
            raise MalformedError(SOFTWARE)

    @staticmethod
    def _take(bucket: Bucket, now: float, reason: str) -> None:
        if not bucket.take(now):
            raise MalformedError(reason)

    def _admit(self, chain: bytes, sender: _Sender | None, clock: Clock, now: float) -> _Sender:
        """Return who has sent these certificates, which are not those known of the ``sender``."""
        leaf_part = chain[: _LEAF.size]
        device_part = chain[_DEVICE_AT - _CHAIN : _SIGNER_AT - _CHAIN]
        signer_part = chain[_SIGNER_AT - _CHAIN :]
        if sender is not None:
            budget, reason = sender.renewals, "sender_rate"
        elif sha256(signer_part).digest() in self._genuine:
            budget, reason = self._strangers, "stranger_rate"
        else:
            budget, reason = self._signers, "stranger_rate"
        if not budget.ready(now):
            raise MalformedError(reason)
        # What the certificates say of themselves is not proven yet, but who says that he is to be
        # refused needs no proof.
        found = _Sender()
        try:
            index, who, _, data = _DEVICE.unpack(device_part)
            origin, identity, serial = _identity(index, who)
            device_kept, signer_kept = Compressed.unpack(data), Compressed.unpack(signer_part[64:])
            found.names = (
                fleets.device_name(origin, identity, serial),
                fleets.signer_name(signer_kept.signer_id),
            )
            found.until = min(
                _unpack_time(leaf_part[21:26]), device_kept.validity[1], signer_kept.validity[1]
            )
            found.software = origin != "chip"
        except ValueError:
            raise MalformedError("malformed") from None
        if device_kept.signer_id != signer_kept.signer_id:
            raise MalformedError(BAD_CHAIN)
        self._check_still_good(found.names, found.until, found.software, clock)
        self._take(budget, now, reason)
        if sender is not None:
            self._take(self._signatures, now, "signature_rate")
        try:
            # From the top down, so that nothing is done below what is not genuine.
            signer_key, signer = _signer(self.fleet, signer_part)
            proven = {self._proven(signer, self.fleet.root.public_key, signer_part)}
            device = _device(self.fleet, device_part, signer_key)
            proven.add(self._proven(device, signer_key, device_part + signer_part))
            leaf = _leaf(self.fleet, leaf_part, Certificate(device))
            peer = check_peer(
                (leaf, device, signer),
                self.fleet,
                clock=clock,
                revoked=(name for name in found.names if name in self.revoked()),
                chip_required=self.chip_required,
                verify=lambda *signed: signed in proven or self._verify(*signed),
            )
        except RefusedError as error:
            raise MalformedError(error.reason) from None
        except ValueError:
            raise MalformedError("malformed") from None
        found.chain, found.key = chain, peer.public_key
        if sender is not None:
            # A new certificate gives nobody new budgets.
            found.turns, found.renewals = sender.turns, sender.renewals
        return found

    def _proven(self, certificate: bytes, key: bytes, part: bytes) -> tuple[bytes, bytes, bytes]:
        """Return key, digest and signature of a certificate that was rebuilt of ``part``.

        Refuses it when it is not by this key.
        """
        read = Certificate(certificate)
        signed = key, sha256(read.tbs).digest(), read.signature
        if sha256(part).digest() not in self._genuine and not self._verify(*signed):
            raise MalformedError(BAD_SIGNATURE)
        self._remember(part)
        return signed

    def _remember(self, part: bytes) -> None:
        digest = sha256(part).digest()
        self._genuine[digest] = None
        self._genuine.move_to_end(digest)
        while len(self._genuine) > self.GENUINE:
            self._genuine.popitem(last=False)

    def _verify(self, key: bytes, digest: bytes, signature: bytes) -> bool:
        self.checked += 1
        return self._verify_with(key, digest, signature)
