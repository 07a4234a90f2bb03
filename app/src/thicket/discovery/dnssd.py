# SPDX-License-Identifier: Apache-2.0
"""DNS-SD (RFC 6762, RFC 6763) on the mesh: the node by name, for laptops and for other nodes.

The node answers to ``n-<identity>.local`` and publishes one service, ``_thicket._tcp``, so that
``ssh root@n-....local`` and ``avahi-browse`` work from any computer in the mesh. The services of
other nodes are a second source of addresses beside the beacons.

python-zeroconf does the work. It is started some time after the node has joined, as nobody waits
for it. Multicast DNS proves nothing: an address found is only a hint, of which a few are tried at a
time, and the cluster asks for a certificate. A :class:`Gate` stands between the socket and
zeroconf, whose cache keeps everything it gets: answers of other services and floods do not pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Network
from logging import CRITICAL, getLogger
from time import monotonic
from typing import Any

from thicket.base.errors import ThicketError
from thicket.base.imports import stand_in
from thicket.base.pace import Backoff, Bucket, uniform
from thicket.base.problems import Problems

log = getLogger(__name__)

SERVICE = "_thicket._tcp.local."
#: The service's name as a packet has it (RFC 1035 3.1), in small letters; pointers begin elsewhere.
_LABEL = b"\x08_thicket"

#: Seconds after joining before the node speaks, so that a mesh that comes up has quiet.
START = (15.0, 30.0)
#: Seconds between two looks at the interface and the cache.
LOOK = 2.0
#: Pauses in seconds before another attempt; the last one repeats.
PAUSES = (5.0, 30.0, 120.0)
#: Longest packet: what fits into one frame (RFC 6762 17).
MOST_BYTES = 1452
#: Records that zeroconf's cache may hold before it is thrown away; a node has five.
MOST_RECORDS = 4096
#: Published nodes whose addresses are not known yet.
WAITING = 256
#: Milliseconds to find the addresses of one.
ASK_MS = 3000
#: Hints that are tried at the same time. Attempts to connect take turns with those to nodes that
#: were heard, and must not crowd them out.
TRIALS = 4
#: Seconds that a hint is tried.
TRIAL = 60.0


class NotServedError(ThicketError):
    """The node cannot be published, for example because another node has its name."""


class Gate(asyncio.DatagramProtocol):
    """Passes packets on to zeroconf's own protocol, as far as they are meant for it."""

    #: Packets and bytes: per second on average, and at once.
    PACKETS = (40.0, 160.0)
    BYTES = (16 * 1024.0, 96 * 1024.0)

    def __init__(self, inner: asyncio.DatagramProtocol, dropped: dict[str, int]) -> None:
        self.inner = inner
        self.dropped = dropped
        self._packets = Bucket(*self.PACKETS)
        self._bytes = Bucket(*self.BYTES)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        now = monotonic()
        # 12 bytes of header; the first bit of the third tells an answer from a question
        if not 12 <= len(data) <= MOST_BYTES:
            self.dropped["length"] += 1
        elif data[2] & 0x80 and _LABEL not in data.lower():
            self.dropped["other"] += 1
        elif not (self._packets.take(now) and self._bytes.ready(now)):
            self.dropped["rate"] += 1
        else:
            self._bytes.tokens -= len(data)
            try:
                self.inner.datagram_received(data, addr)
            except Exception as e:
                # the sender causes the parser's faults; they are not worth a traceback
                self.dropped["fault"] += 1
                log.debug("a packet of %s: %s: %s", addr[0], type(e).__name__, e)

    def connection_lost(self, exc: Exception | None) -> None:
        self.inner.connection_lost(exc)


