# SPDX-License-Identifier: Apache-2.0
"""Where the page is fed from: a fleet through one of its nodes, or a lab."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple, Protocol

from web.model import Picture


class Deed(NamedTuple):
    """What a person wants done to a simulated fleet.

    :ivar kind: one of ``Source.deeds``.
    :ivar node: on what, and ``other``: the other end of a link; empty for none.
    :ivar at: where a node is to be, in metres.
    """

    kind: str
    node: str
    other: str = ""
    at: tuple[float, float] | None = None


class Source(Protocol):
    """A fleet.

    :ivar name: what people call it.
    :ivar kind: ``fleet`` or ``lab``.
    :ivar deeds: what can be done to it.
    """

    name: str
    kind: str
    deeds: frozenset[str]

    def watch(self, looked_at: Callable[[], bool]) -> AsyncIterator[Picture]:
        """Give pictures for ever, the next one when something may have changed.

        :param looked_at: whether somebody looks; otherwise a picture in a minute will do.
        :raises ThicketError: the source is out of reach; it may be watched again.
        """

    async def detail(self, node: str) -> dict[str, Any]:
        """Return what a node knows of the mesh and the cluster, see :mod:`.details`.

        :raises ThicketError: it cannot be asked.
        """

    async def do(self, deed: Deed) -> None:
        """Do something to it.

        :raises ThicketError: it refuses, or that cannot be done to it.
        """
