# SPDX-License-Identifier: Apache-2.0
"""The daemon's part ``metrics``: serves the node's numbers where the configuration says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from thicket.metrics import machine, places
from thicket.metrics.families import FAMILIES
from thicket.metrics.http import Answer, RefusedError, Request, Server
from thicket.metrics.numbers import numbers
from thicket.metrics.section import MESH
from thicket.metrics.text import OPENMETRICS, PLAIN, exposition, wanted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from thicket.daemon.core import Core

INDEX = b"""\
/metrics: the numbers of this node, for Prometheus
/netjson/graph: the mesh around it (NetJSON NetworkGraph)
/netjson/monitoring: this node (NetJSON DeviceMonitoring)
"""
JSON = "application/json"


class MetricsPart:
    """Serves the numbers of one node.

    :param status: returns the status document with figures of this moment.
    """

    def __init__(self, core: Core, status: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._core = core
        self._status = status
        self._server = Server(self._answer)

    async def run(self) -> None:
        """Serve until cancelled."""
        metrics, interface = self._core.settings.metrics, self._core.make.interface
        await places.serve(
            self._server,
            {place: interface if place == MESH else place for place in metrics.listen},
            metrics.port,
            self._core.problems,
        )

    def snapshot(self) -> dict[str, Any]:
        """Return the part ``metrics`` of the status document."""
        return {"requests": self._server.requests, "refused": dict(self._server.refused)}

    async def _answer(self, request: Request) -> Answer:
        if request.path == "/":
            return Answer(INDEX)
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
