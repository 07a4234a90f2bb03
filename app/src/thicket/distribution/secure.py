# SPDX-License-Identifier: Apache-2.0
"""TLS between a connection and its socket, as Erlang's ``-proto_dist inet6_tls`` does it.

The whole connection, with the handshake of nodes, runs inside mutual TLS; frames of that handshake
then have a length of four bytes (source of OTP's ``inet_tls_dist.erl``). A :class:`Tls` decides
which peers are accepted: :class:`.file_tls.FileTls` uses files of certificates,
``thicket.trust.tls.FleetTls`` the certificates of a fleet.

asyncio's own TLS is not enough between nodes: when a handshake fails it sends no alert, so that the
peer sees a closed connection in place of the reason; the accepting side learns nothing at all; and
handshakes in progress can be neither counted nor limited. Here all connections also share one
buffer for the bytes of the wire (asyncio: 256 KiB each).

Codes of failures: ``no-tls`` (the peer does not speak TLS), ``tls-version``, ``no-certificate``,
``tls`` (everything else), and for certificates those of ``thicket.trust.verify``: ``other-fleet``
(of an authority that is not ours), ``expired``, ``revoked``, ``not-its-name``, ``bad-signature``,
``bad-chain``; ``wrong-certificate`` when it is for another address, or the peer does not say more.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from thicket.distribution.handshake import OURS, THEIRS, DistributionError, HandshakeError

if TYPE_CHECKING:
    from thicket.distribution.connection import Connection

BUFFER_SIZE = 128 * 1024
MAX_LINGERING = 32
"""Limit of closed connections that wait until the peer has read the reason."""

_RECORDS = frozenset((20, 21, 22, 23))  # content types of RFC 8446, section 5.1

_ALERT = b"\x15\3\3\0\2\2\x46"
"""A fatal alert, protocol_version. OpenSSL sends none to a peer without TLS; Thicket nodes read it.
"""

_OTHER = "other-fleet", "the certificate is of an authority that is not ours"
_NOT_ITS_NAME = "not-its-name", "the certificate names what its authority may not name"
_WRONG = "wrong-certificate", "the certificate is for another address"
# X509_V_ERR_* of OpenSSL's x509_vfy.h
_VERIFY = {
    2: _OTHER,
    7: ("bad-signature", "a signature in the chain is wrong"),
    10: ("expired", "the certificate has expired"),
    18: _OTHER,
    19: _OTHER,
    20: _OTHER,
    21: _OTHER,
    23: ("revoked", "the certificate is revoked"),
    47: _NOT_ITS_NAME,
    48: _NOT_ITS_NAME,
    62: _WRONG,
    64: _WRONG,
}
_BAD_CHAIN = "bad-chain", "the certificates do not make a good chain"

# What follows ALERT_ in OpenSSL's name of an alert of the peer (RFC 8446, section 6.2)
_ALERTS = {
    "UNKNOWN_CA": ("other-fleet", "this node's certificate is of an authority unknown there"),
    "CERTIFICATE_REQUIRED": ("no-certificate", "this node showed no certificate"),
    "CERTIFICATE_EXPIRED": ("expired", "this node's certificate has expired"),
    "CERTIFICATE_REVOKED": ("revoked", "this node's certificate is revoked"),
    "BAD_CERTIFICATE": ("wrong-certificate", "this node's certificate is not accepted"),
    "CERTIFICATE_UNKNOWN": ("wrong-certificate", "this node's certificate is not accepted"),
    "UNSUPPORTED_CERTIFICATE": ("wrong-certificate", "this node's certificate is not accepted"),
    "ACCESS_DENIED": ("not-allowed", "it allows no access"),
    "PROTOCOL_VERSION": ("tls-version", "it speaks another version of TLS"),
}
_OURS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": ("no-certificate", "the peer shows no certificate"),
    "UNSUPPORTED_PROTOCOL": ("tls-version", "the peer speaks a version of TLS that is too old"),
}


def explained(error: ssl.SSLError, who: str) -> HandshakeError:
    """Turn OpenSSL's error in the handshake with ``who`` into a code and plain words."""
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        code, words = _VERIFY.get(error.verify_code, _BAD_CHAIN)
        return HandshakeError(code, f"{who}: {words} ({error.verify_message})", OURS)
    _, alert, name = reason.partition("ALERT_")
    if alert:
        code, words = _ALERTS.get(name, ("tls", name.lower().replace("_", " ")))
        return HandshakeError(code, f"{who} refuses this node: {words}", THEIRS)
    code, words = _OURS.get(reason, ("tls", reason.lower().replace("_", " ") or str(error)))
    return HandshakeError(code, f"{who}: {words}", OURS)


