# SPDX-License-Identifier: Apache-2.0
"""The signed beacon: a node's address with its whole chain of certificates, in 530 bytes.

A beacon carries the certificates of node, device and signer, because a node that has never heard
its sender must judge it, and a mesh has no server that could be asked. The certificates are taken
apart as a chip keeps them, and rebuilt byte for byte: whatever is not in the datagram follows from
the fleet's root. All numbers are big endian:

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

**What keeps a flood cheap.** Checks that cost nothing come first. A known sender then costs one
signature check at most for each new beacon, and none for an old one or for one that tells nothing
new of a node that has proven itself not long ago (:meth:`SignedBeacons.repeats`). No sender, real
or forged, gets more than its own budget. Unknown senders share one; those with a signer that was
never seen share a smaller one, because anybody can make up such chains. A chain is checked from its
top, so a made-up one costs a single signature check. All memory is bounded, and only the holder of
a genuine certificate gets a place in it.

**What a repetition can do.** A beacon is only taken when start and counter are higher than all that
was heard of its sender before. A node that has never heard the sender, or not for ``FORGET``
seconds, can be shown an old one, at most for as long as its node certificate lasts and, if both
clocks are set, for ten minutes. It then tries to connect to that address, where TLS decides. The
only other thing that it believes is that a list of revocations with that number once existed.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import IPv6Address
from logging import getLogger
from typing import Any, NamedTuple

from thicket.base.files import read_kept, write_atomically
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
    Peer,
    Proven,
    RefusedError,
    Rules,
    Verify,
    check_peer,
    verify_signature,
)

log = getLogger(__name__)

_HEADER = struct.Struct("!4s8s5sI5s4s")
_LEAF = struct.Struct("!16s5s5s64s64s")
_DEVICE = struct.Struct(f"!B{SERIAL_SIZE}s64s{compressed.SIZE}s")
_SIGNER = struct.Struct(f"!64s{compressed.SIZE}s")

_CHAIN = _HEADER.size
_DEVICE_AT = _CHAIN + _LEAF.size
_SIGNER_AT = _DEVICE_AT + _DEVICE.size
_SIGNATURE = _SIGNER_AT + _SIGNER.size

SIZE = _SIGNATURE + 64
"""Bytes of every signed beacon."""

CHAIN_SIZE = _SIGNATURE - _CHAIN
"""Bytes of the three certificates in it."""

_TAG = b"thicket beacon 1\n"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

MAX_START = (1 << 40) - 1
"""Largest number of a start."""

FORGET = 600.0
"""Seconds after the last beacon of a sender from which one with lower numbers is taken: it has lost
its memory (its data partition was made anew, for example)."""

# -- certificates in a datagram


def pack_chain(chain: tuple[bytes, ...], fleet: Fleet) -> bytes:
    """Return node, device and signer certificate (DER) as a beacon has them (436 bytes).

    :raises CertificateError: the certificates cannot be made of them again, to the byte.
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

    Nothing is verified.

    :raises CertificateError: no certificates can be made of them.
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
    """Refuse bytes that give the same certificate as others do."""
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


def _pack_number(number: int) -> bytes:
    return min(number, 0xFFFFFFFF).to_bytes(4, "big")


def _unpack_time(encoded: bytes) -> datetime:
    try:
        return _EPOCH + timedelta(seconds=int.from_bytes(encoded, "big"))
    except OverflowError:
        raise CertificateError("a time beyond the year 9999") from None


# -- the number of a start


def next_start(path: str, clock: Clock) -> int:
    """Return a number that is higher than at each start before, and keep it in the file ``path``.

    Blocks on the disk. Where the last number is lost, the time stands in for it if it is known.
    A number that cannot be kept is logged, and good nevertheless.
    """
    try:
        last = int(read_kept(path, 32))
    except (OSError, ValueError):
        last = 0
    known = 0 if clock.now is None else int(clock.now.timestamp())
    start = min(max(last + 1, known, 1), MAX_START)
    try:
        write_atomically(path, b"%d\n" % start, mode=0o600)
    except OSError as error:
        log.warning("cannot keep the number of this start in %s: %s", path, error)
    return start


