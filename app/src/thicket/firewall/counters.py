# SPDX-License-Identifier: Apache-2.0
"""Counters of nftables, read from the kernel without running a program.

Layout and numbers: ``include/uapi/linux/netfilter/nf_tables.h`` and ``nfnetlink.h``. The request is
prepared and the answers are read here and not by pyroute2, as they come every few seconds for as
long as the node runs.
"""

import struct
from functools import lru_cache

from thicket.netlink.messages import HEADER, NLM_F_DUMP, NLM_F_REQUEST, Requests, facts_of, text

__all__ = ["Requests", "counters"]

_NFPROTO_INET = 1
_NFNL_SUBSYS_NFTABLES = 10
_NFT_MSG_GETOBJ = 19
_NFT_OBJECT_COUNTER = 1

#: NFTA_OBJ_*, and NFTA_COUNTER_PACKETS inside of the data
_TABLE, _NAME, _TYPE, _DATA = 1, 2, 3, 4
_PACKETS = 2

_NFGENMSG = struct.Struct("=BBxx")  # family, version, and a resource of 0
_TYPE_ATTRIBUTE = struct.Struct("=HH")
_PACKETS_VALUE = struct.Struct(">Q")


def request(table: str) -> bytes:
    """Return the request for all counters of an inet table."""
    kind = _NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_GETOBJ
    body = _NFGENMSG.pack(_NFPROTO_INET, 0) + text(_TABLE, table)
    body += _TYPE_ATTRIBUTE.pack(8, _TYPE) + _NFT_OBJECT_COUNTER.to_bytes(4, "big")
    return HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_DUMP, 0, 0) + body


def counter(message: bytes) -> tuple[str, str, int] | None:
    """Return table, name and packets of the counter in a message, None when it is malformed."""
    return _counter(message[HEADER.size :])


@lru_cache(maxsize=64)
def _counter(body: bytes) -> tuple[str, str, int] | None:
    """As :func:`counter`, of what follows the header: most counters stand still for long."""
    found = facts_of(body, _NFGENMSG.size)
    try:
        (packets,) = _PACKETS_VALUE.unpack(facts_of(found[_DATA])[_PACKETS])
        table, name = found[_TABLE].rstrip(b"\0"), found[_NAME].rstrip(b"\0")
        return table.decode("ascii"), name.decode("ascii"), packets
    except (KeyError, ValueError, struct.error):
        return None


def counters(requests: Requests, table: str) -> dict[str, int]:
    """Return the packets counted by each named counter of an inet table; empty without the table.

    :raises OSError: the kernel has no nftables.
    """
    found = requests.ask(request(table), counter)
    return {name: packets for of, name, packets in found if of == table}
