# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells of the machine: memory, load, temperature, voltage, clock, interfaces.

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


class Machine(NamedTuple):
    """What is known of the machine; None where it does not tell.

    :ivar time: seconds since 1970, by its clock.
    :ivar memory: bytes by the names of /proc/meminfo.
    :ivar cpu: seconds by MODES, of all processors.
    :ivar data: size, free and available bytes of the file system at /data.
    :ivar temperatures: degrees Celsius by zone.
    :ivar undervoltage: whether the board's firmware says that its supply is too weak.
    """

    time: float
    load: tuple[float, float, float] | None
    cpus: int
    cpu: dict[str, float]
    memory: dict[str, int]
    data: tuple[int, int, int] | None
    temperatures: dict[str, float]
    undervoltage: bool | None
    interfaces: list[Interface]


def read(root: str = "") -> Machine:
    """Ask the kernel.

    :param root: the folder in which ``/proc``, ``/sys`` and ``/data`` are.
    """
    return Machine(
        time=time.time(),
        load=_load(root),
        cpus=os.cpu_count() or 1,
        cpu=_cpu(root),
        memory=_memory(root),
        data=_data(f"{root}/data"),
        temperatures=_temperatures(f"{root}/sys/class/thermal"),
        undervoltage=_undervoltage(f"{root}/sys/class/hwmon"),
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


def _undervoltage(folder: str) -> bool | None:
    """What the Raspberry Pi's firmware says (drivers/hwmon/raspberrypi-hwmon.c)."""
    for name in _names(folder, "hwmon"):
        if _text(f"{folder}/{name}/name") == "rpi_volt":
            alarm = _number(f"{folder}/{name}/in0_lcrit_alarm")
            return None if alarm is None else alarm != 0
    return None


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