# -- our own


def signed_digest(body: bytes) -> bytes:
    """Return the digest of a beacon's first 466 bytes that its last 64 sign."""
    return sha256(_TAG + body).digest()


class OwnBeacons:
    """Makes this node's beacons, and knows them again when somebody repeats them.

    :param start: the number of this start, from :func:`next_start`.
    :ivar counter: beacons made since the start.
    :ivar chain: our certificates as a beacon has them; empty until :meth:`use` is called.
    :ivar address: our address as a number; None until then.
    """

    def __init__(self, fleet: Fleet, start: int) -> None:
        if not 0 < start <= MAX_START:
            raise ValueError(f"{start} is not the number of a start (1 to {MAX_START})")
        self.counter = 0
        self.chain = b""
        self.address: int | None = None
        self._fleet = fleet
        self._start = start.to_bytes(5, "big")
        self._key = b""
        #: Public keys of this start, the last ones: a few renewals.
        self._keys: list[bytes] = []

    def use(self, credentials: Credentials) -> None:
        """See :meth:`SignedBeacons.use`."""
        self.chain = pack_chain(credentials.chain, self._fleet)
        self._key = credentials.private_key
        self.address = int(credentials.peer.address)
        self._keys = [*self._keys[-3:], credentials.peer.public_key]

    def make(self, now: datetime | None, list_number: int) -> bytes:
        """Return the next beacon; each has a number of its own.

        :param now: the time; None when it is not known.
        """
        from thicket.trust import openssl

        self.counter += 1
        header = _HEADER.pack(
            SIGNED_MARK,
            self._fleet.identifier[:8],
            self._start,
            self.counter,
            bytes(5) if now is None else _pack_time(now),
            _pack_number(list_number),
        )
        body = header + self.chain
        return body + openssl.sign(self._key, signed_digest(body))

    def made(self, public_key: bytes) -> bool:
        """Return whether we have sent the beacons of the node with this key."""
        return public_key in self._keys

    def made_before(self, number: int, order: bytes) -> bool:
        """Return whether a beacon can be ours from an earlier start.

        :param number: the address that it is for.
        :param order: its start and counter.
        """
        return number == self.address and order < self._start + bytes(4)


# -- those of others: decisions


class Claim(NamedTuple):
    """What certificates say of their node, as far as it can be refused later than admitted.

    :ivar names: of its device and of its signer.
    :ivar until: the first of its certificates' ends.
    :ivar software: whether it has no security chip.
    """

    names: tuple[str, str]
    until: datetime
    software: bool


def claimed(chain: bytes) -> Claim:
    """Return what the certificates in a beacon (436 bytes) say of their node, unproven.

    :raises MalformedError: they can be no certificates of one node.
    """
    try:
        index, who, _, data = _DEVICE.unpack(chain[_DEVICE_AT - _CHAIN : _SIGNER_AT - _CHAIN])
        origin, identity, serial = _identity(index, who)
        device, signer = Compressed.unpack(data), Compressed.unpack(chain[-compressed.SIZE :])
        found = Claim(
            (
                fleets.device_name(origin, identity, serial),
                fleets.signer_name(signer.signer_id),
            ),
            min(_unpack_time(chain[21:26]), device.validity[1], signer.validity[1]),
            origin != "chip",
        )
    except ValueError:
        raise MalformedError("malformed") from None
    if device.signer_id != signer.signer_id:
        raise MalformedError(BAD_CHAIN)
    return found


def refusal(claim: Claim, rules: Rules) -> str | None:
    """Return the reason why ``check_peer`` would refuse a node now, as far as that can change."""
    if claim.until < rules.clock.lower_bound:
        return EXPIRED
    if claim.names[0] in rules.revoked or claim.names[1] in rules.revoked:
        return REVOKED
    return SOFTWARE if claim.software and rules.chip_required else None


