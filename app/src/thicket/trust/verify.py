# SPDX-License-Identifier: Apache-2.0
"""Who is refused, and why: everything that decides about a peer, without network and clock.

``check_peer`` checks the whole chain, although TLS has done so before with OpenSSL, and what TLS
does not know: that the chain has the shape of a fleet's, that the peer owns the address it speaks
from, that it is not revoked, and whether a software identity will do. It therefore also serves
where there is no TLS (a signed beacon).

Time: a node without a clock knows only a lower bound, its *floor* (the image's build, and every
date that the fleet's authority has signed). A certificate is never refused because it begins in the
future. It is refused as expired by the floor, or by a clock that is known to be right.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from ipaddress import IPv6Address
from typing import NamedTuple

from thicket.base.errors import ThicketError
from thicket.trust import certificates as x509
from thicket.trust import fleet as fleets
from thicket.trust.certificates import Certificate, CertificateError
from thicket.trust.fleet import Fleet

MALFORMED = "malformed"
OTHER_FLEET = "other-fleet"
BAD_CHAIN = "bad-chain"
BAD_SIGNATURE = "bad-signature"
NOT_ITS_NAME = "not-its-name"
NOT_ITS_ADDRESS = "not-its-address"
EXPIRED = "expired"
REVOKED = "revoked"
SOFTWARE = "software-identity"
NOT_AN_OPERATOR = "not-an-operator"

REASONS = {
    MALFORMED: "the certificate cannot be read",
    OTHER_FLEET: "the certificate is of another fleet",
    BAD_CHAIN: "the certificates do not make a chain of node, device and signer",
    BAD_SIGNATURE: "a signature in the chain is wrong",
    NOT_ITS_NAME: "the node's certificate names what its device may not name",
    NOT_ITS_ADDRESS: "the peer uses an address or name that its certificate does not give it",
    EXPIRED: "the certificate has expired",
    REVOKED: "the device, its signer or the operator is revoked",
    SOFTWARE: "the peer has no security chip, and the policy asks for one",
    NOT_AN_OPERATOR: "the certificate is not one of an operator",
}
"""Every reason for a refusal, in words."""

SKEW = timedelta(minutes=10)
"""How far the clocks of two nodes may be apart without consequences."""


class RefusedError(ThicketError):
    """The peer is not let in.

    :ivar reason: a key of ``REASONS``.
    :ivar detail: what was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{REASONS[reason]}: {detail}")
        self.reason = reason
        self.detail = detail


class Clock(NamedTuple):
    """What is known about the time.

    :ivar floor: it is later than this for certain.
    :ivar now: what the time is, if a source that can be trusted has set the clock.
    """

    floor: datetime
    now: datetime | None = None

    @property
    def lower_bound(self) -> datetime:
        """The latest time that has certainly passed, within ``SKEW``."""
        if self.now is None or self.now - self.floor <= SKEW:
            return self.floor
        return self.now - SKEW

    def raised(self, *dates: datetime) -> "Clock":
        """Return a clock that has seen dates signed by the authority, which never lie ahead."""
        return self._replace(floor=max(self.floor, *dates))


class Rules(NamedTuple):
    """What decides about a peer at the moment, besides its certificates.

    :ivar revoked: names of devices and signers, as ``Revocations.names`` has them.
    :ivar list_number: the highest number of a list of revocations; 0 without one.
    :ivar chip_required: whether a peer without security chip is refused.
    """

    clock: Clock
    revoked: Collection[str] = ()
    list_number: int = 0
    chip_required: bool = False


class Peer(NamedTuple):
    """Who a peer has proved to be.

    :ivar device: the chip's serial number, or ``software-...``: what can be revoked.
    :ivar public_key: the node's key (X and Y) while it runs.
    :ivar signed: dates that the fleet's authority signed: a clock's floor (``Clock.raised``).
    :ivar signer: the name of who has enrolled the device: what can be revoked with all its devices.
    :ivar until: the end of the node's own certificate.
    """

    device: str
    address: IPv6Address
    host: str
    software: bool
    source: str
    public_key: bytes
    signed: tuple[datetime, ...]
    signer: str
    until: datetime


