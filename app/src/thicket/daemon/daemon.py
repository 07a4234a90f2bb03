# SPDX-License-Identifier: Apache-2.0
"""The node daemon: composes configuration, identity, radio, discovery and cluster in one process.

The order of the start is that of a quick join. The chip is read in a thread while the radio's
modules are imported; the radio gets going (wpa_supplicant is the slowest part) before the modules
of the cluster are imported; those are needed only when the first other node can be heard.

Each part runs under supervision: an exception is reported as a problem, the part is started again
with growing pauses, and when it keeps failing the process ends with status 1, for init to start a
fresh one. SIGTERM ends the process and leaves the mesh up (a restarted daemon adopts it);
``thicketd --stop-radio`` takes the mesh down, for the shutdown of the device. SIGHUP reads the
configuration again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address, IPv6Interface
from logging import getLogger
from socket import sethostname
from typing import Any, Final

import thicket
from thicket.base import log as system_log
from thicket.base import printed
from thicket.base.errors import RequestError
from thicket.base.fields import show_value
from thicket.base.files import write_atomically
from thicket.base.paths import Paths, parameter
from thicket.base.problems import Problems
from thicket.base.process import boottime, memory_kib, process_start
from thicket.base.supervise import GRACE, Part
from thicket.cluster.membership import Candidate, Membership
from thicket.config.load import Loaded, load, remember
from thicket.config.schema import Settings
from thicket.control.server import Server
from thicket.daemon.document import SCHEMA, Writer
from thicket.daemon.milestones import Times
from thicket.discovery.beacon import PlainBeacons, in_use
from thicket.discovery.service import Discovery
from thicket.discovery.service import Settings as DiscoverySettings
from thicket.discovery.table import mac_of
from thicket.firewall.service import Firewall
from thicket.upkeep.service import Upkeep

log = getLogger(__name__)
#: No message of another node takes more than this part of the device's memory.
MESSAGE_SHARE: Final = 8
#: What may wait does so for some seconds after joining, and at most for so many without.
LATER: Final = 2.0
LATER_AT_MOST: Final = 60.0
#: Seconds between two looks for a chip that was missing at the start.
CHIP_AGAIN: Final = 60.0
#: Seconds for which a beacon with our own address counts as a problem.
DUPLICATE: Final = 90.0

#: A peer whose last frame is older than so many beacon intervals is asked whether it is there.
SILENT_BEACONS: Final = 1.6
#: When that of every peer is older than so many, we may be alone: all other nodes are asked, too.
ALONE_BEACONS: Final = 2.6
#: Seconds between two looks at the radio's peers, at least; and how many times as long as a look
#: took, so that a node which is short of time does not spend it on looking.
LOOK_AT_LEAST: Final = 0.2
LOOK_SHARE: Final = 10.0

Change = Callable[[str, dict[str, Any]], None]


class Parts:
    """Makes the parts that the daemon composes; tests replace some of them.

    The imports are here because their moment matters (see the module's text).
    """

    interface = "mesh0"

    async def identity(self, settings: Settings) -> Any:
        """The node's identity; a missing chip is no failure."""
        from thicket.identity.source import read_identity

        return await read_identity(settings.identity)

    def prepare_radio(self) -> None:
        """Import what the radio needs."""
        import thicket.radio.mesh  # noqa: F401

    def radio(self, settings: Settings, address: IPv6Interface, on_change: Change) -> Any:
        """The radio; raises ValueError for settings that no radio can have."""
        from thicket.radio.mesh import Mesh

        return Mesh(self.mesh_settings(settings), address, on_change)

    def apply_radio(self, mesh: Any, settings: Settings, address: IPv6Interface) -> None:
        """Give a running radio other settings; raises ValueError like :meth:`radio`."""
        mesh.apply(self.mesh_settings(settings), address)

    def mesh_settings(self, settings: Settings) -> Any:
        """The radio's form of the section ``[mesh]``."""
        from thicket.radio.settings import MeshSettings

        mesh = settings.mesh
        return MeshSettings(
            mesh_id=mesh.id,
            security=mesh.security,
            passphrase=mesh.passphrase if mesh.security == "sae" else None,
            channel=mesh.channel,
            country=mesh.country,
            beacon_interval=mesh.beacon_interval,
            max_retries=mesh.peering_retries,
            retry_timeout=mesh.peering_timeout,
            confirm_timeout=mesh.peering_timeout,
            holding_timeout=mesh.peering_timeout,
            max_peer_links=mesh.max_peers,
            max_inactivity=mesh.max_inactivity,
            disable_ht=not mesh.ht,
            rssi_threshold=mesh.rssi_threshold,
            forwarding=mesh.forwarding,
            gate=mesh.gate,
            root_mode=mesh.root_mode,
            interface=self.interface,
        )

    def open_chip(self, identity: Any) -> Any:
        """The chip that the identity was read from, to sign with. Raises BusError."""
        from thicket.trust.service import open_chip

        return open_chip(identity)

    def node(self, settings: Settings, address: IPv6Address, on_change: Change, tls: Any) -> Any:
        """The node of the cluster; ``tls`` is None where the cookie is all it has."""
        from thicket.distribution import Node
        from thicket.distribution.handshake import SETUP_TIME

        cluster = settings.cluster
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        wanted, most = cluster.max_message << 20, memory // MESSAGE_SHARE
        if wanted > most:
            log.info(
                "messages of up to %d MiB are taken, not %d: an eighth of this device's memory",
                most >> 20,
                cluster.max_message,
            )
        return Node(
            name=cluster.name,
            cookie=cluster.cookie,
            address=address,
            port=cluster.port,
            tick_time=cluster.tick_time,
            # who allows for slow nodes there has slow handshakes, too
            setup_time=max(SETUP_TIME, cluster.tick_time / 2),
            on_change=on_change,
            max_message=min(wanted, most),
            # of all messages that are under way
            max_held=2 * most,
            tls=tls,
        )

    def applications(self) -> dict[str, Callable[[], Any]]:
        """The installed applications by name, each as a function that imports it."""
        from thicket.applications.entrypoints import find

        return find("thicket.applications")


class Daemon:
    """One node. :meth:`run` returns the exit status of the process."""

    def __init__(self, paths: Paths, loaded: Loaded, parts: Parts | None = None) -> None:
        self.paths = paths
        self.loaded = loaded
        self.settings: Settings = loaded.settings
        self.make = parts or Parts()
        self.times = Times(paths.times)
        self.problems = Problems(self._changed)
        self.firewall = Firewall(paths, self.make.interface, self.problems, self.settings)
        self.identity: Any = None
        #: Made once the identity is known.
        self.trust: Any = None
        self.address: IPv6Interface | None = None
        self.mesh: Any = None
        self.node: Any = None
        self.remote: Any = None
        self.passphrase: Any = None
        self.applications: Any = None
        self.discovery: Discovery | None = None
        self._shared_radios: set[str] = set()
        self.dns_sd: Any = None
        self.membership: Membership | None = None
        self.status = Writer(
            paths.status, self.document, self._refresh, self.settings.status.interval
        )
        self.parts: dict[str, Part] = {}
        self.hostname = ""
        self._joined = asyncio.Event()
        self.slot = parameter(paths, "slot")
        self.upkeep = Upkeep(
            paths,
            self.problems,
            lambda: self.loaded,
            self.document,
            self._joined,
            software=(thicket.__version__, self.slot),
        )
        self._end = asyncio.Event()
        self._settings_changed = asyncio.Event()
        self._exit_status = 0
        self._reloads: set[asyncio.Task[None]] = set()

    # -- life

    async def run(self) -> int:
        """Run until SIGTERM, or until a part keeps failing; the exit status of the process."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_report_exception)
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        loop.add_signal_handler(signal.SIGINT, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._hangup)
        os.makedirs(self.paths.run, exist_ok=True)
        self.times.load()
        self.times.reached("daemon", process_start())
        log.info("thicketd %s starts, configuration: %s", thicket.__version__, self.loaded.source)
        self._report_configuration(self.loaded)
        try:
            await self._start()
            await self._end.wait()
        except Exception:
            log.exception("cannot start")
            self._exit_status = 1
        finally:
            await self._shut_down()
        return self._exit_status

    def stop(self, status: int = 0) -> None:
        """End the daemon soon, with this exit status."""
        if not self._end.is_set():
            log.info("ending")
            self._exit_status = status
            self._end.set()

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        # Everything that needs no identity happens while the chip is being read by its thread.
        reading = loop.create_task(self.make.identity(self.settings))
        await asyncio.sleep(0)
        self._part("control", Server(self.paths.control, self._methods()).run)
        self._part("status", self.status.run)
        self._part("firewall", self.firewall.run)
        await asyncio.sleep(0)
        self.make.prepare_radio()
        self._take_identity(await reading)
        self._part("radio", self._run_radio)
        from thicket.trust.service import Trust  # the radio is on its way first

        self.trust = Trust(
            self.paths,
            lambda: self.settings,
            lambda: self.identity,
            self.problems,
            self._changed,
            open_chip=self.make.open_chip,
        )
        self.trust.on_beacons = self._other_beacons
        self._part("trust", self.trust.run)
        self._part("discovery", self._run_discovery)
        self._part("dns-sd", self._run_dns_sd)
        self._part("cluster", self._run_cluster)
        self._part("care", self._run_care)
        self._part("upkeep", self.upkeep.run)

    def _part(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        part = self.parts[name] = Part(name, run, self.problems)
        part.task.add_done_callback(self._part_ended)

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        log.critical("%s; ending, init starts the daemon again", task.exception())
        self.stop(1)

    async def _shut_down(self) -> None:
        for task in self._reloads:
            task.cancel()
        # The cluster first: its connections are closed properly while the mesh still carries them.
        for name in (
            "cluster", "dns-sd", "discovery", "trust", "radio", "firewall", "care", "upkeep",
            "status", "control",
        ):  # fmt: skip
            if name in self.parts:
                await self.parts[name].stop()

    def _take_identity(self, identity: Any) -> None:
        self.identity = identity
        self.address = identity.address_in(str(self.settings.address.prefix))
        self.hostname = identity.hostname
        self.times.reached("identity")
        log.info("identity from %s, address %s", identity.source, self.address)
        if identity.problem:
            self.problems.report("identity", "no-chip", identity.problem, "warning")
        if not self.paths.root:  # a daemon in a directory of its own does not name the machine
            try:
                sethostname(identity.hostname)
            except OSError as e:
                log.warning("cannot set the host name: %s", e)
        self._changed()

    # -- parts

    async def _run_radio(self) -> None:
        assert self.address is not None
        await self.firewall.in_force.wait()
        while True:
            self._settings_changed.clear()
            try:
                mesh = self.make.radio(self.settings, self.address, self._radio_changed)
            except ValueError as e:
                # Settings that the schema lets through and the radio does not: only others help.
                self.problems.report("radio", "settings", str(e))
                await self._settings_changed.wait()
                continue
            self.problems.clear("radio", "settings")
            break
        self.mesh = mesh
        mesh.announced = self._announced
        self.problems.sources["radio"] = (self._radio_problems, "error")
        try:
            await mesh.run()
        finally:
            self.mesh = None
            del self.problems.sources["radio"]
            self._joined.clear()

    def _announced(self, link_local: str) -> str | None:
        """The address in the mesh of the node with a link-local address, by its beacons."""
        if self.discovery is None:
            return None
        found = self.discovery.announced_from(link_local)
        return None if found is None else str(found)

    def _radio_problems(self) -> list[dict[str, Any]]:
        """The radio's problems: errors while the mesh is not joined, or joined without a peer.

        A node with peers does what it is for; what the radio complains of then is mostly somebody
        else, such as a neighbour with another passphrase.
        """
        if self.mesh is None:
            return []
        well = self.mesh.joined and any(
            p["state"] == "ESTAB" for p in self.mesh.snapshot()["peers"]
        )
        severity = "warning" if well else "error"
        return [{"severity": severity, **problem} for problem in self.mesh.problems()]

    def _radio_changed(self, kind: str, detail: dict[str, Any]) -> None:
        if kind == "joined":
            self.times.reached("radio")
            self._joined.set()
            if self.discovery is not None:
                self.discovery.interface_changed()
        elif kind == "left":
            self._joined.clear()
        elif kind == "peer-up":
            self.times.reached("first_peer")
            if self.discovery is not None:
                self.discovery.peer_up()
        elif kind == "peer-down" and self.membership is not None:
            self.membership.suspect()
        self._changed()

    async def _run_discovery(self) -> None:
        assert self.address is not None
        # An address is of no use to others before it is ours for certain (duplicate detection).
        await self._joined.wait()
        self.discovery = Discovery(
            _discovery_settings(self.settings),
            self.address.ip,
            self.address.network,
            self.make.interface,
            self._heard,
            pinned=self._connected,
            on_gone=self._gone,
            codecs=self._codecs(),
        )
        await self.discovery.run()

    async def _run_dns_sd(self) -> None:
        await self._joined.wait()
        if not self.settings.discovery.dns_sd:
            await asyncio.Event().wait()
        assert self.address is not None
        from thicket.discovery.dnssd import DnsSd, Told

        identity, cluster = self.identity, self.settings.cluster
        told = Told(
            self.hostname,
            self.address.ip,
            cluster.port,
            {
                "node": f"{cluster.name}@{self.address.ip}",
                "device": (identity.serial or identity.id).hex(),
                "version": thicket.__version__,
            },
        )
        self.dns_sd = DnsSd(
            told,
            self.address.network,
            self.make.interface,
            self.problems,
            name_of=lambda address: f"{cluster.name}@{address}",
            known=self._known,
            on_hint=lambda address: self._heard(address, True),
        )
        try:
            await self.dns_sd.run()
        finally:
            self.dns_sd = None
            self.problems.clear("dns-sd", "not-served")

    def _known(self, address: IPv6Address) -> bool:
        """Whether a node was heard, or is connected: there is no need to be told of it."""
        heard = self.discovery is not None and address in self.discovery.table.entries
        return heard or self._connected(address)

    def _codecs(self) -> tuple[Any, ...]:
        """The forms of beacons that are sent and believed."""
        assert self.address is not None
        plain = PlainBeacons(self.address.ip, self.address.network)
        return in_use(self.settings.discovery.beacon, plain, self.trust.beacons)

    def _other_beacons(self) -> None:
        if self.discovery is not None:
            self.discovery.use(self._codecs())

    def _heard(self, address: IPv6Address, new: bool) -> None:
        if self.membership is not None:
            spelling = self.discovery.spelling(address) if self.discovery is not None else ""
            self.membership.heard(address, new, spelling)
        if new:
            self._changed()

    def _gone(self, address: IPv6Address) -> None:
        if self.membership is not None:
            self.membership.gone(address)
        self._changed()

    def _connected(self, address: IPv6Address) -> bool:
        return self.membership is not None and self.membership.is_up(address)

    def _expected(self, source: str) -> bool:
        """Whether a beacon of the node at ``source`` was believed, or it is connected."""
        return self._known(IPv6Address(source))

    async def _run_cluster(self) -> None:
        assert self.address is not None
        await self._joined.wait()
        # Lets the first beacon out before the imports of the next line take their time.
        await asyncio.sleep(0.01)
        tls = None
        if self.settings.cluster.security == "tls":
            await self.trust.ready.wait()
            tls = self.trust.tls
        node = self.make.node(self.settings, self.address.ip, self._cluster_changed, tls)
        membership = Membership(
            self.settings.cluster.name, node, self._connecting_failed, self._radio_silence
        )
        if self.settings.cluster.topology == "neighbours":
            membership.set_neighbours(set())
        self.problems.sources["cluster"] = (node.problems, "warning")
        try:
            node.expect(self._expected)
            await node.start()
            self.node, self.membership = node, membership
            self.trust.attach(node)
            if self.discovery is not None:  # what was heard before
                for address, entry in self.discovery.table.entries.items():
                    membership.heard(address, True, entry.spelling)
            loop = asyncio.get_running_loop()
            beside = {
                loop.create_task(self._run_applications(node)),
                loop.create_task(self._run_passphrase(node)),
                loop.create_task(self._watch_radio(membership)),
                loop.create_task(self.trust.keep_telling()),
            }
            try:
                await membership.run()
            finally:
                for task in beside:
                    task.cancel()
                await asyncio.wait(beside, timeout=GRACE)
        finally:
            if self.remote is not None:
                self.remote.close()
            self.trust.detach()
            self.node = self.membership = self.remote = None
            del self.problems.sources["cluster"]
            await node.stop()

    async def _run_applications(self, node: Any) -> None:
        """Run what is installed on this node; it never takes the cluster with it."""
        await asyncio.sleep(LATER)
        try:
            found = self.make.applications()
            if not found:
                return
            from thicket.applications.service import Applications  # mostly not needed

            self.applications = Applications(node, self.settings.application, self.problems, found)
            await self.applications.run()
        except Exception as e:
            log.exception("applications cannot be run")
            message = f"applications cannot be run: {type(e).__name__}: {e}"
            self.problems.report("applications", "part-failed", message, "warning")
        finally:
            self.applications = None

    async def _run_passphrase(self, node: Any) -> None:
        """Take part in changes of the mesh's passphrase."""
        await asyncio.sleep(LATER)
        from thicket.cluster.passphrase import Passphrase  # may wait

        self.passphrase = Passphrase(self)
        try:
            await self.passphrase.run(node)
        except Exception:
            log.exception("changes of the passphrase are not looked after any more")
        finally:
            self.passphrase = None

    async def _radio_silence(self, address: IPv6Address) -> float | None:
        """Seconds since the radio heard the station at ``address``; None when there is none."""
        if self.mesh is None:
            return None
        await self.mesh.refresh(whole=False)
        return next((silent for of, silent in self.mesh.links() if of == address), None)

    async def _watch_radio(self, membership: Membership) -> None:
        """Look for peers that the radio no longer hears, while there are connections to lose."""
        beacon = self.settings.mesh.beacon_interval * 1.024 / 1000  # seconds
        patience, alone = SILENT_BEACONS * beacon, ALONE_BEACONS * beacon
        silences: list[float] = []
        took = 0.0
        while True:
            # The next look is when the next of them would have been silent for too long.
            due = [patience - silent for silent in silences if silent <= patience]
            if silences and min(silences) <= alone:
                due.append(alone - min(silences))
            await asyncio.sleep(max(min([1.0, *due]), LOOK_AT_LEAST, LOOK_SHARE * took))
            silences, took = [], 0.0
            mesh = self.mesh
            up = any(candidate.up for candidate in membership.candidates.values())
            if mesh is None or not (up or membership.neighbours is not None):
                continue
            began = time.monotonic()
            await mesh.refresh(whole=False)
            took = time.monotonic() - began
            links = mesh.links()
            silences = [silent for _, silent in links]
            for address, silent in links:
                if up and silent > patience:
                    membership.suspect(address)
            if up and silences and min(silences) > alone:
                membership.suspect()
            if membership.neighbours is not None:
                membership.set_neighbours({address for address, _ in links if address is not None})

    def _cluster_changed(self, kind: str, detail: dict[str, Any]) -> None:
        if kind == "node-up":
            self.times.reached("first_node")
            if self.membership is not None:
                self.membership.node_up(detail["name"])
            self.trust.node_up(detail["name"])
            if self.passphrase is not None:
                self.passphrase.node_up(detail["name"])
        elif kind == "node-down" and self.membership is not None:
            self.membership.node_down(detail["name"])
        elif kind == "suspected":
            if self.membership is not None:
                self.membership.suspect(name=detail["name"])
            return
        self._changed()

    def _connecting_failed(self, candidate: Candidate) -> None:
        self._changed()

    async def _run_care(self) -> None:
        """What may wait until the node runs: the last good configuration, and a missing chip."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LATER_AT_MOST):
                await self._joined.wait()
        await asyncio.sleep(LATER)
        gc.freeze()  # what is there now stays; later collections need not look at it
        gc.enable()
        self._write_names()
        await self._remember()
        while self.identity.source != "chip" and self.settings.identity.i2c_bus != "none":
            await asyncio.sleep(CHIP_AGAIN)
            identity = await self.make.identity(self.settings)
            if identity.source == "chip":
                # The identity is the node's name and address: it never changes under the cluster.
                if self._may_start_again_for_the_chip():
                    log.warning("a chip answers now: the daemon starts again and uses it")
                    self.stop()
                    break
                message = "a chip answers now; the daemon uses it from its next start on"
                self.problems.report("identity", "chip-appeared", message, "warning")
                break
        await asyncio.Event().wait()

    def _may_start_again_for_the_chip(self) -> bool:
        """Whether the daemon has not ended for this reason since the machine was started.

        Once: with a loose contact it would go to and fro between two names.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            os.close(os.open(self.paths.run + "/started-for-the-chip", flags, 0o644))
        except OSError:
            return False
        return True

    def _write_names(self) -> None:
        """Write the device's machine-id (machine-id(5)) and host name to files, for others to read.

        /etc is in RAM. Where that fails the node still runs.
        """
        machine_id = f"{self.identity.machine_id}\n".encode()
        for path, data, mode in (
            (self.paths.run + "/machine-id", machine_id, 0o444),
            (self.paths.machine_id, machine_id, 0o444),
            (self.paths.hostname, f"{self.hostname}\n".encode(), 0o644),
        ):
            try:
                write_atomically(path, data, mode=mode, durable=False)
            except OSError as e:
                log.debug("cannot write %s: %s", path, e)

    async def _remember(self) -> None:
        try:
            # the disk may take its time
            await asyncio.get_running_loop().run_in_executor(
                None, remember, self.paths, self.loaded
            )
        except OSError as e:
            message = f"the last good configuration cannot be kept: {e}"
            self.problems.report("configuration", "not-kept", message, "warning")
        else:
            self.problems.clear("configuration", "not-kept")

    # -- configuration

    def _report_configuration(self, loaded: Loaded, in_force: str | None = None) -> None:
        """Make the list of problems tell what is wrong with the files, and what is used instead."""
        self.problems.clear("configuration", "invalid")
        self.problems.clear("configuration", "fallback")
        for number, finding in enumerate(loaded.findings):
            self.problems.report("configuration", "invalid", str(finding), "warning", str(number))
        if not loaded.findings:
            return
        if in_force is None:
            if loaded.last_good_used:
                in_force = "the last good configuration is in force"
            elif loaded.source == "defaults":
                in_force = "the image's defaults are in force"
            else:
                in_force = f"all of {loaded.source} is in force over the built-in defaults"
        message = f"{in_force}; correct the file, then run `thicket reload`"
        self.problems.report("configuration", "fallback", message, "warning")

    def _hangup(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload_quietly())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload_quietly(self) -> None:
        await self.reload()

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again and follow it; what was done, for the caller.

        A file with faults changes nothing but the list of problems.
        """
        loaded = load(self.paths)
        faults = [str(finding) for finding in loaded.findings]
        if faults and (loaded.last_good_used or loaded.source == "defaults"):
            self._report_configuration(loaded, "the configuration from before stays in force")
            self.upkeep.settings_changed()
            return {"source": self.loaded.source, "changed": [], "later": [], "faults": faults}
        changed = self.settings.changed(loaded.settings)
        self.loaded, self.settings = loaded, loaded.settings
        self._report_configuration(loaded)
        log.info("configuration %s: %s", loaded.source, ", ".join(changed) or "no change")
        later = self._follow(set(changed))
        self.upkeep.settings_changed()
        await self._remember()
        self._changed()
        return {"source": loaded.source, "changed": changed, "later": later, "faults": faults}

    def _follow(self, changed: set[str]) -> list[str]:
        """Make the parts follow the settings; the keys that only the next start follows."""
        sections = {path.partition(".")[0] for path in changed}
        if "log" in sections:
            system_log.set_level(self.settings.log.level)
        if "status" in sections:
            self.status.interval = self.settings.status.interval
        if changed:
            self.firewall.follow(self.settings)
        moved = "address" in sections and self.identity is not None
        if moved:
            self.address = self.identity.address_in(str(self.settings.address.prefix))
            # the radio tells when it has the new address; the other parts wait for that
            self._joined.clear()
        if self.address is not None and (moved or "mesh" in sections):
            self._settings_changed.set()
            if self.mesh is not None:
                try:
                    self.make.apply_radio(self.mesh, self.settings, self.address)
                except ValueError as e:
                    self.problems.report("radio", "settings", str(e))
                else:
                    self.problems.clear("radio", "settings")
        if moved or "trust" in sections:
            self.trust.ready.clear()  # at once: the cluster must not take what was valid before
            self._restart("trust")
        elif self.trust is not None:
            self.trust.look_again()
        if moved:
            self._restart("discovery")
        elif "discovery" in sections and self.discovery is not None:
            self.discovery.apply(_discovery_settings(self.settings))
            self._other_beacons()
        if moved or changed & {"discovery.dns_sd", "cluster.name", "cluster.port"}:
            self._restart("dns-sd")
        if moved or "cluster" in sections or "trust" in sections:
            self._restart("cluster")
        elif "application" in sections and self.applications is not None:
            self.applications.settings_changed(self.settings.application)
        return sorted(path for path in changed if path.startswith("identity."))

    def _restart(self, name: str) -> None:
        if name in self.parts:
            self.parts[name].restart()

    # -- status

    def _changed(self) -> None:
        self.status.changed()

    async def _refresh(self) -> None:
        self.firewall.refresh()
        if self.mesh is not None:
            await self.mesh.refresh()
        heard = self.discovery.duplicate_heard if self.discovery is not None else None
        if heard is not None and time.monotonic() - heard < DUPLICATE:
            message = f"another station announces our address {self.address}"
            self.problems.report("discovery", "duplicate-address", message)
        else:
            self.problems.clear("discovery", "duplicate-address")
        self._tell_shared_radios()

    def _tell_shared_radios(self) -> None:
        """Name the radios that share a MAC address: links to them come and go for ever."""
        shared = self.discovery.shared.found(time.monotonic()) if self.discovery is not None else {}
        if set(shared) != self._shared_radios:
            self.problems.clear("radio", "duplicate-mac")
            self._shared_radios = set(shared)
        macs = set()
        for source, (one, other) in shared.items():
            mac = mac_of(source)
            if mac is not None:
                macs.add(mac)
            message = (
                f"two nodes have radios with one and the same address, {mac or source}: {one} and "
                f"{other}. Links to them come and go until one of the radios is exchanged (cheap "
                "adapters are sold with copied addresses)"
            )
            self.problems.report("radio", "duplicate-mac", message, "warning", source)
        if self.mesh is not None:
            self.mesh.set_doubled(macs)

    def state(self) -> str:
        """The node's state in one word; docs/node.md explains them."""
        state: str = self.document()["state"]
        return state

    def _state(self, problems: list[dict[str, Any]], radio: str) -> str:
        if radio in {"absent", "unsuitable", "failed"}:
            return "degraded"
        if any(problem["severity"] == "error" for problem in problems):
            return "degraded"
        if self.mesh is None:
            return "starting"
        return "joined" if self.mesh.joined else "joining"

    def document(self) -> dict[str, Any]:
        """The status document; docs/node.md explains its members."""
        mesh = self.mesh.snapshot() if self.mesh is not None else {}
        radio = mesh.get("radio") or {"state": "starting", "interface": self.make.interface}
        problems = self.problems.all()
        identity = self.identity
        return {
            "schema": SCHEMA,
            "version": thicket.__version__,
            "slot": self.slot,
            "hostname": self.hostname,
            "state": self._state(problems, radio["state"]),
            "problems": problems,
            "times": dict(self.times.values),
            "restarts": self.times.restarts,
            "uptime": boottime(),
            "identity": None if identity is None else identity.as_dict(),
            "address": str(self.address.ip) if self.address is not None else None,
            "prefix_length": self.address.network.prefixlen if self.address is not None else None,
            "configuration": {
                "source": self.loaded.source,
                "last_good_used": self.loaded.last_good_used,
            },
            "data": self.upkeep.data,
            "last_restart": self.upkeep.last_restart,
            "radio": radio,
            "peers": mesh.get("peers", []),
            "paths": mesh.get("paths", []),
            "cluster": {
                "node": self.node.name if self.node is not None else None,
                "security": self.settings.cluster.security,
                "refused": self.node.statistics()["refused"] if self.node is not None else {},
                "nodes": self.nodes(),
                "counters": self._cluster_counters(),
            },
            "trust": self.trust.status() if self.trust is not None else None,
            "passphrase": self.passphrase.status() if self.passphrase is not None else None,
            "applications": self.applications.status() if self.applications is not None else [],
            "discovery": self.discovery.snapshot() if self.discovery is not None else None,
            "dns_sd": self.dns_sd.snapshot() if self.dns_sd is not None else None,
            "firewall": self.firewall.snapshot(),
            "memory_kib": memory_kib(),
            "cpu_seconds": round(time.process_time(), 3),
        }

    def _cluster_counters(self) -> dict[str, int]:
        """What it took to get and keep the connections, since the node began."""
        if self.node is None or self.membership is None:
            return {}
        found = self.node.statistics()
        names = ("connected", "accepted", "simultaneous", "abandoned")
        return {
            "attempts": self.membership.attempts,
            **{name: found[name] for name in names},
        }

    def nodes(self) -> list[dict[str, Any]]:
        """The other nodes of the cluster, and those that should be: connected ones first.

        A node that was heard and is not connected has the state "connecting" and, after a failure,
        the members ``error`` (code), ``message`` and ``attempts``.
        """
        if self.node is None or self.membership is None:
            return []
        from thicket.distribution.handshake import key_of  # loaded with the node

        found: dict[str, dict[str, Any]] = {
            key_of(info.name): {"name": str(info.name), "state": info.state, "since": info.since}
            for info in self.node.nodes()
        }
        for candidate in self.membership.candidates.values():
            if candidate.up:
                continue
            entry = found.setdefault(
                key_of(candidate.name),
                {"name": candidate.name, "state": "connecting", "since": None},
            )
            if entry["state"] != "up" and candidate.error is not None:
                entry["error"], entry["message"] = candidate.error
                entry["attempts"] = candidate.failures
        return sorted(found.values(), key=lambda n: (n["state"] != "up", n["name"]))

    # -- control

    def _methods(self) -> dict[str, Callable[[dict[str, Any]], Awaitable[Any]]]:
        return {
            "status": self._on_status,
            "peers": self._on_peers,
            "nodes": self._on_nodes,
            "ping": self._on_ping,
            "call": self._on_call,
            "publish": self._on_publish,
            "events": self._on_events,
            "reload": self._on_reload,
            "config": self._on_config,
            "config-apply": self._on_config_apply,
            "revocations-import": self._on_revocations_import,
            "revocations-export": self._on_revocations_export,
            "passphrase": self._on_passphrase,
            "stop-radio": self._on_stop_radio,
        }

    async def _on_status(self, params: dict[str, Any]) -> Any:
        self.firewall.refresh()
        if self.mesh is not None:
            await self.mesh.refresh()
        return self.document()

    async def _on_peers(self, params: dict[str, Any]) -> Any:
        document = await self._on_status(params)
        return {key: document[key] for key in ("state", "radio", "peers", "paths")}

    async def _on_nodes(self, params: dict[str, Any]) -> Any:
        document = self.document()
        return {key: document[key] for key in ("state", "cluster", "discovery")}

    async def _on_ping(self, params: dict[str, Any]) -> Any:
        if self.node is None:
            raise RequestError("not-joined", "the node has not joined the mesh yet")
        name = self.resolve(str(params.get("node", "")))
        if name == self.node.name:
            return {"node": name, "milliseconds": 0.0}  # as Erlang answers for itself
        try:
            seconds: float = await self.node.ping(name)
        except Exception as e:
            # every failure of the distribution means "no answer"; the words say why
            code = str(getattr(e, "code", "no-answer"))
            raise RequestError(code, str(e) or type(e).__name__) from e
        return {"node": name, "milliseconds": round(seconds * 1000, 3)}

    async def _on_call(self, params: dict[str, Any]) -> Any:
        remote = self._remote()
        return await remote.call(self.resolve(str(params.get("node", ""))), params)

    async def _on_publish(self, params: dict[str, Any]) -> Any:
        return await self._remote().publish(params)

    async def _on_events(self, params: dict[str, Any]) -> Any:
        return await self._remote().events(params)

    def _remote(self) -> Any:
        """What people ask of the cluster."""
        if self.node is None:
            raise RequestError("not-joined", "the node has not joined the mesh yet")
        if self.remote is None:
            from thicket.cluster.requests import Remote  # rare

            self.remote = Remote(self.node)
        return self.remote

    def resolve(self, text: str) -> str:
        """The full name of the node that a person means by ``text``.

        That is a full name, an address in any form, a host name (``n-`` and the 12 digits of the
        identity), or the last digits of one as long as only one node matches. Raises RequestError.
        """
        cluster, _, host = text.rpartition("@")
        with contextlib.suppress(ValueError):
            name = f"{cluster or self.settings.cluster.name}@{IPv6Address(host)}"
            return name if self.node is None else str(self.node.spelling(name))
        if cluster:
            return text
        known: set[str] = {self.node.name} if self.node is not None else set()
        known |= {entry["name"] for entry in self.nodes()}
        digits = text.lower().removeprefix("n-")
        matches = sorted(name for name in known if digits and host_digits(name).endswith(digits))
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise RequestError("ambiguous", f"{text} may be {' or '.join(matches)}")
        names = ", ".join(sorted(known)) or "none"
        raise RequestError("unknown-node", f"no node is known as {text!r}; known are: {names}")

    async def _on_reload(self, params: dict[str, Any]) -> Any:
        return await self.reload()

    async def _on_config(self, params: dict[str, Any]) -> Any:
        values = {
            name: {key.name: show_value(key, value) for key, value in section.items()}
            for name, section in self.settings.sections()
        }
        return {"source": self.loaded.source, "values": values}

    async def _on_config_apply(self, params: dict[str, Any]) -> Any:
        from thicket.config.edit import apply  # rare

        text = params.get("text")
        if not isinstance(text, str):
            raise RequestError("bad-request", 'params need "text", the whole file')
        data = text.encode("utf-8", "surrogatepass")
        target = await asyncio.get_running_loop().run_in_executor(None, apply, self.paths, data)
        return {"written": target, **await self.reload()}

    async def _on_revocations_import(self, params: dict[str, Any]) -> Any:
        """Take a list of revocations (``list``, in Base64); what is in force then."""
        from base64 import b64decode  # rare

        from thicket.trust.service import ListError

        text = params.get("list")
        if self.trust is None:
            raise RequestError("starting", "the node is still finding out who it is; try again")
        if not isinstance(text, str):
            raise RequestError("bad-request", 'params need "list", in Base64')
        try:
            taken = self.trust.take_list(b64decode(text, validate=True), "a person")
        except (ValueError, ListError) as e:
            raise RequestError("not-taken", f"the list is not taken: {e}") from e
        self.trust.tell_all()
        return {"taken": taken, **self.trust.status()["revocations"]}

    async def _on_revocations_export(self, params: dict[str, Any]) -> Any:
        """The digests of the lists of revocations in force, or one of the lists (``digest``)."""
        from base64 import b64encode  # rare

        if self.trust is None:
            raise RequestError("starting", "the node is still finding out who it is; try again")
        lists = {key.hex(): packed for key, packed in self.trust.current_lists().items()}
        digest = params.get("digest")
        if digest is None:
            return {"lists": list(lists)}
        if digest not in lists:
            raise RequestError("not-found", "no list with this digest is in force here")
        return {"list": b64encode(lists[digest]).decode()}

    async def _on_passphrase(self, params: dict[str, Any]) -> Any:
        if self.passphrase is None:
            raise RequestError("not-joined", "the node has not joined the mesh yet")
        return await self.passphrase.request(params)

    async def _on_stop_radio(self, params: dict[str, Any]) -> Any:
        """Leave the cluster and the mesh and end; for the shutdown of the device."""
        mesh = self.mesh
        for name in ("cluster", "dns-sd", "discovery", "radio"):
            if name in self.parts:
                await self.parts[name].stop()
        if mesh is not None:
            await mesh.leave()
        # the answer goes out before the end
        asyncio.get_running_loop().call_later(0.1, self.stop)
        return {"left": mesh is not None}


def host_digits(name: str) -> str:
    """The 12 digits in the host name of the node named ``cluster@address``: its identity bytes."""
    try:
        number = int(IPv6Address(name.partition("@")[2]))
    except ValueError:
        return ""
    return f"{number & (2**48 - 1):012x}"


def _discovery_settings(settings: Settings) -> DiscoverySettings:
    section = settings.discovery
    return DiscoverySettings(
        interval=section.interval,
        expire=section.expire,
        max_nodes=section.max_nodes,
        check_source=section.check_source,
    )


def _report_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody else handles: a failed callback, or a task that nobody waits for."""
    log.error("%s", context.get("message"), exc_info=context.get("exception"))


def stop_radio(paths: Paths) -> int:
    """Leave the cluster and the mesh through the running daemon; the exit status.

    Without a daemon there is nobody to tell: the mesh ends with the device.
    """
    from thicket.control.client import ClientError, request  # rare

    try:
        request(paths.control, "stop-radio", {}, timeout=15.0)
    except ClientError as e:
        sys.stderr.write(f"thicketd --stop-radio: {e}\n")
        return 1
    return 0


def only_one(paths: Paths) -> int | None:
    """Take the lock of the one daemon of this machine; None when another process has it.

    The kernel lets go of it when the process ends, however that happens.
    """
    os.makedirs(paths.run, exist_ok=True)
    lock = os.open(paths.run + "/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


async def _serve(paths: Paths, loaded: Loaded) -> int:
    return await Daemon(paths, loaded).run()


def main() -> int:
    """Entry point of ``thicketd``; the exit status."""
    if sys.argv[1:] == ["--stop-radio"]:
        return stop_radio(Paths())
    if sys.argv[1:]:
        sys.stderr.write("usage: thicketd [--stop-radio]\n")
        return 2
    # Imports make many objects and no garbage; collection starts once the node has joined.
    gc.disable()
    paths = Paths()
    loaded = load(paths)
    system_log.setup(loaded.settings.log.level)
    printed.take()
    lock = only_one(paths)
    if lock is None:
        log.error("another thicketd is running; this one ends")
        return 1
    try:
        return asyncio.run(_serve(paths, loaded))
    except Exception:
        log.exception("the daemon ended by an error")
        return 1
    finally:
        printed.sweep(0.0)


if __name__ == "__main__":
    sys.exit(main())
