# SPDX-License-Identifier: Apache-2.0
"""Calls of functions between nodes, both ways, as Erlang's ``erpc`` and ``rpc`` make them.

A call is a request to spawn a process that runs ``erpc:execute_call/4`` on the other node, watched
by the caller; its end tells the result (source of OTP's ``erpc.erl``; ERTS User's Guide,
"Distribution Protocol", ``SPAWN_REQUEST``). Here no such function exists: what runs is a function
of Python that was exported, and nothing else. A caller that no longer waits takes back its watch,
upon which the function is cancelled.

An exception of an exported function becomes an error with the reason ``{python_exception, Map}``
and a stack trace in Erlang's form; a caller in Python gets it as a :class:`RemoteError` with the
same cause.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import logging
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from thicket.distribution import frames
from thicket.distribution.convert import MismatchError, Signature
from thicket.distribution.etf import (
    Atom,
    EncodeError,
    Pid,
    Reference,
    decode_bare,
    encode_bare,
    shown,
)
from thicket.distribution.handshake import DistributionError, key_of
from thicket.distribution.ioformat import characters, formatted, term_text
from thicket.distribution.processes import (
    BAD_ARGUMENT,
    ERROR,
    KILL,
    KILLED,
    NO_PROCESS,
    NORMAL,
    NOT_SUPPORTED,
    SYSTEM_LIMIT,
    Process,
    ProcessTable,
    copy,
)
from thicket.distribution.services import UNDEFINED_FUNCTION, answer_to_shell, stack

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from thicket.distribution.connection import Connection

log = logging.getLogger(__name__)

MAX_JOBS = 1000
"""Functions that run at the same time on behalf of other nodes."""

MAX_JOBS_PER_NODE = 250
"""The same, for one other node."""

MAX_THREADS = 8
"""Threads for exported functions, apart from those that the node's own work has."""

MAX_THREADS_PER_NODE = 4

_RETURN = Atom("return")
_THROW = Atom("throw")
_EXIT = Atom("exit")
_ERPC = Atom("erpc")
_MONITOR = Atom("monitor")
_CANCELLED = Atom("cancelled")
_PYTHON = Atom("python_exception")
_EXECUTE_CALL = (_ERPC, Atom("execute_call"), 4)
_EXECUTE_CAST = (_ERPC, Atom("execute_cast"), 3)
_LOG_INTERVAL = 60.0
_LOG_FAULTS = 10  # exceptions that are logged whole, within that interval
_MAX_CAUSES = 8
_MAX_TEXT = 8192
_MAX_FRAMES = 20


class Throw(Exception):  # noqa: N818  # the word of Erlang
    """Raise it in an exported function to ``throw`` a term to a caller in Erlang.

    :ivar value: the term.
    """

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.value = value


class RemoteError(DistributionError):
    """A function on another node failed.

    Its ``__cause__`` is the cause that the exception had there, as a RemoteError, too. Codes:
    ``error``, ``exit`` and ``throw`` (the class in Erlang's sense), ``undefined`` (no such
    function, or it is not exported, or takes another number of arguments), ``bad-argument``,
    ``system-limit`` (too many calls at the same time, or arguments or a result that are longer
    than the node they go to takes), ``undecodable`` (a result that is no term), ``not-supported``.

    :ivar node: where it happened.
    :ivar function: what was called, ``module.function``.
    :ivar kind: ``error``, ``exit`` or ``throw``.
    :ivar reason: the reason as the term that came.
    :ivar stack: Erlang's stack trace, or an empty list.
    :ivar type: the name of the exception's class in Python (``ValueError``), or empty.
    :ivar remote_traceback: the traceback in Python as text, or empty.
    """

    def __init__(
        self,
        node: str,
        function: str,
        kind: str,
        reason: Any,
        trace: Any = None,
        *,
        message: str = "",
        type: str = "",
        remote_traceback: str = "",
        code: str | None = None,
    ) -> None:
        where = f"{function} on {node}"
        if type:
            text = f"{type}: {message} (in {where})" if message else f"{type} (in {where})"
        elif message:
            text = f"{where}: {message}"
        else:
            text = f"{where} failed: {kind} {shown(reason)}"
        super().__init__(code or kind, text[:_MAX_TEXT])
        self.node = node
        self.function = function
        self.kind = kind
        self.reason = reason
        self.stack = trace if trace is not None else []
        self.type = type
        self.remote_traceback = remote_traceback


