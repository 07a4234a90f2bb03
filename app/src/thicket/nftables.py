# SPDX-License-Identifier: Apache-2.0
"""Counters of nftables, read from the kernel without a program.

Layout and numbers: ``include/uapi/linux/netfilter/nf_tables.h`` and ``nfnetlink.h``.
"""

from typing import Final

from thicket.radio.netlink import NLM_F_DUMP, Requests
from thicket.radio.pyroute import nla, nlmsg

__all__ = ["Requests", "counters"]

_NFPROTO_INET: Final = 1
_NFNL_SUBSYS_NFTABLES: Final = 10
_NFT_MSG_GETOBJ: Final = 19
_NFT_OBJECT_COUNTER: Final = 1


class _Object(nlmsg):  # type: ignore[misc]  # pyroute2 has no types
    """struct nfgenmsg and the attributes of a stateful object (NFTA_OBJ_*)."""

    fields = (("family", "B"), ("version", "B"), ("resource", ">H"))
    nla_map = (
        ("NFTA_OBJ_UNSPEC", "none"),
        ("NFTA_OBJ_TABLE", "asciiz"),
        ("NFTA_OBJ_NAME", "asciiz"),
        ("NFTA_OBJ_TYPE", "be32"),
        ("NFTA_OBJ_DATA", "counter"),
    )

    class counter(nla):  # type: ignore[misc]  # noqa: N801  # pyroute2 finds it by this name
        nla_map = (
            ("NFTA_COUNTER_UNSPEC", "none"),
            ("NFTA_COUNTER_BYTES", "be64"),
            ("NFTA_COUNTER_PACKETS", "be64"),
        )


def counters(requests: Requests, table: str) -> dict[str, int]:
    """Packets counted by the named counters of the inet table ``table``, by name.

    Empty when there is no such table. Raises OSError when the kernel has no nftables.
    """
    message = _Object()
    message["family"] = _NFPROTO_INET
    message["version"] = 0
    message["resource"] = 0
    message["attrs"] = [("NFTA_OBJ_TABLE", table), ("NFTA_OBJ_TYPE", _NFT_OBJECT_COUNTER)]
    kind = _NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_GETOBJ
    found = {}
    for answer in requests.request(kind, message, NLM_F_DUMP, _Object):
        data = answer.get_attr("NFTA_OBJ_DATA")
        if answer.get_attr("NFTA_OBJ_TABLE") == table and data is not None:
            found[str(answer.get_attr("NFTA_OBJ_NAME"))] = int(
                data.get_attr("NFTA_COUNTER_PACKETS")
            )
    return found
