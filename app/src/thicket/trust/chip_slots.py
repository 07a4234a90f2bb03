# SPDX-License-Identifier: Apache-2.0
"""Where a chip keeps the certificates of its key: two sets of three slots.

The slots are those of NervesKey: the primary set is written once, when the chip is provisioned, and
the auxiliary one is for the field. Provisioning is the engineer's (``authority.provisioning``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from thicket.identity.chip.atecc import Atecc

PRIVATE_KEY = 0
"""Slot of the chip's private key."""

DEVICE, SIGNER_KEY, SIGNER = "device", "signer key", "signer"
PRIMARY = {DEVICE: 10, SIGNER_KEY: 11, SIGNER: 12}
AUXILIARY = {DEVICE: 9, SIGNER_KEY: 14, SIGNER: 15}
"""Slots of the two sets of certificates; the auxiliary ones can always be written."""


class CertificateSet(NamedTuple):
    """The three slots of one set: device certificate, signer's key (64 bytes), its certificate."""

    device: bytes
    signer_key: bytes
    signer: bytes


def read_set(chip: Atecc, slots: dict[str, int]) -> CertificateSet | None:
    """Return the compressed certificates in ``slots``, or None when there are none.

    :raises ChipError: the chip cannot be read.
    """
    device = chip.read_slot(slots[DEVICE])
    if not any(device) or not any(byte != 0xFF for byte in device):
        return None
    return CertificateSet(
        device, chip.read_slot(slots[SIGNER_KEY])[:64], chip.read_slot(slots[SIGNER])
    )
