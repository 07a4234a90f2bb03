# SPDX-License-Identifier: Apache-2.0
"""Applications that were installed beside the image: taken, started, judged and taken back.

The contents of a file are mounted read-only, and their modules go in front of the image's on
``sys.path``. What is installed runs in place of the image's application of the same name. A new
version is on trial until it was well for ``[update] health_time``; one that fails is left for the
version before. None of this starts the node anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator
from logging import getLogger
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from thicket.applications import app_file, app_state, app_tree, entrypoints, fit, mounts, trial
from thicket.applications.app_file import ANY, SITE, About, AppError, AppFile
from thicket.applications.app_state import State
from thicket.applications.fit import Place
from thicket.applications.mounts import Mounter
from thicket.applications.service import GROUP
from thicket.applications.trial import Trial, Verdict
from thicket.base import threads
from thicket.base.errors import ThicketError
from thicket.base.files import (
    discard,
    entries,
    from_disk,
    make_folder,
    opened,
    own_folder,
    sync_folder,
)
from thicket.base.headway import Gauge, Headway, Tally, Tell
from thicket.base.pace import wait
from thicket.base.paths import Paths
from thicket.base.problems import Problems

if TYPE_CHECKING:
    from thicket.applications.service import Applications

log = getLogger(__name__)

#: Below /data, and below /run/thicket.
FOLDER = "/apps"
#: Applications that a node takes.
MOST = 16
#: Bytes of /data that an installation leaves free.
SPARE = 4 << 20
#: Seconds between two looks at what is on trial.
LOOK = 1.0
#: Seconds between two looks at who is revoked.
REVOKED = 60.0
#: Seconds that a card may take to read or write one file: a worn one writes 100 KB/s.
HANGS = 900.0

_NEW = ".new"
_PIECE = 1 << 20

Factory = Callable[[], Any]
Follow = Callable[[Headway], object]
"""Called in the event loop with how far an installation, or the checking before it, is."""


class Loaded(NamedTuple):
    """A version that is in force.

    :ivar file: its name on the disk.
    :ivar folder: where its contents are mounted.
    """

    about: About
    signer: str
    file: str
    folder: str

    @property
    def site(self) -> str:
        """The folder on ``sys.path``."""
        return f"{self.folder}/{SITE}"


class Current(NamedTuple):
    """What is installed of one application.

    :ivar path: of its file, which may not run if it is damaged; empty where nothing is installed.
    :ivar version: the one in force; empty for none.
    :ivar trial: whether it is on trial.
    :ivar left: why a version was left; empty for none.
    :ivar number: when the version in force was built, in Unix seconds; 0 for none.
    """

    path: str
    version: str
    trial: bool
    left: str
    number: int = 0


class Installed:
    """The applications of a node that are not its image's.

    :param place: returns what an application finds here; blocking.
    :param own: the image's applications.
    :param health_time: returns how long a new version has to be well, in seconds.
    :param changed: called when :meth:`status` has changed.
    :ivar runner: runs the applications; None while the node is in no cluster.
    """

    def __init__(
        self,
        paths: Paths,
        problems: Problems,
        place: Callable[[], Place],
        own: dict[str, Factory],
        *,
        mounter: Mounter,
        health_time: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self.runner: Applications | None = None
        self._paths = paths
        self._problems = problems
        self._place = place
        self._own = own
        self._mounter = mounter
        self._health_time = health_time
        self._changed = changed
        self._loaded: dict[str, Loaded] = {}
        self._states: dict[str, State] = {}
        self._trials: dict[str, Trial] = {}
        self._counted = False
        self._begun = asyncio.Event()
        self._lock = asyncio.Lock()
        self._threads = threads.OneAtATime("applications")

    @property
    def _data(self) -> str:
        return self._paths.data + FOLDER

    @property
    def _run(self) -> str:
        return self._paths.run + FOLDER

    # -- what is there

    def found(self) -> dict[str, Factory]:
        """Return all applications by name: the image's, and those in force in place of them."""
        found = dict(self._own)
        for one in self._loaded.values():
            found |= {name: self._factory(one, name) for name in one.about.applications}
        return found

    def status(self) -> list[dict[str, Any]]:
        """Return each application that was installed, for the status document.

        ``name``, ``version`` (None where none runs), ``number``, ``signer``, ``applications``,
        ``trial``, ``before`` (whether there is a version to go back to) and ``left``, which says
        why a version was left.
        """
        return [self._entry(name, state) for name, state in sorted(self._states.items())]

    def current(self, name: str) -> Current | None:
        """Return what is installed of an application; None where it is not known."""
        state, one = self._states.get(name), self._loaded.get(name)
        if state is None:
            return None
        return Current(
            f"{self._data}/{name}/{state.current}" if state.current else "",
            one.about.version if one is not None else "",
            state.trial > 0,
            state.left,
            one.about.number if one is not None else 0,
        )

    def _entry(self, name: str, state: State) -> dict[str, Any]:
        one = self._loaded.get(name)
        return {
            "name": name,
            "version": one.about.version if one is not None else None,
            "number": one.about.number if one is not None else None,
            "signer": one.signer if one is not None else None,
            "applications": list(one.about.applications) if one is not None else [],
            "trial": one is not None and one.file == state.current and state.trial > 0,
            "before": bool(state.before),
            "left": state.left or None,
        }

    # -- the start

    async def load(self) -> None:
        """Put into force what is on the disk; what cannot be is reported."""
        async with self._lock:
            await self._do(lambda: mounts.clear(self._run, self._mounter))
            for name in await self._do(lambda: _names(self._data)):
                await self._put_in_force(name)
            self._changed()

    async def count(self) -> None:
        """Count this start for what is on trial, before it is started: it may take the daemon
        along at once. Once for each daemon."""
        if self._counted:
            return
        self._counted = True
        async with self._lock:
            for name, state in list(self._states.items()):
                if state.trial:
                    await self._save(name, state.tried())

    async def watch(self, runner: Applications) -> None:
        """Judge what is on trial, and end what a revoked signer has signed, until cancelled."""
        self.runner = runner
        self._trials.clear()
        await self.count()
        looked = time.monotonic()
        try:
            while True:
                if any(state.trial for state in self._states.values()):
                    await asyncio.sleep(LOOK)
                else:
                    await wait(self._begun, REVOKED)
                self._begun.clear()
                revoked = time.monotonic() - looked >= REVOKED
                if revoked:
                    looked = time.monotonic()
                # An exchange that was begun is not left half done when the cluster ends.
                await asyncio.shield(asyncio.create_task(self._round(runner, revoked=revoked)))
        finally:
            self.runner = None

    async def _round(self, runner: Applications, *, revoked: bool) -> None:
        async with self._lock:
            for name in list(self._loaded):
                await self._look(name, runner)
            if revoked:
                await self._end_revoked()

    async def _look(self, name: str, runner: Applications) -> None:
        one, state, now = self._loaded[name], self._states[name], time.monotonic()
        if not state.trial or one.file != state.current:
            return
        seen = [told for app in one.about.applications if (told := runner.seen(app)) is not None]
        before = self._trials.get(name) or Trial(now)
        self._trials[name], verdict, why = trial.judge(before, seen, now, self._health_time())
        if verdict is Verdict.WELL:
            log.warning("%s %s is well and is kept", name, one.about.version)
            await self._save(name, state.well())
        elif verdict is Verdict.FAILED:
            await self._leave(name, why)

    async def _end_revoked(self) -> None:
        if not self._loaded:
            return
        revoked = (await self._do(self._place)).revoked
        for name, one in list(self._loaded.items()):
            if one.signer in revoked:
                await self._exchange(name)

    # -- requests

    async def install(
        self, path: str, follow: Follow = lambda _: None, *, again: bool = False
    ) -> dict[str, Any]:
        """Take a file, and start what is in it on trial; return its entry of :meth:`status`.

        :param again: also one that was left before, or an older one.
        :raises ThicketError: it is not for this node, or cannot be kept.
        """
        async with self._lock:
            headway = Headway("writing", words=os.path.basename(path))
            name, state = await self._followed(
                lambda tell: self._take(path, again, tell), headway, follow
            )
            self._states[name] = state
            await self._exchange(name)
            self._begun.set()
            one, taken, state = self._loaded.get(name), state.current, self._states[name]
            if one is None or one.file != taken:
                raise AppError("not-started", f"it is left: {state.left}")
            return self._entry(name, state)

    async def judge(self, path: str, name: str, follow: Follow = lambda _: None) -> None:
        """Find out whether a file of an application may run here.

        :raises ThicketError: it may not, or is of another application.
        """

        def work(tell: Tell) -> None:
            with _opened(path) as source:
                found = app_file.read(source)
                if found.about.name != name:
                    raise AppError("bad-file", f"it is of {found.about.name}, and not of {name}")
                fit.check(found, self._place())
                self._check_beside(found.about)
                app_file.check_contents(source, found.about, tell)
                app_tree.check_form(source, found.about.size)
            self._try_mounting(path, found.about)

        headway = Headway("checking", words=os.path.basename(path))
        async with self._lock:
            await self._followed(work, headway, follow)

    async def back(self, name: str) -> dict[str, Any]:
        """Put the version before into force, or the image's; return the entry of :meth:`status`.

        :raises AppError: there is none.
        """
        async with self._lock:
            state = self._known(name)
            one = self._loaded.get(name)
            own = one is not None and set(one.about.applications) <= set(self._own)
            if not state.current or not (state.before or own):
                raise AppError(
                    "no-way-back",
                    f"there is no version of {name} before this one: `thicket app remove {name}` "
                    "does without it",
                )
            await self._save(name, state.back()._replace(left=""))
            await self._exchange(name)
            return self._entry(name, self._states[name])

    async def remove(self, name: str) -> dict[str, Any]:
        """Do without an application that was installed; the image's runs again, if it has one.

        :returns: ``removed``, its name.

        :raises AppError: there is none of that name, or it cannot be removed.
        """
        async with self._lock:
            self._known(name)
            affected = await self._put_away(name)
            folder = f"{self._data}/{name}"
            try:
                await self._do(lambda: _remove(folder))
            except OSError as error:
                await self._exchange(name)
                words = error.strerror or error
                raise AppError("not-removed", f"{folder} cannot be removed: {words}") from None
            del self._states[name]
            self._problems.clear(f"application {name}", "left")
            self._problems.clear(f"application {name}", "not-started")
            await self._start(affected)
            self._changed()
            return {"removed": name}

    def _known(self, name: str) -> State:
        try:
            return self._states[name]
        except KeyError:
            there = ", ".join(sorted(self._states)) or "none"
            raise AppError(
                "unknown", f"no application {name[:40]!r} was installed; there are: {there}"
            ) from None

    # -- taking a file

    def _take(self, path: str, again: bool, tell: Tell) -> tuple[str, State]:
        """Copy a file that may run here, and have it tried; return its name and the new state."""
        with _opened(path) as source:
            found = app_file.read(source)
            about = found.about
            place = self._place()
            fit.check(found, place)
            self._check_beside(about)
            app_tree.check_form(source, about.size)
            state = self._admitted(about, again)
            folder = f"{self._data}/{about.name}"
            try:
                self._make_room(about, os.fstat(source.fileno()).st_size)
                own_folder(folder, 0o700)
                _copy(source, f"{folder}/{_NEW}", found, tell)
                self._try_mounting(f"{folder}/{_NEW}", about)
                file = app_state.file_name(about)
                os.replace(f"{folder}/{_NEW}", f"{folder}/{file}")
                sync_folder(folder)
                state = state.installed(file)
                app_state.save(folder, state)
                app_state.tidy(folder, state)
            except OSError as error:
                raise AppError("not-kept", f"it cannot be kept: {error.strerror}") from None
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(f"{folder}/{_NEW}")
                if about.name not in self._states:
                    with contextlib.suppress(OSError):  # not empty: it is installed
                        os.rmdir(folder)
        return about.name, state

    def _admitted(self, about: About, again: bool) -> State:
        """Return the state of an application, of which this file may become the current one."""
        state = self._states.get(about.name, app_state.NOTHING)
        if about.name not in self._states and len(self._states) >= MOST:
            raise AppError("too-many", f"{MOST} applications are installed: remove one first")
        identifier = about.identifier.hex()
        if again:
            return state.without_rejected(identifier)
        if identifier in state.rejected:
            raise AppError(
                "rejected",
                f"{about.name} {about.version} was tried here and left: "
                f"{state.rejected[identifier]}. `thicket app install --again FILE` tries it "
                "once more",
            )
        one = self._loaded.get(about.name)
        if one is not None and about.identifier == one.about.identifier:
            raise AppError("installed", f"{about.name} {about.version} is installed already")
        if one is not None and about.number < one.about.number:
            raise AppError(
                "older",
                f"it was built before {about.name} {one.about.version}, which is installed: "
                f"`thicket app back {about.name}` goes back, `thicket app install --again FILE` "
                "takes it nevertheless",
            )
        return state

    def _make_room(self, about: About, size: int) -> None:
        make_folder(self._data, 0o700)
        with contextlib.suppress(OSError):  # what an installation before has left
            app_state.tidy(
                f"{self._data}/{about.name}", self._states.get(about.name, app_state.NOTHING)
            )
        disk = os.statvfs(self._data)
        free = disk.f_bavail * disk.f_frsize
        if free < size + SPARE:
            raise AppError(
                "no-space",
                f"{about.name} has {size >> 10} KiB, and /data has {free >> 10} KiB free, of which "
                f"{SPARE >> 10} are kept: remove an application, or files of yours",
            )

    # -- into force and out of it

    async def _exchange(self, name: str) -> None:
        """Follow the state: end what runs under this name, and start what is to run."""
        affected = await self._put_away(name)
        await self._put_in_force(name)
        if (one := self._loaded.get(name)) is not None:
            affected |= set(one.about.applications)
            await self._stop(one.about.applications)  # those of the image
            _forget(one.about.modules)
        await self._start(affected)
        self._changed()

    async def _put_away(self, name: str) -> set[str]:
        """End a version and unmount it; return the names of its applications."""
        self._trials.pop(name, None)
        one = self._loaded.pop(name, None)
        if one is None:
            return set()
        await self._stop(one.about.applications)
        with contextlib.suppress(ValueError):
            sys.path.remove(one.site)
        _forget(one.about.modules)
        await self._do(lambda: self._unmount(one.folder))
        return set(one.about.applications)

    async def _put_in_force(self, name: str) -> None:
        """Load what the state of an application says: the current version, or the one before."""
        folder = f"{self._data}/{name}"
        part = f"application {name}"
        state = await self._do(lambda: app_state.load(folder))
        self._states[name] = state
        if state.trial >= app_state.MOST_TRIALS:
            why = f"the daemon ended {state.trial} times while it was tried"
            state = await self._reject(name, why)
        words = []
        if os.path.islink(folder):
            words.append(
                f"{folder} is a link, which is not followed: install it again, or remove it"
            )
        elif state is app_state.NOTHING:
            words.append("what was kept of it is damaged: install it again, or remove it")
        for file in filter(None, (state.current, state.before)):
            try:
                one = await self._do(lambda file=file: self._load(name, file))  # type: ignore[misc]
            except (ThicketError, OSError) as error:
                words.append(f"{file}: {error}")
                if state.trial and file == state.current:
                    state = await self._reject(name, str(error))
                continue
            self._loaded[name] = one
            sys.path.insert(0, one.site)
            importlib.invalidate_caches()
            break
        self._tell(name)
        if words and not self._states[name].left:
            self._problems.report(part, "not-started", "; ".join(words), "warning")
        else:
            self._problems.clear(part, "not-started")

    def _load(self, name: str, file: str) -> Loaded:
        """Check and mount a version; blocking."""
        path = f"{self._data}/{name}/{file}"
        with _opened(path) as stream:
            found = app_file.read(stream)
            about = found.about
            if about.name != name:
                raise AppError("bad-file", f"it is of {about.name}")
            signer = fit.check(found, self._place())
            self._check_beside(about)
            app_file.check_contents(stream, about)
            app_tree.check_form(stream, about.size)
        folder = f"{self._run}/{name}-{about.identifier.hex()[:12]}"
        self._mount(path, folder, about)
        return Loaded(about, signer, file, folder)

    def _try_mounting(self, path: str, about: About) -> None:
        """Make sure that a file may be loaded, while what it is to replace still runs."""
        folder = f"{self._run}/{about.name}{_NEW}"
        self._mount(path, folder, about)
        self._unmount(folder)

    def _mount(self, path: str, folder: str, about: About) -> None:
        """Mount contents that were checked; what else is in them than was signed is unmounted."""
        os.makedirs(folder, mode=0o700, exist_ok=True)
        try:
            self._mounter.mount(path, folder, executable=about.architecture != ANY)
            app_tree.check(folder)
            _check_site(f"{folder}/{SITE}", about)
        except (AppError, OSError):
            self._unmount(folder)
            raise

    def _check_beside(self, about: About) -> None:
        others = [one.about for name, one in self._loaded.items() if name != about.name]
        sites = {one.site for one in self._loaded.values()}
        path = [folder for folder in sys.path if folder not in sites]
        own = {
            name: entrypoints.module_of(target)
            for name, target in entrypoints.targets(GROUP, path).items()
        }
        fit.check_beside(about, others, own, path)

    def _unmount(self, folder: str) -> None:
        self._mounter.unmount(folder)
        with contextlib.suppress(OSError):
            os.rmdir(folder)

    async def _leave(self, name: str, why: str) -> None:
        """Give up the current version for the one before."""
        await self._reject(name, why)
        await self._exchange(name)

    async def _reject(self, name: str, why: str) -> State:
        state = self._states[name]
        file = f"{self._data}/{name}/{state.current}"
        identifier, version = await self._do(lambda: _identity(file))
        after = state.rejecting(identifier, f"{version}: {why}" if version else why)
        log.error("%s is left: %s", name, after.left)
        await self._save(name, after)
        return after

    async def _save(self, name: str, state: State) -> None:
        """Keep a state, and drop the files that it does not need; the state is followed anyway."""
        folder = f"{self._data}/{name}"

        def work() -> None:
            app_state.save(folder, state)
            app_state.tidy(folder, state)

        try:
            await self._do(work)
        except (OSError, ThicketError) as error:
            log.warning("%s: the state cannot be kept: %s", folder, error)
        self._states[name] = state
        self._tell(name)
        self._changed()

    def _tell(self, name: str) -> None:
        part, left = f"application {name}", self._states[name].left
        if left:
            one = self._loaded.get(name)
            in_force = one is not None and one.file == self._states[name].current
            runs = f"; {one.about.version} runs" if one is not None and in_force else ""
            self._problems.report(part, "left", f"a version was left: {left}{runs}", "warning")
        else:
            self._problems.clear(part, "left")

    def _factory(self, one: Loaded, name: str) -> Factory:
        return entrypoints.find(GROUP, [one.site])[name]

    async def _stop(self, names: Collection[str]) -> None:
        for name in names:
            if self.runner is not None:
                await self.runner.drop(name)

    async def _start(self, names: Collection[str]) -> None:
        found = self.found()
        for name in sorted(set(names) & set(found)):
            if self.runner is not None:
                await self.runner.put(name, found[name])

    async def _followed(
        self, work: Callable[[Tell], threads.T], headway: Headway, follow: Follow
    ) -> threads.T:
        """Do work, and tell how far it is.

        :param headway: says what it is.
        """
        loop, gauge, waits = asyncio.get_running_loop(), Gauge(), True

        def told(done: int, size: int) -> None:
            if waits:
                follow(gauge.measured(headway, done, size))

        follow(headway)
        try:
            return await self._do(
                lambda: work(lambda done, size: loop.call_soon_threadsafe(told, done, size))
            )
        finally:
            waits = False

    async def _do(self, work: Callable[[], threads.T]) -> threads.T:
        try:
            return await self._threads.do(work, HANGS)
        except TimeoutError:
            raise AppError("hangs", f"the card has not answered for {HANGS:g} s") from None


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """Open a regular file.

    :raises AppError: it cannot be opened, or read.
    """
    try:
        with opened(path) as file:
            yield file
    except OSError as error:
        words = error.strerror
        if os.path.isdir(path):
            words = "it is a folder, and the file of an application is needed"
        raise AppError("no-file", f"{path}: {words}") from None


