# SPDX-License-Identifier: Apache-2.0
"""What the kernel knows of the neighbours: asked for, judged, and shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network
from logging import getLogger
from typing import Any

from thicket.radio import peers
from thicket.radio.events import PeerDown, PeerUp
from thicket.radio.kernel import Kernel
from thicket.radio.nl80211 import (
    ESTABLISHED,
    MPATH_ACTIVE,
    PLINK_STATES,
    MeshPath,
    Nl80211,
    Station,
)
from thicket.radio.paths import NOBODY, Fix, GiveUp, PathAction, Paths
from thicket.radio.peers import Note, Peers, Words
from thicket.radio.reports import Report, Reports, Solved
from thicket.radio.searches import Search, Searches
from thicket.radio.section import SAE, MeshSection
from thicket.radio.sign import Sign

log = getLogger(__name__)

#: A look that is younger than this is good enough, in seconds.
REFRESH_SECONDS = 0.5
#: A station that was asked for less than this many seconds ago is not asked for again.
_ASKED_SECONDS = 0.1
_ESTABLISHED = PLINK_STATES.index(ESTABLISHED)


@lru_cache(maxsize=256)
def _parsed(address: str) -> IPv6Address:
    """An address as an object. The same few are needed several times a second."""
    return IPv6Address(address)


def unchanged(station: Station, sign: Sign) -> bool:
    """Whether a sign of life is of the link that a station was known to have, a link to a peer."""
    return (
        sign.state == _ESTABLISHED
        and (sign.llid, sign.plid) == (station["llid"] or 0, station["plid"] or 0)
        and sign.connected_s >= (station["connected_s"] or 0)
    )


class Stations:
    """The tables of stations, paths and neighbours at the last look.

    :param reports: is told what is wrong, and who comes and goes.
    :ivar peers: the judge of the stations.
    :ivar announced: returns a node's address for its link-local one. It is asked where the kernel
        does not know the address, because nothing was sent to it yet.
    """

    def __init__(self, reports: Reports) -> None:
        self.peers = Peers()
        self.announced: Callable[[str], str | None] = lambda _address: None
        self._reports = reports
        self._judge = Paths()
        self._searches = Searches()
        self._stations: list[Station] = []
        #: When each of them was asked for, by its address; their ``inactive_ms`` are of then.
        self._asked: dict[str, float] = {}
        #: Milliseconds of silence after which one is out of reach.
        self._patience = float("inf")
        #: What the kernel tells of all stations with each sign of life, see :class:`Sign`.
        self._generation: int | None = None
        self._paths: list[MeshPath] = []
        self._neighbours: dict[str, str] = {}
        self._link_local: dict[str, str] = {}
        #: When the kernel was asked for the stations, and when for all.
        self._refreshed = 0.0
        self._refreshed_whole = 0.0

    def say(self, words: Words) -> None:
        """Tell what the judge of the peers says."""
        for word in words:
            match word:
                case Report(key, code, message):
                    self._reports.report("radio", code, message, key)
                case Solved(key):
                    self._reports.solved(key)
                case Note(text):
                    log.info("%s", text)
                case PeerDown(mac):
                    log.info("peer %s lost", mac)
                    self._judge.lost(mac, time.monotonic())
                    self._searches.peers_changed(time.monotonic())
                    self._reports.tell(word)
                case PeerUp(mac):
                    log.info("peer %s", mac)
                    self._judge.found(mac, time.monotonic())
                    self._searches.peers_changed(time.monotonic())
                    self._reports.tell(word)

    def clear(self) -> None:
        """The mesh is left: there are no peers any more."""
        self._stations = []
        self._asked = {}
        self._paths = []
        self._neighbours, self._link_local = {}, {}
        self.say(self.peers.become(set()))

    def outdate(self) -> None:
        """Something has changed: the next look asks the kernel even if the last one is young."""
        self._refreshed = 0.0

    def address_of(self, mac: str) -> str | None:
        """The address of a station in the mesh, None while it is not known."""
        known = self._neighbours.get(mac)
        if known is None and (link_local := self._link_local.get(mac)) is not None:
            known = self.announced(link_local)
        return known

    def links(self) -> list[tuple[IPv6Address | None, float]]:
        """The peers: address where it is known, seconds since the last frame that is known of."""
        now = time.monotonic()
        return [
            (
                _parsed(address) if (address := self.address_of(one["mac"])) else None,
                self._silence(one, now),
            )
            for one in self._stations
            if one["state"] == ESTABLISHED
        ]

    def _silence(self, one: Station, now: float) -> float:
        """Seconds since the last frame of a station that is known of."""
        return (one["inactive_ms"] or 0) / 1000 + (now - self._asked.get(one["mac"], now))

    def shown(self) -> dict[str, list[dict[str, Any]]]:
        """The "peers" and "paths" parts of the node's status."""
        silent = peers.silent(self._stations, self._patience)
        return {
            "peers": [
                {
                    "mac": one["mac"],
                    "address": self.address_of(one["mac"]),
                    "state": one["state"],
                    "signal_dbm": one["signal_dbm"],
                    "metric": one["metric"],
                    "inactive_ms": one["inactive_ms"],
                    "silent": one["mac"] in silent,
                    "connected_s": one["connected_s"],
                    "tx_kbps": one["tx_kbps"],
                    "rx_kbps": one["rx_kbps"],
                    "rx_bytes": one["rx_bytes"],
                    "tx_bytes": one["tx_bytes"],
                    "tx_failed": one["tx_failed"],
                    "authorized": one["authorized"],
                    "mfp": one["mfp"],
                }
                for one in self._stations
            ],
            "paths": [
                {
                    "destination": one["destination"],
                    "address": self.address_of(one["destination"]),
                    "next_hop": one["next_hop"],
                    "metric": one["metric"],
                    "hops": one["hops"],
                    "expires_ms": one["expires_ms"],
                    "active": bool(one["flags"] & MPATH_ACTIVE),
                }
                for one in self._paths
            ],
        }

    def refresh(
        self,
        kernel: Kernel,
        ifindex: int,
        settings: MeshSection,
        network: IPv6Network,
        *,
        whole: bool,
    ) -> None:
        """Ask the kernel for the stations. Never raises.

        :param network: the addresses of the mesh.
        :param whole: ask for all paths and neighbours as well, not only where something depends on
            them.
        """
        now = time.monotonic()
        last = min(self._refreshed, self._refreshed_whole) if whole else self._refreshed
        if now - last < REFRESH_SECONDS:
            return
        self._refreshed = now
        before = self._stations
        secured = settings.security == SAE
        patience = self._patience = peers.patience(settings.beacon_interval)
        try:
            self._stations = kernel.nl80211.stations(ifindex)
            asked = time.monotonic()  # on a busy node reading them takes long
            self._asked = {one["mac"]: asked for one in self._stations}
            if secured:
                self._stations, words = self.peers.protect(self._stations)
                self.say(words)
            macs = {one["mac"] for one in self._stations if one["state"] == ESTABLISHED}
            if whole or macs != self.peers.macs or not all(map(self.address_of, macs)):
                self._read_neighbours(kernel.links.neighbours(ifindex), network)
            self.say(self.peers.look(before, self._stations))
            self._searches.look(self._stations, now)
            if secured:
                self.peers.watch_the_stuck(self._stations, patience, now)
            self._look_at_paths(kernel.nl80211, ifindex, patience, now, whole=whole)
        except OSError as error:  # the interface is going away: its end is noticed elsewhere
            log.debug("cannot read stations and paths: %s", error)
            return
        if whole:
            self._refreshed_whole = now

    def listen(
        self,
        kernel: Kernel,
        ifindex: int,
        settings: MeshSection,
        network: IPv6Network,
        seconds: float,
    ) -> None:
        """Find out when a frame of each peer came last, at the least cost. Never raises.

        Only peers of which no frame is known from the last ``seconds`` are asked for, one at a
        time. Where an answer shows that the stations are no longer what they were, all are read.

        :param network: the addresses of the mesh.
        """
        now = time.monotonic()
        links = [one for one in self._stations if one["state"] == ESTABLISHED]
        changed = not links
        try:
            for one in links:
                mac = one["mac"]
                if self._silence(one, now) < seconds or now - self._asked[mac] < _ASKED_SECONDS:
                    continue
                sign = kernel.nl80211.sign(ifindex, mac)
                if sign.generation != self._generation or not unchanged(one, sign):
                    self._generation = sign.generation
                    changed = True
                    break
                one["inactive_ms"] = sign.inactive_ms
                one["connected_s"] = sign.connected_s
                self._asked[mac] = time.monotonic()
            patience = peers.patience(settings.beacon_interval)
            if not changed:
                self._look_at_paths(kernel.nl80211, ifindex, patience, now, whole=False)
        except OSError as error:  # also where the station is gone
            log.debug("cannot read a station: %s", error)
            changed = True
        if changed:
            self.refresh(kernel, ifindex, settings, network, whole=False)

    def _look_at_paths(
        self, kernel: Nl80211, ifindex: int, patience: float, now: float, *, whole: bool
    ) -> None:
        """Read the paths, and change those that lead astray, if there can be such.

        :param whole: read them in any case.
        :raises OSError: the kernel refuses.
        """
        silent = peers.silent(self._stations, patience)
        if not (whole or silent or self._judge.watched or self._searches.due(now)):
            return
        self._paths = kernel.paths(ifindex)
        actions: list[PathAction | Search] = [
            *self._judge.judge(self._paths, self.peers.macs, silent, now)
        ]
        decided = {one[0] for one in actions} | self._judge.decided
        actions += self._searches.judge(self._paths, decided, now)
        if self._carry_out(actions, kernel, ifindex, now):
            self._paths = kernel.paths(ifindex)  # the status shows what is now

    def _read_neighbours(self, neighbours: list[tuple[str, str]], network: IPv6Network) -> None:
        """Note the addresses behind the stations."""
        self._neighbours, self._link_local = {}, {}
        for hardware, address in neighbours:
            ip = _parsed(address)
            if ip in network:
                self._neighbours[hardware] = address
            elif ip.is_link_local:
                self._link_local[hardware] = address

    def _carry_out(
        self, actions: Iterable[PathAction | Search], kernel: Nl80211, ifindex: int, now: float
    ) -> bool:
        """Do what the judges of the paths want.

        :returns: whether a path was changed.
        """
        changed = False
        for action in actions:
            try:
                if isinstance(action, GiveUp):
                    what = f"remove the path to {action.destination}"
                    kernel.remove_path(ifindex, action.destination)
                    log.info("path to %s over silent %s given up", *action)
                elif isinstance(action, Search):
                    what = f"search for another path to {action.destination}"
                    log.debug(
                        "path to %s over %s, a link of metric %d: another is searched for", *action
                    )
                    kernel.remove_path(ifindex, action.destination)
                elif isinstance(action, Fix):
                    what = f"leave the path of the peer to {action.peer}"
                    if action.instead_of == NOBODY:
                        log.info("path to %s is not found yet: its link is used", action.peer)
                    else:
                        log.info("path to %s over %s is from before it was lost", *action)
                    kernel.remove_path(ifindex, action.peer)
                    kernel.fix_path(ifindex, action.peer, action.peer)
                    self._judge.fixed(action.peer, now)
                else:
                    what = f"leave the path to its own finding to {action.peer}"
                    kernel.remove_path(ifindex, action.peer)
            except OSError as error:  # the peer, or the path, has ended by itself meanwhile
                log.debug("cannot %s: %s", what, error)
            else:
                changed = True
        return changed
