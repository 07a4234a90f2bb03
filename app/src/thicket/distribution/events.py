# SPDX-License-Identifier: Apache-2.0
"""The events of a node of a cluster."""

import logging
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from thicket.base.events import Listener
    from thicket.distribution.mailbox import NodeEvents

log = logging.getLogger(__name__)


# Making a NamedTuple is slow, so events with the same fields share one; this saves start-up time.


class _Named(NamedTuple):
    name: str


class Connecting(_Named):
    """This node tries to reach another one.

    :ivar name: as the caller spelt it.
    """

    __slots__ = ()


class NodeUp(_Named):
    """A connection with a node is up.

    :ivar name: as the node itself spells it.
    """

    __slots__ = ()


class NodeDown(NamedTuple):
    """A connection with a node has ended.

    :ivar code: the reason in one word (``closed``, ``silent``, ``stopped`` ...).
    :ivar reason: the reason in words.
    """

    name: str
    code: str
    reason: str


class MemberUp(_Named):
    """A node is in the cluster: connected, or a way of connections leads to it (:mod:`.roster`).

    :ivar name: in its own spelling when it is connected.
    """

    __slots__ = ()


class MemberDown(NamedTuple):
    """A node is not in the cluster any more.

    :ivar code: the reason in one word: that of a lost connection, or ``lost``.
    :ivar reason: the reason in words.
    """

    name: str
    code: str
    reason: str


class Suspected(NamedTuple):
    """Another Thicket node suspects that one of our peers is lost.

    :ivar by: the node that suspects.
    """

    name: str
    by: str


class _Refusal(NamedTuple):
    source: str
    name: str | None
    code: str
    message: str


class Refused(_Refusal):
    """This node refused another one; reported as rarely as it is logged.

    :ivar source: the other node's address.
    :ivar name: its name, None while it has told none.
    :ivar code: the reason in one word.
    :ivar message: the reason in words.
    """

    __slots__ = ()


class RefusedBy(_Refusal):
    """Another node refused this one; for the fields see :class:`Refused`."""

    __slots__ = ()


class _Problem(NamedTuple):
    code: str
    message: str
    since: float


class ProblemBegan(_Problem):
    """Something keeps the node from working.

    :ivar since: seconds of CLOCK_BOOTTIME.
    """

    __slots__ = ()


class ProblemEnded(_Problem):
    """A problem is over; for the fields see :class:`ProblemBegan`."""

    __slots__ = ()


ClusterEvent = (
    Connecting
    | NodeUp
    | NodeDown
    | MemberUp
    | MemberDown
    | Suspected
    | Refused
    | RefusedBy
    | ProblemBegan
    | ProblemEnded
)


class Announcer:
    """Hands events to a node's listener and to its monitors.

    :param listener: its exceptions are logged.
    :ivar monitors: they get the nodes that come and go, see :meth:`.Node.monitor`.
    """

    def __init__(self, listener: "Listener[ClusterEvent] | None") -> None:
        self._listener = listener
        self.monitors: list[NodeEvents] = []

    def tell(self, event: ClusterEvent) -> None:
        """Hand out an event."""
        if self.monitors and isinstance(event, MemberUp | MemberDown):
            self._tell_monitors(event)
        if self._listener is None:
            return
        try:
            self._listener.on(event)
        except Exception:
            log.exception("the handler of the event %s failed", type(event).__name__)

    def _tell_monitors(self, event: MemberUp | MemberDown) -> None:
        from thicket.distribution.mailbox import NodeEvent

        if isinstance(event, MemberUp):
            told = NodeEvent("up", event.name)
        else:
            told = NodeEvent("down", event.name, event.code, event.reason)
        for monitor in list(self.monitors):
            monitor.put(told)

    def close(self) -> None:
        """Close all monitors."""
        for monitor in list(self.monitors):
            monitor.close()
