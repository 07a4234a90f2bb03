# SPDX-License-Identifier: Apache-2.0
"""What a session waits for, in the order in which it happened."""

from __future__ import annotations

import asyncio
from enum import Enum

from thicket.radio.wpa import Event


class Signal(Enum):
    """Something that is no event of wpa_supplicant."""

    #: wpa_supplicant has ended.
    EXIT = 1
    #: The mesh interface is gone, is down, or should be looked at: perhaps it has left the mesh.
    GONE = 2
    DOWN = 3
    LOOK = 4
    #: An address of the mesh interface has come, changed or gone.
    ADDRESS = 5
    #: A radio, or an interface of one, has come or gone.
    RADIO = 6
    #: What a person wants: other settings, another passphrase alone, every link made anew.
    SETTINGS = 7
    PASSPHRASE = 8
    RENEW = 9


Inbox = asyncio.Queue[Event | Signal]


async def next_item(inbox: Inbox, seconds: float) -> Event | Signal | None:
    """What happens next; None when that is nothing within ``seconds``."""
    try:
        async with asyncio.timeout(seconds):
            return await inbox.get()
    except TimeoutError:
        return None
