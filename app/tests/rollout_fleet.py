# SPDX-License-Identifier: Apache-2.0
"""A fleet in virtual time that takes an update: nodes with slots, disks and restarts, and a mesh
that loses records and falls apart. What decides is the product's own code; signatures are left out.

``python app/tests/rollout_fleet.py 8 50 500`` prints figures.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable
from hashlib import sha256
from types import SimpleNamespace
from typing import cast

from thicket.device import boot_record
from thicket.device.boot_record import BootRecord, Slot, Why
from thicket.device.boot_slots import Slots
from thicket.update import journal as journals
from thicket.update.image_taker import trial_of, went_on
from thicket.update.install import may_write
from thicket.update.journal import Journal, Phase
from thicket.update.judge import InstallError
from thicket.update.offer import Offer, Order, Plan, Target
from thicket.update.progress import (
    Entry,
    Members,
    Own,
    Progress,
    Stage,
    State,
    Table,
    Work,
    node_name,
    pack_members,
    unpack_members,
)
from thicket.update.rollout import Facts, Node, Trial, View, look, row, runs
from thicket.update.steps import CallOff, Fetch, GoBack, Install, Now, Restart, Rollout, Step

TICK = 15.0
"""Seconds between two looks of a node."""

MAKES = 700
"""Thousandths from which on a node makes the bundle."""
LATE = 900.0
"""Seconds within which a start has to be well."""

OLD, NEW = "0.1.0", "0.2.0"
BUNDLE = sha256(b"new").hexdigest()


def plan(
    canaries: int | tuple[str, ...] = 1,
    well: int = 120,
    waves: tuple[int, ...] = (25, 100),
    failures: int = 0,
    window: tuple[int, int] | None = None,
) -> Plan:
    return Plan(canaries, well, waves, failures, window)


def an_offer(of: Plan, number: int = 1_000_000, bundle: str = BUNDLE) -> Offer:
    target = Target("thicket-standin", NEW, 1, 1000, bundle)
    return Offer(bytes(20), number, target, (), of)


def name_of(index: int) -> str:
    return node_name("chip", sha256(b"node %d" % index).digest()[:6])


class Disk:
    """What lasts over the restarts of a node."""

    def __init__(self) -> None:
        self.journal = journals.pack(Journal())
        self.members = b""
        self.starts = 0
        self.record = BootRecord()
        self.versions = {Slot.A: OLD, Slot.B: ""}
        self.orders: dict[bytes, Order] = {}
        self.offer: Offer | None = None
        self.records: list[Entry] = []


class FleetNode:
    """One node.

    :ivar up: False while it has no power or restarts.
    :ivar begun: how often it has begun to install.
    :ivar ever_well: offers that it has told to be well with.
    """

    def __init__(self, fleet: Fleet, index: int) -> None:
        self.fleet = fleet
        self.index = index
        self.name = name_of(index)
        self.disk = Disk()
        self.up = False
        self.begun = 0
        self.epoch = 1
        self.ever_well: set[bytes] = set()
        self.running = Slot.A
        self.busy_until = 0.0
        self.fetched = 0
        self.last: Step | None = None
        self.fresh: dict[str, Entry] = {}
        self.boot(Why.NONE)

    # -- starts

    def boot(self, died: Why) -> None:
        """Start, as the firmware and init do."""
        disk = self.disk
        running = disk.record.named or Slot.A
        start = boot_record.begin(disk.record, running, died)
        while start.tryboot:
            running = running.other
            if not disk.versions[running]:
                running = running.other
            start = boot_record.begin(start.record, running, Why.NONE)
        disk.record, self.running = start.record, running
        disk.starts += 1
        self.up = True
        now = self.fleet.now
        self.own = Own(self.name, disk.starts)
        self.table = Table()
        for entry in disk.records:
            self.table.take(entry.record, now)
        self.members = Members(unpack_members(disk.members), now)
        words = "no other node is in the cluster" if disk.record.trial is Slot.NONE else ""
        after = journals.after_restart(
            journals.unpack(disk.journal),
            journals.Start(running, disk.record, trial=words),
        )
        disk.journal = journals.pack(after)
        self.rollout = Rollout(self.own, after)
        self.ends, self.late = now + 60.0, now + LATE
        self.busy_until = 0.0
        self.writes = ""
        self.fresh = {}
        self.last = None

    def cut(self) -> None:
        """Take the power away."""
        self.save()
        self.up = False

    def save(self) -> None:
        self.disk.members = pack_members(self.members.ages(self.fleet.now))
        self.disk.records = list(self.table.entries.values())

    def keep(self, journal: Journal) -> None:
        self.disk.journal = journals.pack(journal)

    # -- working

    @property
    def version(self) -> str:
        return self.disk.versions[self.running]

    @property
    def facts(self) -> Facts:
        """What this node decides by."""
        offer = self.disk.offer
        assert offer is not None
        return Facts(
            offer,
            self.node,
            self.table.entries,
            self.members.ages(self.fleet.now),
            self.fleet.now,
            self.rollout._since if self.rollout._since is not None else self.fleet.now,
            order=self.order,
        )

    @property
    def node(self) -> Node:
        trial = trial_of(self.disk.record, self.running)
        return Node(self.name, "thicket-standin", self.version, epoch=self.epoch, trial=trial)

    @property
    def order(self) -> Order | None:
        found = [o for o in self.disk.orders.values() if self.disk.offer is not None]
        return max(found, key=lambda order: order.number, default=None)

    @property
    def view(self) -> View:
        return look(self.facts)

    def hear(self, entry: Entry) -> None:
        """Take in a record of another node."""
        if self.table.take(entry.record, self.fleet.now):
            self.fresh[entry.record.node] = self.table.entries[entry.record.node]

    def work(self) -> None:
        """One look of the daemon."""
        fleet, now = self.fleet, self.fleet.now
        if not self.judged():
            return
        if self.rollout.installing is not None:
            if now >= self.busy_until:
                self.written(self.writes)
                self.keep(self.rollout.follow(self.rollout.journal.armed()))
            else:
                # One half of them is seen while it checks the bundle, the other while it writes.
                stage = Stage.CHECKING if self.index % 2 else Stage.NONE
                self.rollout.progress(Work(stage, 50, 100))
        elif after := went_on(self.rollout.journal, self.disk.record, self.running):
            self.keep(self.rollout.follow(after))
        step = self.last = self.rollout.step(
            now,
            Now(
                self.node,
                self.running.name,
                self.disk.offer,
                self.order,
                self.table.entries,
                self.members.ages(now),
                minute=fleet.minute(),
                fetched=self.fetched,
                ready=self.fetched >= 1000,
            ),
        )
        if step.journal is not None:
            self.keep(step.journal)
        if step.tell is not None:
            assert self.table.take(step.tell, now) or self.table.dropped
            self.fresh[self.name] = self.table.entries[self.name]
        self.tells_the_truth()
        self.act(step)

    def judged(self) -> bool:
        """Judge this start, as the daemon and init do; return False where it has ended."""
        record, now = self.disk.record, self.fleet.now
        trial = record.trial is self.running
        if trial and (why := self.fleet.bad(self)) is not None and now >= self.ends - 30:
            if why in (Why.OVERDUE, Why.UNWELL):
                self.disk.record = boot_record.reject(record, self.running, why)
            self.down(45.0, why if why in (Why.PANIC, Why.WATCHDOG) else Why.NONE)
            return False
        if now >= self.ends:
            judge = boot_record.commit if trial else boot_record.well
            self.disk.record = record = judge(record, self.running)
        if now >= self.late and record.run is not boot_record.Run.WELL:
            self.disk.record = boot_record.late(record, self.running)
            self.down(45.0, Why.NONE)
            return False
        return True

    def tells_the_truth(self) -> None:
        """What this node tells of an offer that it runs is so."""
        told, offer = self.own.newest, self.disk.offer
        if told is None or offer is None or told.offer != offer.identifier:
            return
        node = self.node
        if told.state is State.DONE:
            assert runs(node, offer)
            assert node.trial is Trial.NONE, f"{self.name} is on trial: {told}"
        if told.well:
            self.ever_well.add(told.offer)
        if runs(node, offer) and node.trial is Trial.GOES_ON:
            assert told.state is State.TRIAL or self.leaving, told

    @property
    def leaving(self) -> bool:
        return self.rollout.journal.phase is Phase.LEAVING

    def written(self, version: str) -> None:
        """An installation has ended."""
        slot = self.running.other
        self.disk.versions[slot] = version
        record = self.disk.record.marked(slot, boot_record.State.UNTRIED)
        self.disk.record = boot_record.arm(record, slot, self.running)

    # -- what a person does

    def install(self, version: str) -> bool:
        """``thicket update install``; return whether it is installed."""
        if not self.up or self.rollout.installing is not None:
            return False
        record, other = self.disk.record, self.running.other
        slots = SimpleNamespace(read=lambda: record, running=self.running)
        try:
            may_write(cast(Slots, slots))
        except InstallError:
            return False
        assert record.named is not other, "what the firmware starts is not written to"
        self.disk.record = boot_record.write_over(record, other)
        self.written(version)
        return True

    def back(self) -> bool:
        """``thicket update back``; return whether the other slot is to be tried."""
        other = self.running.other
        whole = self.disk.record.state(other) is not boot_record.State.INCOMPLETE
        if not self.up or self.rollout.installing is not None or not whole:
            return False
        if not self.disk.versions[other]:
            return False
        self.disk.record = boot_record.arm(self.disk.record, other, self.running)
        return True

    def call_off(self) -> None:
        """``boot-slots set-primary`` with the slot that runs: the other one is not tried."""
        if self.up:
            self.disk.record = boot_record.arm(self.disk.record, self.running, self.running)

    def mark_bad(self) -> None:
        """``boot-slots set-state SLOT bad`` with the slot that runs."""
        if self.up and self.disk.versions[self.running.other]:
            self.disk.record = boot_record.leave(self.disk.record, self.running, Why.BY_HAND)

    def reboot(self) -> None:
        """``reboot``."""
        if self.up:
            self.restart(45.0)

    def flash(self, version: str) -> None:
        """Write the card anew."""
        self.fleet.cut(self)
        starts, self.disk = self.disk.starts, Disk()
        self.disk.starts = starts
        self.disk.versions[Slot.A] = version
        self.fleet.power(self)

    def act(self, step: Step) -> None:
        fleet = self.fleet
        match step.action:
            case Fetch():
                self.fetched = min(1000, self.fetched + fleet.random.randint(100, 500))
                makes = MAKES <= self.fetched < 1000
                self.rollout.making = Work(Stage.MAKING, 50, 100) if makes else None
            case Install(offer):
                self.begun += 1
                self.writes = offer.bundle.version
                fleet.on_begin(self)
                self.busy_until = fleet.now + 30.0
                record, other = self.disk.record, self.running.other
                assert record.named is not other, "what the firmware starts is not written to"
                self.disk.record = boot_record.write_over(record, other)
                self.disk.versions[other] = ""
            case Restart():
                self.spread()
                self.disk.record = boot_record.told(self.disk.record)
                self.restart(45.0)
            case GoBack():
                self.spread()
                if not self.back():
                    self.keep(self.rollout.not_left("it holds no whole system"))
                    return
                self.disk.record = boot_record.told(self.disk.record)
                self.restart(45.0)
            case CallOff():
                self.call_off()
                self.keep(self.rollout.follow(self.rollout.journal.enter(Phase.NONE)))

    def restart(self, seconds: float) -> None:
        """Restart in order."""
        self.disk.record = boot_record.stopped(self.disk.record)
        self.down(seconds, Why.NONE)

    def down(self, seconds: float, died: Why) -> None:
        self.save()
        self.up = False
        self.fleet.later(seconds, self, died)

    def spread(self) -> None:
        """Hand on what is new to a few others, as far as the mesh lets it through."""
        fleet = self.fleet
        peers = fleet.peers(self)
        if not peers:
            return
        if self.fresh:
            news, self.fresh = list(self.fresh.values()), {}
            for peer in fleet.random.sample(peers, min(3, len(peers))):
                fleet.send(news, peer)
        if fleet.random.random() < 0.15:
            peer = fleet.random.choice(peers)
            fleet.talk(self, peer)
            fleet.talk(peer, self)


class Fleet:
    """All nodes.

    :param loss: share of the messages that get lost.
    :ivar groups: which part of the mesh each node is in.
    :ivar begun: in which order nodes have begun, with the time.
    """

    def __init__(self, count: int, seed: int = 1, loss: float = 0.0) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.loss = loss
        self.messages = 0
        self.begun: list[tuple[float, FleetNode]] = []
        self.bad: Callable[[FleetNode], Why | None] = lambda _node: None
        self.check: Callable[[FleetNode], None] = lambda _node: None
        self.day = 12 * 60.0
        self._starts: list[tuple[float, FleetNode, Why]] = []
        self.nodes = [FleetNode(self, index) for index in range(count)]
        self.groups = {node.name: 0 for node in self.nodes}
        self.meet()

    def meet(self) -> None:
        """Everybody hears of everybody."""
        names = [node.name for node in self.nodes]
        for node in self.nodes:
            node.members.hear(names, self.now)

    @property
    def running(self) -> list[FleetNode]:
        return [node for node in self.nodes if node.up]

    def minute(self) -> int | None:
        return int(self.day + (self.now - 1000.0) / 60) % 1440

    def named(self, name: str) -> FleetNode:
        return next(node for node in self.nodes if node.name == name)

    def row(self, offer: Offer) -> tuple[tuple[str, ...], ...]:
        """The waves, by all nodes that there are."""
        return row(offer.identifier, offer.plan, frozenset(node.name for node in self.nodes))

    def peers(self, node: FleetNode) -> list[FleetNode]:
        group = self.groups[node.name]
        return [n for n in self.nodes if n.up and n is not node and self.groups[n.name] == group]

    def split(self, *parts: Iterable[FleetNode]) -> None:
        """Let the mesh fall apart; who is in no part is in the first one."""
        self.groups = {node.name: 0 for node in self.nodes}
        for number, part in enumerate(parts):
            for node in part:
                self.groups[node.name] = number

    def send(self, news: list[Entry], to: FleetNode) -> None:
        for entry in news:
            self.messages += 1
            if self.random.random() >= self.loss:
                to.hear(entry)

    def talk(self, node: FleetNode, to: FleetNode) -> None:
        """Compare offers, orders and records, and send what the other lacks."""
        for order in node.disk.orders.values():
            self.order(to, order)
        mine, theirs = node.disk.offer, to.disk.offer
        if mine is not None and (theirs is None or mine.number > theirs.number):
            to.disk.offer, to.fetched = mine, 0
        if node.table.digest() != to.table.digest():
            self.send(node.table.lacking(to.table.summary()), to)

    @staticmethod
    def order(to: FleetNode, order: Order) -> None:
        kept = to.disk.orders.get(order.offer)
        if kept is None or order.number > kept.number:
            to.disk.orders[order.offer] = order

    def offer(self, offer: Offer, nodes: Iterable[FleetNode] | None = None) -> Offer:
        """Hand an offer to some nodes, or to all that run."""
        for node in self.running if nodes is None else nodes:
            node.disk.offer, node.fetched = offer, 0
        return offer

    def tell(self, order: str, number: int, nodes: Iterable[FleetNode] | None = None) -> None:
        """Hand an order to some nodes, or to all that run."""
        for node in self.running if nodes is None else nodes:
            self.order(node, Order(bytes(20), number, b"", order))

    def on_begin(self, node: FleetNode) -> None:
        self.begun.append((self.now, node))
        self.check(node)

    def later(self, seconds: float, node: FleetNode, died: Why) -> None:
        self._starts.append((self.now + seconds, node, died))

    def power(self, node: FleetNode) -> None:
        """Give a node its power back."""
        if not node.up:
            self._starts = [one for one in self._starts if one[1] is not node]
            node.boot(Why.NONE)

    def cut(self, node: FleetNode) -> None:
        self._starts = [one for one in self._starts if one[1] is not node]
        if node.up:
            node.cut()

    def tick(self, every: float = TICK) -> None:
        self.now += every
        due = [one for one in self._starts if one[0] <= self.now]
        self._starts = [one for one in self._starts if one[0] > self.now]
        for _, node, died in due:
            node.boot(died)
        names = {
            group: [n.name for n in self.running if self.groups[n.name] == group]
            for group in set(self.groups.values())
        }
        for node in self.nodes:
            if node.up:
                node.members.hear(names[self.groups[node.name]], self.now)
                node.work()
            if node.up:
                node.spread()

    def run(
        self, seconds: float, until: Callable[[], bool] = lambda: False, every: float = TICK
    ) -> float:
        """Let time go by; return how much it was.

        :param every: seconds between two looks of a node.
        """
        begin = self.now
        while self.now - begin < seconds and not until():
            self.tick(every)
        return self.now - begin

    # -- what is so

    def have_it(self) -> list[FleetNode]:
        """Nodes that keep the new version."""
        return [n for n in self.nodes if n.version == NEW and n.node.trial is Trial.NONE]

    def at_it(self) -> list[FleetNode]:
        """Nodes that have truly begun and are not well yet."""
        phases = {Phase.BEGUN, Phase.ARMED, Phase.TRIAL}
        found = []
        for node in self.nodes:
            journal = journals.unpack(node.disk.journal)
            if journal.phase in phases or (journal.phase is Phase.DONE and not journal.well):
                found.append(node)
        return found

    def well(self, node: FleetNode) -> bool:
        journal = journals.unpack(node.disk.journal)
        return journal.phase is Phase.DONE and journal.well

    def all_well(self) -> bool:
        return all(self.well(node) for node in self.nodes)

    def records(self, node: FleetNode) -> list[Progress]:
        return [entry.record for entry in node.table.entries.values()]


def figures(count: int) -> str:
    """Return how a fleet of that many nodes with a tenth of the records lost takes an update."""
    begin = time.process_time()
    fleet = Fleet(count, loss=0.1)
    offer = fleet.offer(an_offer(plan()), fleet.nodes[:1])
    took = fleet.run(4 * 3600, fleet.all_well)
    waves = [len(wave) for wave in fleet.row(offer)]
    first = [next(at for at, node in fleet.begun if node.name in wave) for wave in fleet.row(offer)]
    return (
        f"{count} nodes, waves of {waves}: begun after {[round(at - 1000) for at in first]} s, "
        f"all well after {took:.0f} s; {fleet.messages / count / count:.0f} records sent by each "
        f"node for each node; {time.process_time() - begin:.1f} s of CPU"
    )


if __name__ == "__main__":
    for number in map(int, sys.argv[1:] or ("8", "50")):
        print(figures(number), flush=True)