class CallTimeoutError(DistributionError, TimeoutError):
    """A call was not answered in time; the function was told to stop. Code: ``timeout``."""


class Caller(NamedTuple):
    """Who called the function that runs: the node, and the process on it.

    The node is the one at the other end of the connection that the call came by. The process is
    what that node says. A call by way of another node is that node's own.
    """

    node: str
    pid: Pid


CALLER: contextvars.ContextVar[Caller | None] = contextvars.ContextVar("caller", default=None)
"""In an exported function, who called it."""


class Exported(NamedTuple):
    """A function that other nodes may call."""

    name: str
    function: Callable[..., Any]
    signature: Signature
    asynchronous: bool
    thread: bool


class Exports:
    """The functions that other nodes may call, by module and function name."""

    def __init__(self) -> None:
        self._functions: dict[tuple[str, str], Exported] = {}

    def add(self, name: str, function: Callable[..., Any], *, thread: bool = False) -> None:
        """Export *function* as *name*, ``module.function``.

        :raises ValueError: when the name is taken, or is none.
        :raises TypeError: for a function that cannot be called from elsewhere.
        """
        key = split_function(name)
        if key in self._functions:
            raise ValueError(f"{name} is exported already")
        asynchronous = inspect.iscoroutinefunction(function)
        if thread and asynchronous:
            raise TypeError(f"{name} is a coroutine, which needs no thread")
        self._functions[key] = Exported(name, function, Signature(function), asynchronous, thread)

    def remove(self, name: str) -> None:
        """Take back an export; calls that run go on."""
        self._functions.pop(split_function(name), None)

    def find(self, module: Any, function: Any, count: int) -> Exported | None:
        """Return the exported function, if it takes *count* arguments."""
        known = self._functions.get((_word(module), _word(function)))
        return known if known is not None and known.signature.accepts(count) else None

    def names(self) -> list[str]:
        """Return what is exported."""
        return sorted(known.name for known in self._functions.values())


def _word(atom: Any) -> str:
    """Return the text of an atom, which may be one of the words that became a value."""
    if type(atom) is Atom:
        return str(atom)
    return {True: "true", False: "false", None: "nil"}.get(atom, "") if _plain(atom) else ""


def _plain(value: Any) -> bool:
    return value is None or type(value) is bool


def split_function(name: str) -> tuple[str, str]:
    """Return module and function of ``module.function``.

    :raises ValueError: for a name that is none.
    """
    module, dot, function = name.rpartition(".")
    if not dot or not module or not function or len(name) > 255:
        raise ValueError(f"a function is called module.function, not {name!r}")
    return module, function


def function_name(function: Callable[..., Any]) -> str:
    """Return the name under which a function is exported: that of its module, and its own."""
    module = function.__module__.rpartition(".")[2]
    return f"{module.strip('_') or module}.{function.__name__}"


# --- being called -----------------------------------------------------------------------------


