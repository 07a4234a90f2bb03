# SPDX-License-Identifier: Apache-2.0
"""Calls of functions on other nodes, as Erlang's ``erpc`` makes them.

A call asks the other node to spawn a process that runs ``erpc:execute_call/4``, and watches it; the
end of the process carries the result (source of OTP's ``erpc.erl``; ERTS User's Guide,
"Distribution Protocol", ``SPAWN_REQUEST``). A caller that no longer waits takes back its watch; a
Thicket node then cancels the function.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from thicket.distribution import frames
from thicket.distribution.atoms import (
    BAD_ARGUMENT,
    CANCELLED,
    ERROR,
    EXECUTE_CALL,
    EXECUTE_CAST,
    NO_PROCESS,
    OK,
    PYTHON_EXCEPTION,
    SYSTEM_LIMIT,
    UNDEFINED_FUNCTION,
)
from thicket.distribution.etf import Atom, Pid, Reference, shown
from thicket.distribution.exports import split_function, word
from thicket.distribution.failures import MAX_CAUSES, MAX_TEXT, CallTimeoutError, RemoteError
from thicket.distribution.handshake import DistributionError
from thicket.distribution.ioformat import characters, formatted, term_text
from thicket.distribution.processes import Process, Waiting, copy
from thicket.distribution.services import stack

if TYPE_CHECKING:
    from collections.abc import Generator

    from thicket.distribution.calls import Calls
    from thicket.distribution.connection import Connection
    from thicket.distribution.jobs import Job
    from thicket.distribution.processes import ProcessTable

log = logging.getLogger(__name__)

_IO_REPLY = Atom("io_reply")
_MONITOR = Atom("monitor")
_NO_SUCH_REQUEST = Atom("enotsup")


class IoServer(Process):
    """The "group leader" of functions that we call, which logs their output.

    Their ``io:format`` would wait for ever without an answer (Erlang's "I/O protocol").
    """

    answers = False

    def __init__(self, node: ProcessTable) -> None:
        super().__init__(node)
        node.add(self)

    def on_message(self, connection: Connection | None, message: Any) -> None:
        match message:
            case ("io_request", Pid() as sender, token, request):
                answer: Any = OK
                source = connection.name if connection is not None else self.node.name
                match request:
                    case ("put_chars", _, text) | ("put_chars", text):
                        self._print(source, characters(text))
                    case ("put_chars", _, "io_lib", "format", [form, values]):
                        self._print(source, formatted(form, values))
                    case ("put_chars", _, module, function, arguments):
                        self._print(source, term_text((module, function, arguments)))
                    case _:
                        answer = (ERROR, _NO_SUCH_REQUEST)
                reply = (_IO_REPLY, token, answer)
                self.node.send_to(connection, self.pid, sender, reply)

    def _print(self, source: str, text: str) -> None:
        log.info("printed on %s: %s", source, text.rstrip())


class RemoteTask(Waiting):
    """A function that runs on another node: await its result, or cancel it to stop it there.

    Cancelling the task that awaits it stops it as well.

    :ivar peer: the node it runs on.
    :ivar function: what runs, ``module.function``.
    :ivar size: length of the encoded arguments in bytes.
    """

    def __init__(
        self, node: ProcessTable, connection: Connection | None, peer: str, function: str
    ) -> None:
        super().__init__(node, connection)
        self.peer = peer
        self.function = function
        self.size = 0
        self.remote: Pid | None = None
        self._spawning = True
        self._abandoned = False
        self._job: Job | None = None
        node.add(self)

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            return (yield from self.answer.__await__())
        except asyncio.CancelledError:
            if not self._abandoned:
                self.answer.cancel()
                self._abandon()
            raise

    def done(self) -> bool:
        """Return whether the function has ended, or nobody waits for it any more."""
        return self.answer.done()

    def cancel(self) -> bool:
        """Stop the function; False when it has ended already.

        A Python function is cancelled as a task, an Erlang process is asked to exit.
        """
        if self.answer.done():
            return False
        self.answer.cancel()
        self._abandon()
        return True

    def request(self, arguments: list[Any], group_leader: Pid) -> tuple[tuple[Any, ...], Any]:
        """Return the control tuple and the term that request the function."""
        module, function = map(Atom, split_function(self.function))
        control = (
            frames.SPAWN_REQUEST,
            self.reference,
            self.pid,
            group_leader,
            EXECUTE_CALL,
            [_MONITOR],
        )
        return control, [self.reference, module, function, arguments]

    def start_here(self, calls: Calls, arguments: list[Any]) -> None:
        """Run an exported function on this node."""
        module, function = map(Atom, split_function(self.function))
        copied = copy(arguments)
        self._spawning = False
        job = calls.start(self.pid, module, function, copied, self.reference)
        if job is None:
            trace = stack(module, function, copied)
            self.on_down(
                None,
                self.reference,
                (self.reference, ERROR, UNDEFINED_FUNCTION, trace),
            )
            return
        self._job = job
        self.remote = job.pid
        job.monitors[self.reference] = None, self.pid, job.pid

    def expire(self, seconds: float) -> None:
        """Stop waiting, and stop the function."""
        error = CallTimeoutError(
            "timeout", f"{self.function} on {self.peer} took longer than {seconds:.3g} seconds"
        )
        if not self.answer.done():
            self.fail(error)
            self._abandon()

    def on_spawned(self, reference: Any, found: Any) -> None:
        """Handle the answer to the request: the new process, or why there is none."""
        if reference != self.reference:
            return
        self._spawning = False
        if type(found) is Pid:
            self.remote = found
            if self._abandoned:
                self._stop_there()
            return
        code = {"system_limit": "system-limit", "notsup": "not-supported"}.get(word(found), "error")
        message = {
            "system_limit": f"too many calls run there at the same time, or the {self.size} bytes "
            "of the arguments are more than that node takes at once ([cluster] max_message there)",
            "notsup": "the node there does not run functions for others",
        }.get(word(found), f"refused: {shown(found)}")
        self.fail(RemoteError(self.peer, self.function, "error", found, message=message, code=code))
        self.node.end(self)

    def on_down(self, connection: Connection | None, reference: Reference, reason: Any) -> None:
        if reference != self.reference:
            return
        self._spawning = False
        if connection is None and self._job is not None:
            reason = copy(reason)  # nothing is shared, as between nodes
        if not self.answer.done():
            match reason:
                case (mark, "return", value) if mark == self.reference:
                    self.answer.set_result(value)
                case _:
                    self.fail(self._error(reason))
        self.node.end(self)

    def on_untaken(
        self, connection: Connection, reference: Reference | None, error: DistributionError
    ) -> None:
        if reference != self.reference:
            return
        self._spawning = False
        message, code = f"its result is lost: {error}", error.code
        self.fail(
            RemoteError(self.peer, self.function, "exit", SYSTEM_LIMIT, message=message, code=code)
        )
        self.node.end(self)

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        super().on_disconnect(connection, reason)
        if connection is self.connection:
            self._spawning = False
            self.node.end(self)

    def fail(self, error: DistributionError) -> None:
        super().fail(error)
        if self.answer.done() and not self.answer.cancelled():
            self.answer.exception()  # mark it as seen; a task may be started and never awaited

    def _abandon(self) -> None:
        if self._abandoned:
            return
        self._abandoned = True
        if self._job is not None:
            self._job.cancel(CANCELLED)
            self.node.end(self)
        elif self.remote is not None:
            self._stop_there()
        elif not self._spawning:
            self.node.end(self)

    def _stop_there(self) -> None:
        """Take back the watch, which cancels a Python function, and ask an Erlang one to exit."""
        if self.connection is not None and self.remote is not None:
            self.connection.send(
                (frames.DEMONITOR_P, self.pid, self.remote, self.reference), more=True
            )
            with suppress(DistributionError):
                self.node.exit(self.pid, self.remote, CANCELLED)
        self.node.end(self)

    def _error(self, reason: Any) -> RemoteError:
        match reason:
            case (mark, "throw", value) if mark == self.reference:
                return RemoteError(self.peer, self.function, "throw", value)
            case (mark, "exit", value) if mark == self.reference:
                return RemoteError(self.peer, self.function, "exit", value)
            case (mark, "error", value, trace) if mark == self.reference:
                return self._raised(value, trace)
            case (mark, "error", value) if mark == self.reference:
                return self._raised(value, [])
        message = "it was not there any more" if reason == NO_PROCESS else ""
        return RemoteError(self.peer, self.function, "exit", reason, message=message)

    def _raised(self, value: Any, trace: Any) -> RemoteError:
        match value:
            case "undef":
                message = "no such function, or it is not exported with this number of arguments"
                first = trace[0] if type(trace) is list and trace else None
                if type(first) is tuple and len(first) >= 2:
                    found = (word(first[0]), word(first[1]))
                    if found != split_function(self.function):
                        message = f"{found[0]}:{found[1]} does not exist"
                code: str | None = "undefined"
            case ("badarg", (bytes() | str()) as text):
                message, code = _to_text(text), "bad-argument"
            case ("python_exception", dict() as described):
                return self._python(value, described, trace)
            case _:
                message, code = "", "bad-argument" if value == BAD_ARGUMENT else None
        return RemoteError(
            self.peer, self.function, "error", value, trace, message=message, code=code
        )

    def _python(self, reason: Any, described: dict[Any, Any], trace: Any) -> RemoteError:
        """Return a Python exception with its causes."""
        outermost = last = self._one_of_python(reason, described, trace)
        cause = described.get("cause")
        for _ in range(MAX_CAUSES - 1):
            if type(cause) is not dict:
                break
            error = self._one_of_python((PYTHON_EXCEPTION, cause), cause, [])
            cause = cause.get("cause")
            last.__cause__ = error
            last = error
        return outermost

    def _one_of_python(self, reason: Any, described: dict[Any, Any], trace: Any) -> RemoteError:
        return RemoteError(
            self.peer,
            self.function,
            "error",
            reason,
            trace,
            message=_to_text(described.get("message", b"")),
            type=_to_text(described.get("type", b""))[:255] or "Exception",
            remote_traceback=_to_text(described.get("traceback", b""))[:MAX_TEXT],
        )


def _to_text(text: Any) -> str:
    if type(text) is bytes:
        return text.decode(errors="replace")
    return str(text) if isinstance(text, str) else shown(text)


def cast_request(
    node: ProcessTable, function: str, arguments: list[Any], sender: Pid, group_leader: Pid
) -> tuple[tuple[Any, ...], Any]:
    """Return the control tuple and the term that request a function without its result."""
    module, name = map(Atom, split_function(function))
    control: tuple[Any, ...] = (
        frames.SPAWN_REQUEST,
        node.new_reference(),
        sender,
        group_leader,
        EXECUTE_CAST,
        [],
    )
    return control, [module, name, arguments]
