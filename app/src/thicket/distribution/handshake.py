# SPDX-License-Identifier: Apache-2.0
"""The handshake between two nodes of a cluster, as two state machines without input or output.

Version 6 of the ERTS User's Guide, "Distribution Protocol", section "Distribution Handshake":

1. the connecting node sends its name and abilities (``N``);
2. the accepting node sends a status (``s``), and
3. its own name, abilities and a challenge (``N``);
4. the connecting node proves that it knows the cookie and challenges in turn (``r``);
5. the accepting node proves it as well (``a``), and the connection is up.

A proof is MD5 over the cookie and the challenge in decimal digits; the cookie itself is never
sent. Bytes after the last frame belong to the connected state, even in the same segment; the
machine leaves them in :attr:`Handshake.rest`.

A Thicket node that refuses another one sends the reason in an extra frame, ``x`` with code and
words: after the status ``not_allowed``, which is the last frame that other nodes read, or in place
of its name, upon which they close the connection.

Feed :meth:`Handshake.receive`, and send what :meth:`Handshake.take` returns. After a
:class:`HandshakeError` send the rest that :meth:`Handshake.take` returns, then close.
"""

from __future__ import annotations

import os
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from typing import TYPE_CHECKING, Any, NamedTuple

from thicket.base.errors import CodedError
from thicket.base.visible import visible

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_FRAME = 1024
"""Longest frame accepted before the peer has proved that it knows the cookie, in bytes."""

SETUP_TIME = 7.0
"""Seconds that the whole handshake may take (the default of kernel's ``net_setuptime``)."""

# Abilities ("capability flags"); values as in OTP's dist.hrl.
PUBLISHED = 1 << 0
EXTENDED_REFERENCES = 1 << 2
DIST_MONITOR = 1 << 3
FUN_TAGS = 1 << 4
DIST_MONITOR_NAME = 1 << 5
NEW_FUN_TAGS = 1 << 7
EXTENDED_PIDS_PORTS = 1 << 8
EXPORT_PTR_TAG = 1 << 9
BIT_BINARIES = 1 << 10
NEW_FLOATS = 1 << 11
UNICODE_IO = 1 << 12
DIST_HDR_ATOM_CACHE = 1 << 13
SMALL_ATOM_TAGS = 1 << 14
UTF8_ATOMS = 1 << 16
MAP_TAG = 1 << 17
BIG_CREATION = 1 << 18
SEND_SENDER = 1 << 19
BIG_SEQTRACE_LABELS = 1 << 20
EXIT_PAYLOAD = 1 << 22
FRAGMENTS = 1 << 23
HANDSHAKE_23 = 1 << 24
UNLINK_ID = 1 << 25
MANDATORY_25_DIGEST = 1 << 26
SPAWN = 1 << 32
NAME_ME = 1 << 33
V4_NC = 1 << 34
ALIAS = 1 << 35
ROSTER = 1 << 61
"""Only of Thicket nodes: the peer keeps a roster of the cluster (:mod:`.members`)."""
TEXT = 1 << 62
"""Only of Thicket nodes: the peer reads text in the form that distinguishes it from bytes
(:mod:`.etf`). Erlang numbers its abilities upwards, and ignores unknown ones."""

_MANDATORY = {
    EXTENDED_REFERENCES: "EXTENDED_REFERENCES",
    FUN_TAGS: "FUN_TAGS",
    NEW_FUN_TAGS: "NEW_FUN_TAGS",
    EXTENDED_PIDS_PORTS: "EXTENDED_PIDS_PORTS",
    EXPORT_PTR_TAG: "EXPORT_PTR_TAG",
    BIT_BINARIES: "BIT_BINARIES",
    NEW_FLOATS: "NEW_FLOATS",
    UTF8_ATOMS: "UTF8_ATOMS",
    MAP_TAG: "MAP_TAG",
    BIG_CREATION: "BIG_CREATION",
    HANDSHAKE_23: "HANDSHAKE_23",
}
MANDATORY = sum(_MANDATORY)
"""Mandatory for every node since OTP 25; the digest bit stands for all of them."""

