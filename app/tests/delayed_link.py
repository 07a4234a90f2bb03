# SPDX-License-Identifier: Apache-2.0
"""Two networks joined by a link that takes its time with every packet, as a radio does.

For a kernel without ``netem``. To be made where network namespaces may be made, as
:func:`private_network.enter` sees to, and while no event loop runs.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from private_network import CLONE_NEWNET, PREFIX
from pyroute2 import IPRoute

TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
PACKET = 65536

_libc = ctypes.CDLL(None, use_errno=True)


def _here() -> int:
    """Return a handle of the network that the calling thread is in."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class DelayedLink:
    """A link between two networks.

    :param delay: seconds that a packet needs from one end to the other.
    """

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self._home = _here()
        self._networks: list[int] = []
        self._ends: list[int] = []
        for _ in range(2):
            _checked(_libc.unshare(CLONE_NEWNET))
            self._networks.append(_here())
            self._ends.append(self._make_end())
        self._enter(self._home)
        threading.Thread(target=self._forward, daemon=True).start()

    @staticmethod
    def _make_end() -> int:
        end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH14x", b"link0", IFF_TUN | IFF_NO_PI))
        with IPRoute() as ip:
            for name in ("lo", "link0"):
                ip.link("set", index=ip.link_lookup(ifname=name)[0], state="up")
            index = ip.link_lookup(ifname="link0")[0]
            ip.route("add", dst=f"{PREFIX}/64", oif=index)
        return end

    @staticmethod
    def _enter(network: int) -> None:
        _checked(_libc.setns(network, CLONE_NEWNET))

    @contextmanager
    def within(self, number: int) -> Iterator[None]:
        """What the calling thread opens and starts meanwhile is in network 0 or 1."""
        self._enter(self._networks[number])
        try:
            yield
        finally:
            self._enter(self._home)

    def _forward(self) -> None:
        waiting: deque[tuple[float, int, bytes]] = deque()
        while True:
            timeout = max(waiting[0][0] - time.perf_counter(), 0) if waiting else None
            for end in select.select(self._ends, [], [], timeout)[0]:
                packet = os.read(end, PACKET)
                other = self._ends[1 - self._ends.index(end)]
                waiting.append((time.perf_counter() + self.delay, other, packet))
            while waiting and waiting[0][0] <= time.perf_counter():
                _, end, packet = waiting.popleft()
                os.write(end, packet)
