# SPDX-License-Identifier: Apache-2.0
"""Where a node's identity comes from: the chip, or a substitute.

``read_identity`` always gives an answer. When the chip is missing or answers nonsense,
``Identity.problem`` says so, and the node runs under a software identity until a later call finds
the chip.

The substitutes, in this order: the serial number of the board; the MAC address of the first radio;
a random number that is made once and kept on the data partition. A node that once made a random
number stays with it, and one that took a MAC address keeps it while no radio is plugged in, so that
its address does not depend on what was ready first at boot.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from ipaddress import IPv6Interface
from typing import Any

from thicket.base import threads
from thicket.base.files import entries, write_atomically
from thicket.base.patience import Patience, Stopwatch
from thicket.identity import address as addresses
from thicket.identity.bus import Bus, BusError, LinuxBus

PATIENCE = 4.0
"""Seconds for one chip that answers, but badly; an address without an answer takes 0.1 s. Here, as
in the whole search, seconds in which we get no processor do not count."""

TOTAL_PATIENCE = 10.0
"""Seconds for the search of all buses."""

GIVE_UP_AFTER = TOTAL_PATIENCE + 5
"""Seconds of the event loop after which a search counts as hung whose thread does not get on."""

RADIO_WAIT = 5.0
"""Seconds to wait for a radio whose MAC address would be the identity."""

HINT = (
    "Check the wiring (on a Raspberry Pi: 3.3 V pin 1, SDA pin 3, SCL pin 5, GND pin 6), that "
    "config.txt has dtparam=i2c_arm=on, and the chip's address (0x60, Trust&GO 0x35, TrustFLEX "
    "0x36; identity.address in thicket.toml names another)"
)


class Identity:
    """Who a node is.

    :param source: one of ``address.SOURCES``.
    :param id: the 6 bytes in the node's address.
    :param serial: the chip's whole serial number (9 bytes), or None.
    :param chip: describes the chip, or None.
    :param problem: why there is no chip, or None.
    :raises ValueError: no address can be made of it.
    """

    __slots__ = ("chip", "id", "problem", "serial", "source")

    def __init__(
        self,
        source: str,
        id: bytes,
        *,
        serial: bytes | None = None,
        chip: dict[str, Any] | None = None,
        problem: str | None = None,
    ) -> None:
        addresses.interface_identifier(source, id)
        self.source = source
        self.id = id
        self.serial = serial
        self.chip = chip
        self.problem = problem

    @property
    def software(self) -> bool:
        """Whether the identity is only a claim, as only a chip can prove one."""
        return self.source != "chip"

    @property
    def hostname(self) -> str:
        """The node's name: ``n-`` and the identity in hexadecimal."""
        return "n-" + self.id.hex()

    @property
    def machine_id(self) -> str:
        """32 hexadecimal digits for ``/etc/machine-id``, made of the identity by SHA-256."""
        from hashlib import sha256  # loading OpenSSL is slow and not always needed

        number = addresses.interface_identifier(self.source, self.id).to_bytes(8, "big")
        return sha256(b"thicket-machine-id-v1" + number + (self.serial or b"")).hexdigest()[:32]

    def address_in(self, prefix: str | IPv6Interface) -> IPv6Interface:
        """Return the node's address in ``prefix``, see ``address.address_in``."""
        return addresses.address_in(prefix, self.source, self.id)

    def as_dict(self) -> dict[str, object]:
        """Return the ``identity`` part of the status document."""
        return {
            "source": self.source,
            "software": self.software,
            "serial": self.serial.hex() if self.serial else None,
            "id": self.id.hex(),
            "chip": self.chip,
        }

    def __repr__(self) -> str:
        return f"Identity({self.source!r}, {self.id.hex()})"