ABILITIES = (
    MANDATORY
    | MANDATORY_25_DIGEST
    | UNLINK_ID
    | V4_NC
    | DIST_MONITOR
    | DIST_MONITOR_NAME
    | UNICODE_IO
    | SMALL_ATOM_TAGS
    | SEND_SENDER
    | BIG_SEQTRACE_LABELS
    | EXIT_PAYLOAD
    | FRAGMENTS
    | SPAWN
    | ALIAS
    | ROSTER
    | TEXT
)
"""Our abilities. The atom cache is left out on purpose: it costs more in Python than it saves, and
with it an opaque fun could not be sent back."""

_TLS_BEGINS = frozenset((0x1503, 0x1603))  # an alert, or a handshake, as a length of 2 bytes
_VERSION_5 = 5

OK = "ok"
OK_SIMULTANEOUS = "ok_simultaneous"
NOK = "nok"
NOT_ALLOWED = "not_allowed"
ALIVE = "alive"


class DistributionError(CodedError):
    """A node cannot be reached, or was refused."""


OURS = "ours"
THEIRS = "theirs"


class HandshakeError(DistributionError):
    """A handshake failed.

    Codes: ``wrong-cookie``, ``bad-name``, ``wrong-source``, ``wrong-peer``, ``wrong-certificate``,
    ``missing-flags``, ``not-allowed``, ``simultaneous``, ``connected``, ``protocol``; those of TLS
    (:mod:`.secure`), and those by which a ``Tls`` refuses peers.

    :ivar refusal: :data:`OURS` when this node refused the peer, :data:`THEIRS` when the peer
        refused this node; empty without a refusal.
    """

    def __init__(self, code: str, message: str, refusal: str = "") -> None:
        super().__init__(code, message)
        self.refusal = refusal


class LocalNode(NamedTuple):
    """What a node tells about itself."""

    name: str
    cookie: str
    creation: int
    flags: int = ABILITIES | PUBLISHED

    def __repr__(self) -> str:  # the cookie is secret
        return f"LocalNode({self.name!r}, creation={self.creation}, flags={self.flags:#x})"


class RemoteNode(NamedTuple):
    """What the handshake has shown about the peer.

    :ivar name: in the peer's own spelling, which its pids and references also use.
    :ivar flags: the abilities that both sides have.
    """

    name: str
    flags: int
    creation: int
    published: bool


@lru_cache(maxsize=1024)  # each connection and call asks for the same names several times
def split_name(name: str) -> tuple[str, str]:
    """Return the part of a node name before ``@``, and the address after it in canonical form.

    An address has many spellings (RFC 4291, section 2.2), and Erlang compares names byte for byte:
    each node keeps the spelling that it was started with. The canonical form is that of RFC 5952,
    which ``str(ipaddress.IPv6Address(...))`` writes.

    :raises HandshakeError: ``bad-name``, no node of a mesh can have the name.
    """
    alive, at, host = name.partition("@")
    if not at or not alive or len(name) > 255:
        raise HandshakeError("bad-name", f"a node is called name@address, not {name!r}")
    if not (alive.isascii() and alive.replace("_", "").replace("-", "").isalnum()):
        raise HandshakeError(
            "bad-name",
            f"the part of a node's name before '@' has letters, digits, '_' and '-' only: {name!r}",
        )
    try:
        canonical = str(IPv6Address(host))
    except AddressValueError:
        canonical = ""
    if not canonical or "%" in host:
        raise HandshakeError(
            "bad-name", f"the part of a node's name after '@' is an IPv6 address: {name!r}"
        )
    return alive, canonical


def key_of(name: str) -> str:
    """Return the canonical spelling of a node's name; any other text is its own key."""
    try:
        return _canonical(name)
    except HandshakeError:
        return name


@lru_cache(maxsize=1024)  # used for every message; invalid names are not kept
def _canonical(name: str) -> str:
    return "@".join(split_name(name))


def address_of(name: str) -> IPv6Address | None:
    """Return the address in a node's name; None where it has none."""
    try:
        return IPv6Address(key_of(name).partition("@")[2])
    except ValueError:
        return None


