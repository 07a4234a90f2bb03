# SPDX-License-Identifier: Apache-2.0
"""``[mesh]``: the 802.11s mesh that the node joins."""

from __future__ import annotations

import re
from typing import Any

from thicket.base.fields import Boolean, Choice, Finding, Integer, Key, Section, Text
from thicket.radio.channels import Channel, Width, channel_frequency, width_obstacle

OPEN = "open"
SAE = "sae"


class Country(Key[str]):
    """A country of the wireless regulatory database, or "00" for the world's rules."""

    allowed = 'a country code of two capital letters such as "DE", or "00" for none'

    def check(self, raw: object) -> str:
        if not isinstance(raw, str):
            raise self.refuse()
        if raw != "00":
            from thicket.radio import countries  # most cards of a lab name none

            fault = countries.fault(raw)
            if fault is not None:
                raise ValueError(fault)
        return raw


class Adapter(Text):
    """Which radio to use: a driver, a MAC address, a port, or nothing for any."""

    allowed = (
        'the name of a driver such as "mt76x2u", the MAC address of a radio such as '
        '"00:c0:ca:12:34:56", or the port it is plugged into such as "1-1.2", as `thicket status '
        "--json` shows them (radio.driver, radio.mac, radio.port); empty for any"
    )

    def check(self, raw: object) -> str:
        word = super().check(raw)
        if re.fullmatch(r"(phy|radio|wlan|mesh)\d+", word):
            raise ValueError(
                f"must not be a name that the kernel gives: another adapter may be {word} after "
                "the next start; use its driver, MAC address or port"
            )
        return word


