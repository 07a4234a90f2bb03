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

Where not every two nodes are connected, each Thicket node also states its own members, and those of
the connected nodes that keep no roster, to all Thicket nodes (:mod:`.roster`). What a connected
node says of itself counts more. Erlang's nodes get nothing of this: for them a group has the
members of the nodes that they are connected with.

There, messages to a group go over the links of the overlay (:mod:`.relay`), to each Thicket node
with members, and to the neighbours of other nodes with members.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from thicket.distribution.atoms import GEN_CALL, GEN_CAST, SYSTEM
from thicket.distribution.etf import (
    Atom,
    DecodeError,
    EncodeError,
    Message,
    PairMap,
    Pid,
    Reference,
    decode_bare,
    encode_bare,
)
from thicket.distribution.handshake import ROSTER, DistributionError, key_of
from thicket.distribution.ledger import MAX_BODY, Record
from thicket.distribution.mailbox import LIMIT, Mailbox
from thicket.distribution.processes import Process
from thicket.distribution.relay import by_way_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from thicket.distribution.connection import Connection
    from thicket.distribution.node import Node
    from thicket.distribution.roster import Roster

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

AT_ONCE = 8
"""Nodes without a connection that a message to a group is sent to at the same time."""

MAX_BEHIND = 1024 * 1024
"""Bytes that wait for a node without a roster beyond which messages to it that came from node to
node are dropped."""

TOPIC = "pg:"
"""Begins the topic of a scope in the roster."""

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


class _Far:
    """What other nodes state about a scope in the roster.

    :param own: this node's key.
    """

    def __init__(self, own: str) -> None:
        self._own = own
        #: By who states it, and the node that they are on.
        self._said: dict[str, dict[str, dict[bytes, _Group]]] = {}
        self._counts: dict[str, int] = {}
        self._view: dict[bytes, _Group] = {}
        self._stamp: object = None
        #: Whose word counts for a node without a roster.
        self.speakers: dict[str, str] = {}

    def take(self, record: Record) -> bool:
        """Note what a node states; False when there is no room for it."""
        self._stamp = None
        self._said.pop(record.origin, None)
        self._counts.pop(record.origin, None)
        if not record.body:
            return True
        said: dict[str, dict[bytes, _Group]] = {}
        count = 0
        try:
            for name, pids in decode_bare(record.body)[0]:
                for pid in pids:
                    if type(pid) is not Pid:
                        raise TypeError("a member is a pid")
                    groups = said.setdefault(key_of(str(pid.node)), {})
                    groups.setdefault(_key(name), _Group(name)).members[pid] += 1
                    count += 1
        except (DecodeError, EncodeError, TypeError, ValueError):
            return False
        if count + sum(self._counts.values()) > MAX_MEMBERS:
            return False
        self._said[record.origin] = said
        self._counts[record.origin] = count
        return True

    def groups(self, roster: Roster, topic: str, direct: frozenset[str]) -> dict[bytes, _Group]:
        """Return the members on nodes that are reached and are not among ``direct``.

        :param topic: of the scope.
        """
        stamp = roster.epoch, direct
        if stamp == self._stamp:
            return self._view
        view: dict[bytes, _Group] = {}
        taken = {self._own, *direct}
        self.speakers = {}
        # A node speaks for itself, and the first of its neighbours for one without a roster.
        for origin in sorted(self._said, key=lambda origin: (not roster.reaches(origin), origin)):
            if not roster.reaches(origin):
                if (origin, topic) not in roster.ledger.records:  # it is forgotten
                    del self._said[origin], self._counts[origin]
                continue
            for node, groups in self._said[origin].items():
                if node in taken or (node != origin and node not in roster.leaves_of(origin)):
                    continue
                taken.add(node)
                if node != origin:
                    self.speakers[node] = origin
                for key, group in groups.items():
                    view.setdefault(key, _Group(group.name)).members.update(group.members)
        self._stamp, self._view = stamp, view
        return view


