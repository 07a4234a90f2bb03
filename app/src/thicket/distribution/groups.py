# SPDX-License-Identifier: Apache-2.0
"""Process groups over all nodes of a cluster; Erlang's ``pg`` shares them.

A *scope* is a set of groups that nodes share; Erlang's default one is ``pg``. On each node a
process registered under the scope's name knows the members on its own node, and reports them to the
others (source of OTP's ``pg.erl``): ``{discover, Pid}`` asks for everything, ``{sync, Pid,
Groups}`` answers, ``{join, ...}`` and ``{leave, ...}`` report changes.

OTP 29 has a second version (``data_publisher.erl``): ``{discover, Pid, 1}``, ``{local_data, Pid, 1,
Map}`` and ``{update, Pid, [{Group, Joined, Left}]}``. It understands the first one. Earlier
releases need the first one (they crash on anything else), so we begin with that, and answer each
node in the version that it uses.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from thicket.distribution.atoms import GEN_CAST
from thicket.distribution.etf import (
    Atom,
    EncodeError,
    Message,
    PairMap,
    Pid,
    Reference,
    encode_bare,
)
from thicket.distribution.handshake import DistributionError
from thicket.distribution.mailbox import LIMIT, Mailbox
from thicket.distribution.processes import Process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from thicket.distribution.connection import Connection
    from thicket.distribution.node import Node

log = logging.getLogger(__name__)

DEFAULT_SCOPE = "pg"

MAX_MEMBERS = 100_000
"""Limit of members of other nodes in all groups of a scope."""

MAX_NAME = 1024
"""Longest name of a group, in bytes of its encoding."""

MAX_NAMES = 8 * 1024 * 1024
"""Limit of the bytes of names of groups that have members of other nodes."""

MAX_SERVERS = 4
"""Limit of processes of one node in a scope. There is one; a new one may come before the end of the
old one is known here."""

_DISCOVER = Atom("discover")
_JOIN = Atom("join")
_LEAVE = Atom("leave")
_SYNC = Atom("sync")
_LOCAL_DATA = Atom("local_data")
_UPDATE = Atom("update")
_NEWEST = 1


def group_term(group: Any) -> Any:
    """Return the term of a group's name: for text the atom, which is usual in Erlang, and any other
    term as it is."""
    return Atom(group) if type(group) is str else group


def _key(group: Any) -> Any:
    """Return the encoding of a group's name, by which groups are looked up."""
    return encode_bare(group_term(group))


class _Group:
    """Members of a group, each as often as it has joined."""

    __slots__ = ("members", "name")

    def __init__(self, name: Any) -> None:
        self.name = name
        self.members: Counter[Pid] = Counter()


class _Peer:
    """The scope's process of another node, and the members of that node."""

    __slots__ = ("connection", "groups", "names", "pid", "version")

    def __init__(self, pid: Pid, connection: Connection) -> None:
        self.version = 0
        self.pid = pid
        self.connection = connection
        self.names = 0  # bytes
        self.groups: dict[bytes, _Group] = {}


