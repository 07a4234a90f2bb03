# SPDX-License-Identifier: Apache-2.0
"""The daemon's part ``metrics``: serves the node's numbers where the configuration says."""

from __future__ import annotations

import asyncio
import json
import time
from math import isfinite
from typing import TYPE_CHECKING, Any

import thicket
from thicket.metrics import machine, places
from thicket.metrics.families import FAMILIES
from thicket.metrics.http import Answer, RefusedError, Request, Server
from thicket.metrics.numbers import numbers
from thicket.metrics.section import MESH
from thicket.metrics.text import OPENMETRICS, PLAIN, exposition, wanted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from thicket.daemon.core import Core
    from thicket.daemon.live import Live
    from thicket.metrics.text import Numbers

INDEX = b"""\
/metrics: the numbers of this node, for Prometheus
/netjson/graph: the mesh around it (NetJSON NetworkGraph)
/netjson/monitoring: this node (NetJSON DeviceMonitoring)
"""
OF_ALL = b"""\
/fleet/metrics: the numbers of all nodes of the cluster
/fleet/netjson: the mesh, as all of them see it
"""
JSON = "application/json"

#: Seconds that gathering may take where the client does not say, and at least and most.
GATHER = 8.0
GATHER_LEAST, GATHER_MOST = 1.0, 30.0
#: What Prometheus waits for, in seconds; this much is left for the way.
SCRAPE = "x-prometheus-scrape-timeout-seconds"
_WAY = 0.8
#: What was gathered is used again for so many seconds: it costs airtime.
FRESH = 5.0


class MetricsPart:
    """Serves the numbers of one node, and those that it gathers.

    :param status: returns the status document with figures of this moment.
    :param live: returns the parts that need the identity, None before it is known.
    """

    def __init__(
        self,
        core: Core,
        status: Callable[[], Awaitable[dict[str, Any]]],
        live: Callable[[], Live | None],
    ) -> None:
        self._core = core
        self._status = status
        self._live = live
        self._gathering: asyncio.Task[dict[str, Numbers | None]] | None = None
        self._gathered = float("-inf")
        self._server = Server(self._answer)

    async def run(self) -> None:
        """Serve until cancelled."""
        metrics, interface = self._core.settings.metrics, self._core.make.interface
        try:
            await places.serve(
                self._server,
                {place: interface if place == MESH else place for place in metrics.listen},
                metrics.port,
                self._core.problems,
            )
        finally:
            if self._gathering is not None:
                self._gathering.cancel()

    def snapshot(self) -> dict[str, Any]:
        """Return the part ``metrics`` of the status document."""
        return {"requests": self._server.requests, "refused": dict(self._server.refused)}

    async def _answer(self, request: Request) -> Answer:
        fleet = self._core.settings.metrics.fleet
        if request.path == "/":
            return Answer(INDEX + OF_ALL if fleet else INDEX)
        if fleet and request.path in {"/fleet/metrics", "/fleet/netjson"}:
            return await self._fleet(request)
        if request.path == "/metrics":
            return await self._metrics(request)
        if request.path in {"/netjson/graph", "/netjson/monitoring"}:
            return await self._netjson(request.path)
        raise RefusedError(404, "there is nothing here; / lists what is served")

    async def _metrics(self, request: Request) -> Answer:
        openmetrics = wanted(request.headers.get("accept", ""))
        found = numbers(await self._status(), machine.read(self._core.paths.root))
        text = exposition(FAMILIES, found, openmetrics=openmetrics)
        return Answer(text.encode(), OPENMETRICS if openmetrics else PLAIN)

    async def _netjson(self, path: str) -> Answer:
        from thicket.metrics import netjson  # who wants numbers alone need not import it

        document, facts = await self._status(), machine.read(self._core.paths.root)
        if path == "/netjson/monitoring":
            made = netjson.monitoring(document, facts)
        else:
            name = document["cluster"]["node"] or document["hostname"]
            made = netjson.graph({name: numbers(document, facts)}, document["version"])
        return Answer(json.dumps(made).encode(), JSON)

    async def _fleet(self, request: Request) -> Answer:
        from thicket.metrics.gather import UP, merged

        # Who comes while others wait, or soon after, gets the same.
        if self._gathering is None or (
            self._gathering.done() and time.monotonic() - self._gathered > FRESH
        ):
            self._gathering = asyncio.create_task(self._gather(_seconds(request)))
        views = await asyncio.shield(self._gathering)
        if request.path == "/fleet/netjson":
            from thicket.metrics import netjson

            known = {name: found for name, found in views.items() if found is not None}
            return Answer(json.dumps(netjson.graph(known, thicket.__version__)).encode(), JSON)
        openmetrics = wanted(request.headers.get("accept", ""))
        families = (UP, *FAMILIES)
        text = exposition(families, merged(views), openmetrics=openmetrics, first="node")
        return Answer(text.encode(), OPENMETRICS if openmetrics else PLAIN)

    async def _gather(self, seconds: float) -> dict[str, Numbers | None]:
        """Return the numbers of this node and of all others by their names."""
        from thicket.metrics.gather import MOST_NODES, gather

        live = self._live()
        session = live.cluster.session if live is not None else None
        if session is None:
            raise RefusedError(503, "the node has not joined the cluster yet")
        others = session.nodes()[: MOST_NODES - 1]  # those that are up come first
        views: dict[str, Numbers | None] = {
            session.node.name: numbers(await self._status(), machine.read(self._core.paths.root)),
            **dict.fromkeys(one["name"] for one in others),
        }
        up = [one["name"] for one in others if one["state"] == "up"]
        views |= await gather(session.node, up, seconds)
        self._gathered = time.monotonic()
        return views


def _seconds(request: Request) -> float:
    """Return how long gathering may take for this client."""
    try:
        asked = float(request.headers.get(SCRAPE, "")) * _WAY
    except ValueError:
        return GATHER
    return min(max(asked, GATHER_LEAST), GATHER_MOST) if isfinite(asked) else GATHER