class MeshSection(Section, name="mesh"):
    """The 802.11s mesh that the node joins. All nodes of a mesh have the same values here."""

    __slots__ = ()
    # IEEE 802.11-2020 9.4.2.98: a Mesh ID has 0 to 32 octets; 0 is the wildcard
    id = Text("thicket", "Name of the mesh.", least=1, most=32)
    security = Choice(
        SAE,
        "`sae` (simultaneous authentication of equals, as in WPA3) admits only nodes with the "
        "passphrase and encrypts every frame; without a passphrase the radio stays off. `open` "
        "admits every node and encrypts nothing.",
        SAE,
        OPEN,
    )
    passphrase = Text(
        "",
        'The mesh\'s secret, needed by (and only used with) `security = "sae"`. '
        "`thicket ca passphrase roll` changes it on all nodes of a running mesh (without a fleet "
        "`thicket passphrase roll`).",
        least=8,
        most=63,
        optional=True,
        secret=True,
    )
    next_passphrase = Text(
        "",
        "The second passphrase during a change: first the new one, then the old one until links "
        "with the new one are up. The commands that change the passphrase write and remove it. "
        "The node tries it when the present one fails.",
        least=8,
        most=63,
        optional=True,
        secret=True,
    )
    channel = Channel(
        1,
        "Wi-Fi channel. 5 GHz channels (36 and up) need a country. On 52 to 144 a node listens for "
        "radars for a minute before it joins, and an adapter must be able to do that.",
        least=1,
        most=165,
    )
    width = Width(
        20,
        "Width of the channel in MHz. Wider ones are faster over short distances, exist only in "
        "5 GHz, need `ht`, and 80 also 802.11ac. All nodes of a mesh have the same `channel`.",
        least=20,
        most=80,
    )
    radio = Adapter(
        "",
        "Which adapter to use where there are several: its driver, MAC address or port, which stay "
        "the same from start to start. Empty for the first one that can mesh.",
        least=1,
        most=64,
        optional=True,
        letters=":.-_",
    )
    country = Country(
        "00",
        "Where the node is used; this decides which channels and power are legal. A code that the "
        "wireless regulatory database does not have is refused.",
    )
    # nl80211 accepts 10 to 10000 TU, wpa_supplicant 15 to 65535
    beacon_interval = Integer(
        1000,
        "Time between two Wi-Fi beacons. A short time finds peers sooner and costs airtime.",
        least=15,
        most=10000,
        unit="TU of 1.024 ms",
    )
    peering_retries = Integer(
        4, "How often an unanswered request to become a peer is repeated.", least=0, most=16
    )
    peering_timeout = Integer(
        500,
        "How long a peer may take to answer one step of the peering. The standard's 40 ms suit "
        "an idle laboratory; loaded or slow (simulated) nodes need more.",
        least=10,
        most=5000,
        unit="ms",
    )
    max_inactivity = Integer(
        30,
        "How long a silent peer is kept, and how long a node that failed to authenticate is "
        "blocked.",
        least=5,
        most=3600,
        unit="s",
    )
    ht = Boolean(
        True,
        "Use the rates of 802.11n and later. When false, only the older rates (up to 54 Mbit/s) "
        "are used.",
    )
    max_peers = Integer(99, "The most peers that the node accepts.", least=1, most=99)
    rssi_threshold = Integer(
        0,
        "Do not become a peer of a node whose signal is weaker than this, so that a long weak link "
        "is not preferred over a relay. 0 accepts every node.",
        least=-100,
        most=0,
        unit="dBm",
    )
    forwarding = Boolean(
        True,
        "Forward frames of other nodes. When false, the node only sends and receives its own.",
    )
    gate = Boolean(False, "Announce the node as a gate to another network.")
    # IEEE 802.11-2020 9.4.2.97 and nl80211_mesh root modes; 1 is the obsolete "no root" form
    root_mode = Integer(
        0,
        "Announce the node as root of a tree of paths: 0 no, 2 and 3 by proactive PREQ (3 asks for "
        "an answer), 4 by RANN.",
        least=0,
        most=4,
    )

    @property
    def mhz(self) -> int:
        """Centre frequency of the channel in MHz.

        :raises ValueError: there is no such channel.
        """
        return channel_frequency(self.channel)

    @property
    def passphrase_in_use(self) -> str | None:
        """The passphrase, None in an open mesh, which needs none."""
        return self.passphrase if self.security == SAE else None

    def replace(self, **values: Any) -> MeshSection:
        """The same section with other values of some keys."""
        return MeshSection({**self.values, **values})

    def only_passphrases_differ(self, other: MeshSection) -> bool:
        """Whether every other key has the same value in both."""
        none = {"passphrase": "", "next_passphrase": ""}
        return self.replace(**none) == other.replace(**none)


def check_passphrase(mesh: MeshSection, file: str) -> Finding | None:
    """The fault of a file that asks for a secured mesh and has no passphrase."""
    # A missing passphrase is a fault of the file only if somebody has written "sae" there. A file
    # that says nothing about it, as on a fresh card or with SSH keys alone, is followed; the radio
    # stays off and says why.
    if mesh.values.get("security") == SAE and not mesh.passphrase:
        message = (
            'is missing: mesh.security = "sae" needs one, 8 to 63 bytes, the same on all nodes '
            '(or set mesh.security = "open" for a mesh that anybody may enter)'
        )
        return Finding(file, "mesh.passphrase", "", message)
    return None


def check_country(mesh: MeshSection, file: str) -> Finding | None:
    """The fault of a file that uses 5 GHz without a country."""
    if mesh.channel > 13 and mesh.country == "00":
        message = f"a 5 GHz channel ({mesh.channel}) needs the country where the node is used"
        return Finding(file, "mesh.country", '"00"', message)
    return None


def check_width(mesh: MeshSection, file: str) -> Finding | None:
    """The fault of a file whose channel cannot be as wide as it says."""
    reason = width_obstacle(mesh.channel, mesh.width)
    if reason is None and mesh.width > 20 and not mesh.ht:
        reason = "needs mesh.ht = true"
    return None if reason is None else Finding(file, "mesh.width", str(mesh.width), reason)
