# SPDX-License-Identifier: Apache-2.0
"""The processes of a node that serve stock nodes.

A stock node that connects to us pings ``net_kernel``, asks ``rex`` for its features, and calls
functions by spawn requests of the module ``erpc`` (:mod:`.calls`). Each of these gets an answer at
once, even if it is a refusal, so that no caller waits for a timeout. Unregistered names behave as
on an Erlang node that does not run them.

Erlang's ``global`` is such a name: nobody asks us for locks or names. But ``global:sync/0`` waits
until every visible node reports that it is in step; :func:`greet_global` does so.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from thicket.distribution import frames
from thicket.distribution.atoms import (
    BAD_RPC,
    ERPC,
    ERROR,
    EXIT_SIGNAL,
    GEN_CAST,
    GLOBAL,
    NOBODY,
    NOT_SUPPORTED,
    REX,
    SYSTEM_LIMIT,
    UNDEFINED_FUNCTION,
    YES,
)
from thicket.distribution.etf import Atom, Pid, Reference, shown
from thicket.distribution.handshake import DistributionError
from thicket.distribution.processes import Process, ProcessTable, Waiting

if TYPE_CHECKING:
    from thicket.distribution.connection import Connection
    from thicket.distribution.node import Node

log = logging.getLogger(__name__)

OTP_RELEASE = "25"
"""The release whose protocol a node of ours speaks."""

_FEATURES_REPLY = Atom("features_reply")
_IN_SYNC = Atom("in_sync")
_NO_SHELL = Atom("a Thicket node runs no Erlang shell")
_NO_SUCH_NAME = Atom("nonexisting_name")
_PUT_CHARS = (Atom("put_chars"), Atom("unicode"))
_IO_REQUEST = Atom("io_request")

_LEVELS = {
    **dict.fromkeys(("emergency", "alert", "critical"), logging.CRITICAL),
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "debug": logging.DEBUG,
}


class Call(Waiting):
    """One request under way, as ``gen:call`` makes it."""

    def on_message(self, connection: Connection | None, message: Any) -> None:
        match message:
            case (reference, answer) if reference == self.reference:
                if connection is not self.connection:
                    if connection is not None:
                        self.node.forged(connection, "an answer to what another node was asked")
                elif not self.answer.done():
                    self.answer.set_result(answer)

    def on_down(self, connection: Connection | None, reference: Reference, reason: Any) -> None:
        if reference == self.reference:
            name = connection.name if connection is not None else self.node.name
            if reason == SYSTEM_LIMIT:
                words = f"the request is more than {name} takes ([cluster] max_message there)"
                self.fail(DistributionError("system-limit", words))
            self.fail(DistributionError("noproc", f"{name} does not answer: {shown(reason)}"))

    def on_untaken(
        self, connection: Connection, reference: Reference | None, error: DistributionError
    ) -> None:
        if connection is self.connection:
            self.fail(error)


class NetKernel(Process):
    """``net_kernel``: answers ``net_adm:ping``."""

    def on_message(self, connection: Connection | None, message: Any) -> None:
        match message:
            case ("$gen_call", (Pid() as sender, tag), request):
                match request:
                    case ("is_auth", _):
                        self.reply(connection, sender, tag, YES)
                    case _:
                        self.reply(connection, sender, tag, (ERROR, NOT_SUPPORTED))


class Rex(Process):
    """``rex``: answers the requests of ``rpc`` and ``erpc`` before a call, and calls in the form of
    before OTP 23 or of nodes in C and Java (``rpc.erl``, ``handle_info/2``)."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._node = node

    def on_message(self, connection: Connection | None, message: Any) -> None:
        match message:
            case (Pid() as sender, "features_request"):
                features = (_FEATURES_REPLY, Atom(self.node.name), [ERPC])
                self.node.send_to(connection, self.pid, sender, features)
            case (Pid() as sender, ("sbcast" | "send" as how, Atom() as name, value)):
                if self._own(connection, sender):
                    self._pass_on(connection, sender, name, how, value)
            case (
                Pid() as sender,
                ("call", module, function, list() as arguments, _),
            ):
                if self._own(connection, sender):  # the form of nodes in C and Java
                    waiting = _OldCall(self.node, connection, sender, REX)
                    self._call(waiting, module, function, arguments)
            case (
                "$gen_call",
                (Pid() as sender, tag),
                ("call" | "block_call", module, function, list() as arguments, _),
            ):
                if self._own(connection, sender):
                    waiting = _OldCall(self.node, connection, sender, tag)
                    self._call(waiting, module, function, arguments)
            case ("$gen_cast", ("cast", module, function, list() as arguments, leader)):
                caller = leader if type(leader) is Pid else self.pid
                if connection is not None and caller.node != connection.name:
                    # A cast does not name its sender: some process of that node.
                    caller = Pid(Atom(connection.name), 0, 0, connection.peer.creation)
                if self._has_room(str(caller.node)):
                    self._node.calls.start(
                        caller, module, function, arguments, None, connection=connection
                    )
            case ("$gen_call", (Pid() as sender, tag), _):
                self.reply(connection, sender, tag, (ERROR, NOT_SUPPORTED))

    def _pass_on(
        self, connection: Connection | None, sender: Pid, name: Atom, how: str, value: Any
    ) -> None:
        """Pass a message to a registered name, and tell the sender whether it exists."""
        known = self.node.whereis(name)
        own = Atom(self.node.name)
        answer: Any = own if known is not None else (_NO_SUCH_NAME, name)
        if known is not None:
            self.node.give(connection, known, (sender, value) if how == "send" else value)
        if known is None or how == "sbcast":
            self.node.send_to(connection, self.pid, sender, (REX, own, answer))

    def on_untaken_request(
        self, connection: Connection, sender: Pid, tag: Any, reason: Atom
    ) -> None:
        answer = (BAD_RPC, (EXIT_SIGNAL, reason))
        self.reply(connection, sender, REX if tag is None else tag, answer)

    def _own(self, connection: Connection | None, sender: Pid) -> bool:
        """Return whether ``sender`` is of the asking node, as functions rely on their caller."""
        return self.node.speaks_for(connection, sender, "a call")

    def _has_room(self, source: str) -> bool:
        calls = self._node.calls
        if calls.has_room(source):
            return True
        calls.refused += 1
        return False

    def _call(self, waiting: _OldCall, module: Any, function: Any, arguments: list[Any]) -> None:
        sender = waiting.sender
        if not self._has_room(str(sender.node)):
            waiting.failed(SYSTEM_LIMIT)
            return
        job = self._node.calls.start(
            sender, module, function, arguments, waiting.reference, connection=waiting.connection
        )
        if job is None:
            waiting.failed((UNDEFINED_FUNCTION, stack(module, function, arguments)))
        else:
            self.node.add(waiting)
            job.monitors[waiting.reference] = None, waiting.pid, job.pid


