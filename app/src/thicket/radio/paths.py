# SPDX-License-Identifier: Apache-2.0
"""Judges the mesh paths: which of them lead astray, and what is to be done about each."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from thicket.radio.nl80211 import MeshPath

#: Life in TU of a path that nobody asked for again. In a cluster every node talks to every other
#: all the time, and asking floods the whole mesh: with the kernel's 5000 TU, a third of the frames
#: of 20 idle nodes were such questions. Paths over a peer that fell silent, or over a bad link
#: where there may be a better way (:mod:`thicket.radio.searches`), are given up much earlier.
PATH_TIMEOUT = 30_000
#: Seconds for which a path that was fixed, or is from before a loss, counts.
_OLD_SECONDS = PATH_TIMEOUT / 1000
#: A peer that comes back within this many seconds has returned; later it is a new one.
_LOST_SECONDS = 120.0

#: The next hop of a path that is being looked for.
NOBODY = "00:00:00:00:00:00"


class GiveUp(NamedTuple):
    """Remove a path whose next hop is silent."""

    destination: str
    next_hop: str


class Fix(NamedTuple):
    """Let frames to a peer take the link to it, for now, and not the path over ``instead_of``."""

    peer: str
    instead_of: str


class Unfix(NamedTuple):
    """Remove a path that was fixed: a path that is found from now on is a new one."""

    peer: str


PathAction = GiveUp | Fix | Unfix


class Paths:
    """What is remembered of peers that were lost and came back. Times in seconds, monotonic."""

    __slots__ = ("_fixed", "_lost", "_returned")

    def __init__(self) -> None:
        #: When peers were lost; until when there may be old paths to those that came back; and
        #: until when the path to such a peer is fixed.
        self._lost: dict[str, float] = {}
        self._returned: dict[str, float] = {}
        self._fixed: dict[str, float] = {}

    @property
    def watched(self) -> bool:
        """Whether the paths have to be judged although no station is silent."""
        return bool(self._returned or self._fixed)

    @property
    def decided(self) -> set[str]:
        """The peers whose paths are fixed, or may have to be."""
        return self._returned.keys() | self._fixed.keys()

    def lost(self, peer: str, now: float) -> None:
        """There is no link to a peer any more."""
        self._lost[peer] = now
        for mac in [mac for mac, then in self._lost.items() if now - then >= _LOST_SECONDS]:
            del self._lost[mac]

    def found(self, peer: str, now: float) -> None:
        """There is a link to a peer."""
        then = self._lost.pop(peer, None)
        if then is not None and now - then < _LOST_SECONDS:
            self._returned[peer] = now + _OLD_SECONDS

    def fixed(self, peer: str, now: float) -> None:
        """A path was fixed, as :meth:`judge` asked for."""
        self._fixed[peer] = now + _OLD_SECONDS

    def judge(
        self,
        table: list[MeshPath],
        peers: Collection[str],
        silent: Collection[str],
        now: float,
    ) -> Iterator[PathAction]:
        """What is to be done about the paths in ``table``.

        Paths over silent stations are given up. The kernel does so only when the average of failed
        frames over a path is high (mac80211, ieee80211s_update_metric: above 95 %); with a node
        that sends little this takes a long time.

        Frames to a peer that has come back take the link to it, not a path from before. When a
        peer is lost, the kernel asks for another path to it, and nodes answer whose path leads over
        this node: a circle, which was seen to stand until their path expired. (A node that was
        switched off and on again counts its path messages from the beginning, HWMP of IEEE
        802.11-2020 14.10, so theirs would count as newer than its own.)
        """
        for path in table:
            if path["next_hop"] in silent:
                yield GiveUp(path["destination"], path["next_hop"])
        ways = {path["destination"]: path["next_hop"] for path in table}
        for mac, until in list(self._fixed.items()):
            if now < until and mac in peers:
                continue
            del self._fixed[mac]
            if ways.get(mac) == mac:
                yield Unfix(mac)
        for mac, until in list(self._returned.items()):
            if now >= until:
                del self._returned[mac]
            elif mac in peers and ways.get(mac, mac) != mac:
                # Perhaps not for the first time: what was fixed ends with the link, and the link
                # can come back unseen.
                yield Fix(mac, ways[mac])
