# SPDX-License-Identifier: Apache-2.0
"""Processes of this node, and the signals that they exchange with others.

A process is what has a process identifier: it is sent messages, watched ("monitored"), linked with
and told to exit, from this node and from others. :class:`ProcessTable` knows all of this node's and
speaks the control messages of the ERTS User's Guide, "Distribution Protocol", section "Protocol
between Connected Nodes", both ways.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from thicket.distribution import frames
from thicket.distribution.etf import (
    SMALL_TUPLE,
    Atom,
    DecodeError,
    ImproperList,
    LimitError,
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
    split_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sized

    from thicket.distribution.connection import Connection

log = logging.getLogger(__name__)

MAX_WATCHERS = 10_000
"""Limit of monitors, and of links, on one process of ours."""

MAX_WATCHERS_PER_NODE = 1_000
"""The same, for the processes of one other node."""

_MAX_FORGERS = 64

NO_PROCESS = Atom("noproc")
NO_CONNECTION = Atom("noconnection")
NORMAL = Atom("normal")
UNDEFINED = Atom("undefined")
KILL = Atom("kill")
KILLED = Atom("killed")
SYSTEM_LIMIT = Atom("system_limit")
BAD_ARGUMENT = Atom("badarg")
ERROR = Atom("error")
NOT_SUPPORTED = Atom("notsup")
NOBODY = Atom("")
GEN_CALL = Atom("$gen_call")
SYSTEM = Atom("system")
_ALIAS = Atom("alias")
_MAX_REQUEST_TERMS = 64  # of who asks, and how

Name = tuple[str, str]
"""A registered name on a node: the name, and the node's full name."""


_SENDER_SECOND = frozenset(
    (
        frames.UNLINK_ID,
        frames.UNLINK_ID_ACK,
        frames.SPAWN_REQUEST,
        frames.SPAWN_REQUEST_TT,
    )
)
_SENDS = frozenset(
    (
        *(frames.SEND, frames.SEND_TT, frames.SEND_SENDER, frames.SEND_SENDER_TT),
        *(frames.REG_SEND, frames.REG_SEND_TT, frames.ALIAS_SEND, frames.ALIAS_SEND_TT),
    )
)
_EXITS = frozenset(
    (
        *(frames.PAYLOAD_EXIT, frames.PAYLOAD_EXIT_TT),
        *(frames.PAYLOAD_EXIT2, frames.PAYLOAD_EXIT2_TT),
    )
)
_SENDER_LAST = frozenset((frames.SPAWN_REPLY, frames.SPAWN_REPLY_TT))


def _sender(control: tuple[Any, ...]) -> Any:
    """Return the process that a signal says it is of; anything else where it says none."""
    if control[0] in _SENDER_LAST:
        return control[4]
    return control[2 if control[0] in _SENDER_SECOND else 1]


class Process:
    """Something of this node that others send messages to, watch and link with.

    ``connection`` is None wherever the other side is of this node itself.

    :ivar pid: its identifier.
    :ivar monitors: by reference, who watches it: connection, watcher, and what was watched (the
        pid or a registered name).
    :ivar links: the pids linked with it and their connections.
    :ivar watched: by reference, what it watches: connection, and pid or registered name.
    :ivar unlinking: links taken back whose other end has not confirmed it yet.
    """

    def __init__(self, node: ProcessTable) -> None:
        self.node = node
        self.pid = node.new_pid()
        self.monitors: dict[Reference, tuple[Connection | None, Pid, Pid | Atom]] = {}
        self.links: dict[Pid, Connection | None] = {}
        self.watched: dict[Reference, tuple[Connection | None, Pid | Atom]] = {}
        self.unlinking: dict[Pid, int] = {}

    #: It answers requests of ``gen:call`` by itself; where it does not, they are refused.
    answers = True

    def on_message(self, connection: Connection | None, message: Any) -> None:
        """Handle a message."""

    def on_down(self, connection: Connection | None, reference: Reference, reason: Any) -> None:
        """Handle the end of a process we watch."""

    def on_exit(
        self, connection: Connection | None, sender: Pid, reason: Any, *, linked: bool
    ) -> None:
        """Handle the end of a process that was linked with this one, or a request to exit."""

    def awaits(self, connection: Connection, reference: Any) -> bool:
        """Tell whether *connection* may tell of the end that is watched with *reference*."""
        watch = self.watched.get(reference)
        return watch is not None and watch[0] is connection

    def on_untaken(
        self, connection: Connection, reference: Reference | None, error: DistributionError
    ) -> None:
        """Handle that a message from *connection*, or the end of what is watched with *reference*,
        came in a form that cannot be taken: too long, or no term."""
        if reference is not None:
            self.on_down(connection, reference, SYSTEM_LIMIT)

    def on_untaken_request(
        self, connection: Connection, sender: Pid, tag: Any, reason: Atom
    ) -> None:
        """Answer a request, as ``gen:call`` makes it, that cannot be taken: who made it watches
        this process, and is told that it has ended."""
        reference = tag if type(tag) is Reference else alias_of(tag)
        watch = self.monitors.get(reference) if reference is not None else None
        if reference is not None and watch is not None and watch[0] is connection:
            del self.monitors[reference]
            self.node.send_down(connection, watch[2], watch[1], reference, reason)

    def on_demonitor(self, reference: Reference) -> None:
        """Handle that somebody watches this process no longer."""

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


