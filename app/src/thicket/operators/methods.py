# SPDX-License-Identifier: Apache-2.0
"""What takes a connection over: ``exec`` runs a program on this node, ``door`` leads to another,
``member`` makes an operator a member of the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from logging import getLogger
from typing import TYPE_CHECKING, Any, Protocol

from thicket.base.errors import RequestError
from thicket.base.visible import visible
from thicket.control.server import Handler, Takeover

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from thicket.distribution.node import Node
    from thicket.trust.operator import Operator

    Run = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

log = getLogger(__name__)

#: Programs, and ways to other nodes, at the same time.
MAX_PROGRAMS = 16
MAX_DOORS = 16
#: Characters of a command that the log shows.
_SHOWN = 200
_NOT_FOUND = 127  # as a shell says it


class Host(Protocol):
    """The node that is operated.

    :ivar root: the prefix of its paths.
    """

    @property
    def root(self) -> str: ...

    def resolve(self, text: str) -> str:
        """Return the full name of the node that a person means, see ``ClusterPart.resolve``."""

    def operator_port(self) -> int:
        """Return where nodes listen for operators."""

    def node(self) -> Node:
        """Return the node of the cluster.

        :raises RequestError: there is none.
        """


class Methods:
    """Makes the methods of one client."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._programs = 0
        self._doors = 0

    def of(self, operator: Operator | None) -> Mapping[str, Handler]:
        """Return the methods of an operator; None for root on this node."""
        name = "" if operator is None else operator.short

        async def execute(params: dict[str, Any]) -> Any:
            return self._execute(params, name)

        async def door(params: dict[str, Any]) -> Any:
            return await self._door(params, name)

        async def member(params: dict[str, Any]) -> Any:
            return self._member(params, operator)

        return {"exec": execute, "door": door, "member": member}

    def _member(self, params: dict[str, Any], operator: Operator | None) -> Takeover:
        if operator is None:
            raise RequestError("no-operator", "only an operator's certificate makes a member")
        from thicket.operators import member

        cookie, node = member.cookie_of(params), self._host.node()
        connection = node.admit(str(operator.address), cookie)
        _tell(operator.short, "joins the cluster")

        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await member.join(connection, writer)

        return Takeover({"node": node.name, "address": str(operator.address)}, run)

    def _execute(self, params: dict[str, Any], operator: str) -> Takeover:
        from thicket.operators import program  # where an operator comes

        wanted = program.asked(params)
        if self._programs >= MAX_PROGRAMS:
            raise RequestError("too-many", f"{MAX_PROGRAMS} programs run for operators")
        whose = program.Whose(operator, self._host.root)
        _tell(operator, shown(wanted.words))

        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._programs += 1
            try:
                await program.run(wanted, reader, writer, whose)
            except OSError as e:
                why = f"thicket: {wanted.words[0] if wanted.words else 'sh'}: {e.strerror}\n"
                program.refuse(writer, why, _NOT_FOUND)
            finally:
                self._programs -= 1

        return Takeover({}, run)

    async def _door(self, params: dict[str, Any], operator: str) -> Takeover:
        from thicket.operators import door

        name = self._host.resolve(str(params.get("node", "")))
        if self._doors >= MAX_DOORS:
            raise RequestError("too-many", f"{MAX_DOORS} operators pass through this node")
        self._doors += 1
        try:
            other = await door.open_to(name.partition("@")[2], self._host.operator_port())
        except BaseException:
            self._doors -= 1
            raise
        _tell(operator, f"on to {name}")

        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await door.splice((reader, writer), other)
            finally:
                self._doors -= 1

        return Takeover({"node": name}, run)


def shown(words: Sequence[str]) -> str:
    """Return a command as the log shows it: no arguments, as there may be secrets among them, but
    which command of ``thicket`` it is."""
    if not words:
        return "a shell"
    kept = words[:3] if words[0] == "thicket" else words[:1]
    more = " ..." if len(words) > len(kept) else ""
    return " ".join(word.partition("=")[0] for word in kept) + more


def _tell(operator: str, what: str) -> None:
    log.info("%s: %s", f"operator {operator}" if operator else "root", visible(what[:_SHOWN]))
