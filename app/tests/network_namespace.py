# SPDX-License-Identifier: Apache-2.0
"""A network namespace for one test, so that real sockets meet no real network. Needs root."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

#: linux/sched.h
CLONE_NEWNET = 0x40000000


def unshare_network() -> None:
    """Move this thread into a new network namespace. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


@contextmanager
def namespace() -> Iterator[None]:
    """Run the body in a new network namespace; skips the test where that is not permitted."""
    if shutil.which("ip") is None:
        pytest.skip("needs the program ip (package iproute2)")
    old = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        try:
            unshare_network()
        except OSError as e:
            pytest.skip(f"needs the right to make a network namespace (root): {e.strerror}")
        try:
            ip("link set lo up")
            yield
        finally:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(old, CLONE_NEWNET) != 0:
                pytest.exit("cannot leave the test's network namespace", 1)
    finally:
        os.close(old)


def ip(arguments: str) -> str:
    """Run ``ip`` with these words; its output."""
    done = subprocess.run(["ip", *arguments.split()], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {arguments}: {done.stderr.strip()}")
    return done.stdout


def veth(first: str, second: str) -> None:
    """Make two interfaces that are connected by a wire, both up and usable at once."""
    ip(f"link add {first} type veth peer name {second}")
    for name in (first, second):
        up(name)


def up(name: str) -> None:
    """Bring an interface up without waiting for duplicate address detection."""
    sysctl = f"/proc/sys/net/ipv6/conf/{name}/accept_dad"
    with open(sysctl, "w", encoding="ascii") as f:  # noqa: PTH123
        f.write("0")
    ip(f"link set {name} up")
