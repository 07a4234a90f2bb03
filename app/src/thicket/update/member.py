# SPDX-License-Identifier: Apache-2.0
"""What a member of the fleet signs about updates, with the key of its node's certificate.

A record of progress, or an order by a member that the configuration names, goes from node to node;
whoever gets it has to know whose it is, wherever it came from. It names the signer's certificates
by the beginning of their digest. The certificates (436 bytes, as a beacon has them) travel beside
it, or are asked for. All numbers are big endian:

    4 bytes   mark and version of the format
    1         what it is: 1 a record (``progress``), 2 an order (``offer``)
    ...       the content
    8         the beginning of SHA-256 of the certificates
    64        signature of everything before it, behind a text that nothing else of Thicket signs

A record takes 136 bytes and its words.

**The end of a certificate.** A node that is switched off makes no new records, and what it told
last still counts, so that two nodes that hear of it at different times decide the same. A signature
is taken for ``KEEP`` seconds longer than its certificate is valid; then the node is forgotten. What
a revoked device or signer has signed does not count.

**What keeps rubbish cheap.** Whatever is old is dropped before a signature is checked. The peer
that hands on a wrong signature pays for it: it may do so a few times, then nothing of it is read
for some seconds. Certificates are checked from the top, so made-up ones cost one check.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from enum import IntEnum
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

from thicket.base.errors import CodedError
from thicket.base.pace import Bucket
from thicket.discovery.beacon import MalformedError
from thicket.trust.certificates import Certificate, CertificateError
from thicket.trust.signed_beacon import CHAIN_SIZE, claimed, pack_chain, refusal, unpack_chain
from thicket.trust.verify import (
    EXPIRED,
    MALFORMED,
    REVOKED,
    SOFTWARE,
    Clock,
    RefusedError,
    Rules,
    Verify,
    check_peer,
    verify_signature,
)
from thicket.trust.verify import (
    REASONS as REFUSALS,
)
from thicket.update.progress import KEEP, node_name

if TYPE_CHECKING:
    from thicket.trust.credentials import Credentials
    from thicket.trust.fleet import Fleet

MAX_CONTENT = 512
"""Bytes of the largest content."""

DIGEST = 8
"""Bytes of the certificates' digest."""

UNKNOWN, FORGED, TOO_OFTEN, LATER = "unknown", "forged", "too-often", "later"

REASONS = {
    MALFORMED: "it is not in the form that nodes write",
    EXPIRED: "the certificate that it was signed with ended long ago",
    REVOKED: "the device or its signer is revoked",
    SOFTWARE: "its node has no security chip, and the policy asks for one",
    UNKNOWN: "the certificates that it was signed with are not here",
    FORGED: "the signature is wrong",
    TOO_OFTEN: "the node that handed it on has sent too many wrong ones",
    LATER: "too many new certificates at once: it is read when it comes again",
}
"""The reasons of a :class:`MemberError`; others are those of ``trust.verify.REASONS``."""

HONEST: Final = frozenset({UNKNOWN, EXPIRED, REVOKED, SOFTWARE, LATER})
"""Reasons for which an honest peer can have handed it on."""

FAULTS = (0.2, 4.0)
"""Wrong signatures that one peer may hand on: per second on average, and at once."""

NEW = (8.0, 48.0)
"""Certificates that were not seen before and are checked: per second on average, and at once. Each
takes as long as ten signatures."""

MOST_CHAINS = 1024

MARK = b"THU1"

_TAG = b"thicket update member 1\n"
_HEAD = len(MARK) + 1
_TAIL = DIGEST + 64


class MemberError(CodedError):
    """Something that a member is said to have signed is not taken.

    The code is a key of ``REASONS`` or of ``trust.verify.REASONS``. With ``UNKNOWN``, whoever
    handed it on has the certificates.
    """


class Kind(IntEnum):
    """What is signed."""

    PROGRESS = 1
    ORDER = 2


class Sealed(NamedTuple):
    """Something that a member is said to have signed; nothing is verified.

    :ivar key: the beginning of the digest of the certificates.
    """

    kind: Kind
    content: bytes
    key: bytes
    signature: bytes

    def packed(self) -> bytes:
        """Return it as it travels."""
        return self._body() + self.signature

    @property
    def to_sign(self) -> bytes:
        """SHA-256 of what the signature is about."""
        return sha256(_TAG + self._body()).digest()

    def _body(self) -> bytes:
        return MARK + bytes((self.kind,)) + self.content + self.key


class Author(NamedTuple):
    """A member whose certificates were found good.

    :ivar node: its name, as in records (:func:`thicket.update.progress.node_name`).
    :ivar names: of its device and of who has enrolled it: what can be revoked.
    :ivar public_key: the node's key.
    :ivar until: when its certificate ends, in Unix seconds.
    """

    node: str
    names: tuple[str, str]
    public_key: bytes
    until: float


def seal(
    kind: Kind, content: bytes, credentials: Credentials, fleet: Fleet
) -> tuple[Sealed, bytes]:
    """Sign with the key of this node; return that and its certificates as a beacon has them.

    :raises CertificateError: its certificates do not fit into a beacon.
    """
    from thicket.trust import openssl

    chain = pack_chain(credentials.chain, fleet)
    unsigned = Sealed(kind, content, key_of(chain), bytes(64))
    signature = openssl.sign(credentials.private_key, unsigned.to_sign)
    return unsigned._replace(signature=signature), chain