_MAX_REASON = 500  # bytes of a refusal's words
_OWN_MEANING = frozenset(
    ("simultaneous", "connected", "stopped", "closed", "timeout", "wrong-peer")
)


def refusal_frame(error: DistributionError) -> bytes:
    """Return the frame that tells the peer the reason of a refusal."""
    words = str(error).encode()[:_MAX_REASON].decode("utf-8", "ignore")
    return b"x" + error.code.encode() + b" " + words.encode()


def read_refusal(frame: bytes, who: str) -> HandshakeError:
    """Return the reason that the peer ``who`` gives for refusing us; its text is not trusted."""
    code, _, words = frame[1:].decode("utf-8", "replace").partition(" ")
    letters = code.replace("-", "")
    good = letters.isascii() and letters.isalpha() and letters.islower() and len(code) <= 32
    if not good or code in _OWN_MEANING:  # codes with a meaning of their own on this node
        code = "not-allowed"
    words = visible(words[:_MAX_REASON], keep="")
    return HandshakeError(code, f"{who} refuses this node: {words or 'without a reason'}", THEIRS)


def digest(cookie: str, challenge: int) -> bytes:
    """Return the proof of knowing ``cookie`` for ``challenge``."""
    # Imported late, as hashlib loads OpenSSL, which a node without peers does not need.
    from hashlib import md5

    text = cookie.encode("latin-1") + str(challenge).encode()
    return md5(text, usedforsecurity=False).digest()


def _equal(a: bytes, b: bytes) -> bool:
    """Compare in constant time."""
    from hmac import compare_digest

    return compare_digest(a, b)


def _new_challenge() -> int:
    return int.from_bytes(os.urandom(4), "big")


