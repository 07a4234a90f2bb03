# SPDX-License-Identifier: Apache-2.0
"""``[gateway]``: another network that this node leads the mesh into."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address

from thicket.base.fields import Boolean, Finding, Key, Listed, Section

#: Bytes of an interface's name (IFNAMSIZ of linux/if.h, with the zero at the end).
_LONGEST = 15
#: Where NAT64 has the addresses of IPv4: a local prefix (RFC 4193), the same in every mesh. The
#: well-known one may not lead to private addresses (RFC 6052 3.1), which uplinks have as well, and
#: tayga takes none of the prefix for local use (RFC 8215).
NAT64 = IPv6Network("fd64:ff9b::/96")
#: What tayga gives to nodes on the gateway itself, which then leave by the one address of the
#: uplink. It is of the networks for benchmarks (RFC 2544), which are in use nowhere.
NAT64_POOL = IPv4Network("198.18.0.0/23")
NAT64_INTERFACE = "nat64"
#: Interfaces that are no uplink: the mesh, the node itself, and the one of NAT64.
_OURS = {"mesh0", "lo", NAT64_INTERFACE, ".", ".."}


class Interface(Key[str]):
    """The name of a network interface, or nothing."""

    allowed = (
        'the name of a network interface, such as "eth0", "wwan0" or "usb0" (not the mesh, '
        '"mesh0"), or empty for none'
    )

    def check(self, raw: object) -> str:
        if raw == "":
            return ""
        good = isinstance(raw, str) and len(raw) <= _LONGEST and raw not in _OURS
        if not good or not all(c.isascii() and (c.isalnum() or c in "._-") for c in str(raw)):
            raise self.refuse()
        return str(raw)


class Targets(Listed):
    """Places in the internet, each an address and a TCP port."""

    allowed = (
        'a list of up to 4 addresses with TCP ports, such as ["192.0.2.7:443", '
        '"[2001:db8::7]:53"], or empty'
    )
    MOST = 4

    def check(self, raw: object) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for entry in self.entries(raw):
            target = address_and_port(entry)
            if target is None:
                raise self.refuse()
            host, port = target
            found[f"[{host}]:{port}" if ":" in host else f"{host}:{port}"] = None
        return tuple(found)


def address_and_port(text: str) -> tuple[str, int] | None:
    """Return the address and the port of a target; None where it is none."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    try:
        address = ip_address(host)
    except ValueError:
        return None
    number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else 0
    usable = not (address.is_multicast or address.is_link_local or address.is_unspecified)
    if not colon or "%" in host or not usable or bracketed != (address.version == 6):
        return None
    return (str(address), number) if 1 <= number <= 65535 else None


class GatewaySection(Section, name="gateway"):
    """Another network that this node leads the mesh into; see gateway.md. Off without `uplink`."""

    __slots__ = ()
    uplink = Interface(
        "",
        "The interface to the other network, such as `eth0`. The node takes addresses from that "
        "network, checks that it leads somewhere, and offers it to the nodes of its cluster.",
    )
    check = Targets(
        (),
        "Places that are connected to every few seconds: of each kind of address at least one has "
        "to answer, or the network is not offered. Without any, the name servers that the network "
        "itself names are asked, and its router has to be there.",
    )
    nat64 = Boolean(
        True,
        "Lead to places that have only an IPv4 address as well (NAT64 with DNS64), where the "
        "network has IPv4.",
    )


def check_gateway(
    gateway: GatewaySection, mesh: IPv6Network, *, firewall: bool, file: str
) -> Finding | None:
    """Return the fault of a gateway without a firewall, whose rules say what passes, or of a mesh
    whose prefix NAT64 has."""
    if mesh.overlaps(NAT64):
        message = f"is the prefix in which gateways have the addresses of IPv4 ({NAT64})"
        return Finding(file, "address.prefix", f'"{mesh}"', message)
    if gateway.uplink and not firewall:
        message = "needs firewall.enabled = true, as the firewall says what passes through the node"
        return Finding(file, "gateway.uplink", f'"{gateway.uplink}"', message)
    return None
