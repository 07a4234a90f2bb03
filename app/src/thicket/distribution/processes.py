# SPDX-License-Identifier: Apache-2.0
"""The processes of this node, and what they send to others.

A process has a process identifier. Processes of all nodes can send it messages, watch ("monitor")
it, link with it, and ask it to exit. :class:`ProcessTable` knows all processes of this node, and
sends the control messages of the ERTS User's Guide, "Distribution Protocol", section "Protocol
between Connected Nodes"; :mod:`.signals` receives them.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from thicket.distribution import atoms, frames
from thicket.distribution.atoms import (
    ERROR,
    GEN_CALL,
    NO_CONNECTION,
    NO_PROCESS,
    NOBODY,
    NORMAL,
    NOT_SUPPORTED,
    SYSTEM,
    SYSTEM_LIMIT,
    UNDEFINED,
)
from thicket.distribution.etf import (
    Atom,
    ImproperList,
    Pid,
    Reference,
    decode_bare,
    encode_bare,
)
from thicket.distribution.handshake import (
    ALIAS,
    EXIT_PAYLOAD,
    SEND_SENDER,
    UNLINK_ID,
    DistributionError,
    key_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sized

    from thicket.distribution.connection import Connection
    from thicket.distribution.identifiers import Identifiers

log = logging.getLogger(__name__)

MAX_WATCHERS = 10_000
"""Limit of monitors, and of links, on one process of this node."""

MAX_WATCHERS_PER_NODE = 1_000
"""The same for the processes of one other node."""

_MAX_FORGERS = 64

Name = tuple[str, str]
"""A registered name on a node: the name, and the node's full name."""


class Process:
    """A process of this node.

    A ``connection`` is None wherever the other side is on this node as well.

    :ivar pid: its identifier.
    :ivar monitors: who watches it, by reference: connection, watcher, and the watched pid or
        registered name.
    :ivar links: the pids linked with it and their connections.
    :ivar watched: what it watches, by reference: connection, and pid or registered name.
    :ivar unlinking: undone links whose other end has not confirmed that yet.
    """

    def __init__(self, node: ProcessTable) -> None:
        self.node = node
        self.pid = node.new_pid()
        self.monitors: dict[Reference, tuple[Connection | None, Pid, Pid | Atom]] = {}
        self.links: dict[Pid, Connection | None] = {}
        self.watched: dict[Reference, tuple[Connection | None, Pid | Atom]] = {}
        self.unlinking: dict[Pid, int] = {}

    #: Whether it answers requests of ``gen:call``; otherwise they are refused.
    answers = True
    #: Whether connections stay for its monitors and links.
    pins = True

    def on_message(self, connection: Connection | None, message: Any) -> None:
        """Handle a message."""

    async def room(self) -> None:
        """Wait, for a limited time, until the process has room for another message."""

    def reply(self, connection: Connection | None, sender: Pid, tag: Any, answer: Any) -> None:
        """Answer a request of ``gen:call``.

        The answer goes to the caller's alias, so that it is dropped when the caller no longer
        waits, or else to its pid.
        """
        message = (tag, answer)
        alias = alias_of(tag)
        if alias is not None:
            self.node.send_to_alias(connection, self.pid, alias, message)
        else:
            self.node.send_to(connection, self.pid, sender, message)

    def on_down(self, connection: Connection | None, reference: Reference, reason: Any) -> None:
        """Handle the end of a watched process."""

    def on_exit(
        self, connection: Connection | None, sender: Pid, reason: Any, *, linked: bool
    ) -> None:
        """Handle the end of a process that was linked with this one, or a request to exit."""

    def awaits(self, connection: Connection, reference: Any) -> bool:
        """Return whether ``connection`` may report the end that is watched with ``reference``."""
        watch = self.watched.get(reference)
        return watch is not None and watch[0] is connection

    def on_untaken(
        self, connection: Connection, reference: Reference | None, error: DistributionError
    ) -> None:
        """Handle a message, or with ``reference`` the end of a watched process, that is too long or
        no term."""
        if reference is not None:
            self.on_down(connection, reference, SYSTEM_LIMIT)

    def on_untaken_request(
        self, connection: Connection, sender: Pid, tag: Any, reason: Atom
    ) -> None:
        """Answer a request of ``gen:call`` that is too long or no term: its caller watches this
        process, and is told that it has ended."""
        reference = tag if type(tag) is Reference else alias_of(tag)
        watch = self.monitors.get(reference) if reference is not None else None
        if reference is not None and watch is not None and watch[0] is connection:
            del self.monitors[reference]
            self.node.send_down(connection, watch[2], watch[1], reference, reason)

    def on_demonitor(self, reference: Reference) -> None:
        """Handle the end of a watch on this process."""

    def needs(self, connection: Connection) -> bool:
        """Return whether something of this process depends on a connection."""
        return (
            any(watch[0] is connection for watch in self.watched.values())
            or any(watch[0] is connection for watch in self.monitors.values())
            or any(linked is connection for linked in self.links.values())
        )

    def on_spawned(self, reference: Reference, found: Any) -> None:
        """Handle the answer to a spawn request: the new process, or why there is none."""

    def on_stop(self) -> None:
        """Handle the end of this node."""

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        """Handle the end of a connection."""
        for reference in [r for r, watch in self.monitors.items() if watch[0] is connection]:
            del self.monitors[reference]
        for reference in [r for r, watch in self.watched.items() if watch[0] is connection]:
            self.on_down(connection, reference, NO_CONNECTION)
            self.watched.pop(reference, None)
        for pid in [pid for pid, linked in self.links.items() if linked is connection]:
            del self.links[pid]
            self.on_exit(connection, pid, NO_CONNECTION, linked=True)
        if self.unlinking:
            name = connection.name
            for pid in [pid for pid in self.unlinking if pid.node == name]:
                del self.unlinking[pid]


