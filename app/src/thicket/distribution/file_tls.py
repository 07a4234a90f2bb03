# SPDX-License-Identifier: Apache-2.0
"""TLS with certificates in files, for a node that belongs to no fleet.

It talks with stock nodes that are started with ``-proto_dist inet6_tls``. The certificates of a
fleet are ``thicket.trust.tls.FleetTls``.
"""

from __future__ import annotations

import ssl
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from thicket.distribution.handshake import HandshakeError


class FileTls:
    """TLS with certificates in files, the same for as long as the node runs.

    A certificate speaks for a node when its subject alternative names have the node's address: as
    an IP address, which OTP 27 and later look at, and better as a DNS name with the same text, too,
    which OTP 25 looks at.

    :param certificate: file with this node's certificate, and the chain above it (PEM).
    :param key: file with its private key (PEM).
    :param authorities: file with the certificates that others' must descend from (PEM).
    :raises OSError: when a file cannot be read; ssl.SSLError is one.
    """

    def __init__(self, certificate: Path | str, key: Path | str, authorities: Path | str) -> None:
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks names
        for context in (self.server, self.client):
            context.minimum_version = ssl.TLSVersion.TLSv1_2  # OTP 25 speaks nothing later here
            context.options |= ssl.OP_NO_RENEGOTIATION
            context.load_cert_chain(str(certificate), str(key))
            context.load_verify_locations(str(authorities))
            context.verify_mode = ssl.CERT_REQUIRED

    def check(self, ssl_object: Any, host: str, name: str) -> None:
        """See :meth:`.Tls.check`."""
        check_name(ssl_object, host, name)


def check_name(ssl_object: Any, host: str, name: str) -> None:
    """Check that the peer's certificate speaks for *host*, of which it says that it is from.

    :raises HandshakeError: ``wrong-certificate``.
    """
    found = []
    for kind, text in (ssl_object.getpeercert() or {}).get("subjectAltName", ()):
        if kind == "IP Address":
            try:
                text = str(IPv6Address(text))  # noqa: PLW2901
            except ValueError:
                continue
        if text == host:
            return
        found.append(text)
    raise HandshakeError(
        "wrong-certificate",
        f"a node calls itself {name}, but its certificate is for {', '.join(found) or 'nobody'}",
    )
