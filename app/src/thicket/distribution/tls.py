# SPDX-License-Identifier: Apache-2.0
"""Distribution over TLS, as Erlang's ``-proto_dist inet6_tls`` does it.

The whole connection, handshake included, runs inside mutual TLS; frames of the handshake have a
length of four bytes then (source of OTP's ``inet_tls_dist.erl``). What a node needs for that is a
:class:`Tls`: :class:`FileTls` takes files of certificates, ``thicket.trust.tls.FleetTls`` the
certificates of a fleet.
"""

from __future__ import annotations

import ssl
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, Protocol

from thicket.distribution.handshake import HandshakeError


class Tls(Protocol):
    """How a node proves who it is, and who may talk with it.

    The contexts may be given renewed certificates at any time: they are used for the connections
    that begin from then on.
    """

    @property
    def server(self) -> ssl.SSLContext:
        """The context of connections that others make; it must ask for their certificate."""

    @property
    def client(self) -> ssl.SSLContext:
        """The context of connections that this node makes. With ``check_hostname`` it is asked
        whether the certificate is for the peer's address."""

    def check(self, ssl_object: Any, host: str, name: str) -> None:
        """Check the peer of a connection on which the handshake of TLS has succeeded.

        Called on both sides before anything else is said, and for open connections by
        ``Node.recheck``.

        :param host: the peer's address (IPv6, canonical text).
        :param name: the full name that it is known by, or gives itself.
        :raises HandshakeError: when it is refused; the code is the reason.
        """


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
        """See :meth:`Tls.check`."""
        check_name(ssl_object, host, name)


def contexts(certificate: Path | str, key: Path | str, authorities: Path | str) -> FileTls:
    """Return :class:`FileTls` of these files."""
    return FileTls(certificate, key, authorities)


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
