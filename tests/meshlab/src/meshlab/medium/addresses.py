# SPDX-License-Identifier: Apache-2.0
"""Which radios answer to an address: their own, and those that they have been seen to use."""

from __future__ import annotations

from meshlab.medium.objects import Radio

MAX_ADDRESSES = 16
"""Addresses of one radio that are remembered."""


class Addresses:
    """The radios of every address."""

    def __init__(self) -> None:
        self.owners: dict[bytes, list[Radio]] = {}

    def add(self, radio: Radio, address: bytes) -> None:
        """Have a radio answer to an address; the oldest of too many is forgotten."""
        if address in radio.addresses:
            return
        if len(radio.addresses) >= MAX_ADDRESSES:
            for old in radio.addresses:
                if old != radio.key:
                    self.remove(radio, old)
                    break
        radio.addresses[address] = None
        self.owners.setdefault(address, []).append(radio)

    def remove(self, radio: Radio, address: bytes) -> None:
        """Have a radio no longer answer to an address."""
        if radio.addresses.pop(address, 0) is None:
            owners = self.owners[address]
            owners.remove(radio)
            if not owners:
                del self.owners[address]