class Host:
    """The files and buses that identities are read from; tests use other paths."""

    def __init__(
        self,
        *,
        devices: str = "/dev",
        board_serial: str = "/proc/device-tree/serial-number",
        radios: str = "/sys/class/ieee80211",
        data: str = "/data/thicket",
        open_bus: Callable[[str], Bus] = LinuxBus,
        radio_wait: float = RADIO_WAIT,
    ) -> None:
        self.devices = devices
        self.board_serial_file = board_serial
        self.radios = radios
        self.data = data
        self.open_bus = open_bus
        self.radio_wait = radio_wait

    def buses(self) -> list[str]:
        """Return the I2C bus devices, the one on the Raspberry Pi's header (1) first."""
        names = entries(self.devices)
        numbers = [int(n[4:]) for n in names if n.startswith("i2c-") and n[4:].isdecimal()]
        return [self.bus(n) for n in sorted(numbers, key=lambda n: (n != 1, n))]

    def bus(self, number: int | str) -> str:
        """Return the path of an I2C bus device."""
        return f"{self.devices}/i2c-{number}"

    def board_serial(self) -> str | None:
        """Return the serial number of the board from the device tree, if it has a real one."""
        text = _read(self.board_serial_file).strip("\0 \n").lower()
        return text if text.strip("0") else None

    def radio_macs(self) -> list[str]:
        """Return the permanent MAC addresses of the radios, in the order of their names."""
        names = sorted(entries(self.radios), key=lambda name: (len(name), name))
        macs = (_read(f"{self.radios}/{name}/macaddress").strip().lower() for name in names)
        return [mac for mac in macs if mac.replace(":", "").strip("0")]

    @property
    def memory(self) -> str:
        """The file that keeps the software identity."""
        return self.data + "/identity.json"


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(256)
    except OSError:
        return ""


async def read_identity(config: object = None, *, host: Host | None = None) -> Identity:
    """Return who this node is, in a limited time, whatever hardware and files do.

    Call it again to look for a chip that was missing; compare ``source``.

    :param config: the section ``[identity]``: its attribute ``i2c_bus`` is ``auto``, ``none`` or
        the number of a bus, ``address`` is ``auto`` or the chip's 7-bit address in hexadecimal.
    """
    host = host or Host()
    wanted = str(getattr(config, "i2c_bus", "auto"))
    address = str(getattr(config, "address", "auto"))
    problem: str | None = None
    if wanted != "none":
        found = await _search(wanted, host, None if address == "auto" else int(address, 16))
        if isinstance(found, Identity):
            return found
        problem = found
    source, value, complaint = await _software_identity(host)
    problem = ". ".join(text for text in (problem, complaint) if text) or None
    return Identity(source, addresses.identity_of_value(source, value), problem=problem)


_searching: threading.Thread | None = None


async def _search(wanted: str, host: Host, address: int | None) -> Identity | str:
    """Run ``find_chip`` in a thread, and give up when a transfer never returns.

    Kernel drivers give up a transfer after about a second, but i2c-virtio waits for ever for a
    device that has gone. Such a thread cannot be ended, so there is never more than one, and it is
    a daemon thread.
    """
    global _searching  # noqa: PLW0603 - a machine has one set of buses
    if _searching is not None:
        return f"No security chip: an earlier transfer on an I2C bus still hangs. {HINT}"

    watch = Stopwatch()

    def work() -> Identity | str:
        global _searching  # noqa: PLW0603
        try:
            return find_chip(wanted, host, address, watch)
        except Exception as error:  # the node needs an identity in any case
            return f"No security chip: {type(error).__name__}: {error}"
        finally:
            _searching = None

    done: asyncio.Future[Identity | str] = asyncio.get_running_loop().create_future()
    # set before it starts, as it may end at once
    _searching = threading.Thread(
        target=threads.settle, args=(done, work), name="chip", daemon=True
    )
    _searching.start()
    before = -1
    while before != watch.readings:
        before = watch.readings
        with contextlib.suppress(TimeoutError):
            async with Patience(GIVE_UP_AFTER):
                return await asyncio.shield(done)
    return f"No security chip: a transfer on an I2C bus never came back. {HINT}"


