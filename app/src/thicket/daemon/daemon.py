# SPDX-License-Identifier: Apache-2.0
"""The node daemon: configuration, identity, radio, discovery and cluster in one process.

The start is ordered for a quick join. A thread reads the chip while the radio's modules are
imported. The radio starts (wpa_supplicant is the slowest part) before the modules of the cluster
are imported, which are needed only when another node can be heard.

Each part is supervised: an exception is reported as a problem, and the part is restarted with
growing pauses. When it keeps failing the process ends with status 1, and init starts a new one.
SIGTERM ends the process and leaves the mesh up (the next daemon adopts it); ``thicketd
--stop-radio`` takes the mesh down, for the shutdown of the device. SIGHUP reads the configuration
again.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from logging import getLogger
from socket import sethostname
from typing import TYPE_CHECKING, Any

import thicket
from thicket.base import log as system_log
from thicket.base import printed, signals
from thicket.base.files import write_atomically
from thicket.base.pace import wait
from thicket.base.paths import Paths, parameter
from thicket.base.problems import Problems
from thicket.base.process import process_start
from thicket.base.supervise import Part
from thicket.config.load import Loaded, load
from thicket.control.server import Server
from thicket.daemon.commands import Commands
from thicket.daemon.core import Core
from thicket.daemon.document import Writer, document
from thicket.daemon.led_part import LedPart
from thicket.daemon.live import Live
from thicket.daemon.milestones import Times
from thicket.daemon.parts import Parts
from thicket.daemon.reload import Reload
from thicket.firewall.service import Firewall
from thicket.upkeep.service import Upkeep

if TYPE_CHECKING:
    from thicket.daemon.metrics_part import MetricsPart
    from thicket.identity.source import Identity
    from thicket.syslog.forward import Forwarder
    from thicket.update.epoch import Counting, UseChip
    from thicket.update.service import Update

log = getLogger(__name__)

#: Deferred work starts this many seconds after joining, or LATER_AT_MOST if the node does not join.
LATER = 2.0
LATER_AT_MOST = 60.0
#: Seconds between two looks for a chip that was missing at the start.
CHIP_AGAIN = 60.0


class Daemon:
    """One node. :meth:`run` returns the exit status of the process.

    :ivar live: the parts of a node that knows who it is, None before.
    """

    def __init__(self, paths: Paths, loaded: Loaded, parts: Parts | None = None) -> None:
        make = parts or Parts()
        problems = Problems(self._changed)
        self.core = Core(
            paths, loaded, make, problems, times=Times(paths.times), changed=self._changed
        )
        self.live: Live | None = None
        self.firewall = Firewall(paths, make.interface, problems, loaded.settings)
        self.firewall.ours = make.owns_network(paths)
        self.led = LedPart(paths, problems, loaded.settings.led)
        self.status = Writer(
            paths.status, self.document, self._refresh, loaded.settings.status.interval
        )
        self.status.tell = self.led.tell
        self.slot = parameter(paths, "slot")
        self.upkeep = Upkeep(
            paths,
            problems,
            lambda: self.core.loaded,
            self.document,
            self.core.joined,
            software=(thicket.__version__, self.slot),
        )
        #: None on a node that runs from no slot of a card, which need not import it.
        self.update: Update | None = None
        #: None on a node that serves no numbers.
        self.metrics: MetricsPart | None = None
        #: None on a node whose log is sent nowhere.
        self.syslog: Forwarder | None = None
        self.reload = Reload(
            self.core,
            self.status,
            self.firewall,
            self.upkeep,
            self.led,
            live=lambda: self.live,
            restart=self._restart,
        )
        self.commands = Commands(self)
        self.parts: dict[str, Part] = {}
        self._end = asyncio.Event()
        self._exit_status = 0

    # -- life

    async def run(self) -> int:
        """Run until SIGTERM, or until a part keeps failing; return the exit status."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_report_exception)
        with signals.called(
            loop,
            {
                signal.SIGTERM: self.stop,
                signal.SIGINT: self.stop,
                signal.SIGHUP: self.reload.begin,
            },
        ):
            return await self._run(loop)

    async def _run(self, loop: asyncio.AbstractEventLoop) -> int:
        core = self.core
        os.makedirs(core.paths.run, exist_ok=True)
        core.times.load()
        core.times.reached("daemon", process_start())
        log.info("thicketd %s starts, configuration: %s", thicket.__version__, core.loaded.source)
        self.reload.report(core.loaded)
        end = loop.create_task(self._end.wait())
        start = loop.create_task(self._start())
        try:
            # the chip may be slow, and the device may be shut down meanwhile
            await asyncio.wait({start, end}, return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                start.result()
                await end
        except Exception:
            log.exception("cannot start")
            self._exit_status = 1
        finally:
            for task in (start, end):
                task.cancel()
            await self._shut_down()
        return self._exit_status

    def stop(self, status: int = 0) -> None:
        """End the daemon soon, with this exit status."""
        if not self._end.is_set():
            log.info("ending")
            self._exit_status = status
            self._end.set()

    async def _start(self) -> None:
        core = self.core
        # Everything that needs no identity starts while a thread reads the chip.
        self._begin("syslog", self._run_syslog)
        reading = asyncio.create_task(core.make.identity(core.settings))
        await asyncio.sleep(0)
        self._begin("control", Server(core.paths.control, self.commands.methods()).run)
        self._begin("status", self.status.run)
        self._begin("firewall", self.firewall.run)
        await asyncio.sleep(0)
        core.make.prepare_radio()
        self._take_identity(await reading)
        self._begin("upkeep", self.upkeep.run)
        self._begin("metrics", self._run_metrics)
        if self.slot is not None:
            from thicket.update.service import Update

            self.update = Update(
                core.paths,
                core.problems,
                self.document,
                lambda: core.settings,
                chip=self._chip,
                changed=self._changed,
            )
            self._begin("update", self.update.run)

    def _take_identity(self, identity: Identity) -> None:
        core = self.core
        core.times.reached("identity")
        if identity.problem:
            core.problems.report("identity", "no-chip", identity.problem, "warning")
        live = self.live = Live(
            core,
            identity,
            self.firewall,
            self.reload.run,
            self._begin,
            update=lambda: self.update,
            document=self.current,
            methods=self.commands.methods,
            use_cables=self.firewall.use_cables,
        )
        log.info("identity from %s, address %s", identity.source, live.me.address)
        if not core.paths.root:  # a daemon in another directory does not name the machine
            try:
                sethostname(identity.hostname)
            except OSError as e:
                log.warning("cannot set the host name: %s", e)
        self._begin("care", lambda: self._run_care(live))
        self._changed()

    def _begin(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        part = self.parts[name] = Part(name, run, self.core.problems)
        part.task.add_done_callback(self._part_ended)

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        log.critical("%s; ending, init starts the daemon again", task.exception())
        self.stop(1)

    def _restart(self, name: str) -> None:
        if name in self.parts:
            self.parts[name].restart()

    async def stop_part(self, name: str) -> None:
        """End a part, if it has begun."""
        if name in self.parts:
            await self.parts[name].stop()

    async def _shut_down(self) -> None:
        self.reload.close()
        # The cluster first: its connections close properly while the mesh still carries them.
        for name in (
            "operators", "metrics", "cable", "gateway", "cluster", "time", "dns-sd", "discovery",
            "trust",
            "radio", "firewall", "care", "update", "upkeep", "status", "control", "syslog",
        ):  # fmt: skip
            await self.stop_part(name)
        self.led.close()

    def _chip(self) -> UseChip | None:
        """Return what lets work use the node's chip; None where its identity is from no chip."""
        if self.live is None or self.live.me.identity.source != "chip":
            return None
        identity, make = self.live.me.identity, self.core.make

        async def use(work: Callable[[Counting], int]) -> int:
            chip = make.open_chip(identity)
            try:
                return await chip.call(work)
            finally:
                await chip.close()

        return use

    # -- status

    def _changed(self) -> None:
        self.status.changed()

    async def _refresh(self) -> None:
        self.firewall.refresh()
        if self.live is not None:
            await self.live.radio.refresh()
            self.live.discovery.look()

    def document(self) -> dict[str, Any]:
        """Return the status document; docs/node.md describes it."""
        return document(self)

    async def current(self) -> dict[str, Any]:
        """Return the status document with figures of this moment."""
        await self._refresh()
        return self.document()

    async def _run_metrics(self) -> None:
        """Serve numbers for other tools, where the settings say so."""
        core = self.core
        if not core.settings.metrics.listen:
            await asyncio.Event().wait()
        from thicket.daemon.metrics_part import MetricsPart  # most nodes serve none

        self.metrics = MetricsPart(core, self.current, lambda: self.live)
        try:
            await self.metrics.run()
        finally:
            self.metrics = None

    async def _run_syslog(self) -> None:
        """Send the log to a server, where the settings name one."""
        core = self.core
        if not core.settings.syslog.server:
            await asyncio.Event().wait()
        from thicket.syslog.forward import Forwarder  # most nodes have no such server

        self.syslog = Forwarder(core.settings.syslog, core.problems, self._who)
        try:
            await self.syslog.run()
        finally:
            self.syslog = None

    def _who(self) -> tuple[str, str, str, str]:
        """Return host name, name in the cluster, address and version; empty where not known."""
        if self.live is None:
            return "", "", "", thicket.__version__
        me, name = self.live.me, self.core.settings.cluster.name
        return me.hostname, f"{name}@{me.text}", me.text, thicket.__version__

    # -- care

    async def _run_care(self, live: Live) -> None:
        """Do deferred work: write names, keep the last good file, look for a missing chip."""
        core = self.core
        await wait(core.joined, LATER_AT_MOST)
        await asyncio.sleep(LATER)
        gc.freeze()  # objects of the start stay; later collections skip them
        gc.enable()
        write_names(core.paths, live.me.identity)
        await self.reload.remember()
        while live.me.identity.source != "chip" and core.settings.identity.i2c_bus != "none":
            await asyncio.sleep(CHIP_AGAIN)
            identity = await core.make.identity(core.settings)
            if identity.source == "chip":
                # The identity is the node's name and address; it must not change while it runs.
                if may_start_again_for_the_chip(core.paths):
                    log.warning("a chip answers now: the daemon starts again and uses it")
                    self.stop()
                    break
                message = "a chip answers now; the daemon uses it from its next start on"
                core.problems.report("identity", "chip-appeared", message, "warning")
                break
        await asyncio.Event().wait()


def may_start_again_for_the_chip(paths: Paths) -> bool:
    """Whether the daemon has not yet ended for this reason since the machine started.

    It does so only once, as a loose contact would make the node change its name again and again.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        os.close(os.open(paths.run + "/started-for-the-chip", flags, 0o644))
    except OSError:
        return False
    return True


def write_names(paths: Paths, identity: Identity) -> None:
    """Write the device's machine-id (machine-id(5)) and host name to files, for other programs.

    /etc is in RAM. The node runs even when writing fails.
    """
    machine_id = f"{identity.machine_id}\n".encode()
    for path, data, mode in (
        (paths.run + "/machine-id", machine_id, 0o444),
        (paths.machine_id, machine_id, 0o444),
        (paths.hostname, f"{identity.hostname}\n".encode(), 0o644),
    ):
        try:
            write_atomically(path, data, mode=mode, durable=False)
        except OSError as e:
            log.debug("cannot write %s: %s", path, e)


def _report_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log errors that nothing else handles: of a callback, or a task that nobody awaits."""
    log.error("%s", context.get("message"), exc_info=context.get("exception"))


def stop_radio(paths: Paths) -> int:
    """Make the running daemon leave the cluster and the mesh; return the exit status.

    Without a daemon this fails, and the mesh ends with the device.
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

    The kernel releases it when the process ends, however that happens.
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
    # Imports make many objects and no garbage; garbage collection starts after the node has joined.
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
