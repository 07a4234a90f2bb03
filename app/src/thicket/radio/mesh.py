# SPDX-License-Identifier: Apache-2.0
"""The node's place in the mesh: finds a radio, joins, watches, reports, and recovers.

:class:`Mesh` has one supervising coroutine, which runs one :class:`Session` after the other: choose
a radio, make the mesh interface, join, and follow events until something ends the session. The end
is a :class:`FaultError`: a message for a person, and the time to wait. The next session begins
after that time, or earlier when the radios or the settings change.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Interface
from logging import getLogger
from typing import TYPE_CHECKING, Any

from thicket.base.pace import Backoff
from thicket.radio import fault
from thicket.radio.choose import radio_names
from thicket.radio.events import Joined, Left
from thicket.radio.fault import ABSENT, JOINED, STARTING, FaultError, ReconfiguredError
from thicket.radio.inbox import Inbox, Signal, next_item
from thicket.radio.interface import choose, prepare
from thicket.radio.kernel import Kernel
from thicket.radio.nl80211 import Wiphy
from thicket.radio.reports import Reports
from thicket.radio.section import SAE, MeshSection
from thicket.radio.session import OwnAddress, Place, Session
from thicket.radio.stations import Stations
from thicket.radio.supplicant import Supplicant, SupplicantError
from thicket.radio.wpa import ControlError, configuration

if TYPE_CHECKING:
    from thicket.base.events import Listener
    from thicket.radio.events import RadioEvent

log = getLogger(__name__)

#: Pauses in seconds after failures in a row. A session that lasted SETTLED_SECONDS ends the row.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 60.0)
SETTLED_SECONDS = 60.0


def protection(settings: MeshSection) -> str:
    """What protects the frames of a mesh, in words."""
    if settings.security == SAE:
        return "encrypted (SAE, protected management frames)"
    return "open: anybody may enter, nothing is encrypted"


class Mesh:
    """The radio part of a node.

    :param settings: what the mesh is to be.
    :param address: the node's address in the mesh.
    :param listener: is told what happens.
    :param interface: name of the mesh interface.
    :param directory: where wpa_supplicant's files are.
    :param program: wpa_supplicant.
    :ivar state: absent, unsuitable, starting, joined or failed.
    :ivar ifindex: index of the mesh interface, None while there is none.
    :raises ValueError: the settings cannot be used; the message is for a person.
    """

    def __init__(
        self,
        settings: MeshSection,
        address: IPv6Interface,
        listener: Listener[RadioEvent] | None = None,
        *,
        interface: str = "mesh0",
        directory: str = "/run/thicket",
        program: str = "wpa_supplicant",
    ) -> None:
        configuration(settings, directory)
        self.settings = settings
        self.interface = interface
        self.state = STARTING
        self.ifindex: int | None = None
        self._address = OwnAddress(address)
        self._inbox: Inbox = asyncio.Queue()
        self._supplicant = Supplicant(
            directory,
            self._inbox.put_nowait,
            lambda: self._inbox.put_nowait(Signal.EXIT),
            program,
        )
        self._reports = Reports(listener)
        self._stations = Stations(self._reports)
        self._backoff = Backoff(*PAUSES, settled=SETTLED_SECONDS)
        self._kernel: Kernel | None = None
        #: The radio in use. It and the mesh interface on it stay when a session ends.
        self._wiphy: Wiphy | None = None
        self._session: Session | None = None

    # what others ask

    @property
    def joined(self) -> bool:
        """Whether the node is in the mesh and its address can be used."""
        return self.state == JOINED

    @property
    def announced(self) -> Callable[[str], str | None]:
        """Returns a node's address for its link-local one, see :class:`Stations`."""
        return self._stations.announced

    @announced.setter
    def announced(self, find: Callable[[str], str | None]) -> None:
        self._stations.announced = find

    def problems(self) -> list[dict[str, Any]]:
        """What is wrong at present: part, code, message, since (seconds of CLOCK_BOOTTIME)."""
        return self._reports.all()

    def snapshot(self) -> dict[str, Any]:
        """The "radio", "peers" and "paths" parts of the node's status."""
        wiphy = self._wiphy
        return {
            "radio": {
                "state": self.state,
                "phy": wiphy.name if wiphy else None,
                "driver": wiphy.driver if wiphy else None,
                "interface": self.interface if self.ifindex is not None else None,
                "mac": wiphy.mac if wiphy else None,
                "port": wiphy.port if wiphy else None,
                "mesh_id": self.settings.id,
                "frequency": self.settings.mhz,
                "width": self.settings.width,
                "country": self.settings.country,
                "others": [
                    {key: one[key] for key in ("mac", "name", "security", "signal_dbm")}
                    for one in (self._session.others if self._session else ())
                ],
                "security": self.settings.security,
                "protection": protection(self.settings),
                "supplicant": {
                    "pid": self._supplicant.pid,
                    "restarts": self._supplicant.restarts,
                    "adopted": self._supplicant.adopted,
                },
            },
            **self._stations.shown(),
        }

    def refused(self) -> dict[str, int]:
        """The neighbours with which authentication fails, and how often in a row it did."""
        return self._stations.peers.refused()

    def peers(self) -> set[str]:
        """The MAC addresses of the peers."""
        return set(self._stations.peers.macs)

    def links(self) -> list[tuple[IPv6Address | None, float]]:
        """The peers: address where it is known, seconds since the last frame that is known of."""
        return self._stations.links()

    async def refresh(self, *, whole: bool = True) -> None:
        """Ask the kernel for the stations. Never raises.

        :param whole: ask for all paths and neighbours as well, not only where something depends on
            them.
        """
        if self._kernel is not None and self.ifindex is not None:
            network = self._address.interface.network
            self._stations.refresh(self._kernel, self.ifindex, self.settings, network, whole=whole)

    async def listen(self, seconds: float) -> None:
        """Ask the kernel for the peers of which no frame is known from the last ``seconds``.

        This is the cheap look, for those who look all the time. Never raises.
        """
        if self._kernel is not None and self.ifindex is not None:
            network = self._address.interface.network
            self._stations.listen(self._kernel, self.ifindex, self.settings, network, seconds)

    async def scan(self) -> list[dict[str, Any]]:
        """Listen on all channels for some seconds; the mesh stays.

        :returns: who was heard, see :class:`thicket.radio.scan.Heard`.
        :raises ScanError: that cannot be done, or not now.
        """
        from thicket.radio.scan import ScanError, scan, usable  # rare

        kernel, wiphy, ifindex = self._kernel, self._wiphy, self.ifindex
        if kernel is None or wiphy is None or ifindex is None or not self.joined:
            raise ScanError("not-joined", "the node is not in the mesh, so its radio cannot scan")
        peers = self.peers()
        return [
            {**one, "peer": one["mac"] in peers}
            for one in await scan(kernel, ifindex, usable(wiphy))
        ]

    @property
    def outdated(self) -> bool:
        """Whether a former passphrase still opens links that others begin, until :meth:`renew`."""
        return (
            self.joined
            and self._session is not None
            and self._session.joined_with != self.settings.passphrase_in_use
        )

    # what others want

    def apply(self, settings: MeshSection, address: IPv6Interface | None = None) -> None:
        """Change the settings, and the address if one is given; :meth:`run` carries it out.

        Another passphrase is used for new links only; present links stay.

        :raises ValueError: the settings cannot be used; the old ones stay.
        """
        configuration(settings, self._supplicant.directory)
        former, self.settings = self.settings, settings
        stays = address in (None, self._address.interface)
        if stays and settings.only_passphrases_differ(former):
            if settings.passphrase_in_use == former.passphrase_in_use:
                return
            if self.joined and self._session is not None and self._stations.peers.macs:
                self._session.settings = settings
                self._inbox.put_nowait(Signal.PASSPHRASE)
                return
        if address is not None and not stays:
            self._address = OwnAddress(address)
        if self._session is not None:
            self._session.superseded = True
        self._inbox.put_nowait(Signal.SETTINGS)

    def set_doubled(self, macs: set[str]) -> None:
        """Tell which MAC addresses two radios have; passphrases do not explain their failures."""
        self._stations.say(self._stations.peers.share_address(macs))

    def renew(self) -> None:
        """Leave and enter the mesh: every link is made anew, with the present passphrase."""
        if self.joined:
            self._inbox.put_nowait(Signal.RENEW)

    async def leave(self) -> None:
        """End wpa_supplicant and remove the interface. Not while :meth:`run` runs."""
        await self._supplicant.stop()
        kernel = self._open()
        try:
            if self.ifindex is not None:
                kernel.nl80211.remove_interface(self.ifindex)
        except OSError as error:
            log.debug("cannot remove %s: %s", self.interface, error)
        finally:
            self._out(STARTING)
            self._forget_interface()
            self._close()

    # the supervisor

    async def run(self) -> None:
        """Keep the node in the mesh until cancelled.

        Cancellation leaves wpa_supplicant and the interface as they are: the next daemon takes them
        over.
        """
        try:
            while True:
                radios = radio_names()
                wait = await self._attempt()
                if wait > 0:
                    await self._rest(wait, radios)
        finally:
            self._supplicant.release()
            self._close()

    async def _attempt(self) -> float:
        """Run one session.

        :returns: the seconds to wait before the next one.
        """
        try:
            await self._join_and_follow(self._open())
        except ReconfiguredError:
            self._out(STARTING)
            self._backoff.reset()
            return 0.0
        except FaultError as error:
            if error.state == ABSENT:
                self._forget_interface()
            if error.restart:
                await self._supplicant.stop()
            return self._failed(error)
        except ControlError as error:
            await self._supplicant.stop()
            return self._failed(
                FaultError("supplicant", "supplicant-hangs", f"{error}; it is started again")
            )
        except SupplicantError as error:
            return self._failed(FaultError("supplicant", f"supplicant-{error.code}", str(error)))
        except OSError as error:
            if error.errno == errno.ERFKILL:
                return self._failed(fault.switched_off(self._wiphy))
            if error.errno == errno.ENODEV:  # asked of what has just been pulled out
                gone = fault.removed(self._wiphy)
                self._forget_interface()
                return self._failed(gone)
            self._close()  # the next session begins with fresh sockets
            return self._failed(
                FaultError("radio", "system", f"the kernel refused: {error.strerror}")
            )
        return 0.0

    async def _join_and_follow(self, kernel: Kernel) -> None:
        """Join, and follow events. It always ends with an exception: what ended the session.

        :raises FaultError: and what else :meth:`_attempt` handles.
        """
        while not self._inbox.empty():
            self._inbox.get_nowait()
        try:
            self._wiphy = wiphy = choose(kernel.nl80211, self.settings, self.interface)
        except FaultError:
            await self._supplicant.stop()
            self._forget_interface()
            raise
        self.state = STARTING
        self.ifindex, existed = prepare(kernel, wiphy, self.interface)
        kernel.ifindex = self.ifindex
        self._session = session = Session(
            Place(kernel, wiphy, self.interface, self.ifindex, existed),
            self.settings,
            self._address,
            supplicant=self._supplicant,
            inbox=self._inbox,
            stations=self._stations,
        )
        await session.join()
        self._joined()
        await session.follow()

    def _joined(self) -> None:
        self.state = JOINED
        self._reports.joined()
        address = self._address.interface
        log.info(
            "joined mesh %r at %d MHz as %s on %s",
            self.settings.id,
            self.settings.mhz,
            address.ip,
            self._wiphy,
        )
        if self.ifindex is not None:
            self._reports.tell(
                Joined(self.interface, self.ifindex, str(address), self._supplicant.adopted)
            )

    def _failed(self, error: FaultError) -> float:
        """A session ended by a fault.

        :returns: the seconds to wait before the next one.
        """
        message = str(error)
        if error.wait is None:
            since = self._session.joined_since if self._session is not None else None
            wait = self._backoff.failed(0.0 if since is None else time.monotonic() - since)
            if self._backoff.exhausted:
                message += (
                    f" ({self._backoff.failures} failures in a row; tried again every "
                    f"{PAUSES[-1]:.0f} s)"
                )
        else:
            wait = error.wait
            self._backoff.reset()
        self._out(error.state)
        self._reports.ended(error.part, error.code, message)
        return wait

    def _out(self, state: str) -> None:
        """A session has ended: there are no peers any more."""
        was_joined = self.state == JOINED
        self.state = state
        self._session = None
        self._stations.clear()
        if was_joined:
            self._reports.tell(Left(self.interface))

    async def _rest(self, seconds: float, radios: list[str]) -> None:
        """Wait before the next attempt. A new radio or new settings end the wait at once.

        :param radios: those that were there when the last attempt began.
        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            item = await next_item(self._inbox, left)
            # Our own attempts cause such events too: only a real change counts.
            if item is Signal.SETTINGS or (item is Signal.RADIO and radio_names() != radios):
                self._backoff.reset()
                return

    def _open(self) -> Kernel:
        """The sockets to the kernel.

        :raises FaultError: the kernel has no nl80211.
        :raises OSError: they cannot be opened.
        """
        if self._kernel is None:
            self._kernel = Kernel(self._inbox)
            self._kernel.ifindex = self.ifindex
        return self._kernel

    def _close(self) -> None:
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None

    def _forget_interface(self) -> None:
        self.ifindex = None
        self._wiphy = None
