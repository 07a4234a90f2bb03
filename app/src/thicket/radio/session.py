# SPDX-License-Identifier: Apache-2.0
"""One join of the mesh: wpa_supplicant, the address, and what happens until something ends it."""

from __future__ import annotations

import time
from ipaddress import IPv6Interface
from logging import getLogger
from typing import NamedTuple

from thicket.base.patience import Allowance
from thicket.netlink import rtnl
from thicket.radio import fault
from thicket.radio.channels import channel_frequency, parts
from thicket.radio.choose import MOST_PEERS
from thicket.radio.fault import FaultError, ReconfiguredError
from thicket.radio.inbox import Inbox, Signal, next_item
from thicket.radio.kernel import Kernel
from thicket.radio.nl80211 import Channel, Wiphy
from thicket.radio.paths import PATH_TIMEOUT
from thicket.radio.peers import Deed, Help
from thicket.radio.presence import AskForCountry, Presence, judge_width
from thicket.radio.reports import Report
from thicket.radio.scan import Heard
from thicket.radio.section import SAE, MeshSection
from thicket.radio.stations import Stations
from thicket.radio.supplicant import Supplicant
from thicket.radio.wpa import ControlError, Event, configuration, parse_status, sae_password

log = getLogger(__name__)

#: Seconds for joining; for the check for radars where wpa_supplicant does not say how long it is
#: (EN 301 893, table D.1); and for what follows it.
JOIN_SECONDS = 30.0
_RADAR_CHECK_SECONDS = 60.0
_AFTER_CHECK_SECONDS = 15.0
#: Seconds that a first peer has to appear before the address is taken.
FIRST_PEER_SECONDS = 2.5
#: Seconds for the kernel to confirm the address, and between two looks for that.
_ADDRESS_SECONDS = 6.0
ADDRESS_LOOK_SECONDS = 1.0
#: Seconds between two attempts with an address that another node has.
_DUPLICATE_SECONDS = 60.0
#: Seconds between two questions whether wpa_supplicant is alive. With HANG_SECONDS for the answer,
#: one that hangs is found within 10 s.
WATCHDOG_SECONDS = 4.0
#: Seconds between two looks at neighbours that do not become peers.
CARE_SECONDS = 16.0
#: Seconds from joining to the first look for other meshes on the channel, and from one to the next:
#: alone, where the reason may be found there, and with peers. One costs a frame of each node that
#: hears it; the radio stays on its channel.
SURVEY_FIRST_SECONDS = 10.0
SURVEY_ALONE_SECONDS = 60.0
SURVEY_SECONDS = 600.0
_SURVEY_MOST_SECONDS = 1.0
#: Seconds between two questions to the kernel whether the interface is in the mesh: while it is,
#: and while it is not.
LOOK_SECONDS = 4.0
LOOK_OUTSIDE_SECONDS = 1.0
#: What is due within this share of LOOK_SECONDS is done with what is due now: the node wakes up
#: once for both.
_TOGETHER = 0.125

#: Mesh hops that a frame, and a management element, may take.
_TTL = 31
#: Most peers that wpa_supplicant's configuration takes, for drivers without a limit of their own.
_ANY_PEERS = 255
#: The beginnings of wpa_supplicant's messages that it gave up.
_REFUSALS = ("mesh join error=", "Failed to init mesh", "Could not join mesh")


class Place(NamedTuple):
    """Where a mesh is joined: the sockets to the kernel, the radio, its mesh interface.

    :ivar existed: the interface was there, perhaps with a mesh running on it.
    """

    kernel: Kernel
    wiphy: Wiphy
    name: str
    ifindex: int
    existed: bool


class OwnAddress:
    """The node's address in the mesh.

    :ivar interface: the address with the length of its prefix.
    :ivar asked_peers: there were peers to ask whether the address is in use when it was taken.
    """

    __slots__ = ("asked_peers", "interface")

    def __init__(self, interface: IPv6Interface) -> None:
        self.interface = interface
        self.asked_peers = True


def kernel_parameters(settings: MeshSection) -> dict[str, int]:
    """What wpa_supplicant cannot set: nl80211's mesh parameters, by name."""
    return {
        "ttl": _TTL,
        "element_ttl": _TTL,
        "hwmp_active_path_timeout": PATH_TIMEOUT,
        "hwmp_rootmode": settings.root_mode,
        "gate_announcements": int(settings.gate),
        "connected_to_gate": int(settings.gate),
    }


