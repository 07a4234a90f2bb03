# SPDX-License-Identifier: Apache-2.0
"""Distribution over TLS, as Erlang's ``-proto_dist inet6_tls`` does it.

The whole connection, handshake included, runs inside mutual TLS; frames of the handshake have a
length of four bytes then (source of OTP's ``inet_tls_dist.erl``). A certificate speaks for a node
when its subject alternative names have the node's address: as an IP address, which OTP 27 and later
look at, and better as a DNS name with the same text, too, which OTP 25 looks at.
"""

from __future__ import annotations

import ssl
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, NamedTuple

from .handshake import HandshakeError


class Tls(NamedTuple):
    """The contexts for connections that others make, and that this node makes."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def contexts(certificate: Path | str, key: Path | str, authorities: Path | str) -> Tls:
    """Return contexts for mutual TLS.

    :param certificate: file with this node's certificate, and the chain above it (PEM).
    :param key: file with its private key (PEM).
    :param authorities: file with the certificates that others' must descend from (PEM).
    :raises OSError: when a file cannot be read; ssl.SSLError is one.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks names
    for context in (server, client):
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # all that OTP 25 and 27 speak here
        context.load_cert_chain(str(certificate), str(key))
        context.load_verify_locations(str(authorities))
        context.verify_mode = ssl.CERT_REQUIRED
    return Tls(server, client)


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