def find_chip(
    wanted: str, host: Host, address: int | None = None, watch: Stopwatch | None = None
) -> Identity | str:
    """Look for a chip; blocks.

    :param wanted: the number of a bus, or ``auto`` for all.
    :param address: the only address to try; None for all that chips are sold with.
    :param watch: our own time, in which the search ends.
    :returns: the identity, or in words what was tried and found.
    """
    buses = host.buses() if wanted == "auto" else [host.bus(wanted)]
    if not buses:
        return f"No security chip: there is no I2C bus ({host.devices}/i2c-*). {HINT}"
    watch = watch or Stopwatch()
    deadline = watch() + TOTAL_PATIENCE
    findings: list[str] = []
    for path in buses:
        if watch() >= deadline:
            findings.append(f"{path}: not tried, the other buses took too long")
            continue
        try:
            bus = host.open_bus(path)
        except BusError as error:
            findings.append(str(error))
            continue
        try:
            found = _chip_on(bus, watch, deadline, address)
        finally:
            bus.close()
        if isinstance(found, Identity):
            return found
        findings.append(f"{path}: {found}")
    return f"No security chip. Tried {'; '.join(findings)}. {HINT}"


def _chip_on(bus: Bus, watch: Stopwatch, deadline: float, only: int | None) -> Identity | str:
    # not needed where there is no bus
    from thicket.identity.chip import atecc
    from thicket.identity.chip.errors import ChipAbsentError, ChipBusError, ChipError

    silent: list[int] = []
    findings: list[str] = []
    usual = (atecc.DEFAULT_ADDRESS, atecc.TRUST_AND_GO_ADDRESS)
    for address in atecc.ADDRESSES if only is None else (only,):
        patience = min(PATIENCE, max(0.0, deadline - watch()))
        chip = atecc.Atecc(bus, address, patience=patience, clock=watch.clock, sleep=watch.sleep)
        try:
            if only is None and address not in usual and not chip.answers():
                silent.append(address)
                continue
            info = chip.info()
            identity = addresses.identity_of_serial(info.serial)
        except ChipAbsentError:
            silent.append(address)
        except ChipBusError as error:
            findings.append(f"the bus does not work ({error})")
            break
        except (ChipError, ValueError) as error:
            findings.append(f"something answers at 0x{address:02x}, but {error}")
        else:
            return Identity("chip", identity, serial=info.serial, chip=info.as_dict())
    if silent:
        findings.insert(0, f"no answer at {', '.join(f'0x{address:02x}' for address in silent)}")
    return "; ".join(findings)


async def _software_identity(host: Host) -> tuple[str, str, str | None]:
    """Return source and value of a software identity, and in words what is wrong with it."""
    board = host.board_serial()
    if board:
        return "board", board, None
    source, value = _recall(host)
    if source == "random":
        return source, value, None
    macs = host.radio_macs()
    if not macs:
        # The radio may still be starting, or its USB adapter may be slow to appear.
        end = time.monotonic() + (host.radio_wait if source is None else 0.0)
        while not macs and time.monotonic() < end:
            await asyncio.sleep(0.1)
            macs = host.radio_macs()
    if source == "mac" and (not macs or value in macs):
        return source, value, None
    if macs:
        return "mac", macs[0], _remember(host, "mac", macs[0])
    value = os.urandom(16).hex()
    return "random", value, _remember(host, "random", value)


def _recall(host: Host) -> tuple[str | None, str]:
    try:
        with open(host.memory, encoding="utf-8") as file:
            kept = json.loads(file.read(4096))
        source, value = kept["source"], kept["value"]
    except (OSError, ValueError, LookupError, TypeError):
        # Missing or damaged; the identity can be found or made again.
        return None, ""
    if source not in ("mac", "random") or not isinstance(value, str) or not value:
        return None, ""
    return source, value


def _remember(host: Host, source: str, value: str) -> str | None:
    kept = json.dumps({"source": source, "value": value}) + "\n"
    try:
        write_atomically(host.memory, kept.encode())
    except OSError as error:
        lasting = "" if source == "mac" else ", so the node's address changes with every start"
        return (
            f"The software identity could not be kept in {host.memory} ({error.strerror}){lasting}"
        )
    return None
