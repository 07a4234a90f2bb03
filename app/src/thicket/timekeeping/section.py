# SPDX-License-Identifier: Apache-2.0
"""``[time]``: where the node takes the time from."""

from __future__ import annotations

from ipaddress import ip_address

from thicket.base.fields import Boolean, Listed, Section

#: What a server with Network Time Security (RFC 8915) begins with.
NTS = "nts:"


class Servers(Listed):
    """Servers of the Network Time Protocol: host names or addresses, with ``nts:`` for NTS."""

    allowed = (
        'a list of up to 8 servers such as ["ntp.example.org", "nts:time.example.org", '
        '"192.0.2.7"]: host names or addresses, with nts: in front for NTS'
    )
    MOST = 8

    def check(self, raw: object) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for entry in self.entries(raw):
            if not _is_host(entry.removeprefix(NTS)):
                raise self.refuse()
            found[entry] = None
        return tuple(found)


def _is_host(text: str) -> bool:
    """Whether this is a host name or an address. It becomes a word of chrony's configuration."""
    try:
        return "%" not in text and bool(ip_address(text))
    except ValueError:
        pass
    labels = text.removesuffix(".").split(".")
    return len(text) <= 253 and all(
        1 <= len(label) <= 63
        and label[0] != "-"
        and all(c.isascii() and (c.isalnum() or c == "-") for c in label)
        for label in labels
    )


class TimeSection(Section, name="time"):
    """Where the node takes the time from, and whether it gives it to others; see time.md."""

    __slots__ = ()
    enabled = Boolean(
        True,
        "When false, the node leaves its clock alone: another program may set it.",
    )
    servers = Servers(
        (),
        "Servers that are asked wherever they can be reached. Without any, public ones are asked "
        "while there is a way out of the mesh (a default route by another interface).",
    )
    neighbours = Boolean(
        True,
        "Whether nodes of the cluster take the time from each other: this one from others that "
        "know better, and others from it.",
    )
