# SPDX-License-Identifier: Apache-2.0
"""Whether there is a way out of the mesh: a default route by another interface."""

from __future__ import annotations

_UP = 0x1  # RTF_UP of linux/route.h
_REJECT = 0x200  # RTF_REJECT


def has_uplink(root: str, mesh: str) -> bool:
    """Return whether the kernel has a default route that does not lead into the mesh.

    :param root: the folder that ``proc`` is in.
    :param mesh: the interface of the mesh.
    """
    return _ipv4(_lines(root + "/proc/net/route"), mesh) or _ipv6(
        _lines(root + "/proc/net/ipv6_route"), mesh
    )


def _lines(path: str) -> list[list[str]]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return [line.split() for line in file.read(1 << 20).splitlines()]
    except OSError:
        return []


def _ipv4(lines: list[list[str]], mesh: str) -> bool:
    return any(
        len(words) >= 8
        and words[0] != mesh
        and words[1] == "00000000"
        and words[7] == "00000000"
        and _usable(words[3])
        for words in lines
    )


def _ipv6(lines: list[list[str]], mesh: str) -> bool:
    return any(
        len(words) >= 10
        and words[9] not in (mesh, "lo")
        and words[0] == "0" * 32
        and words[1] == "00"
        and _usable(words[8])
        for words in lines
    )


def _usable(flags: str) -> bool:
    try:
        value = int(flags, 16)
    except ValueError:
        return False
    return bool(value & _UP) and not value & _REJECT
