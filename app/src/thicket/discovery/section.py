# SPDX-License-Identifier: Apache-2.0
"""``[discovery]``: beacons and DNS-SD."""

from __future__ import annotations

from thicket.base.fields import Boolean, Choice, Finding, Integer, Section


class DiscoverySection(Section, name="discovery"):
    """How nodes find each other: a beacon to [ff02::69]:49999 that carries the node's address."""

    __slots__ = ()
    interval = Integer(
        20,
        "Mean time between beacons once the node has settled; each interval is random, from half "
        "to one and a half of this. Just after joining, beacons are sent every 1 to 2 s. Beyond 50 "
        "nodes it grows with their number, and so does the time after which one is forgotten.",
        least=2,
        most=600,
        unit="s",
    )
    expire = Integer(
        120,
        "A node that is not heard for this time is forgotten, unless it is connected. At least "
        "three times the interval.",
        least=10,
        most=3600,
        unit="s",
    )
    beacon = Choice(
        "signed",
        "Which form of beacon is sent and accepted. `signed`: signed by the key of a node of the "
        "fleet ([trust]). `plain`: an address as text, which anybody can send. `both`: for a mesh "
        "with nodes of the published Nerves kind.",
        "signed",
        "plain",
        "both",
    )
    dns_sd = Boolean(
        True,
        "Publish the node by DNS-SD (multicast DNS) on the mesh, so that any computer there can "
        "find it and use its name, `n-<identity>.local`; and try the nodes that others publish.",
    )
    max_nodes = Integer(
        1024,
        "The most nodes that are remembered. In a larger mesh some are not found, and the node "
        "says so.",
        least=8,
        most=4096,
    )
    check_source = Boolean(
        True,
        "Drop a beacon whose sender is neither a link-local address nor the address it announces.",
    )


def check_expire(discovery: DiscoverySection, file: str) -> Finding | None:
    """Return the fault of settings that forget nodes between two beacons, or None."""
    interval, expire = discovery.interval, discovery.expire
    if expire >= 3 * interval:
        return None
    message = (
        f"must be at least three times discovery.interval ({interval} s), or nodes come and go"
    )
    return Finding(file, "discovery.expire", str(expire), message)
