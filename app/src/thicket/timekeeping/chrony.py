# SPDX-License-Identifier: Apache-2.0
"""The program chronyd: its files, its start and end, and requests to it by chronyc.

chronyd turns the clock. It never sets it by itself (no ``makestep``), as :mod:`.judge` decides what
may be set, and turns it by ``SLEW`` parts in a million at most, so that whoever deceives it moves
the clock by no more than that. It has no ``rtcsync``: with it the kernel would call any time
right that chronyd follows, also a guess. Certificates of NTS may have any date until the clock is
set once, as those of a fleet. It runs as a user of its own; only root and that user get
at its socket, and it serves those of the mesh alone.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv6Address, IPv6Network
from logging import getLogger
from typing import NamedTuple

from thicket.base.errors import CodedError
from thicket.base.files import make_folder, read, remove, write_atomically
from thicket.base.patience import Allowance, run, wait_for
from thicket.base.threads import finish
from thicket.timekeeping.keys import PairKey
from thicket.timekeeping.report import Report, parse
from thicket.timekeeping.section import NTS

log = getLogger(__name__)

PORT = 123
#: Parts in a million by which chronyd turns the clock at most: 86 s a day.
SLEW = 1000
#: Seconds between two packets to a source: powers of two, from 64 to 1024 s.
POLLS = (6, 10)
#: Users that chronyd runs as: the image's, and Debian's on an engineer's machine.
USERS = ("chrony", "_chrony")
#: What a node that follows none says of its distance from a clock: as a gateway, whose servers are
#: 2 or 3 from one. The nodes behind it (claims.MOST_DEPTH) are within what NTP can count, 15.
STRATUM = 4
_MODE = 0o750
_START_SECONDS = 10.0
_ASK_SECONDS = 10.0
_END_SECONDS = 4.0


class ChronyError(CodedError):
    """chronyd cannot be run or asked; ``code`` is missing, start, hangs or asked."""


class Client(NamedTuple):
    """A node that gets the time from here."""

    address: IPv6Address
    key: PairKey


class Setup(NamedTuple):
    """What chronyd is to do.

    :ivar servers: of the network, as the configuration has them.
    :ivar nodes: the nodes that the time is taken from, with their keys.
    :ivar clients: the keys of those who take it from here.
    :ivar leads: whether chronyd gives its own clock's time to others.
    """

    servers: tuple[str, ...] = ()
    nodes: tuple[Client, ...] = ()
    clients: tuple[PairKey, ...] = ()
    leads: bool = False

    def sources(self) -> str:
        """Return the file of sources."""
        low, high = POLLS
        polls = f"iburst minpoll {low} maxpoll {high}"
        lines = [
            f"server {server.removeprefix(NTS)} {polls}{' nts' if server.startswith(NTS) else ''}"
            for server in self.servers
        ]
        lines += [f"server {node.address} key {node.key.number} {polls}" for node in self.nodes]
        return "".join(f"{line}\n" for line in lines)

    def keys(self) -> str:
        """Return the file of keys."""
        keys = {key.number: key for key in (*self.clients, *(node.key for node in self.nodes))}
        return "".join(f"{key.line()}\n" for key in keys.values())


def configuration(folder: str, drift: str, user: str, network: IPv6Network | None) -> str:
    """Return the part of chronyd's configuration that stays while it runs.

    :param folder: for its socket and files.
    :param drift: the file in which it keeps by how much the clock is fast or slow.
    :param network: whose nodes get the time; None for nobody.
    """
    # A node without others opens no port of NTP.
    serving = f"allow {network}\nport {PORT}\n" if network is not None else "port 0\n"
    return (
        f"user {user}\npidfile {folder}/pid\nbindcmdaddress {folder}/socket\ncmdport 0\n"
        f"keyfile {folder}/keys\nsourcedir {folder}\ndriftfile {drift}\n"
        f"maxslewrate {SLEW}\nnocerttimecheck 1\nnoclientlog\nlogchange 1\n{serving}"
    )


class Chrony:
    """chronyd on this machine.

    :param folder: in RAM, for its files; others have no access to it.
    :param drift: a folder that keeps its only file for ever.
    :param on_exit: called when it has ended by itself.
    :param before: words in front of its command line, and ``options`` behind its name, for tests.
    """

    program = "chronyd"
    client = "chronyc"
    users: tuple[str, ...] = USERS

    def __init__(
        self,
        folder: str,
        drift: str,
        on_exit: Callable[[], None],
        *,
        before: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self._drift = drift
        self._on_exit = on_exit
        self._command = (*before, self.program, "-n", *options, "-f", f"{folder}/chrony.conf")
        self._setup = Setup()
        self._child: subprocess.Popen[bytes] | None = None
        self._ended = asyncio.Event()
        self._stopping = False
        self._pidfd = -1
        self._gid = 0
        self._nts: bool | None = None
        self._turn = asyncio.Lock()

    @property
    def running(self) -> bool:
        return self._child is not None and not self._ended.is_set()

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None and self.running else None

    async def start(self, network: IPv6Network | None, setup: Setup) -> None:
        """Start it anew.

        :raises ChronyError: it does not start.
        """
        await self.stop()
        await self._end_stray()
        try:
            self._prepare(network, setup)
            self._child = self._spawn()
        except FileNotFoundError:
            raise ChronyError("missing", f"{self.program} is not installed") from None
        except OSError as error:
            raise ChronyError("start", f"{self.program} cannot be started: {error}") from None
        self._ended = ended = asyncio.Event()
        self._watch(self._child)
        allowance = Allowance(_START_SECONDS)
        while not os.path.exists(f"{self.folder}/socket"):
            await wait_for(ended, 0.05)
            if ended.is_set() or allowance.over:
                what = "ended at once" if ended.is_set() else "does not answer"
                said = (read(f"{self.folder}/log") or "").splitlines()
                await self.stop()
                raise ChronyError("start", f"{self.program} {what}: {'; '.join(said[-2:])[:300]}")
        self._setup = setup
        if setup.leads:
            await self._local(setup)

    def _prepare(self, network: IPv6Network | None, setup: Setup) -> None:
        user, uid, gid = "root", 0, 0
        for name in self.users:
            try:
                found = pwd.getpwnam(name)
            except KeyError:
                continue
            user, uid, gid = name, found.pw_uid, found.pw_gid
            break
        # chronyd refuses a folder of its socket that others may write to, or that is not its own.
        for folder in (self.folder, self._drift):
            make_folder(folder, _MODE)
            os.chmod(folder, _MODE)
            os.chown(folder, uid, gid)
        text = configuration(self.folder, f"{self._drift}/drift", user, network)
        self._gid = gid
        self._write("chrony.conf", text)
        self._write("keys", setup.keys())
        self._write("thicket.sources", setup.sources())

    def _write(self, name: str, text: str) -> None:
        path = f"{self.folder}/{name}"
        write_atomically(path, text.encode(), mode=0o640, durable=False)
        os.chown(path, 0, self._gid)

    def _spawn(self) -> subprocess.Popen[bytes]:
        with open(f"{self.folder}/log", "wb") as output:
            # It stays in the foreground and logs by syslog; what it says before that goes here.
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _watch(self, child: subprocess.Popen[bytes]) -> None:
        loop = asyncio.get_running_loop()
        pidfd = self._pidfd = os.pidfd_open(child.pid)
        ended = self._ended

        def gone() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            self._pidfd = -1
            status = child.wait()
            ended.set()
            if not self._stopping:
                log.warning("%s has ended with status %d", self.program, status)
                self._on_exit()

        loop.add_reader(pidfd, gone)

    async def stop(self) -> None:
        """End it."""
        child = self._child
        if child is None:
            return
        self._stopping = True
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                if self._ended.is_set():
                    break
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, number)
                await wait_for(self._ended, _END_SECONDS)
        finally:
            self._stopping = False
        self._child = None

    async def _end_stray(self) -> None:
        """End the one that a daemon has left which was killed; the file of its number tells."""
        path = f"{self.folder}/pid"
        text = read(path) or ""
        pid = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
        if pid and (read(f"/proc/{pid}/comm") or "") == self.program:
            log.info("ending the %s (process %d) of an earlier start", self.program, pid)
            allowance = Allowance(_END_SECONDS)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
                while not allowance.over:
                    os.kill(pid, 0)
                    await asyncio.sleep(0.05)
                os.kill(pid, signal.SIGKILL)
        remove(path)

    # -- requests

    async def follow(self, setup: Setup) -> None:
        """Do what ``setup`` says from now on.

        :raises ChronyError: chronyd cannot be told.
        """
        async with self._turn:
            await self._follow(setup)

    async def _follow(self, setup: Setup) -> None:
        before = self._setup
        if setup == before:
            return
        commands: list[str] = []
        if setup.keys() != before.keys():
            self._write("keys", setup.keys())
            commands.append("rekey")
        if setup.sources() != before.sources():
            self._write("thicket.sources", setup.sources())
            commands.append("reload sources")
        if commands:
            await self.ask(*commands)
        if setup.leads != before.leads:
            await self._local(setup)
        self._setup = setup

    async def know(self, clients: tuple[PairKey, ...]) -> None:
        """Give the time to these nodes as well from now on.

        :raises ChronyError: chronyd cannot be told.
        """
        await self.follow(self._setup._replace(clients=clients))

    async def _local(self, setup: Setup) -> None:
        await self.ask(f"local stratum {STRATUM}" if setup.leads else "local off")

    async def report(self) -> Report:
        """Ask what it does.

        :raises ChronyError: it does not answer.
        :raises ReportError: it says something else.
        """
        return parse(await self.ask("tracking", "sources"))

    async def step(self) -> None:
        """Have it set the clock by what it still has to turn it by, and look closely afterwards.

        :raises ChronyError: chronyd cannot be told.
        """
        await self.ask("makestep")
        await self.ask("burst 3/4")

    async def measure_anew(self) -> None:
        """Forget what was measured: a source has set its clock, which looks like a bad way to it.

        :raises ChronyError: chronyd cannot be told.
        """
        setup = self._setup
        await self.follow(setup._replace(nodes=(), servers=()))
        await self.follow(setup)  # a new source is asked four times in a row

    async def set_clock(self, clock: float) -> None:
        """Set the clock, with chronyd away.

        :param clock: seconds since 1970.
        :raises OSError: the kernel does not let it be set.
        """
        await self.stop()
        time.clock_settime(time.CLOCK_REALTIME, clock)

    async def ask(self, *commands: str) -> str:
        """Run commands of chronyc(1).

        :raises ChronyError: it does not answer, or refuses one.
        """
        words = [self.client, "-h", f"{self.folder}/socket", "-N", "-c", "-m", *commands]
        try:
            status, said = await finish(lambda: run(words, _ASK_SECONDS))
        except TimeoutError as error:
            raise ChronyError("hangs", str(error)) from None
        except OSError as error:
            raise ChronyError("missing", f"{self.client}: {error.strerror}") from None
        if status != 0:
            raise ChronyError("asked", f"chronyd refuses {', '.join(commands)}: {said[-200:]}")
        return said

    async def has_nts(self) -> bool:
        """Return whether this chronyd was built with Network Time Security."""
        if self._nts is None:
            try:
                _, said = await finish(lambda: run([self.program, "--version"], _ASK_SECONDS))
            except (OSError, TimeoutError):
                return False
            self._nts = "+NTS" in said
        return self._nts
