# SPDX-License-Identifier: Apache-2.0
"""What an application is and may do: the API that its author sees."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from thicket.base.errors import ThicketError

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

#: Seconds that an application gets for a clean end.
GRACE = 3.0
#: An application that blocks the event loop for this many seconds is interrupted.
BLOCKED = 2.0

Function = TypeVar("Function", bound=Callable[..., Any])


class Current(Protocol):
    """The application whose code runs."""

    name: str

    def block(self, place: str) -> None:
        """End and restart it, because it blocks the event loop at ``place``."""


#: The application whose code runs; set in its tasks and in the functions that it exports.
CURRENT: contextvars.ContextVar[Current | None] = contextvars.ContextVar("app", default=None)


def who() -> str:
    """Return the name of the application that runs, or an empty text."""
    current = CURRENT.get()
    return f"application {current.name}" if current is not None else ""


class Application:
    """The base class of applications.

    :cvar Settings: a dataclass of the keys of ``[application.NAME]``: fields with types, defaults,
        and a ``__post_init__`` that raises ValueError for values that are not allowed. None: no
        settings.
    :ivar node: the node, as applications see it.
    :ivar settings: an instance of ``Settings``, or None.
    """

    Settings: type | None = None

    def __init__(self, node: ApplicationNode, settings: Any) -> None:
        self.node = node
        self.settings = settings

    async def start(self) -> None:
        """Prepare; :meth:`run` follows."""

    async def run(self) -> None:
        """Do the work, for ever. Ending is a failure, as raising is."""
        await asyncio.Event().wait()

    async def stop(self) -> None:
        """Clean up within :data:`GRACE` seconds, after :meth:`run` was cancelled."""

    def health(self) -> str | None:
        """Return what is wrong, for people, or None.

        It is called every ten seconds, and every second while a new version is on trial.
        """
        return None


class BlockedError(BaseException):
    """An application blocks the event loop; raised in its code.

    It is not an ``Exception``, so that the application does not handle it by accident.
    """


class SettingsError(ThicketError, ValueError):
    """The settings of an application are wrong; the text names the key."""


class ApplicationNode:
    """The node as an application sees it; see :class:`thicket.distribution.Node` for the methods.

    Everything that an application makes with it ends with the application.
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
        return self._node.nodes()

    def monitor(self, *, current: bool = True) -> NodeEvents:
        """Return events of nodes: ``async for event in node.monitor()``."""
        events = self._node.monitor(current=current)
        self._events = [known for known in self._events if not known.closed]
        self._events.append(events)
        return events

    def export(
        self, function: Any = None, /, *, thread: bool = False
    ) -> Any:  # decorator of three forms, as that of Node
        from thicket.distribution.exports import function_name

        if function is None or isinstance(function, str):
            return lambda decorated: self._export(
                function or function_name(decorated), decorated, thread
            )
        return self._export(function_name(function), function, thread)

    def _export(self, name: str, function: Function, thread: bool) -> Function:
        running = CURRENT.get()
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def guarded(*arguments: Any) -> Any:
                CURRENT.set(running)
                return await function(*arguments)

        else:

            @functools.wraps(function)
            def guarded(*arguments: Any) -> Any:
                token = CURRENT.set(running)
                try:
                    return function(*arguments)
                finally:
                    CURRENT.reset(token)

        self._node.export(name, thread=thread)(guarded)
        self._exported.append(name)
        return function

    async def call(
        self, peer: str, function: str, /, *arguments: Any, timeout: float | None = 5.0
    ) -> Any:
        return await self._node.call(peer, function, *arguments, timeout=timeout)

    async def spawn(
        self, peer: str, function: str, /, *arguments: Any, timeout: float | None = 5.0
    ) -> RemoteTask:
        return await self._node.spawn(peer, function, *arguments, timeout=timeout)

    async def cast(self, peer: str, function: str, /, *arguments: Any) -> None:
        await self._node.cast(peer, function, *arguments)

    async def send(self, target: Pid | Name | Reference | str, message: Any) -> None:
        await self._node.send(target, message)

    async def request(
        self, target: Pid | Name | str, request: Any, timeout: float | None = 5.0
    ) -> Any:
        return await self._node.request(target, request, timeout)

    def mailbox(self, name: str | None = None, limit: int = 1000) -> Mailbox:
        mailbox = self._node.mailbox(name, limit)
        self._keep(mailbox)
        return mailbox

    def subscribe(self, group: Any, limit: int = 1000) -> Subscription:
        subscription = self._node.subscribe(group, limit)
        self._keep(subscription)
        return subscription

    def join(self, group: Any, process: Process) -> None:
        self._node.join(group, process)

    def leave(self, group: Any, process: Process) -> bool:
        return self._node.leave(group, process)

    def members(self, group: Any) -> list[Pid]:
        return self._node.members(group)

    async def publish(self, group: Any, message: Any) -> int:
        return await self._node.publish(group, message)

    def create_task(self, work: Any) -> asyncio.Task[Any]:
        """Run a coroutine beside :meth:`Application.run`; the application fails when it fails."""
        task = asyncio.create_task(within(work))
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
        """End everything that the application has made."""
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
    """Make the settings of an application from its table in the configuration.

    :raises SettingsError: a key does not exist, is missing, or has a wrong value.
    """
    from thicket.distribution.convert import MismatchError, converter

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


async def within(work: Any) -> Any:
    """Await work of an application; a call of exit() is a failure and does not end the node."""
    try:
        return await work
    except SystemExit as error:
        raise RuntimeError(f"it called exit({error.code})") from error