def _copy(source: BinaryIO, path: str, found: AppFile, tell: Tell) -> None:
    """Copy a file, and make sure that the copy is the one that was judged, as the disk has it."""
    discard(path)
    work = Tally(source.seek(0, os.SEEK_END), tell)
    source.seek(0)
    with open(path, "x+b") as copy:
        os.fchmod(copy.fileno(), 0o600)
        for data in _pieces(source):
            copy.write(data)
            copy.flush()
            os.fdatasync(copy.fileno())  # what is told is on the card
            work.add(len(data))
        from_disk(copy.fileno())
        same = app_file.read(copy)
        if same.about != found.about or same.message.packed() != found.message.packed():
            raise AppError("changed", "the file was changed while it was read: try again")
        app_file.check_contents(copy, found.about)


def _pieces(source: BinaryIO) -> Iterator[bytes]:
    """Yield what is in a file that somebody has brought."""
    left = app_file.MAX_BYTES
    while left:
        try:
            data = source.read(min(_PIECE, left))
        except OSError as error:
            raise AppError(
                "unreadable",
                f"the file cannot be read to its end ({error.strerror}): what it is on fails, or "
                "was taken out. Copy it again, to something else",
            ) from None
        if not data:
            return
        yield data
        left -= len(data)


def _names(data: str) -> list[str]:
    """Return which applications are kept, or are somewhere else, behind a link; what a power cut
    has left of others is removed."""
    found = []
    for name in filter(app_file.is_name, entries(data)):
        folder = f"{data}/{name}"
        if os.path.islink(folder) or os.path.lexists(f"{folder}/{app_state.STATE}"):
            found.append(name)
        else:
            discard(folder)
    return found[:MOST]


