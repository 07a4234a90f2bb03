# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells of the machine: memory, load, temperature, voltage, card, clock,
interfaces.

Everything is read from ``/proc`` and ``/sys``, which no card can delay. What a machine does not
have is left out.
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

#: Longest file that is read, in bytes.
_LONGEST = 16 * 1024
#: Most interfaces and sensors that are told.
MOST = 16
#: Modes of a processor's time, in the order of /proc/stat (proc(5)).
MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
#: An interface's counters of ``/sys/class/net/*/statistics``.
COUNTERS = (
    "rx_bytes", "tx_bytes", "rx_packets", "tx_packets", "rx_errors", "tx_errors", "rx_dropped",
    "tx_dropped",
)  # fmt: skip


class Interface(NamedTuple):
    """A network interface.

    :ivar statistics: COUNTERS, as far as the kernel tells them.
    """

    name: str
    up: bool
    mac: str
    mtu: int | None
    statistics: dict[str, int]


class Card(NamedTuple):
    """What an eMMC tells of its health (JESD84-B51, 7.4.21 and 7.4.22), and an SD card does not.

    :ivar worn: the share of its life that is used, in steps of a tenth, the worse of its two kinds
        of memory; more than 1 behind its end.
    :ivar reserve: how much of the spare blocks is used: 1 normal, 2 most of it (80 %), 3 urgent.
    """

    worn: float | None
    reserve: int | None


class Machine(NamedTuple):
    """What is known of the machine; None where it does not tell.

    :ivar time: seconds since 1970, by its clock.
    :ivar synchronised: whether the clock is known to be right.
    :ivar memory: bytes by the names of /proc/meminfo.
    :ivar cpu: seconds by MODES, of all processors.
    :ivar data: size, free and available bytes of the file system at /data.
    :ivar data_errors: errors that this file system has noted since it was made, or last checked.
    :ivar cards: by the kernel's name of the device.
    :ivar temperatures: degrees Celsius by zone.
    :ivar undervoltage: whether the board's firmware says that its supply is too weak.
    """

    time: float
    synchronised: bool
    load: tuple[float, float, float] | None
    cpus: int
    cpu: dict[str, float]
    memory: dict[str, int]
    data: tuple[int, int, int] | None
    data_errors: int | None
    cards: dict[str, Card]
    temperatures: dict[str, float]
    undervoltage: bool | None
    interfaces: list[Interface]


def read(root: str = "") -> Machine:
    """Ask the kernel.

    :param root: the folder in which ``/proc``, ``/sys`` and ``/data`` are.
    """
    from thicket.trust.clock import synchronised

    return Machine(
        time=time.time(),
        synchronised=synchronised(root),
        load=_load(root),
        cpus=os.cpu_count() or 1,
        cpu=_cpu(root),
        memory=_memory(root),
        data=_data(f"{root}/data"),
        data_errors=_data_errors(root),
        cards=_cards(f"{root}/sys/block"),
        temperatures=_temperatures(f"{root}/sys/class/thermal"),
        undervoltage=_undervoltage(root),
        interfaces=_interfaces(f"{root}/sys/class/net"),
    )


def _text(path: str) -> str:
    try:
        with open(path, "rb") as f:
            return f.read(_LONGEST).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _number(path: str) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None


def _names(folder: str, start: str = "") -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.startswith(start))[:MOST]
    except OSError:
        return []


def _load(root: str) -> tuple[float, float, float] | None:
    try:
        one, five, fifteen = map(float, _text(f"{root}/proc/loadavg").split()[:3])
    except ValueError:
        return None
    return one, five, fifteen


def _cpu(root: str) -> dict[str, float]:
    words = _text(f"{root}/proc/stat").partition("\n")[0].split()
    if words[:1] != ["cpu"]:
        return {}
    tick = os.sysconf("SC_CLK_TCK")
    return {mode: int(word) / tick for mode, word in zip(MODES, words[1:], strict=False)}


def _memory(root: str) -> dict[str, int]:
    found = {}
    for line in _text(f"{root}/proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        number, _, unit = value.strip().partition(" ")
        if unit == "kB" and number.isdigit():
            found[name] = int(number) * 1024
    return found


def _data(folder: str) -> tuple[int, int, int] | None:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    unit = found.f_frsize
    return found.f_blocks * unit, found.f_bfree * unit, found.f_bavail * unit


def _temperatures(folder: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for zone in _names(folder, "thermal_zone"):
        degrees = _number(f"{folder}/{zone}/temp")
        if degrees is not None:
            kind = _text(f"{folder}/{zone}/type") or zone
            found[f"{kind}-{zone[12:]}" if kind in found else kind] = degrees / 1000
    return found


def _undervoltage(root: str) -> bool | None:
    """What the Raspberry Pi's firmware says: by the driver raspberrypi-hwmon, or by its own words
    (https://www.raspberrypi.com/documentation/computers/os.html#get_throttled)."""
    folder = f"{root}/sys/class/hwmon"
    for name in _names(folder, "hwmon"):
        if _text(f"{folder}/{name}/name") == "rpi_volt":
            alarm = _number(f"{folder}/{name}/in0_lcrit_alarm")
            return None if alarm is None else alarm != 0
    throttled = _hexadecimal(_text(f"{root}/sys/devices/platform/soc/soc:firmware/get_throttled"))
    return None if throttled is None else bool(throttled & 1)


def _hexadecimal(text: str) -> int | None:
    try:
        return int(text, 16)
    except ValueError:
        return None


def _data_errors(root: str) -> int | None:
    """Return the errors of the ext4 at /data."""
    for line in _text(f"{root}/proc/self/mounts").splitlines():
        source, _, rest = line.partition(" ")
        if rest.startswith("/data ext4 "):
            return _number(f"{root}/sys/fs/ext4/{source.rpartition('/')[2]}/errors_count")
    return None


def _cards(folder: str) -> dict[str, Card]:
    found = {}
    for name in _names(folder, "mmcblk"):
        if not name.removeprefix("mmcblk").isdigit():  # a part of one, such as mmcblk0boot0
            continue
        lives = [_hexadecimal(word) for word in _text(f"{folder}/{name}/device/life_time").split()]
        reserve = _hexadecimal(_text(f"{folder}/{name}/device/pre_eol_info"))
        # 0x01 means up to a tenth, 0x0b behind the end; 0 that it is not told
        worn = max((life for life in lives if life is not None), default=0) / 10 or None
        if worn or reserve:
            found[name] = Card(worn, reserve or None)
    return found


def _interfaces(folder: str) -> list[Interface]:
    found = []
    for name in _names(folder):
        statistics = {
            counter: value
            for counter in COUNTERS
            if (value := _number(f"{folder}/{name}/statistics/{counter}")) is not None
        }
        if name == "lo" or not statistics:
            continue
        found.append(
            Interface(
                name,
                # a mesh interface says "up"; one that cannot tell "unknown", while it is used
                up=_text(f"{folder}/{name}/operstate") in {"up", "unknown"},
                mac=_text(f"{folder}/{name}/address"),
                mtu=_number(f"{folder}/{name}/mtu"),
                statistics=statistics,
            )
        )
    return found