class Scope(Process):
    """The groups of a scope; :meth:`.Node.scope` makes it."""

    answers = False

    def __init__(self, node: Node, name: str = DEFAULT_SCOPE) -> None:
        super().__init__(node)
        self.name = name
        self._node = node
        self._local: dict[bytes, _Group] = {}
        self._peers: dict[Pid, _Peer] = {}
        self._remote_members = 0
        node.register(name, self)
        for connection in node.connections.values():
            self.discover(connection)

    def discover(self, connection: Connection) -> None:
        """Introduce this node to the scope's process of another one, if there is one."""
        self.node.send_to_name(connection, self.pid, self.name, (_DISCOVER, self.pid))

    # --- calls of the node --------------------------------------------------------------------

    def join(self, group: Any, process: Process) -> None:
        """Make a process of this node a member, until it has left as often or ends.

        :raises EncodeError: ``group`` has no form in Erlang, or one longer than MAX_NAME.
        """
        key = _key(group)
        if len(key) > MAX_NAME:
            raise EncodeError(f"the name of a group has at most {MAX_NAME} bytes, not {len(key)}")
        known = self._local.setdefault(key, _Group(group_term(group)))
        known.members[process.pid] += 1
        if not any(item == process.pid for _, item in self.watched.values()):
            self.node.watch(self, process.pid)
        self._tell(known.name, [process.pid], [])

    def leave(self, group: Any, process: Process) -> bool:
        """Undo a join; False when the process is no member."""
        key = _key(group)
        known = self._local.get(key)
        if known is None or not known.members[process.pid]:
            return False
        self._take(self._local, key, process.pid)
        self._tell(known.name, [], [process.pid])
        if not any(process.pid in other.members for other in self._local.values()):
            for reference in [r for r, (_, item) in self.watched.items() if item == process.pid]:
                self.node.unwatch(self, reference)
        return True

    def members(self, group: Any) -> list[Pid]:
        """Return the members of all connected nodes."""
        key = _key(group)
        found = self.local_members(group)
        for peer in self._peers.values():
            known = peer.groups.get(key)
            if known is not None:
                found.extend(known.members.elements())
        return found

    def local_members(self, group: Any) -> list[Pid]:
        """Return the members of this node."""
        known = self._local.get(_key(group))
        return list(known.members.elements()) if known is not None else []

    def groups(self) -> list[Any]:
        """Return the names of all groups that have members."""
        found = {key: group.name for key, group in self._local.items()}
        for peer in self._peers.values():
            found.update((key, group.name) for key, group in peer.groups.items())
        return [found[key] for key in sorted(found)]

    async def publish(self, group: Any, message: Any, sender: Pid | None = None) -> int:
        """Send ``message`` to every member, waiting where a connection is busy.

        :returns: the number of members that it was sent to.
        :raises EncodeError: ``message`` has no form in Erlang.
        """
        encoded = Message(message)
        count = 0
        for pid in self.members(group):
            try:
                await self._node.send_encoded(sender or self.pid, pid, encoded)
            except DistributionError:
                continue  # its node was just lost
            count += 1
        return count

    # --- messages of other nodes --------------------------------------------------------------

    def on_message(self, connection: Connection | None, message: Any) -> None:
        if connection is None:
            return
        match message:
            case ("discover", Pid() as peer) if peer.node == connection.name:
                self._discovered(connection, peer, 0)
            case ("discover", Pid() as peer, int() as version) if peer.node == connection.name:
                self._discovered(connection, peer, min(version, _NEWEST))
            case ("$gen_cast", ("sync", Pid() as peer, list() as groups)):
                if peer.node == connection.name:
                    self._synchronise(connection, peer, groups)
            case ("$gen_cast", ("local_data", Pid() as peer, _, dict() | PairMap() as data)):
                if peer.node == connection.name:
                    pairs = data.items() if isinstance(data, dict) else data.pairs
                    self._synchronise(connection, peer, list(pairs))
            case ("update", Pid() as peer, list() as changes):
                for change in changes:
                    match change:
                        case (group, joined, left):
                            self._changed(connection, peer, (group, joined), ([group], left))
            case ("join", Pid() as peer, group, pids):
                self._changed(connection, peer, (group, pids), None)
            case ("leave", Pid() as peer, pids, list() as groups):
                self._changed(connection, peer, None, (groups, pids))

    def on_down(self, connection: Connection | None, reference: Reference, reason: Any) -> None:
        watched = self.watched.pop(reference, None)
        pid = watched[1] if watched is not None else None
        if connection is not None:
            peer = self._peers.pop(pid, None) if isinstance(pid, Pid) else None
            if peer is not None:
                self._remote_members -= _count(peer)
            return
        if not isinstance(pid, Pid):
            return
        for key, group in list(self._local.items()):
            count = group.members.pop(pid, 0)
            if not group.members:
                del self._local[key]
            for _ in range(count):
                self._tell(group.name, [], [pid])

    def _changed(
        self,
        connection: Connection,
        pid: Pid,
        joined: tuple[Any, Any] | None,
        left: tuple[list[Any], Any] | None,
    ) -> None:
        """Note joins (one group) and leaves (several) of the processes of another node."""
        if pid.node != connection.name:
            self.node.forged(connection, f"joins and leaves of processes of {pid.node}")
            return
        known = self._peers.get(pid)
        if known is None:
            return
        if joined is not None:
            self._add(known, joined[0], _pids(joined[1], pid))
        if left is not None:
            self._remove(known, left[0], Counter(_pids(left[1], pid)))

    def _remove(self, peer: _Peer, groups: list[Any], pids: Counter[Pid]) -> None:
        """Remove members from groups, in time that grows with the sum, not the product, of what the
        message and the table hold."""
        for key, times in Counter(map(_key, groups)).items():
            group = peer.groups.get(key)
            if group is None:
                continue
            members = group.members
            fewer, more = sorted((members, pids), key=len)
            for pid in [pid for pid in fewer if pid in more]:
                gone = min(members[pid], pids[pid] * times)
                members[pid] -= gone
                self._remote_members -= gone
                if not members[pid]:
                    del members[pid]
            if not members:
                del peer.groups[key]
                peer.names -= len(key)

    def _discovered(self, connection: Connection, pid: Pid, version: int) -> None:
        local = [(group.name, list(group.members.elements())) for group in self._local.values()]
        data: Any = (_SYNC, self.pid, local)
        if version:
            data = (_LOCAL_DATA, self.pid, version, PairMap(local))
        self.node.send_to(connection, self.pid, pid, (GEN_CAST, data))
        peer = self._peers.get(pid)
        if peer is None:
            again: Any = (_DISCOVER, self.pid, version) if version else (_DISCOVER, self.pid)
            peer = self._meet(connection, pid)
            if peer is None:
                return
            self.node.send_to(connection, self.pid, pid, again)
        peer.version = version

    def _meet(self, connection: Connection, pid: Pid) -> _Peer | None:
        """Note another node's process for this scope; None when that node has too many."""
        if sum(peer.connection is connection for peer in self._peers.values()) >= MAX_SERVERS:
            log.debug("%s has %d processes for one scope", connection.name, MAX_SERVERS)
            return None
        peer = self._peers[pid] = _Peer(pid, connection)
        self.node.watch(self, pid)
        return peer

    def _synchronise(self, connection: Connection, pid: Pid, groups: list[Any]) -> None:
        peer = self._peers.get(pid) or self._meet(connection, pid)
        if peer is None:
            return
        self._remote_members -= _count(peer)
        peer.groups, peer.names = {}, 0
        for item in groups:
            match item:
                case (group, pids):
                    self._add(peer, group, _pids(pids, pid))

    def _add(self, peer: _Peer, group: Any, pids: list[Pid]) -> None:
        if not pids:
            return  # a group without members is none
        if self._remote_members + len(pids) > MAX_MEMBERS:
            log.warning(
                "the scope %s has %d members; further ones of %s are not known here",
                self.name,
                self._remote_members,
                peer.connection.name,
            )
            return
        key = _key(group)
        if key not in peer.groups:
            names = len(key) + sum(other.names for other in self._peers.values())
            if len(key) > MAX_NAME or names > MAX_NAMES:
                log.debug("the name of a group of %s is too long", peer.connection.name)
                return
            peer.names += len(key)
        known = peer.groups.setdefault(key, _Group(group))
        known.members.update(pids)
        self._remote_members += len(pids)

    @staticmethod
    def _take(groups: dict[bytes, _Group], key: bytes, pid: Pid) -> None:
        known = groups[key]
        known.members[pid] -= 1
        if not known.members[pid]:
            del known.members[pid]
            if not known.members:
                del groups[key]

    def _tell(self, group: Any, joined: list[Pid], left: list[Pid]) -> None:
        """Report to all nodes who has joined or left."""
        for peer in self._peers.values():
            message: Any
            if peer.version:
                message = (_UPDATE, self.pid, [(group, joined, left)])
            elif joined:
                message = (_JOIN, self.pid, group, joined)
            else:
                message = (_LEAVE, self.pid, left, [group])
            self.node.send_to(peer.connection, self.pid, peer.pid, message)


def _count(peer: _Peer) -> int:
    return sum(group.members.total() for group in peer.groups.values())


def _pids(pids: Any, peer: Pid) -> list[Pid]:
    """Return the members that a node reports; only its own count."""
    found = pids if type(pids) is list else [pids]
    return [pid for pid in found if type(pid) is Pid and pid.node == peer.node]


class Subscription(Mailbox):
    """A mailbox that is a member of a group from the start. Close it, or leave the loop."""

    def __init__(self, scope: Scope, group: Any, limit: int = LIMIT) -> None:
        super().__init__(scope.node, limit)
        try:
            scope.join(group, self)
        except EncodeError:
            self.close()
            raise

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            while True:
                try:
                    message = await self.get()
                except DistributionError:
                    return
                yield message
        finally:
            self.close()
