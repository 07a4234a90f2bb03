# SPDX-License-Identifier: Apache-2.0
"""A node of a Distributed Erlang cluster, written in Python.

From the bottom up:

* terms and the protocol, without input or output: :mod:`.etf`, :mod:`.handshake`, :mod:`.frames`
* one connection: :mod:`.connection`, inside TLS: :mod:`.secure` (:mod:`.file_tls`)
* who is connected: :mod:`.epmd` (port mapper), :mod:`.listening`, :mod:`.admission`,
  :mod:`.connector`; what happens: :mod:`.events`
* processes: :mod:`.atoms`, :mod:`.identifiers`, :mod:`.processes` (processes, and what they send),
  :mod:`.signals` (what they receive), :mod:`.services` (requests of stock nodes)
* functions: :mod:`.exports`, :mod:`.convert` (arguments), :mod:`.failures` (results and errors),
  :mod:`.jobs` (running functions), :mod:`.calls` (calls from others), :mod:`.calling` (calls to
  others)
* messages and groups: :mod:`.mailbox`, :mod:`.groups`
* what applications use: :mod:`.node`
"""

from typing import TYPE_CHECKING, Any

from thicket.distribution.etf import Atom, DecodeError, EncodeError, Pid, Reference
from thicket.distribution.handshake import DistributionError, HandshakeError
from thicket.distribution.node import Node, NodeInfo

if TYPE_CHECKING:
    from thicket.distribution.calling import RemoteTask
    from thicket.distribution.failures import CallTimeoutError, RemoteError, Throw
    from thicket.distribution.file_tls import FileTls
    from thicket.distribution.groups import Subscription
    from thicket.distribution.jobs import CALLER
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
    "FileTls",
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
    "CALLER": "jobs",
    "RemoteTask": "calling",
    "FileTls": "file_tls",
    **dict.fromkeys(("CallTimeoutError", "RemoteError", "Throw"), "failures"),
    **dict.fromkeys(("Down", "Exit", "Mailbox", "NodeEvent", "Request"), "mailbox"),
    "Subscription": "groups",
}


def __getattr__(name: str) -> Any:
    """Import a name on first use; a node that only answers does not need these."""
    module = _LATER.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{module}", __name__), name)
