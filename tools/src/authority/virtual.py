# SPDX-License-Identifier: Apache-2.0
"""The simulator's virtual chips for the authority: their files are opened, no node need run.

Only on the engineer's machine: ``meshlab`` is imported when a chip is opened, and is no part of an
image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from authority.errors import AuthorityError
from thicket.identity.bus import Bus, NotAcknowledgedError
from thicket.identity.chip.atecc import Atecc


class VirtualBus(Bus):
    """A bus with one virtual chip on it. Its time passes only while somebody waits for it."""

    def __init__(self, chip: Any, nak: type[Exception], name: str) -> None:
        """Connect a virtual chip.

        :param chip: an ``Atecc608`` of meshlab.
        :param nak: what the chip raises to say "no".
        """
        self.name = name
        self.now = 0.0
        self._chip = chip
        self._nak = nak

    def write(self, address: int, data: bytes) -> None:
        """See ``Bus.write``."""
        try:
            self._chip.write(address, data)
        except self._nak:
            raise NotAcknowledgedError(self.name) from None

    def read(self, address: int, length: int) -> bytes:
        """See ``Bus.read``."""
        try:
            return bytes(self._chip.read(address, length))
        except self._nak:
            raise NotAcknowledgedError(self.name) from None

    def clock(self) -> float:
        """Return the bus's own time in seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


def open_chip(path: Path) -> Atecc:
    """Return a driver of a virtual chip. Its node must not run: the simulator would write over it.

    :param path: the file that is its memory (``chip.json``).
    :raises AuthorityError: when it is not the file of a chip, or there is no simulator here.
    """
    try:
        from meshlab.chip.atecc608 import Atecc608  # no part of an image
        from meshlab.chip.bus import Nak
        from meshlab.chip.state import ChipStateError
    except ImportError:
        raise AuthorityError(
            "virtual chips need the simulator (meshlab) on the Python path, as in a checkout"
        ) from None
    try:
        serial = bytes.fromhex(json.loads(path.read_text(encoding="utf-8"))["serial"])
        bus: VirtualBus
        chip = Atecc608(serial, path, clock=lambda: bus.now)
    except (OSError, ValueError, LookupError, TypeError, ChipStateError) as error:
        raise AuthorityError(f"{path}: not the file of a virtual chip: {error}") from error
    bus = VirtualBus(chip, Nak, str(path))
    return Atecc(bus, chip.memory.config[16] >> 1, clock=bus.clock, sleep=bus.sleep)
