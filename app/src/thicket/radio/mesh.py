# SPDX-License-Identifier: Apache-2.0
"""The node's place in the mesh: finds a radio, joins, watches, reports, and recovers.

:class:`Mesh` has one supervising coroutine. It goes through one *session* after the other: choose
a radio, make the mesh interface, run wpa_supplicant, wait for the mesh, take the address, and then
follow events until something ends the session. What ended it is a :class:`FaultError`: words for a
person and a waiting time, after which, or at the next sign of change, the next session begins.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Interface
from typing import Any, Final

from thicket.base.errors import ThicketError
from thicket.base.files import entries, read
from thicket.base.pace import Backoff
from thicket.netlink import rtnl
from thicket.netlink.messages import NETLINK_GENERIC, NETLINK_ROUTE, Events, NetlinkError
from thicket.radio import nl80211
from thicket.radio.choose import ADVICE, MOST_PEERS, obstacle, radio_names, usb_without_driver
from thicket.radio.nl80211 import ESTABLISHED, Nl80211, Wiphy
from thicket.radio.settings import SAE, MeshSettings
from thicket.radio.supplicant import Supplicant, SupplicantError
from thicket.radio.wpa import ControlError, Event, configuration, parse_status, sae_password

log = logging.getLogger(__name__)

ABSENT: Final = "absent"
UNSUITABLE: Final = "unsuitable"
STARTING: Final = "starting"
JOINED: Final = "joined"
#: The state of a station that the kernel calls a peer, and that does not protect its frames.
UNPROTECTED: Final = "UNPROTECTED"
FAILED: Final = "failed"

_JOIN_SECONDS: Final = 30.0
_RADAR_CHECK_SECONDS: Final = 75.0  # channel availability check: 60 s (EN 301 893, 4.2.6.2.2)
_FIRST_PEER_SECONDS: Final = 2.5
_ADDRESS_SECONDS: Final = 6.0
_ADDRESS_LOOK_SECONDS: Final = 1.0
_WATCHDOG_SECONDS: Final = 15.0
#: How often the kernel is asked whether the interface is in the mesh, how often while it is not,
#: and how long it must be outside to have left, in seconds. Our own entering may take longer.
_LOOK_SECONDS: Final = 5.0
_LOOK_OUTSIDE_SECONDS: Final = 1.0
_LEFT_SECONDS: Final = 3.0
#: Looks at which the kernel is asked for the wanted country before it is told of.
_COUNTRY_TIMES: Final = 3
_NO_RADIO_SECONDS: Final = 30.0
_DUPLICATE_SECONDS: Final = 60.0
_SAE_FORGET_SECONDS: Final = 120.0
_REJOIN_SECONDS: Final = 60.0
#: How long a neighbour may be heard without becoming a peer before it is helped, in seconds: twice
#: what one round of attempts takes. Then twice as long each time, up to the last: as long waits
#: whoever has corrected a passphrase, and a round costs little.
_STUCK_SECONDS: Final = 60.0
_STUCK_SECONDS_AT_MOST: Final = 4 * 60.0
_REFUSED_TIMES: Final = 2  # so many failures in a row with a neighbour are no weak signal
_REFRESH_SECONDS: Final = 0.5  # a refresh younger than this is good enough
_SILENT_BEACONS: Final = 5  # a peer from which nothing came for so many beacons is out of reach

#: Pauses after failures in a row, and the good time after which they begin anew.
_PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 60.0)
_SETTLED_SECONDS: Final = 60.0
_NOBODY: Final = "00:00:00:00:00:00"  # the next hop of a path that is being looked for
_LOST: Final = 120.0  # a peer that comes back within so many seconds is one that returned

#: How the messages begin by which wpa_supplicant tells that it gave up.
_REFUSALS: Final = ("mesh join error=", "Failed to init mesh", "Could not join mesh")

OnChange = Callable[[str, dict[str, Any]], None]


class FaultError(ThicketError):
    """Why a session ended. ``part`` is radio or supplicant; ``state`` what the radio is in then.

    ``wait`` is how long until the next attempt in seconds, None for the backoff's answer.
    ``restart`` tells that wpa_supplicant has to be ended before that.
    """

    def __init__(
        self,
        part: str,
        code: str,
        message: str,
        *,
        state: str = FAILED,
        wait: float | None = None,
        restart: bool = False,
    ) -> None:
        super().__init__(message)
        self.part = part
        self.code = code
        self.message = message
        self.state = state
        self.wait = wait
        self.restart = restart


class _Stuck:
    """A neighbour that does not become a peer: when it is helped next, and how long after that."""

    __slots__ = ("due", "wait")

    def __init__(self, now: float) -> None:
        self.wait = _STUCK_SECONDS
        self.due = now + self.wait

    def helped(self, now: float) -> None:
        self.wait = min(self.wait * 2, _STUCK_SECONDS_AT_MOST)
        self.due = now + self.wait


def _made_again(before: nl80211.Station, now: nl80211.Station) -> bool:
    """Whether the link to a peer is another one than at the last look.

    A node that is back soon after a power cut finds its link still standing at the other end. There
    it is replaced within moments, with SAE without any event of its end.
    """
    return (now["llid"], now["plid"]) != (before["llid"], before["plid"]) or (
        (now["connected_s"] or 0) < (before["connected_s"] or 0)
    )


class _ReconfiguredError(Exception):
    """The settings have changed: the next session begins at once."""


def boot_time() -> float:
    """Seconds since the machine was started."""
    return round(time.clock_gettime(time.CLOCK_BOOTTIME), 3)


def protection(settings: MeshSettings) -> str:
    """What protects the frames of a mesh, in words."""
    if settings.security == SAE:
        return "encrypted (SAE, protected management frames)"
    return "open: anybody may enter, nothing is encrypted"


class Mesh:
    """The radio part of a node.

    ``on_change(kind, detail)`` is called with kind joined, left, peer-up, peer-down, problem or
    recovered. Raises ValueError when the settings cannot be used, with words for a person.
    """

    def __init__(
        self,
        settings: MeshSettings,
        address: IPv6Interface,
        on_change: OnChange | None = None,
        *,
        directory: str = "/run/thicket",
        program: str = "wpa_supplicant",
    ) -> None:
        configuration(settings, directory)
        self._settings = settings
        self._address = address
        self._on_change = on_change
        self._supplicant = Supplicant(directory, self._wpa_event, self._wpa_exit, program)
        self._state = STARTING
        self._problems: dict[str, dict[str, Any]] = {}
        self._queue: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._nl80211: Nl80211 | None = None
        self._links: rtnl.Links | None = None
        self._events: list[Events] = []
        self._wiphy: Wiphy | None = None
        self._ifindex: int | None = None
        #: When peers were lost; until when those that came back may have old paths to them; and
        #: until when the path to such a peer is fixed. All in seconds of the monotonic clock.
        self._lost: dict[str, float] = {}
        self._returned: dict[str, float] = {}
        self._fixed: dict[str, float] = {}
        self._grouped = False
        #: Since when the interface is not in the mesh, and until when that is our own doing.
        self._outside_since: float | None = None
        self._entering_until = 0.0
        self._joined_since: float | None = None
        self._reconfigure = False
        self._radios: list[str] = []
        self._asked_peers = True
        self._peers: set[str] = set()
        self._stations: list[nl80211.Station] = []
        self._paths: list[nl80211.MeshPath] = []
        self._neighbours: dict[str, str] = {}
        self._link_local: dict[str, str] = {}
        #: Tells the address of a node by its link-local one, where the kernel does not know it:
        #: nothing may have been sent to that address yet.
        self.announced: Callable[[str], str | None] = lambda _address: None
        #: When the kernel was asked for the stations, and when for all.
        self._refreshed = 0.0
        self._refreshed_whole = 0.0
        self._sae_failures: dict[str, tuple[int, float]] = {}
        #: MAC addresses that two radios have: authentication with them fails for that reason.
        self._doubled: set[str] = set()
        self._country_asked = 0
        self._stuck: dict[str, _Stuck] = {}
        self._joined_with: str | None = None
        self._next_rejoin = 0.0
        self._rejoin_wait = _REJOIN_SECONDS
        self._backoff = Backoff(*_PAUSES, settled=_SETTLED_SECONDS)

    # what others ask

    @property
    def ifindex(self) -> int | None:
        """Index of the mesh interface, None while there is none."""
        return self._ifindex

    @property
    def interface(self) -> str:
        """Name of the mesh interface."""
        return self._settings.interface

    @property
    def joined(self) -> bool:
        """Whether the node is in the mesh and its address can be used."""
        return self._state == JOINED

    @property
    def state(self) -> str:
        """absent, unsuitable, starting, joined or failed."""
        return self._state

    @property
    def settings(self) -> MeshSettings:
        return self._settings

    def problems(self) -> list[dict[str, Any]]:
        """What is wrong at present: part, code, message, since (seconds of CLOCK_BOOTTIME)."""
        return list(self._problems.values())

    def snapshot(self) -> dict[str, Any]:
        """The "radio", "peers" and "paths" parts of the node's status."""
        wiphy = self._wiphy
        return {
            "radio": {
                "state": self._state,
                "phy": wiphy.name if wiphy else None,
                "driver": wiphy.driver if wiphy else None,
                "interface": self._settings.interface if self._ifindex is not None else None,
                "mac": wiphy.mac if wiphy else None,
                "mesh_id": self._settings.mesh_id,
                "frequency": self._settings.mhz,
                "security": self._settings.security,
                "protection": protection(self._settings),
                "supplicant": {
                    "pid": self._supplicant.pid,
                    "restarts": self._supplicant.restarts,
                    "adopted": self._supplicant.adopted,
                },
            },
            "peers": [
                {
                    "mac": one["mac"],
                    "address": self._address_of(one["mac"]),
                    "state": one["state"],
                    "signal_dbm": one["signal_dbm"],
                    "metric": one["metric"],
                    "inactive_ms": one["inactive_ms"],
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
                    "next_hop": one["next_hop"],
                    "metric": one["metric"],
                    "hops": one["hops"],
                    "expires_ms": one["expires_ms"],
                    "active": bool(one["flags"] & nl80211.MPATH_ACTIVE),
                }
                for one in self._paths
            ],
        }

    def apply(self, settings: MeshSettings, address: IPv6Interface | None = None) -> None:
        """Change the settings (and the address); :meth:`run` carries it out.

        Another passphrase leaves the links that stand alone; it is asked for in new ones. Raises
        ValueError when the settings cannot be used; the old ones stay then.
        """
        configuration(settings, self._supplicant.directory)
        if settings == self._settings and address in (None, self._address):
            return
        only_passphrase = settings == self._settings._replace(passphrase=settings.passphrase)
        self._settings = settings
        if only_passphrase and address in (None, self._address) and self.joined and self._peers:
            self._put("passphrase")
            return
        if address is not None:
            self._address = address
        self._reconfigure = True
        self._put("settings")

    def refused(self) -> dict[str, int]:
        """The neighbours with which authentication fails, and how often in a row it did."""
        return {mac: count for mac, (count, _) in self._sae_failures.items()}

    def set_doubled(self, macs: set[str]) -> None:
        """Tell which MAC addresses two radios have; their failures are no matter of passphrases."""
        if macs != self._doubled:
            self._doubled = set(macs)
            for mac in macs:
                self._forget_failure(mac)
            self._judge_refusals()

    @property
    def outdated(self) -> bool:
        """Whether a former passphrase still opens links that others begin, until :meth:`renew`."""
        return self.joined and self._joined_with != self._settings.passphrase

    def renew(self) -> None:
        """Leave and enter the mesh: every link is made anew, with the passphrase of today."""
        if self.joined:
            self._put("renew")

    def peers(self) -> set[str]:
        """The MAC addresses of the peers."""
        return set(self._peers)

    def links(self) -> list[tuple[IPv6Address | None, float]]:
        """The peers at the last look: address where it is known, seconds since the last frame."""
        return [
            (
                IPv6Address(address) if (address := self._address_of(one["mac"])) else None,
                (one["inactive_ms"] or 0) / 1000,
            )
            for one in self._stations
            if one["state"] == ESTABLISHED
        ]

    def _address_of(self, mac: str) -> str | None:
        """Return the address of a station in the mesh, None while it is not known."""
        known = self._neighbours.get(mac)
        if known is None and (link_local := self._link_local.get(mac)) is not None:
            known = self.announced(link_local)
        return known

    async def refresh(self, *, whole: bool = True) -> None:
        """Ask the kernel for the stations; if ``whole``, for all paths and neighbours as well,
        otherwise only where something depends on them. Never raises."""
        now = time.monotonic()
        last = min(self._refreshed, self._refreshed_whole) if whole else self._refreshed
        if (
            self._nl80211 is None
            or self._links is None
            or self._ifindex is None
            or now - last < _REFRESH_SECONDS
        ):
            return
        self._refreshed = now
        before = {one["mac"]: one for one in self._stations if one["state"] == ESTABLISHED}
        try:
            self._stations = self._nl80211.stations(self._ifindex)
            if self._settings.security == SAE:
                self._judge_protection()
            peers = [one for one in self._stations if one["state"] == ESTABLISHED]
            macs = {one["mac"] for one in peers}
            if whole or macs != self._peers or not all(map(self._address_of, macs)):
                self._read_neighbours()
            again = {
                one["mac"]
                for one in peers
                if one["mac"] in before and _made_again(before[one["mac"]], one)
            }
            if again:
                self._set_peers(self._peers - again)  # as if we had looked in between
            self._set_peers(macs)
            self._watch_the_stuck(now)
            silent = self._silent_stations()
            if whole or silent or self._returned or self._fixed:
                self._paths = self._nl80211.paths(self._ifindex)
                if self._avoid_silent_peers(silent) | self._avoid_detours(now):
                    self._paths = self._nl80211.paths(self._ifindex)  # what is told is what is now
        except OSError as error:  # the interface is going away: its end is noticed elsewhere
            log.debug("cannot read stations and paths: %s", error)
            return
        if whole:
            self._refreshed_whole = now

    def _silent_stations(self) -> set[str]:
        """The stations from which not even beacons come any more."""
        patience = _SILENT_BEACONS * self._settings.beacon_interval * 1.024
        return {one["mac"] for one in self._stations if (one["inactive_ms"] or 0) > patience}

    def _read_neighbours(self) -> None:
        """Ask the kernel for the addresses behind the stations. Raises OSError."""
        assert self._links is not None and self._ifindex is not None
        network = self._address.network
        self._neighbours, self._link_local = {}, {}
        for hardware, address in self._links.neighbours(self._ifindex):
            ip = IPv6Address(address)
            if ip in network:
                self._neighbours[hardware] = address
            elif ip.is_link_local:
                self._link_local[hardware] = address

    def _judge_protection(self) -> None:
        """Count nobody as a peer whose frames are not protected, whatever its state of peering."""
        bad = set()
        for one in self._stations:
            if one["state"] == ESTABLISHED and not (one["authorized"] and one["mfp"]):
                one["state"] = UNPROTECTED
                bad.add(one["mac"])
                what = "data" if not one["authorized"] else "management"
                self._report(
                    "radio",
                    "peer-unprotected",
                    f"the kernel has a link to {one['mac']} whose {what} frames are not protected; "
                    "it is not used as a peer",
                    key=f"sae-unprotected-{one['mac']}",
                )
        for key in list(self._problems):
            if (
                key.startswith("sae-unprotected-")
                and key.removeprefix("sae-unprotected-") not in bad
            ):
                self._recovered(key)

    def _watch_the_stuck(self, now: float) -> None:
        """Note which neighbours are heard and are no peers."""
        if self._settings.security != SAE:
            return
        patience = _SILENT_BEACONS * self._settings.beacon_interval * 1.024
        heard = {
            one["mac"]
            for one in self._stations
            if one["state"] != ESTABLISHED and (one["inactive_ms"] or 0) <= patience
        }
        for mac in heard:
            self._stuck.setdefault(mac, _Stuck(now))
        for mac in [mac for mac in self._stuck if mac in self._peers]:
            del self._stuck[mac]
        # A station comes and goes while it is tried; one that is gone for long is forgotten.
        for mac in [mac for mac, one in self._stuck.items() if mac not in heard]:
            if now > self._stuck[mac].due + self._stuck[mac].wait:
                del self._stuck[mac]

    def _avoid_silent_peers(self, silent: set[str]) -> bool:
        """Forget the paths over silent peers; whether there were any.

        The kernel gives up a path when the average of failed frames over it is high (mac80211,
        ieee80211s_update_metric: above 95 %), which takes a node that sends little a long time.
        """
        assert self._nl80211 is not None and self._ifindex is not None
        changed = False
        for path in self._paths:
            if path["next_hop"] in silent:
                try:
                    self._nl80211.remove_path(self._ifindex, path["destination"])
                except OSError as error:  # it ended by itself meanwhile
                    log.debug("cannot remove the path to %s: %s", path["destination"], error)
                else:
                    log.info("path to %(destination)s over silent %(next_hop)s given up", path)
                    changed = True
        return changed

    def _avoid_detours(self, now: float) -> bool:
        """Let frames to a peer that has come back take the link to it, not a path from before.

        Whether a path was changed.

        When a peer is lost the kernel asks around for another path to it, and is answered by nodes
        whose path leads over us: a circle, which was seen to stand until their path expired. (A
        node that has been switched off and on again counts its path messages from the beginning,
        HWMP of IEEE 802.11-2020 14.10, so that theirs would count as newer than its own.)
        """
        assert self._nl80211 is not None and self._ifindex is not None
        changed = False
        ways = {path["destination"]: path["next_hop"] for path in self._paths}
        for mac, until in list(self._fixed.items()):
            if now < until and mac in self._peers:
                continue
            del self._fixed[mac]  # what is found from now on is of today
            if ways.get(mac) == mac:
                changed |= self._change_path("the path to its own finding", mac)
        for mac, until in list(self._returned.items()):
            if now >= until:
                del self._returned[mac]
            elif mac in self._peers and ways.get(mac, mac) != mac:
                # perhaps once more: what was fixed ends with the link, which can come back unseen
                if ways[mac] == _NOBODY:
                    log.info("path to %s is still being looked for: its link is taken", mac)
                else:
                    log.info("path to %s over %s is from before it was lost", mac, ways[mac])
                if self._change_path("the path of the peer", mac, fix=True):
                    self._fixed[mac] = now + self._settings.path_timeout / 1000
                    changed = True
        return changed

    def _change_path(self, what: str, mac: str, *, fix: bool = False) -> bool:
        assert self._nl80211 is not None and self._ifindex is not None
        try:
            self._nl80211.remove_path(self._ifindex, mac)
            if fix:
                self._nl80211.fix_path(self._ifindex, mac, mac)
        except OSError as error:  # the peer, or the path, has ended by itself meanwhile
            log.debug("cannot leave %s to %s: %s", what, mac, error)
            return False
        return True

    async def leave(self) -> None:
        """Take the mesh down: end wpa_supplicant, remove the interface. Not while run() runs."""
        await self._supplicant.stop()
        self._open()
        try:
            if self._ifindex is not None and self._nl80211 is not None:
                self._nl80211.remove_interface(self._ifindex)
        except OSError as error:
            log.debug("cannot remove %s: %s", self._settings.interface, error)
        finally:
            self._out(STARTING)
            self._forget_interface()
            self._close()

    # the supervisor

    async def run(self) -> None:
        """Keep the node in the mesh. Ends only by cancellation, which leaves wpa_supplicant and
        the interface as they are, for the next daemon to take over."""
        try:
            while True:
                wait = await self._attempt()
                if wait > 0:
                    await self._rest(wait)
        finally:
            self._supplicant.release()
            self._close()

    async def _attempt(self) -> float:
        """One session; the time to wait before the next one in seconds."""
        try:
            self._open()
            await self._session()
        except _ReconfiguredError:
            self._out(STARTING)
            self._backoff.reset()
            return 0.0
        except FaultError as fault:
            if fault.restart:
                await self._supplicant.stop()
            return self._failed(fault)
        except ControlError as error:
            await self._supplicant.stop()
            return self._failed(
                FaultError("supplicant", "supplicant-hangs", f"{error}; it is started again")
            )
        except SupplicantError as error:
            return self._failed(FaultError("supplicant", f"supplicant-{error.code}", str(error)))
        except OSError as error:
            if error.errno == errno.ERFKILL:
                return self._failed(self._switched_off())
            if error.errno == errno.ENODEV:  # asked of what has just been pulled out
                return self._failed(self._removed())
            self._close()  # sockets included: the next session begins with fresh ones
            return self._failed(
                FaultError("radio", "system", f"the kernel refused: {error.strerror}")
            )
        return 0.0

    def _failed(self, fault: FaultError) -> float:
        lasted = 0.0 if self._joined_since is None else time.monotonic() - self._joined_since
        if fault.wait is None:
            wait = self._backoff.failed(lasted)
        else:
            wait = fault.wait
            self._backoff.reset()
        message = fault.message
        if fault.wait is None and self._backoff.exhausted:
            message += (
                f" ({self._backoff.failures} failures in a row; tried again every "
                f"{_PAUSES[-1]:.0f} s)"
            )
        self._out(fault.state)
        for key in self._session_problems():
            if key != fault.code:  # not recovered, but replaced by what is wrong now
                del self._problems[key]
        self._report(fault.part, fault.code, message)
        return wait

    async def _rest(self, seconds: float) -> None:
        """Wait for the next attempt; a new radio or new settings end the waiting at once."""
        deadline = time.monotonic() + seconds
        radios = self._radios
        while (left := deadline - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    kind, _ = await self._queue.get()
            except TimeoutError:
                return
            # our own attempts make such events too, hence the look at what has really changed
            if kind == "settings" or (kind == "radio" and radio_names() != radios):
                self._backoff.reset()
                return

    def _put(self, kind: str, value: Any = None) -> None:
        self._queue.put_nowait((kind, value))

    def _open(self) -> None:
        """Open the sockets. Raises FaultError without nl80211, OSError for anything else."""
        if self._links is None:
            self._links = rtnl.Links()
        if self._nl80211 is None:
            try:
                self._nl80211 = Nl80211()
            except NetlinkError as error:
                if error.errno != errno.ENOENT:
                    raise
                raise FaultError(
                    "radio",
                    "no-radio",
                    "no radio: the kernel has no 802.11 support loaded (no netlink family nl80211)"
                    + self._unclaimed(),
                    state=ABSENT,
                    wait=_NO_RADIO_SECONDS,
                ) from None
        if not self._events:
            group = self._nl80211.groups.get(nl80211.CONFIG_GROUP)
            self._events = [
                Events(
                    NETLINK_ROUTE,
                    [rtnl.GROUP_LINK, rtnl.GROUP_IPV6_ADDRESS],
                    self._route_event,
                    lambda: self._put("look"),
                )
            ]
            if group is not None:
                self._events.append(
                    Events(NETLINK_GENERIC, [group], self._config_event, lambda: self._put("radio"))
                )

    def _close(self) -> None:
        for events in self._events:
            events.close()
        self._events = []
        if self._nl80211 is not None:
            self._nl80211.close()
            self._nl80211 = None
        if self._links is not None:
            self._links.close()
            self._links = None

    # events, from the event loop

    def _wpa_event(self, event: Event) -> None:
        self._put("wpa", event)

    def _wpa_exit(self) -> None:
        self._put("exit")

    def _config_event(self, kind: int, message: bytes) -> None:
        # struct genlmsghdr begins behind the netlink header with the command
        if len(message) > 16 and message[16] in (
            nl80211.CMD_NEW_WIPHY,
            nl80211.CMD_DEL_WIPHY,
            nl80211.CMD_DEL_INTERFACE,
        ):
            self._put("radio")

    def _route_event(self, kind: int, message: bytes) -> None:
        if kind in (rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK):
            event = rtnl.link_event(message)
            if event is not None and event[0] == self._ifindex:
                if kind == rtnl.RTM_DELLINK:
                    self._put("gone")
                elif not event[1] & rtnl.IFF_UP:
                    self._put("down")
                elif not event[1] & rtnl.IFF_RUNNING:
                    self._put("look")  # no carrier: the kernel has left the mesh
        elif (
            kind in (rtnl.RTM_NEWADDR, rtnl.RTM_DELADDR)
            and self._ifindex is not None
            and rtnl.address_event(message) == self._ifindex
        ):
            self._put("address")

    # problems

    def _report(self, part: str, code: str, message: str, key: str | None = None) -> None:
        key = key or code
        known = self._problems.get(key)
        if known is not None:
            known["message"] = message
            return
        problem = {"part": part, "code": code, "message": message, "since": boot_time()}
        self._problems[key] = problem
        log.warning("%s: %s", part, message)
        self._tell("problem", dict(problem))

    def _recovered(self, key: str) -> None:
        problem = self._problems.pop(key, None)
        if problem is not None:
            log.info("recovered: %s", problem["message"])
            self._tell("recovered", problem)

    def _session_problems(self) -> list[str]:
        """The keys of the problems that ended a session: all but those with single peers and the
        country, with which the mesh stands."""
        return [key for key in self._problems if not key.startswith("sae-") and key != "country"]

    def _tell(self, kind: str, detail: dict[str, Any]) -> None:
        if self._on_change is None:
            return
        try:
            self._on_change(kind, detail)
        except Exception:
            log.exception("a listener of the radio failed at %r", kind)

    def _unclaimed(self) -> str:
        devices = usb_without_driver()
        if devices:
            return f"; USB devices without a driver: {', '.join(devices)}"
        return ""

    def _removed(self) -> FaultError:
        name = str(self._wiphy or "the radio")
        self._forget_interface()
        return FaultError(
            "radio",
            "radio-removed",
            f"{name} was removed; the mesh is joined again when a radio is there",
            state=ABSENT,
            wait=0.2,
        )

    def _switched_off(self) -> FaultError:
        name = self._wiphy.name if self._wiphy else "the radio"
        for entry in entries(f"{nl80211.SYSFS}/{name}"):
            if entry.startswith("rfkill"):
                base = f"{nl80211.SYSFS}/{name}/{entry}"
                if read(f"{base}/hard") == "1":
                    return FaultError(
                        "radio",
                        "rfkill",
                        f"{name} is switched off by a hardware switch (rfkill): switch it on",
                        wait=_DUPLICATE_SECONDS / 4,
                    )
                if read(f"{base}/soft") == "1":
                    try:
                        with open(f"{base}/soft", "w", encoding="ascii") as file:
                            file.write("0")
                        log.info("%s was switched off by software (rfkill), switched on", name)
                    except OSError as error:
                        log.warning("cannot switch %s on: %s", name, error)
        return FaultError("radio", "rfkill", f"{name} was switched off (rfkill); it is tried again")

    # a session

    def _choose(self) -> Wiphy:
        """The radio to use. Raises FaultError."""
        assert self._nl80211 is not None
        wiphys = self._nl80211.wiphys()
        if not wiphys:
            raise FaultError(
                "radio",
                "no-radio",
                "no radio: the kernel reports none (looked at: nl80211, USB)"
                f"{self._unclaimed()}; {ADVICE}",
                state=ABSENT,
                wait=_NO_RADIO_SECONDS,
            )
        holder = next(
            (
                one["wiphy"]
                for one in self._nl80211.interfaces()
                if one["name"] == self._settings.interface
            ),
            None,
        )
        reasons = []
        suitable = []
        for wiphy in wiphys:
            reason = obstacle(wiphy, self._settings)
            if reason is None:
                suitable.append(wiphy)
            else:
                reasons.append(reason)
        if not suitable:
            raise FaultError(
                "radio",
                "unsuitable-radio",
                f"{'; '.join(reasons)}; {ADVICE}",
                state=UNSUITABLE,
                wait=_NO_RADIO_SECONDS,
            )
        return min(suitable, key=lambda wiphy: (wiphy.index != holder, wiphy.index))

    def _prepare_interface(self, wiphy: Wiphy) -> bool:
        """Have the mesh interface on ``wiphy`` and the radio's other interfaces down.

        True when it was there, perhaps with a mesh running on it.
        """
        assert self._nl80211 is not None
        assert self._links is not None
        name = self._settings.interface
        others = []
        found = None
        for one in self._nl80211.interfaces():
            if one["name"] == name:
                if one["wiphy"] == wiphy.index and one["type"] == nl80211.IFTYPE_MESH_POINT:
                    found = one["index"]
                else:
                    self._nl80211.remove_interface(one["index"])
            elif one["wiphy"] == wiphy.index:
                others.append(one)
        for one in others:
            # most radios cannot serve two interfaces on different channels
            if (self._links.flags(one["index"]) or 0) & rtnl.IFF_UP:
                self._links.set_up(one["index"], False)
        if found is None:
            try:
                self._ifindex = self._nl80211.add_mesh_interface(wiphy, name)["index"]
            except NetlinkError as error:
                if not others:
                    raise
                log.info("%s: no second interface (%s), using %s", wiphy, error, others[0]["name"])
                self._nl80211.make_mesh_point(others[0]["index"])
                self._links.rename(others[0]["index"], name)
                self._ifindex = others[0]["index"]
        else:
            self._ifindex = found
        for sysctl, value in (
            # the address comes from the chip: no router in the mesh may add others, and asking
            # for routers costs airtime
            ("accept_ra", 0),
            ("router_solicitations", 0),
            ("accept_redirects", 0),
            ("dad_transmits", 1),
            ("disable_ipv6", 0),
        ):
            try:
                rtnl.set_sysctl(name, sysctl, value)
            except OSError as error:
                log.debug("%s of %s: %s", sysctl, name, error)
        return found is not None

    async def _session(self) -> None:
        """From nothing to the mesh and until something ends it. Leaves by an exception."""
        assert self._nl80211 is not None
        assert self._links is not None
        self._reconfigure = False
        while not self._queue.empty():
            self._queue.get_nowait()
        self._radios = radio_names()
        settings = self._settings
        self._grouped = False
        self._outside_since = None
        self._country_asked = 0
        self._entering_until = 0.0
        try:
            self._wiphy = wiphy = self._choose()
        except FaultError:
            await self._supplicant.stop()
            self._wiphy = None
            self._forget_interface()
            raise
        self._enter(STARTING)
        existed = self._prepare_interface(wiphy)
        ifindex = self._ifindex
        assert ifindex is not None
        self._stuck = {}
        self._joined_with = settings.passphrase
        text = self._text(settings)
        if await self._supplicant.adopt(settings.interface, ifindex, text):
            log.info("took over wpa_supplicant (process %s)", self._supplicant.pid)
            if settings.security == SAE:  # in case a daemon ended amid _help_the_stuck
                await self._supplicant.control.command("SET_NETWORK 0 no_auto_peer 0")
        else:
            if existed:
                self._links.set_up(ifindex, False)  # leaves a mesh that a dead one had joined
            # also tells whether the radio is switched off, which wpa_supplicant does not
            self._links.set_up(ifindex, True)
            await self._supplicant.start(settings.interface, ifindex, text)
        await self._wait_for_group()
        self._nl80211.set_mesh_parameters(ifindex, settings.kernel_parameters())
        await self._meet_somebody()
        await self._take_address()
        self._join()
        await self._follow()

    def _text(self, settings: MeshSettings) -> str:
        """wpa_supplicant's configuration for the radio in use."""
        driver = self._wiphy.driver if self._wiphy is not None else ""
        return configuration(
            settings, self._supplicant.control_directory, MOST_PEERS.get(driver, 255)
        )

    async def _change_passphrase(self) -> None:
        """Give wpa_supplicant another passphrase for new links; the links that stand stay.

        It takes the network's passphrase whenever *it* begins an authentication, and the one it
        had when it joined where the *other* side begins (wpas_mesh_init_rsn copies it). So for
        now the old one opens the mesh as well as the new one, until :meth:`renew`, or until the
        mesh is entered anew because nothing is lost by it. Raises ControlError.
        """
        settings = self._settings
        control = self._supplicant.control
        await control.command(f"SET_NETWORK 0 sae_password {sae_password(settings)}")
        # who knew the old one must not come back by what is remembered of it
        await control.command("PMKSA_FLUSH")
        # The file stays as it is: a next daemon does not take over a process that still lets
        # people in with the old one, but starts its own.
        for mac in list(self._sae_failures):
            self._forget_failure(mac)
        for one in self._stuck.values():  # it is likely the right one now
            one.due = 0.0
        log.info("the passphrase has changed: %d links stay", len(self._peers))

    def _enter(self, state: str) -> None:
        self._state = state

    def _join(self) -> None:
        self._enter(JOINED)
        self._joined_since = time.monotonic()
        for key in self._session_problems():
            self._recovered(key)
        log.info(
            "joined mesh %r at %d MHz as %s on %s",
            self._settings.mesh_id,
            self._settings.mhz,
            self._address.ip,
            self._wiphy,
        )
        self._tell(
            "joined",
            {
                "interface": self._settings.interface,
                "ifindex": self._ifindex,
                "address": str(self._address),
                "adopted": self._supplicant.adopted,
            },
        )

    def _out(self, state: str) -> None:
        """The end of a session: nobody is a peer any more."""
        was_joined = self._state == JOINED
        self._enter(state)
        self._joined_since = None
        self._grouped = False
        self._stations = []
        self._paths = []
        self._neighbours, self._link_local = {}, {}
        self._set_peers(set())
        if was_joined:
            self._tell("left", {"interface": self._settings.interface})

    def _forget_interface(self) -> None:
        self._ifindex = None
        self._wiphy = None

    def _set_peers(self, peers: set[str]) -> None:
        now = time.monotonic()
        for mac in sorted(self._peers - peers):
            log.info("peer %s lost", mac)
            self._lost[mac] = now
            self._tell("peer-down", {"mac": mac})
        for mac in sorted(peers - self._peers):
            log.info("peer %s", mac)
            if now - self._lost.pop(mac, -_LOST) < _LOST:
                self._returned[mac] = now + self._settings.path_timeout / 1000
            self._tell("peer-up", {"mac": mac})
            self._sae_succeeded(mac)
        self._peers = set(peers)
        for mac in [mac for mac, then in self._lost.items() if now - then >= _LOST]:
            del self._lost[mac]
        if peers:
            self._judge_refusals()

    async def _next(self, deadline: float) -> tuple[str, Any]:
        """The next event, ("", None) when there was none until ``deadline`` (monotonic).

        Raises what ends every session: new settings, the interface or wpa_supplicant gone.
        """
        if self._reconfigure:
            raise _ReconfiguredError
        left = deadline - time.monotonic()
        if left <= 0 and self._queue.empty():
            return "", None
        try:
            async with asyncio.timeout(max(left, 0.001)):
                kind, value = await self._queue.get()
        except TimeoutError:
            return "", None
        if kind == "settings":
            raise _ReconfiguredError
        if kind == "passphrase":
            await self._change_passphrase()
        if kind == "renew" and self._grouped:
            log.info("the mesh is entered anew: only the passphrase of today opens it")
            await self._enter_anew()
        if kind == "exit":
            reason = f"wpa_supplicant {self._supplicant.exit_reason()}"
            raise FaultError(
                "supplicant",
                "supplicant-ended",
                f"{reason}; it is started again",
            )
        if kind in ("gone", "radio", "down", "look"):
            self._check_interface()
        return kind, value

    def _check_interface(self) -> None:
        """Whether the mesh interface is still there and up. Raises FaultError."""
        assert self._links is not None
        assert self._ifindex is not None
        flags = self._links.flags(self._ifindex)
        if flags is None:
            raise self._removed()
        if not flags & rtnl.IFF_UP and self._grouped:
            # by somebody's hand, or by rfkill: ERFKILL when it is taken up again tells which
            self._links.set_up(self._ifindex, True)
            raise FaultError(
                "radio",
                "interface-down",
                f"{self._settings.interface} was taken down by somebody; it is taken up again",
            )

    def _check_membership(self) -> None:
        """Whether the kernel is in the mesh, which it can leave without a word of wpa_supplicant:
        by somebody's hand, or because the regulatory domain has changed. Raises FaultError."""
        if self._nl80211 is None or self._ifindex is None or not self._grouped:
            return
        self._check_country()
        now = time.monotonic()
        name, wanted = self._settings.interface, self._settings.mhz
        frequency = next(
            (
                one["frequency"]
                for one in self._nl80211.interfaces()
                if one["index"] == self._ifindex
            ),
            None,
        )
        if frequency == wanted:
            self._outside_since = None
            self._entering_until = 0.0
            return
        if self._outside_since is None:
            self._outside_since = now
        if now - self._outside_since < _LEFT_SECONDS or now < self._entering_until:
            return
        self._outside_since = None
        if frequency is not None:
            what = f"{name} is on {frequency} MHz instead of {wanted} MHz by somebody's hand"
        else:
            what = f"{name} has left the mesh, by somebody's hand or by the kernel's decision"
        raise FaultError(
            "radio", "mesh-left", f"{what}{self._channel_obstacle()}; it rejoins", restart=True
        )

    def _check_country(self) -> None:
        """See that the kernel follows the rules of the country that is wanted.

        Somebody can ask it for another one (`iw reg set`), and what its database does not have it
        ignores without a word.
        """
        if self._nl80211 is None:
            return
        wanted = self._settings.country
        present = self._nl80211.country()
        if present in (None, wanted, *nl80211.MADE_DOMAINS):
            self._recovered("country")
            self._country_asked = 0
            return
        self._country_asked += 1
        if self._country_asked <= _COUNTRY_TIMES:
            log.info("the kernel follows the rules of %s; asking for %s", present, wanted)
            self._nl80211.ask_for_country(wanted)
            return
        self._report(
            "radio",
            "country",
            f"the kernel follows the rules of {present!r} and not of mesh.country, {wanted!r}: its "
            "regulatory database does not have that country or is missing",
        )

    async def _wait_for_group(self) -> None:
        """Until wpa_supplicant has joined. Raises FaultError."""
        status = parse_status(await self._supplicant.control.command("STATUS"))
        if status.get("wpa_state") == "COMPLETED":
            self._grouped = True
            return
        deadline = time.monotonic() + _JOIN_SECONDS
        while not self._grouped:
            kind, event = await self._next(deadline)
            if not kind:
                reason = self._channel_obstacle() or self._supplicant.last_words()
                raise FaultError(
                    "supplicant",
                    "join-timeout",
                    f"wpa_supplicant did not join the mesh within {_JOIN_SECONDS:.0f} s{reason}",
                    restart=True,
                )
            if kind != "wpa":
                continue
            if event.name == "MESH-GROUP-STARTED":
                self._grouped = True
            elif event.name == "DFS-CAC-START":
                deadline = time.monotonic() + _RADAR_CHECK_SECONDS
            elif f"{event.name} {event.rest}".startswith(_REFUSALS):
                reason = self._channel_obstacle() or self._supplicant.last_words()
                raise FaultError(
                    "radio",
                    "join-refused",
                    f"{self._wiphy} could not join the mesh{reason}",
                    restart=True,
                )

    def _channel_obstacle(self) -> str:
        """What the regulatory domain says against the channel, to be appended to a message."""
        settings = self._settings
        try:
            wiphys = self._nl80211.wiphys() if self._nl80211 is not None else []
        except OSError:
            return ""
        for wiphy in wiphys:
            if self._wiphy is not None and wiphy.index == self._wiphy.index:
                channel = wiphy.channels.get(settings.mhz)
                reason = channel.obstacle if channel is not None else "does not exist"
                if reason:
                    return (
                        f": {settings.mhz} MHz {reason} in regulatory domain "
                        f"{settings.country!r}; set mesh.country, or another mesh.channel"
                    )
        return ""

    async def _meet_somebody(self) -> None:
        """Give a first peer a moment to appear: the kernel's question whether anybody has our
        address reaches only peers, and is worth nothing without one. Raises FaultError."""
        await self.refresh()
        deadline = time.monotonic() + _FIRST_PEER_SECONDS
        while not self._peers:
            kind, event = await self._next(deadline)
            if not kind:
                return
            if kind == "wpa":
                await self._mesh_event(event)

    async def _take_address(self, again: bool = False) -> None:
        """Have the address on the interface and wait until the kernel has made sure that no other
        node uses it (RFC 4862, 5.4), ``again`` also when it is there. Raises FaultError."""
        assert self._links is not None
        assert self._ifindex is not None
        if again:
            self._links.remove_all(self._ifindex)
        asked_peers = bool(self._peers)
        flags = self._links.keep_only(self._ifindex, self._address)
        if flags is None:
            self._links.add_address(self._ifindex, self._address)
        elif not flags & rtnl.IFA_F_TENTATIVE:
            return  # by a former daemon, or by us
        deadline = time.monotonic() + _ADDRESS_SECONDS
        wanted = str(self._address.ip)
        while True:
            present = {one["address"]: one["flags"] for one in self._links.addresses(self._ifindex)}
            flags = present.get(wanted)
            if flags is None:
                raise FaultError(
                    "radio", "address-lost", f"the address {wanted} vanished from the interface"
                )
            if flags & rtnl.IFA_F_DADFAILED:
                raise FaultError(
                    "radio",
                    "address-duplicate",
                    f"another node in the mesh uses the address {wanted}: two chips with one "
                    "serial number, two radios with one MAC address (where that is the identity), "
                    "or a copied identity; this node keeps off until the other is gone",
                    wait=_DUPLICATE_SECONDS,
                )
            if not flags & rtnl.IFA_F_TENTATIVE:
                self._asked_peers = asked_peers
                return
            if time.monotonic() > deadline:
                raise FaultError(
                    "radio",
                    "address-tentative",
                    f"the kernel has not confirmed the address {wanted} within "
                    f"{_ADDRESS_SECONDS:.0f} s",
                )
            kind, event = await self._next(min(deadline, time.monotonic() + _ADDRESS_LOOK_SECONDS))
            if kind == "wpa":
                await self._mesh_event(event)

    async def _follow(self) -> None:
        """Follow events while in the mesh. Leaves by an exception."""
        assert self._links is not None
        await self.refresh()
        watchdog = time.monotonic() + _WATCHDOG_SECONDS
        look = 0.0
        while True:
            kind, value = await self._next(min(watchdog, look))
            if kind == "look" or time.monotonic() >= look:
                self._check_membership()
                inside = self._outside_since is None
                look = time.monotonic() + (_LOOK_SECONDS if inside else _LOOK_OUTSIDE_SECONDS)
            if kind == "wpa":
                await self._mesh_event(value)
            elif kind == "address":
                await self._take_address()
            if self._peers and not self._asked_peers:
                # taken in loneliness, so nobody can depend on it yet: ask those who are here now
                self._asked_peers = True
                await self._take_address(again=True)
            now = time.monotonic()
            if now >= watchdog:
                await self._supplicant.control.attach()
                await self._supplicant.control.command("PING")
                watchdog = now + _WATCHDOG_SECONDS
                if self._backoff.failures and now - (self._joined_since or now) > 60:
                    self._backoff.reset()
                self._forget_old_failures(now)
                await self._help_the_stuck(now)

    # the mesh's events

    async def _mesh_event(self, event: Event) -> None:
        """An event of wpa_supplicant while in the mesh. Raises FaultError."""
        assert self._ifindex is not None
        mac = event.address
        if event.name == "MESH-PEER-CONNECTED" and mac:
            self._refreshed = 0.0
            if self._settings.security == SAE:
                await self.refresh()  # is it one? the kernel knows whether it protects its frames
            else:
                self._set_peers(self._peers | {mac})
        elif event.name == "MESH-PEER-DISCONNECTED" and mac:
            self._set_peers(self._peers - {mac})
            self._refreshed = 0.0
        elif event.name == "MESH-SAE-AUTH-FAILURE" and mac:
            self._sae_failed(mac)
        elif event.name == "MESH-SAE-AUTH-BLOCKED" and mac:
            self._sae_failed(mac, blocked=True)
            await self._rejoin()
            # helped some seconds later, for the other side gives up at about the same time
            stuck = self._stuck.setdefault(mac, _Stuck(time.monotonic()))
            stuck.due = min(stuck.due, time.monotonic() + stuck.wait / 4)
        elif event.name == "MESH-GROUP-REMOVED":
            raise FaultError(
                "supplicant", "group-removed", "wpa_supplicant left the mesh; it rejoins"
            )
        elif event.name == "MESH-GROUP-STARTED":
            # joined once more: the kernel has forgotten its parameters
            if self._nl80211 is not None:
                self._nl80211.set_mesh_parameters(self._ifindex, self._settings.kernel_parameters())
        elif event.name == "CTRL-EVENT-TERMINATING":
            log.info("wpa_supplicant is being ended by somebody")

    def _sae_failed(self, mac: str, *, blocked: bool = False) -> None:
        if mac in self._doubled:
            log.info("authentication (SAE) with %s, which two radios are, failed", mac)
            return
        count = self._sae_failures.get(mac, (0, 0.0))[0] + 1
        self._sae_failures[mac] = (count, time.monotonic())
        if count < _REFUSED_TIMES and not blocked:
            log.info("authentication (SAE) with %s failed; it is tried again", mac)
            return
        self._report(
            "radio",
            "sae-failure",
            f"authentication (SAE) with {mac} failed {count} time{'s' if count > 1 else ''}: it "
            "has another passphrase, is too far away, or two radios have one address; all nodes of "
            "a mesh need the same mesh.passphrase",
            key=f"sae-{mac}",
        )
        self._judge_refusals()

    def _judge_refusals(self) -> None:
        """Say it when nobody wants our passphrase: then it is ours that is wrong."""
        refusing = sorted(
            mac for mac, (count, _) in self._sae_failures.items() if count >= _REFUSED_TIMES
        )
        if self._peers or not refusing:
            self._recovered("sae-refused")
            return
        who = (
            f"{len(refusing)} neighbours refuse" if len(refusing) > 1 else f"{refusing[0]} refuses"
        )
        self._report(
            "radio",
            "passphrase-refused",
            f"this node has no peer, and {who} its passphrase: it was changed on the others while "
            "this node was away, or is wrong (or another radio has the address of this one); put "
            "the present one into thicket.toml on the card (mesh.passphrase), or use "
            "`thicket config set mesh.passphrase`",
            key="sae-refused",
        )

    def _sae_succeeded(self, mac: str) -> None:
        self._forget_failure(mac)
        self._stuck.pop(mac, None)
        self._rejoin_wait = _REJOIN_SECONDS

    def _forget_failure(self, mac: str) -> None:
        self._sae_failures.pop(mac, None)
        self._recovered(f"sae-{mac}")

    def _forget_old_failures(self, now: float) -> None:
        for mac, (_, when) in list(self._sae_failures.items()):
            if now - when > _SAE_FORGET_SECONDS:
                self._forget_failure(mac)
        self._judge_refusals()

    async def _help_the_stuck(self, now: float) -> None:
        """Help neighbours that are heard and do not become peers, each at its own ever slower pace,
        for the fault may be theirs for ever (another passphrase).

        Alone, the mesh is entered anew. With peers, nothing may touch those: what is remembered of
        former authentications is dropped, and one with the neighbour is begun.
        """
        if self.outdated and not self._peers:
            await self._rejoin(at_once=True)
            return
        due = [mac for mac, one in self._stuck.items() if now >= one.due]
        if not due:
            return
        for mac in due:
            self._stuck[mac].helped(now)
        if not self._peers:
            await self._rejoin()
            return
        control = self._supplicant.control
        log.info("no link to %s, which is heard: authentication is begun anew", ", ".join(due))
        await control.command("PMKSA_FLUSH")
        # MESH_PEER_ADD is meant for networks that link to nobody by themselves, and is refused in
        # others. Where the neighbour is in the middle of an authentication it is refused as well.
        await control.command("SET_NETWORK 0 no_auto_peer 1")
        for mac in due:
            try:
                await control.command(f"MESH_PEER_ADD {mac}")
            except ControlError as error:
                log.debug("%s: %s", mac, error)
        await control.command("SET_NETWORK 0 no_auto_peer 0")

    async def _rejoin(self, *, at_once: bool = False) -> None:
        """Leave and enter the mesh, which frees the stations that wpa_supplicant has blocked.

        Only where nothing is lost, that is without peers; otherwise the block ends by itself after
        ``max_inactivity``. Ever rarer, for the other side may have the wrong passphrase for long.
        """
        now = time.monotonic()
        if self._peers or (now < self._next_rejoin and not at_once):
            return
        self._next_rejoin = now + self._rejoin_wait
        self._rejoin_wait = min(self._rejoin_wait * 2, _STUCK_SECONDS_AT_MOST)
        log.info("no peer after failed or outdated authentication: entering the mesh anew")
        await self._enter_anew()

    async def _enter_anew(self) -> None:
        """Have wpa_supplicant leave and enter the mesh. Raises ControlError."""
        self._entering_until = time.monotonic() + _JOIN_SECONDS
        await self._supplicant.control.command("REASSOCIATE")
        if self._joined_with != self._settings.passphrase:
            self._supplicant.reconfigured(self._text(self._settings))
            self._joined_with = self._settings.passphrase
