# SPDX-License-Identifier: Apache-2.0
"""Applications: what a device is for, as Python packages that the daemon loads.

An application is a class that an installed package names as an entry point in the group
``thicket.applications``; docs/applications.md shows one. It runs in the daemon's event loop, and
the node gets along without it:

* one that raises, or just ends, is reported and started again, with growing pauses;
* one that blocks the event loop for :data:`BLOCKED` seconds is interrupted by an exception where it
  stands, reported with the place, and started again;
* one whose memory has grown beyond bounds is reported and started again;
* whatever it made of the node (exported functions, mailboxes, memberships) ends with it.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from logging import getLogger
from typing import TYPE_CHECKING, Any, Final, TypeVar

from thicket import printed
from thicket.status import memory_kib

if TYPE_CHECKING:
    from thicket.distribution import (
        Mailbox,
        Node,
        NodeInfo,
        Pid,
        Reference,
        RemoteTask,
        Subscription,
    )
    from thicket.distribution.mailbox import NodeEvents
    from thicket.distribution.processes import Name, Process
    from thicket.status import Problems

log = getLogger("thicket.applications")

GROUP: Final = "thicket.applications"
#: Pauses before an application is started again, in seconds; the last one repeats.
PAUSES: Final = (1.0, 2.0, 5.0, 15.0, 60.0)
#: An application that ran for so many seconds has got over its failures.
SETTLED: Final = 60.0
#: Seconds that an application has for a clean end.
GRACE: Final = 3.0
#: Seconds after which it is reported that the import of an application takes long.
LOADING: Final = 60.0
#: Seconds without a turn of the event loop after which the application that runs is interrupted.
BLOCKED: Final = 2.0
#: Seconds between two looks at health and memory.
LOOK: Final = 10.0
#: MiB that the process may grow by since the applications started.
GROWTH: Final = 64
#: Objects that are looked at to tell whose memory it is.
_WEIGHED: Final = 200_000

Function = TypeVar("Function", bound=Callable[..., Any])

_RUNNING: contextvars.ContextVar[_Running | None] = contextvars.ContextVar("app", default=None)


def _who() -> str:
    """Return the name of the application that runs, or an empty text."""
    running = _RUNNING.get()
    return f"application {running.name}" if running is not None else ""


class Application:
    """What an application derives from.

    :cvar Settings: a dataclass of what ``[application.NAME]`` may have: fields with types,
        defaults, and in ``__post_init__`` a ValueError for values that are not allowed. None: no
        settings.
    :ivar node: the node, as far as applications are concerned.
    :ivar settings: an instance of ``Settings``, or None.
    """

    Settings: type | None = None

    def __init__(self, node: ApplicationNode, settings: Any) -> None:
        self.node = node
        self.settings = settings

    async def start(self) -> None:
        """Prepare; :meth:`run` begins when this is done."""

    async def run(self) -> None:
        """Do the work, for ever. Ending is a failure, as raising is."""
        await asyncio.Event().wait()

    async def stop(self) -> None:
        """Put things in order, within :data:`GRACE` seconds. :meth:`run` was cancelled before."""

    def health(self) -> str | None:
        """Return what is wrong, in words for people, or None. Asked every :data:`LOOK` seconds."""
        return None


class BlockedError(BaseException):
    """An application has kept the event loop from running; raised where it does.

    No ``Exception``, so that what it runs in does not handle it.
    """


class SettingsError(ValueError):
    """The settings of an application are wrong; the words name the key."""


class ApplicationNode:
    """The node as an application sees it (:class:`thicket.distribution.Node`).

    What is made here ends with the application.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._exported: list[str] = []
        self._mailboxes: list[Mailbox] = []
        self._events: list[NodeEvents] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def name(self) -> str:
        """The node's full name."""
        return self._node.name

    def nodes(self) -> list[NodeInfo]:
        """Return the nodes that are connected or being connected."""
        return self._node.nodes()

    def monitor(self, *, current: bool = True) -> NodeEvents:
        """Return what happens to nodes: ``async for event in node.monitor()``."""
        events = self._node.monitor(current=current)
        self._events = [known for known in self._events if not known.closed]
        self._events.append(events)
        return events

    def export(
        self, function: Any = None, /, *, thread: bool = False
    ) -> Any:  # decorator of three forms, as that of Node
        """Let other nodes call a function, see :meth:`thicket.distribution.Node.export`."""
        from thicket.distribution.calls import function_name  # noqa: PLC0415

        if function is None or isinstance(function, str):
            return lambda decorated: self._export(
                function or function_name(decorated), decorated, thread
            )
        return self._export(function_name(function), function, thread)

    def _export(self, name: str, function: Function, thread: bool) -> Function:
        running = _RUNNING.get()
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def within(*arguments: Any) -> Any:
                _RUNNING.set(running)
                return await function(*arguments)

        else:

            @functools.wraps(function)
            def within(*arguments: Any) -> Any:
                token = _RUNNING.set(running)
                try:
                    return function(*arguments)
                finally:
                    _RUNNING.reset(token)

        self._node.export(name, thread=thread)(within)
        self._exported.append(name)
        return function

    async def call(
        self, peer: str, function: str, /, *arguments: Any, timeout: float | None = 5.0
    ) -> Any:
        """Call a function on another node, see :meth:`thicket.distribution.Node.call`."""
        return await self._node.call(peer, function, *arguments, timeout=timeout)

    async def spawn(
        self, peer: str, function: str, /, *arguments: Any, timeout: float | None = 5.0
    ) -> RemoteTask:
        """Start a function on another node, see :meth:`thicket.distribution.Node.spawn`."""
        return await self._node.spawn(peer, function, *arguments, timeout=timeout)

    async def cast(self, peer: str, function: str, /, *arguments: Any) -> None:
        """Have a function run on another node without waiting for it."""
        await self._node.cast(peer, function, *arguments)

    async def send(self, target: Pid | Name | Reference | str, message: Any) -> None:
        """Send a message to a process, a registered name ``(name, node)`` or an alias; a name alone
        is one of this node."""
        await self._node.send(target, message)

    async def request(
        self, target: Pid | Name | str, request: Any, timeout: float | None = 5.0
    ) -> Any:
        """Ask a process as ``gen_server:call`` does."""
        return await self._node.request(target, request, timeout)

    def mailbox(self, name: str | None = None, limit: int = 1000) -> Mailbox:
        """Return a new process that receives messages."""
        mailbox = self._node.mailbox(name, limit)
        self._keep(mailbox)
        return mailbox

    def subscribe(self, group: Any, limit: int = 1000) -> Subscription:
        """Return a new member of a group: ``async for message in node.subscribe(group)``."""
        subscription = self._node.subscribe(group, limit)
        self._keep(subscription)
        return subscription

    def join(self, group: Any, process: Process) -> None:
        """Make a mailbox a member of a group."""
        self._node.join(group, process)

    def leave(self, group: Any, process: Process) -> bool:
        """Take a join back."""
        return self._node.leave(group, process)

    def members(self, group: Any) -> list[Pid]:
        """Return the members of a group, of all connected nodes."""
        return self._node.members(group)

    async def publish(self, group: Any, message: Any) -> int:
        """Send a message to every member of a group; the number of them."""
        return await self._node.publish(group, message)

    def create_task(self, work: Any) -> asyncio.Task[Any]:
        """Run a coroutine beside :meth:`Application.run`; its failure is the application's."""
        task = asyncio.get_running_loop().create_task(_within(work))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None or self.failed.done():
            return
        error = task.exception()
        assert error is not None
        self.failed.set_exception(error)

    def _keep(self, mailbox: Mailbox) -> None:
        self._mailboxes = [known for known in self._mailboxes if not known.closed]
        self._mailboxes.append(mailbox)

    async def close(self) -> None:
        """End what the application has made."""
        for name in self._exported:
            self._node.unexport(name)
        for mailbox in self._mailboxes:
            mailbox.close()
        for events in self._events:
            events.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=GRACE)
        self.failed.cancel()