Verify = Callable[[bytes, bytes, bytes], bool]


def verify_signature(public_key: bytes, digest: bytes, signature: bytes) -> bool:
    """Return whether a signature (R and S) of a SHA-256 digest is by a key; OpenSSL does it."""
    from thicket.trust import openssl  # with the first signature

    return openssl.verify(public_key, digest, signature)


class Facts(NamedTuple):
    """What a chain of certificates says, and will always say: time, lists and policy have no part
    in it.

    :ivar peer: who has it.
    :ivar ends: name and end of validity of its certificates, the signer's first.
    """

    peer: Peer
    ends: tuple[tuple[str, str, datetime], ...]


class Proven:
    """Chains whose form, names and signatures were found good, the one used longest ago first.

    Only who has a genuine certificate gets a place. What changes is not kept: each check looks at
    dates, revocations and policy anew.
    """

    LIMIT = 512

    def __init__(self) -> None:
        self._facts: OrderedDict[bytes, Facts] = OrderedDict()

    def __len__(self) -> int:
        return len(self._facts)

    def find(self, mark: bytes) -> Facts | None:
        """Return the facts of the chain with this mark, if it was proven."""
        facts = self._facts.get(mark)
        if facts is not None:
            self._facts.move_to_end(mark)
        return facts

    def keep(self, mark: bytes, facts: Facts) -> None:
        """Take a chain for proven from now on."""
        self._facts[mark] = facts
        while len(self._facts) > self.LIMIT:
            self._facts.popitem(last=False)


Chain = Sequence[bytes | Certificate]
"""Certificates in DER, or read before."""


def _mark(chain: Chain, fleet: Fleet) -> bytes:
    """Return what is the same only for the same certificates in the same fleet."""
    shown = (one.der if isinstance(one, Certificate) else one for one in chain[:3])
    parts = (fleet.root.der, *shown)
    return sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()


def check_peer(
    chain: Chain,
    fleet: Fleet,
    *,
    clock: Clock,
    revoked: Iterable[str] = (),
    address: IPv6Address | None = None,
    node: str | None = None,
    chip_required: bool = False,
    verify: Verify = verify_signature,
    proven: Proven | None = None,
) -> Peer:
    """Return who the peer with these certificates is.

    :param chain: node, device and signer certificate; the root may follow and is not looked at.
    :param revoked: names of devices and signers, as ``Revocations.names`` has them.
    :param address: what the peer speaks from.
    :param node: the name that it uses in the cluster: ``name@host``, host an address or a host
        name.
    :param chip_required: refuse a peer without security chip.
    :param proven: chains that need no signatures checked again; a good one is added.
    :raises RefusedError: it is not let in.
    """
    if not 3 <= len(chain) <= 4:
        raise RefusedError(BAD_CHAIN, f"{len(chain)} certificates instead of 3")
    facts = None
    if proven is not None:
        facts = proven.find(mark := _mark(chain, fleet))
    if facts is None:
        facts = _prove(chain, fleet, verify)
        if proven is not None:
            proven.keep(mark, facts)
    peer = facts.peer
    _check_use(peer.address, peer.host, address, node)
    for what, name, end in facts.ends:
        if end < clock.lower_bound:
            raise RefusedError(
                EXPIRED,
                f"{what} {name} until {end:%Y-%m-%d %H:%M}, "
                f"and it is at least {clock.lower_bound:%Y-%m-%d %H:%M}",
            )
    gone = frozenset(revoked)
    for name in (peer.device, peer.signer):
        if name in gone:
            raise RefusedError(REVOKED, name)
    if peer.software and chip_required:
        raise RefusedError(SOFTWARE, peer.device)
    return peer