class Session:
    """What lives and dies with one join.

    :param address: the node's address; whether peers were asked about it is noted there.
    :param supplicant: its process outlives the session.
    :param inbox: what happens.
    :param stations: what is known of the neighbours; it outlives the session.
    :ivar settings: the settings in use; another passphrase is put here while the session goes on.
    :ivar joined_since: when the mesh was joined, None before (seconds, monotonic).
    :ivar joined_with: the passphrase that opens the mesh to others who begin a link.
    :ivar others: the nodes of other meshes on the channel at the last look.
    :ivar superseded: there are other settings; the session ends at the next opportunity.
    """

    def __init__(
        self,
        place: Place,
        settings: MeshSection,
        address: OwnAddress,
        *,
        supplicant: Supplicant,
        inbox: Inbox,
        stations: Stations,
    ) -> None:
        self.settings = settings
        self.joined_since: float | None = None
        self.joined_with = settings.passphrase_in_use
        self.superseded = False
        self.others: list[Heard] = []
        self._place = place
        self._address = address
        self._supplicant = supplicant
        self._inbox = inbox
        self._stations = stations
        self._peers = stations.peers
        self._presence = Presence()
        self._grouped = False
        self._peers.begin()

    @property
    def outdated(self) -> bool:
        """Whether a former passphrase still opens links that others begin."""
        return self.joined_with != self.settings.passphrase_in_use

    async def join(self) -> None:
        """Join the mesh with the interface, and take the address.

        :raises FaultError: that fails.
        :raises ControlError: wpa_supplicant does not answer.
        :raises SupplicantError: wpa_supplicant cannot be run.
        :raises OSError: the kernel refuses.
        """
        kernel, ifindex = self._place.kernel, self._place.ifindex
        self._check_radar()
        text = self._text()
        if await self._supplicant.adopt(self._place.name, ifindex, text):
            log.info("took over wpa_supplicant (process %s)", self._supplicant.pid)
            if self.settings.security == SAE:  # in case a daemon ended amid _help
                await self._supplicant.control.command("SET_NETWORK 0 no_auto_peer 0")
        else:
            if self._place.existed:
                kernel.links.set_up(ifindex, False)  # leaves a mesh that a dead process had joined
            # also tells whether the radio is switched off, which wpa_supplicant does not
            kernel.links.set_up(ifindex, True)
            await self._supplicant.start(self._place.name, ifindex, text)
        await self._wait_for_group()
        kernel.nl80211.set_mesh_parameters(ifindex, kernel_parameters(self.settings))
        self._stations.say([judge_width(kernel.nl80211.width(ifindex), self.settings.width)])
        await self._meet_somebody()
        await self._take_address()
        self.joined_since = time.monotonic()

    async def follow(self) -> None:
        """Follow events while in the mesh. It always ends with an exception, as :meth:`join` does.

        :raises ReconfiguredError: the settings have changed.
        """
        self.refresh()
        watchdog = time.monotonic() + WATCHDOG_SECONDS
        care = time.monotonic() + CARE_SECONDS
        survey = time.monotonic() + SURVEY_FIRST_SECONDS
        look = 0.0
        while True:
            item = await self._next(min(watchdog, care, look, survey))
            together = LOOK_SECONDS * _TOGETHER
            if item is Signal.LOOK or time.monotonic() + together >= look:
                self._check_membership()
                inside = self._presence.inside
                look = time.monotonic() + (LOOK_SECONDS if inside else LOOK_OUTSIDE_SECONDS)
            if isinstance(item, Event):
                await self._mesh_event(item)
            elif item is Signal.ADDRESS:
                await self._take_address()
            if self._peers.macs and not self._address.asked_peers:
                # It was taken without peers, so nobody depends on it yet: ask the present ones.
                self._address.asked_peers = True
                await self._take_address(again=True)
            now = time.monotonic()
            soon = now + together
            if soon >= watchdog:
                await self._supplicant.control.command("PING")
                watchdog = now + WATCHDOG_SECONDS
            if soon >= survey:
                await self._survey()
                survey = now + (SURVEY_SECONDS if self._peers.macs else SURVEY_ALONE_SECONDS)
            if soon >= care:
                await self._supplicant.control.attach()
                care = now + CARE_SECONDS
                self._stations.say(self._peers.forget_old(now))
                await self._do(self._peers.help_the_stuck(now, outdated=self.outdated))

    def refresh(self, *, whole: bool = True) -> None:
        """Look at the stations, see :meth:`Stations.refresh`."""
        self._stations.refresh(
            self._place.kernel,
            self._place.ifindex,
            self.settings,
            self._address.interface.network,
            whole=whole,
        )

    def _text(self) -> str:
        """wpa_supplicant's configuration for the radio in use."""
        most = MOST_PEERS.get(self._place.wiphy.driver, _ANY_PEERS)
        return configuration(self.settings, self._supplicant.control_directory, most)

    # joining

    async def _next(self, deadline: float) -> Event | Signal | None:
        """Wait for what happens next.

        :returns: None when nothing happens until ``deadline`` (monotonic).
        :raises ReconfiguredError: there are other settings.
        :raises FaultError: the interface or wpa_supplicant is gone.
        """
        if self.superseded:
            raise ReconfiguredError
        left = deadline - time.monotonic()
        if left <= 0 and self._inbox.empty():
            return None
        item = await next_item(self._inbox, max(left, 0.001))
        if isinstance(item, Event):
            return item
        if item is Signal.SETTINGS:
            raise ReconfiguredError
        if item is Signal.PASSPHRASE:
            await self._change_passphrase()
        elif item is Signal.RENEW and self._grouped:
            log.info("the mesh is entered anew: only the passphrase of today opens it")
            await self._enter_anew()
        elif item is Signal.EXIT:
            reason = f"wpa_supplicant {self._supplicant.exit_reason()}"
            raise FaultError("supplicant", "supplicant-ended", f"{reason}; it is started again")
        elif item in (Signal.GONE, Signal.RADIO, Signal.DOWN, Signal.LOOK):
            self._check_interface()
        return item

    async def _wait_for_group(self) -> None:
        """Wait until wpa_supplicant has joined.

        :raises FaultError: it does not.
        """
        status = parse_status(await self._supplicant.control.command("STATUS"))
        if status.get("wpa_state") == "COMPLETED":
            self._grouped = True
            return
        seconds = JOIN_SECONDS
        if self._radar_channels():  # a former daemon may have seen the beginning of the check
            seconds += _RADAR_CHECK_SECONDS
        allowance = Allowance(seconds)
        while not self._grouped:
            event = await self._next(allowance.look())
            if event is None and allowance.over:
                reason = self._channel_obstacle() or self._supplicant.last_words()
                raise FaultError(
                    "supplicant",
                    "join-timeout",
                    f"wpa_supplicant did not join the mesh within {seconds:.0f} s{reason}",
                    restart=True,
                )
            if not isinstance(event, Event):
                continue
            if event.name == "MESH-GROUP-STARTED":
                self._grouped = True
            elif event.name == "DFS-CAC-START":
                listens = self._listens_for_radar(event)
                allowance = Allowance(listens + _AFTER_CHECK_SECONDS)
            elif event.name == "DFS-RADAR-DETECTED":
                raise fault.radar(self.settings, 0.0)
            elif f"{event.name} {event.rest}".startswith(_REFUSALS):
                reason = self._channel_obstacle() or self._supplicant.last_words()
                raise FaultError(
                    "radio",
                    "join-refused",
                    f"{self._place.wiphy} could not join the mesh{reason}",
                    restart=True,
                )

    def _radar_channels(self) -> list[Channel]:
        """Those of the mesh's 20 MHz channels on which a node listens for radars first."""
        used = parts(self.settings.channel, self.settings.width)
        known = self._place.wiphy.channels
        found = [known.get(channel_frequency(number)) for number in used]
        return [one for one in found if one is not None and one.radar]

    def _check_radar(self) -> None:
        """Check that no radar was heard in the last half hour.

        wpa_supplicant would choose another channel, on which the node would be alone.

        :raises FaultError: one was.
        """
        heard = [one.radar_heard for one in self._radar_channels() if one.radar_heard is not None]
        if heard:
            raise fault.radar(self.settings, min(heard))

    def _listens_for_radar(self, event: Event) -> float:
        """Tell that the node listens for radars.

        :returns: for how many seconds.
        """
        told = (event.field("cac_time") or "").rstrip("s")
        seconds = float(told) if told.isdecimal() else _RADAR_CHECK_SECONDS
        message = (
            f"channel {self.settings.channel} is also used by radars: the node listens for them "
            f"for {seconds:.0f} s before it may join the mesh (DFS)"
        )
        self._stations.say([Report("radar-check", "radar-check", message)])
        return seconds

    def _channel_obstacle(self) -> str:
        """Why the regulatory domain forbids the channel, to be appended to a message."""
        settings = self.settings
        try:
            wiphys = self._place.kernel.nl80211.wiphys()
        except OSError:
            return ""
        for wiphy in wiphys:
            if wiphy.index == self._place.wiphy.index:
                channel = wiphy.channels.get(settings.mhz)
                reason = channel.obstacle if channel is not None else "does not exist"
                if reason:
                    return (
                        f": {settings.mhz} MHz {reason} in regulatory domain "
                        f"{settings.country!r}; set mesh.country, or another mesh.channel"
                    )
        if self._radar_channels():
            return (
                f": on {settings.mhz} MHz a node listens for radars first (DFS), which this "
                "adapter's driver may be unable to do; set another mesh.channel, such as 36 to 48"
            )
        return ""

    async def _meet_somebody(self) -> None:
        """Give a first peer a moment to appear.

        The kernel's question whether anybody has our address reaches only peers, so it is worth
        nothing without one.

        :raises FaultError: the session has to end.
        """
        self.refresh()
        deadline = time.monotonic() + FIRST_PEER_SECONDS
        while not self._peers.macs:
            item = await self._next(deadline)
            if item is None:
                return
            if isinstance(item, Event):
                await self._mesh_event(item)

    async def _take_address(self, again: bool = False) -> None:
        """Put the address on the interface, and wait until the kernel has made sure that no other
        node uses it (RFC 4862, 5.4).

        :param again: do it also when the address is there.
        :raises FaultError: another node uses it, or the kernel does not confirm it.
        """
        links, ifindex = self._place.kernel.links, self._place.ifindex
        address = self._address.interface
        if again:
            links.remove_all(ifindex)
        asked_peers = bool(self._peers.macs)
        flags = links.keep_only(ifindex, address)
        if flags is None:
            links.add_address(ifindex, address)
        elif not flags & rtnl.IFA_F_TENTATIVE:
            return  # by a former daemon, or by us
        allowance = Allowance(_ADDRESS_SECONDS)
        wanted = str(address.ip)
        while True:
            present = {one["address"]: one["flags"] for one in links.addresses(ifindex)}
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
                self._address.asked_peers = asked_peers
                return
            if allowance.over:
                raise FaultError(
                    "radio",
                    "address-tentative",
                    f"the kernel has not confirmed the address {wanted} within "
                    f"{_ADDRESS_SECONDS:.0f} s",
                )
            look = min(allowance.look(), time.monotonic() + ADDRESS_LOOK_SECONDS)
            item = await self._next(look)
            if isinstance(item, Event):
                await self._mesh_event(item)

    # in the mesh

    def _check_interface(self) -> None:
        """Check that the mesh interface is still there and up.

        :raises FaultError: it is not.
        """
        links, ifindex = self._place.kernel.links, self._place.ifindex
        flags = links.flags(ifindex)
        if flags is None:
            raise fault.removed(self._place.wiphy)
        if not flags & rtnl.IFF_UP and self._grouped:
            # By hand, or by rfkill: then taking it up fails with ERFKILL.
            links.set_up(ifindex, True)
            raise FaultError(
                "radio",
                "interface-down",
                f"{self._place.name} was taken down by somebody; it is set up again",
            )

    def _check_membership(self) -> None:
        """Check that the kernel is in the mesh.

        It can leave without telling wpa_supplicant: by somebody's hand, or because the regulatory
        domain has changed.

        :raises FaultError: it has left.
        """
        if not self._grouped:
            return
        kernel, name = self._place.kernel.nl80211, self._place.name
        action = self._presence.judge_country(kernel.country(), self.settings.country)
        if isinstance(action, AskForCountry):
            log.info(
                "the kernel follows the rules of %s; asking for %s",
                action.instead_of,
                action.country,
            )
            kernel.ask_for_country(action.country)
        else:
            self._stations.say([action])
        now, wanted = time.monotonic(), self.settings.mhz
        frequency = kernel.frequency(self._place.ifindex)
        if not self._presence.left(frequency, wanted, now):
            return
        if frequency is not None:
            what = f"{name} is on {frequency} MHz instead of {wanted} MHz by somebody's hand"
        else:
            what = f"{name} has left the mesh, by somebody's hand or by the kernel's decision"
        raise FaultError(
            "radio", "mesh-left", f"{what}{self._channel_obstacle()}; it rejoins", restart=True
        )

    async def _survey(self) -> None:
        """Look for other meshes on the channel, among them neighbours with another security."""
        from thicket.radio import scan  # not needed to join

        kernel, ifindex = self._place.kernel, self._place.ifindex
        try:
            found = await scan.scan(kernel, ifindex, [self.settings.mhz], _SURVEY_MOST_SECONDS)
        except scan.ScanError as error:
            log.debug("no look for other meshes: %s", error)
            return
        self.others = scan.others(found, self.settings)
        self._stations.say([scan.judge(self.others, self.settings)])

    async def _mesh_event(self, event: Event) -> None:
        """Handle an event of wpa_supplicant while in the mesh.

        :raises FaultError: it ends the session.
        """
        mac = event.address
        say = self._stations.say
        if event.name == "MESH-PEER-CONNECTED" and mac:
            self._stations.outdate()
            if self.settings.security == SAE:
                self.refresh()  # the kernel knows whether it protects its frames
            else:
                say(self._peers.up(mac))
        elif event.name == "MESH-PEER-DISCONNECTED" and mac:
            say(self._peers.down(mac))
            self._stations.outdate()
        elif event.name == "MESH-SAE-AUTH-FAILURE" and mac:
            say(self._peers.failed(mac, time.monotonic()))
        elif event.name == "MESH-SAE-AUTH-BLOCKED" and mac:
            say(self._peers.failed(mac, time.monotonic(), blocked=True))
            await self._do(self._peers.rejoin(time.monotonic()))
            self._peers.help_soon(mac, time.monotonic())
        elif event.name == "MESH-GROUP-REMOVED":
            raise FaultError(
                "supplicant", "group-removed", "wpa_supplicant left the mesh; it rejoins"
            )
        elif event.name == "MESH-GROUP-STARTED":
            # joined once more: the kernel has forgotten its parameters
            self._place.kernel.nl80211.set_mesh_parameters(
                self._place.ifindex, kernel_parameters(self.settings)
            )
        elif event.name == "DFS-RADAR-DETECTED" and self._radar_channels():
            raise fault.radar(self.settings, 0.0)
        elif event.name == "CTRL-EVENT-TERMINATING":
            log.info("wpa_supplicant is being ended by somebody")

    async def _do(self, deed: Deed | None) -> None:
        """Do what the judge of the peers wants.

        :raises ControlError: wpa_supplicant does not do it.
        """
        if isinstance(deed, Help):
            await self._help(deed.macs)
        elif deed is not None:
            log.info("no peer after failed or outdated authentication: entering the mesh anew")
            await self._enter_anew()

    async def _help(self, macs: tuple[str, ...]) -> None:
        """Drop what is remembered of former authentications, and begin one with each neighbour.

        :raises ControlError: wpa_supplicant does not do it.
        """
        control = self._supplicant.control
        log.info("no link to %s, which is heard: authentication is begun anew", ", ".join(macs))
        await control.command("PMKSA_FLUSH")
        # MESH_PEER_ADD is for networks that make no links by themselves, and is refused in others.
        # It is also refused while an authentication with the neighbour is under way.
        await control.command("SET_NETWORK 0 no_auto_peer 1")
        for mac in macs:
            try:
                await control.command(f"MESH_PEER_ADD {mac}")
            except ControlError as error:
                log.debug("%s: %s", mac, error)
        await control.command("SET_NETWORK 0 no_auto_peer 0")

    async def _enter_anew(self) -> None:
        """Have wpa_supplicant leave and enter the mesh.

        :raises ControlError: it does not.
        """
        self._presence.entering(time.monotonic())
        await self._supplicant.control.command("REASSOCIATE")
        if self.outdated:
            self._supplicant.reconfigured(self._text())
            self.joined_with = self.settings.passphrase_in_use

    async def _change_passphrase(self) -> None:
        """Give wpa_supplicant another passphrase for new links; present links stay.

        It uses the network's passphrase whenever *it* begins an authentication. Where the *other*
        side begins, it uses the passphrase that it had when it joined (wpas_mesh_init_rsn copies
        it). So both passphrases open the mesh until the mesh is entered anew: by
        :meth:`Mesh.renew`, or because nothing is lost by it.

        :raises ControlError: wpa_supplicant does not take it.
        """
        control = self._supplicant.control
        await control.command(f"SET_NETWORK 0 sae_password {sae_password(self.settings)}")
        # nobody who knew the old one may come back by what is remembered of it
        await control.command("PMKSA_FLUSH")
        # The file stays as it is: the next daemon does not take over a process that still lets
        # nodes in with the old one, but starts its own.
        self._stations.say(self._peers.passphrase_changed())
        log.info("the passphrase has changed: %d links stay", len(self._peers.macs))