class Job(Process):
    """A function that runs on behalf of another node."""

    answers = False

    def __init__(
        self,
        node: ProcessTable,
        calls: Calls,
        connection: Connection | None,
        caller: Pid,
        *,
        exported: Exported,
        arguments: list[Any],
        result: Any,
        cancel_with_watch: Reference | None = None,
    ) -> None:
        super().__init__(node)
        self._calls = calls
        self._connection = connection
        self._caller = caller
        self._exported = exported
        self._arguments = arguments
        self._result = result
        self._watch = cancel_with_watch
        self._why: Any = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Run the function in a task of its own."""
        self.node.add(self)
        self._calls.jobs.add(self)
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name=f"{self._exported.name} for {self._caller.node}"
        )
        self._task.add_done_callback(self._done)

    @property
    def source(self) -> str:
        """The node that the function runs for."""
        return str(self._caller.node)

    async def _run(self) -> None:
        CALLER.set(Caller(self.source, self._caller))
        exported = self._exported
        reason: Any
        plain = not exported.asynchronous and not exported.thread
        try:
            if plain and self._connection is not None:
                await self._connection.drain()
            made = exported.signature.convert(self._arguments)
            if exported.asynchronous:
                value = await exported.function(*made)
            elif exported.thread:
                value = await self._calls.in_thread(self.source, exported.function, made)
            else:
                value = exported.function(*made)
                if inspect.isawaitable(value):
                    value = await value
            reason = returned(self._result, value, text=_reads_text(self._connection))
        except asyncio.CancelledError:
            if self._why is None:
                reason = raised(self._result, exported.name, "exit", _CANCELLED)
            else:
                reason = self._why
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also one that exits: it must not end the node
            reason = self._calls.failed(self._result, exported, self._arguments, error, self.source)
        if self._connection is not None and self.monitors and not plain:
            with suppress(asyncio.CancelledError):
                await self._connection.drain()
        self.node.end(self, reason)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._calls.jobs.discard(self)
        self.node.end(self, KILLED)  # when it was cancelled before it began
        if not task.cancelled() and task.exception() is not None:
            log.error("a call of %s failed", self._exported.name, exc_info=task.exception())

    def cancel(self, why: Any) -> None:
        """Cancel the function; *why* is the reason of the process's end."""
        if self._task is not None and self._why is None:
            self._why = why
            self._task.cancel()

    def on_demonitor(self, reference: Reference) -> None:
        if reference == self._watch:
            self.cancel(_CANCELLED)

    def on_exit(
        self, connection: Connection | None, sender: Pid, reason: Any, *, linked: bool
    ) -> None:
        if reason != NORMAL or (sender == self._caller and not linked):
            self.cancel(KILLED if reason == KILL and not linked else reason)

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        super().on_disconnect(connection, reason)
        if connection is self._connection and self._watch is not None:
            self.cancel(_CANCELLED)  # nobody is left who waits


def _reads_text(reader: Connection | None) -> bool:
    return reader is None or reader.text


def returned(result: Any, value: Any, *, text: bool) -> Any:
    """Return how a process ends whose function has returned *value*."""
    if result is None:
        return NORMAL
    reason = (result, _RETURN, value)
    encode_bare(reason, text=text)  # tells now what could not be sent
    return reason


def raised(result: Any, name: str, kind: str, reason: Any, trace: Any = None) -> Any:
    """Return how a process ends whose function has failed."""
    if result is None:
        return (reason, trace or [])
    if kind == "error":
        return (result, ERROR, reason, trace or [])
    return (result, Atom(kind), reason)


def failed(result: Any, exported: Exported, arguments: list[Any], error: BaseException) -> Any:
    """Return how a process ends whose function has raised *error*."""
    module, function = map(Atom, split_function(exported.name))
    if isinstance(error, Throw):
        with suppress(EncodeError):
            encode_bare(error.value)
            if result is None:
                return ((Atom("nocatch"), error.value), [])
            return (result, _THROW, error.value)
    if isinstance(error, MismatchError):
        reason: Any = (BAD_ARGUMENT, str(error)[:_MAX_TEXT])
        trace: Any = stack(module, function, _brief(arguments))
        return raised(result, exported.name, "error", reason, trace)
    frames_of = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
    trace = [
        (
            module,
            Atom(frame.name[:255]),
            0,
            [(Atom("file"), frame.filename.encode(errors="replace")[-255:]), _line(frame.lineno)],
        )
        for frame in reversed(frames_of[1:])
    ]
    trace.append((module, function, len(arguments), []))
    return raised(result, exported.name, "error", (_PYTHON, describe(error)), trace)


