# SPDX-License-Identifier: Apache-2.0
"""A lab as the page sees it: asked over its ``control.sock``, and changed by buttons."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from meshlab.lab.state import LabState, NodeState, get, get_list, phase
from meshlab.wire.rpc import Client, Params, RpcError
from thicket.base.pace import wait
from web.checked import number, tables, text, whole
from web.details import of_status, problems
from web.errors import WebError
from web.model import Health, Link, LinkState, Node, Picture, Side, Update
from web.source import Deed

#: Seconds until the lab is asked though nothing is known to have changed, while somebody looks and
#: while nobody does.
LIVELY: Final = 2.0
QUIET: Final = 30.0
#: Times as long as a picture took to make is nothing done: a large lab has other work as well.
SHARE: Final = 5.0
#: Seconds that a node may take to shut down before somebody is told.
_DEED: Final = 60.0

#: How a node is, by the lab's word for how far it is (``meshlab.lab.state.phase``).
_HEALTH: Final = {
    "off": Health.AWAY,
    "died": Health.PROBLEM,
    "silent": Health.SILENT,
    "trouble": Health.PROBLEM,
    "degraded": Health.PROBLEM,
    "problem": Health.PROBLEM,
    "up": Health.WELL,
}


class LabSource:
    """A running lab; see ``web.source.Source``.

    :param name: of the lab.
    :param socket: its ``control.sock``.
    """

    kind = "lab"
    deeds = frozenset({"cut", "restore", "move", "on", "off", "kill"})

    def __init__(self, name: str, socket: Path) -> None:
        self.name = name
        self._socket = socket
        self._state: LabState | None = None
        self._since: dict[tuple[str, str], tuple[LinkState, float]] = {}

    async def watch(self, looked_at: Callable[[], bool]) -> AsyncIterator[Picture]:
        """See ``web.source.Source``."""
        changed = asyncio.Event()
        try:
            async with await Client.connect(self._socket) as client:
                told = asyncio.create_task(
                    client.call("changes", timeout=None, on_event=lambda _: changed.set())
                )
                try:
                    while not told.done():
                        changed.clear()
                        begun = time.monotonic()
                        self._state = LabState.from_json(await client.call("status"))
                        picture = self.picture(self._state)
                        took = time.monotonic() - begun
                        yield picture
                        await asyncio.sleep(SHARE * took)
                        await _pause(changed, looked_at)
                    told.result()
                finally:
                    told.cancel()
                    await asyncio.gather(told, return_exceptions=True)
        except (RpcError, ValueError) as error:
            raise WebError("no-lab", f"the lab {self.name!r} does not answer: {error}") from None

    async def detail(self, node: str) -> dict[str, Any]:
        """See ``web.source.Source``."""
        lab = self._state
        if lab is None or node not in lab.nodes:
            raise WebError("no-node", f"there is no node {node}")
        found = of_status(lab.nodes[node].status, _names(lab))
        found["cluster"] = [one for one in found["cluster"] if one["node"] != node]
        return found

    async def do(self, deed: Deed) -> None:
        """See ``web.source.Source``."""
        method, params = _request(deed)
        try:
            async with await Client.connect(self._socket) as client:
                await client.call(method, params, timeout=_DEED)
        except RpcError as error:
            raise WebError(error.code, error.message) from None

    def picture(self, lab: LabState) -> Picture:
        """Return what the page shows of a lab."""
        now = time.time()
        first = next(
            (name for name, node in lab.nodes.items() if get(node.status, "cluster", "node")), ""
        )
        hops = _hops(lab, first)
        return Picture(
            asked=first,
            at=now,
            nodes=tuple(_node(lab, name, hops.get(name), first) for name in lab.nodes),
            links=tuple(self._links(lab, now)),
            updates=_updates(lab),
        )

    def _links(self, lab: LabState, now: float) -> list[Link]:
        told = _told(lab)
        pairs = {(min(a, b), max(a, b)) for a, b in lab.links}
        pairs |= {(min(a, b), max(a, b)) for a, others in told.items() for b in others}
        found = []
        for one, other in sorted(pairs):
            if one not in lab.nodes or other not in lab.nodes:
                continue
            there, back = told[one].get(other), told[other].get(one)
            before = self._since.get((one, other))
            state = _state(lab, (one, other), there, back, before[0] if before else None)
            if state is None:
                self._since.pop((one, other), None)
                continue
            if before is None or before[0] is not state:
                self._since[one, other] = before = state, now
            if state is LinkState.CUT:  # by the medium: what the ends still say is old
                there = back = None
            found.append(Link(one, other, there, back, state, before[1]))
        return found


async def _pause(changed: asyncio.Event, looked_at: Callable[[], bool]) -> None:
    """Wait until there is something new for somebody, or it is time to look anyway."""
    waited = 0.0
    while waited < QUIET and not looked_at():
        await asyncio.sleep(1.0)
        waited += 1.0
    if waited < QUIET:
        await wait(changed, LIVELY)


def _state(
    lab: LabState,
    pair: tuple[str, str],
    there: Side | None,
    back: Side | None,
    before: LinkState | None,
) -> LinkState | None:
    """Return how a link is; None for one that is not to be shown."""
    off = any(lab.nodes[name].power in ("off", "died") for name in pair)
    known = lab.links.get(pair) or lab.links.get((pair[1], pair[0]))
    ways = [] if known is None else [known.snr is not None, known.snr_back is not None]
    if known is not None and not any(ways):
        return LinkState.CUT
    if off:
        return LinkState.CUT if before is not None else None
    if known is not None and not all(ways):
        return LinkState.ONE_WAY
    if there is not None and back is not None:
        return LinkState.UP
    if there is not None or back is not None:
        return LinkState.FORMING if before in (None, LinkState.FORMING) else LinkState.ONE_WAY
    if known is None or not known.usable:
        return LinkState.CUT if before in (LinkState.UP, LinkState.CUT, LinkState.ONE_WAY) else None
    return LinkState.FORMING


def _told(lab: LabState) -> dict[str, dict[str, Side]]:
    """Return what the radios tell of their links."""
    names = lab.by_mac()
    return {
        name: {
            names[mac]: Side(whole(peer.get("signal_dbm"), -200, 100), whole(peer.get("metric"), 0))
            for mac, peer in node.established.items()
            if names.get(mac, name) != name
        }
        for name, node in lab.nodes.items()
    }


def _node(lab: LabState, name: str, hops: int | None, first: str) -> Node:
    node = lab.nodes[name]
    word = phase(lab, name)
    found = problems(get(node.status, "problems"))
    health = _HEALTH.get(word, Health.FORMING)
    if health in (Health.PROBLEM, Health.WELL) and found and node.state == "joined":
        errors = any(one.severity == "error" for one in found)
        health = Health.PROBLEM if errors else Health.WARNING
    return Node(
        name=name,
        label=name,
        host=text(get(node.status, "hostname"), 64) or name,
        health=health,
        state=word if health is Health.FORMING or not node.state else node.state,
        why=text(node.reason) if node.power == "died" else text(node.report),
        address=node.address,
        at=(float(node.position[0]), float(node.position[1])),
        asked=name == first,
        member=bool(get(node.status, "cluster", "node")),
        hops=hops,
        problems=found,
        figures=_figures(node),
        on=node.power == "running",
    )


def _figures(node: NodeState) -> dict[str, Any]:
    status = node.status
    return {
        "version": text(get(status, "version"), 32),
        "slot": text(get(status, "slot"), 32),
        "uptime": number(get(status, "uptime"), 0),
        "load": None if node.cpu_percent is None else round(node.cpu_percent / 100, 3),
        "temperature": None,
        "memory": None,
        "data": None,
        "clock": None,
        "applications": [
            {"name": text(one.get("name"), 64), "state": text(one.get("state"), 32)}
            for one in tables(get(status, "applications"), 32)
        ],
    }


def _hops(lab: LabState, first: str) -> dict[str, int]:
    """Return the hops to nodes, as the radio of one of them knows paths."""
    if not first:
        return {}
    names, status = lab.by_mac(), lab.nodes[first].status
    found = {names[mac]: 1 for mac in lab.nodes[first].established if mac in names}
    for path in get_list(status, "paths"):
        name = names.get(str(path.get("destination", "")).lower())
        hops = whole(path.get("hops"), 1, 255)
        if name is not None and hops is not None:
            found[name] = hops
    return found


def _names(lab: LabState) -> Mapping[str, str]:
    """Return the names of nodes by all that others call them."""
    found = {**lab.by_mac(), **lab.by_cluster_name()}
    for name, node in lab.nodes.items():
        if node.address:
            found[node.address] = name
    return {key.lower(): name for key, name in found.items()}


def _updates(lab: LabState) -> tuple[Update, ...]:
    rows = [(name, text(one)) for name, node in lab.nodes.items() for one in node.updates]
    if not rows:
        return ()
    return (Update("updates under way", ("NODE", "STATE"), tuple(rows)),)


def _request(deed: Deed) -> tuple[str, Params]:
    """Return the request to the lab that a deed is.

    :raises WebError: something of it is missing.
    """
    match deed:
        case Deed("cut" | "restore", node, str(other)) if other:
            params: Params = {"a": node, "b": other, "both": True}
            return "link", params | {deed.kind: True}
        case Deed("move", node, _, (x, y)):
            return "move", {"node": node, "x": x, "y": y}
        case Deed("on" | "off" | "kill", node):
            return "power", {"node": node, "action": deed.kind}
    raise WebError("bad-deed", f"{deed.kind} needs more than it was given")
