# SPDX-License-Identifier: Apache-2.0
"""Calls of functions by other nodes, as Erlang's ``erpc`` and ``rpc`` make them.

A caller asks for a process that runs ``erpc:execute_call/4`` (see :mod:`.calling`). There is no
such function here: only exported Python functions run. A function is cancelled when its caller
takes back the watch.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from thicket.distribution import frames
from thicket.distribution.atoms import (
    BAD_ARGUMENT,
    KILLED,
    NOT_SUPPORTED,
    PYTHON_EXCEPTION,
    RETURN,
    SYSTEM_LIMIT,
    UNDEFINED_FUNCTION,
)
from thicket.distribution.calling import IoServer
from thicket.distribution.convert import MismatchError
from thicket.distribution.etf import Atom, Pid, Reference, decode_bare
from thicket.distribution.exports import Exported, Exports
from thicket.distribution.failures import (
    Faults,
    Throw,
    brief,
    describe_badly,
    failed,
    raised,
    returned,
)
from thicket.distribution.jobs import (
    CALLER,
    MAX_JOBS,
    MAX_JOBS_PER_NODE,
    Caller,
    Job,
    Threads,
)
from thicket.distribution.services import answer_to_shell, stack

if TYPE_CHECKING:
    from thicket.distribution.connection import Connection
    from thicket.distribution.processes import ProcessTable

log = logging.getLogger(__name__)


class Calls:
    """Answers requests to run a function here.

    :ivar exports: the functions that may be called.
    :ivar jobs: the running functions.
    :ivar refused: number of requests that exceeded a limit.
    """

    def __init__(self, node: ProcessTable) -> None:
        self.node = node
        self.exports = Exports()
        self.jobs: set[Job] = set()
        self.refused = 0
        self._faults = Faults()
        self._threads: Threads | None = None
        self._io: IoServer | None = None

    @property
    def group_leader(self) -> Pid:
        """The process to which functions that we call print."""
        if self._io is None:
            self._io = IoServer(self.node)
        return self._io.pid

    @property
    def threads(self) -> Threads:
        """The threads for exported functions."""
        if self._threads is None:
            self._threads = Threads()
        return self._threads

    def on_request(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        """Handle a request to spawn a process."""
        request, caller, _, called, options = control[1:6]
        if type(request) is not Reference or type(caller) is not Pid:
            raise TypeError("a spawn request without a reference and a pid")
        if request.node != connection.name:
            self.node.forged(connection, f"a spawn request with a reference of {request.node}")
            return
        values: Any = decode_bare(payload)[0] if payload is not None else None
        chosen = options if type(options) is list else []
        monitored = any(_option(option) == "monitor" for option in chosen)
        linked = "link" in chosen
        result: Any = None
        refusal: Atom | None = None
        module: Any = None
        function: Any = None
        arguments: Any = None
        spawned = False
        match called, values:
            case ("erpc", "execute_call", 4), [result, module, function, list() as arguments]:
                pass
            case ("erpc", "execute_cast", 3), [module, function, list() as arguments]:
                pass
            case ("erpc", "execute_call" | "execute_cast", _), _:
                refusal = BAD_ARGUMENT
            case (module, function, int()), list() as arguments:
                spawned = True
            case _:
                refusal = NOT_SUPPORTED
        exported: Exported | None = None
        if refusal is None:
            exported = self.exports.find(module, function, len(arguments))
            if spawned and (exported is None or not exported.asynchronous):
                refusal = NOT_SUPPORTED  # only exported coroutines are run as processes
            elif exported is not None and not self.has_room(str(caller.node)):
                self.refused += 1
                refusal = SYSTEM_LIMIT
        if refusal is not None:
            connection.send((frames.SPAWN_REPLY, request, caller, 0, refusal))
            return
        granted = (1 if linked else 0) | (2 if monitored else 0)
        ended: Any
        # While long results are being sent, the next function waits for its turn.
        if exported is not None and (connection.busy or not exported.at_once):
            watch = request if monitored and not spawned else None
            job = Job(
                self.node,
                self,
                connection,
                caller,
                exported=exported,
                arguments=arguments,
                result=result,
                cancel_with_watch=watch,
            )
            if monitored:
                job.monitors[request] = connection, caller, job.pid
            if linked:
                job.links[caller] = connection
            connection.send((frames.SPAWN_REPLY, request, caller, granted, job.pid))
            job.start()
            return
        # A function that has ended needs no process.
        if exported is None:
            called_here = (module, function, arguments)
            known = result and answer_to_shell(self.node, connection, control[3], called_here)
            trace = stack(module, function, brief(arguments))
            ended = (
                (result, RETURN, known)
                if known is not None
                else raised(result, "", "error", UNDEFINED_FUNCTION, trace)
            )
        else:
            ended = self._run(exported, connection, caller, arguments, result)
        pid = self.node.new_pid()
        # The caller's runtime waits for this, even if the caller does not.
        connection.send(
            (frames.SPAWN_REPLY, request, caller, granted, pid), more=monitored or linked
        )
        if monitored:
            self.node.send_down(connection, pid, caller, request, ended)
        if linked:
            self.node.send_exit(connection, pid, caller, ended)

    def _run(
        self,
        exported: Exported,
        reader: Connection,
        caller: Pid,
        arguments: list[Any],
        result: Any,
    ) -> Any:
        """Run a plain function, and return how its process ends."""
        token = CALLER.set(Caller(str(caller.node), caller))
        try:
            value = exported.function(*exported.signature.convert(arguments))
            return returned(result, value, text=reader.text)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # it would end the connection, or the node
            return self.failed(result, exported, arguments, error, str(caller.node))
        finally:
            CALLER.reset(token)

    def failed(
        self,
        result: Any,
        exported: Exported,
        arguments: list[Any],
        error: BaseException,
        source: str,
    ) -> Any:
        """Return how a process ends whose function has raised ``error``."""
        try:
            if not isinstance(error, Throw | MismatchError):
                self._faults.add(exported.name, error, source)
            return failed(result, exported, arguments, error)
        except BaseException as other:
            # Its traceback would raise again.
            words = f"it cannot be described: {type(other).__name__}"
            log.error("%s raised %s, but %s", exported.name, type(error).__name__, words)
            described = describe_badly(error, words)
            return raised(result, exported.name, "error", (PYTHON_EXCEPTION, described))

    def has_room(self, node: str) -> bool:
        """Return whether one more function may run for ``node``."""
        if len(self.jobs) >= MAX_JOBS:
            return False
        if len(self.jobs) < MAX_JOBS_PER_NODE:
            return True
        return sum(job.source == node for job in self.jobs) < MAX_JOBS_PER_NODE

    def start(
        self,
        caller: Pid,
        module: Any,
        function: Any,
        arguments: list[Any],
        result: Any,
        *,
        connection: Connection | None = None,
    ) -> Job | None:
        """Run an exported function; None when there is none.

        :param caller: the process that it runs for.
        :param connection: to the caller's node, which must be known to be its own; None for this
            node.
        """
        exported = self.exports.find(module, function, len(arguments))
        if exported is None:
            return None
        job = Job(
            self.node,
            self,
            connection,
            caller,
            exported=exported,
            arguments=arguments,
            result=result,
        )
        job.start()
        return job

    def stop(self) -> None:
        """Cancel all running functions."""
        for job in list(self.jobs):
            job.cancel(KILLED)
        if self._threads is not None:
            self._threads.stop()


def _option(option: Any) -> Any:
    return option[0] if type(option) is tuple and option else option