class _OldCall(Process):
    """A call through ``rex`` (``rpc:block_call``, and every call before OTP 23)."""

    def __init__(
        self, node: ProcessTable, connection: Connection | None, sender: Pid, tag: Any
    ) -> None:
        super().__init__(node)
        self.reference = node.new_reference()
        self.connection = connection
        self.sender = sender
        self._tag = tag

    def failed(self, reason: Any) -> None:
        """Answer that the function has failed."""
        self._answer((BAD_RPC, (EXIT_SIGNAL, reason)))

    def _answer(self, answer: Any) -> None:
        self.reply(self.connection, self.sender, self._tag, answer)
        self.node.end(self)

    def on_down(self, connection: Connection | None, reference: Reference, reason: Any) -> None:
        match reason:
            case (_, "return" | "throw", value):
                self._answer(value)
            case (_, "error", why, trace):
                self.failed((why, trace))
            case (_, "exit", why):
                self.failed(why)
            case _:
                self.failed(reason)


class Logger(Process):
    """``logger_proxy``, before OTP 22 ``logger``: receives the log events of Erlang functions that
    we call, as the node of its group leader logs the events of a process."""

    NAMES = ("logger_proxy", "logger")
    answers = False

    def on_message(self, connection: Connection | None, message: Any) -> None:
        from thicket.distribution.ioformat import characters, formatted  # rare

        match message:
            case ("log", Atom() as level, form, list() as values, _):
                text = formatted(form, values)
            case ("log", Atom() as level, {"format": form, "args": list() as values}, _):
                text = formatted(form, values)  # of error_logger
            case ("log", Atom() as level, ("string" | "report", words), _):
                text = characters(words)
            case ("log", Atom() as level, words, _):
                text = characters(words)
            case _:
                return
        source = connection.name if connection is not None else self.node.name
        log.log(_LEVELS.get(level, logging.INFO), "logged on %s: %s", source, text.rstrip())


def greet_global(node: Node, connection: Connection) -> None:
    """Tell the peer's ``global`` that we are in step with it, by a cast of ``global.erl``.

    That ends its wait for this node, and has no other effect: it keeps no names or locks for us,
    and ``prevent_overlapping_partitions`` does not touch our connections.
    """
    control = (frames.REG_SEND, node.pid, NOBODY, GLOBAL)
    connection.send(control, connection.encode((GEN_CAST, (_IN_SYNC, Atom(node.name), True))))


def answer_to_shell(
    node: ProcessTable,
    connection: Connection,
    leader: Any,
    called: tuple[Any, Any, list[Any]],
) -> Any:
    """Answer the requests of a remote shell, so that it ends with one clear line; else None.

    An ordinary refusal would end in pages of reports, or end the whole local shell.

    :param leader: the process that shows the shell's output.
    """
    match called:
        case "code", "ensure_loaded", ["shell" | "Elixir.IEx"]:
            return (ERROR, _NO_SHELL)
        case "erlang", "system_info", ["otp_release"]:
            return list(OTP_RELEASE.encode())
        case ("shell" | "Elixir.IEx", "start", _) if type(leader) is Pid:
            line = f"*** {node.name} is a Thicket node and runs no Erlang shell\n".encode()
            request = (*_PUT_CHARS, line)
            speaker = node.new_pid()  # of nobody, as no answer is expected
            message = (_IO_REQUEST, speaker, node.new_reference(), request)
            node.send_to(connection, speaker, leader, message)
            return node.new_pid()  # of a shell that has already ended
    return None


def stack(module: Any, function: Any, arguments: Any) -> list[Any]:
    """Return a stack trace that names the failed call."""
    return [(module, function, arguments, [])]
