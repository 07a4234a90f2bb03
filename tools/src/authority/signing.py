# SPDX-License-Identifier: Apache-2.0
"""What the fleet's root signs: its own certificate, lists of revocations, changes of the
passphrase, and dates. Nodes read them (``thicket.trust``) and sign none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256
from ipaddress import IPv6Network
from typing import Any

from thicket.timekeeping import statement as times
from thicket.trust import certificates as x509
from thicket.trust import change as changes
from thicket.trust import fleet as fleets
from thicket.trust import revocations as lists
from thicket.trust.certificates import Profile
from thicket.trust.compressed import serial_number
from thicket.trust.signed import Kind

Sign = Callable[[bytes], bytes]
"""Returns R and S (64 bytes) for a digest."""


def root_profile(
    name: str, network: IPv6Network, public_key: bytes, validity: tuple[datetime, datetime]
) -> Profile:
    """Return what the root certificate of a fleet says."""
    if network.prefixlen not in (48, 64):
        raise ValueError(f"{network}: the prefix of a fleet is a /64 or a /48")
    own, subject = x509.key_identifier(public_key), x509.common_name(name)
    return Profile(
        serial_number(public_key, name.encode()),
        subject,
        subject,
        *validity,
        public_key,
        (
            x509.basic_constraints(True),
            x509.key_usage(x509.KEY_CERT_SIGN, x509.CRL_SIGN),
            x509.subject_key(own),
            x509.name_constraints((fleets.DOMAIN,), (network,)),
        ),
    )


def sign_revocations(listed: lists.Revocations, identifier: bytes, sign: Sign) -> bytes:
    """Return a list of revocations, signed.

    :param identifier: that of the fleet's root.
    """
    members = {"revoked": sorted(listed.names)}
    return _signed(lists.KIND, listed, members, identifier, sign)


def sign_change(change: changes.Change, identifier: bytes, sign: Sign) -> bytes:
    """Return a change of the passphrase, signed.

    :param identifier: that of the fleet's root.
    """
    members = {
        "passphrase": change.passphrase,
        "used": change.used,
        "former": sorted(change.former),
    }
    return _signed(changes.KIND, change, members, identifier, sign)


def sign_time(issued: datetime, question: str, identifier: bytes, sign: Sign) -> bytes:
    """Return a date that has passed, signed.

    :param issued: in UTC, in whole seconds.
    :param question: the node's question that it answers; empty without one.
    :param identifier: that of the fleet's root.
    """
    content = times.Statement(int(issued.timestamp()), issued, question, b"")
    return _signed(times.KIND, content, {"question": question}, identifier, sign)


def _signed(
    kind: Kind,
    content: lists.Revocations | changes.Change | times.Statement,
    members: dict[str, Any],
    identifier: bytes,
    sign: Sign,
) -> bytes:
    """Return an object of one kind, signed.

    :param members: what the object says besides the members of every kind.
    """
    text = json.dumps(
        {
            "format": 1,
            "fleet": identifier.hex(),
            "number": content.number,
            "issued": f"{content.issued.replace(tzinfo=None).isoformat(timespec='seconds')}Z",
            **members,
        },
        separators=(",", ":"),
    ).encode()
    return kind.line + sign(sha256(kind.line + text).digest()) + text