def _brief(arguments: list[Any]) -> list[Any] | int:
    """Return what a stack trace says of arguments: themselves, or how many when they are long."""
    try:
        size = len(encode_bare(arguments, text=True))
    except EncodeError:
        return len(arguments)
    return arguments if size <= _MAX_TEXT else len(arguments)


def _line(number: int | None) -> tuple[Atom, int]:
    return Atom("line"), number or 0


def _chain(error: BaseException) -> list[BaseException]:
    """Return an exception and what caused it, one after the other, up to a limit."""
    chain = [error]
    while len(chain) < _MAX_CAUSES:
        last = chain[-1]
        cause = last.__cause__ or (None if last.__suppress_context__ else last.__context__)
        if cause is None or cause in chain:
            break
        chain.append(cause)
    return chain


def describe(error: BaseException) -> dict[Atom, Any]:
    """Return an exception, and what caused it, as a term."""
    described: dict[Atom, Any] | None = None
    for link in reversed(_chain(error)):
        described = {
            Atom("type"): _clean(type(link).__name__),
            Atom("module"): _clean(type(link).__module__),
            Atom("message"): _words(link),
            Atom("traceback"): _traceback(link),
            Atom("cause"): described,
        }
    assert described is not None
    return described


def _words(error: BaseException) -> str:
    """Return the text of an exception, also of one that cannot be put into words."""
    try:
        return _clean(str(error))
    except BaseException as other:  # its own __str__ failed
        return f"its text cannot be made: {type(other).__name__}"


def _ends(text: str) -> str:
    """Return *text*, without its middle when it is long."""
    if len(text) <= _MAX_TEXT:
        return text
    return f"{text[: _MAX_TEXT // 2 - 8]}\n...\n{text[8 - _MAX_TEXT // 2 :]}"


def _traceback(error: BaseException) -> str:
    """Return the traceback of one exception, its end when it is long."""
    try:
        lines = traceback.format_exception(error, limit=-_MAX_FRAMES, chain=False)
        return _clean(_ends("".join(lines)))
    except BaseException as other:
        return f"its traceback cannot be made: {type(other).__name__}"


