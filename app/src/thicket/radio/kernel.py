# SPDX-License-Identifier: Apache-2.0
"""The sockets to the kernel, opened and closed together."""

from __future__ import annotations

import asyncio
import errno

from thicket.netlink import rtnl
from thicket.netlink.messages import NETLINK_GENERIC, NETLINK_ROUTE, Events, NetlinkError
from thicket.radio import fault, nl80211
from thicket.radio.inbox import Inbox, Signal


class Kernel:
    """What the kernel is asked, and what it tells by itself, which goes into the inbox.

    :ivar ifindex: the interface whose links and addresses are told of.
    :ivar scanned: set when a scan has ended.
    :raises FaultError: the kernel has no nl80211.
    :raises OSError: it refuses a socket.
    """

    def __init__(self, inbox: Inbox) -> None:
        self.ifindex: int | None = None
        self.scanned = asyncio.Event()
        self._inbox = inbox
        self._events: list[Events] = []
        self.links = rtnl.Links()
        try:
            self.nl80211 = nl80211.Nl80211()
        except OSError as error:
            self.links.close()
            if isinstance(error, NetlinkError) and error.errno == errno.ENOENT:
                raise fault.no_nl80211() from None
            raise
        try:
            self._listen(NETLINK_ROUTE, [rtnl.GROUP_LINK, rtnl.GROUP_IPV6_ADDRESS])
            known = self.nl80211.groups
            wanted = (nl80211.CONFIG_GROUP, nl80211.SCAN_GROUP)
            groups = [known[name] for name in wanted if name in known]
            if groups:
                self._listen(NETLINK_GENERIC, groups)
        except OSError:
            self.close()
            raise

    def _listen(self, protocol: int, groups: list[int]) -> None:
        if protocol == NETLINK_ROUTE:
            heard, lost = self._route_event, Signal.LOOK
        else:
            heard, lost = self._config_event, Signal.RADIO
        self._events.append(Events(protocol, groups, heard, lambda: self._inbox.put_nowait(lost)))

    def close(self) -> None:
        for events in self._events:
            events.close()
        self.nl80211.close()
        self.links.close()

    def _config_event(self, kind: int, message: bytes) -> None:
        # struct genlmsghdr begins behind the netlink header with the command
        if len(message) > 16 and message[16] in (
            nl80211.CMD_NEW_WIPHY,
            nl80211.CMD_DEL_WIPHY,
            nl80211.CMD_DEL_INTERFACE,
        ):
            self._inbox.put_nowait(Signal.RADIO)
        elif len(message) > 16 and message[16] in (
            nl80211.CMD_NEW_SCAN_RESULTS,
            nl80211.CMD_SCAN_ABORTED,
        ):
            self.scanned.set()

    def _route_event(self, kind: int, message: bytes) -> None:
        signal = self._meaning(kind, message)
        if signal is not None:
            self._inbox.put_nowait(signal)

    def _meaning(self, kind: int, message: bytes) -> Signal | None:
        """What a message of rtnetlink tells of the interface."""
        if kind in (rtnl.RTM_NEWLINK, rtnl.RTM_DELLINK):
            event = rtnl.link_event(message)
            if event is None or event[0] != self.ifindex:
                return None
            if kind == rtnl.RTM_DELLINK:
                return Signal.GONE
            if not event[1] & rtnl.IFF_UP:
                return Signal.DOWN
            # without a carrier the kernel has left the mesh
            return None if event[1] & rtnl.IFF_RUNNING else Signal.LOOK
        if kind in (rtnl.RTM_NEWADDR, rtnl.RTM_DELADDR) and self.ifindex is not None:
            return Signal.ADDRESS if rtnl.address_event(message) == self.ifindex else None
        return None
