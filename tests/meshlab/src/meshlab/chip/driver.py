# SPDX-License-Identifier: Apache-2.0
"""Thicket's driver on a virtual chip whose file is opened: no node need run."""

from __future__ import annotations

import json
from pathlib import Path

from authority.chip import DeskChip
from authority.errors import AuthorityError
from meshlab.chip.atecc608 import Atecc608
from meshlab.chip.bus import Nak
from meshlab.chip.state import ChipStateError
from thicket.identity.bus import Bus, NotAcknowledgedError


class VirtualBus(Bus):
    """A bus with one virtual chip on it. Its time passes only while somebody waits for it."""

    def __init__(self, chip: Atecc608, name: str) -> None:
        """Connect ``chip``."""
        self.name = name
        self.now = 0.0
        self._chip = chip

    def write(self, address: int, data: bytes) -> None:
        """See ``Bus.write``."""
        try:
            self._chip.write(address, data)
        except Nak:
            raise NotAcknowledgedError(self.name) from None

    def read(self, address: int, length: int) -> bytes:
        """See ``Bus.read``."""
        try:
            return self._chip.read(address, length)
        except Nak:
            raise NotAcknowledgedError(self.name) from None

    def clock(self) -> float:
        """Return the bus's own time in seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


def open_chip(path: Path) -> DeskChip:
    """Return a driver of a virtual chip. Its node must not run: the simulator would write over it.

    :param path: the file that is its memory (``chip.json``).
    :raises AuthorityError: when it is not the file of a chip.
    """
    try:
        serial = bytes.fromhex(json.loads(path.read_text(encoding="utf-8"))["serial"])
        bus: VirtualBus
        chip = Atecc608(serial, path, clock=lambda: bus.now)
    except (OSError, ValueError, LookupError, TypeError, ChipStateError) as error:
        raise AuthorityError(f"{path}: not the file of a virtual chip: {error}") from error
    bus = VirtualBus(chip, str(path))
    return DeskChip(bus, chip.memory.config[16] >> 1, clock=bus.clock, sleep=bus.sleep)
