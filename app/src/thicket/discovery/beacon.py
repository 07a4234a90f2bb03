# SPDX-License-Identifier: Apache-2.0
"""Beacons, by which nodes find each other: datagrams to [ff02::69]:49999.

The plain form is that of a published mesh of Nerves devices ("the post" below); its nodes and ours
find each other.

A beacon is one UDP datagram. The payload of the plain form is the sender's IPv6 address as ASCII
text, spelt as in the name of its node, and nothing else. The signed form is in
``thicket.trust.signed_beacon``. For each form in use a :class:`Codec` makes and judges payloads.

docs/node.md says when beacons are sent and answered. A plain beacon proves nothing, and a signed
one can be a repetition. A beacon is therefore only an address to try. The table of nodes is
bounded, and so is the cost of a flood.
"""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network
from typing import Any, Protocol

from thicket.base.errors import ThicketError

GROUP = "ff02::69"
PORT = 49999
#: Longest textual IPv6 address: eight groups of four digits, or six and a dotted quad (RFC 4291
#: 2.2; INET6_ADDRSTRLEN of <netinet/in.h> is one more, for the NUL).
MAX_TEXT = 45
#: Bytes of the longest payload of any form.
MAX_PAYLOAD = 1024
#: A signed beacon begins with this; its first byte never occurs in text.
SIGNED_MARK = b"\xb7TB\x01"
_CHARACTERS = frozenset(b"0123456789abcdefABCDEF:.")
LINK_LOCAL = IPv6Network("fe80::/10")

#: Why a datagram was dropped. The counters in the status document have these names.
REASONS = (
    "empty",  # no payload
    "length",  # longer than any address
    "characters",  # something else than hexadecimal digits, colons and dots
    "syntax",  # not an IPv6 address
    "kind",  # multicast, unspecified, loopback or the subnet-router anycast address
    "prefix",  # not in our prefix
    "own",  # our own address
    "source",  # sent by somebody else than it announces
    "hop_limit",  # passed a router
    "full",  # the table is full
    "rate",  # a flood
    "form",  # the plain form where the signed one is asked for, or the reverse
    # Of the signed form, see trust/signed_beacon.py; those with a hyphen are trust/verify.py's.
    "malformed",  # no certificates can be made of it
    "echo",  # our own, sent again by somebody
    "replay",  # not newer than the last one of the same node
    "time",  # made too long ago or in the future, both clocks being set
    "sender_rate",  # more than a node sends, in the name of one that is known
    "stranger_rate",  # too many unknown nodes at once
    "signature_rate",  # too many signatures to check at once
    "forged",  # not signed by the node's key
    "other-fleet",
    "bad-chain",
    "bad-signature",  # of a certificate
    "not-its-name",
    "not-its-address",
    "expired",
    "revoked",
    "software-identity",
)


class MalformedError(ThicketError):
    """A datagram that is not a beacon for us.

    :ivar reason: one of REASONS.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def encode(address: IPv6Address) -> bytes:
    """Return the payload that announces ``address``: its canonical text (RFC 5952)."""
    return str(address).encode("ascii")


def decode(payload: bytes, prefix: IPv6Network, own: IPv6Address | None) -> IPv6Address:
    """Return the address that a beacon announces, in any textual form of RFC 4291.

    :raises MalformedError: it is not a unicast address inside ``prefix`` other than ``own``.
    """
    if not payload:
        raise MalformedError("empty")
    if len(payload) > MAX_TEXT:
        raise MalformedError("length")
    if not _CHARACTERS.issuperset(payload):
        raise MalformedError("characters")
    try:
        address = IPv6Address(payload.decode("ascii"))
    except ValueError:
        raise MalformedError("syntax") from None
    number = int(address)
    # An identifier of all zeros is the subnet-router anycast address (RFC 4291 2.6.1).
    if number <= 1 or number >> 120 == 0xFF or number & (2**64 - 1) == 0:
        raise MalformedError("kind")
    if address not in prefix:
        raise MalformedError("prefix")
    if address == own:
        raise MalformedError("own")
    return address


class Codec(Protocol):
    """One form of beacon: makes ours and judges those of others."""

    form: str
    """Its name in the configuration and the status document."""

    def payload(self, now: float) -> bytes:
        """Return the next beacon to send; empty when there is none (yet)."""

    def claims(self, payload: bytes) -> bool:
        """Whether ``payload`` begins as this form does, whatever follows."""

    def repeats(self, payload: bytes, now: float) -> tuple[IPv6Address, float] | None:
        """Return the node that a beacon seems to be of, if it tells nothing new, and the seconds
        since that node last proved itself; None if it is to be judged. Proves nothing.

        :param now: as for :meth:`read`.
        """

    def read(self, payload: bytes, source: IPv6Address | None, now: float) -> IPv6Address:
        """Return the address that a beacon announces.

        :param source: where it came from; None when that does not matter.
        :param now: seconds of a clock that never steps.
        :raises MalformedError: it is not a good beacon.
        """

    def snapshot(self) -> dict[str, Any]:
        """Return this form's part of the status document."""


def check_source(address: IPv6Address, source: IPv6Address | None) -> None:
    """Check where a beacon came from.

    :raises MalformedError: ``source`` is neither ``address`` nor a link-local address.
    """
    if source is not None and source != address and source not in LINK_LOCAL:
        raise MalformedError("source")


class PlainBeacons:
    """The plain form, as in the post. Anybody can send one for anybody."""

    form = "plain"

    def __init__(self, address: IPv6Address, prefix: IPv6Network) -> None:
        self.address = address
        self.prefix = prefix
        self._payload = encode(address)

    def payload(self, now: float) -> bytes:
        return self._payload

    def claims(self, payload: bytes) -> bool:
        return not payload.startswith(SIGNED_MARK)

    def repeats(self, payload: bytes, now: float) -> tuple[IPv6Address, float] | None:
        return None  # to judge it costs no more

    def read(self, payload: bytes, source: IPv6Address | None, now: float) -> IPv6Address:
        address = decode(payload, self.prefix, self.address)
        check_source(address, source)
        return address

    def snapshot(self) -> dict[str, Any]:
        return {}


def in_use(choice: str, plain: Codec, signed: Codec | None) -> tuple[Codec, ...]:
    """Return the forms that ``discovery.beacon`` chooses, in the order of sending.

    Nothing replaces a signed form that is missing: the node then neither sends nor accepts any.
    """
    chosen: tuple[Codec, ...] = ()
    if choice in {"signed", "both"} and signed is not None:
        chosen += (signed,)
    if choice in {"plain", "both"}:
        chosen += (plain,)
    return chosen
