# SPDX-License-Identifier: Apache-2.0
"""What happens to a node's place in the mesh, as its listener is told."""

from typing import NamedTuple


class Joined(NamedTuple):
    """The node is in the mesh and its address can be used.

    :ivar address: the node's address with the length of its prefix.
    :ivar adopted: the mesh stood already, kept by the wpa_supplicant of a former daemon.
    """

    interface: str
    ifindex: int
    address: str
    adopted: bool


class Left(NamedTuple):
    """The node is no longer in the mesh."""

    interface: str


class PeerUp(NamedTuple):
    """There is a link to a peer."""

    mac: str


class PeerDown(NamedTuple):
    """There is no link to a peer any more."""

    mac: str


class ProblemFound(NamedTuple):
    """Something is wrong.

    :ivar part: radio or supplicant.
    :ivar code: the reason for programs.
    :ivar message: the reason in words.
    """

    part: str
    code: str
    message: str


class ProblemSolved(NamedTuple):
    """Something is no longer wrong; for the fields see :class:`ProblemFound`."""

    part: str
    code: str
    message: str


RadioEvent = Joined | Left | PeerUp | PeerDown | ProblemFound | ProblemSolved
