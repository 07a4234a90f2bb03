# SPDX-License-Identifier: Apache-2.0
"""The socket that beacons are sent and received with, from its opening to its end."""

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


class BeaconSocket:
    """A UDP socket on one interface, in the group of beacons.

    :param received: called with each datagram: payload, the sender's AF_INET6 socket address, the
        hop limit that it arrived with (None when the kernel does not tell), and the time.
    :param flooded: called with the time when more arrive than are looked at; one is lost then.
    :raises OSError: when it cannot be opened; nothing is left open.
    """

    #: Datagrams taken from the socket per wake-up of the loop, and seconds for them: then others
    #: have their turn.
    BATCH = 32
    SLICE = 0.01
    #: Datagrams looked at per second, on average and at once; what exceeds it stays in the
    #: kernel's receive buffer, which drops the rest at no cost to us. The more are looked at, the
    #: better the chance of good ones among bad ones.
    RATE = 1000.0
    BURST = 1000.0
    #: How long the socket is left alone when that is exceeded, in seconds.
    PAUSE = 0.25

    def __init__(
        self,
        interface: str,
        received: Callable[[bytes, tuple[Any, ...], int | None, float], None],
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
        """Close it; nothing more is received."""
        if self._resume is not None:
            self._resume.cancel()
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    @property
    def usable(self) -> bool:
        """Whether it still belongs to the interface of this name, which may be made anew."""
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
        """Take a bounded number of datagrams; leave the socket alone for a while in a flood."""
        begin = now = monotonic()
        for _ in range(self.BATCH):
            if now - begin > self.SLICE:
                return
            try:
                payload, control, _flags, source = self._socket.recvmsg(
                    MAX_PAYLOAD + 1, socket.CMSG_SPACE(struct.calcsize("@i"))
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError as e:
                if self._socket.fileno() < 0:  # what was received last had it closed
                    return
                # an ICMP error for an earlier answer arrives here; it concerns nobody
                log.debug("receiving a beacon: %s", e)
                continue
            now = monotonic()
            if not self._budget.take(now):
                # This one is lost; how many more are is the kernel's secret.
                self._flooded(now)
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._socket.fileno())
                self._resume = loop.call_later(self.PAUSE, self._read_again)
                return
            hop_limit = None
            for level, kind, data in control:
                if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_HOPLIMIT:
                    (hop_limit,) = struct.unpack_from("@i", data)
            self._received(payload, source, hop_limit, now)

    def _read_again(self) -> None:
        self._resume = None
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)


def _opened(interface: str, index: int) -> socket.socket:
    """Open the socket; raises OSError, and leaves nothing open then."""
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
    try:
        s.setblocking(False)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # lets a beacon socket of another program live beside ours
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        s.bind(("::", PORT))
        # struct ipv6_mreq of RFC 3493 5.2: the group, then the interface as unsigned int
        group = socket.inet_pton(socket.AF_INET6, GROUP) + struct.pack("@I", index)
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
    except BaseException:
        s.close()
        raise
    return s
