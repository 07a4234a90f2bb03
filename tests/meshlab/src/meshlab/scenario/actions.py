# SPDX-License-Identifier: Apache-2.0
"""What steps do, each by the verbs of a lab: ``do = "cut"`` and the others."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from meshlab.lab.questions import PATIENCE
from meshlab.scenario import keys, traces
from meshlab.scenario.errors import StepError, UnknowableError
from meshlab.scenario.keys import Link, Place, key
from meshlab.scenario.traffic import FLOW_SECONDS, Flow
from meshlab.scenario.world import World

MOVING = 1.0
"""Seconds between two places of a node on its way."""


@dataclass(frozen=True)
class Action:
    """Something that is done to a lab."""

    verb: ClassVar[str]

    @property
    def words(self) -> str:
        """Return what is done, in a line for people."""
        raise NotImplementedError

    async def do(self, world: World, name: str) -> None:
        """Do it, to its end.

        :param name: The step's name.
        :raises StepError: it could not be done; other errors of the lab pass.
        """
        raise NotImplementedError


def listed(nodes: Iterable[str]) -> str:
    """Return names as people list them."""
    return ", ".join(nodes)


def _pairs(links: Iterable[Link], oneway: bool) -> str:
    return ", ".join(f"{a}{'->' if oneway else '-'}{b}" for a, b in links)


_ONEWAY = "only what the second node hears of the first"


@dataclass(frozen=True)
class Cut(Action):
    """Nodes hear nothing of each other any more."""

    verb = "cut"
    links: tuple[Link, ...] = key(keys.links, "which")
    oneway: bool = key(keys.truth, _ONEWAY, default=False)

    @property
    def words(self) -> str:
        return f"cut {_pairs(self.links, self.oneway)}"

    async def do(self, world: World, name: str) -> None:
        for a, b in self.links:
            await world.stage.link(a, b, cut=True, both=not self.oneway)


@dataclass(frozen=True)
class Degrade(Action):
    """Links become weak or lossy, or change by themselves."""

    verb = "degrade"
    links: tuple[Link, ...] = key(keys.links, "which")
    snr: float | None = key(
        keys.number(-50, 100, "dB"),
        "signal over noise; `snr`, `loss` or `fading` is needed",
        default=None,
    )
    loss: float | None = key(
        keys.number(0, 100, "percent"),
        "of all frames, whatever their rate and length",
        default=None,
    )
    fading: str | None = key(
        keys.fading,
        "how the signal changes, in both directions: `doppler` in Hz, `k` and `shadowing` in dB, "
        "`decorrelation` in seconds; `none` ends it",
        default=None,
    )
    oneway: bool = key(keys.truth, _ONEWAY, default=False)

    def __post_init__(self) -> None:
        if self.snr is None and self.loss is None and self.fading is None:
            raise ValueError("degrade needs snr (dB), loss (percent) or fading")

    @property
    def words(self) -> str:
        how = [f"{self.snr:g} dB"] if self.snr is not None else []
        how += [f"{self.loss:g} % loss"] if self.loss is not None else []
        how += [f"fading {self.fading}"] if self.fading is not None else []
        return f"degrade {_pairs(self.links, self.oneway)}: {', '.join(how)}"

    async def do(self, world: World, name: str) -> None:
        for a, b in self.links:
            if self.snr is not None:
                await world.stage.link(a, b, snr=self.snr, both=not self.oneway)
            if self.loss is not None:
                await world.stage.link(a, b, loss=self.loss / 100, both=not self.oneway)
            if self.fading is not None:
                await world.stage.link(a, b, fading=self.fading)


@dataclass(frozen=True)
class Restore(Action):
    """Links are as they were at the start; without `links`, all that were changed."""

    verb = "restore"
    links: tuple[Link, ...] | None = key(keys.links, "which", default=None)
    oneway: bool = key(keys.truth, _ONEWAY, default=False)

    @property
    def words(self) -> str:
        return f"restore {'all links' if self.links is None else _pairs(self.links, self.oneway)}"

    async def do(self, world: World, name: str) -> None:
        changed: Iterable[Link] = self.links or ()
        both = not self.oneway
        if self.links is None:
            both = False
            heard = (await world.stage.medium_call("links"))["links"]
            changed = [
                (each["a"], each["b"])
                for each in heard
                if each["state"] in ("set", "cut") or each.get("loss") or each.get("fading_set")
            ]
        for a, b in changed:
            await world.stage.link(a, b, restore=True, both=both)


@dataclass(frozen=True)
class Split(Action):
    """Nodes of different groups hear nothing of each other; `restore` joins them again."""

    verb = "split"
    groups: tuple[tuple[str, ...], ...] = key(keys.groups, "who stays together")

    @property
    def words(self) -> str:
        return f"split {' | '.join(map(listed, self.groups))}"

    async def do(self, world: World, name: str) -> None:
        known = {frozenset(pair) for pair in world.stage.state.links}
        for left, right in itertools.combinations(self.groups, 2):
            for a, b in itertools.product(left, right):
                if frozenset((a, b)) in known:
                    await world.stage.link(a, b, cut=True)


@dataclass(frozen=True)
class Move(Action):
    """A node is put elsewhere, or goes along a path; its links then follow from the distances."""

    verb = "move"
    node: str = key(keys.node, "which")
    path: tuple[Place, ...] = key(keys.places, "where to, over which places")
    speed: float | None = key(
        keys.number(0.01, 1000, "metres per second"),
        "how fast; without it the node is at the end of its path at once",
        default=None,
    )

    @property
    def words(self) -> str:
        x, y = self.path[-1]
        how = "" if self.speed is None else f" with {self.speed:g} m/s"
        return f"move {self.node} to {x:g} m, {y:g} m{how}"

    async def do(self, world: World, name: str) -> None:
        if self.speed is None:
            await world.stage.move(self.node, *self.path[-1])
            return
        here = world.stage.state.nodes[self.node].position
        way = traces.walk((here, *self.path), self.speed)
        await _follow(world, {self.node: way})


async def _follow(world: World, ways: dict[str, traces.Way]) -> None:
    """Let nodes go their ways, and wait for the last to arrive."""
    begun, end = world.now, max(way[-1].at for way in ways.values())
    last: dict[str, Place] = {}
    while True:
        passed = min(world.now - begun, end)
        for name, way in ways.items():
            if passed < way[0].at:  # it has no place of its own yet
                continue
            spot = traces.place_at(way, passed)
            if last.get(name) != spot:
                last[name] = spot
                arrived = passed >= way[-1].at
                await world.stage.move(name, round(spot[0], 2), round(spot[1], 2), told=arrived)
        if passed >= end:
            return
        await asyncio.sleep(min(MOVING, end - passed))


@dataclass(frozen=True)
class Trace(Action):
    """Nodes go as a trace file says: of ns-2 (`setdest`) or of BonnMotion."""

    verb = "trace"
    file: Path = key(keys.file, "the trace")
    format: str = key(keys.one_of("ns2", "bonnmotion"), "what wrote it")
    nodes: tuple[str, ...] = key(
        keys.nodes, "who goes the ways of the trace's nodes 0, 1, ... in this order", default=()
    )

    @property
    def words(self) -> str:
        return f"move by the trace {self.file.name}"

    async def do(self, world: World, name: str) -> None:
        try:
            found = await asyncio.to_thread(traces.load, self.file, self.format)
        except traces.TraceError as error:
            raise StepError(f"{self.file}: {error}") from None
        movers = self.nodes or tuple(world.stage.state.nodes)
        ways = {movers[i]: way for i, way in found.items() if i < len(movers)}
        if not ways:
            raise StepError(f"{self.file}: no way in it is one of a node")
        await _follow(world, ways)


@dataclass(frozen=True)
class _Switch(Action):
    nodes: tuple[str, ...] = key(keys.nodes, "which, one after the other")
    pause: float = key(keys.seconds, "between two of them", default=0.0)

    @property
    def words(self) -> str:
        return f"{self.verb.replace('-', ' ')} {listed(self.nodes)}"

    async def do(self, world: World, name: str) -> None:
        for index, node in enumerate(self.nodes):
            if index and self.pause:
                await asyncio.sleep(self.pause)
            await self._one(world, node)

    async def _one(self, world: World, node: str) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class PowerOn(_Switch):
    """Nodes are switched on."""

    verb = "power-on"

    async def _one(self, world: World, node: str) -> None:
        await world.stage.power_on(node)


@dataclass(frozen=True)
class PowerOff(_Switch):
    """Nodes shut down in order, and are off."""

    verb = "power-off"

    async def _one(self, world: World, node: str) -> None:
        await world.stage.power_off(node, grace=60.0)


@dataclass(frozen=True)
class Crash(_Switch):
    """Nodes lose their power: no goodbye, nothing is written any more."""

    verb = "crash"

    async def _one(self, world: World, node: str) -> None:
        await world.stage.power_off(node, grace=0)


@dataclass(frozen=True)
class Rolling(_Switch):
    """Nodes lose their power and get it back `down` seconds later, one after the other."""

    verb = "power-cycle"
    down: float = key(keys.seconds, "how long each is off", default=5.0)

    async def _one(self, world: World, node: str) -> None:
        await world.stage.power_off(node, grace=0)
        await asyncio.sleep(self.down)
        await world.stage.power_on(node)


@dataclass(frozen=True)
class Chip(Action):
    """The chips of nodes fail, or are well again."""

    verb = "chip"
    nodes: tuple[str, ...] = key(keys.nodes, "which")
    fault: str = key(
        keys.fault,
        "`absent`, `nak`, `bad-crc`, `stuck`, `watchdog`, with `:0.3` behind it for a "
        "probability; `none` mends it",
    )

    @property
    def words(self) -> str:
        return f"chip of {listed(self.nodes)}: {self.fault}"

    async def do(self, world: World, name: str) -> None:
        for node in self.nodes:
            await world.stage.chip_fault(node, None if self.fault == "none" else self.fault)


@dataclass(frozen=True)
class Pull(_Switch):
    """The radios of nodes are pulled out."""

    verb = "pull-radio"

    async def _one(self, world: World, node: str) -> None:
        await world.stage.radio(node, plug=False)


@dataclass(frozen=True)
class Plug(_Switch):
    """The radios of nodes are plugged in."""

    verb = "plug-radio"

    async def _one(self, world: World, node: str) -> None:
        await world.stage.radio(node, plug=True)


@dataclass(frozen=True)
class Traffic(Action):
    """Datagrams from one node to another, which sends each back; see the expectation `traffic`."""

    verb = "traffic"
    source: str = key(keys.node, "who sends", name="from")
    to: str = key(keys.node, "who answers")
    seconds: float = key(keys.number(1, FLOW_SECONDS, "seconds"), "how long")
    rate: float = key(keys.number(0.1, 1000), "datagrams a second", default=10.0)
    size: int = key(keys.whole(16, 1400), "bytes of each, without headers", default=100)

    @property
    def words(self) -> str:
        return (
            f"traffic {self.source} to {self.to}: {self.rate:g}/s of {self.size} bytes, "
            f"{self.seconds:g} s"
        )

    async def do(self, world: World, name: str) -> None:
        flow = Flow(self.source, self.to, self.seconds, self.rate, self.size)
        await world.flow(name, flow)


@dataclass(frozen=True)
class Command(Action):
    """A command runs on nodes."""

    verb = "command"
    nodes: tuple[str, ...] = key(keys.nodes, "where, one after the other")
    run: str = key(keys.text, "a line of shell")
    status: int | None = key(keys.whole(0, 255), "the exit status that it must have", default=None)
    timeout: float = key(keys.seconds, "how long it may take, in seconds", default=PATIENCE)

    @property
    def words(self) -> str:
        return f"run on {listed(self.nodes)}: {self.run}"

    async def do(self, world: World, name: str) -> None:
        for node in self.nodes:
            status, output = await world.stage.run(node, self.run, self.timeout)
            if self.status is not None and status != self.status:
                said = output.strip()[-500:]
                raise StepError(f"{self.run!r} on {node} ended with status {status}: {said}")


@dataclass(frozen=True)
class Config(Action):
    """The configuration of nodes is changed, by `thicket config set`."""

    verb = "config"
    nodes: tuple[str, ...] = key(keys.nodes, "whose")
    set: tuple[str, ...] = key(keys.settings, "the keys and their new values")

    @property
    def words(self) -> str:
        names = listed(each.partition("=")[0] for each in self.set)
        return f"configure {listed(self.nodes)}: {names}"

    async def do(self, world: World, name: str) -> None:
        for node in self.nodes:
            status, output = await world.stage.configure(node, self.set)
            if status:
                raise StepError(f"{node} refuses {listed(self.set)}: {output.strip()[-500:]}")


@dataclass(frozen=True)
class Card(Action):
    """The `thicket.toml` of a node that is off is replaced, as with its card in a computer."""

    verb = "card"
    node: str = key(keys.node, "whose")
    text: str | None = key(
        keys.text, "the new text; without it, that which the node had at first", default=None
    )

    @property
    def words(self) -> str:
        return f"edit the card of {self.node}"

    async def do(self, world: World, name: str) -> None:
        world.stage.edit_card(self.node, self.text)


@dataclass(frozen=True)
class Passphrase(Action):
    """The fleet's authority changes the passphrase of the mesh, by way of one node."""

    verb = "passphrase"
    by: str = key(keys.node, "the node that it is brought to")
    new: str | None = key(
        keys.text, "the new passphrase; without it, one by chance of the seed", default=None
    )

    @property
    def words(self) -> str:
        return f"change the passphrase by way of {self.by}"

    async def do(self, world: World, name: str) -> None:
        from meshlab.lab import passphrases
        from meshlab.lab.fleet import LabFleet

        if not isinstance(world.stage.fleet, LabFleet):
            raise UnknowableError("only a lab with an authority changes its passphrase")
        chance = random.Random(f"passphrase {world.seed} {name}")
        new = self.new or f"{chance.getrandbits(96):024x}"
        status, output = await passphrases.roll(world.stage, self.by, new)
        if status:
            raise StepError(f"the passphrase was not changed: {output.strip()[-500:]}")


