# SPDX-License-Identifier: Apache-2.0
"""The firewall's rules, as one nftables table ``inet thicket``."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv6Network

from thicket.base.sockets import is_address
from thicket.config.schema import Settings
from thicket.discovery.beacon import PORT as BEACON_PORT
from thicket.gateway.section import NAT64, NAT64_INTERFACE, NAT64_POOL
from thicket.metrics.section import MESH

TABLE = "thicket"
EPMD_PORT = 4369
SSH_PORT = 22
MDNS_PORT = 5353
NTP_PORT = 123
DNS_PORT = 53

#: Reasons for dropping a packet, which are the counters' names.
REASONS = (
    "beacon_router",  # a beacon that passed a router (its hop limit is not 255)
    "beacon_sender",  # more beacons than one node sends
    "beacon_flood",  # more beacons than all nodes together send
    "mdns_sender",  # more multicast DNS than one node sends
    "mdns_flood",  # more multicast DNS than all nodes together send
    "invalid",  # belongs to no connection that the kernel knows
    "ntp_flood",  # more questions for the time than all nodes together have
    "echo_flood",  # more pings than anybody needs
    "neighbour_sender",  # more neighbour discovery than one node sends
    "connection_sender",  # more new connections than one node makes
    "connection_flood",  # more new connections than all nodes together make
    "cable_flood",  # more by cable than a bench full of laptops sends
    "forward",  # meant for somebody else
    "closed",  # what the node does not serve
)

#: Packets that pass: per second on average, and at once. A node sends at most a beacon a second,
#: and answers; 256 nodes that start at the same time send about 200 a second.
_BEACON_SENDER = (10, 20)
_BEACON_ALL = (300, 600)
#: A node sends about ten packets when it starts, and hardly any later.
_MDNS_SENDER = (10, 40)
_MDNS_ALL = (50, 300)
_ECHO = (100, 200)
#: A node asks 64 others a packet a minute at most, and four in a second when it begins.
_NTP_ALL = (50, 200)
_NEIGHBOUR_SENDER = (100, 200)
#: Questions for names to a gateway, and what a router or a server at its uplink says.
_NAMES_ALL = (500, 1000)
_UPLINK = (20, 40)
#: Local addresses (RFC 4193), which mean nothing outside of the mesh.
_LOCAL = IPv6Network("fc00::/7")
#: A node that joins makes two connections (port mapper, node) to each of the others, one by one.
_CONNECTION_SENDER = (20, 60)
_CONNECTION_ALL = (200, 400)
#: At cables: what a node needs to be found and reached, and connections of people (and of programs
#: that enrol a bench of devices).
_CABLE = (100, 200)
_CABLE_CONNECTIONS = (10, 30)
#: Senders whose rates are tracked, and seconds for which a silent one is. When the table is full,
#: the rate of all limits what passes.
_SENDERS = 1024
_SENDER_SECONDS = 20


def ruleset(
    settings: Settings,
    interface: str,
    cables: frozenset[str] = frozenset(),
    delegated: Sequence[IPv6Network] = (),
) -> str:
    """Return the commands for ``nft -f`` that replace the rules by those for ``settings``.

    Without a firewall they only remove the table.

    :param interface: the mesh interface.
    :param cables: interfaces where people are let in, if the settings let anybody in there.
    :param delegated: the prefixes of a gateway in which nodes have addresses besides the mesh's.
    """
    # "table" creates a missing table, so that deleting it never fails
    head = f"table inet {TABLE}\ndelete table inet {TABLE}\n"
    if not settings.firewall.enabled:
        return head
    access = settings.access
    names = [f'"{one}"' for one in sorted(cables) if access.cable and access.ssh_keys]
    counters = "".join(f"\tcounter {reason} {{ }}\n" for reason in REASONS)
    senders = "".join(
        f"\tset {name} {{ type ipv6_addr; size {_SENDERS}; flags dynamic; "
        f"timeout {_SENDER_SECONDS}s; }}\n"
        for name in ("beacon_senders", "mdns_senders", "neighbours", "callers")
    )
    return (
        f"{head}table inet {TABLE} {{\n{counters}\n{senders}\n{_early(interface)}\n"
        f"{_input(settings, interface, names)}\n{_mesh(settings)}\n"
        f"{_cable(settings) if names else ''}{_forward(settings, interface, delegated)}}}\n"
    )


def _over(rate: tuple[int, int]) -> str:
    return f"limit rate over {rate[0]}/second burst {rate[1]} packets"


def _chain(name: str, *lines: str) -> str:
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"


def _early(interface: str) -> str:
    """Before connection tracking (priority raw), which beacons and multicast DNS do not need."""
    return (
        _chain(
            "early",
            "type filter hook prerouting priority raw; policy accept;",
            f'iifname "{interface}" meta nfproto ipv6 udp dport {BEACON_PORT} goto beacons',
            f'iifname "{interface}" meta nfproto ipv6 udp dport {MDNS_PORT} goto mdns',
        )
        + _chain(
            "mdns",
            f"update @mdns_senders {{ ip6 saddr {_over(_MDNS_SENDER)} }} counter name mdns_sender "
            "drop",
            f"{_over(_MDNS_ALL)} counter name mdns_flood drop",
            "notrack accept",
        )
        + _chain(
            "beacons",
            "ip6 hoplimit != 255 counter name beacon_router drop",
            f"update @beacon_senders {{ ip6 saddr {_over(_BEACON_SENDER)} }} "
            "counter name beacon_sender drop",
            f"{_over(_BEACON_ALL)} counter name beacon_flood drop",
            "notrack accept",
        )
    )


def _input(settings: Settings, interface: str, cables: list[str]) -> str:
    return _chain(
        "input",
        "type filter hook input priority filter; policy drop;",
        'iifname "lo" accept',
        "ct state established,related accept",
        "ct state invalid counter name invalid drop",
        *([f"iifname {{ {', '.join(cables)} }} goto cable"] if cables else []),
        # What a host needs of ICMPv6 (RFC 4890 4.4). Errors are "related" to their cause.
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 goto neighbours",
        "icmpv6 type mld-listener-query ip6 saddr fe80::/10 accept",
        f"icmpv6 type echo-request {_over(_ECHO)} counter name echo_flood drop",
        "icmpv6 type echo-request accept",
        *_from_uplink(settings),
        # These are for routers, and every host hears them; they do not count as attempts.
        "icmpv6 type { nd-router-solicit, nd-router-advert, mld-listener-report, "
        "mld-listener-done, mld2-listener-report } drop",
        *_elsewhere(settings),
        f'iifname "{interface}" goto mesh',
        "counter name closed drop",
    ) + _chain(
        "neighbours",
        # There is no rate for all: with it, invented senders could block the real ones.
        f"update @neighbours {{ ip6 saddr {_over(_NEIGHBOUR_SENDER)} }} "
        "counter name neighbour_sender drop",
        "accept",
    )


def _elsewhere(settings: Settings) -> list[str]:
    """The numbers for other tools, where the settings name other interfaces than the mesh.

    A packet to an address that is served is let in by whatever interface it comes.
    """
    port, lines = settings.metrics.port, []
    for place in settings.metrics.listen:
        if is_address(place):
            kind = "ip6" if ":" in place else "ip"
            lines.append(f"{kind} daddr {place} tcp dport {port} goto connections")
        elif place not in {MESH, "lo"}:
            lines.append(f'iifname "{place}" tcp dport {port} goto connections')
    return lines


def _mesh(settings: Settings) -> str:
    """What the node serves on the mesh.

    The port mapper is open in a cluster with certificates as well: stock Erlang nodes and Thicket
    nodes ask it for the cluster's port, and it tells nothing else.
    """
    served = {EPMD_PORT, settings.cluster.port}
    if settings.access.ssh_keys:
        served.add(SSH_PORT)
    if settings.gateway.uplink:
        served.add(DNS_PORT)
    if settings.access.operators and settings.trust.root:
        served.add(settings.access.operator_port)
    if MESH in settings.metrics.listen:
        served.add(settings.metrics.port)
    lines = [
        f"udp dport {BEACON_PORT} accept",
        f"tcp dport {{ {', '.join(map(str, sorted(served)))} }} goto connections",
    ]
    if settings.discovery.dns_sd:
        lines.append(f"udp dport {MDNS_PORT} accept")
    if settings.time.enabled and settings.time.neighbours:
        lines.append(f"udp dport {NTP_PORT} {_over(_NTP_ALL)} counter name ntp_flood drop")
        lines.append(f"udp dport {NTP_PORT} accept")
    if settings.gateway.uplink:
        rate, burst = _NAMES_ALL
        names = f"udp dport {DNS_PORT} limit rate {rate}/second burst {burst} packets accept"
        lines.append(names)
    for protocol in ("tcp", "udp"):
        allowed = [
            ports for kind, _, ports in (p.partition("/") for p in settings.firewall.allow)
            if kind == protocol
        ]  # fmt: skip
        if allowed:
            lines.append(f"{protocol} dport {{ {', '.join(allowed)} }} accept")
    if settings.firewall.log:
        lines.append('limit rate 10/minute burst 5 packets log prefix "firewall: " level info')
    return _chain("mesh", *lines, "counter name closed drop") + _chain(
        "connections",
        f"update @callers {{ ip6 saddr {_over(_CONNECTION_SENDER)} }} "
        "counter name connection_sender drop",
        f"{_over(_CONNECTION_ALL)} counter name connection_flood drop",
        "accept",
    )


def _cable(settings: Settings) -> str:
    """What people find at a cable: SSH, the node's name, and what both need of IPv6.

    Only neighbours of the link are heard: a packet with another source was sent by somebody who
    takes the node for a router, or looks for an address that belongs to the mesh.
    """
    v6, v4 = "ip6 saddr fe80::/10", "ip saddr 169.254.0.0/16"
    return _chain(
        "cable",
        *_elsewhere(settings),
        f"tcp dport {SSH_PORT} {_over(_CABLE_CONNECTIONS)} counter name cable_flood drop",
        f"{v6} ip6 daddr fe80::/10 tcp dport {SSH_PORT} accept",
        f"{v4} ip daddr 169.254.0.0/16 tcp dport {SSH_PORT} accept",
        f"{_over(_CABLE)} counter name cable_flood drop",
        # the address of somebody who looks for a free one is :: (RFC 4862 5.4.3)
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept",
        f"icmpv6 type mld-listener-query {v6} accept",
        # A laptop asks by the addresses that it has, also where its IPv4 is of another network.
        f"{v6} udp dport {MDNS_PORT} accept",
        f"ip daddr 224.0.0.251 udp dport {MDNS_PORT} accept",
        "counter name closed drop",
    )


def _from_uplink(settings: Settings) -> list[str]:
    """What gives the uplink of a gateway its addresses; nothing else is served there."""
    uplink, (rate, burst) = settings.gateway.uplink, _UPLINK
    if not uplink:
        return []
    limited = f"limit rate {rate}/second burst {burst} packets accept"
    return [
        f'iifname "{uplink}" icmpv6 type nd-router-advert ip6 hoplimit 255 {limited}',
        f'iifname "{uplink}" ip6 saddr fe80::/10 udp sport 547 udp dport 546 {limited}',
        f'iifname "{uplink}" udp sport 67 udp dport 68 {limited}',
    ]


def _forward(settings: Settings, interface: str, delegated: Sequence[IPv6Network]) -> str:
    """A node forwards nothing between networks. A gateway lets nodes out by its uplink, and in what
    answers them. A gate of the mesh that has no ``[gateway]`` forwards by the rules of another
    table.

    A packet that one table drops is lost, whatever another one says.
    """
    uplink = settings.gateway.uplink
    if not uplink:
        if settings.mesh.gate:
            return ""
        return _chain(
            "forward",
            "type filter hook forward priority filter; policy drop;",
            "counter name forward drop",
        )
    mesh = settings.address.prefix.network
    sources = ", ".join(map(str, (mesh, *delegated)))
    lines = [
        "type filter hook forward priority filter; policy drop;",
        # The way may be narrower than both ends know, and who drops the word of it is common.
        "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu",
        # Errors are "related": a packet that is too big for the way comes back as such.
        "ct state established,related accept",
        "ct state invalid counter name invalid drop",
        f'iifname "{interface}" oifname "{uplink}" ip6 saddr {{ {sources} }} accept',
    ]
    masked = [f'oifname "{uplink}" ip6 saddr {mesh} masquerade'] if mesh.subnet_of(_LOCAL) else []
    if settings.gateway.nat64:
        lines += [
            f'iifname "{interface}" oifname "{NAT64_INTERFACE}" ip6 saddr {{ {sources} }} '
            f"ip6 daddr {NAT64} accept",
            f'iifname "{NAT64_INTERFACE}" oifname "{uplink}" ip saddr {NAT64_POOL} accept',
        ]
        masked.append(f'oifname "{uplink}" ip saddr {NAT64_POOL} masquerade')
    return _chain("forward", *lines, "counter name forward drop") + (
        _chain("leave", "type nat hook postrouting priority srcnat; policy accept;", *masked)
        if masked
        else ""
    )