class _Faults:
    """Logs exceptions of exported functions, whole, but not more than a log bears: each place once
    a minute, and all together a few; how many more there were is told with the next one."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str, int], float] = {}
        self._omitted = 0

    def add(self, name: str, error: BaseException, source: str) -> None:
        """Log that the function *name* has raised *error* for the node *source*."""
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        key = name, type(error).__qualname__, last.tb_lineno if last is not None else 0
        now = time.monotonic()
        for known, when in list(self._told.items()):  # the oldest first
            if now - when < _LOG_INTERVAL:
                break
            del self._told[known]
        if key in self._told or len(self._told) >= _LOG_FAULTS:
            self._omitted += 1
            return
        self._told[key] = now
        omitted, self._omitted = self._omitted, 0
        causes = reversed(_chain(error))
        text = "\n... which led to:\n".join(_traceback(cause).rstrip() for cause in causes)
        log.error(
            "%s, called from %s, failed%s:\n%s",
            name,
            source,
            f" ({omitted} failures of functions were not logged since the last one)"
            if omitted
            else "",
            _ends(text),
        )


def _clean(text: str) -> str:
    return text[:_MAX_TEXT].encode(errors="replace").decode()


class Calls:
    """Answers requests to run a function here.

    :ivar exports: the functions that may be called.
    :ivar jobs: those that run.
    """

    def __init__(self, node: ProcessTable) -> None:
        self.node = node
        self.exports = Exports()
        self.jobs: set[Job] = set()
        self.refused = 0
        self._faults = _Faults()
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._io: IoServer | None = None

    @property
    def group_leader(self) -> Pid:
        """Where functions that we call print to."""
        if self._io is None:
            self._io = IoServer(self.node)
        return self._io.pid

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
        # What has a long result waits until those before it have left.
        if exported is not None and (connection.busy or not self._at_once(exported)):
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
        # What has ended already needs no process.
        if exported is None:
            called_here = (module, function, arguments)
            known = result and answer_to_shell(self.node, connection, control[3], called_here)
            trace = stack(module, function, _brief(arguments))
            ended = (
                (result, _RETURN, known)
                if known is not None
                else raised(result, "", "error", UNDEFINED_FUNCTION, trace)
            )
        else:
            ended = self._run(exported, connection, caller, arguments, result)
        pid = self.node.new_pid()
        # The caller's runtime waits for this even where the caller does not.
        connection.send(
            (frames.SPAWN_REPLY, request, caller, granted, pid), more=monitored or linked
        )
        if monitored:
            self.node.send_down(connection, pid, caller, request, ended)
        if linked:
            self.node.send_exit(connection, pid, caller, ended)

    def _at_once(self, exported: Exported) -> bool:
        return not exported.asynchronous and not exported.thread

    def _run(
        self,
        exported: Exported,
        reader: Connection,
        caller: Pid,
        arguments: list[Any],
        result: Any,
    ) -> Any:
        """Run a plain function; how its process ends."""
        token = CALLER.set(Caller(str(caller.node), caller))
        try:
            value = exported.function(*exported.signature.convert(arguments))
            return returned(result, value, text=reader.text)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # would end the connection, or the node
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
        """Return how a process ends whose function has raised *error*, whatever that is."""
        try:
            if not isinstance(error, Throw | MismatchError):
                self._faults.add(exported.name, error, source)
            return failed(result, exported, arguments, error)
        except BaseException as other:
            # Its traceback would raise again.
            words = f"it cannot be described: {type(other).__name__}"
            log.error("%s raised %s, but %s", exported.name, type(error).__name__, words)
            described = {
                Atom("type"): _clean(type(error).__name__),
                Atom("module"): "",
                Atom("message"): words,
                Atom("traceback"): "",
                Atom("cause"): None,
            }
            return raised(result, exported.name, "error", (_PYTHON, described))

    def has_room(self, node: str) -> bool:
        """Tell whether one more function may run on behalf of *node*."""
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

        :param caller: the process that it is run for.
        :param connection: to the caller's node, which it must be known to be of; None for this one.
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

    async def in_thread(
        self, source: str, function: Callable[..., Any], arguments: list[Any]
    ) -> Any:
        """Run a function in a thread, on behalf of the node *source*.

        A node that has its share of the threads waits for one of them to end, be it that of a
        caller who has gone.
        """
        if self._threads is None:
            self._threads = concurrent.futures.ThreadPoolExecutor(MAX_THREADS, "exported")
        host = key_of(source).partition("@")[2]
        turn = self._turns.setdefault(host, asyncio.Semaphore(MAX_THREADS_PER_NODE))
        await turn.acquire()
        loop = asyncio.get_running_loop()

        def ended(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(turn.release)

        context = contextvars.copy_context()
        try:
            running = self._threads.submit(context.run, function, *arguments)
        except BaseException:
            turn.release()
            raise
        running.add_done_callback(ended)
        return await asyncio.wrap_future(running)

    def stop(self) -> None:
        """Cancel what runs."""
        for job in list(self.jobs):
            job.cancel(KILLED)
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def _option(option: Any) -> Any:
    return option[0] if type(option) is tuple and option else option


class IoServer(Process):
    """The "group leader" of functions that we call: what they print is logged.

    Without an answer to its requests (Erlang's "I/O protocol") their ``io:format`` would wait for
    ever.
    """

    answers = False

    def __init__(self, node: ProcessTable) -> None:
        super().__init__(node)
        node.add(self)

    def on_message(self, connection: Connection | None, message: Any) -> None:
        match message:
            case ("io_request", Pid() as sender, token, request):
                answer: Any = Atom("ok")
                source = connection.name if connection is not None else self.node.name
                match request:
                    case ("put_chars", _, text) | ("put_chars", text):
                        self._print(source, characters(text))
                    case ("put_chars", _, "io_lib", "format", [form, values]):
                        self._print(source, formatted(form, values))
                    case ("put_chars", _, module, function, arguments):
                        self._print(source, term_text((module, function, arguments)))
                    case _:
                        answer = (ERROR, Atom("enotsup"))
                reply = (Atom("io_reply"), token, answer)
                self.node.send_to(connection, self.pid, sender, reply)

    def _print(self, source: str, text: str) -> None:
        log.info("printed on %s: %s", source, text.rstrip())


# --- calling ----------------------------------------------------------------------------------


class RemoteTask(Process):
    """A function that runs on another node. Await it for its result; cancel it to stop it there.

    Cancelling the task that awaits it cancels it as well.

    :ivar peer: the node it runs on.
    :ivar function: what runs, ``module.function``.
    :ivar size: length of the encoded arguments in bytes.
    """

    def __init__(
        self, node: ProcessTable, connection: Connection | None, peer: str, function: str
    ) -> None:
        super().__init__(node)
        self.peer = peer
        self.function = function
        self.size = 0
        self.reference = node.new_reference()
        self.remote: Pid | None = None
        self._connection = connection
        self._spawning = True
        self._abandoned = False
        self._future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._job: Job | None = None
        node.add(self)

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            return (yield from self._future.__await__())
        except asyncio.CancelledError:
            if not self._abandoned:
                self._future.cancel()
                self._abandon()
            raise

    def done(self) -> bool:
        """Tell whether the function has ended, here or there."""
        return self._future.done()

    def cancel(self) -> bool:
        """Stop the function; False when it has ended already.

        A function of Python is cancelled as a task is, one of Erlang is told to exit.
        """
        if self._future.done():
            return False
        self._future.cancel()
        self._abandon()
        return True

    def request(self, arguments: list[Any], group_leader: Pid) -> tuple[tuple[Any, ...], Any]:
        """Return control tuple and term that ask for the function."""
        module, function = map(Atom, split_function(self.function))
        control = (
            frames.SPAWN_REQUEST,
            self.reference,
            self.pid,
            group_leader,
            _EXECUTE_CALL,
            [_MONITOR],
        )
        return control, [self.reference, module, function, arguments]

    def start_here(self, calls: Calls, arguments: list[Any]) -> None:
        """Run an exported function of this node itself."""
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
        """Give up waiting, and stop the function."""
        error = CallTimeoutError(
            "timeout", f"{self.function} on {self.peer} took longer than {seconds:.3g} seconds"
        )
        if not self._future.done():
            self._fail(error)
            self._abandon()

    def on_spawned(self, reference: Any, found: Any) -> None:
        """Handle the answer to the request: the process that was made, or why none was."""
        if reference != self.reference:
            return
        self._spawning = False
        if type(found) is Pid:
            self.remote = found
            if self._abandoned:
                self._stop_there()
            return
        code = {"system_limit": "system-limit", "notsup": "not-supported"}.get(
            _word(found), "error"
        )
        message = {
            "system_limit": f"too many calls run there at the same time, or the {self.size} bytes "
            "of the arguments are more than that node takes at once ([cluster] max_message there)",
            "notsup": "the node there does not run functions for others",
        }.get(_word(found), f"refused: {shown(found)}")
        self._fail(
            RemoteError(self.peer, self.function, "error", found, message=message, code=code)
        )
        self.node.end(self)

    def awaits(self, connection: Connection, reference: Any) -> bool:
        """See :meth:`Process.awaits`: the node where the function runs."""
        return bool(connection is self._connection and reference == self.reference)

    def on_down(self, connection: Connection | None, reference: Reference, reason: Any) -> None:
        if reference != self.reference:
            return
        self._spawning = False
        if connection is None and self._job is not None:
            reason = copy(reason)  # nothing is shared, as between nodes
        if not self._future.done():
            match reason:
                case (mark, "return", value) if mark == self.reference:
                    self._future.set_result(value)
                case _:
                    self._fail(self._error(reason))
        self.node.end(self)

    def on_untaken(
        self, connection: Connection, reference: Reference | None, error: DistributionError
    ) -> None:
        if reference != self.reference:
            return
        self._spawning = False
        message, code = f"its result is lost: {error}", error.code
        self._fail(
            RemoteError(self.peer, self.function, "exit", SYSTEM_LIMIT, message=message, code=code)
        )
        self.node.end(self)

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        super().on_disconnect(connection, reason)
        if connection is self._connection:
            self._spawning = False
            self._fail(reason)
            self.node.end(self)

    def _fail(self, error: DistributionError) -> None:
        if not self._future.done():
            self._future.set_exception(error)
            # Nobody may ever ask a task that was only started.
            self._future.exception()

    def _abandon(self) -> None:
        if self._abandoned:
            return
        self._abandoned = True
        if self._job is not None:
            self._job.cancel(_CANCELLED)
            self.node.end(self)
        elif self.remote is not None:
            self._stop_there()
        elif not self._spawning:
            self.node.end(self)

    def _stop_there(self) -> None:
        """Take back the watch, which cancels a function of ours, and have one of Erlang exit."""
        if self._connection is not None and self.remote is not None:
            self._connection.send(
                (frames.DEMONITOR_P, self.pid, self.remote, self.reference), more=True
            )
            with suppress(DistributionError):
                self.node.exit(self.pid, self.remote, _CANCELLED)
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
                message = "no such function, or it is not exported with so many arguments"
                first = trace[0] if type(trace) is list and trace else None
                if type(first) is tuple and len(first) >= 2:
                    found = (_word(first[0]), _word(first[1]))
                    if found != split_function(self.function):
                        message = f"{found[0]}:{found[1]} does not exist"
                return RemoteError(
                    self.peer,
                    self.function,
                    "error",
                    value,
                    trace,
                    message=message,
                    code="undefined",
                )
            case ("badarg", (bytes() | str()) as text):
                return RemoteError(
                    self.peer,
                    self.function,
                    "error",
                    value,
                    trace,
                    message=_to_text(text),
                    code="bad-argument",
                )
            case ("python_exception", dict() as described):
                return self._python(value, described, trace)
        code = "bad-argument" if value == BAD_ARGUMENT else None
        return RemoteError(self.peer, self.function, "error", value, trace, code=code)

    def _python(self, reason: Any, described: Any, trace: Any) -> RemoteError:
        """Return an exception of Python with its causes."""
        outermost: RemoteError | None = None
        last: RemoteError | None = None
        for _ in range(_MAX_CAUSES):
            if type(described) is not dict:
                break
            error = RemoteError(
                self.peer,
                self.function,
                "error",
                reason if outermost is None else (_PYTHON, described),
                trace if outermost is None else [],
                message=_to_text(described.get("message", b"")),
                type=_to_text(described.get("type", b""))[:255] or "Exception",
                remote_traceback=_to_text(described.get("traceback", b""))[:_MAX_TEXT],
            )
            if last is not None:
                last.__cause__ = error
            outermost = outermost or error
            last = error
            described = described.get("cause")
        assert outermost is not None
        return outermost


def _to_text(text: Any) -> str:
    if type(text) is bytes:
        return text.decode(errors="replace")
    return str(text) if isinstance(text, str) else shown(text)


def cast_request(
    node: ProcessTable, function: str, arguments: list[Any], sender: Pid, group_leader: Pid
) -> tuple[tuple[Any, ...], Any]:
    """Return control tuple and term that ask for a function whose result nobody waits for."""
    module, name = map(Atom, split_function(function))
    control: tuple[Any, ...] = (
        frames.SPAWN_REQUEST,
        node.new_reference(),
        sender,
        group_leader,
        _EXECUTE_CAST,
        [],
    )
    return control, [module, name, arguments]
