# SPDX-License-Identifier: Apache-2.0
"""``[firewall]``: what reaches the node over the mesh."""

from __future__ import annotations

from thicket.base.fields import Boolean, Listed, Section


class Ports(Listed):
    """Ports in addition to the product's own: ``tcp/NUMBER``, ``udp/NUMBER``, or a range of them.

    The value is sorted and has each port once; overlapping and adjacent ranges are joined.
    """

    allowed = (
        'a list of ports such as ["tcp/8080", "udp/5000-5009"]: tcp or udp, a slash, and a number '
        "from 1 to 65535 or a range"
    )
    MOST = 64

    def check(self, raw: object) -> tuple[str, ...]:
        found: dict[str, list[tuple[int, int]]] = {"tcp": [], "udp": []}
        for item in self.entries(raw):
            protocol, slash, ports = item.partition("/")
            low, dash, high = ports.partition("-")
            if protocol not in found or not slash or not self._number(low):
                raise self.refuse()
            if dash and not (self._number(high) and int(low) < int(high)):
                raise self.refuse()
            found[protocol].append((int(low), int(high or low)))
        return tuple(
            f"{protocol}/{low}" + (f"-{high}" if high > low else "")
            for protocol, ranges in found.items()
            for low, high in self._joined(sorted(ranges))
        )

    @staticmethod
    def _number(text: str) -> bool:
        digits = text.isascii() and text.isdigit() and len(text) <= 5
        return digits and 1 <= int(text) <= 65535

    @staticmethod
    def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
        joined: list[tuple[int, int]] = []
        for low, high in ranges:
            if joined and low <= joined[-1][1] + 1:
                joined[-1] = (joined[-1][0], max(joined[-1][1], high))
            else:
                joined.append((low, high))
        return joined


class FirewallSection(Section, name="firewall"):
    """What reaches the node over the mesh: what it serves by itself, and nothing else."""

    __slots__ = ()
    enabled = Boolean(
        True,
        "When false, every port of every program can be reached. When true, the node does not "
        "join the mesh while the firewall cannot be set up.",
    )
    allow = Ports(
        (),
        "Ports of the mesh interface that are open for applications, besides the node's own.",
    )
    log = Boolean(
        False, "Log dropped packets to the system's log (`logread`), at most ten a minute."
    )