class Hints:
    """Addresses to try: a bounded number at a time, each again after a while."""

    def __init__(self, prefix: IPv6Network, own: IPv6Address) -> None:
        self.prefix = prefix
        self.own = own
        self._trials: dict[IPv6Address, float] = {}

    def fits(self, address: IPv6Address, node: str, expected: str) -> bool:
        """Whether the node ``node``, said to be at ``address``, can be one of our cluster.

        :param expected: the name of a node of our cluster at this address.
        """
        from thicket.distribution.handshake import key_of  # the cluster's part

        return address != self.own and address in self.prefix and key_of(node) == expected

    def take(self, address: IPv6Address, now: float) -> bool:
        """Whether to try ``address`` now; False while it, or enough others, are being tried."""
        self._trials = {a: end for a, end in self._trials.items() if end > now}
        if address in self._trials or len(self._trials) >= TRIALS:
            return False
        self._trials[address] = now + TRIAL
        return True

    def settled(self, address: IPv6Address) -> None:
        """The node at ``address`` became known in another way."""
        self._trials.pop(address, None)


class Told:
    """What the node publishes about itself.

    :param properties: the TXT record; it holds nothing secret.
    """

    def __init__(
        self, hostname: str, address: IPv6Address, port: int, properties: dict[str, str]
    ) -> None:
        self.hostname = hostname
        self.address = address
        self.port = port
        self.properties = properties


