# SPDX-License-Identifier: Apache-2.0
"""The keys by which nodes prove to each other who sends a time: one for each pair and direction.

A node that gives the time makes the keys of its clients from one secret of its own and their
addresses, so that asking again, however often, makes no more keys. The key goes to the client over
the connection of the cluster, on which both have shown their certificates, and authenticates
packets of NTP with AES-CMAC (RFC 8573). A key holds as long as that connection does.
"""

from __future__ import annotations

import hmac
from ipaddress import IPv6Address
from typing import Any, NamedTuple

from thicket.distribution.etf import Atom

#: Clients of one node, at most.
MOST_CLIENTS = 64
#: Bytes of a key: AES-128.
SIZE = 16
#: The request of a client, ``gen_server:call({thicket_time, Node}, key)`` -> {ok, Number, Key}.
KEY, OK, ERROR = Atom("key"), Atom("ok"), Atom("error")
_MOST_NUMBER = 0xFFFFFFFF


class PairKey(NamedTuple):
    """A key, and the number by which packets name it."""

    number: int
    key: bytes

    def line(self) -> str:
        """Return the line of chrony's file of keys."""
        return f"{self.number} AES128 HEX:{self.key.hex().upper()}"


def of_client(secret: bytes, client: IPv6Address) -> PairKey:
    """Return the key of a client."""
    made = hmac.digest(secret, client.packed, "sha256")
    return PairKey(int.from_bytes(made[SIZE : SIZE + 4], "big") or 1, made[:SIZE])


def unpack(answer: Any) -> PairKey | None:
    """Return the key in an answer; None where there is none."""
    match answer:
        case ("ok", int() as number, bytes() as key):
            if not isinstance(number, bool) and 0 < number <= _MOST_NUMBER and len(key) == SIZE:
                return PairKey(number, key)
    return None
