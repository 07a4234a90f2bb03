# SPDX-License-Identifier: Apache-2.0
"""A node of a Distributed Erlang cluster, written in Python.

From the bottom up: :mod:`.etf` (terms), :mod:`.epmd` (port mapper), :mod:`.handshake` and
:mod:`.frames` (the protocol, without input or output), :mod:`.connection` (one TCP connection),
:mod:`.processes` (identifiers, signals), :mod:`.services` (what stock nodes ask for),
:mod:`.calls` and :mod:`.convert` (functions), :mod:`.mailbox` (messages, events), :mod:`.groups`
(process groups), :mod:`.node` (the node).
"""

from typing import TYPE_CHECKING, Any

from thicket.distribution.etf import Atom, DecodeError, EncodeError, Pid, Reference
from thicket.distribution.handshake import DistributionError, HandshakeError
from thicket.distribution.node import Node, NodeInfo

if TYPE_CHECKING:
    from thicket.distribution.calls import CALLER, CallTimeoutError, RemoteError, RemoteTask, Throw
    from thicket.distribution.groups import Subscription
    from thicket.distribution.mailbox import Down, Exit, Mailbox, NodeEvent, Request

__all__ = [
    "CALLER",
    "Atom",
    "CallTimeoutError",
    "DecodeError",
    "DistributionError",
    "Down",
    "EncodeError",
    "Exit",
    "HandshakeError",
    "Mailbox",
    "Node",
    "NodeEvent",
    "NodeInfo",
    "Pid",
    "Reference",
    "RemoteError",
    "RemoteTask",
    "Request",
    "Subscription",
    "Throw",
]

_LATER = {
    **dict.fromkeys(("CALLER", "CallTimeoutError", "RemoteError", "RemoteTask", "Throw"), "calls"),
    **dict.fromkeys(("Down", "Exit", "Mailbox", "NodeEvent", "Request"), "mailbox"),
    "Subscription": "groups",
}


def __getattr__(name: str) -> Any:
    """Import what a node that only answers does without, when it is first asked for."""
    module = _LATER.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{module}", __name__), name)
