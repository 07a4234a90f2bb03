# SPDX-License-Identifier: Apache-2.0
"""The socket that sends and receives beacons, from its opening to its end."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from logging import getLogger
from time import monotonic
from typing import Any

from thicket.base.pace import Bucket
from thicket.discovery.beacon import GROUP, MAX_PAYLOAD, PORT

log = getLogger(__name__)

_HOP_LIMIT = struct.Struct("@i")
_PKTINFO = struct.Struct("@16sI")  # struct in6_pktinfo of RFC 3542, 6: address, interface
CONTROL_SPACE = socket.CMSG_SPACE(_HOP_LIMIT.size) + socket.CMSG_SPACE(_PKTINFO.size)
MULTICAST = 0xFF
"""First byte of a multicast address (RFC 4291, 2.7)."""


class BeaconSocket:
    """A UDP socket on one interface, in the multicast group of beacons.

    :param received: called with each datagram: payload, the sender's AF_INET6 socket address, the
        hop limit that it arrived with (None when the kernel does not tell), the time, and whether
        it was sent to all (as far as the kernel tells).
    :param flooded: called with the time when more arrive than are read; one is lost then.
    :raises OSError: it cannot be opened; nothing is left open.
    """

    #: Datagrams taken from the socket per wake-up of the loop, and the seconds for them; then other
    #: work has its turn.
    BATCH = 32
    SLICE = 0.01
    #: Datagrams read per second, on average and at once. The rest stays in the kernel's receive
    #: buffer, which drops what it cannot hold at no cost to this process. The more are read, the
    #: better the chance to find good ones among bad ones.
    RATE = 1000.0
    BURST = 1000.0
    #: Seconds for which the socket is not read when that is exceeded.
    PAUSE = 0.25

    def __init__(
        self,
        interface: str,
        received: Callable[[bytes, tuple[Any, ...], int | None, float, bool], None],
        flooded: Callable[[float], None],
    ) -> None:
        self.interface = interface
        self._received = received
        self._flooded = flooded
        self._budget = Bucket(self.RATE, self.BURST)
        self._resume: asyncio.TimerHandle | None = None
        self._index = socket.if_nametoindex(interface)
        self._socket = _opened(interface, self._index)
        try:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Close the socket; nothing more is received."""
        if self._resume is not None:
            self._resume.cancel()
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    @property
    def usable(self) -> bool:
        """Whether the interface of this name is still the one that the socket belongs to."""
        try:
            return socket.if_nametoindex(self.interface) == self._index
        except OSError:
            return False

    def send(self, payload: bytes, to: str = GROUP) -> None:
        """Send a datagram to all, or to one link-local address.

        :raises OSError: when it cannot be sent.
        """
        self._socket.sendto(payload, (to, PORT, 0, self._index))

    def _readable(self) -> None:
        """Read a limited number of datagrams; in a flood, pause for a while."""
        begin = now = monotonic()
        for _ in range(self.BATCH):
            if now - begin > self.SLICE:
                return
            try:
                payload, control, _flags, source = self._socket.recvmsg(
                    MAX_PAYLOAD + 1, CONTROL_SPACE
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError as e:
                if self._socket.fileno() < 0:  # the last datagram led to its closing
                    return
                # an ICMP error for an earlier answer arrives here, and has no meaning
                log.debug("receiving a beacon: %s", e)
                continue
            now = monotonic()
            if not self._budget.take(now):
                # This one is lost; the kernel does not tell how many more are.
                self._flooded(now)
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._socket.fileno())
                self._resume = loop.call_later(self.PAUSE, self._read_again)
                return
            hop_limit, to_all = None, True
            for level, kind, data in control:
                if level != socket.IPPROTO_IPV6:
                    continue
                if kind == socket.IPV6_HOPLIMIT:
                    (hop_limit,) = _HOP_LIMIT.unpack_from(data)
                elif kind == socket.IPV6_PKTINFO:
                    to_all = data[0] == MULTICAST
            self._received(payload, source, hop_limit, now, to_all)

    def _read_again(self) -> None:
        self._resume = None
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)


def _opened(interface: str, index: int) -> socket.socket:
    """Open the socket.

    :raises OSError: it cannot be opened; nothing is left open.
    """
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
    try:
        s.setblocking(False)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # another program may have a beacon socket beside ours
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        s.bind(("::", PORT))
        # struct ipv6_mreq of RFC 3493 5.2: the group, then the interface as unsigned int
        group = socket.inet_pton(socket.AF_INET6, GROUP) + struct.pack("@I", index)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
    except BaseException:
        s.close()
        raise
    return s
