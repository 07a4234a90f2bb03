# SPDX-License-Identifier: Apache-2.0
"""TLS 1.3 between nodes, both sides with a certificate.

    context = tls.server_context(credentials, fleet)      # or client_context
    ... a connection ...
    peer = tls.check_connection(ssl_object, fleet, clock=..., address=..., node=...)

The contexts let OpenSSL check chain, purposes and name constraints, but no dates, which is
``verify``'s part because a node may not know the time. **Use no connection before
``check_connection`` has returned**: only it knows addresses, revocations and policy.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from thicket.trust import certificates as x509
from thicket.trust.credentials import Credentials, key_pem
from thicket.trust.fleet import Fleet
from thicket.trust.verify import (
    BAD_CHAIN,
    NOT_AN_OPERATOR,
    Clock,
    Peer,
    Proven,
    RefusedError,
    Rules,
    check_peer,
)

if TYPE_CHECKING:
    from thicket.trust.operator import Operator

NO_CHECK_TIME = 0x200000
"""``X509_V_FLAG_NO_CHECK_TIME`` of OpenSSL's x509_vfy.h; ``ssl`` has no name for it."""

OPERATORS = "thicket-operator/1"
"""What an operator and a node name in TLS (ALPN, RFC 7301), so that neither can be taken for a
participant of another protocol."""

TlsObject: TypeAlias = ssl.SSLSocket | ssl.SSLObject
"""A connection that has TLS."""


class Shown(Protocol):
    """A key and the certificates that are shown with it, such as ``Credentials``."""

    @property
    def private_key(self) -> bytes:
        """The key (DER). It is secret."""

    @property
    def chain(self) -> tuple[bytes, ...]:
        """The certificates (DER), the key's own first."""


def server_context(credentials: Shown, fleet: Fleet) -> ssl.SSLContext:
    """Return a context for accepting connections: TLS 1.3, the client must have a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # A ticket would let a client come back without showing its certificate again, revoked or not.
    context.num_tickets = 0
    return _prepare(context, credentials, fleet)


def client_context(credentials: Shown, fleet: Fleet) -> ssl.SSLContext:
    """Return a context for making connections: TLS 1.3, with a certificate of our own.

    The name of the server is not checked by ``ssl``: ``check_connection`` checks the address.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return _prepare(context, credentials, fleet)


def _prepare(context: ssl.SSLContext, credentials: Shown, fleet: Fleet) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VerifyFlags(NO_CHECK_TIME)
    context.load_verify_locations(cadata=fleet.root.der)
    use_credentials(context, credentials)
    return context


def use_credentials(context: ssl.SSLContext, credentials: Shown) -> None:
    """Let the handshakes to come use (renewed) ``credentials``; open connections stay."""
    # OpenSSL reads keys from files only: one in memory that no other process can name.
    text = key_pem(credentials.private_key) + "".join(map(x509.pem, credentials.chain))
    file = os.memfd_create("thicket", os.MFD_CLOEXEC)
    try:
        os.write(file, text.encode())
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)


def peer_chain(connection: TlsObject) -> list[bytes]:
    """Return the certificates (DER) that OpenSSL verified, the peer's first and the root last.

    :raises RefusedError: there are none.
    """
    if hasattr(connection, "get_verified_chain"):  # Python 3.13
        chain = connection.get_verified_chain()
    else:
        import _ssl  # what the public method calls, since Python 3.10

        raw: Any = getattr(connection, "_sslobj", None)
        raw = getattr(raw, "_sslobj", raw)
        found = raw.get_verified_chain() if raw is not None else None
        chain = [one.public_bytes(_ssl.ENCODING_DER) for one in found or ()]
    if not chain:
        raise RefusedError(BAD_CHAIN, "the peer has shown no certificate")
    return list(chain)


def check_connection(
    connection: TlsObject,
    fleet: Fleet,
    *,
    clock: Clock,
    revoked: Iterable[str] = (),
    address: IPv6Address | None = None,
    node: str | None = None,
    chip_required: bool = False,
    proven: Proven | None = None,
) -> Peer:
    """Return who is at the other end after the handshake.

    Call it again when the revocations change: they hold for open connections as well. See
    ``verify.check_peer`` for the parameters.

    :raises RefusedError: the peer is not let in.
    """
    return check_peer(
        peer_chain(connection),
        fleet,
        clock=clock,
        revoked=revoked,
        address=address,
        node=node,
        chip_required=chip_required,
        proven=proven,
    )


class FleetTls:
    """TLS of a node's distribution with its fleet's certificates: a ``distribution.secure.Tls``.

    :param credentials: what the node shows first; :meth:`use` replaces it.
    :param rules: returns the rules in force; it is asked at each check.
    :param proven: chains whose signatures were checked before, such as those in beacons.
    """

    def __init__(
        self,
        fleet: Fleet,
        credentials: Credentials,
        rules: Callable[[], Rules],
        proven: Proven | None = None,
    ) -> None:
        self.fleet = fleet
        self._proven = Proven() if proven is None else proven
        self.server = server_context(credentials, fleet)
        # Nodes name no protocol: of these contexts only operators do.
        self.server.set_alpn_protocols([OPERATORS])
        self.client = client_context(credentials, fleet)
        self._rules = rules

    def use(self, credentials: Credentials) -> None:
        """Let the connections to come use renewed ``credentials``; open ones stay."""
        for context in (self.server, self.client):
            use_credentials(context, credentials)

    def check(self, ssl_object: TlsObject, host: str, name: str) -> None:
        """Check the peer at ``host`` that is called ``name``.

        :raises HandshakeError: it is refused; the code is one of ``verify.REASONS``.
        """
        from thicket.distribution.handshake import HandshakeError

        rules = self._rules()
        try:
            check_connection(
                ssl_object,
                self.fleet,
                clock=rules.clock,
                revoked=rules.revoked,
                address=IPv6Address(host),
                node=name,
                chip_required=rules.chip_required,
                proven=self._proven,
            )
        except RefusedError as error:
            raise HandshakeError(error.reason, f"{name}{_device(ssl_object)}: {error}") from error

    def check_operator(self, ssl_object: TlsObject) -> Operator:
        """Return which operator is at the other end.

        :raises RefusedError: it is none.
        """
        from thicket.trust.operator import check_operator  # where one comes

        if ssl_object.selected_alpn_protocol() != OPERATORS:
            raise RefusedError(NOT_AN_OPERATOR, f"it does not speak {OPERATORS}")
        rules = self._rules()
        return check_operator(
            peer_chain(ssl_object), self.fleet, clock=rules.clock, revoked=tuple(rules.revoked)
        )


def _device(connection: TlsObject) -> str:
    """Return which device the peer's certificate is of, in words; empty when that is unknown."""
    try:
        device = x509.Certificate(peer_chain(connection)[1])
    except (RefusedError, x509.CertificateError, IndexError):
        return ""
    return f" (device {device.common_name})"
