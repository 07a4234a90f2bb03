# SPDX-License-Identifier: Apache-2.0
"""What devices answer on a cable (RFC 6762, RFC 6763), as hints: whoever is there can say anything.

A packet is taken apart by python-zeroconf. Here it is decided what of it is believed so far that a
person may see it: names of devices, link-local addresses, and words that do no harm on a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv6Address
from typing import Final, NamedTuple

SERVICE: Final = "_ssh._tcp.local."

_NAME: Final = re.compile(r"(n-[0-9a-f]{12})\.(?:_ssh\._tcp\.)?local\.", re.A)
_WORD: Final = re.compile(r"[0-9A-Za-z.+_-]{1,40}", re.A)
MOST_BYTES: Final = 9000
"""Longest packet that is looked at (RFC 6762 17)."""
MOST_IN_PACKET: Final = 16
"""Devices that one packet may tell of; one tells of itself."""
_SSH: Final = 22


class Device(NamedTuple):
    """A device that answers on a cable.

    :ivar name: what it says that it is called, ``n-`` and 12 digits.
    :ivar interface: the cable, by the name of its interface here.
    :ivar version: of its software, as it says; empty where it does not.
    """

    name: str
    address: IPv6Address
    interface: str
    version: str = ""

    @property
    def host(self) -> str:
        """Where it is, as ssh takes it."""
        return f"{self.address}%{self.interface}"


def read(packet: bytes, sender: IPv6Address, interface: str) -> list[Device]:
    """Return the devices that a packet tells of; none of one that cannot be read.

    :param sender: who has sent it; a device that does not tell its address is there.
    """
    if len(packet) > MOST_BYTES or not packet[2:3] or not packet[2] & 0x80 or not _usable(sender):
        return []
    from zeroconf import (  # type: ignore[attr-defined]
        DNSAddress,
        DNSIncoming,
        DNSPointer,
        DNSService,
        DNSText,
    )

    incoming = DNSIncoming(packet)
    if not incoming.valid:
        return []
    names: dict[str, None] = {}
    addresses: dict[str, IPv6Address] = {}
    versions: dict[str, str] = {}
    for record in incoming.answers():
        owner = _name(record.name)
        if isinstance(record, DNSPointer):
            if record.name.lower() == SERVICE and (one := _name(record.alias)):
                names[one] = None
        elif not owner:
            continue
        elif isinstance(record, DNSService):
            if record.port == _SSH and _name(record.server) == owner:
                names[owner] = None
        elif isinstance(record, DNSAddress):
            if len(record.address) == 16 and _usable(address := IPv6Address(record.address)):
                addresses.setdefault(owner, address)
        elif isinstance(record, DNSText):
            versions[owner] = _words(record.text).get("version", "")
        if len(names) > MOST_IN_PACKET:
            return []
    return [
        Device(name, addresses.get(name, sender), interface, versions.get(name, ""))
        for name in names
    ]


def _usable(address: IPv6Address) -> bool:
    return address.is_link_local


def _name(text: str) -> str:
    """Return the device that a name is about; empty where that is none."""
    found = _NAME.fullmatch(text.lower())
    return found[1] if found else ""


def _words(text: bytes) -> Mapping[str, str]:
    """Return what a TXT record says (RFC 6763 6), as far as it can be shown."""
    found: dict[str, str] = {}
    at = 0
    while at < len(text) and len(found) < MOST_IN_PACKET:
        key, _, value = text[at + 1 : at + 1 + text[at]].partition(b"=")
        at += 1 + text[at]
        word = value.decode("ascii", "replace")
        if _WORD.fullmatch(word):
            found[key.decode("ascii", "replace").lower()] = word
    return found