class ProcessTable:
    """The processes of a node, by number and by name.

    :ivar name: the node's name, in canonical form.
    :ivar creation: the number of this start of the node.
    """

    name: str
    creation: int
    _atom: Atom
    _connections: dict[str, Connection]  # by the key of the peer's name

    def __init__(self, first_reference: int) -> None:
        self._last_pid = 0
        self._last_reference = first_reference
        self._last_unlink = 0
        self._processes: dict[int, Process] = {}
        self._names: dict[str, Process] = {}
        self._aliases: dict[Reference, Process] = {}
        self._counters: dict[str, int] = dict.fromkeys(
            ("messages", "unknown", "undecodable", "forged"), 0
        )
        self._forgers: set[str] = set()
        self._handlers: dict[int, Callable[[Connection, tuple[Any, ...], bytes | None], None]] = {
            frames.SEND: self._got_send,
            frames.SEND_TT: self._got_send,
            frames.SEND_SENDER: self._got_send,
            frames.SEND_SENDER_TT: self._got_send,
            frames.REG_SEND: self._got_named_send,
            frames.REG_SEND_TT: self._got_named_send,
            frames.ALIAS_SEND: self._got_alias_send,
            frames.ALIAS_SEND_TT: self._got_alias_send,
            frames.MONITOR_P: self._got_monitor,
            frames.DEMONITOR_P: self._got_demonitor,
            frames.MONITOR_P_EXIT: self._got_down,
            frames.PAYLOAD_MONITOR_P_EXIT: self._got_down,
            frames.LINK: self._got_link,
            frames.UNLINK: self._got_unlink,
            frames.UNLINK_ID: self._got_unlink_id,
            frames.UNLINK_ID_ACK: self._got_unlink_ack,
            frames.EXIT: self._got_exit,
            frames.EXIT_TT: self._got_exit,
            frames.PAYLOAD_EXIT: self._got_exit,
            frames.PAYLOAD_EXIT_TT: self._got_exit,
            frames.EXIT2: self._got_exit2,
            frames.EXIT2_TT: self._got_exit2,
            frames.PAYLOAD_EXIT2: self._got_exit2,
            frames.PAYLOAD_EXIT2_TT: self._got_exit2,
            frames.SPAWN_REQUEST: self._got_spawn_request,
            frames.SPAWN_REQUEST_TT: self._got_spawn_request,
            frames.SPAWN_REPLY: self._got_spawn_reply,
            frames.SPAWN_REPLY_TT: self._got_spawn_reply,
            # Our processes have no group leader that others could set.
            frames.GROUP_LEADER: self._got_nothing,
            frames.NODE_LINK: self._got_nothing,
        }

    # --- identifiers --------------------------------------------------------------------------

    def new_pid(self) -> Pid:
        """Return a process identifier that is not in use."""
        while True:
            # 15 bits of number are what every version of OTP prints and sorts without surprises;
            # 28 are allowed.
            self._last_pid = self._last_pid % 0xFFFFFFF + 1
            if self._last_pid not in self._processes:
                return Pid(self._atom, self._last_pid, 0, self.creation)

    def new_reference(self) -> Reference:
        """Return a reference that was not used before."""
        self._last_reference += 1
        number = self._last_reference
        # Erlang keeps the first word of a reference below 2^18.
        words = (number & 0x3FFFF, number >> 18 & 0xFFFFFFFF, number >> 50 & 0xFFFFFFFF)
        return Reference(self._atom, self.creation, words)

    def new_alias(self, process: Process) -> Reference:
        """Return a reference under which *process* is sent messages until it is taken back."""
        alias = self.new_reference()
        self._aliases[alias] = process
        return alias

    def drop_alias(self, alias: Reference) -> None:
        """Take back an alias; what is sent to it from now on is dropped."""
        self._aliases.pop(alias, None)

    # --- life of processes --------------------------------------------------------------------

    def add(self, process: Process) -> None:
        """Let *process* be reached by its pid."""
        self._processes[process.pid.id] = process

    def register(self, name: str, process: Process) -> None:
        """Let *process* be reached by *name*.

        :raises ValueError: when another process has the name, or it is ``undefined``, which none
            has anywhere.
        """
        if name == UNDEFINED:
            raise ValueError(f"no process is registered as {name!r}")
        if name in self._names:
            raise ValueError(f"the name {name!r} is registered already")
        self.add(process)
        self._names[name] = process

    def own_name(self, name: str) -> Name:
        """Return a name that is registered here as others write it.

        :raises DistributionError: ``noproc``, when there is no such name.
        """
        if name not in self._names:
            raise DistributionError("noproc", f"no process is registered as {name!r} here")
        return name, self.name

    def whereis(self, name: str) -> Process | None:
        """Return the process registered as *name*."""
        return self._names.get(name)

    def end(self, process: Process, reason: Any = NORMAL) -> None:
        """End *process*: tell who watches it and who is linked with it."""
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

    def _find(self, target: Any) -> Process | None:
        """Return the process of ours that is meant by a pid or a registered name."""
        if type(target) is Pid:
            process = self._processes.get(target.id)
            return process if process is not None and process.pid == target else None
        return self._names.get(target) if type(target) is Atom else None

    def _way_to(self, node: str) -> Connection | None:
        """Return the connection to *node*; None for this node itself.

        :raises DistributionError: ``closed``, when it is not connected.
        """
        key = key_of(str(node))
        if key == self.name:
            return None
        connection = self._connections.get(key)
        if connection is None:
            raise DistributionError("closed", f"{node} is not connected")
        return connection

    # --- sending ------------------------------------------------------------------------------

    def send_to(
        self, connection: Connection | None, sender: Pid, target: Pid, message: Any
    ) -> None:
        """Send *message* to a process of a connected node."""
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
        """Send *message* to a registered process of a connected node."""
        if connection is None:
            self._send_here(Atom(name), message)
            return
        connection.send((frames.REG_SEND, sender, NOBODY, Atom(name)), connection.encode(message))

    def send_to_alias(
        self, connection: Connection | None, sender: Pid, alias: Reference, message: Any
    ) -> None:
        """Send *message* to a process of a connected node by an alias it made."""
        if connection is None:
            process = self._aliases.get(alias)
            if process is not None:
                process.on_message(None, copy(message))
        elif connection.has(ALIAS):
            connection.send((frames.ALIAS_SEND, sender, alias), connection.encode(message))

    def answer(
        self,
        process: Process,
        connection: Connection | None,
        sender: Pid,
        tag: Any,
        answer: Any,
    ) -> None:
        """Answer a ``gen`` call to *process* the way the caller wants it: to its alias, so that an
        answer it no longer waits for is dropped on arrival, or else to its pid."""
        message = (tag, answer)
        alias = alias_of(tag)
        if alias is not None:
            self.send_to_alias(connection, process.pid, alias, message)
        else:
            self.send_to(connection, process.pid, sender, message)

    def _send_here(self, target: Any, message: Any) -> None:
        process = self._find(target)
        if process is not None:
            self.give(None, process, copy(message))

    def watch(self, process: Process, target: Pid | Name | str) -> Reference:
        """Let *process* be told of the end of *target* (:meth:`Process.on_down`).

        A name alone is one of this node.

        A process that does not exist, or a node that is not connected, is told of at once, before
        this returns.
        """
        reference = self.new_reference()
        item: Pid | Atom
        if isinstance(target, Pid):
            node, item = str(target.node), target
        elif isinstance(target, str):
            node, item = self.name, Atom(target)
        else:
            node, item = target[1], Atom(target[0])
        try:
            connection = self._way_to(node)
        except DistributionError:
            process.watched[reference] = None, item
            process.on_down(None, reference, NO_CONNECTION)
            process.watched.pop(reference, None)
            return reference
        process.watched[reference] = connection, item
        if connection is not None:
            connection.send((frames.MONITOR_P, process.pid, item, reference))
        else:
            self._monitor(None, process.pid, item, reference)
        return reference

    def unwatch(self, process: Process, reference: Reference) -> None:
        """Take back :meth:`watch`."""
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
            self._demonitor(None, item, reference)

    def link(self, process: Process, target: Pid) -> None:
        """Link *process* with *target*: when one ends, the other is told."""
        if target in process.links or target == process.pid:
            return
        try:
            connection = self._way_to(str(target.node))
        except DistributionError:
            process.on_exit(None, target, NO_CONNECTION, linked=True)
            return
        process.links[target] = connection
        if connection is not None:
            connection.send((frames.LINK, process.pid, target))
        else:
            self._link(None, process.pid, target)

    def unlink(self, process: Process, target: Pid) -> None:
        """Take back a link, whoever made it."""
        if target not in process.links:
            return
        connection = process.links.pop(target)
        if connection is None:
            self._unlink(process.pid, target)
        elif connection.has(UNLINK_ID):
            self._last_unlink += 1
            # Until this is confirmed, an exit of the target is one of before.
            process.unlinking[target] = self._last_unlink
            connection.send((frames.UNLINK_ID, self._last_unlink, process.pid, target))
        else:
            connection.send((frames.UNLINK, process.pid, target))

    def exit(self, sender: Pid, target: Pid, reason: Any) -> None:
        """Tell *target* to exit, as ``exit/2`` does.

        :raises DistributionError: ``closed``, when its node is not connected.
        """
        connection = self._way_to(str(target.node))
        if connection is None:
            process = self._find(target)
            if process is not None:
                process.on_exit(None, sender, copy(reason), linked=False)
        elif connection.has(EXIT_PAYLOAD):
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
        """Tell *watcher* that *item*, a process of ours, has ended or never was."""
        if connection is None:
            process = self._find(watcher)
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
        """Tell *target* that *sender*, with which it is linked, has ended."""
        if connection is None:
            process = self._find(target)
            if process is not None and process.links.pop(sender, connection) is connection:
                process.on_exit(None, sender, why, linked=True)
        elif connection.has(EXIT_PAYLOAD):
            connection.send((frames.PAYLOAD_EXIT, sender, target), connection.encode(why))
        else:
            connection.send((frames.EXIT, sender, target, why))

    # --- receiving ----------------------------------------------------------------------------

    def on_message(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        """Handle a message; what is not understood is counted and ignored."""
        self._counters["messages"] += 1
        handler = self._handlers.get(control[0])
        if handler is None:
            self._counters["unknown"] += 1
            return
        try:
            sender = _sender(control)
            if type(sender) is Pid and sender.node != connection.name:
                self.forged(connection, f"a signal in the name of a process of {sender.node}")
                return
            handler(connection, control, payload)
        except DecodeError as error:
            self._counters["undecodable"] += 1
            log.warning("a message of %s cannot be decoded: %s", connection.name, error)
            self._untaken(
                connection,
                control,
                payload,
                SYSTEM_LIMIT if isinstance(error, LimitError) else BAD_ARGUMENT,
                DistributionError(
                    "undecodable", f"{connection.name} sent what cannot be decoded: {error}"
                ),
            )
        except (ValueError, TypeError, IndexError):
            # Too few elements, or not of the types they should have.
            self._counters["unknown"] += 1
            log.debug("a message of %s is not understood", connection.name, exc_info=True)
        except Exception:
            log.exception("the handling of a message of %s failed", connection.name)

    def on_discarded(self, connection: Connection, control: tuple[Any, ...], head: bytes) -> None:
        """Tell who waits for a message, or for an answer to it, that it was too long to be taken.

        :param head: the beginning of its payload.
        """
        self._counters["messages"] += 1
        sender = _sender(control)
        if type(sender) is Pid and sender.node != connection.name:
            self.forged(connection, f"a signal in the name of a process of {sender.node}")
            return
        words = DistributionError(
            "system-limit",
            f"{connection.name} sent more than this node takes at once ([cluster] max_message)",
        )
        self._untaken(connection, control, head, SYSTEM_LIMIT, words)

    def _untaken(
        self,
        connection: Connection,
        control: tuple[Any, ...],
        head: bytes | None,
        reason: Atom,
        error: DistributionError,
    ) -> None:
        try:
            self._answer_untaken(connection, control, head, reason, error)
        except (ValueError, TypeError, IndexError):
            self._counters["unknown"] += 1
            log.debug("a message of %s is not understood", connection.name, exc_info=True)
        except Exception:
            log.exception("the handling of a message of %s failed", connection.name)

    def _answer_untaken(
        self,
        connection: Connection,
        control: tuple[Any, ...],
        head: bytes | None,
        reason: Atom,
        error: DistributionError,
    ) -> None:
        """Handle a message that is too long or no term, so that nobody waits for what it was.

        :param head: the beginning of its payload.
        :param reason: what a node of Erlang is told.
        :param error: what Python code here is told.
        """
        operation = control[0]
        if operation in (frames.SPAWN_REQUEST, frames.SPAWN_REQUEST_TT):
            request, caller = control[1:3]
            _require(request, Reference)
            _require(caller, Pid)
            connection.send((frames.SPAWN_REPLY, request, caller, 0, reason))
        elif operation == frames.PAYLOAD_MONITOR_P_EXIT:
            process = self._find(control[2])
            if process is not None and process.awaits(connection, control[3]):
                process.on_untaken(connection, control[3], error)
                process.watched.pop(control[3], None)
        elif operation in _EXITS:
            # The process has ended all the same.
            self._handlers[operation](connection, (*control[:3], reason), None)
        elif operation in _SENDS:
            target = control[3 if operation in (frames.REG_SEND, frames.REG_SEND_TT) else 2]
            process = self._aliases.get(target) if type(target) is Reference else self._find(target)
            if process is None:
                return
            asked = _request_in(head)
            if asked is None:
                process.on_untaken(connection, None, error)
            else:
                process.on_untaken_request(connection, *asked, reason)

    def forged(self, connection: Connection, what: str) -> None:
        """Count *what*, which a peer may not say; who it is comes from its connection alone."""
        self._counters["forged"] += 1
        name = connection.name
        if name not in self._forgers and len(self._forgers) < _MAX_FORGERS:
            self._forgers.add(name)
            log.warning("dropped from %s: %s", name, what)

    def _deliver(
        self, connection: Connection, process: Process | None, payload: bytes | None
    ) -> None:
        # Nobody there: as in Erlang, the message is gone. It is not even decoded.
        if process is not None and payload is not None:
            self.give(connection, process, decode_bare(payload)[0])

    def give(self, connection: Connection | None, process: Process, message: Any) -> None:
        """Hand a message to a process, or refuse what no process here answers.

        What ``sys`` and ``gen_server:stop`` ask of every process of OTP has no meaning here.
        """
        if (
            type(message) is tuple
            and len(message) == 3
            and (message[0] == SYSTEM or (message[0] == GEN_CALL and not process.answers))
        ):
            match message[1]:
                case (Pid() as sender, tag):
                    if connection is not None and sender.node != connection.name:
                        what = f"a request in the name of a process of {sender.node}"
                        self.forged(connection, what)
                    else:
                        refusal = (ERROR, NOT_SUPPORTED)
                        self.answer(process, connection, sender, tag, refusal)
                    return
        process.on_message(connection, message)

    def _got_nothing(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        """Handle what has no meaning here."""

    def _got_send(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        self._deliver(connection, self._find(control[2]), payload)

    def _got_named_send(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        self._deliver(connection, self._find(control[3]), payload)

    def _got_alias_send(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        _require(control[2], Reference)
        self._deliver(connection, self._aliases.get(control[2]), payload)

    def _got_monitor(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        _, watcher, item, reference = control
        _require(watcher, Pid)
        _require(reference, Reference)
        if reference.node != connection.name:
            self.forged(connection, f"a watch with a reference of {reference.node}")
            return
        self._monitor(connection, watcher, item, reference)

    def _monitor(
        self, connection: Connection | None, watcher: Pid, item: Any, reference: Reference
    ) -> None:
        process = self._find(item)
        if process is None:
            self.send_down(connection, item, watcher, reference, NO_PROCESS)
        elif _full(process.monitors, connection, (watch[0] for watch in process.monitors.values())):
            self.send_down(connection, item, watcher, reference, SYSTEM_LIMIT)
        else:
            process.monitors[reference] = connection, watcher, item

    def _got_demonitor(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        self._demonitor(connection, control[2], control[3])

    def _demonitor(self, connection: Connection | None, item: Any, reference: Reference) -> None:
        process = self._find(item)
        known = process.monitors.get(reference) if process is not None else None
        if process is not None and known is not None and known[0] is connection:
            del process.monitors[reference]
            process.on_demonitor(reference)

    def _got_down(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        process = self._find(control[2])
        if process is not None:
            if not process.awaits(connection, control[3]):
                return  # taken back meanwhile, or another node's to tell
            reason = control[4] if payload is None else decode_bare(payload)[0]
            process.on_down(connection, control[3], reason)
            process.watched.pop(control[3], None)

    def _got_link(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        _, sender, target = control
        _require(sender, Pid)
        _require(target, Pid)
        self._link(connection, sender, target)

    def _link(self, connection: Connection | None, sender: Pid, target: Pid) -> None:
        process = self._find(target)
        if process is None:
            self.send_exit(connection, target, sender, NO_PROCESS)
        elif sender in process.links:
            pass  # a second link between two processes is none
        elif _full(process.links, connection, process.links.values()):
            self.send_exit(connection, target, sender, SYSTEM_LIMIT)
        else:
            process.links[sender] = connection

    def _unlink(self, sender: Any, target: Any) -> None:
        process = self._find(target)
        if process is not None and type(sender) is Pid:
            process.links.pop(sender, None)

    def _got_unlink(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        self._unlink(control[1], control[2])

    def _got_unlink_id(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        _, number, sender, target = control
        _require(number, int)
        self._unlink(sender, target)
        # Before anything else goes from target to sender, or the sender takes it for old.
        connection.send((frames.UNLINK_ID_ACK, number, target, sender))

    def _got_unlink_ack(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        _, number, sender, target = control
        process = self._find(target)
        if process is not None and process.unlinking.get(sender) == number:
            del process.unlinking[sender]

    def _got_exit(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        sender = control[1]
        process = self._find(control[2])
        if process is None or sender in process.unlinking or sender not in process.links:
            return  # the exit of a link that was taken back
        del process.links[sender]
        reason = control[-1] if payload is None else decode_bare(payload)[0]
        process.on_exit(connection, sender, reason, linked=True)

    def _got_exit2(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        _require(control[1], Pid)
        process = self._find(control[2])
        if process is not None:
            reason = control[-1] if payload is None else decode_bare(payload)[0]
            process.on_exit(connection, control[1], reason, linked=False)

    def _got_spawn_request(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        raise NotImplementedError

    def _got_spawn_reply(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        process = self._find(control[2])
        on_spawned = getattr(process, "on_spawned", None)
        if process is None or on_spawned is None:
            return
        if process.awaits(connection, control[1]):
            on_spawned(control[1], control[4])


def alias_of(tag: Any) -> Reference | None:
    """Return the reference of the tag ``[alias | Reference]`` of a ``gen`` call."""
    if (
        type(tag) is ImproperList
        and len(tag.items) == 1
        and tag.items[0] == _ALIAS
        and type(tag.tail) is Reference
    ):
        return tag.tail
    return None


def _request_in(head: bytes | None) -> tuple[Pid, Any] | None:
    """Return who asks, and the tag of the answer, from the beginning of an encoded request.

    None when it is no request; without a tag when it is one in the form ``{Pid, Request}``.
    """
    if not head or head[0] != SMALL_TUPLE:
        return None
    try:
        first, at = decode_bare(head, 2, max_terms=_MAX_REQUEST_TERMS)
        if head[1] == 2 and type(first) is Pid:
            return first, None
        if head[1] == 3 and first in (GEN_CALL, SYSTEM):
            match decode_bare(head, at, max_terms=_MAX_REQUEST_TERMS)[0]:
                case (Pid() as sender, tag):
                    return sender, tag
    except (DecodeError, IndexError):
        pass
    return None


def copy(message: Any) -> Any:
    """Return *message* as it would arrive from another node, and nothing shared with it."""
    return decode_bare(encode_bare(message, text=True))[0]


def _full(
    known: Sized, connection: Connection | None, connections: Iterable[Connection | None]
) -> bool:
    """Tell whether a process has all the watchers that *connection*, or anybody, may have there."""
    if len(known) < MAX_WATCHERS_PER_NODE:
        return False
    if len(known) >= MAX_WATCHERS:
        return True
    return sum(other is connection for other in connections) >= MAX_WATCHERS_PER_NODE


def _require(value: Any, kind: type) -> None:
    if type(value) is not kind:
        raise TypeError(f"a {kind.__name__} was expected")


def name_of(target: Name) -> Name:
    """Check a registered name on a node.

    :raises DistributionError: ``bad-name``.
    """
    if len(target) != 2 or not all(isinstance(part, str) for part in target):
        raise DistributionError("bad-name", f"a process is a Pid or (name, node), not {target!r}")
    split_name(target[1])
    return target
