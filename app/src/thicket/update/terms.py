# SPDX-License-Identifier: Apache-2.0
"""What this node takes, gathered from its configuration, its files and its card."""

from __future__ import annotations

import os

from thicket.base.paths import Paths
from thicket.config.schema import Settings
from thicket.device.boot_slots import Slots
from thicket.trust.certificates import from_pem
from thicket.trust.fleet import Fleet
from thicket.trust.service import revoked_on_disk
from thicket.update import kept
from thicket.update.judge import InstallError, Terms

SYSTEM = "/etc/rauc/system.conf"
"""RAUC's configuration, part of the image."""

_MOST = 64 * 1024


def gather(paths: Paths, settings: Settings, slots: Slots, epoch: int) -> Terms:
    """Return the terms of now; blocking.

    :param epoch: the epoch that the chip keeps; 0 where none does.
    :raises InstallError: the image is for no updates.
    :raises CardError: the card cannot be read.
    """
    root = settings.trust.root
    fleet = Fleet(from_pem(root)[0]) if root else None
    return Terms(
        compatible(paths),
        fleet,
        bool(settings.update.keyring),
        revoked_on_disk(paths, fleet),
        max(epoch, slots.read().epoch),
        kept.load(paths).rejected,
        _room(paths, slots.running.other.name.lower()),
    )


def compatible(paths: Paths) -> str:
    """Return the kind of device that this is.

    :raises InstallError: the image does not say.
    """
    try:
        with open(paths.root + SYSTEM, encoding="utf-8", errors="replace") as file:
            lines = file.read(_MOST).splitlines()
    except OSError as error:
        raise InstallError(
            "no-updates", f"this image takes no updates: {SYSTEM}: {error.strerror}"
        ) from None
    for line in lines:
        name, _, value = line.partition("=")
        if name.strip() == "compatible":
            return value.strip()
    raise InstallError("no-updates", f"{SYSTEM} does not say what kind of device this is")


def _room(paths: Paths, slot: str) -> dict[str, int]:
    room = {}
    for name, device in (("boot", f"boot-{slot}"), ("rootfs", f"root-{slot}")):
        try:
            with open(f"{paths.root}/dev/slots/{device}", "rb") as file:
                room[name] = file.seek(0, os.SEEK_END)
        except OSError:
            continue
    return room
