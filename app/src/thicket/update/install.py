# SPDX-License-Identifier: Apache-2.0
"""Installing a bundle into the slot that does not run: judged here, written by RAUC.

Every byte is compared with what was signed before RAUC begins (:mod:`.contents`). RAUC compares
each block once more as it reads it, so what changes in between costs the slot, and no more.

``rauc install`` marks the slot as being written, writes the boot image, the root, and has the slot
tried by the next start, each by ``boot-slots``. The slot that runs is not touched, and neither is
``autoboot.txt``: a power cut at any moment leaves the node where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from logging import getLogger
from typing import BinaryIO, NamedTuple

from thicket.base import threads
from thicket.base.errors import ThicketError
from thicket.base.files import opened
from thicket.base.headway import Gauge, Headway, Tell
from thicket.base.paths import Paths
from thicket.base.patience import Patience
from thicket.device.boot_record import Phase, Slot, State, called_off
from thicket.device.boot_slots import Slots
from thicket.trust.update_signer import SignerRefusedError
from thicket.update import bundle as bundles
from thicket.update import contents, kept, leftovers, workers
from thicket.update.bundle import Bundle
from thicket.update.errors import BundleError
from thicket.update.judge import InstallError, Terms, judge
from thicket.update.kept import Content
from thicket.update.manifest import Manifest

log = getLogger(__name__)

#: Seconds without a word of RAUC after which it is ended. It tells each percent of an image, and a
#: worn card writes 100 KB/s.
SILENT = 300.0
#: Seconds for everything.
LONGEST = 3600.0
#: Seconds that RAUC may take for putting its mounts away after it was told to end.
GRACE = 20.0
#: Seconds that a card may take for an answer.
HANGS = 60.0
#: Bytes that must be free on /data: RAUC writes what it knows of the slots anew several times.
SPARE = 256 * 1024

#: Environment variable: RAUC's handler is to take a bundle that was left before.
AGAIN = "THICKET_UPDATE_AGAIN"
#: Environment variable: the name of the bundle that was checked, which RAUC's handler is to take.
CHECKED = "THICKET_UPDATE_BUNDLE"

CHANGED = "changed"
"""The file is not as it was when it was checked."""

EVERY_BYTE = "every byte of it"
PROGRAM = "rauc"
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
#: Last lines of RAUC that are kept, and bytes of one.
_LINES = 20
_LINE = 4096

_PERCENT = re.compile(r"^[\s\[]*(\d{1,3})%\]?\s*(.*)$")
_FAULT = re.compile(r"^(?:LastError: |Failed to (?:install|mark)[^:]*: |rauc: )(.*)$")


class Judged(NamedTuple):
    """A bundle that this node may install, as far as it says of itself.

    :ivar signer: who has signed it; empty where only RAUC's keyring knows.
    """

    bundle: Bundle
    signer: str


class Installer:
    """Installs bundles, one at a time.

    :param terms: returns what this node takes.
    :param changed: called when :attr:`progress` has changed.
    :ivar progress: of the installation that runs, or of the last one since the daemon's start.
    """

    def __init__(
        self,
        paths: Paths,
        terms: Callable[[], Awaitable[Terms]],
        changed: Callable[[], None],
    ) -> None:
        self.paths = paths
        self.progress = Headway()
        self._terms = terms
        self._changed = changed
        self._threads = threads.InTurn("install")
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether an installation runs."""
        return self._lock.locked()

    def begin(self, path: str, *, again: bool = False) -> None:
        """Begin to install the bundle in a file; :attr:`progress` tells the rest.

        :raises InstallError: another installation is running.
        """
        if self._lock.locked() or (self._task is not None and not self._task.done()):
            raise InstallError("busy", "another installation is running: wait for its end")

        async def work() -> None:
            with contextlib.suppress(ThicketError, OSError, TimeoutError):  # in the progress
                await self.install(path, again=again)

        self._tell(Headway("checking", words=os.path.basename(path)))
        self._task = asyncio.create_task(work())

    async def close(self) -> None:
        """End an installation that runs: the slot stays marked as incomplete."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=2 * GRACE)

    async def install(self, path: str, *, again: bool = False, digest: str = "") -> Content:
        """Install the bundle in a file; the next start tries it.

        :param again: also one that was left before.
        :param digest: SHA-256 of the file, where it is known.
        :returns: what the slot holds now.
        :raises InstallError: it is not for this node, or could not be installed.
        """
        if self._lock.locked():
            raise InstallError("busy", "another installation is running: wait for its end")
        async with self._lock:
            try:
                return await self._install(path, again, digest)
            except BaseException as error:
                words = str(error) or type(error).__name__
                if isinstance(error, asyncio.CancelledError):
                    words = "it was ended before it was complete"
                elif isinstance(error, TimeoutError):
                    words = "the card does not answer"
                was = self.progress
                self._tell(Headway("failed", was.percent, was.version, words))
                raise

    async def _install(self, path: str, again: bool, digest: str) -> Content:
        self._tell(Headway("checking", words=os.path.basename(path)))
        slots = Slots(self.paths)
        await self._do(lambda: may_write(slots))
        await self._do(lambda: has_room(self.paths))
        try:
            version = (await self._do(lambda: read(path))).version
            self._tell(Headway("checking", version=version, words="its signature"))
            terms = await self._terms()
            found, signer = await self._do(lambda: check(path, terms, again=again))
            manifest = found.manifest
            content = kept.content_of(manifest, digest)
        except (BundleError, SignerRefusedError) as error:
            raise InstallError(error.code, f"{os.path.basename(path)}: {error}") from None
        self._tell(Headway("checking", version=manifest.version, words=EVERY_BYTE))
        gauge = Gauge()

        def checked(done: int, total: int) -> None:
            self._tell(gauge.measured(self.progress, done, total))

        await check_contents(path, found, checked)
        target = slots.running.other
        log.warning(
            "installing version %s, signed by %s, into slot %s",
            manifest.version,
            signer or "one of [update] keyring",
            target.name,
        )
        await self._do(lambda: leftovers.clear(self.paths))
        await self._remember(target, None)
        self._tell(Headway("writing", version=manifest.version))
        try:
            await self._run_rauc(path, content.bundle, again=again)
        except InstallError as error:
            raise await self._explained(error, path, found, slots) from None
        await self._remember(target, content)
        self._tell(
            Headway(
                "installed", 100, manifest.version, f"slot {target.name}: the next start tries it"
            )
        )
        log.warning("version %s is in slot %s and will be tried", manifest.version, target.name)
        return content

    async def _remember(self, slot: Slot, content: Content | None) -> None:
        """Note what a slot holds. One that was asked for is no rejected one any more."""

        def work() -> None:
            memory = kept.load(self.paths).written(slot, content)
            if content is not None:
                memory = memory.without_rejected(content.bundle)
            kept.save(self.paths, memory)

        await self._do(work)

    async def _explained(
        self, error: InstallError, path: str, found: Bundle, slots: Slots
    ) -> InstallError:
        """Return why RAUC has failed, and what that has done to the slot.

        :param found: what is in the file, and was whole before.
        """
        target = slots.running.other
        if (await self._do(slots.read)).state(target) is not State.INCOMPLETE:
            return error
        code, words = error.code, str(error)
        try:
            await check_contents(path, found)
        except InstallError as fault:
            code = CHANGED
            words = f"it was whole before, and was changed or failed while it was written: {fault}"
        return InstallError(
            code,
            f"{words}. Slot {target.name} is incomplete now and is never started, and slot "
            f"{slots.running.name} runs on: install again",
        )

    async def _run_rauc(self, path: str, name: str, *, again: bool) -> None:
        """Have RAUC write.

        :param name: of the bundle that was checked.
        """
        environment = {"PATH": _PATH, "LC_ALL": "C", "HOME": "/", leftovers.MARK: "1"}
        environment[CHECKED] = name
        if again:
            environment[AGAIN] = "1"
        try:
            child = await asyncio.create_subprocess_exec(
                PROGRAM, "install", path,
                stdin=DEVNULL, stdout=PIPE, stderr=STDOUT,
                env=environment, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise InstallError(
                "no-rauc", f"RAUC cannot be started ({error.strerror}): this image has no updates"
            ) from None
        lines: deque[str] = deque(maxlen=_LINES)
        try:
            async with asyncio.timeout(LONGEST):
                await self._follow(child, lines)
                status = await child.wait()
        except TimeoutError:
            raise InstallError(
                "hangs", f"RAUC said nothing for {SILENT:.0f} s, or took too long: {_last(lines)}"
            ) from None
        finally:
            await _end(child)
        if status != 0:
            raise InstallError("rauc", f"RAUC did not install it: {fault(lines)}")

    async def _follow(self, child: Process, lines: deque[str]) -> None:
        """Read what RAUC says, to the end."""
        assert child.stdout is not None
        rest = b""
        while True:
            async with Patience(SILENT):
                data = await child.stdout.read(_LINE)
            *whole, rest = (rest + data).split(b"\n") if data else (rest, b"")
            for line in whole:
                self._hear(line[:_LINE].decode("utf-8", "replace").strip(), lines)
            if not data:
                return
            rest = rest[:_LINE]

    def _hear(self, line: str, lines: deque[str]) -> None:
        if match := _PERCENT.match(line):
            percent = min(int(match[1]), 100)
            self._tell(self.progress._replace(percent=percent, words=match[2][:200]))
        elif line:
            lines.append(line)
            log.info("rauc: %s", line[:200])

    def _tell(self, progress: Headway) -> None:
        if progress != self.progress:
            self.progress = progress
            self._changed()

    async def _do(self, work: Callable[[], threads.T]) -> threads.T:
        return await self._threads.do(work, HANGS)


def may_write(slots: Slots) -> None:
    """Make sure that the slot which does not run may be written.

    :raises InstallError: it is needed as it is.
    """
    record, runs, other = slots.read(), slots.running, slots.running.other
    if record.trial is runs and record.phase is Phase.RUNS:
        raise InstallError(
            "trial",
            f"slot {runs.name} is on trial, and slot {other.name} is the way back: wait until the "
            "trial has ended (`thicket update status`)",
        )
    if called_off(record, runs):
        raise InstallError(
            "trial",
            f"the trial of slot {runs.name} was called off, and slot {other.name} is what the "
            "firmware starts: restart the node first",
        )


def has_room(paths: Paths) -> None:
    """Make sure that RAUC can keep what it knows of the slots: else it ends halfway.

    :raises InstallError: /data is full, or cannot be written.
    """
    try:
        found = os.statvfs(paths.data)
    except OSError as error:
        raise InstallError("no-data", f"{paths.data}: {error.strerror}") from None
    if found.f_flag & os.ST_RDONLY:
        raise InstallError(
            "no-data",
            f"{paths.data} cannot be written, and RAUC keeps a file there: `thicket status` tells "
            "its state",
        )
    # Of what ext4 counts as free, it keeps some MiB back from everybody.
    free = found.f_bavail * found.f_frsize
    if free < SPARE or (found.f_files and not found.f_ffree):
        raise InstallError(
            "no-room",
            f"{paths.data} is full ({free >> 10} KiB free), and RAUC keeps a file there: remove "
            "something from it",
        )


def read(path: str) -> Manifest:
    """Return the manifest of a bundle; nothing is verified.

    :raises InstallError: the file cannot be read.
    :raises BundleError: it is no bundle.
    """
    with _opened(path) as file:
        return bundles.read(file).manifest


def check(path: str, terms: Terms, *, again: bool = False) -> Judged:
    """Return the bundle in a file that this node may install, and who has signed it.

    What it says of itself is judged, which takes no time; its contents are not.

    :raises InstallError: it may not, or the file cannot be read.
    """
    with _opened(path) as file:
        found = bundles.read(file)
        return Judged(found, judge(found, terms, again=again))


async def check_contents(
    path: str, found: Bundle, progress: Tell = lambda _done, _total: None
) -> None:
    """Make sure that every byte of a bundle is the one that was signed.

    :param found: what :func:`check` has found in the file.
    :param progress: called for every percent.
    :raises InstallError: it is not, or cannot be read.
    """
    name = os.path.basename(path)
    words = [str(workers.MEMORY), *contents.arguments(path, found)]

    def fault(code: str, message: str) -> InstallError:
        return InstallError(code, f"{name}: {message}")

    job = workers.Job("thicket.update.contents", "checking the bundle", words)
    await workers.run(job, fault, progress)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    try:
        with opened(path) as file:
            yield file
    except OSError as error:
        words = "it is a folder, and a bundle is needed" if os.path.isdir(path) else error.strerror
        raise InstallError("no-file", f"{path}: {words}") from None


def _last(lines: deque[str]) -> str:
    return lines[-1][:300] if lines else "it said nothing"


def fault(lines: deque[str]) -> str:
    """Return why RAUC failed, by what it said last."""
    for line in lines:
        if match := _FAULT.match(line):
            return match[1][:300]
    return _last(lines)


async def _end(child: Process) -> None:
    """Make sure that RAUC has ended: it puts its mounts away when it is told to end."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if child.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await child.wait()