@dataclass(frozen=True)
class Update(Action):
    """Another version is made, signed and offered to the fleet, by way of one node with a card."""

    verb = "update"
    by: str = key(keys.node, "the node that it is brought to")
    version: str = key(keys.text, "what the new version is called, such as 2.0.0")
    canaries: int = key(keys.whole(0, 250), "how many nodes begin", default=1)
    well: int = key(
        keys.whole(1, 86400),
        "seconds that they are to be well before the others follow",
        default=10,
    )
    broken: bool = key(keys.truth, "the version is one that never comes up", default=False)

    @property
    def words(self) -> str:
        return f"offer {'a broken ' if self.broken else ''}version {self.version} at {self.by}"

    async def do(self, world: World, name: str) -> None:
        await world.update(self.by, self.version, self.canaries, self.well, broken=self.broken)


@dataclass(frozen=True)
class KillMedium(Action):
    """The medium's process is killed; the lab starts it again."""

    verb = "kill-medium"

    @property
    def words(self) -> str:
        return "kill the medium"

    async def do(self, world: World, name: str) -> None:
        world.stage.kill_medium()


@dataclass(frozen=True)
class Wait(Action):
    """Nothing is done for a while."""

    verb = "wait"
    seconds: float = key(keys.seconds, "how long", default=0.0)

    @property
    def words(self) -> str:
        return f"wait {self.seconds:g} s"

    async def do(self, world: World, name: str) -> None:
        await asyncio.sleep(self.seconds)


ACTIONS: dict[str, type[Action]] = {
    each.verb: each
    for each in (
        Cut, Restore, Degrade, Split, Move, Trace, PowerOn, PowerOff, Crash, Rolling, Chip, Pull,
        Plug, Traffic, Command, Config, Card, Passphrase, Update, KillMedium, Wait,
    )
}  # fmt: skip
