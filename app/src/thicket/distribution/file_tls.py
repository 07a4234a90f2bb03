# SPDX-License-Identifier: Apache-2.0
"""TLS with certificates in files, for a node that belongs to no fleet.

It works with stock nodes that are started with ``-proto_dist inet6_tls``. For the certificates of a
fleet see ``thicket.trust.tls.FleetTls``.
"""

from __future__ import annotations

import ssl
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from thicket.distribution.handshake import HandshakeError


class FileTls:
    """TLS with certificates in files, which are read once.

    A certificate is valid for a node when its subject alternative names have the node's address: as
    an IP address, for OTP 27 and later, and best also as a DNS name with the same text, for OTP 25.

    :param certificate: file with this node's certificate, and the chain above it (PEM).
    :param key: file with its private key (PEM).
    :param authorities: file with the authorities of other nodes' certificates (PEM).
    :raises OSError: a file cannot be read; ssl.SSLError is one.
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
        check_name(ssl_object, host, name)


def check_name(ssl_object: Any, host: str, name: str) -> None:
    """Check that the peer's certificate is valid for ``host``, the address in its name.

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
