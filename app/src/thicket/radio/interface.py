# SPDX-License-Identifier: Apache-2.0
"""The radio that is used, and the mesh interface on it."""

from __future__ import annotations

from logging import getLogger

from thicket.netlink import rtnl
from thicket.netlink.messages import NetlinkError
from thicket.radio import fault, nl80211
from thicket.radio.choose import is_named, obstacle
from thicket.radio.kernel import Kernel
from thicket.radio.nl80211 import Nl80211, Wiphy
from thicket.radio.section import MeshSection

log = getLogger(__name__)

_SYSCTLS = (
    # The address comes from the chip: no router in the mesh may add others, and asking for routers
    # costs airtime.
    ("accept_ra", 0),
    ("router_solicitations", 0),
    ("accept_redirects", 0),
    ("dad_transmits", 1),
    ("disable_ipv6", 0),
)


def choose(kernel: Nl80211, settings: MeshSection, interface: str) -> Wiphy:
    """The first radio that can carry the mesh, of those that ``mesh.radio`` names; the one that has
    the interface comes first.

    :raises FaultError: there is none.
    """
    wiphys = kernel.wiphys()
    if not wiphys:
        raise fault.no_radio()
    named = [one for one in wiphys if is_named(one, settings.radio)]
    if not named:
        raise fault.not_there(settings.radio, wiphys)
    holder = next((one["wiphy"] for one in kernel.interfaces() if one["name"] == interface), None)
    reasons = []
    suitable = []
    for wiphy in named:
        reason = obstacle(wiphy, settings)
        if reason is None:
            suitable.append(wiphy)
        else:
            reasons.append(reason)
    if not suitable:
        raise fault.unsuitable(reasons)
    return min(suitable, key=lambda wiphy: (wiphy.index != holder, wiphy.index))


def prepare(kernel: Kernel, wiphy: Wiphy, name: str) -> tuple[int, bool]:
    """Make the mesh interface ``name`` on ``wiphy``, and take the radio's other interfaces down.

    :returns: its index, and whether it was there before, perhaps with a mesh running on it.
    :raises OSError: the kernel refuses.
    """
    others = []
    found = None
    for one in kernel.nl80211.interfaces():
        if one["name"] == name:
            if one["wiphy"] == wiphy.index and one["type"] == nl80211.IFTYPE_MESH_POINT:
                found = one["index"]
            else:
                kernel.nl80211.remove_interface(one["index"])
        elif one["wiphy"] == wiphy.index:
            others.append(one)
    for one in others:
        # most radios cannot serve two interfaces on different channels
        if (kernel.links.flags(one["index"]) or 0) & rtnl.IFF_UP:
            kernel.links.set_up(one["index"], False)
    if found is not None:
        ifindex = found
    else:
        try:
            ifindex = kernel.nl80211.add_mesh_interface(wiphy, name)["index"]
        except NetlinkError as error:
            if not others:
                raise
            log.info("%s: no second interface (%s), using %s", wiphy, error, others[0]["name"])
            kernel.nl80211.make_mesh_point(others[0]["index"])
            kernel.links.rename(others[0]["index"], name)
            ifindex = others[0]["index"]
    guard(name)
    return ifindex, found is not None


def guard(name: str) -> None:
    """Have the kernel take no addresses and routes from what others say on the mesh interface."""
    for sysctl, value in _SYSCTLS:
        try:
            rtnl.set_sysctl(name, sysctl, value)
        except OSError as error:
            log.debug("%s of %s: %s", sysctl, name, error)
