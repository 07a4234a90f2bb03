# SPDX-License-Identifier: Apache-2.0
"""What an application is and may do: the API that its author sees."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

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

#: Seconds that an application has for a clean end.
GRACE: Final = 3.0
#: Seconds without a turn of the event loop after which the application that runs is interrupted.
BLOCKED: Final = 2.0

Function = TypeVar("Function", bound=Callable[..., Any])


class Current(Protocol):
    """The application that runs, as its functions know it."""

    name: str

    def block(self, place: str) -> None:
        """It keeps the event loop from running, at ``place``: it is ended and started again."""


#: Whose code runs at the moment: set in the tasks of an application and in what it exports.
CURRENT: contextvars.ContextVar[Current | None] = contextvars.ContextVar("app", default=None)


def who() -> str:
    """Return the name of the application that runs, or an empty text."""
    current = CURRENT.get()
    return f"application {current.name}" if current is not None else ""


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


class SettingsError(ThicketError, ValueError):
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
        task = asyncio.get_running_loop().create_task(within(work))
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
    """Await what an application does; one that exits ends itself, not the process."""
    try:
        return await work
    except SystemExit as error:
        raise RuntimeError(f"it called exit({error.code})") from error
