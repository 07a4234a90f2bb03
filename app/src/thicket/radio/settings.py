# SPDX-License-Identifier: Apache-2.0
"""What a mesh is told to be."""

from typing import NamedTuple

OPEN = "open"
SAE = "sae"

#: Frequency in MHz of the first channel of a range, and the range (IEEE 802.11-2020, Annex E).
_2_4_GHZ = (2407, range(1, 14))
_5_GHZ = (5000, range(32, 178))
_CHANNEL_14_MHZ = 2484


def channel_frequency(channel: int) -> int:
    """Centre frequency in MHz of a 20 MHz channel in the 2.4 or 5 GHz band.

    Raises ValueError for a number that is no channel there.
    """
    if channel == 14:
        return _CHANNEL_14_MHZ
    for base, numbers in (_2_4_GHZ, _5_GHZ):
        if channel in numbers:
            return base + 5 * channel
    raise ValueError(f"channel {channel} is neither in 1 to 14 (2.4 GHz) nor in 32 to 177 (5 GHz)")


class MeshSettings(NamedTuple):
    """The mesh to join, and how. Times of the peering (IEEE 802.11-2020, 14.3) in milliseconds.

    ``beacon_interval`` is in TU of 1024 µs. ``max_inactivity`` (seconds) bounds two things: how
    long a silent peer is kept, and how long wpa_supplicant shuns a peer with which SAE failed.
    ``rssi_threshold`` (dBm, 0 for none) keeps weak stations from becoming peers.
    ``width`` is the widest channel used, in MHz: 20, or 80 for whatever the radio can do in 5 GHz.
    ``gate`` announces this node as a way out of the mesh; ``root_mode`` is that of HWMP (0 none,
    2 proactive requests, 3 the same with replies, 4 root announcements).
    ``path_timeout`` (TU) is the life of a path that nobody asked for again. In a cluster every node
    talks to every other all the time, and asking is a flood through the whole mesh: with the
    kernel's 5000 TU, a third of the frames of 20 idle nodes were that. Paths over a peer that
    fell silent are given up much earlier; what waits is only the switch to a better one.
    ``radio`` is the name (phy0) or the permanent MAC address of the one to use where there are
    several; without it the first that can do mesh point is used.
    """

    mesh_id: str = "thicket"
    security: str = OPEN
    passphrase: str | None = None
    channel: int = 1
    frequency: int | None = None
    country: str = "00"
    beacon_interval: int = 1000
    max_retries: int = 4
    retry_timeout: int = 500
    confirm_timeout: int = 500
    holding_timeout: int = 500
    max_peer_links: int = 99
    max_inactivity: int = 30
    forwarding: bool = True
    rssi_threshold: int = 0
    width: int = 20
    disable_ht: bool = False
    gate: bool = False
    root_mode: int = 0
    ttl: int = 31
    path_timeout: int = 30_000
    interface: str = "mesh0"
    radio: str | None = None

    def __repr__(self) -> str:
        masked = {"passphrase": self.passphrase and "********"}
        values = {**self._asdict(), **masked}.items()
        return f"MeshSettings({', '.join(f'{name}={value!r}' for name, value in values)})"

    @property
    def mhz(self) -> int:
        """The centre frequency in MHz of the (primary) channel. Raises ValueError."""
        return channel_frequency(self.channel) if self.frequency is None else self.frequency

    def kernel_parameters(self) -> dict[str, int]:
        """What wpa_supplicant cannot set: nl80211's mesh parameters, by name."""
        return {
            "ttl": self.ttl,
            "element_ttl": self.ttl,
            "hwmp_active_path_timeout": self.path_timeout,
            "hwmp_rootmode": self.root_mode,
            "gate_announcements": int(self.gate),
            "connected_to_gate": int(self.gate),
        }
