# SPDX-License-Identifier: Apache-2.0
"""What is in the air: the meshes and access points that a scan hears."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypedDict

from thicket.base.errors import CodedError
from thicket.netlink.messages import NetlinkError, facts_of, hardware_address, integer
from thicket.radio.channels import channel_number
from thicket.radio.reports import Report, Solved
from thicket.radio.section import OPEN, SAE, MeshSection

if TYPE_CHECKING:
    from thicket.radio.kernel import Kernel
    from thicket.radio.nl80211 import Wiphy

#: Channels in one request, and seconds from one request to the next: while the radio listens
#: elsewhere, the mesh waits (40 ms for each channel, 110 where the radio may only listen).
_CHANNELS_AT_ONCE = 3
_PAUSE_SECONDS = 0.3
#: Seconds for the radio to listen to the channels of one request. An emulated node may be slow.
_SECONDS = 10.0

# enum nl80211_attrs and nl80211_bss
_ATTR_BSS = 47
_BSS_BSSID = 1
_BSS_FREQUENCY = 2
_BSS_CAPABILITY = 5
_BSS_ELEMENTS = 6
_BSS_SIGNAL_MBM = 7
_BSS_SEEN_MS_AGO = 10

# IEEE 802.11-2020, table 9-92
_SSID = 0
_RSN = 48
_MESH_CONFIGURATION = 113
_MESH_ID = 114
_VENDOR = 221
_WPA = b"\x00\x50\xf2\x01"
# 9.4.1.4, and 9.4.2.97.6 (authentication protocol) and .7 (formation information)
_CAPABILITY_ESS = 1 << 0
_CAPABILITY_PRIVACY = 1 << 4
_MESH_AUTHENTICATION = {0: OPEN, 1: SAE, 2: "802.1X"}
#: Table 9-151: what an authentication suite is known as.
_SUITES = {1: "802.1X", 2: "WPA2", 5: "802.1X", 6: "WPA2", 8: "WPA3", 9: "WPA3", 18: "OWE"}
_SUITE_OUI = b"\x00\x0f\xac"

#: The element by which a probe request asks the nodes of every mesh (9.4.2.98, wildcard).
ANY_MESH = bytes((_MESH_ID, 0))

#: Neighbours that a message names.
_NAMED = 4

MESH = "mesh"
ACCESS_POINT = "access point"


class ScanError(CodedError):
    """There can be no scan; ``code`` is for programs."""


class Heard(TypedDict):
    """One sender of beacons.

    :ivar kind: mesh, access point or ad-hoc.
    :ivar name: of the mesh or network; empty where it is hidden.
    :ivar security: open, sae, WPA3 and so on, as its beacons say.
    :ivar signal_dbm: None where the driver does not tell.
    :ivar peers: how many peers the node of a mesh says it has, None of others.
    :ivar seen_ms: time since its last frame.
    """

    mac: str
    frequency: int
    kind: str
    name: str
    security: str
    signal_dbm: int | None
    peers: int | None
    seen_ms: int


def heard(message: bytes, at: int) -> Heard | None:
    """The sender that an NL80211_CMD_NEW_SCAN_RESULTS message describes, None when malformed.

    :param at: where its attributes begin.
    """
    facts = facts_of(facts_of(message, at).get(_ATTR_BSS, b""))
    mac = hardware_address(facts.get(_BSS_BSSID))
    frequency = integer(facts.get(_BSS_FREQUENCY), 4)
    if mac is None or frequency is None:
        return None
    elements = _elements(facts.get(_BSS_ELEMENTS, b""))
    capability = integer(facts.get(_BSS_CAPABILITY), 2) or 0
    mbm = integer(facts.get(_BSS_SIGNAL_MBM), 4, signed=True)
    seen = integer(facts.get(_BSS_SEEN_MS_AGO), 4) or 0
    found: Heard = {
        "mac": mac, "frequency": frequency, "kind": MESH, "name": "", "security": OPEN,
        "signal_dbm": None if mbm is None else round(mbm / 100), "peers": None, "seen_ms": seen,
    }  # fmt: skip
    mesh = dict(elements).get(_MESH_CONFIGURATION, b"")
    if _MESH_ID in dict(elements) and len(mesh) >= 7:
        found["name"] = _text(dict(elements)[_MESH_ID])
        found["security"] = _MESH_AUTHENTICATION.get(mesh[4], f"protocol {mesh[4]}")
        found["peers"] = mesh[5] >> 1 & 0x3F
    else:
        found["kind"] = ACCESS_POINT if capability & _CAPABILITY_ESS else "ad-hoc"
        found["name"] = _text(dict(elements).get(_SSID, b""))
        found["security"] = _security(elements, private=bool(capability & _CAPABILITY_PRIVACY))
    return found


def _elements(data: bytes) -> list[tuple[int, bytes]]:
    """The elements of a beacon; one that is cut off ends the list."""
    found = []
    while len(data) >= 2 and len(data) >= 2 + data[1]:
        found.append((data[0], data[2 : 2 + data[1]]))
        data = data[2 + data[1] :]
    return found


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode("utf-8", "replace")


def _security(elements: Iterable[tuple[int, bytes]], *, private: bool) -> str:
    """What protects an access point, by its elements."""
    found = set()
    for kind, data in elements:
        if kind == _RSN:
            found |= _suites(data)
        elif kind == _VENDOR and data.startswith(_WPA):
            found.add("WPA")
    return "/".join(sorted(found)) or ("WEP" if private else OPEN)


def _suites(rsn: bytes) -> set[str]:
    """The authentication suites of an RSN element (9.4.2.24): version, group cipher, two lists."""
    ciphers = int.from_bytes(rsn[6:8], "little")
    at = 8 + 4 * ciphers
    count = int.from_bytes(rsn[at : at + 2], "little")
    suites = [rsn[at + 2 + 4 * i : at + 6 + 4 * i] for i in range(min(count, 16))]
    own = [one[3] for one in suites if len(one) == 4 and one.startswith(_SUITE_OUI)]
    return {_SUITES[suite] for suite in own if suite in _SUITES} or {"RSN"}


async def scan(
    kernel: Kernel, ifindex: int, frequencies: Iterable[int], seconds: float = _SECONDS
) -> list[Heard]:
    """Listen on channels, a few at a time, with an interface that stays in its mesh.

    :param frequencies: of the channels, in MHz.
    :param seconds: for a few channels.
    :returns: who was heard, the strongest first.
    :raises ScanError: the radio cannot do it, or is busy.
    """
    loop = asyncio.get_running_loop()
    begun = loop.time()
    left = sorted(frequencies)
    while left:
        now, left = left[:_CHANNELS_AT_ONCE], left[_CHANNELS_AT_ONCE:]
        kernel.scanned.clear()
        try:
            kernel.nl80211.start_scan(ifindex, now)
            async with asyncio.timeout(seconds):
                await kernel.scanned.wait()
        except TimeoutError:
            raise ScanError("scan", f"the radio did not end a scan in {seconds:.0f} s") from None
        except NetlinkError as error:
            raise refused(error) from None
        if left:
            await asyncio.sleep(_PAUSE_SECONDS)
    wanted = (loop.time() - begun) * 1000 + 1000
    found = [one for one in kernel.nl80211.heard(ifindex) if one["seen_ms"] <= wanted]
    return sorted(found, key=lambda one: (-(one["signal_dbm"] or -999), one["mac"]))


def others(found: list[Heard], mesh: MeshSection) -> list[Heard]:
    """The nodes of other meshes on our channel: of another id, or of another security."""
    return [
        one
        for one in found
        if one["kind"] == MESH
        and one["frequency"] == mesh.mhz
        and (one["name"], one["security"]) != (mesh.id, mesh.security)
    ]


def judge(strangers: list[Heard], mesh: MeshSection) -> Report | Solved:
    """What to tell of other meshes: one with our id and another security is a mistake.

    The kernel ignores the beacons of such neighbours, so nothing else shows them.
    """
    wrong = [one for one in strangers if one["name"] == mesh.id]
    if not wrong:
        return Solved("other-security")
    macs = ", ".join(one["mac"] for one in wrong[:_NAMED]) + (" ..." if wrong[_NAMED:] else "")
    kinds = " and ".join(sorted({one["security"] for one in wrong}))
    return Report(
        "other-security",
        "other-security",
        f'{macs}: mesh "{mesh.id}" there is "{kinds}", and here "{mesh.security}" '
        "(mesh.security): they cannot become peers; all nodes of a mesh need the same",
    )


def refused(error: NetlinkError) -> ScanError:
    """Why the kernel starts no scan."""
    if error.errno == errno.EOPNOTSUPP:
        return ScanError(
            "scan-unsupported", "this radio's driver cannot scan while it is in a mesh"
        )
    if error.errno == errno.EBUSY:
        return ScanError("scan-busy", "the radio is busy with another scan; try again")
    return ScanError("scan", f"the kernel does not start a scan: {error.strerror}")


def usable(wiphy: Wiphy) -> list[int]:
    """The frequencies in 2.4 and 5 GHz that a radio may listen to. No mesh is elsewhere."""
    return [
        mhz
        for mhz, channel in wiphy.channels.items()
        if not channel.disabled and channel_number(mhz) is not None
    ]