class DnsSd:
    """Publishes the node and looks for others on one interface while :meth:`run` runs.

    :param name_of: returns the cluster's name of a node at an address.
    :param known: whether the node at an address is known already.
    :param on_hint: called with an address to try.
    """

    def __init__(
        self,
        told: Told,
        prefix: IPv6Network,
        interface: str,
        problems: Problems,
        *,
        name_of: Callable[[IPv6Address], str],
        known: Callable[[IPv6Address], bool],
        on_hint: Callable[[IPv6Address], None],
    ) -> None:
        self.told = told
        self.interface = interface
        self.problems = problems
        self.name_of = name_of
        self.known = known
        self.on_hint = on_hint
        self.hints = Hints(prefix, told.address)
        self.dropped: dict[str, int] = dict.fromkeys(("length", "other", "rate", "fault"), 0)
        self.state = "waiting"
        self.hinted = 0
        #: Names that others publish, at most as many as zeroconf's cache holds.
        self.seen: set[str] = set()
        self._names: asyncio.Queue[str] = asyncio.Queue(WAITING)
        #: Names whose hints found no place yet.
        self._later: set[str] = set()
        self._zeroconf: Any = None

    def snapshot(self) -> dict[str, Any]:
        """Return the ``dns_sd`` part of the status document."""
        return {
            "state": self.state,
            "services": len(self.seen),
            "hints": self.hinted,
            "dropped": {reason: n for reason, n in self.dropped.items() if n},
        }

    async def run(self) -> None:
        """Publish and look until cancelled. Failures of the interface are retried."""
        await asyncio.sleep(uniform(*START))
        backoff = Backoff(*PAUSES)
        while True:
            began = monotonic()
            pause = LOOK
            try:
                why = await self._serve()
                self.problems.clear("dns-sd", "not-served")
                if monotonic() - began < PAUSES[-1]:
                    pause = backoff.failed()
                else:
                    backoff.reset()
            except (NotServedError, OSError, ImportError) as e:
                pause = backoff.failed()
                why = str(e) or type(e).__name__
                message = f"cannot publish the node on {self.interface}: {why}; trying again"
                self.problems.report("dns-sd", "not-served", message, "warning")
            self.state = "waiting"
            log.info("DNS-SD on %s: %s", self.interface, why)
            await asyncio.sleep(pause)

    async def _serve(self) -> str:
        """Serve until the interface is gone or new, and return why it ended.

        :raises OSError, NotServedError: the node cannot be published.
        :raises ImportError: zeroconf is not installed.
        """
        try:
            index = socket.if_nametoindex(self.interface)
        except OSError:
            return "there is no such interface (yet)"
        # a late import, as it is slow: one of zeroconf's libraries starts ldconfig, gcc and ld to
        # ask where the C library is. On a node the answer is None, and means the one in use.
        with stand_in("ctypes.util", {"find_library": lambda name: None}):
            from zeroconf import IPVersion
            from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

        getLogger("zeroconf").setLevel(CRITICAL)  # it logs each malformed packet
        zeroconf = AsyncZeroconf(interfaces=[index], ip_version=IPVersion.V6Only)
        try:
            self._zeroconf = zeroconf.zeroconf
            await zeroconf.zeroconf.async_wait_for_start()
            self._install_gates()
            await zeroconf.async_register_service(self._info(), allow_name_change=False)
            browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[self._found])
            self.state = "published"
            self.problems.clear("dns-sd", "not-served")
            log.info("published as %s.local on %s", self.told.hostname, self.interface)
            asking = asyncio.create_task(self._ask_all())
            try:
                return await self._watch(index)
            finally:
                asking.cancel()
                await browser.async_cancel()
        except _zeroconf_errors() as e:
            raise NotServedError(f"{type(e).__name__}: {e}".rstrip(": ")) from e
        finally:
            self.seen.clear()
            self._later.clear()
            self._zeroconf = None
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(2.0):
                    await zeroconf.async_close()

    def _install_gates(self) -> None:
        for reader in self._zeroconf.engine.readers:
            transport = reader.transport
            transport.set_protocol(Gate(transport.get_protocol(), self.dropped))

    def _info(self) -> Any:
        from zeroconf import ServiceInfo

        told = self.told
        return ServiceInfo(
            SERVICE,
            f"{told.hostname}.{SERVICE}",
            addresses=[told.address.packed],
            port=told.port,
            properties=told.properties,
            server=f"{told.hostname}.local.",
        )

    async def _watch(self, index: int) -> str:
        again = monotonic() + TRIAL
        while True:
            await asyncio.sleep(LOOK)
            if monotonic() > again:
                again = monotonic() + TRIAL
                for name in self._later:
                    self._want(name)
                self._later.clear()
            try:
                if socket.if_nametoindex(self.interface) != index:
                    return "the interface was made anew"
            except OSError:
                return "the interface has gone"
            records = sum(map(len, self._zeroconf.cache.cache.values()))
            if records > MOST_RECORDS:
                return f"somebody publishes too much ({records} records); starting afresh"
            if self._zeroconf.done:
                return "it was closed"

    # -- what others publish

    def _found(self, zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        from zeroconf import ServiceStateChange

        if state_change is ServiceStateChange.Removed:
            self.seen.discard(name)
            return
        if len(self.seen) < MOST_RECORDS:
            self.seen.add(name)
        if name != f"{self.told.hostname}.{SERVICE}":
            self._want(name)

    def _want(self, name: str) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self._names.put_nowait(name)

    async def _ask_all(self) -> None:
        while True:
            await self._ask(await self._names.get())

    async def _ask(self, name: str) -> None:
        """Find the addresses of a published node, and try those that are not known."""
        from zeroconf import IPVersion
        from zeroconf.asyncio import AsyncServiceInfo

        try:
            info = AsyncServiceInfo(SERVICE, name)
            if not await info.async_request(self._zeroconf, ASK_MS):
                return
            node = (info.properties.get(b"node") or b"").decode("utf-8", "replace")
            addresses = info.ip_addresses_by_version(IPVersion.V6Only)[:4]
        except _zeroconf_errors() as e:
            log.debug("%s: %s", name, e)
            return
        for found in addresses:
            address = IPv6Address(int(found))
            if self.known(address):
                self.hints.settled(address)
            elif not self.hints.fits(address, node, self.name_of(address)):
                continue
            elif not self.hints.take(address, monotonic()):
                if len(self._later) < WAITING:
                    self._later.add(name)
            else:
                log.info("found %s by DNS-SD", address)
                self.hinted += 1
                self.on_hint(address)


def _zeroconf_errors() -> tuple[type[Exception], ...]:
    """Return what zeroconf raises: its own errors, and those that broken names lead to."""
    from zeroconf import Error

    return (Error, ValueError, AssertionError)