def read(data: bytes) -> Sealed:
    """Take apart what travels; nothing is verified.

    :raises MemberError: it is not in the form that is written.
    """
    size = len(data) - _HEAD - _TAIL
    if not data.startswith(MARK) or not 0 <= size <= MAX_CONTENT:
        raise _error(MALFORMED)
    if data[len(MARK)] not in tuple(Kind):
        raise _error(MALFORMED)
    end = _HEAD + size
    kind = Kind(data[len(MARK)])
    return Sealed(kind, data[_HEAD:end], data[end : end + DIGEST], data[end + DIGEST :])


def key_of(chain: bytes) -> bytes:
    """Return what names these certificates (436 bytes)."""
    return sha256(chain).digest()[:DIGEST]


class Authors:
    """Tells who has signed, and keeps the certificates of those who have.

    :param rules: returns the rules in force.
    :param verify: checks a signature; OpenSSL by default.
    :ivar known: certificates, as a beacon has them, and their member, by the digest of the
        certificates; the one that was silent longest first.
    :ivar checked: signatures that were checked; what a flood costs.
    """

    def __init__(
        self, fleet: Fleet, rules: Callable[[], Rules], *, verify: Verify = verify_signature
    ) -> None:
        self.known: OrderedDict[bytes, tuple[bytes, Author]] = OrderedDict()
        self.checked = 0
        self._fleet = fleet
        self._rules = rules
        self._check = verify
        self._faults: OrderedDict[str, Bucket] = OrderedDict()
        self._new = Bucket(*NEW)

    def check(
        self, sealed: Sealed, peer: str, now: float, chain: bytes = b"", node: str = ""
    ) -> Author:
        """Return who has signed.

        :param peer: who has handed it on; empty for what is this node's own, or was kept by it,
            which nothing limits.
        :param now: seconds of a clock that only goes forward.
        :param chain: certificates that came with it.
        :param node: who must have signed it; empty for anybody.
        :raises MemberError: it is not taken.
        """
        faults = self._faults.setdefault(peer, Bucket(*FAULTS))
        self._faults.move_to_end(peer)
        while len(self._faults) > MOST_CHAINS:
            self._faults.popitem(last=False)
        if peer and not faults.ready(now):
            raise _error(TOO_OFTEN)
        try:
            chain, author = self._author(sealed.key, chain, now if peer else None)
            if not self._verify(author.public_key, sealed.to_sign, sealed.signature):
                raise _error(FORGED)
            if node not in ("", author.node):
                raise MemberError(FORGED, f"{author.node} has signed for {node}")
        except MemberError as error:
            if error.code not in HONEST:
                faults.take(now)
            raise
        self.known[sealed.key] = chain, author
        self.known.move_to_end(sealed.key)
        while len(self.known) > MOST_CHAINS:
            self.known.popitem(last=False)
        return author

    def gone(self, author: Author) -> bool:
        """Whether what a member has signed does not count any more: it is revoked or long off."""
        return bool(self._gone(author))

    def _gone(self, author: Author) -> str:
        rules = self._rules()
        if any(name in rules.revoked for name in author.names):
            return REVOKED
        late = author.until < _late(rules).clock.lower_bound.timestamp()
        return EXPIRED if late else ""

    def _author(self, key: bytes, chain: bytes, now: float | None) -> tuple[bytes, Author]:
        known = self.known.get(key)
        if known is not None:
            if reason := self._gone(known[1]):
                del self.known[key]
                raise _error(reason)
            return known
        if len(chain) != CHAIN_SIZE or key_of(chain) != key:
            raise _error(UNKNOWN)
        # One that says of itself that it does not count needs no proof.
        if reason := self._refused(chain):
            raise _error(reason)
        if now is not None and not self._new.take(now):
            raise _error(LATER)
        return chain, self._prove(chain)

    def _refused(self, packed: bytes) -> str:
        """Return why certificates do not count by what they say themselves; empty if they may."""
        try:
            return refusal(claimed(packed), _late(self._rules())) or ""
        except MalformedError as error:
            return error.reason

    def _prove(self, packed: bytes) -> Author:
        """Check certificates from the top down, and none below a bad one."""
        rules, fleet = _late(self._rules()), self._fleet
        try:
            chain = unpack_chain(packed, fleet)
            leaf, device, signer = (Certificate(one) for one in chain)
            proven: set[tuple[bytes, bytes, bytes]] = set()
            above = fleet.root.public_key
            for one in (signer, device, leaf):
                signed = above, sha256(one.tbs).digest(), one.signature
                if not self._verify(*signed):
                    raise _error(FORGED)
                proven.add(signed)
                above = one.public_key
            peer = check_peer(
                chain,
                fleet,
                clock=rules.clock,
                revoked=rules.revoked,
                chip_required=rules.chip_required,
                verify=lambda *signed: signed in proven,
            )
        except RefusedError as error:
            raise MemberError(error.reason, str(error)) from None
        except CertificateError as error:
            raise MemberError(MALFORMED, f"{REASONS[MALFORMED]}: {error}") from None
        name = node_name(peer.source, peer.address.packed[-6:])
        return Author(name, (peer.device, peer.signer), peer.public_key, peer.until.timestamp())

    def _verify(self, key: bytes, digest: bytes, signature: bytes) -> bool:
        self.checked += 1
        return self._check(key, digest, signature)


def _late(rules: Rules) -> Rules:
    """Return the rules for certificates that may have ended ``KEEP`` seconds ago."""
    clock, keep = rules.clock, timedelta(seconds=KEEP)
    now = None if clock.now is None else max(clock.now, clock.floor) - keep
    return rules._replace(clock=Clock(clock.floor - keep, now))


def _error(reason: str) -> MemberError:
    return MemberError(reason, REASONS.get(reason) or REFUSALS.get(reason) or reason)
