# SPDX-License-Identifier: Apache-2.0
"""Where a node keeps its files, and what the kernel command line says."""

from __future__ import annotations

import os


class Paths:
    """Where a node keeps its files.

    The configuration is the first of these that exists: ``device`` (the copy that init makes of the
    boot partition's ``thicket.toml``), ``local`` (devices without a boot partition), the image's
    defaults. Keys that the file does not set always have the image's values.

    :param root: prefix of all paths; tests and several daemons on one host have their own.
    """

    __slots__ = (
        "boot", "cmdline", "control", "data", "device", "hostname", "image", "last_good",
        "last_good_sum", "local", "machine_id", "mounts", "root", "run", "status", "sys", "times",
    )  # fmt: skip

    def __init__(self, root: str | None = None) -> None:
        root = (os.environ.get("THICKET_ROOT", "") if root is None else root).rstrip("/")
        self.root = root
        self.image = root + "/usr/share/thicket/thicket.toml"
        self.device = root + "/etc/thicket/thicket.toml"
        self.local = root + "/data/thicket/thicket.toml"
        self.last_good = root + "/data/thicket/last-good.toml"
        self.last_good_sum = root + "/data/thicket/last-good.sha256"
        self.data = root + "/data"
        self.sys = root + "/sys"
        self.boot = root + "/boot"
        self.run = root + "/run/thicket"
        self.status = self.run + "/status.json"
        self.times = self.run + "/times.json"
        self.control = self.run + "/control.sock"
        self.machine_id = root + "/etc/machine-id"
        self.hostname = root + "/etc/hostname"
        self.cmdline = root + "/proc/cmdline"
        self.mounts = root + "/proc/self/mounts"


def parameter(paths: Paths, name: str) -> str | None:
    """Return the value of ``thicket.NAME=`` on the kernel command line, or None."""
    try:
        with open(paths.cmdline, encoding="utf-8", errors="replace") as f:
            words = f.read(4096).split()
    except OSError:
        return None
    start = f"thicket.{name}="
    return next((word[len(start) :] or None for word in words if word.startswith(start)), None)


def boot_device(paths: Paths) -> str | None:
    """Return the configuration disk named on the kernel command line (``thicket.boot=``)."""
    return parameter(paths, "boot")


def boot_mounted(paths: Paths) -> bool:
    """Whether something is mounted at the boot directory."""
    try:
        with open(paths.mounts, encoding="utf-8", errors="replace") as f:
            return any(line.split(" ", 2)[1:2] == [paths.boot] for line in f)
    except OSError:
        return False
