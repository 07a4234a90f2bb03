# SPDX-License-Identifier: Apache-2.0
"""How the machine was reset: what the kernel, the watchdog and the Pi's ROM keep of it."""

from __future__ import annotations

from thicket.base.files import entries, read
from thicket.base.paths import Paths

# linux/watchdog.h: the machine was restarted by the watchdog
_WDIOF_CARDRESET = 0x20
# drivers/watchdog/bcm2835_wdt.c: bits HADWRF, HADWRQ and HADWRH of PM_RSTS, "had a watchdog reset"
_RSTS_WATCHDOG = 0x70


def watchdog_fired(paths: Paths) -> bool:
    """Whether the watchdog restarted the machine, by its driver or the Pi's ROM."""
    folder = paths.sys + "/class/watchdog"
    for name in entries(folder):
        status = read(f"{folder}/{name}/bootstatus") or ""
        if status.isdigit() and int(status) & _WDIOF_CARDRESET:
            return True
    try:
        with open(paths.root + "/proc/device-tree/chosen/bootloader/rsts", "rb") as f:
            data = f.read(5)
    except OSError:
        return False
    # a cell of the device tree is big endian
    return len(data) == 4 and bool(int.from_bytes(data, "big") & _RSTS_WATCHDOG)


def kernel_records(paths: Paths) -> list[str]:
    """Return the files of the last messages of a kernel that failed, in order."""
    folder = paths.sys + "/fs/pstore"
    return [f"{folder}/{name}" for name in entries(folder) if name.startswith("dmesg-")]
