# SPDX-License-Identifier: Apache-2.0
"""``autoboot.txt``: which slot the firmware starts.

The file is always exactly one sector long, so that changing it is one write (see
:mod:`thicket.device.in_place`).

Source: www.raspberrypi.com/documentation/computers/config_txt.html, "autoboot.txt".
"""

from __future__ import annotations

from thicket.device.boot_record import SECTOR, Slot

NAME = "autoboot.txt"
#: Partitions of the card with the two slots' boot files.
PARTITIONS = {Slot.A: 2, Slot.B: 3}


def make(slot: Slot) -> bytes:
    """Return the file that names ``slot``, A or B, and the other one for a trial."""
    text = (
        "[all]\n"
        "tryboot_a_b=1\n"
        f"boot_partition={PARTITIONS[slot]}\n"
        "[tryboot]\n"
        f"boot_partition={PARTITIONS[slot.other]}\n"
    )
    # Filled up with empty lines: what the firmware makes of other bytes is not documented.
    return text.encode().ljust(SECTOR, b"\n")
