# SPDX-License-Identifier: Apache-2.0
"""Tests that talk over real sockets, in a network of their own and without being root.

:func:`in_private_network` runs an ``async`` test in a child process that has left for new user
and network namespaces, where loopback may have any address and every port is free. Where the
machine does not permit that, the test runs on the machine's own ``::1`` with free ports.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

CLONE_NEWUSER = 0x10000000  # linux/sched.h
CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS = 0x8913  # linux/sockios.h
SIOCSIFFLAGS = 0x8914
SIOCSIFADDR = 0x8916
SIOCDIFADDR = 0x8936
IFF_UP = 1

_SKIPPED = b"\0skipped\0"

HANGS = 4 * PATIENCE
"""Seconds after which a test is ended that hangs where nothing else ends it."""

PREFIX = "fd12:3456:789a:1::"


class Network:
    """The network that a test runs in.

    :ivar private: it belongs to the test alone. Otherwise every address is ``::1``.
    :ivar epmd_port: the port for port mappers.
    :param path: where its folders are; who gives it removes it.
    """

    def __init__(self, private: bool, path: Path | None = None) -> None:
        self.private = private
        self._path = path
        self.epmd_port = 4369 if private else free_port()
        self._present: set[IPv6Address] = set()

    def address(self, number: int) -> IPv6Address:
        """Return address ``number``, which exists from now on."""
        if not self.private:
            return IPv6Address("::1")
        address = IPv6Address(f"{PREFIX}{number:x}")
        if address not in self._present:
            self.add(address)
        return address

    def folder(self) -> Path:
        """Return a new folder; in a test it stays until the test's process has ended."""
        return Path(tempfile.mkdtemp(dir=self._path))

    def port(self) -> int:
        """Return the port that nodes of a cluster have in common."""
        return 9100 if self.private else free_port()

    def add(self, address: IPv6Address) -> None:
        """Give loopback ``address``, and wait until it can be used."""
        with suppress(FileExistsError):  # another Network of this namespace has made it
            _change_address(SIOCSIFADDR, address)
        self._present.add(address)
        end = time.monotonic() + PATIENCE
        while not _usable(address):
            if time.monotonic() > end:
                raise AssertionError(f"the address {address} stays tentative")
            time.sleep(0.001)

    def remove(self, address: IPv6Address) -> None:
        """Take ``address`` away from loopback."""
        _change_address(SIOCDIFADDR, address)
        self._present.discard(address)


def _change_address(request: int, address: IPv6Address) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
        # struct in6_ifreq of linux/ipv6.h
        argument = struct.pack("@16sIi", address.packed, 128, socket.if_nametoindex("lo"))
        fcntl.ioctl(control, request, argument)


def _usable(address: IPv6Address) -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a port of ``::1`` that is free now."""
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return int(probe.getsockname()[1])


async def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait until ``condition`` holds; fails with ``what`` after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        await asyncio.sleep(0.005)


def in_private_network(
    test: Callable[[Network], Coroutine[Any, Any, None]], seconds: float = HANGS
) -> Callable[[], None]:
    """Make a test function out of ``test``, which gets the network as its argument."""

    def run() -> None:
        run_in_child(test, seconds)

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    run.__module__ = test.__module__
    return run


def run_in_child(test: Callable[[Network], Coroutine[Any, Any, None]], seconds: float) -> None:
    """Run ``test`` in a private network; fails or skips as it does."""
    failure = _in_child(test, seconds)
    if failure.startswith(_SKIPPED.decode()):
        pytest.skip(failure.removeprefix(_SKIPPED.decode()))
    if failure:
        pytest.fail(failure, pytrace=False)


def _in_child(test: Callable[[Network], Coroutine[Any, Any, None]], seconds: float) -> str:
    """Run ``test`` in a child; return why it failed, or nothing."""
    path = Path(tempfile.mkdtemp(prefix="network-"))
    try:
        return _with_folder(test, seconds, path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _with_folder(
    test: Callable[[Network], Coroutine[Any, Any, None]], seconds: float, path: Path
) -> str:
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            os.close(reading)
            try:
                asyncio.run(test(Network(enter(), path)))
                status = 0
            except pytest.skip.Exception as skipped:
                os.write(writing, _SKIPPED + str(skipped).encode())
            except BaseException:
                os.write(writing, traceback.format_exc().encode()[-60000:])
        finally:
            os._exit(status)
    with suppress(OSError):
        os.setpgid(child, child)
    os.close(writing)
    failure = b""
    end = time.monotonic() + seconds
    with open(reading, "rb", buffering=0) as pipe:  # noqa: PTH123
        while True:
            ready, _, _ = select.select([pipe], [], [], max(end - time.monotonic(), 0))
            if not ready:
                failure += b"not finished within %d seconds" % seconds
                break
            part = pipe.read(65536)
            if not part:
                break
            failure += part
    if failure:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with suppress(ProcessLookupError):  # what the test has left running
        os.killpg(child, signal.SIGKILL)
    if status and not failure:
        return f"the test's process ended with status {status:#x}"
    return failure.decode(errors="replace")


def enter() -> bool:
    """Move into a network of our own; False when that is not permitted."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    try:
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0:
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1", encoding="ascii")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1", encoding="ascii")
        elif libc.unshare(CLONE_NEWNET) != 0:
            return False
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
            name = struct.pack("16sH14x", b"lo", 0)
            flags = struct.unpack_from("16sH", fcntl.ioctl(control, SIOCGIFFLAGS, name))[1]
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))
    except OSError:
        return False
    return True
