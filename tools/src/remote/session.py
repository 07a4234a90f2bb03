# SPDX-License-Identifier: Apache-2.0
"""A connection to one node of a fleet: through another one, if need be, and proven on both sides.

The first node leads to the others (the method ``door``). What goes through it is TLS between this
machine and the node that is meant, so that a node on the way can only refuse to carry it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from ipaddress import IPv6Address
from typing import Any, NamedTuple

from remote.errors import RemoteError
from remote.labels import meant
from remote.ways import Ends, Way
from thicket.base.jsonlines import pack, unpack
from thicket.trust.fleet import Fleet
from thicket.trust.tls import OPERATORS, check_connection, client_context
from thicket.trust.verify import Clock, Peer, RefusedError

#: Seconds for a handshake of TLS, and for an answer.
SECURE = 30.0
ANSWER = 45.0


class Operator(NamedTuple):
    """Who this machine is to the nodes, and what it knows of them. The key is secret.

    :ivar name: the certificate's common name.
    :ivar chain: the operator's certificate (DER).
    :ivar revoked: names of devices and signers that are not believed.
    """

    name: str
    private_key: bytes
    chain: tuple[bytes, ...]
    fleet: Fleet
    revoked: frozenset[str]

    def __repr__(self) -> str:
        return f"Operator({self.name})"


class Session:
    """A connection to a node that answers requests.

    :ivar node: what the node is called in messages.
    :ivar peer: who it has proved to be; None where ssh, or a lab, vouches for it.
    """

    def __init__(self, ends: Ends, node: str, peer: Peer | None = None) -> None:
        self.reader, self.writer = ends
        self.node = node
        self.peer = peer

    async def request(self, method: str, params: dict[str, Any]) -> Any:
        """Call a method of the node, and return its result.

        :raises RemoteError: it fails, or the node does not answer.
        """
        try:
            self.writer.write(pack({"id": 1, "method": method, "params": params}))
            async with asyncio.timeout(ANSWER):
                await self.writer.drain()
                line = await self.reader.readline()
        except TimeoutError:
            message = f"{self.node} does not answer within {ANSWER:g} s"
            raise RemoteError("unreachable", message) from None
        except ValueError:
            raise RemoteError("bad-answer", f"{self.node}: its answer has no end") from None
        except OSError as error:
            why = error.strerror or error
            raise RemoteError("closed", f"{self.node}: {why}") from None
        if not line:
            raise RemoteError("closed", f"{self.node} has closed the connection")
        try:
            answer = unpack(line)
            if refused := answer.get("error"):
                raise RemoteError(str(refused["code"]), f"{self.node}: {refused['message']}")
            return answer["result"]
        except (ValueError, LookupError, TypeError):
            raise RemoteError(
                "bad-answer", f"{self.node} answers what is no answer: {line[:80]!r}"
            ) from None


@asynccontextmanager
async def opened(
    way: Way, node: str | None, operator: Callable[[], Operator]
) -> AsyncIterator[Session]:
    """Give a connection to a node.

    :param node: which one; None for the one that ``way`` leads to.
    :param operator: returns who this machine is; called where that has to be proven.
    :raises RemoteError: that cannot be had.
    """
    ends = await way.open()
    try:
        try:
            session = Session(ends, str(way))
            if way.address is not None:
                session = await _secured(session, operator(), str(way.address))
            if node is not None and not _is(session.peer, node):
                proof = operator()  # before the first node is asked for anything
                wanted = await meant(session, node, proof.fleet, proof.revoked)
                await session.request("door", {"node": node})
                session = await _secured(session, proof, wanted)
            yield session
        except RemoteError as error:
            if error.code != "closed" or (why := await way.failure()) is None:
                raise
            raise RemoteError("unreachable", why) from None
    finally:
        with suppress(OSError):
            ends.writer.close()
        await way.close()


async def _secured(session: Session, operator: Operator, node: str) -> Session:
    """Speak TLS with the node ``node`` behind a connection that leads to it.

    :raises RemoteError: somebody else is there, or it does not let this operator in.
    """
    context = client_context(operator, operator.fleet)
    context.set_alpn_protocols([OPERATORS])
    try:
        await session.writer.start_tls(context, ssl_handshake_timeout=SECURE)
        connection = session.writer.get_extra_info("ssl_object")
        # This machine's clock is taken for right: it makes the fleet's certificates.
        now = datetime.now(UTC)
        peer = check_connection(
            connection,
            operator.fleet,
            clock=Clock(operator.fleet.root.not_before, now),
            revoked=operator.revoked,
        )
    except ssl.SSLCertVerificationError as error:
        message = f"{node} is not of fleet {operator.fleet.name!r}: {error.verify_message}"
        raise RemoteError("other-fleet", message) from None
    except (ssl.SSLError, OSError) as error:
        why = getattr(error, "reason", None) or error.strerror or str(error)
        raise RemoteError("closed", f"{node}: no TLS: {why}") from None
    except RefusedError as error:
        raise RemoteError(error.reason, f"{node}: {error}") from None
    if not _is(peer, node):
        raise RemoteError(
            "another-node", f"{node} was asked for, and {peer.host} ({peer.address}) answers"
        )
    return Session(Ends(session.reader, session.writer), peer.host.partition(".")[0], peer)


def _is(peer: Peer | None, node: str) -> bool:
    """Return whether a person means this node: by a name in the cluster, its address, its host
    name, or the last digits of that."""
    if peer is None:
        return False
    host = node.rpartition("@")[2]
    try:
        return IPv6Address(host) == peer.address
    except ValueError:
        digits = host.lower().removeprefix("n-").partition(".")[0]
        return bool(digits) and peer.host.partition(".")[0].endswith(digits)
