# SPDX-License-Identifier: Apache-2.0
"""A node of a Distributed Erlang cluster, written in Python.

From the bottom up: :mod:`.etf` (terms), :mod:`.epmd` (port mapper), :mod:`.handshake` and
:mod:`.frames` (the protocol, without input or output), :mod:`.connection` (one TCP connection),
:mod:`.services` (what stock nodes ask for), :mod:`.node` (the node).
"""

from .handshake import DistributionError, HandshakeError
from .node import Node, NodeInfo

__all__ = ["DistributionError", "HandshakeError", "Node", "NodeInfo"]