def is_replay(order: bytes, last: bytes, silent: float) -> bool:
    """Return whether a beacon is no newer than the last one of its sender.

    Exactly the last one is never new, however long ago it was.

    :param order: start and counter, comparable as bytes; ``last`` likewise.
    :param silent: seconds since the last one.
    """
    return order == last or (order < last and silent < FORGET)


def is_untimely(sent: int, now: datetime | None) -> bool:
    """Return whether a beacon was made too long ago or in the future, both clocks being set.

    :param sent: when it was made (Unix seconds); 0 when the sender did not know.
    :param now: the time; None when it is not known.
    """
    return bool(sent) and now is not None and abs(sent - now.timestamp()) > SKEW.total_seconds()


# -- those of others: what is known of them


class _Sender:
    """A node whose certificates were found good.

    :ivar order: start and counter of its last beacon, comparable as bytes.
    :ivar list_number: of the list of revocations in its last beacon, as bytes.
    :ivar turns: a node sends at most one beacon a second, and answers.
    :ivar renewals: a new certificate comes with each start, and then about twice a day.
    """

    __slots__ = (
        "address", "chain", "claim", "heard", "key", "list_number", "order", "renewals", "turns",
    )  # fmt: skip

    def __init__(self, address: IPv6Address, chain: bytes, claim: Claim, key: bytes) -> None:
        self.address = address
        self.chain = chain
        self.claim = claim
        self.key = key
        self.order = b""
        self.list_number = b""
        self.heard = 0.0
        self.turns = Bucket(rate=2.0, burst=8.0)
        self.renewals = Bucket(rate=0.1, burst=4.0)


class Genuine:
    """Checks signatures, and remembers which signers and devices have genuine certificates.

    :ivar known: digests of their parts of a beacon, the oldest first.
    :ivar checked: signatures that were checked; what a flood costs.
    """

    LIMIT = 1024
    """How many signers and devices are remembered."""

    SIGNERS = 8
    """Of how many signers the certificates are kept, made and read: each stands above many nodes.
    """

    def __init__(self, verify: Verify) -> None:
        self.known: OrderedDict[bytes, None] = OrderedDict()
        self.checked = 0
        self._signers: OrderedDict[bytes, Certificate] = OrderedDict()
        self._verify = verify

    def verify(self, key: bytes, digest: bytes, signature: bytes) -> bool:
        """Return whether a signature is good."""
        self.checked += 1
        return self._verify(key, digest, signature)

    def __contains__(self, part: bytes) -> bool:
        return sha256(part).digest() in self.known

    def remember(self, part: bytes) -> None:
        """Take a part of a beacon for genuine from now on."""
        digest = sha256(part).digest()
        self.known[digest] = None
        self.known.move_to_end(digest)
        while len(self.known) > self.LIMIT:
            self.known.popitem(last=False)

    def prove(
        self, certificate: Certificate, key: bytes, part: bytes
    ) -> tuple[bytes, bytes, bytes]:
        """Return key, digest and signature of a certificate that was rebuilt of ``part``.

        :raises MalformedError: it is not signed by this key.
        """
        signed = key, sha256(certificate.tbs).digest(), certificate.signature
        if part not in self and not self.verify(*signed):
            raise MalformedError(BAD_SIGNATURE)
        self.remember(part)
        return signed

    def signer(self, part: bytes, fleet: Fleet) -> tuple[Certificate, tuple[bytes, bytes, bytes]]:
        """Return the certificate of a signer, and what :meth:`prove` returns of it.

        :raises CertificateError: no certificate can be made of ``part``.
        :raises MalformedError: it is not signed by the fleet's root.
        """
        certificate = self._signers.get(part)
        if certificate is None:
            certificate = Certificate(_signer(fleet, part)[1])
        proven = self.prove(certificate, fleet.root.public_key, part)
        self._signers[part] = certificate
        self._signers.move_to_end(part)
        while len(self._signers) > self.SIGNERS:
            self._signers.popitem(last=False)
        return certificate, proven


def _take(bucket: Bucket, now: float, reason: str) -> None:
    if not bucket.take(now):
        raise MalformedError(reason)


