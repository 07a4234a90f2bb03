# SPDX-License-Identifier: Apache-2.0
"""Which device is meant, and how ssh gets to it.

A device makes its host key at its first start. The first one that is seen under its name is kept
in a file of the authority's own, and another one is refused from then on: addresses and cables do
not matter, and neither does what anybody on the cable says.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

from cable.answers import Device
from cable.errors import CableError

KNOWN_HOSTS: Final = "cable_known_hosts"
_NODE: Final = re.compile(r"n-[0-9a-f]{1,12}(\.local\.?)?")


def is_device(word: str) -> bool:
    """Return whether a word names a device: ``n-...`` or ``ADDRESS%INTERFACE``. No command does."""
    return bool(_NODE.fullmatch(word.lower())) or ("%" in word and _address(word) is not None)


def chosen(found: list[Device], node: str | None) -> Device:
    """Return the device that is meant.

    :param node: its name, last digits of that behind ``n-``, or ``ADDRESS%INTERFACE``; None for the
        only one that is there.
    :raises CableError: there is none, or more than one.
    """
    if not found:
        raise CableError(
            "no-device",
            "no device answers on a cable. It may take a minute to start, and answers where its "
            "configuration names an SSH key (`thicket ca config`) and access.cable is not false",
        )
    fit = found if node is None else [one for one in found if _is(one, node)]
    if len(fit) == 1:
        return fit[0]
    there = "".join(f"\n  {one.name}  {one.host}" for one in fit or found)
    if not fit:
        raise CableError("no-device", f"{node} does not answer; there are:{there}")
    if len({one.name for one in fit}) == 1:
        name = fit[0].name
        raise CableError(
            "two-ways",
            f"{name} answers from several places: one device by several cables, or somebody else "
            f"who says that he is it. Name the place, ADDRESS%INTERFACE:{there}",
        )
    raise CableError("several", f"{len(fit)} devices answer; name one (--cable NAME):{there}")


def _is(device: Device, node: str) -> bool:
    if "%" in node:
        return _address(node) == device.address and node.partition("%")[2] == device.interface
    digits = node.lower().removesuffix(".").removesuffix(".local").removeprefix("n-")
    return device.name.endswith(digits)


def _address(word: str) -> IPv6Address | None:
    try:
        return IPv6Address(word.partition("%")[0])
    except ValueError:
        return None


def options(device: Device, folder: Path) -> tuple[str, ...]:
    """Return what ssh is told about a device.

    :param folder: the authority's, where host keys are kept.
    """
    file = str(folder / KNOWN_HOSTS).replace("%", "%%").replace('"', '\\"')
    settings = {
        "HostKeyAlias": device.name,
        "UserKnownHostsFile": f'"{file}"',
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "accept-new",
        "CheckHostIP": "no",
        "UpdateHostKeys": "no",
        "HashKnownHosts": "no",
        # nobody at the other end has proved yet who he is
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "ClearAllForwardings": "yes",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "ConnectTimeout": "15",
        "ServerAliveInterval": "10",
        "ServerAliveCountMax": "3",
        "LogLevel": "ERROR",
    }
    return tuple(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))


def known(device: Device, folder: Path) -> bool:
    """Return whether a host key of a device is kept."""
    try:
        lines = (folder / KNOWN_HOSTS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.split(" ", 1)[0] == device.name for line in lines)


def advice(device: Device, folder: Path) -> str:
    """Return what a person can do where ssh has refused a device."""
    if known(device, folder):
        return (
            "If its host key has changed: a new card has a new one, and then `ssh-keygen -R "
            f"{device.name} -f {folder / KNOWN_HOSTS}` forgets the old one; otherwise somebody "
            "else answers by its name"
        )
    return "Its configuration has to name an SSH key that this machine has (`thicket ca config`)"