class Handshake:
    """The common part of both sides.

    :param length_size: bytes of a frame's length: 2 on plain TCP, 4 inside TLS.
    :ivar done: the handshake has succeeded.
    :ivar peer: the peer, once it has told its name.
    :ivar rest: when done, the bytes received after the last frame.
    :ivar refusal: set when the peer has refused us; the error unless it still sends a reason.
    """

    def __init__(self, local: LocalNode, length_size: int = 2) -> None:
        self.local = local
        self.done = False
        self.peer: RemoteNode | None = None
        self.rest = b""
        self.refusal: HandshakeError | None = None
        self._length_size = length_size
        self._buffer = b""
        self._outgoing = bytearray()
        self._challenge = _new_challenge()
        self._next: Callable[[Any, bytes], None]  # unbound, to avoid a reference to itself

    def take(self) -> bytes:
        """Return the bytes to send now."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def receive(self, data: bytes) -> None:
        """Take in bytes from the peer.

        :raises HandshakeError: when the handshake has failed.
        """
        buffer = self._buffer + data
        size = self._length_size
        at = 0
        while not self.done and len(buffer) - at >= size:
            length = int.from_bytes(buffer[at : at + size], "big")
            if size == 2 and length in _TLS_BEGINS:
                raise HandshakeError("tls-required", "the peer speaks TLS, and this node does not")
            if not 0 < length <= MAX_FRAME:
                raise HandshakeError(
                    "protocol", f"a handshake frame of {length} bytes (limit {MAX_FRAME})"
                )
            end = at + size + length
            if end > len(buffer):
                break
            frame = buffer[at + size : end]
            at = end
            self._next(self, frame)
        if self.done:
            self.rest = buffer[at:]
            self._buffer = b""
        else:
            self._buffer = buffer[at:]

    def refuse(self, error: HandshakeError) -> None:
        """Send the peer the reason of its refusal, and nothing else."""
        self._outgoing.clear()
        self._send(refusal_frame(error))

    def _send(self, frame: bytes) -> None:
        self._outgoing += len(frame).to_bytes(self._length_size, "big") + frame

    def _learn(self, name: bytes, flags: int, creation: int) -> RemoteNode:
        """Check what the peer told about itself.

        :raises HandshakeError: ``bad-name`` or ``missing-flags``.
        """
        text = _text(name)
        split_name(text)
        if flags & MANDATORY_25_DIGEST:
            flags |= MANDATORY
        missing = [name for bit, name in _MANDATORY.items() if not flags & bit]
        if missing:
            raise HandshakeError(
                "missing-flags", f"{text} is older than OTP 25 or lacks {', '.join(missing)}"
            )
        return RemoteNode(
            text, flags & self.local.flags, creation, published=bool(flags & PUBLISHED)
        )

    def _check_proof(self, proof: bytes) -> None:
        if not _equal(proof, digest(self.local.cookie, self._challenge)):
            name = self.peer.name if self.peer is not None else "the peer"
            raise HandshakeError("wrong-cookie", f"{name} has another cookie than this node")


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise HandshakeError("bad-name", f"a name that is not UTF-8: {name[:64]!r}") from None


def _number(frame: bytes, start: int, size: int) -> int:
    return int.from_bytes(_counted(frame, start, size), "big")


def _counted(frame: bytes, start: int, size: int) -> bytes:
    """Return ``size`` bytes; bytes of later versions may follow, and are ignored."""
    part = frame[start : start + size]
    if len(part) < size:
        raise HandshakeError("protocol", "a handshake frame that ends too early")
    return part


class Initiator(Handshake):
    """The side that connects.

    :param peer: the full name of the node to be reached, in any spelling; the answer has the peer's
        own.
    :param on_alive: called when the peer believes that we are connected; returns True to replace
        that connection, False to keep it.
    """

    def __init__(
        self,
        local: LocalNode,
        peer: str,
        on_alive: Callable[[], bool] = lambda: True,
        length_size: int = 2,
    ) -> None:
        super().__init__(local, length_size)
        self.wanted = peer
        self.status: str | None = None
        self._on_alive = on_alive
        self._next = Initiator._got_status
        name = local.name.encode()
        self._send(
            b"N%b%b%b%b"
            % (
                local.flags.to_bytes(8, "big"),
                local.creation.to_bytes(4, "big"),
                len(name).to_bytes(2, "big"),
                name,
            )
        )

    @property
    def awaits_proof(self) -> bool:
        """Whether our proof is sent and the peer's is missing. A peer with another cookie just
        closes the connection in this state."""
        return self._next == Initiator._got_proof and not self.done

    def _got_status(self, frame: bytes) -> None:
        if frame[:1] != b"s":
            raise HandshakeError("protocol", f"expected a status, got {frame[:32]!r}")
        status = frame[1:].decode("latin-1")
        self.status = status
        if status in (OK, OK_SIMULTANEOUS):
            pass
        elif status == ALIVE:
            if not self._on_alive():
                self._send(b"sfalse")
                raise HandshakeError("connected", f"{self.wanted} is connected already")
            self._send(b"strue")
        elif status == NOK:
            raise HandshakeError(
                "simultaneous", f"{self.wanted} is connecting to this node at the same time"
            )
        elif status == NOT_ALLOWED:
            self.refusal = HandshakeError(
                "not-allowed",
                f"{self.wanted} does not allow connections from {self.local.name}",
                THEIRS,
            )
            self._next = Initiator._got_reason
            return
        else:
            raise HandshakeError("protocol", f"an unknown status, {status[:32]!r}")
        self._next = Initiator._got_challenge

    def _got_reason(self, frame: bytes) -> None:
        assert self.refusal is not None
        raise read_refusal(frame, self.wanted) if frame[:1] == b"x" else self.refusal

    def _got_challenge(self, frame: bytes) -> None:
        if frame[:1] != b"N":
            raise HandshakeError("protocol", f"expected a challenge, got {frame[:32]!r}")
        flags = _number(frame, 1, 8)
        challenge = _number(frame, 9, 4)
        creation = _number(frame, 13, 4)
        name = _counted(frame, 19, _number(frame, 17, 2))
        if key_of(name[:255].decode("utf-8", "replace")) != key_of(self.wanted):
            raise HandshakeError(
                "wrong-peer",
                f"expected {self.wanted}, found {name[:255].decode('utf-8', 'replace')!r} there",
            )
        self.peer = self._learn(name, flags, creation)
        self._send(
            b"r%b%b" % (self._challenge.to_bytes(4, "big"), digest(self.local.cookie, challenge))
        )
        self._next = Initiator._got_proof

    def _got_proof(self, frame: bytes) -> None:
        if frame[:1] != b"a":
            raise HandshakeError("protocol", f"expected a proof, got {frame[:32]!r}")
        self._check_proof(_counted(frame, 1, 16))
        self.done = True


class Acceptor(Handshake):
    """The side that accepts.

    :param decide: called with the peer when it has told its name; returns the status to answer
        (:data:`OK`, :data:`OK_SIMULTANEOUS`, :data:`NOK`, :data:`ALIVE`), or raises
        :class:`HandshakeError`, for :data:`NOT_ALLOWED` and the reason.
    """

    def __init__(
        self, local: LocalNode, decide: Callable[[RemoteNode], str], length_size: int = 2
    ) -> None:
        super().__init__(local, length_size)
        self.name: str | None = None
        self._decide = decide
        self._low_flags = 0
        self._next = Acceptor._got_name

    def _got_name(self, frame: bytes) -> None:
        tag = frame[:1]
        old = tag == b"n"
        if tag == b"N":
            flags = _number(frame, 1, 8)
            creation = _number(frame, 9, 4)
            name = _counted(frame, 15, _number(frame, 13, 2))
        elif old:
            # OTP 23 and 24 begin so when no port mapper has told them our version; they send the
            # rest after the challenge.
            if _number(frame, 1, 2) != _VERSION_5:
                raise HandshakeError("protocol", "a handshake of an unknown version")
            flags = _number(frame, 3, 4)
            creation = 0
            name = frame[7:]
        elif tag == b"x":
            raise read_refusal(frame, "the peer")
        else:
            raise HandshakeError("protocol", f"expected a name, got {frame[:32]!r}")
        self.name = name[:255].decode("utf-8", "replace")
        try:
            if flags & NAME_ME:
                raise HandshakeError("not-allowed", "a node that wants to be given a name")
            self.peer = self._learn(name, flags, creation)
            status = self._decide(self.peer)
        except HandshakeError as error:
            error.refusal = OURS
            self._send(b"s" + NOT_ALLOWED.encode())
            self._send(refusal_frame(error))
            raise
        self._low_flags = flags if old else 0
        self._send(b"s" + status.encode())
        if status == NOK:
            raise HandshakeError(
                "simultaneous", f"this node is connecting to {self.name} at the same time"
            )
        if status == ALIVE:
            self._next = Acceptor._got_alive
        else:
            self._challenge_peer()

    def _got_alive(self, frame: bytes) -> None:
        if frame == b"sfalse":
            raise HandshakeError("connected", f"{self.name} keeps the connection it has")
        if frame != b"strue":
            raise HandshakeError("protocol", f"expected true or false, got {frame[:32]!r}")
        self._challenge_peer()

    def _challenge_peer(self) -> None:
        name = self.local.name.encode()
        self._send(
            b"N%b%b%b%b%b"
            % (
                self.local.flags.to_bytes(8, "big"),
                self._challenge.to_bytes(4, "big"),
                self.local.creation.to_bytes(4, "big"),
                len(name).to_bytes(2, "big"),
                name,
            )
        )
        self._next = Acceptor._got_complement if self._low_flags else Acceptor._got_proof

    def _got_complement(self, frame: bytes) -> None:
        if frame[:1] != b"c" or self.peer is None:
            raise HandshakeError("protocol", f"expected the rest of a name, got {frame[:32]!r}")
        flags = self._low_flags | _number(frame, 1, 4) << 32
        self.peer = self._learn(self.peer.name.encode(), flags, _number(frame, 5, 4))
        self._next = Acceptor._got_proof

    def _got_proof(self, frame: bytes) -> None:
        if frame[:1] != b"r":
            raise HandshakeError("protocol", f"expected a proof, got {frame[:32]!r}")
        challenge = _number(frame, 1, 4)
        self._check_proof(_counted(frame, 5, 16))
        self._send(b"a" + digest(self.local.cookie, challenge))
        self.done = True