def _remove(folder: str) -> None:
    """Remove an application's folder; without its state, what a power cut leaves is nobody's.

    Of a link, nothing is removed of what it points to.

    :raises OSError: it cannot be removed.
    """
    if os.path.isdir(folder) and not os.path.islink(folder):
        discard(f"{folder}/{app_state.STATE}")
        sync_folder(folder)
        shutil.rmtree(folder)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder)


def _identity(path: str) -> tuple[str, str]:
    """Return identifier and version of a file; empty where it cannot be read."""
    try:
        with _opened(path) as file:
            about = app_file.read(file).about
    except (AppError, OSError):
        return os.path.basename(path), ""
    return about.identifier.hex(), about.version


def _check_site(site: str, about: About) -> None:
    """Make sure that the contents are what was signed of them."""
    brought = {_module(entry) for entry in os.listdir(site)} - {""}
    if surplus := brought - set(about.modules):
        raise AppError("modules", f"it brings {min(surplus)}, which is not signed: build it anew")
    points = entrypoints.find(GROUP, [site])
    if missing := set(about.applications) - set(points):
        raise AppError("no-application", f"it has no application {min(missing)}: build it anew")


def _module(entry: str) -> str:
    """Return which module an entry of a folder is; empty for none."""
    return "" if entry.endswith(".dist-info") else entry.partition(".")[0]


def _forget(modules: Collection[str]) -> None:
    """Have modules imported anew when they are asked for again."""
    tops = set(modules)
    for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
        del sys.modules[name]