class Waiting(Process):
    """A process for one question, so that a late answer finds nobody.

    :param connection: to the node that is asked, None for this one.
    :ivar reference: identifies the answer, and the watch on the process that is asked.
    :ivar answer: the answer; fails when there will be none.
    """

    def __init__(self, node: ProcessTable, connection: Connection | None) -> None:
        super().__init__(node)
        self.reference = node.new_reference()
        self.connection = connection
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def fail(self, error: DistributionError) -> None:
        """Raise *error* for the caller who waits, unless there is an answer."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def awaits(self, connection: Connection, reference: Any) -> bool:
        return connection is self.connection and bool(reference == self.reference)

    def needs(self, connection: Connection) -> bool:
        return connection is self.connection or super().needs(connection)

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        super().on_disconnect(connection, reason)
        if connection is self.connection:
            self.fail(reason)


class ProcessTable:
    """The processes of a node, by number and by name; sends their messages.

    :param name: the node's name, in canonical form.
    :param tick_time: seconds of silence after which a peer counts as lost.
    :ivar connections: the connected nodes, by the key of their names (:func:`.handshake.key_of`).
    :ivar counters: of received messages: all, unknown ones (``unknown``), those without a valid
    form
        (``undecodable``), and those in the name of another node (``forged``).
    """

    def __init__(self, name: str, identifiers: Identifiers, tick_time: float) -> None:
        self.name = name
        self.tick_time = tick_time
        self.connections: dict[str, Connection] = {}
        self.counters: dict[str, int] = dict.fromkeys(
            ("messages", "unknown", "undecodable", "forged"), 0
        )
        self._identifiers = identifiers
        self._processes: dict[int, Process] = {}
        self._names: dict[str, Process] = {}
        self._aliases: dict[Reference, Process] = {}
        self._forgers: set[str] = set()

    # --- identifiers --------------------------------------------------------------------------

    @property
    def creation(self) -> int:
        """The number of this start of the node."""
        return self._identifiers.creation

    def new_pid(self) -> Pid:
        """Return an unused process identifier."""
        while True:
            pid = self._identifiers.pid()
            if pid.id not in self._processes:
                return pid

    def new_reference(self) -> Reference:
        """Return a new reference."""
        return self._identifiers.reference()

    def new_alias(self, process: Process) -> Reference:
        """Return a reference by which ``process`` receives messages, until :meth:`drop_alias`."""
        alias = self.new_reference()
        self._aliases[alias] = process
        return alias

    def drop_alias(self, alias: Reference) -> None:
        """Drop an alias, and messages to it from now on."""
        self._aliases.pop(alias, None)

    # --- life of processes --------------------------------------------------------------------

    def add(self, process: Process) -> None:
        """Make ``process`` reachable by its pid."""
        self._processes[process.pid.id] = process

    def register(self, name: str, process: Process) -> None:
        """Make ``process`` reachable by ``name``.

        :raises ValueError: another process has the name, or it is ``undefined``, which no process
            of any node has.
        """
        if name == UNDEFINED:
            raise ValueError(f"no process is registered as {name!r}")
        if name in self._names:
            raise ValueError(f"the name {name!r} is registered already")
        self.add(process)
        self._names[name] = process

    def own_name(self, name: str) -> Name:
        """Return a name that is registered here, with this node's name.

        :raises DistributionError: ``noproc``, there is no such name.
        """
        if name not in self._names:
            raise DistributionError("noproc", f"no process is registered as {name!r} here")
        return name, self.name

    def processes(self) -> list[Process]:
        """Return the reachable processes, the oldest first."""
        return list(self._processes.values())

    def whereis(self, name: str) -> Process | None:
        """Return the process registered as ``name``."""
        return self._names.get(name)

    def end(self, process: Process, reason: Any = NORMAL) -> None:
        """End ``process``, and tell its watchers and the processes linked with it."""
        if self._processes.pop(process.pid.id, None) is None:
            return
        for name in [name for name, known in self._names.items() if known is process]:
            del self._names[name]
        for alias in [alias for alias, known in self._aliases.items() if known is process]:
            del self._aliases[alias]
        monitors, process.monitors = process.monitors, {}
        links, process.links = process.links, {}
        watched, process.watched = process.watched, {}
        for reference, (connection, watcher, item) in monitors.items():
            self.send_down(connection, item, watcher, reference, reason)
        for pid, connection in links.items():
            self.send_exit(connection, process.pid, pid, reason)
        for reference, (connection, item) in watched.items():
            self._send_demonitor(connection, process, item, reference)

    def find(self, target: Any) -> Process | None:
        """Return the process of this node with a pid or a registered name."""
        if type(target) is Pid:
            process = self._processes.get(target.id)
            return process if process is not None and process.pid == target else None
        return self._names.get(target) if type(target) is Atom else None

    def aliased(self, alias: Reference) -> Process | None:
        """Return the process of this node that has made ``alias``."""
        return self._aliases.get(alias)

    def way_to(self, node: str) -> Connection | None:
        """Return the connection to ``node``; None for this node itself.

        :raises DistributionError: ``closed``, it is not connected.
        """
        key = key_of(str(node))
        if key == self.name:
            return None
        connection = self.connections.get(key)
        if connection is None:
            raise DistributionError("closed", f"{node} is not connected")
        return connection

    def reach(self, node: str, then: Callable[[Connection | None], None]) -> bool:
        """Connect with a member that is not connected, and call ``then`` with the connection, or
        with None when that fails; False when this node does not connect with it for this."""
        return False

    # --- sending ------------------------------------------------------------------------------

    def send_to(
        self, connection: Connection | None, sender: Pid, target: Pid, message: Any
    ) -> None:
        """Send ``message`` to a process of a connected node."""
        if connection is None:
            self._send_here(target, message)
            return
        control = (
            (frames.SEND_SENDER, sender, target)
            if connection.has(SEND_SENDER)
            else (frames.SEND, NOBODY, target)
        )
        connection.send(control, connection.encode(message))

    def send_to_name(
        self, connection: Connection | None, sender: Pid, name: str, message: Any
    ) -> None:
        """Send ``message`` to a registered process of a connected node."""
        if connection is None:
            self._send_here(Atom(name), message)
            return
        connection.send((frames.REG_SEND, sender, NOBODY, Atom(name)), connection.encode(message))

    def send_to_alias(
        self, connection: Connection | None, sender: Pid, alias: Reference, message: Any
    ) -> None:
        """Send ``message`` to a process of a connected node by an alias it made."""
        if connection is None:
            process = self._aliases.get(alias)
            if process is not None:
                process.on_message(None, copy(message))
        elif connection.has(ALIAS):
            connection.send((frames.ALIAS_SEND, sender, alias), connection.encode(message))

    def _send_here(self, target: Any, message: Any) -> None:
        process = self.find(target)
        if process is not None:
            self.give(None, process, copy(message))

    def watch(self, process: Process, target: Pid | Name | str) -> Reference:
        """Report the end of ``target`` to ``process`` (:meth:`Process.on_down`).

        That happens before this returns when the process does not exist, or its node is no member
        of the cluster. A member that is not connected is connected first.

        :param target: a pid, ``(name, node)``, or a name on this node.
        """
        reference = self.new_reference()
        item: Pid | Atom
        if isinstance(target, Pid):
            node, item = str(target.node), target
        elif isinstance(target, str):
            node, item = self.name, Atom(target)
        else:
            node, item = target[1], Atom(target[0])

        def connected(connection: Connection | None) -> None:
            if reference not in process.watched:
                return  # undone meanwhile
            if connection is not None:
                process.watched[reference] = connection, item
                connection.send((frames.MONITOR_P, process.pid, item, reference))
                return
            process.on_down(None, reference, NO_CONNECTION)
            process.watched.pop(reference, None)

        try:
            connection = self.way_to(node)
        except DistributionError:
            process.watched[reference] = None, item
            if not self.reach(node, connected):
                connected(None)
            return reference
        process.watched[reference] = connection, item
        if connection is not None:
            connection.send((frames.MONITOR_P, process.pid, item, reference))
        else:
            self.add_watch(None, process.pid, item, reference)
        return reference

    def unwatch(self, process: Process, reference: Reference) -> None:
        """Undo :meth:`watch`."""
        known = process.watched.pop(reference, None)
        if known is not None:
            self._send_demonitor(known[0], process, known[1], reference)

    def _send_demonitor(
        self,
        connection: Connection | None,
        process: Process,
        item: Pid | Atom,
        reference: Reference,
    ) -> None:
        if connection is not None:
            connection.send((frames.DEMONITOR_P, process.pid, item, reference))
        else:
            self.drop_watch(None, item, reference)

    def link(self, process: Process, target: Pid) -> None:
        """Link ``process`` with ``target``: the end of one is reported to the other."""
        if target in process.links or target == process.pid:
            return

        def connected(connection: Connection | None) -> None:
            if target not in process.links:
                return  # undone meanwhile
            if connection is not None:
                process.links[target] = connection
                connection.send((frames.LINK, process.pid, target))
                return
            del process.links[target]
            process.on_exit(None, target, NO_CONNECTION, linked=True)

        try:
            connection = self.way_to(str(target.node))
        except DistributionError:
            process.links[target] = None
            if not self.reach(str(target.node), connected):
                connected(None)
            return
        process.links[target] = connection
        if connection is not None:
            connection.send((frames.LINK, process.pid, target))
        else:
            self.add_link(None, process.pid, target)

    def unlink(self, process: Process, target: Pid) -> None:
        """Undo a link, whoever made it."""
        if target not in process.links:
            return
        connection = process.links.pop(target)
        if connection is None:
            self.drop_link(process.pid, target)
        elif connection.has(UNLINK_ID):
            number = self._identifiers.unlink()
            # Until this is confirmed, an exit of the target belongs to the old link.
            process.unlinking[target] = number
            connection.send((frames.UNLINK_ID, number, process.pid, target))
        else:
            connection.send((frames.UNLINK, process.pid, target))

    def exit(self, sender: Pid, target: Pid, reason: Any) -> None:
        """Ask ``target`` to exit, as ``exit/2`` does.

        :raises DistributionError: ``closed``, its node is not connected, and no member.
        """

        def connected(connection: Connection | None) -> None:
            if connection is not None:
                self._exit(connection, sender, target, reason)

        try:
            connection = self.way_to(str(target.node))
        except DistributionError:
            if not self.reach(str(target.node), connected):
                raise
            return
        if connection is not None:
            self._exit(connection, sender, target, reason)
            return
        process = self.find(target)
        if process is not None:
            process.on_exit(None, sender, copy(reason), linked=False)

    def _exit(self, connection: Connection, sender: Pid, target: Pid, reason: Any) -> None:
        if connection.has(EXIT_PAYLOAD):
            connection.send((frames.PAYLOAD_EXIT2, sender, target), connection.encode(reason))
        else:
            connection.send((frames.EXIT2, sender, target, reason))

    def send_down(
        self,
        connection: Connection | None,
        item: Pid | Atom,
        watcher: Pid,
        reference: Reference,
        why: Any,
    ) -> None:
        """Tell ``watcher`` that ``item``, a process of this node, has ended or never existed."""
        if connection is None:
            process = self.find(watcher)
            if process is not None:
                process.on_down(None, reference, why)
                process.watched.pop(reference, None)
        elif connection.has(EXIT_PAYLOAD):
            connection.send(
                (frames.PAYLOAD_MONITOR_P_EXIT, item, watcher, reference), connection.encode(why)
            )
        else:
            connection.send((frames.MONITOR_P_EXIT, item, watcher, reference, why))

    def send_exit(self, connection: Connection | None, sender: Pid, target: Pid, why: Any) -> None:
        """Tell ``target`` that ``sender``, linked with it, has ended."""
        if connection is None:
            process = self.find(target)
            if process is not None and process.links.pop(sender, connection) is connection:
                process.on_exit(None, sender, why, linked=True)
        elif connection.has(EXIT_PAYLOAD):
            connection.send((frames.PAYLOAD_EXIT, sender, target), connection.encode(why))
        else:
            connection.send((frames.EXIT, sender, target, why))

    # --- receiving ----------------------------------------------------------------------------

    def forged(self, connection: Connection, what: str) -> None:
        """Count ``what``, a message in another name than that of the peer's connection."""
        self.counters["forged"] += 1
        name = connection.name
        if name not in self._forgers and len(self._forgers) < _MAX_FORGERS:
            self._forgers.add(name)
            log.warning("dropped from %s: %s", name, what)

    def speaks_for(self, connection: Connection | None, sender: Pid, what: str) -> bool:
        """Return whether ``sender`` is of the connected node; otherwise the message is forged.

        :param what: the message, in words.
        """
        if connection is None or sender.node == connection.name:
            return True
        self.forged(connection, f"{what} in the name of a process of {sender.node}")
        return False

    def give(self, connection: Connection | None, process: Process, message: Any) -> None:
        """Hand a message to a process, or refuse a request that it does not answer.

        The requests of ``sys`` and ``gen_server:stop`` to any OTP process have no meaning here.
        """
        if (
            type(message) is tuple
            and len(message) == 3
            and (message[0] == SYSTEM or (message[0] == GEN_CALL and not process.answers))
        ):
            match message[1]:
                case (Pid() as sender, tag):
                    if self.speaks_for(connection, sender, "a request"):
                        process.reply(connection, sender, tag, (ERROR, NOT_SUPPORTED))
                    return
        process.on_message(connection, message)

    def add_watch(
        self, connection: Connection | None, watcher: Pid, item: Any, reference: Reference
    ) -> None:
        """Report the end of ``item``, a pid or name of this node, to ``watcher``."""
        process = self.find(item)
        if process is None:
            self.send_down(connection, item, watcher, reference, NO_PROCESS)
        elif _full(process.monitors, connection, (watch[0] for watch in process.monitors.values())):
            self.send_down(connection, item, watcher, reference, SYSTEM_LIMIT)
        else:
            process.monitors[reference] = connection, watcher, item

    def drop_watch(self, connection: Connection | None, item: Any, reference: Reference) -> None:
        """Undo :meth:`add_watch`."""
        process = self.find(item)
        known = process.monitors.get(reference) if process is not None else None
        if process is not None and known is not None and known[0] is connection:
            del process.monitors[reference]
            process.on_demonitor(reference)

    def add_link(self, connection: Connection | None, sender: Pid, target: Pid) -> None:
        """Link ``target``, a process of this node, with ``sender``."""
        process = self.find(target)
        if process is None:
            self.send_exit(connection, target, sender, NO_PROCESS)
        elif sender in process.links:
            pass  # a second link between two processes has no effect
        elif _full(process.links, connection, process.links.values()):
            self.send_exit(connection, target, sender, SYSTEM_LIMIT)
        else:
            process.links[sender] = connection

    def drop_link(self, sender: Any, target: Any) -> None:
        """Undo :meth:`add_link`."""
        process = self.find(target)
        if process is not None and type(sender) is Pid:
            process.links.pop(sender, None)


def alias_of(tag: Any) -> Reference | None:
    """Return the reference of the tag ``[alias | Reference]`` of a ``gen`` call."""
    if (
        type(tag) is ImproperList
        and len(tag.items) == 1
        and tag.items[0] == atoms.ALIAS
        and type(tag.tail) is Reference
    ):
        return tag.tail
    return None


def copy(message: Any) -> Any:
    """Return ``message`` as it would arrive from another node, sharing nothing with it."""
    return decode_bare(encode_bare(message, text=True))[0]


def _full(
    known: Sized, connection: Connection | None, connections: Iterable[Connection | None]
) -> bool:
    """Return whether a process has as many watchers as ``connection``, or all nodes, may have."""
    if len(known) < MAX_WATCHERS_PER_NODE:
        return False
    if len(known) >= MAX_WATCHERS:
        return True
    return sum(other is connection for other in connections) >= MAX_WATCHERS_PER_NODE
