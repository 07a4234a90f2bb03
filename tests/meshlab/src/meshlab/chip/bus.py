# SPDX-License-Identifier: Apache-2.0
"""An I2C bus on the host's side: devices that see every transaction and answer some of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Nak(Exception):  # noqa: N818 - what it is called on the bus
    """Nobody acknowledged."""


class Stuck(Exception):  # noqa: N818
    """The bus hangs.

    :param seconds: How long the controller waits before it gives up.
    """

    def __init__(self, seconds: float) -> None:
        """Say how long the controller waits."""
        super().__init__(f"bus stuck, given up after {seconds} s")
        self.seconds = seconds


class Target(Protocol):
    """A device on the bus. It sees transactions for all addresses and never waits."""

    def write(self, address: int, data: bytes) -> None:
        """Take a write transaction.

        :raises Nak: when it is not for this device or refused.
        """

    def read(self, address: int, length: int) -> bytes:
        """Give ``length`` bytes to a read transaction.

        :raises Nak: As ``write`` does.
        """

    def power_cycle(self) -> None:
        """Forget everything volatile, as when the supply is taken away."""


class I2cBus:
    """Several devices on one pair of wires."""

    def __init__(self, targets: Iterable[Target]) -> None:
        """Connect ``targets``."""
        self.targets = list(targets)

    def write(self, address: int, data: bytes) -> None:
        """Let every device see the write; ``Nak`` when none took it, ``Stuck`` as it is."""
        taken = False
        for target in self.targets:
            try:
                target.write(address, data)
                taken = True
            except Nak:
                continue
        if not taken:
            raise Nak

    def read(self, address: int, length: int) -> bytes:
        """Return what the first device that answers has; ``Nak`` when none does."""
        for target in self.targets:
            try:
                return target.read(address, length)
            except Nak:
                continue
        raise Nak

    def power_cycle(self) -> None:
        """Take the supply away from every device and give it back."""
        for target in self.targets:
            target.power_cycle()
