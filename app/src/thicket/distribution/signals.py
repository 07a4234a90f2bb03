# SPDX-License-Identifier: Apache-2.0
"""The signals from other nodes.

They are the control messages of the ERTS User's Guide, "Distribution Protocol", section "Protocol
between Connected Nodes". Signals in the name of another node are dropped. When a signal is too long
or no term, the process that waits for it learns that.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from thicket.distribution import frames
from thicket.distribution.atoms import BAD_ARGUMENT, GEN_CALL, SYSTEM, SYSTEM_LIMIT
from thicket.distribution.etf import (
    SMALL_TUPLE,
    Atom,
    DecodeError,
    LimitError,
    Pid,
    Reference,
    decode_bare,
)
from thicket.distribution.handshake import DistributionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from thicket.distribution.connection import Connection
    from thicket.distribution.processes import Process, ProcessTable

    Handler = Callable[[Connection, tuple[Any, ...], bytes | None], None]

log = logging.getLogger(__name__)

_MAX_REQUEST_TERMS = 64  # of the part of a request that names its caller

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
    """Return the process that a signal names as its sender, or something else."""
    if control[0] in _SENDER_LAST:
        return control[4]
    return control[2 if control[0] in _SENDER_SECOND else 1]


class Signals:
    """Receives the signals of other nodes for the processes of this one.

    :param table: the processes.
    :param on_spawn_request: handles spawn requests: control tuple and payload.
    """

    def __init__(self, table: ProcessTable, on_spawn_request: Handler) -> None:
        self._table = table
        self._counters = table.counters
        self._handlers: dict[int, Handler] = {
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
            frames.SPAWN_REQUEST: on_spawn_request,
            frames.SPAWN_REQUEST_TT: on_spawn_request,
            frames.SPAWN_REPLY: self._got_spawn_reply,
            frames.SPAWN_REPLY_TT: self._got_spawn_reply,
            # Our processes have no group leader that others could set.
            frames.GROUP_LEADER: self._got_nothing,
            frames.NODE_LINK: self._got_nothing,
        }

    def on_message(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        """Handle a message; unknown ones are counted and ignored."""
        self._counters["messages"] += 1
        handler = self._handlers.get(control[0])
        if handler is None:
            self._counters["unknown"] += 1
        else:
            self._guard(handler, connection, control, payload)

    def on_discarded(self, connection: Connection, control: tuple[Any, ...], head: bytes) -> None:
        """Tell the process that waits for a message, or for its answer, that it was too long.

        :param head: the beginning of its payload.
        """
        self._counters["messages"] += 1
        error = DistributionError(
            "system-limit",
            f"{connection.name} sent more than this node takes at once ([cluster] max_message)",
        )
        refusing = self._refusing(SYSTEM_LIMIT, error)
        self._guard(refusing, connection, control, head, refuses=True)

    def _guard(
        self,
        handler: Handler,
        connection: Connection,
        control: tuple[Any, ...],
        payload: bytes | None,
        *,
        refuses: bool = False,
    ) -> None:
        """Handle a signal if its sender is of the connected node; errors end here.

        :param refuses: whether the handler refuses the signal.
        """
        try:
            sender = _sender(control)
            if type(sender) is Pid and not self._table.speaks_for(connection, sender, "a signal"):
                return
            handler(connection, control, payload)
        except DecodeError as error:
            self._counters["undecodable"] += 1
            log.warning("a message of %s cannot be decoded: %s", connection.name, error)
            if refuses:  # it is already being refused
                return
            refusing = self._refusing(
                SYSTEM_LIMIT if isinstance(error, LimitError) else BAD_ARGUMENT,
                DistributionError(
                    "undecodable", f"{connection.name} sent what cannot be decoded: {error}"
                ),
            )
            self._guard(refusing, connection, control, payload, refuses=True)
        except (ValueError, TypeError, IndexError):
            # Too few elements, or not of the types they should have.
            self._counters["unknown"] += 1
            log.debug("a message of %s is not understood", connection.name, exc_info=True)
        except Exception:
            log.exception("the handling of a message of %s failed", connection.name)

    # --- refusals -----------------------------------------------------------------------------

    def _refusing(self, reason: Atom, error: DistributionError) -> Handler:
        """Return a handler of signals that are too long or no term, see :meth:`_refuse`."""
        return lambda connection, control, head: self._refuse(
            connection, control, head, reason, error
        )

    def _refuse(
        self,
        connection: Connection,
        control: tuple[Any, ...],
        head: bytes | None,
        reason: Atom,
        error: DistributionError,
    ) -> None:
        """Handle a message that is too long or no term, so that nobody waits for it in vain.

        :param head: the beginning of its payload.
        :param reason: the reason for an Erlang node.
        :param error: the reason for Python code here.
        """
        operation = control[0]
        if operation in (frames.SPAWN_REQUEST, frames.SPAWN_REQUEST_TT):
            request, caller = control[1:3]
            _require(request, Reference)
            _require(caller, Pid)
            connection.send((frames.SPAWN_REPLY, request, caller, 0, reason))
        elif operation == frames.PAYLOAD_MONITOR_P_EXIT:
            process = self._table.find(control[2])
            if process is not None and process.awaits(connection, control[3]):
                process.on_untaken(connection, control[3], error)
                process.watched.pop(control[3], None)
        elif operation in _EXITS:
            # The process has ended in any case.
            self._handlers[operation](connection, (*control[:3], reason), None)
        elif operation in _SENDS:
            target = control[3 if operation in (frames.REG_SEND, frames.REG_SEND_TT) else 2]
            process = (
                self._table.aliased(target)
                if type(target) is Reference
                else self._table.find(target)
            )
            if process is None:
                return
            asked = _request_in(head)
            if asked is None:
                process.on_untaken(connection, None, error)
            else:
                process.on_untaken_request(connection, *asked, reason)

    # --- one signal each ----------------------------------------------------------------------

    def _deliver(
        self, connection: Connection, process: Process | None, payload: bytes | None
    ) -> None:
        # As in Erlang, a message to nobody is dropped. It is not even decoded.
        if process is not None and payload is not None:
            self._table.give(connection, process, decode_bare(payload)[0])

    def _got_nothing(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        """Ignore a signal that has no meaning here."""

    def _got_send(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        self._deliver(connection, self._table.find(control[2]), payload)

    def _got_named_send(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        self._deliver(connection, self._table.find(control[3]), payload)

    def _got_alias_send(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        _require(control[2], Reference)
        self._deliver(connection, self._table.aliased(control[2]), payload)

    def _got_monitor(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        _, watcher, item, reference = control
        _require(watcher, Pid)
        _require(reference, Reference)
        if reference.node != connection.name:
            self._table.forged(connection, f"a watch with a reference of {reference.node}")
            return
        self._table.add_watch(connection, watcher, item, reference)

    def _got_demonitor(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        self._table.drop_watch(connection, control[2], control[3])

    def _got_down(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        process = self._table.find(control[2])
        if process is not None:
            if not process.awaits(connection, control[3]):
                return  # no longer watched, or not on that node
            reason = control[4] if payload is None else decode_bare(payload)[0]
            process.on_down(connection, control[3], reason)
            process.watched.pop(control[3], None)

    def _got_link(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        _, sender, target = control
        _require(sender, Pid)
        _require(target, Pid)
        self._table.add_link(connection, sender, target)

    def _got_unlink(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        self._table.drop_link(control[1], control[2])

    def _got_unlink_id(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        _, number, sender, target = control
        _require(number, int)
        self._table.drop_link(sender, target)
        # First of all: until this arrives, the sender takes signals of the target for old ones.
        connection.send((frames.UNLINK_ID_ACK, number, target, sender))

    def _got_unlink_ack(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        _, number, sender, target = control
        process = self._table.find(target)
        if process is not None and process.unlinking.get(sender) == number:
            del process.unlinking[sender]

    def _got_exit(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        sender = control[1]
        process = self._table.find(control[2])
        if process is None or sender in process.unlinking or sender not in process.links:
            return  # the exit of a link that was undone
        del process.links[sender]
        reason = control[-1] if payload is None else decode_bare(payload)[0]
        process.on_exit(connection, sender, reason, linked=True)

    def _got_exit2(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        _require(control[1], Pid)
        process = self._table.find(control[2])
        if process is not None:
            reason = control[-1] if payload is None else decode_bare(payload)[0]
            process.on_exit(connection, control[1], reason, linked=False)

    def _got_spawn_reply(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        process = self._table.find(control[2])
        if process is not None and process.awaits(connection, control[1]):
            process.on_spawned(control[1], control[4])


def _request_in(head: bytes | None) -> tuple[Pid, Any] | None:
    """Return the caller and the tag of the answer from the beginning of an encoded request.

    None when it is no request; the tag is None for the form ``{Pid, Request}``.
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


def _require(value: Any, kind: type) -> None:
    if type(value) is not kind:
        raise TypeError(f"a {kind.__name__} was expected")