class Tls(Protocol):
    """How a node proves who it is, and which peers it accepts.

    The contexts may get renewed certificates at any time; later connections use them.
    """

    @property
    def server(self) -> ssl.SSLContext:
        """The context of connections that others make; it must ask for their certificate."""

    @property
    def client(self) -> ssl.SSLContext:
        """The context of connections that this node makes. With ``check_hostname`` it checks that
        the certificate is for the peer's address."""

    def check(self, ssl_object: Any, host: str, name: str) -> None:
        """Check the peer of a connection after the handshake of TLS.

        Called on both sides before anything else is sent, and for open connections by
        ``Node.recheck``.

        :param host: the peer's address (IPv6, canonical text).
        :param name: its full name, known or claimed.
        :raises HandshakeError: it is refused; the code is the reason.
        """


class Shared:
    """What the connections of a node share.

    :ivar buffer: for bytes of the wire, on their way to OpenSSL.
    """

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(BUFFER_SIZE))
        self.lingering: set[TlsTransport] = set()


class Secure:
    """The TLS of a node."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._shared = Shared()

    def transport(self, connection: Connection, host: str | None) -> TlsTransport:
        """Return the layer between ``connection`` and its socket.

        :param host: the address connected to, None when the peer connects.
        """
        context = self._tls.server if host is None else self._tls.client
        return TlsTransport(connection, context, self._shared, server_side=host is None, host=host)


class TlsTransport(asyncio.BufferedProtocol, asyncio.Transport):
    """The protocol of a socket, and the transport of a connection.

    ``connection_made`` tells the connection of the socket, and ``secured`` of the end of TLS's
    handshake; it is closed when that fails.

    :param server_side: the peer has connected to us.
    :param host: otherwise the address that we connect to.
    """

    def __init__(
        self,
        connection: Connection,
        context: ssl.SSLContext,
        shared: Shared,
        *,
        server_side: bool,
        host: str | None = None,
    ) -> None:
        super().__init__()
        self._connection = connection
        self._shared = shared
        self._context = context
        self._host = host
        # Made when they are needed: a stranger that sends nothing costs nothing.
        self._from_wire: ssl.MemoryBIO
        self._to_wire: ssl.MemoryBIO
        self._ssl: ssl.SSLObject
        self._server_side = server_side
        self._loop = asyncio.get_running_loop()
        self._raw: asyncio.Transport
        self._begun = False  # TLS's side of the connection exists
        self._up = False
        self._over = False  # nothing more is for the connection
        self._paused = False

    # --- the socket's side --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._raw = transport
        self._connection.connection_made(self)
        if not self._over and not self._server_side:
            self._begin()
            self._shake()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._shared.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._over:
            return
        if self._up:
            self._from_wire.write(self._shared.buffer[:nbytes])
            self._deliver()
            return
        first = not self._connection.heard
        self._connection.spoke()
        if first and self._shared.buffer[0] not in _RECORDS:
            self._raw.write(_ALERT)
            who = self._connection.source
            self._connection.close(HandshakeError("no-tls", f"{who} does not speak TLS", OURS))
            return
        if not self._begun:
            self._begin()
        self._from_wire.write(self._shared.buffer[:nbytes])
        self._shake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.lingering.discard(self)
        if not self._over and not self._up:
            # An accepting node cannot tell a peer that gave up from one without TLS.
            self._over = True
            who, how = self._connection.source, "closed the connection in the handshake of TLS"
            self._connection.close(
                HandshakeError("closed" if self._server_side else "tls", f"{who} {how}")
            )
        self._over = True
        connection = self._connection
        del self._connection  # breaks the cycle
        connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    # --- the connection's side ----------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return self._ssl if self._begun else None
        return self._raw.get_extra_info(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._raw.get_write_buffer_size()

    def is_closing(self) -> bool:
        return self._over

    def is_reading(self) -> bool:
        return not self._paused

    def pause_reading(self) -> None:
        self._paused = True
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        self._paused = False
        self._raw.resume_reading()
        self._loop.call_soon(self._deliver)  # what was read before the pause

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._over or not self._up:
            return
        try:
            size = len(data)
            written = self._ssl.write(data)
            if written < size:  # OpenSSL takes a record (16 KiB) at a time
                view = memoryview(data)
                while written < size:
                    written += self._ssl.write(view[written:])
        except ssl.SSLError as error:
            self._broken(error)
            return
        self._raw.write(self._to_wire.read())

    def close(self) -> None:
        """End the connection; the peer has a moment to read what was sent, such as an alert.

        Closing a socket while bytes of the peer are unread would reset the connection, and the sent
        bytes would be lost.
        """
        if self._over:
            return
        self._over = True
        if self._up:
            with suppress(ssl.SSLError):  # it wants the peer's answer, which nobody needs
                self._ssl.unwrap()
        self._flush()
        said = self._begun or self._connection.heard
        if said and len(self._shared.lingering) < MAX_LINGERING and self._raw.can_write_eof():
            try:
                self._raw.write_eof()
            except OSError:  # the peer has gone already
                self._raw.abort()
                return
            self._shared.lingering.add(self)
            self._raw.resume_reading()
        else:
            self._raw.close()

    def abort(self) -> None:
        self._over = True
        self._raw.abort()

    # --- inside -------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._from_wire = ssl.MemoryBIO()
        self._to_wire = ssl.MemoryBIO()
        self._ssl = self._context.wrap_bio(
            self._from_wire,
            self._to_wire,
            server_side=self._server_side,
            server_hostname=self._host,
        )
        self._begun = True

    def _flush(self) -> None:
        if self._begun and self._to_wire.pending:
            self._raw.write(self._to_wire.read())

    def _shake(self) -> None:
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._broken(error)
            return
        self._flush()
        self._up = True
        self._connection.secured()
        self._deliver()

    def _deliver(self) -> None:
        """Decrypt received bytes into the connection's buffer, while it reads."""
        if self._over:
            return
        connection = self._connection
        read: Any = self._ssl.read  # into a buffer; the stubs know none but bytearray
        more = True
        while more and not self._paused and not self._over:
            buffer = connection.get_buffer(-1)
            size = len(buffer)
            got = 0
            error: ssl.SSLError | None = None
            try:
                while got < size:
                    count = read(size - got, buffer[got:])
                    if not count:
                        error = ssl.SSLZeroReturnError()
                        break
                    got += count
            except ssl.SSLWantReadError:
                more = False
            except ssl.SSLError as raised:
                error = raised
            if got:
                connection.buffer_updated(got)
            if error is not None and not self._over:
                self._broken(error)
                return
        if not self._over:
            self._flush()  # TLS may have answered something itself

    def _broken(self, error: ssl.SSLError) -> None:
        connection = self._connection
        if isinstance(error, ssl.SSLZeroReturnError | ssl.SSLEOFError):
            self._flush()
            self._raw.close()
        elif connection.established:
            what = error.reason or error
            connection.close(
                DistributionError("closed", f"the connection to {connection.name} broke: {what}")
            )
        else:
            connection.close(explained(error, connection.called))
