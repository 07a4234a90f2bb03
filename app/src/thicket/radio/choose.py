# SPDX-License-Identifier: Apache-2.0
"""Which radios can carry a mesh, and what is wrong with the others."""

from __future__ import annotations

from thicket.base.files import entries, link_name, read
from thicket.radio import nl80211
from thicket.radio.nl80211 import Wiphy
from thicket.radio.section import SAE, MeshSection

#: Adapters that are known to mesh, for messages; see docs/radio.md.
ADVICE = "use a USB adapter with MT7612U (driver mt76x2u), RT5572 (rt2800usb) or AR9271 (ath9k_htc)"
#: Drivers that announce mesh point and cannot do it.
_LIARS = frozenset({"xradio_wlan"})
#: Peers that a driver can hold: ath9k_htc has room for eight stations, one of which is itself.
MOST_PEERS = {"ath9k_htc": 7}


def radio_names() -> list[str]:
    """The radios that the kernel has at present."""
    return entries(nl80211.SYSFS)


def usb_without_driver(root: str = "/sys/bus/usb/devices") -> list[str]:
    """USB devices with an interface that has no driver, in words."""
    found = []
    for name in entries(root):
        if ":" not in name or link_name(f"{root}/{name}/driver"):
            continue
        device = f"{root}/{name.partition(':')[0]}"
        words = [read(f"{device}/idVendor"), read(f"{device}/idProduct"), read(f"{device}/product")]
        if words[0] and words[1]:
            text = f"{words[0]}:{words[1]}" + (f" {words[2]}" if words[2] else "")
            if text not in found:
                found.append(text)
    return found


def described(wiphy: Wiphy) -> str:
    """A radio with all words by which ``mesh.radio`` can choose it."""
    return f"{wiphy}, {wiphy.mac or 'unknown MAC address'}, at {wiphy.port or 'no known port'}"


def is_named(wiphy: Wiphy, word: str) -> bool:
    """Whether ``mesh.radio`` chooses a radio; without a word it chooses each."""
    return not word or word.lower() in (
        wiphy.driver.lower(),
        (wiphy.mac or "").lower(),
        wiphy.port.lower(),
    )


def obstacle(wiphy: Wiphy, settings: MeshSection) -> str | None:
    """Why a radio cannot carry this mesh.

    :returns: None when it can.
    """
    if wiphy.driver in _LIARS:
        return f"{wiphy} announces mesh point, but its driver cannot do it"
    if not wiphy.mesh_point:
        kinds = ", ".join(
            nl80211.IFTYPE_NAMES[kind] for kind in sorted(wiphy.iftypes & {1, 2, 3, 6})
        )
        return f"{wiphy} cannot do 802.11s mesh point (it can do: {kinds or 'nothing known'})"
    if settings.security == SAE and not wiphy.mesh_auth:
        return f'{wiphy} cannot do authenticated mesh, which security = "sae" needs'
    if wiphy.channels and settings.mhz not in wiphy.channels:
        bands = sorted({"2.4 GHz" if mhz < 3000 else "5 GHz" for mhz in wiphy.channels})
        return f"{wiphy} has no channel at {settings.mhz} MHz (it has {' and '.join(bands)})"
    widest = wiphy.widest(settings.mhz)
    if settings.width > widest:
        return (
            f"{wiphy} can use channels of {widest} MHz at most there, and not of "
            f"{settings.width} (mesh.width)"
        )
    return None
