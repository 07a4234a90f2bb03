# SPDX-License-Identifier: Apache-2.0
"""A fleet that is only told of, for tests of the page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from web.details import of_status
from web.links import Links
from web.model import Health, Node, Picture, Problem, Side, Update
from web.source import Deed

#: As a member may call itself that wants to run a script in the page.
EVIL = '<img src=x onerror="document.title=1">"><script>document.title=1</script>'


def node(number: int, label: str, health: Health = Health.WELL, **members: Any) -> Node:
    """Return a node with figures."""
    given: dict[str, Any] = {
        "state": "joined", "address": f"fd12:3456:789a:1::{number}", "member": True,
        "hops": None if number == 1 else 1 + number // 3, "asked": number == 1, "heard": 2.0,
        "at": (40.0 * (number % 3), 30.0 * (number // 3)),
        "figures": {
            "version": "0.3.0", "slot": "A", "uptime": 86_400 * number, "load": 0.1 * number,
            "temperature": 40.0 + number, "memory": 0.4, "data": 0.2, "clock": 0.0,
            "applications": [{"name": "readings", "state": "running"}],
        },
        **members,
    }  # fmt: skip
    return Node(f"n{number}", label, f"n-0000000000{number:02x}", health, **given)


class FakeSource:
    """Tells what a test sets; see ``web.source.Source``."""

    def __init__(self, *, deeds: frozenset[str] = frozenset()) -> None:
        self.name = "orchard"
        self.kind = "lab" if deeds else "fleet"
        self.deeds = deeds
        self.done: list[Deed] = []
        self.failure: Exception | None = None
        self.nodes = [
            node(1, "gate"), node(2, "north mast"), node(3, "greenhouse"), node(4, "pump"),
            node(5, "well house"), node(6, "barn"), node(7, "south mast"), node(8, "weir"),
        ]  # fmt: skip
        self.told = {
            name: dict(sides)
            for name, sides in {
                "n1": {"n2": Side(-52, 80), "n3": Side(-61, 150), "n4": Side(-67, 340)},
                "n2": {"n1": Side(-54, 90), "n3": Side(-58, 110), "n5": Side(-70, 420)},
                "n3": {"n1": Side(-60, 140), "n2": Side(-59, 120), "n6": Side(-74, 900)},
                "n4": {"n1": Side(-66, 300), "n7": Side(-71, 520)},
                "n5": {"n2": Side(-71, 460), "n8": Side(-80, 3100)},
                "n6": {"n3": Side(-75, 1100), "n7": Side(-63, 170), "n8": Side(-69, 410)},
                "n7": {"n4": Side(-70, 480), "n6": Side(-62, 160)},
                "n8": {"n5": Side(-81, 4200), "n6": Side(-68, 380)},
            }.items()
        }
        self.updates: tuple[Update, ...] = ()
        self._links = Links()
        self._changed = asyncio.Event()

    def change(self) -> None:
        """Have the page told of what a test has changed."""
        self._changed.set()

    def replace(self, name: str, **members: Any) -> None:
        """Change a node."""
        self.nodes = [one._replace(**members) if one.name == name else one for one in self.nodes]
        self.change()

    def trouble(self, name: str, message: str) -> None:
        """Give a node a problem."""
        problem = Problem("error", "radio", "sae-failure", message)
        self.replace(name, health=Health.PROBLEM, problems=(problem,), state="degraded")

    def cut(self, one: str, other: str) -> None:
        """Cut a link."""
        self.told[one].pop(other)
        self.told[other].pop(one)
        self.change()

    def picture(self) -> Picture:
        """Return what is set."""
        now = time.time()
        links = self._links.judged(self.told, now)
        return Picture("n1", now, tuple(self.nodes), links, self.updates)

    async def watch(self, looked_at: Callable[[], bool]) -> AsyncIterator[Picture]:
        """See ``web.source.Source``."""
        while True:
            self._changed.clear()
            if self.failure is not None:
                raise self.failure
            yield self.picture()
            await self._changed.wait()

    async def detail(self, name: str) -> dict[str, Any]:
        """See ``web.source.Source``."""
        names = {one.name: one.name for one in self.nodes}
        ways = {"n5": ("n2", 2), "n6": ("n3", 2), "n7": ("n4", 2), "n8": ("n2", 3)}
        return of_status(
            {
                "state": "joined",
                "radio": {"state": "joined", "mesh_id": "orchard", "frequency": 2412},
                "peers": [
                    {
                        "mac": other, "state": "ESTAB", "signal_dbm": side.signal,
                        "metric": side.metric,
                    }
                    for other, side in self.told[name].items()
                ],
                "paths": [
                    {"destination": to, "next_hop": by, "hops": hops, "metric": 900}
                    for to, (by, hops) in ways.items()
                    if name == "n1"
                ],
                "cluster": {
                    "node": name,
                    "nodes": [
                        {"name": one.name, "state": "up"} for one in self.nodes if one.member
                    ],
                },
                "problems": [],
            },
            names,
        )  # fmt: skip

    async def do(self, deed: Deed) -> None:
        """See ``web.source.Source``."""
        self.done.append(deed)
        if deed.kind == "cut":
            self.cut(deed.node, deed.other)
