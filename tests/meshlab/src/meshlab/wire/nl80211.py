# SPDX-License-Identifier: Apache-2.0
"""What a node's kernel says of its interfaces, as far as the medium has to know it.

Numbers are those of ``<linux/nl80211.h>``.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from meshlab.wire.hwsim import HwsimError, Message

NEW_INTERFACE = 7
MAC = 6
WIPHY_FREQ = 38
WIPHY_TX_POWER_LEVEL = 98

_MBM = struct.Struct("<i")


class Power(NamedTuple):
    """How much an interface sends with."""

    mac: bytes
    dbm: float


def power(message: Message) -> Power | None:
    """Return the power of an interface that is on a channel; None when the message has none.

    Before an interface is on a channel, its kernel tells the 0 dBm that it began with
    (``ieee80211_get_tx_power``).

    :raises HwsimError: when an attribute has another size than the kernel gives it.
    """
    if message.command != NEW_INTERFACE:
        return None
    mac, level = message.attributes.get(MAC), message.attributes.get(WIPHY_TX_POWER_LEVEL)
    if mac is None or level is None or WIPHY_FREQ not in message.attributes:
        return None
    if len(mac) != 6 or len(level) != _MBM.size:
        raise HwsimError("the address or the power of an interface has another size")
    (mbm,) = _MBM.unpack(level)
    return Power(mac, mbm / 100)
