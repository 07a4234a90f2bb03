# SPDX-License-Identifier: Apache-2.0
"""What runs on a node under a process identifier, and the services stock nodes ask for.

A stock node that connects to us pings ``net_kernel``, asks ``rex`` for its features, and calls
functions through spawn requests of the module ``erpc``. Each of these gets an answer at once,
be it a refusal, so that no caller waits for a timeout. Names that are not registered here
(``global_name_server``, ``pg``) behave as on an Erlang node that does not run them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from .etf import Atom, ImproperList, Pid, Reference
from .handshake import DistributionError

if TYPE_CHECKING:
    from .connection import Connection
    from .node import Node

GEN_CALL = Atom("$gen_call")
YES = Atom("yes")
ERROR = Atom("error")
NOT_SUPPORTED = Atom("notsup")
UNDEFINED_FUNCTION = Atom("undef")
NO_PROCESS = Atom("noproc")
NORMAL = Atom("normal")
BAD_ARGUMENT = Atom("badarg")
_ALIAS = Atom("alias")


class Process:
    """Something of this node that others send messages to, watch and link with.

    :ivar pid: its identifier.
    :ivar monitors: by reference, who watches it: connection, watcher, and what was watched (the
        pid or a registered name).
    :ivar links: the pids linked with it and their connections.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.pid = node.new_pid()
        self.monitors: dict[Reference, tuple[Connection, Pid, Pid | Atom]] = {}
        self.links: dict[Pid, Connection] = {}

    def on_message(self, connection: Connection, message: Any) -> None:
        """Handle a message."""

    def on_down(self, connection: Connection, reference: Reference, reason: Any) -> None:
        """Handle the end of a process we watch."""

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        """Handle the end of a connection."""
        for reference in [r for r, watch in self.monitors.items() if watch[0] is connection]:
            del self.monitors[reference]
        for pid in [pid for pid, linked in self.links.items() if linked is connection]:
            del self.links[pid]


class Call(Process):
    """One request in flight, as ``gen:call`` makes it: a process of its own, so that an answer
    that comes too late finds nobody."""

    def __init__(self, node: Node, connection: Connection) -> None:
        super().__init__(node)
        self.reference = node.new_reference()
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._connection = connection

    def on_message(self, connection: Connection, message: Any) -> None:
        match message:
            case (reference, answer) if reference == self.reference:
                if not self.answer.done():
                    self.answer.set_result(answer)

    def on_down(self, connection: Connection, reference: Reference, reason: Any) -> None:
        if reference == self.reference:
            self._fail(DistributionError("noproc", f"{connection.name} does not answer: {reason}"))

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        super().on_disconnect(connection, reason)
        if connection is self._connection:
            self._fail(reason)

    def _fail(self, error: DistributionError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class NetKernel(Process):
    """``net_kernel``: answers ``net_adm:ping``."""

    def on_message(self, connection: Connection, message: Any) -> None:
        match message:
            case ("$gen_call", (Pid() as sender, tag), request):
                match request:
                    case ("is_auth", _):
                        reply(self, connection, sender, tag, YES)
                    case _:
                        reply(self, connection, sender, tag, (ERROR, NOT_SUPPORTED))


class Rex(Process):
    """``rex``: answers what ``rpc`` and ``erpc`` ask before they call, and calls that come the
    way of before OTP 23."""

    def on_message(self, connection: Connection, message: Any) -> None:
        match message:
            case (Pid() as sender, "features_request"):
                features = (
                    Atom("features_reply"),
                    Atom(self.node.name),
                    [Atom("erpc")],
                )
                self.node.send_to(connection, self.pid, sender, features)
            case ("$gen_call", (Pid() as sender, tag), ("call", module, function, arguments, _)):
                exit_reason = (UNDEFINED_FUNCTION, stack(module, function, arguments))
                reply(self, connection, sender, tag, (Atom("badrpc"), (Atom("EXIT"), exit_reason)))
            case ("$gen_call", (Pid() as sender, tag), _):
                reply(self, connection, sender, tag, (ERROR, NOT_SUPPORTED))


def stack(module: Any, function: Any, arguments: Any) -> list[Any]:
    """Return a stack trace that says which call failed."""
    return [(module, function, arguments, [])]


def reply(process: Process, connection: Connection, sender: Pid, tag: Any, answer: Any) -> None:
    """Answer a ``gen`` call the way the caller wants it: to its alias, so that an answer it no
    longer waits for is dropped on arrival, or else to its pid."""
    message = (tag, answer)
    alias = _alias_of(tag)
    if alias is not None:
        process.node.send_to_alias(connection, process.pid, alias, message)
    else:
        process.node.send_to(connection, process.pid, sender, message)


def _alias_of(tag: Any) -> Reference | None:
    """Return the reference of the tag ``[alias | Reference]``."""
    if (
        type(tag) is ImproperList
        and len(tag.items) == 1
        and tag.items[0] == _ALIAS
        and type(tag.tail) is Reference
    ):
        return tag.tail
    return None