class SignedBeacons:
    """Signs our beacons and judges those of others: a ``discovery.Codec``.

    Until :meth:`use` has been called, nothing is sent, and what is heard is judged all the same.

    :param start: the number of this start, from :func:`next_start`.
    :param rules: returns the rules in force. It is asked for each beacon, so what changes holds
        from the next one on.
    :param on_list_number: told the address and the number of the list of revocations of every
        sender that was found good.
    :param limit: how many senders are remembered.
    :param verify: checks a signature; OpenSSL by default.
    :param proven: where to keep the chains that were found good.
    :ivar own: our beacons.
    :ivar senders: who was found good, by address, the one that was silent longest first.
    """

    form = "signed"

    #: Signature checks a second, and at once, for known senders together. A mesh of 256 nodes has
    #: 13 beacons a second; a check takes 0.15 ms on a PC.
    SIGNATURES = (50.0, 256.0)
    #: The same for beacons (of three checks at most) of unknown senders, and (of four) of unknown
    #: signers. A fleet of 64 nodes that comes up at once is learnt at once.
    STRANGERS = (8.0, 64.0)
    SIGNERS = (0.5, 4.0)

    def __init__(
        self,
        fleet: Fleet,
        start: int,
        rules: Callable[[], Rules],
        *,
        on_list_number: Callable[[IPv6Address, int], None] | None = None,
        limit: int = 1024,
        verify: Verify = verify_signature,
        proven: Proven | None = None,
    ) -> None:
        self.own = OwnBeacons(fleet, start)
        self._proven = Proven() if proven is None else proven
        self.genuine = Genuine(verify)
        self.senders: OrderedDict[int, _Sender] = OrderedDict()
        self._fleet = fleet
        self._fleet_tag = fleet.identifier[:8]
        self._network = int(fleet.network.network_address)
        self._rules = rules
        self._on_list_number = on_list_number
        self._limit = limit
        self._signatures = Bucket(*self.SIGNATURES)
        self._strangers = Bucket(*self.STRANGERS)
        self._signers = Bucket(*self.SIGNERS)
        #: That of our list of revocations when it was needed last; we send at least every minute.
        self._list_number = b""

    def use(self, credentials: Credentials) -> None:
        """Send with these (renewed) credentials.

        :raises CertificateError: they do not fit into a beacon.
        """
        self.own.use(credentials)
        # what vouches for us is genuine, or we would not have it
        self.genuine.remember(self.own.chain[_SIGNER_AT - _CHAIN :])
        self.genuine.remember(self.own.chain[_DEVICE_AT - _CHAIN :])

    def payload(self, now: float) -> bytes:
        """See ``Codec``."""
        if not self.own.chain:
            return b""
        rules = self._in_force()
        return self.own.make(rules.clock.now, rules.list_number)

    def claims(self, payload: bytes) -> bool:
        """See ``Codec``."""
        return payload.startswith(SIGNED_MARK)

    def snapshot(self) -> dict[str, Any]:
        """See ``Codec``."""
        return {"senders": len(self.senders), "signatures_checked": self.genuine.checked}

    def repeats(self, payload: bytes, now: float) -> tuple[IPv6Address, float] | None:
        """See ``Codec``. It tells nothing new if only counter and time are others than in a beacon
        that was found good, and the sender has the list of revocations that we have."""
        if len(payload) != SIZE or payload[:12] != SIGNED_MARK + self._fleet_tag:
            return None
        try:
            sender = self.senders.get(self._number(payload))
        except MalformedError:
            return None
        if (
            sender is None
            or payload[12:17] != sender.order[:5]
            or payload[17:21] <= sender.order[5:]
            or not payload[26:30] == sender.list_number == self._list_number
            or payload[_CHAIN:_SIGNATURE] != sender.chain
        ):
            return None
        return sender.address, now - sender.heard

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
        if self.own.made(payload[_CHAIN + 26 : _CHAIN + 90]):
            raise MalformedError("echo")
        sender, order = self.senders.get(number), payload[12:21]
        if (
            self.own.made_before(number, order)
            if sender is None
            else is_replay(order, sender.order, now - sender.heard)
        ):
            raise MalformedError("replay")
        rules = self._in_force()
        if is_untimely(int.from_bytes(payload[21:26], "big"), rules.clock.now):
            raise MalformedError("time")
        chain = payload[_CHAIN:_SIGNATURE]
        if sender is not None and sender.chain == chain:
            if reason := refusal(sender.claim, rules):
                raise MalformedError(reason)
            _take(sender.turns, now, "sender_rate")
            _take(self._signatures, now, "signature_rate")
            found = sender
        else:
            found = self._admit(address, chain, sender, rules, now)
        digest = signed_digest(payload[:_SIGNATURE])
        if not self.genuine.verify(found.key, digest, payload[_SIGNATURE:]):
            raise MalformedError("forged")
        found.order, found.heard, found.list_number = order, now, payload[26:30]
        self.senders[number] = found
        self.senders.move_to_end(number)
        while len(self.senders) > self._limit:
            self.senders.popitem(last=False)
        if number == self.own.address:
            raise MalformedError("own")
        if self._on_list_number is not None:
            self._on_list_number(address, int.from_bytes(payload[26:30], "big"))
        return address

    # -- steps of it

    def _number(self, payload: bytes) -> int:
        """Return the address that a beacon is for, as a number."""
        index = payload[_DEVICE_AT]
        who = payload[_DEVICE_AT + 1 : _DEVICE_AT + 1 + SERIAL_SIZE]
        identity = who[2:8] if index == 0 else who[:ID_SIZE]
        if index >= len(SOURCES):
            raise MalformedError("malformed")
        return self._network | index << 48 | int.from_bytes(identity, "big")

    def _in_force(self) -> Rules:
        """Return the rules in force."""
        rules = self._rules()
        self._list_number = _pack_number(rules.list_number)
        return rules

    def _admit(
        self, address: IPv6Address, chain: bytes, sender: _Sender | None, rules: Rules, now: float
    ) -> _Sender:
        """Return who has sent these certificates, which are not those known of the ``sender``."""
        if sender is not None:
            budget, reason = sender.renewals, "sender_rate"
        elif chain[_SIGNER_AT - _CHAIN :] in self.genuine:
            budget, reason = self._strangers, "stranger_rate"
        else:
            budget, reason = self._signers, "stranger_rate"
        if not budget.ready(now):
            raise MalformedError(reason)
        # What the certificates say is not proven yet, but a node that says of itself that it is to
        # be refused needs no proof.
        claim = claimed(chain)
        if refused := refusal(claim, rules):
            raise MalformedError(refused)
        _take(budget, now, reason)
        if sender is not None:
            _take(self._signatures, now, "signature_rate")
        found = _Sender(address, chain, claim, self._prove(chain, claim, rules).public_key)
        if sender is not None:
            # A new certificate gives nobody new budgets.
            found.turns, found.renewals = sender.turns, sender.renewals
        return found

    def _prove(self, chain: bytes, claim: Claim, rules: Rules) -> Peer:
        """Return who has these certificates; checked from the top down, and none below a bad one.

        :raises MalformedError: the sender is refused.
        """
        leaf_part = chain[: _LEAF.size]
        device_part = chain[_DEVICE_AT - _CHAIN : _SIGNER_AT - _CHAIN]
        signer_part = chain[_SIGNER_AT - _CHAIN :]
        fleet, genuine = self._fleet, self.genuine
        try:
            signer, signature = genuine.signer(signer_part, fleet)
            device = Certificate(_device(fleet, device_part, signer.public_key))
            proven = {
                signature,
                genuine.prove(device, signer.public_key, device_part + signer_part),
            }
            return check_peer(
                (_leaf(fleet, leaf_part, device), device, signer),
                fleet,
                clock=rules.clock,
                revoked=(name for name in claim.names if name in rules.revoked),
                chip_required=rules.chip_required,
                verify=lambda *signed: signed in proven or genuine.verify(*signed),
                proven=self._proven,
            )
        except RefusedError as error:
            raise MalformedError(error.reason) from None
        except ValueError:
            raise MalformedError("malformed") from None