class Scope(Process):
    """The groups of a scope; :meth:`.Node.scope` makes it."""

    answers = False
    pins = False

    def __init__(self, node: Node, name: str = DEFAULT_SCOPE) -> None:
        super().__init__(node)
        self.name = name
        self._node = node
        self._local: dict[bytes, _Group] = {}
        self._peers: dict[Pid, _Peer] = {}
        self._remote_members = 0
        self._far = _Far(key_of(node.name))
        self._telling: asyncio.Handle | None = None
        node.register(name, self)
        for record in list(node.membership.roster.ledger.records.values()):
            self.on_stated(record)
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
        """Return the members of all nodes."""
        key = _key(group)
        found = self.local_members(group)
        far = self._far_groups().get(key)
        if far is not None:
            found.extend(far.members.elements())
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
        found.update((key, group.name) for key, group in self._far_groups().items())
        return [found[key] for key in sorted(found)]

    async def publish(self, group: Any, message: Any, sender: Pid | None = None) -> int:
        """Send ``message`` to every member, waiting where a connection is busy or must be made.

        :returns: the number of members that it was sent to.
        :raises EncodeError: ``message`` has no form in Erlang.
        """
        encoded = Message(message)
        count = 0
        away = []
        over: Counter[str] = Counter()
        casts = self._node.casts
        alone = _asks(message)
        for pid in self.members(group):
            node = key_of(str(pid.node))
            speaker = self._far.speakers.get(node)
            target = node if speaker is None else by_way_of(speaker, node)
            if node != self._node.name and not alone and casts.leads_to(target):
                over[target] += 1
            elif node != self._node.name and not self._node.connected(node):
                away.append(pid)
            else:
                count += await self._send(sender, pid, encoded)
        if away:
            room = asyncio.Semaphore(AT_ONCE)

            async def send(pid: Pid) -> bool:
                async with room:
                    return await self._send(sender, pid, encoded)

            count += sum(await asyncio.gather(*map(send, away)))
        if over:
            sent = await casts.send(self.name, _key(group), over.keys(), encoded.form(True))
            count += sum(over[node] for node in sent)
        return count

    def deliver(self, node: str, group: bytes, body: bytes) -> int:
        """Give a message that has come from node to node to the members of a group.

        :param node: the key of this node, or of a connected one that keeps no roster.
        :param group: its encoded name.
        :param body: the encoded message.
        :returns: the number of members that did not get it, as their node reads nothing.
        :raises DecodeError: ``body`` is no term.
        """
        message = decode_bare(body)[0]
        if _asks(message):
            return 0  # nobody sends these so, as the answer takes the way back
        if node == key_of(self._node.name):
            known = self._local.get(group)
            for pid in list(known.members.elements()) if known is not None else ():
                process = self.node.find(pid)
                if process is not None:
                    self.node.give(None, process, decode_bare(body)[0])
            return 0
        behind = 0
        for peer in self._peers.values():
            connection = peer.connection
            known = peer.groups.get(group) if connection.key == node else None
            if known is not None and connection.unsent > MAX_BEHIND:
                behind += known.members.total()
            elif known is not None:
                for pid in known.members.elements():
                    self.node.send_to(connection, self.pid, pid, message)
        return behind

    async def _send(self, sender: Pid | None, pid: Pid, encoded: Message) -> bool:
        try:
            await self._node.send_encoded(sender or self.pid, pid, encoded)
        except DistributionError:
            return False  # its node was just lost
        return True

    # --- what all nodes know ------------------------------------------------------------------

    def _far_groups(self) -> dict[bytes, _Group]:
        direct = frozenset(key_of(peer.connection.name) for peer in self._peers.values())
        roster = self._node.membership.roster
        return self._far.groups(roster, TOPIC + self.name, direct)

    def on_stated(self, record: Record) -> None:
        """Note the members that another node states in the roster."""
        if record.topic != TOPIC + self.name or record.origin == key_of(self._node.name):
            return
        if not self._far.take(record):
            log.warning("the members of %s in the scope %s are not known", record.origin, self.name)

    def restate(self) -> None:
        """State the members of this node soon, and of the connected ones without a roster."""
        if self._telling is None and self._node.membership.roster.active:
            self._telling = asyncio.get_running_loop().call_soon(self._state)

    def _state(self) -> None:
        self._telling = None
        known: dict[bytes, tuple[Any, list[Pid]]] = {}
        alone = (
            peer.groups
            for peer in self._peers.values()
            if not peer.connection.has(ROSTER) and peer.connection.peer.published
        )
        for groups in (self._local, *alone):
            for key, group in groups.items():
                known.setdefault(key, (group.name, []))[1].extend(group.members.elements())
        body = encode_bare(list(known.values())) if known else b""
        if len(body) > MAX_BODY:
            log.warning(
                "the scope %s has so many members here that only connected nodes know them",
                self.name,
            )
        self._node.membership.state(TOPIC + self.name, body)

    def on_stop(self) -> None:
        if self._telling is not None:
            self._telling.cancel()

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
                self._changed_at(peer)
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
        self._changed_at(known)

    def _changed_at(self, peer: _Peer) -> None:
        """The members of another node have changed."""
        if not peer.connection.has(ROSTER):
            self.restate()

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
        self._changed_at(peer)

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
        self.restate()
        for peer in self._peers.values():
            message: Any
            if peer.version:
                message = (_UPDATE, self.pid, [(group, joined, left)])
            elif joined:
                message = (_JOIN, self.pid, group, joined)
            else:
                message = (_LEAVE, self.pid, left, [group])
            self.node.send_to(peer.connection, self.pid, peer.pid, message)


def _asks(message: Any) -> bool:
    """Return whether a message expects an answer, as that of ``gen:call``."""
    return type(message) is tuple and len(message) == 3 and message[0] in (GEN_CALL, SYSTEM)


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
