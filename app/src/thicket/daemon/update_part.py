# SPDX-License-Identifier: Apache-2.0
"""What the node's part in the updates of its fleet is told of the node that it runs on."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from thicket.update.spread import ASSUMED, NEAR, Way
from thicket.upkeep import last_run

if TYPE_CHECKING:
    from thicket.base.paths import Paths
    from thicket.base.problems import Problems
    from thicket.config.schema import Settings
    from thicket.daemon.core import Core
    from thicket.daemon.installed_part import InstalledPart
    from thicket.daemon.radio_part import RadioPart
    from thicket.trust.service import Trust
    from thicket.trust.standing import Standing
    from thicket.update.service import Update
    from thicket.update.taker import Taker

#: Hops to a node of whose way the radio knows nothing: the kernel forgets ways that are not used.
FAR = 3
#: Seconds for which what the radio tells of the ways is not looked at anew.
GLANCE = 1.0
#: Seconds between two questions to the kernel.
ANEW = 10.0


class UpdateHost:
    """See :class:`thicket.update.fleet.Host`.

    :param update: returns the part that knows the slots; None until it has begun.
    :param nodes: returns the other nodes of the cluster.
    :param installed: keeps the applications that were installed.
    :param near: returns the neighbours in the overlay: what goes from node to node goes by them,
        even where frames to them take two hops.
    """

    def __init__(
        self,
        core: Core,
        radio: RadioPart,
        trust: Trust,
        update: Callable[[], Update | None],
        nodes: Callable[[], list[dict[str, Any]]],
        *,
        installed: InstalledPart,
        near: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        self._core = core
        self._radio = radio
        self._trust = trust
        self._update = update
        self._installed = installed
        self._near = near
        self.nodes = nodes
        self._known: tuple[float, dict[str, Way]] = (float("-inf"), {})
        self._asked = float("-inf")

    @property
    def paths(self) -> Paths:
        return self._core.paths

    @property
    def settings(self) -> Settings:
        return self._core.settings

    @property
    def problems(self) -> Problems:
        return self._core.problems

    @property
    def standing(self) -> Standing | None:
        return self._trust.standing

    @property
    def update(self) -> Update | None:
        return self._update()

    def kernel(self) -> str:
        """Return the last words of a kernel that failed in the run before; empty if none did."""
        last = last_run.known(self._core.paths) or {}
        return str(last.get("message") or "") if last.get("reason") == "panic" else ""

    def ways(self) -> Mapping[str, Way]:
        """Return the ways to the connected nodes, by their names."""
        now, (at, known) = time.monotonic(), self._known
        if now - at > GLANCE:
            mesh = self._radio.mesh
            seen = mesh.snapshot() if mesh is not None else {}
            known = by_address(seen.get("peers", ()), seen.get("paths", ()))
            self._known = now, known
        connected = [
            str(one["name"])
            for one in self.nodes()
            if one["state"] == "up" and one.get("direct", True)
        ]
        return ways(connected, known, self._near())

    async def look_for_ways(self) -> None:
        """Ask the kernel for the ways of now, if it was not asked just before."""
        if time.monotonic() - self._asked > ANEW:
            self._asked = time.monotonic()
            await self._radio.refresh()

    def application(self, name: str, me: str, folder: str) -> Taker:
        """Return what takes the updates of an application."""
        from thicket.daemon.app_taker import AppTaker  # few nodes are offered any

        return AppTaker(self._installed, name, me, folder, self.healthy)

    def healthy(self) -> bool:
        update = self._update()
        return update is not None and update.healthy()


def by_address(peers: Iterable[dict[str, Any]], paths: Iterable[dict[str, Any]]) -> dict[str, Way]:
    """Return the ways that the radio knows, by what it tells of its peers and paths.

    A path is where frames go, whatever the direct link is like.
    """
    known = {
        one["address"]: Way(NEAR, one["metric"] or ASSUMED)
        for one in peers
        if one["address"] and one["state"] == "ESTAB"
    }
    for one in paths:
        if one["address"] and one["active"] and one["hops"]:
            known[one["address"]] = Way(one["hops"], one["metric"] or one["hops"] * ASSUMED)
    return known


def ways(
    names: Iterable[str], known: Mapping[str, Way], near: Collection[str] = ()
) -> dict[str, Way]:
    """Return the ways to nodes.

    Where the radio knows nobody, all are taken for neighbours: there is no mesh between them.

    :param near: those that count as neighbours wherever they are.
    """
    other = Way(FAR, FAR * ASSUMED) if known else Way()
    found = {name: known.get(name.partition("@")[2], other) for name in names}
    return {
        name: way._replace(hops=min(way.hops, NEAR)) if name in near else way
        for name, way in found.items()
    }