def settings_of(kind: type | None, table: dict[str, Any]) -> Any:
    """Return the settings of an application, made of its table in the configuration.

    :raises SettingsError: for a key that does not exist, is missing, or has a wrong value.
    """
    from thicket.distribution.convert import MismatchError, converter  # noqa: PLC0415

    given = {key: value for key, value in table.items() if key != "enabled"}
    if kind is None:
        if given:
            raise SettingsError(f"it has no settings, but found {', '.join(sorted(given))}")
        return None
    if not is_dataclass(kind):
        raise TypeError(f"{kind!r} is no dataclass")
    types_of = inspect.get_annotations(kind, eval_str=True)
    values = {}
    for field in fields(kind):
        if field.name not in given:
            if field.default is MISSING and field.default_factory is MISSING:
                raise SettingsError(f"{field.name} is missing")
            continue
        try:
            values[field.name] = converter(types_of[field.name])(given.pop(field.name))
        except MismatchError as error:
            raise SettingsError(f"{field.name}: {error}") from None
    if given:
        known = ", ".join(field.name for field in fields(kind))
        raise SettingsError(f"{', '.join(sorted(given))} is not known; known are: {known}")
    try:
        return kind(**values)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def judge(
    settings: dict[str, dict[str, Any]], found: dict[str, Callable[[], Any]]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Judge the tables ``[application.NAME]`` without running anything but imports.

    :returns: the faults as pairs of key and words, and in words what could not be judged.
    """
    faults, notes = [], []
    for name, table in settings.items():
        key = f"application.{name}"
        if name not in found:
            there = f"there are: {', '.join(sorted(found))}" if found else "there is none"
            notes.append(f"[{key}] is not judged: the application is not installed here ({there})")
            continue
        try:
            settings_of(getattr(_without_exit(found[name]), "Settings", None), table)
        except SettingsError as error:
            faults.append((key, str(error)))
        except Exception as error:  # a fault of the application, not of the file
            notes.append(f"[{key}] is not judged: {type(error).__name__}: {error}")
    return faults, notes


class _Running:
    """One application and its supervision."""

    def __init__(self, name: str, factory: Callable[[], Any], owner: Applications) -> None:
        self.name = name
        self.factory = factory
        self.owner = owner
        self.state = "starting"
        self.starts = 0
        self.current: Application | None = None
        self.blocked: str | None = None
        self._reason: str | None = None
        self._again = asyncio.Event()
        self._inner: asyncio.Task[None] | None = None
        self.task = asyncio.get_running_loop().create_task(self._supervise(), name=name)

    def restart(self, reason: str) -> None:
        """Start the application again, because of *reason*."""
        if self._inner is not None and not self._inner.done():
            self._reason = reason
            self._inner.cancel()

    def settings_changed(self) -> None:
        """Start the application again with other settings."""
        self._again.set()
        if self._inner is not None:
            self._reason = ""
            self._inner.cancel()

    async def _supervise(self) -> None:
        _RUNNING.set(self)
        problems, part = self.owner.problems, f"application {self.name}"
        failures = 0
        while True:
            self._again.clear()
            self._reason = None
            self.blocked = None
            begin = time.monotonic()
            self._inner = asyncio.get_running_loop().create_task(self._run(), name=self.name)
            settled = asyncio.get_running_loop().call_later(SETTLED, problems.clear, part, "failed")
            try:
                await asyncio.wait({self._inner})
            except asyncio.CancelledError:
                self._inner.cancel()
                await asyncio.wait({self._inner}, timeout=GRACE + 0.5)
                raise
            finally:
                settled.cancel()
            error = None if self._inner.cancelled() else self._inner.exception()
            self.state = "waiting"
            if isinstance(error, SettingsError):
                problems.report(part, "settings", f"[application.{self.name}] {error}", "warning")
                self.state = "unusable"
                await self._again.wait()
                problems.clear(part, "settings")
                continue
            if self.blocked is None and self._reason == "":  # other settings
                continue
            if self.blocked is not None:
                reason = f"it kept the node from running for {BLOCKED:g} s, at {self.blocked}"
            elif self._reason is not None:
                reason = self._reason
            elif error is None:
                reason = "it ended by itself"
            else:
                reason = f"{type(error).__name__}: {error}"
            if time.monotonic() - begin > SETTLED:
                failures = 0
            pause = PAUSES[min(failures, len(PAUSES) - 1)]
            failures += 1
            log.error("the application %s failed: %s", self.name, reason, exc_info=error)
            message = f"failed ({reason}); it is started again in {pause:g} s"
            problems.report(part, "failed", message, "warning")
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._again.wait()

    async def _run(self) -> None:
        """Run the application once, guarded against what is no ``Exception``."""
        node = ApplicationNode(self.owner.node)
        self.starts += 1
        application: Application | None = None
        try:
            made = await self._loaded()
            table = self.owner.settings.get(self.name, {})
            settings = settings_of(getattr(made, "Settings", None), table)
            application = self.current = made(node, settings)
            await _within(application.start())
            self.state = "running"
            log.info("the application %s runs", self.name)
            work = asyncio.get_running_loop().create_task(_within(application.run()))
            try:
                await asyncio.wait({work, node.failed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                work.cancel()
                await asyncio.wait({work}, timeout=GRACE)
            if node.failed.done():
                node.failed.result()
            if not work.cancelled():
                work.result()
        except BlockedError:
            return
        finally:
            self.current = None
            if application is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(GRACE):
                        await application.stop()
            await node.close()

    async def _loaded(self) -> Any:
        """Import the application, and return its class.

        In a thread of its own: from a slow card that takes as long as it takes, and the node goes
        on meanwhile. What hangs there hangs for ever, and is reported.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def tell(set_it: Callable[[Any], None], what: Any) -> None:
            if not done.done():
                set_it(what)

        def load() -> None:
            try:
                call = functools.partial(tell, done.set_result, _without_exit(self.factory))
            except BaseException as error:
                told: BaseException = error
                # No future takes the first, and of the others some end the event loop.
                if isinstance(error, StopIteration) or not isinstance(error, Exception):
                    told = RuntimeError(f"its import raised {type(error).__name__}: {error}")
                call = functools.partial(tell, done.set_exception, told)
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(call)

        context = contextvars.copy_context()  # whose the lines are that it prints
        thread = threading.Thread(
            target=context.run, args=(load,), name=f"import {self.name}", daemon=True
        )
        thread.start()
        try:
            async with asyncio.timeout(LOADING):
                return await asyncio.shield(done)
        except TimeoutError:
            frame = sys._current_frames().get(thread.ident or 0)
            place = _place(frame)
            words = f"its import has not ended after {LOADING:g} s and is waited for, at {place}"
            self.owner.problems.report(f"application {self.name}", "loading", words, "warning")
        try:
            return await done
        finally:
            self.owner.problems.clear(f"application {self.name}", "loading")


def _place(frame: types.FrameType | None) -> str:
    """Return where a thread is, in words."""
    if frame is None:
        return "?"
    last = traceback.extract_stack(frame)[-1]
    return f"{last.filename}:{last.lineno} in {last.name}"


def _without_exit(function: Callable[[], Any]) -> Any:
    """Call *function*; one that exits ends itself, not the process."""
    try:
        return function()
    except SystemExit as error:
        raise RuntimeError(f"it called exit({error.code})") from error


async def _within(work: Any) -> Any:
    """Await what an application does; one that exits ends itself, not the process."""
    try:
        return await work
    except SystemExit as error:
        raise RuntimeError(f"it called exit({error.code})") from error


class Applications:
    """All applications of the node. :meth:`run` starts and supervises them.

    :param settings: the tables ``[application.NAME]``.
    :param found: the applications by name, each a function that returns its class.
    """

    def __init__(
        self,
        node: Node,
        settings: dict[str, dict[str, Any]],
        problems: Problems,
        found: dict[str, Callable[[], Any]],
    ) -> None:
        self.node = node
        self.settings = settings
        self.problems = problems
        self._found = found
        self._running: dict[str, _Running] = {}
        self._beat: asyncio.TimerHandle | None = None
        self._memory = 0
        self._strikes = 0

    def status(self) -> list[dict[str, Any]]:
        """Return name, state (``starting``, ``running``, ``waiting``, ``unusable``) and starts of
        each application."""
        return [
            {"name": running.name, "state": running.state, "starts": running.starts}
            for running in self._running.values()
        ]

    def settings_changed(self, settings: dict[str, dict[str, Any]]) -> None:
        """Follow other settings: what has other ones is started again, or ended, or begun."""
        old, self.settings = self.settings, settings
        for name, running in list(self._running.items()):
            if not self._enabled(name):
                del self._running[name]
                running.task.cancel()
            elif old.get(name, {}) != settings.get(name, {}):
                running.settings_changed()
        self._begin(self._found)

    async def run(self) -> None:
        """Run all applications until cancelled."""
        printed.name_sources(_who)
        self._begin(self._found)
        self._guard()
        try:
            self._memory = memory_kib()
            while True:
                await asyncio.sleep(LOOK)
                self._look()
        finally:
            self._unguard()
            tasks = [running.task for running in self._running.values()]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=2 * GRACE)
            printed.sweep(0.0)
            for name in self._running:
                for code in ("failed", "settings", "unwell"):
                    self.problems.clear(f"application {name}", code)

    def _enabled(self, name: str) -> bool:
        return self.settings.get(name, {}).get("enabled", True) is not False

    def _begin(self, found: dict[str, Callable[[], Any]]) -> None:
        for name, factory in found.items():
            if name not in self._running and self._enabled(name):
                self._running[name] = _Running(name, factory, self)

    # -- care

    def _look(self) -> None:
        """Ask for health, and look at the memory."""
        printed.sweep()
        for running in self._running.values():
            part = f"application {running.name}"
            words = None
            if running.current is not None and running.state == "running":
                try:
                    words = running.current.health()
                except Exception as error:
                    words = f"its health cannot be told: {type(error).__name__}: {error}"
            if words:
                self.problems.report(part, "unwell", words, "warning")
            else:
                self.problems.clear(part, "unwell")
        grown = (memory_kib() - self._memory) // 1024
        if grown <= GROWTH:
            return
        weights = {
            running: weigh(running.current)
            for running in self._running.values()
            if running.current is not None
        }
        if weights:
            worst = max(weights, key=lambda running: weights[running])
            worst.restart(
                f"the process has grown by {grown} MiB (limit {GROWTH}), most of it is held by this"
                f" application"
            )
            # What is there from now on is not its fault twice.
            self._memory += 1024 * GROWTH // 2

    def _guard(self) -> None:
        """Have whoever blocks the event loop interrupted: an alarm that only a running loop puts
        off."""
        signal.signal(signal.SIGALRM, self._alarm)
        self._put_off()

    def _put_off(self) -> None:
        self._strikes = 0
        signal.setitimer(signal.ITIMER_REAL, BLOCKED / 2)
        self._beat = asyncio.get_running_loop().call_later(BLOCKED / 4, self._put_off)

    def _unguard(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def _alarm(self, number: int, frame: types.FrameType | None) -> None:
        """Runs in the middle of what blocks.

        The first alarm may be due to a machine that stood still as a whole: then the loop has its
        turn before the second one.
        """
        signal.setitimer(signal.ITIMER_REAL, BLOCKED / 2)
        self._strikes += 1
        if self._strikes % 2:
            return
        running = _RUNNING.get()
        place = _place(frame)
        if running is None:
            log.warning("the event loop stood still for %g s, at %s", BLOCKED, place)
            return
        running.blocked = place
        running.restart("")
        raise BlockedError(place)


def weigh(root: Any) -> int:
    """Return about how many bytes are held by *root* alone, as far as the first objects show."""
    ignored: tuple[type, ...] = (
        type,
        types.ModuleType,
        types.FunctionType,
        types.CodeType,
        types.FrameType,
    )
    ignored += (ApplicationNode, asyncio.AbstractEventLoop)
    seen: set[int] = set()
    waiting = [root]
    total = 0
    while waiting and len(seen) < _WEIGHED:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, ignored):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item, 0)
        waiting.extend(gc.get_referents(item))
    return total
