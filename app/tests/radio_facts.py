# SPDX-License-Identifier: Apache-2.0
"""Facts about a radio's surroundings, made up for tests."""

from __future__ import annotations

from typing import Any

from thicket.radio.nl80211 import Station

PEER = "02:74:68:00:00:02"


def station(mac: str = PEER, state: str = "ESTAB", **facts: Any) -> Station:
    """A station with a good, protected link; ``facts`` are what is otherwise with it."""
    made: Station = {
        "mac": mac, "state": state, "llid": 1, "plid": 2, "signal_dbm": -50, "metric": 100,
        "inactive_ms": 10, "connected_s": 5, "tx_kbps": 6000, "rx_kbps": 6000, "rx_bytes": 1,
        "tx_bytes": 2, "tx_failed": 0, "authorized": True, "mfp": True,
    }  # fmt: skip
    made.update(facts)  # type: ignore[typeddict-item]
    return made
