# SPDX-License-Identifier: Apache-2.0
"""DNS-SD (RFC 6762, RFC 6763) on the mesh: the node by name, for laptops and for other nodes.

The node answers to ``n-<identity>.local`` and publishes one service, ``_thicket._tcp``, so that
``ssh root@n-....local`` and ``avahi-browse`` work from any computer in the mesh. The services of
other nodes are a second source of addresses beside the beacons.

python-zeroconf does the work. It is started when the mesh has come to rest after the node has
joined, as nobody waits for it. Multicast DNS proves nothing: an address found is only a hint, of
which a few are tried at a time, and the cluster asks for a certificate. A
:class:`~thicket.discovery.gate.Gate` stands between the socket and zeroconf.

Every node hands on every packet, so a mesh bears only packets whose number grows with the nodes.
zeroconf's own probes and its browser ask a question that all nodes answer; here a node probes for
its names alone (RFC 6762 8.1), listens to what others announce, and asks for other nodes only while
it knows none.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Network, ip_address
from logging import getLogger
from time import monotonic
from typing import Any

from thicket.base.errors import ThicketError
from thicket.base.pace import Backoff, uniform
from thicket.base.problems import Problems
from thicket.discovery import questions, zeroconfs
from thicket.discovery.gate import REASONS, Gate
from thicket.discovery.hints import SERVICE, TRIAL, Hints, Published, zeroconf_errors
from thicket.discovery.schedule import stretch

log = getLogger(__name__)

GROUP = ("ff02::fb", 5353)

#: Seconds after joining before the node speaks, so that a mesh that comes up has quiet; longer in a
#: large mesh. It then waits until no node was heard or connected for QUIET, no longer than
#: QUIET_AT_MOST.
START = (15.0, 30.0)
QUIET = 10.0
QUIET_AT_MOST = 240.0
#: Probes and their distance in seconds (RFC 6762 8.1).
PROBES = (3, 0.25)
#: Pauses in seconds between questions for other nodes (RFC 6762 5.2).
ASK_AGAIN = (1.0, 3.0, 9.0, 27.0, 81.0, 243.0, 729.0, 3600.0)
#: Seconds between two looks at the interface and the cache.
LOOK = 2.0
#: Pauses in seconds before another attempt; the last one repeats.
PAUSES = (5.0, 30.0, 120.0)
#: Records that zeroconf's cache may hold before it is thrown away; a node has five.
MOST_RECORDS = 4096


class NotServedError(ThicketError):
    """The node cannot be published, for example because another node has its name."""


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
    :param others: returns how many nodes are known.
    :param growth: returns what changes while a mesh comes up.
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
        others: Callable[[], int],
        growth: Callable[[], object],
        on_hint: Callable[[IPv6Address], None],
    ) -> None:
        self.told = told
        self.interface = interface
        self.prefix = prefix
        self.problems = problems
        self.others = others
        self.growth = growth
        self.published = Published(
            f"{told.hostname}.{SERVICE}",
            Hints(prefix, told.address),
            name_of=name_of,
            known=known,
            on_hint=on_hint,
        )
        self.dropped: dict[str, int] = dict.fromkeys(REASONS, 0)
        self.state = "waiting"
        self.announced = 0
        self._zeroconf: Any = None
        #: What another station says of our name; empty when nobody does.
        self._taken = ""

    def snapshot(self) -> dict[str, Any]:
        """Return the ``dns_sd`` part of the status document."""
        return {
            "state": self.state,
            "services": len(self.published.seen),
            "hints": self.published.hinted,
            "announced": self.announced,
            "dropped": {reason: n for reason, n in self.dropped.items() if n},
        }

    async def run(self) -> None:
        """Publish and look until cancelled. Failures of the interface are retried."""
        await self._rest()
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

    async def _rest(self) -> None:
        """Wait until the mesh has come to rest."""
        await asyncio.sleep(uniform(*START) * stretch(self.others() + 1))
        deadline, before = monotonic() + QUIET_AT_MOST, None
        while before != (now := self.growth()) and monotonic() < deadline:
            before = now
            await asyncio.sleep(QUIET)

    async def _serve(self) -> str:
        """Serve until the interface is gone or new, and return why it ended.

        :raises OSError, NotServedError: the node cannot be published.
        :raises ImportError: zeroconf is not installed.
        """
        try:
            index = socket.if_nametoindex(self.interface)
        except OSError:
            return "there is no such interface (yet)"
        zeroconf = await zeroconfs.begun([index], version="V6Only")
        try:
            self._zeroconf = zeroconf.zeroconf
            await zeroconfs.opened(zeroconf)
            self._install_gates()
            self._listen()
            info = self._info()
            await self._probe(info)
            zeroconf.zeroconf.registry.async_add(info)
            self.state = "published"
            self.problems.clear("dns-sd", "not-served")
            log.info("published as %s.local on %s", self.told.hostname, self.interface)
            beside = [
                asyncio.create_task(work)
                for work in (
                    self._announce(info),
                    self.published.ask(self._zeroconf),
                    self._search(),
                )
            ]
            try:
                return await self._watch(index)
            finally:
                for task in beside:
                    task.cancel()
        except zeroconf_errors() as e:
            raise NotServedError(f"{type(e).__name__}: {e}".rstrip(": ")) from e
        finally:
            self.published.forget()
            self._taken = ""
            self._zeroconf = None
            await zeroconfs.closed(zeroconf)

    def _install_gates(self) -> None:
        zeroconfs.guard(
            self._zeroconf,
            self.interface,
            lambda inner: Gate(
                inner, self.told.hostname, self.prefix, self.published.told_of, self.dropped
            ),
        )

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

    async def _probe(self, info: Any) -> None:
        """Ask whether somebody has the node's names (RFC 6762 8.1).

        :raises NotServedError: somebody has.
        """
        probe = questions.probe(info.name, info.server, info.port, self.told.address)
        number, pause = PROBES
        await asyncio.sleep(uniform(0.0, pause))
        for _ in range(number):
            self._send(probe)
            await asyncio.sleep(pause)
            if self._taken:
                raise NotServedError(f"another station has the name: {self._taken}")

    def _send(self, packet: bytes) -> None:
        for sender in self._zeroconf.engine.senders:
            sender.transport.sendto(packet, GROUP)

    async def _announce(self, info: Any) -> None:
        """Tell what the node publishes (RFC 6762 8.3)."""
        async for _ in zeroconfs.announce(self._zeroconf, info):
            self.announced += 1

    async def _watch(self, index: int) -> str:
        again = monotonic() + TRIAL
        while True:
            await asyncio.sleep(LOOK)
            if monotonic() > again:
                again = monotonic() + TRIAL
                self.published.again()
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

    def _listen(self) -> None:
        """Have the records told that get into zeroconf's cache."""
        from zeroconf import RecordUpdateListener

        take = self._take

        class Listener(RecordUpdateListener):
            def async_update_records(self, zc: Any, now: float, records: list[Any]) -> None:
                for record in records:
                    take(record.new, record.old is None, now)

        self._zeroconf.async_add_listener(Listener(), None)

    def _take(self, record: Any, new: bool, now: float) -> None:
        """Take one record that somebody published, or that has expired."""
        if record.type == questions.PTR and record.name.lower() == SERVICE:
            self.published.hear(record.alias, new=new, expired=record.is_expired(now))
        self._taken = self._conflict(record) or self._taken

    def _conflict(self, record: Any) -> str:
        """Return what a record says of our names that is not so; empty when it does not."""
        host = f"{self.told.hostname}.local.".lower()
        service = f"{self.told.hostname}.{SERVICE}".lower()
        name = record.name.lower()
        if name == host and record.type == questions.AAAA:
            if record.address != self.told.address.packed:
                return f"{host} is {ip_address(record.address)} there"
        elif name == service and record.type == questions.SRV:
            place = (record.server.lower(), record.port)
            if place != (host, self.told.port):
                return f"{service} is port {place[1]} of {place[0]} there"
        return ""

    async def _search(self) -> None:
        """Ask who is there, while no node is known."""
        pauses = Backoff(*ASK_AGAIN)
        while True:
            if self.others():
                pauses.reset()
                await asyncio.sleep(TRIAL)
                continue
            self._send(questions.browse(SERVICE, self.published.seen))
            await asyncio.sleep(pauses.failed())
