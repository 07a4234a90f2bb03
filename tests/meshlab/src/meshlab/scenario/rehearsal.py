# SPDX-License-Identifier: Apache-2.0
"""An imagined lab on a clock of its own, for rehearsals: what a scenario says is tried in no time.

Its nodes see what the medium's links let them see, a few seconds after it changed, as ideal ones
would. What only a node can know (the output of a command, an installed version) it does not.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeVar

import networkx as nx

from meshlab.lab.errors import LabError
from meshlab.lab.parts import FleetLike
from meshlab.lab.spec import LabSpec, NodeSpec, medium_description, node_config, radio_mac
from meshlab.lab.spec import cluster_key as cluster_key_of
from meshlab.lab.spec import mesh_key as mesh_key_of
from meshlab.lab.state import Event, Kind, LabState, LinkState, NodeState, address_from_serial
from meshlab.medium.config import State, parse_config
from meshlab.medium.fading import parse
from meshlab.medium.links import Hearing, Links
from meshlab.scenario.clock import JumpingLoop
from meshlab.scenario.errors import UnknowableError
from meshlab.scenario.stage import Stage
from meshlab.wire.rpc import Json, Params, RpcError

T = TypeVar("T")

BOOT = 8.0
"""Seconds from power-on until a node has joined."""
NOTICE = 3.0
"""Seconds until nodes notice that a link came or went."""
FREQUENCY = 2437
HOP_MS = 1.5
"""Milliseconds of a round trip over a link."""
GOOD_SNR = 30.0
"""From here on a better signal makes a link no better."""
_FLOW = re.compile(r"rm -f \S+; python3 -S -E \S+ (?P<words>.+) >(?P<told>\S+) 2>&1 </dev/null &")


def rehearse(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a clock that jumps."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(coroutine)


class _Traffic:
    """What ``flow.py`` would do on imagined nodes.

    :param hops: Tells over how many links a node reaches an address, None: not at all.
    """

    def __init__(self, hops: Callable[[str, str], int | None]) -> None:
        self._hops = hops
        self._told: dict[tuple[str, str], str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def asked(self, name: str, command: str) -> str | None:
        """Do what traffic asks of a node: begin, or say what came of it."""
        if command.startswith("cat /run/meshlab-flow-"):
            return self._told.get((name, command.removeprefix("cat ")), "")
        began = _FLOW.fullmatch(command)
        if began is None:
            return None
        if began["words"].startswith("answer"):
            self._told[name, began["told"]] = "ready\n"
        else:
            _, address, _, rate, _, seconds = began["words"].split()
            flowing = self._flowing(name, began["told"], address, float(rate), float(seconds))
            self._tasks.add(asyncio.create_task(flowing))
        return ""

    async def _flowing(
        self, name: str, told: str, address: str, rate: float, seconds: float
    ) -> None:
        """Send as ``flow.py`` does: each datagram is answered while there is a way."""
        hops = []
        outage = now = 0.0
        for _ in range(int(rate * seconds)):
            one = self._hops(name, address)
            hops.append(one)
            now = 0.0 if one is not None else now + 1 / rate
            outage = max(outage, now)
            await asyncio.sleep(1 / rate)
        times = sorted(HOP_MS * one for one in hops if one is not None)
        trips = {"median": 0.5, "p95": 0.95, "max": 0.999}
        self._told[name, told] = json.dumps(
            {
                "sent": len(hops), "arrived": len(times), "answered": len(times), "twice": 0,
                "disordered": 0, "outage_s": outage,
                "round_trip_ms": {
                    what: times[int(share * len(times))] for what, share in trips.items() if times
                },
            }
        ) + "\n"  # fmt: skip


class ImaginedLab(Stage):
    """A lab of nodes that do at once what ideal ones would do after some seconds.

    :param answers: What commands say on the nodes: gets node and command, gives status and output,
        or None where that is not known.
    """

    def __init__(
        self,
        spec: LabSpec,
        directory: Path,
        answers: Callable[[str, str], tuple[int, str] | None] | None = None,
    ) -> None:
        self.spec = spec
        self.fleet: FleetLike | None = None
        self.calls: list[str] = []
        self.files: dict[tuple[str, str], bytes] = {}
        self.valid = True
        self._directory = directory
        self._answers = answers
        self._listeners: list[Callable[[Event], None]] = []
        self._unplugged: set[str] = set()
        self._chipless: set[str] = set()
        """The nodes that were switched on without a chip that works."""
        self._traffic = _Traffic(self._hops)
        self._booted: dict[str, float] = {}
        """When the nodes that are on will have joined."""
        self._loop = asyncio.get_running_loop()
        shape = spec.topology
        mesh = {name: spec.nodes.get(name, NodeSpec()).mesh_point for name in shape.names}
        config = parse_config(medium_description(spec, "rehearsal", mesh))
        self._links = Links(config, State())
        for node in config.nodes:
            self._links.add_node(node)
        self.state = LabState(
            name=spec.name, image="imagined", topology=shape.kind, seed=shape.seed,
            security=spec.security,
        )  # fmt: skip
        for index, name in enumerate(shape.names, start=1):
            own = spec.nodes.get(name, NodeSpec())
            serial = b"\x01\x23\0" + index.to_bytes(5, "big") + b"\xee"
            known = node_config(spec, own)
            self.state.nodes[name] = NodeState(
                name, radio_mac(index), shape.positions[name], serial.hex(),
                address_from_serial(str(known["address"]["prefix"]), serial), own.chip_fault,
                mesh_key_of(known), cluster_key_of(known),
            )  # fmt: skip
            if not mesh[name]:
                self._unplugged.add(name)
        self._take_links()

    @property
    def directory(self) -> Path:
        return self._directory

    @property
    def failed(self) -> str | None:
        return None

    def snapshot(self) -> LabState:
        self.state.elapsed = self._loop.time()
        return self.state

    def on_event(self, listener: Callable[[Event], None]) -> None:
        self._listeners.append(listener)

    def watch(self) -> None:
        pass

    async def formed(self, timeout: float) -> None:
        for name in self.state.nodes:
            await self.power_on(name)
        await asyncio.sleep(BOOT + 2 * NOTICE)
        self.state.formed = self._loop.time()

    async def run(
        self,
        name: str,
        command: str,
        timeout: float = 30.0,
        on_output: Callable[[bytes], None] | None = None,
    ) -> tuple[int, str]:
        self._running(name)
        found = self._answers(name, command) if self._answers is not None else None
        if found is not None:
            return found
        if (told := self._traffic.asked(name, command)) is not None:
            return 0, told
        if pinged := re.fullmatch(r"ping -6 -n -c (\d+) -i 0.3 -W 2 (\S+)", command):
            return self._ping(name, pinged[2], int(pinged[1]))
        raise UnknowableError(f"only a real node knows what {command!r} says")

    def _ping(self, name: str, address: str, count: int) -> tuple[int, str]:
        hops = self._hops(name, address)
        if hops is None:
            return 1, ""
        return 0, "".join(f"time={HOP_MS * hops:.1f} ms\n" for _ in range(count))

    def _hops(self, name: str, address: str) -> int | None:
        graph = self._seen_graph()
        other = next(n for n, s in self.state.nodes.items() if s.expected_address == address)
        if name not in graph or other not in graph:
            return None
        try:
            return int(nx.shortest_path_length(graph, name, other))
        except nx.NetworkXNoPath:
            return None

    def _seen_graph(self) -> nx.Graph[str]:
        """Return the links that nodes say they have."""
        graph: nx.Graph[str] = nx.Graph()
        for name, node in self.state.nodes.items():
            if node.power == "running" and node.status is not None:
                graph.add_node(name)
                graph.add_edges_from((name, other) for other in self.state.peers(name))
        return graph

    async def push(self, name: str, path: str, content: bytes) -> None:
        self._running(name)
        self.files[name, path] = content

    async def link(
        self,
        a: str,
        b: str,
        *,
        cut: bool = False,
        snr: float | None = None,
        loss: float | None = None,
        fading: str | None = None,
        restore: bool = False,
        both: bool = True,
    ) -> None:
        for one, other in ((a, b), (b, a))[: 2 if both else 1]:
            if restore:
                self._links.restore(one, other)
            elif loss is not None:
                self._links.lose(one, other, loss)
            elif fading is not None:
                self._links.fade(one, other, parse(fading))
            else:
                self._links.set(one, other, None if cut else snr)
        how = "cut" if cut else "restored" if restore else "changed"
        self._happened(f"link {a} {'<->' if both else '->'} {b} {how}")

    async def move(self, name: str, x: float, y: float, *, told: bool = True) -> None:
        self._links.move(name, x, y)
        self.state.nodes[name].position = (x, y)
        self._happened(f"moved to {x:g} m, {y:g} m", name, told=told)

    async def chip_fault(self, name: str, fault: str | None) -> None:
        self.state.nodes[name].chip_fault = fault
        self._happened(f"chip: {fault or 'well'}", name)

    async def radio(self, name: str, *, plug: bool, index: int = 0) -> None:
        (self._unplugged.discard if plug else self._unplugged.add)(name)
        self._happened(f"radio {'plugged in' if plug else 'unplugged'}", name)

    async def configure(self, name: str, settings: Iterable[str]) -> tuple[int, str]:
        self._running(name)
        self._happened("configured", name)
        return 0, ""

    async def power_on(self, name: str) -> None:
        node = self.state.nodes[name]
        if node.power == "running":
            raise LabError(f"{name} is on already")
        node.power, node.started = "running", self._loop.time()
        self._booted[name] = self._loop.time() + BOOT
        lasting = (node.chip_fault or "").partition(":")[0] in ("absent", "stuck")
        (self._chipless.add if lasting else self._chipless.discard)(name)
        self._happened("switched on", name)
        self._loop.call_later(BOOT, self._settle)
        self._loop.call_later(BOOT + NOTICE, self._settle)

    async def power_off(self, name: str, *, grace: float = 10.0) -> None:
        self._running(name)
        node = self.state.nodes[name]
        node.power, node.status = "off", None
        self._booted.pop(name, None)
        self._happened("power cut" if grace <= 0 else "switched off", name)

    def edit_card(self, name: str, text: str | None = None) -> None:
        if self.state.nodes[name].power == "running":
            raise LabError(f"{name} is on: switch it off before its card is edited")
        self._happened("its card was edited", name)

    def kill_medium(self) -> None:
        self._happened("the medium was killed")

    async def medium_call(
        self, method: str, params: Params | None = None, *, patience: float = 8.0
    ) -> Json:
        if method == "links":
            return {"links": self._heard()}
        return {"valid": self.valid, "reasons": [] if self.valid else ["it was late"]}

    # -- what follows

    def _running(self, name: str) -> None:
        if self.state.nodes[name].power != "running":
            raise RpcError("off", f"{name} is {self.state.nodes[name].power}")

    def _happened(self, text: str, name: str | None = None, *, told: bool = True) -> None:
        if told:
            self.calls.append(f"{name}: {text}" if name else text)
            event = Event(round(self._loop.time(), 1), Kind.CHANGE, text, name)
            for listener in self._listeners:
                listener(event)
        self._take_links()
        self._loop.call_later(NOTICE, self._settle)

    def _hearing(self, a: str, b: str) -> Hearing:
        power = self.spec.nodes.get(a, NodeSpec()).tx_power_dbm
        return self._links.hearing(a, b, power, FREQUENCY)

    def _heard(self) -> list[dict[str, Any]]:
        found = []
        for a in self.state.nodes:
            for b in self.state.nodes:
                if a == b:
                    continue
                one = self._hearing(a, b)
                if one.snr is not None or one.state == "cut":
                    found.append(
                        {
                            "a": a,
                            "b": b,
                            "snr_db": one.snr,
                            "state": one.state,
                            "loss": one.loss,
                            "fading_set": self._links.fading_set(a, b),
                        }
                    )
        return found

    def _take_links(self) -> None:
        heard = {(each["a"], each["b"]): each["snr_db"] for each in self._heard()}
        for (a, b), snr in heard.items():
            if (b, a) not in self.state.links:
                self.state.links[a, b] = LinkState(a, b, snr, heard.get((b, a)))

    def _cost(self, a: str, b: str) -> float:
        """Return what a frame from a to b costs, beside 1 over a link that loses nothing."""
        one = self._hearing(a, b)
        weak = max(0.0, GOOD_SNR - (one.snr if one.snr is not None else 0.0)) / 10
        return (1 + weak) / max(0.01, 1 - one.loss)

    def _settle(self) -> None:
        """Let every node say what it sees now."""
        now = self._loop.time()
        joined = {n for n, at in self._booted.items() if at <= now and n not in self._unplugged}
        graph = self.state.expected_graph().subgraph(joined).copy()
        for a, b in graph.edges:
            graph.edges[a, b]["cost"] = max(self._cost(a, b), self._cost(b, a))
        nodes = self.state.nodes
        for name in self._booted:
            if self._booted[name] > now:
                continue
            near = sorted(graph[name]) if name in graph else []
            ways = nx.single_source_dijkstra_path(graph, name, weight="cost") if near else {}
            alone = name in self._chipless
            seen = [
                n
                for n in ways
                if n != name
                and nodes[n].cluster == nodes[name].cluster
                and not alone
                and n not in self._chipless
            ]
            problems = []
            if name not in joined:
                problems.append({"part": "radio", "code": "absent", "message": "no radio"})
            if alone:
                problems.append({"part": "identity", "code": "chip", "message": "no chip"})
            nodes[name].cluster_name = f"thicket@{nodes[name].expected_address}"
            nodes[name].status = {
                "schema": 1,
                "state": "joined" if name in joined else "joining",
                "problems": problems,
                "identity": {"source": "mac" if alone else "chip", "software": alone},
                "address": nodes[name].expected_address,
                "radio": {
                    "state": "joined" if name in joined else "absent", "mac": nodes[name].mac,
                },
                "peers": [{"mac": nodes[n].mac, "state": "ESTAB"} for n in near],
                "paths": [
                    {"destination": nodes[n].mac, "next_hop": nodes[way[1]].mac}
                    for n, way in ways.items() if n != name
                ],
                "cluster": {
                    "node": nodes[name].cluster_name,
                    "nodes": [
                        {"name": f"thicket@{nodes[n].expected_address}", "state": "up"}
                        for n in seen
                    ],
                },
            }  # fmt: skip
