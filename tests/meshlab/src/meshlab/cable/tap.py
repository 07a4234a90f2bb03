# SPDX-License-Identifier: Apache-2.0
"""A network interface whose other end is this program (linux/if_tun.h)."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import time
from pathlib import Path

from meshlab.cable.errors import CableError

DEVICE = "/dev/net/tun"
READY = 5.0
"""Seconds for the kernel to have looked whether the interface's address is another's (RFC 4862)."""

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP = 0x1
_IFREQ = struct.Struct("16sH22x")
_TENTATIVE = 0x40  # linux/if_addr.h, IFA_F_TENTATIVE


def open_tap(name: str) -> int:
    """Make an interface and switch it on; return a descriptor that has its frames, one a read.

    :raises CableError: when that is not allowed here.
    """
    try:
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CableError(
            f"{DEVICE} cannot be opened: {error.strerror}. A cable needs it: `sudo modprobe tun`, "
            f"and `sudo chmod 666 {DEVICE}` where it is there for root alone"
        ) from None
    try:
        request = _IFREQ.pack(name.encode(), _IFF_TAP | _IFF_NO_PI)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
        switch_on(name)
    except OSError as error:
        os.close(descriptor)
        raise CableError(f"the interface {name} cannot be made: {error.strerror}") from None
    return descriptor


def switch_on(name: str) -> None:
    """Switch an interface on.

    :raises OSError: when that is not allowed.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(name.encode(), 0))
        flags = _IFREQ.unpack(asked)[1] | _IFF_UP
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(name.encode(), flags))


def show_interfaces() -> None:
    """Have /sys show the interfaces of this network, where programs look for them.

    It shows those of the network in which it was mounted. This takes a mount namespace.

    :raises CableError: when that is not allowed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"sysfs", b"/sys", b"sysfs", 0, None) != 0:
        why = os.strerror(ctypes.get_errno())
        raise CableError(f"/sys cannot be mounted for the network of the cable: {why}")


def wait_for_address(name: str) -> None:
    """Return when an interface has its link-local address, or will not have one soon."""
    until = time.monotonic() + READY
    while time.monotonic() < until:
        for line in Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines():
            _, _, _, _, flags, owner = line.split()
            if owner == name and not int(flags, 16) & _TENTATIVE:
                return
        time.sleep(0.05)
