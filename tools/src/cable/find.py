# SPDX-License-Identifier: Apache-2.0
"""Asks who is there on the wired interfaces of this machine, by IPv6 and multicast DNS."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

from cable.answers import MOST_BYTES, SERVICE, Device, read
from cable.errors import CableError
from thicket.discovery.questions import browse

GROUP: Final = "ff02::fb"
PORT: Final = 5353
SECONDS: Final = 3.0
"""A search takes this long; a device answers within a tenth of a second, and may have been asked by
somebody else just now (RFC 6762 6: it then keeps quiet for a second)."""
_ASKED: Final = (0.0, 0.3, 1.2, 2.2)
"""Seconds after the beginning at which is asked."""
MOST_DEVICES: Final = 512
MOST_PACKETS: Final = 4096
"""Bounds for what a search takes in; who floods it is told of, not believed."""
_MULTICAST_ALL: Final = 29  # IPV6_MULTICAST_ALL of include/uapi/linux/in6.h
_SIOCGIFFLAGS: Final = 0x8913  # include/uapi/linux/sockios.h
_IFREQ: Final = struct.Struct("16sH22x")  # struct ifreq: name, flags
_IFF_UP, _IFF_LOOPBACK, _IFF_POINTOPOINT, _IFF_MULTICAST = 0x1, 0x8, 0x10, 0x1000


def interfaces(sysfs: Path = Path("/sys")) -> list[str]:
    """Return the interfaces at which a cable may be: up, of Ethernet's kind, and not wireless."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has gone
                answer = fcntl.ioctl(asked.fileno(), _SIOCGIFFLAGS, _IFREQ.pack(name.encode(), 0))
                flags = _IFREQ.unpack(answer)[1]
                wrong = flags & (_IFF_LOOPBACK | _IFF_POINTOPOINT)
                if flags & _IFF_UP and flags & _IFF_MULTICAST and not wrong:
                    found.append(name)
    return [name for name in found if not _wireless(sysfs / "class/net" / name)]


def _wireless(folder: Path) -> bool:
    return (folder / "phy80211").exists() or (folder / "wireless").exists()


def search(
    known: Iterable[Device] = (), *, seconds: float = SECONDS, asked: Iterable[str] | None = None
) -> list[Device]:
    """Return the devices that answer, sorted by name.

    :param known: devices that need not answer again; they are not returned.
    :param asked: interfaces, if not all of :func:`interfaces`.
    :raises CableError: there is no interface to ask at.
    """
    names = interfaces() if asked is None else list(asked)
    with _Asking(names) as asking:
        return asking.search(frozenset(known), seconds)


class _Asking:
    """A socket that asks on some interfaces."""

    def __init__(self, names: list[str]) -> None:
        self._socket = _opened()
        self._indexes = []
        for name in names:
            with suppress(OSError):  # gone, or it knows no IPv6
                index = socket.if_nametoindex(name)
                # struct ipv6_mreq of RFC 3493 5.2
                group = socket.inet_pton(socket.AF_INET6, GROUP) + struct.pack("@I", index)
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
                self._indexes.append(index)
        self._names = names

    def __enter__(self) -> _Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def search(self, known: frozenset[Device], seconds: float) -> list[Device]:
        """See :func:`search`."""
        found: set[Device] = set()
        began = time.monotonic()
        packets = 0
        for at, until in zip(_ASKED, (*_ASKED[1:], seconds), strict=True):
            if at >= seconds:
                break
            self._ask(known | found)
            end = began + min(until, seconds)
            while (left := end - time.monotonic()) > 0 and packets < MOST_PACKETS:
                self._socket.settimeout(left)
                try:
                    packet, sender = self._socket.recvfrom(MOST_BYTES + 1)
                except TimeoutError:
                    break
                except OSError:  # an ICMP error of an interface that goes
                    continue
                packets += 1
                if sender[3] in self._indexes:
                    found.update(self._devices(packet, sender))
                if len(found) > MOST_DEVICES:
                    raise CableError(
                        "flooded",
                        f"more than {MOST_DEVICES} devices seem to answer: somebody invents them. "
                        "Pull cables until they are fewer",
                    )
        return sorted(found - known)

    def _ask(self, known: frozenset[Device]) -> None:
        question = browse(SERVICE, [f"{one.name}.{SERVICE}" for one in sorted(known)])
        reached = False
        for index in self._indexes:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            with suppress(OSError):  # it has no link-local address, or has gone
                self._socket.sendto(question, (GROUP, PORT, 0, index))
                reached = True
        if not reached:
            raise CableError(
                "no-cable",
                "no wired interface of this machine is up and has an IPv6 link-local address"
                + (f" (there are {', '.join(self._names)})" if self._names else "")
                + ". Plug the cable in. NetworkManager gives up where no server gives an address: "
                "`nmcli connection modify NAME ipv4.method link-local ipv6.method link-local`",
            )

    def _devices(self, packet: bytes, sender: tuple[str, int, int, int]) -> list[Device]:
        try:
            interface = socket.if_indextoname(sender[3])
            return read(packet, IPv6Address(sender[0].partition("%")[0]), interface)
        except (OSError, ValueError):
            return []


def _opened() -> socket.socket:
    """Open the socket: at the port of multicast DNS, to which devices answer all who listen, and
    which firewalls of laptops let in; at another where a program keeps that to itself.

    :raises CableError: this machine has no IPv6.
    """
    try:
        made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    except OSError as error:
        raise CableError(
            "no-ipv6", f"this machine has no IPv6: {os.strerror(error.errno or 0)}"
        ) from None
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    with suppress(OSError):
        # what other programs have joined for is theirs
        made.setsockopt(socket.IPPROTO_IPV6, _MULTICAST_ALL, 0)
    try:
        made.bind(("::", PORT))
    except OSError:
        made.bind(("::", 0))
    return made