def _prove(chain: Chain, fleet: Fleet, verify: Verify) -> Facts:
    """Check all that is in the certificates themselves."""
    try:
        leaf, device, signer = (
            one if isinstance(one, Certificate) else Certificate(one) for one in chain[:3]
        )
    except CertificateError as error:
        raise RefusedError(MALFORMED, str(error)) from None
    _check_chain(leaf, device, signer, fleet, verify)
    owned, source = _check_names(leaf, device, fleet)
    peer = Peer(
        device.common_name,
        owned,
        leaf.dns[0],
        source != "chip",
        source,
        leaf.public_key,
        (device.not_before, signer.not_before),
        signer.common_name,
        leaf.not_after,
    )
    kinds = (("signer", signer), ("device", device), ("node", leaf))
    return Facts(peer, tuple((what, one.common_name, one.not_after) for what, one in kinds))


def _check_chain(
    leaf: Certificate, device: Certificate, signer: Certificate, fleet: Fleet, verify: Verify
) -> None:
    root = fleet.root
    if signer.issuer != root.subject or signer.authority_key != fleet.identifier:
        raise RefusedError(OTHER_FLEET, f"{signer.common_name!r} is not a signer of {fleet.name!r}")
    certs = ((leaf, device, "node"), (device, signer, "device"), (signer, root, "signer"))
    for below, above, what in certs:
        if below.issuer != above.subject or below.authority_key != x509.key_identifier(
            above.public_key
        ):
            raise RefusedError(BAD_CHAIN, f"the {what} is not issued by the next in the chain")
        if not verify(above.public_key, sha256(below.tbs).digest(), below.signature):
            # The names and identifiers fit and the key does not: a forgery.
            raise RefusedError(BAD_SIGNATURE, f"that of the {what} {below.common_name!r}")
    for authority, length, what in ((signer, 1, "signer"), (device, 0, "device")):
        if (
            not authority.ca
            or authority.path_length != length
            or x509.KEY_CERT_SIGN not in authority.key_usage
        ):
            raise RefusedError(BAD_CHAIN, f"the {what} is no authority of its kind")
    both = {x509.SERVER_AUTH, x509.CLIENT_AUTH}
    if leaf.ca or x509.DIGITAL_SIGNATURE not in leaf.key_usage or not both <= leaf.purposes:
        raise RefusedError(BAD_CHAIN, "the node's certificate is not one of a node")


def _check_names(leaf: Certificate, device: Certificate, fleet: Fleet) -> tuple[IPv6Address, str]:
    """Return the address that the chain gives the peer, and where its identity is from."""
    if len(device.permitted_dns) != 1:
        raise RefusedError(BAD_CHAIN, "the device is not constrained to one host name")
    host = device.permitted_dns[0]
    try:
        source, identity = fleets.split_host_name(host)
        owned = fleet.address(source, identity)
    except ValueError as error:
        raise RefusedError(NOT_ITS_NAME, str(error)) from None
    if leaf.addresses != (owned,) or leaf.dns != (host,) or leaf.common_name != host:
        named = ", ".join((*leaf.dns, *map(str, leaf.addresses), leaf.common_name))
        raise RefusedError(NOT_ITS_NAME, f"{named}; allowed are {host} and {owned}")
    try:
        serial = bytes.fromhex(device.common_name) if source == "chip" else None
        expected = fleets.device_name(source, identity, serial)
    except ValueError as error:
        raise RefusedError(NOT_ITS_NAME, f"{device.common_name}: {error}") from None
    if device.common_name != expected:
        raise RefusedError(NOT_ITS_NAME, f"{device.common_name} does not go with {owned}")
    return owned, source


def _check_use(
    owned: IPv6Address, host: str, address: IPv6Address | None, node: str | None
) -> None:
    if address is not None and address != owned:
        raise RefusedError(NOT_ITS_ADDRESS, f"it speaks from {address} and owns {owned}")
    if node is None:
        return
    used = node.partition("@")[2]
    try:
        good = IPv6Address(used) == owned
    except ValueError:
        good = used.lower() in (host, host.partition(".")[0])
    if not good:
        raise RefusedError(NOT_ITS_ADDRESS, f"it calls itself {node} and owns {host}, {owned}")
