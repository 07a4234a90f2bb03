# SPDX-License-Identifier: Apache-2.0
"""Results and errors of called functions, as terms and as exceptions.

An exception of an exported function becomes an error with the reason ``{python_exception, Map}``
and a stack trace in Erlang's form; a Python caller gets a :class:`RemoteError` with the same cause.
"""

from __future__ import annotations

import logging
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from thicket.base.pace import Seldom
from thicket.distribution.atoms import (
    BAD_ARGUMENT,
    ERROR,
    NORMAL,
    PYTHON_EXCEPTION,
    RETURN,
    THROW,
)
from thicket.distribution.convert import MismatchError
from thicket.distribution.etf import Atom, EncodeError, encode_bare, shown
from thicket.distribution.exports import split_function
from thicket.distribution.handshake import DistributionError
from thicket.distribution.services import stack

if TYPE_CHECKING:
    from thicket.distribution.exports import Exported

log = logging.getLogger(__name__)

MAX_CAUSES = 8
"""Longest chain of exceptions, each the cause of the one before, that a caller gets."""

MAX_TEXT = 8192
"""Longest text of an exception that a caller gets."""

_LOG_INTERVAL = 60.0
_LOG_FAULTS = 10  # exceptions that are logged with their traceback within that interval
_MAX_FRAMES = 20

_CAUSE = Atom("cause")
_FILE = Atom("file")
_LINE = Atom("line")
_MESSAGE = Atom("message")
_MODULE = Atom("module")
_NO_CATCH = Atom("nocatch")
_TRACEBACK = Atom("traceback")
_TYPE = Atom("type")


class Throw(Exception):  # noqa: N818  # the word of Erlang
    """Raise it in an exported function to ``throw`` a term to an Erlang caller.

    :ivar value: the term.
    """

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.value = value


class RemoteError(DistributionError):
    """A function on another node failed.

    Its ``__cause__`` is the exception's cause there, also as a RemoteError. Codes: ``error``,
    ``exit`` and ``throw`` (the class in Erlang's sense), ``undefined`` (no such function, not
    exported, or another number of arguments), ``bad-argument``, ``system-limit`` (too many calls at
    the same time, or arguments or a result longer than the receiving node accepts), ``undecodable``
    (the result is no term), ``not-supported``.

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
        super().__init__(code or kind, text[:MAX_TEXT])
        self.node = node
        self.function = function
        self.kind = kind
        self.reason = reason
        self.stack = trace if trace is not None else []
        self.type = type
        self.remote_traceback = remote_traceback


class CallTimeoutError(DistributionError, TimeoutError):
    """A call was not answered in time, and the function was stopped. Code: ``timeout``."""


def returned(result: Any, value: Any, *, text: bool) -> Any:
    """Return how a process ends whose function has returned ``value``."""
    if result is None:
        return NORMAL
    reason = (result, RETURN, value)
    encode_bare(reason, text=text)  # raises now if it cannot be sent
    return reason


def raised(result: Any, name: str, kind: str, reason: Any, trace: Any = None) -> Any:
    """Return how a process ends whose function has failed."""
    if result is None:
        return (reason, trace or [])
    if kind == "error":
        return (result, ERROR, reason, trace or [])
    return (result, Atom(kind), reason)


def failed(result: Any, exported: Exported, arguments: list[Any], error: BaseException) -> Any:
    """Return how a process ends whose function has raised ``error``."""
    module, function = map(Atom, split_function(exported.name))
    if isinstance(error, Throw):
        with suppress(EncodeError):
            encode_bare(error.value)
            if result is None:
                return ((_NO_CATCH, error.value), [])
            return (result, THROW, error.value)
    if isinstance(error, MismatchError):
        reason: Any = (BAD_ARGUMENT, str(error)[:MAX_TEXT])
        trace: Any = stack(module, function, brief(arguments))
        return raised(result, exported.name, "error", reason, trace)
    frames_of = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
    trace = [
        (
            module,
            Atom(frame.name[:255]),
            0,
            [(_FILE, frame.filename.encode(errors="replace")[-255:]), _line(frame.lineno)],
        )
        for frame in reversed(frames_of[1:])
    ]
    trace.append((module, function, len(arguments), []))
    return raised(result, exported.name, "error", (PYTHON_EXCEPTION, describe(error)), trace)


def brief(arguments: list[Any]) -> list[Any] | int:
    """Return the arguments for a stack trace, or their number when they are long."""
    try:
        size = len(encode_bare(arguments, text=True))
    except EncodeError:
        return len(arguments)
    return arguments if size <= MAX_TEXT else len(arguments)


def _line(number: int | None) -> tuple[Atom, int]:
    return _LINE, number or 0


def _chain(error: BaseException) -> list[BaseException]:
    """Return an exception and its causes, up to a limit."""
    chain = [error]
    while len(chain) < MAX_CAUSES:
        last = chain[-1]
        cause = last.__cause__ or (None if last.__suppress_context__ else last.__context__)
        if cause is None or cause in chain:
            break
        chain.append(cause)
    return chain


def describe(error: BaseException) -> dict[Atom, Any]:
    """Return an exception with its causes as a term."""
    *outer, innermost = _chain(error)
    described = _described(innermost, None)
    for link in reversed(outer):
        described = _described(link, described)
    return described


def _described(error: BaseException, cause: dict[Atom, Any] | None) -> dict[Atom, Any]:
    return {
        _TYPE: _clean(type(error).__name__),
        _MODULE: _clean(type(error).__module__),
        _MESSAGE: _words(error),
        _TRACEBACK: _traceback(error),
        _CAUSE: cause,
    }


def describe_badly(error: BaseException, why: str) -> dict[Atom, Any]:
    """Return an exception of which only the type is usable as a term."""
    return {
        _TYPE: _clean(type(error).__name__),
        _MODULE: "",
        _MESSAGE: why,
        _TRACEBACK: "",
        _CAUSE: None,
    }


def _words(error: BaseException) -> str:
    """Return the text of an exception, or why it has none."""
    try:
        return _clean(str(error))
    except BaseException as other:  # its own __str__ failed
        return f"its text cannot be made: {type(other).__name__}"


def _ends(text: str) -> str:
    """Return ``text``; a long one loses its middle."""
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[: MAX_TEXT // 2 - 8]}\n...\n{text[8 - MAX_TEXT // 2 :]}"


def _traceback(error: BaseException) -> str:
    """Return the end of the traceback of one exception, without its causes."""
    try:
        lines = traceback.format_exception(error, limit=-_MAX_FRAMES, chain=False)
        return _clean(_ends("".join(lines)))
    except BaseException as other:
        return f"its traceback cannot be made: {type(other).__name__}"


class Faults:
    """Logs exceptions of exported functions with their tracebacks, without filling the log.

    Each place is logged once a minute, and all together ten times; the next line tells how many
    were left out.
    """

    def __init__(self) -> None:
        self._seldom = Seldom(_LOG_INTERVAL, _LOG_FAULTS)

    def add(self, name: str, error: BaseException, source: str) -> None:
        """Log that the function ``name`` has raised ``error`` for the node ``source``."""
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        key = name, type(error).__qualname__, last.tb_lineno if last is not None else 0
        omitted = self._seldom.take(key, time.monotonic())
        if omitted is None:
            return
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
    return text[:MAX_TEXT].encode(errors="replace").decode()
