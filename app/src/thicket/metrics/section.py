# SPDX-License-Identifier: Apache-2.0
"""``[metrics]``: numbers for other tools."""

from __future__ import annotations

from ipaddress import ip_address

from thicket.base.fields import Boolean, Integer, Listed, Section

#: The mesh interface, whatever it is called.
MESH = "mesh"
#: Bytes of an interface's name (IFNAMSIZ of linux/if.h, with the zero at the end).
_LONGEST = 15


class Places(Listed):
    """Where something is served: interfaces by their names, and addresses of this node."""

    allowed = (
        'a list of interfaces and of addresses of this node, such as ["mesh", "eth0", '
        '"192.0.2.7"]; "mesh" is the mesh, "lo" the node itself'
    )
    MOST = 8

    def check(self, raw: object) -> tuple[str, ...]:
        return tuple(dict.fromkeys(map(self._place, self.entries(raw))))

    def _place(self, raw: str) -> str:
        if ":" in raw or raw.replace(".", "").isdigit():
            try:
                address = ip_address(raw)
            except ValueError:
                raise self.refuse() from None
            if "%" in raw or address.is_multicast or address.is_link_local:
                message = f"holds {raw}, which is of no one interface; name that: {self.refuse()}"
                raise ValueError(message)
            return str(address)
        good = all(c.isascii() and (c.isalnum() or c in "._-") for c in raw)
        if not good or not 1 <= len(raw) <= _LONGEST or raw in {".", ".."}:
            raise self.refuse()
        return raw


class MetricsSection(Section, name="metrics"):
    """Numbers for other tools, as Prometheus; see metrics.md. Off without `listen`."""

    __slots__ = ()
    listen = Places(
        (),
        "Where they are served by HTTP, unencrypted, for everybody who reaches these places: "
        "interfaces (every address of them) and addresses. The firewall lets the port in there. "
        "Empty for nowhere; `thicket metrics` prints them all the same.",
    )
    port = Integer(9969, "TCP port at all these places.", least=1024, most=65535)
    fleet = Boolean(
        False,
        "Also serve the numbers of all nodes of the cluster, which are asked for then "
        "(`/fleet/metrics`).",
    )
    share = Boolean(
        True,
        "Tell the numbers to nodes of the cluster that gather those of all, and the summary that "
        "`thicket fleet` shows; to nobody else.",
    )
