# SPDX-License-Identifier: Apache-2.0
"""How the machine was reset: what the kernel, the watchdog and the Pi's ROM keep of it."""

from __future__ import annotations

from thicket.base.files import entries, read
from thicket.base.paths import Paths

# linux/watchdog.h: the machine was restarted by the watchdog
_WDIOF_CARDRESET = 0x20
# drivers/watchdog/bcm2835_wdt.c: bits HADWRF, HADWRQ and HADWRH of PM_RSTS, "had a watchdog reset"
_RSTS_WATCHDOG = 0x70

#: Longest reason.
_LONGEST = 300
#: Beginnings of the kernel's messages about its failures, on all architectures.
_BEGINNINGS = ("BUG: ", "Oops: ", "Internal error: ", "Unable to handle ", "general prot")


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


def last_words(paths: Paths) -> str | None:
    """Return why the kernel failed, in its own words; None when it did not or left no record."""
    records = kernel_records(paths)
    if not records:
        return None
    best = ""
    for path in records:
        for line in (read(path) or "").splitlines():
            words = _without_stamp(line)
            start, mark, rest = words.partition("Kernel panic - not syncing: ")
            if mark and not start:
                return _clean(rest)
            if not best and words.startswith(_BEGINNINGS):
                best = words
    return _clean(best) if best else "no reason found in its last messages"


def _without_stamp(line: str) -> str:
    """Return a kernel message without priority and time: ``<0>[   12.345678] words``."""
    line = line.strip()
    if line.startswith("<") and ">" in line[:6]:
        line = line.partition(">")[2]
    if line.startswith("[") and "]" in line[:32]:
        line = line.partition("]")[2]
    return line.strip()


def _clean(words: str) -> str:
    return "".join(c for c in words if c.isprintable())[:_LONGEST].strip()
