# SPDX-License-Identifier: Apache-2.0
"""Whole fleets take updates in virtual time: loss, partitions, nodes that are off, failures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rollout_fleet import NEW, OLD, TICK, Fleet, FleetNode, an_offer, figures, plan

from thicket.cli.show import table
from thicket.device.boot_record import Why
from thicket.update import show
from thicket.update.offer import Offer
from thicket.update.progress import KEEP, NAMES, State
from thicket.update.rollout import LOST, PATIENCE, host
from thicket.update.steps import Install, Nothing

HOUR = 3600.0


def in_order(fleet: Fleet, offer: Offer) -> Callable[[FleetNode], None]:
    """Who begins checks that every node of the waves before it is well."""

    def check(node: FleetNode) -> None:
        waves = fleet.row(offer)
        number = next(at for at, wave in enumerate(waves) if node.name in wave)
        for wave in waves[:number]:
            for name in wave:
                assert fleet.well(fleet.named(name)), f"{node.name} has begun before {name} is well"
        at_it = [one for one in fleet.at_it() if one is not node]
        assert len(at_it) < len(waves[number]), "too many at once"

    return check


def words(node: FleetNode) -> str:
    assert node.last is not None
    return getattr(node.last.action, "why", "")


@pytest.mark.parametrize("count", [8, 50])
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_a_fleet_takes_it_wave_by_wave(count: int, loss: float) -> None:
    fleet = Fleet(count, seed=count, loss=loss)
    offer = an_offer(plan(canaries=2, waves=(10, 50, 100)))
    fleet.check = in_order(fleet, offer)
    fleet.offer(offer, fleet.nodes[:1])
    took = fleet.run(4 * HOUR, fleet.all_well)
    assert fleet.all_well(), [words(node) for node in fleet.nodes]
    assert [node.begun for node in fleet.nodes] == [1] * count
    print(f"{count} nodes, {loss:.0%} lost: all well after {took:.0f} s")


@pytest.mark.soak
def test_figures_of_a_large_fleet() -> None:
    print(figures(60))


@pytest.mark.parametrize(
    "why", [Why.PANIC, Why.WATCHDOG, Why.SILENT, Why.OVERDUE, Why.UNWELL], ids=lambda w: w.name
)
def test_a_canary_that_fails_leaves_everybody_else_untouched(why: Why) -> None:
    fleet = Fleet(12, seed=3, loss=0.1)
    fleet.bad = lambda node: why
    offer = fleet.offer(an_offer(plan()), fleet.nodes[:1])
    canary = fleet.named(fleet.row(offer)[0][0])
    fleet.run(HOUR)
    fleet.run(5 * HOUR, every=240.0)
    assert [node for _, node in fleet.begun] == [canary]
    assert {node.version for node in fleet.nodes} == {OLD}
    for node in fleet.nodes:
        if node is not canary:
            assert words(node).startswith(f"stopped: canary {canary.name} failed: "), words(node)
    record = canary.table.entries[canary.name].record
    assert record.state is State.FAILED
    assert record.why
    assert not any(isinstance(n.last.action, Install) for n in fleet.nodes if n.last)


def test_so_many_failures_as_the_plan_allows() -> None:
    fleet = Fleet(20, seed=5)
    offer = an_offer(plan(canaries=3, waves=(40, 100), failures=2))
    waves = fleet.row(offer)
    bad = {waves[0][0], waves[1][0]}
    fleet.bad = lambda node: Why.PANIC if node.name in bad else None
    fleet.offer(offer)
    fleet.run(6 * HOUR, lambda: len(fleet.have_it()) == 18)
    fleet.run(HOUR, every=120.0)
    assert {node.name for node in fleet.nodes if node.version == OLD} == bad


def test_one_failure_more_stops_it() -> None:
    fleet = Fleet(20, seed=5)
    offer = an_offer(plan(canaries=3, waves=(40, 100), failures=1))
    waves = fleet.row(offer)
    bad = {waves[0][0], waves[1][0]}
    fleet.bad = lambda node: Why.PANIC if node.name in bad else None
    fleet.offer(offer)
    fleet.run(HOUR)
    fleet.run(5 * HOUR, every=240.0)
    assert not any(node.begun for node in fleet.nodes if node.name in waves[2])
    assert "; and 1 more" in words(fleet.named(waves[2][0]))


def test_a_partition_chooses_no_canary_of_its_own() -> None:
    fleet = Fleet(8, seed=2)
    offer = an_offer(plan())
    canary = fleet.named(fleet.row(offer)[0][0])
    others = [node for node in fleet.nodes if node is not canary][:4]
    fleet.offer(offer)
    fleet.split([], others)
    fleet.run(86400, lambda: len(fleet.have_it()) == 4, every=60.0)
    assert len(fleet.have_it()) == 4
    fleet.run(86400, every=600.0)
    assert not any(node.begun for node in others)
    for node in others:
        assert words(node).startswith(f"waiting for canary {canary.name} ("), words(node)
    fleet.split()
    fleet.run(3 * HOUR, fleet.all_well)
    assert fleet.all_well()


def test_a_partition_in_the_middle_heals_and_completes() -> None:
    fleet = Fleet(24, seed=4, loss=0.1)
    offer = an_offer(plan(waves=(20, 60, 100)))
    fleet.offer(offer, fleet.nodes[:1])
    fleet.run(400.0)
    fleet.split(fleet.nodes[:12], fleet.nodes[12:])
    fleet.run(HOUR)
    fleet.run(5 * HOUR, every=300.0)
    fleet.split()
    # Who sees the same decides the same.
    fleet.run(20 * TICK)
    rows = {node.view.waves for node in fleet.running}
    assert len(rows) == 1
    took = fleet.run(6 * HOUR, fleet.all_well)
    assert fleet.all_well()
    print(f"all well {took:.0f} s after the mesh has healed")


def test_nodes_without_power_come_back_a_version_late() -> None:
    fleet = Fleet(8, seed=6)
    off = fleet.nodes[:2]
    fleet.run(60.0)
    for node in off:
        fleet.cut(node)
    offer = an_offer(plan(), 2_000_000)
    canaries = set(fleet.row(offer)[0])
    while canaries & {node.name for node in off}:
        offer = an_offer(plan(), offer.number + 1)
        canaries = set(fleet.row(offer)[0])
    fleet.offer(offer)
    fleet.run(2 * PATIENCE + 2 * HOUR, lambda: len(fleet.have_it()) == 6)
    assert len(fleet.have_it()) == 6
    fleet.run(HOUR, every=60.0)
    for node in off:
        fleet.power(node)
    took = fleet.run(HOUR, fleet.all_well)
    assert fleet.all_well(), [words(node) for node in fleet.nodes]
    print(f"two late nodes: well {took:.0f} s after they came back")


def test_a_new_node_does_not_hold_up_or_begin_a_new_round() -> None:
    fleet = Fleet(6, seed=7)
    fleet.offer(an_offer(plan(waves=(100,))))
    fleet.run(HOUR, fleet.all_well)
    late = FleetNode(fleet, 100)
    fleet.nodes.append(late)
    fleet.groups[late.name] = 0
    took = fleet.run(HOUR, fleet.all_well)
    assert fleet.all_well()
    assert took < 900.0


def test_named_canaries_are_waited_for() -> None:
    fleet = Fleet(6, seed=8)
    canary = fleet.nodes[3]
    fleet.cut(canary)
    stranger = "n-0123456789ab"
    for name in (host(canary.name), stranger):
        offer = fleet.offer(an_offer(plan(canaries=(name,)), 1_000_000 + len(fleet.begun)))
        fleet.run(2 * HOUR, every=60.0)
        assert fleet.begun == []
        assert all(words(node).startswith(f"waiting for canary {name} (") for node in fleet.running)
    offer = fleet.offer(an_offer(plan(canaries=(host(canary.name),)), 3_000_000))
    fleet.power(canary)
    fleet.check = in_order(fleet, offer)
    fleet.run(2 * HOUR, fleet.all_well)
    assert fleet.all_well()
    assert fleet.begun[0][1] is canary


def test_a_counted_canary_that_is_off_is_replaced_after_days() -> None:
    fleet = Fleet(4, seed=9)
    offer = fleet.offer(an_offer(plan()))
    first = fleet.named(fleet.row(offer)[0][0])
    fleet.cut(first)
    fleet.run(KEEP - HOUR, every=600.0)
    assert fleet.begun == []
    fleet.run(HOUR + 2 * PATIENCE, lambda: len(fleet.have_it()) == 3)
    assert len(fleet.have_it()) == 3


def test_who_has_begun_and_vanishes_counts_as_failed() -> None:
    fleet = Fleet(6, seed=10)
    offer = fleet.offer(an_offer(plan()))
    canary = fleet.named(fleet.row(offer)[0][0])
    fleet.run(HOUR, lambda: canary.begun > 0)
    fleet.tick()
    fleet.cut(canary)
    fleet.run(LOST + 600.0)
    for node in fleet.running:
        assert words(node) == f"stopped: canary {canary.name} has begun and was not heard of again"
    fleet.power(canary)
    fleet.run(2 * HOUR, fleet.all_well)
    assert fleet.all_well()


def test_a_window_of_time() -> None:
    fleet = Fleet(8, seed=11)
    offer = an_offer(plan(window=(23 * 60, 4 * 60)))
    fleet.check = in_order(fleet, offer)
    fleet.offer(offer)
    fleet.run(10.5 * HOUR, every=120.0)
    assert fleet.begun == []
    assert {words(node) for node in fleet.nodes} == {"for the time from 23:00 to 04:00 UTC"}
    fleet.run(4 * HOUR, fleet.all_well)
    assert fleet.all_well()


def test_all_that_a_node_may_be_called_is_seen() -> None:
    """One rollout in which everything happens, as one node sees it: the last one of the row."""
    fleet = Fleet(12, seed=16, loss=0.1)
    offer = an_offer(plan(canaries=1, waves=(50, 100), failures=2))
    (canary,), first, last = fleet.row(offer)[:3]
    watcher = fleet.named(last[-1])
    off, lost, bad = (fleet.named(name) for name in first[:3])
    refuses = fleet.named(last[0])
    refuses.epoch = 2
    fleet.cut(off)
    fleet.bad = lambda node: Why.PANIC if node is bad else None
    seen: dict[str, set[str]] = {}

    def look_at(until: Callable[[], bool]) -> Callable[[], bool]:
        def look() -> bool:
            if watcher.disk.offer is not None and watcher.up:
                for line in show.lines(watcher.facts):
                    seen.setdefault(line.node, set()).add(line.state)
                assert table(show.HEADS, show.rows(show.lines(watcher.facts)))
            return until()

        return look

    fleet.offer(offer, [fleet.named(canary)])
    fleet.run(2 * HOUR, look_at(lambda: fleet.well(fleet.named(canary))))
    fleet.run(2 * HOUR, look_at(lambda: lost.begun > 0 and bad.begun > 0))
    begun = {"checking", "installing", "restarting", "trial"}
    fleet.run(60.0, look_at(lambda: bool(seen[lost.name] & begun)))
    assert not fleet.well(lost)
    fleet.cut(lost)
    fleet.run(2 * LOST, look_at(lambda: "lost" in seen[lost.name] and "failed" in seen[bad.name]))
    fleet.tell("pause", 1_000_001)
    fleet.run(HOUR, look_at(lambda: any("paused" in names for names in seen.values())))
    fleet.tell("abort", 1_000_002)
    fleet.run(HOUR, look_at(lambda: any("aborted" in names for names in seen.values())))
    assert set().union(*seen.values()) == set(NAMES)
    assert "silent" in seen[off.name]
    assert "refused" in seen[refuses.name]


def test_pause_and_resume() -> None:
    fleet = Fleet(8, seed=12)
    offer = an_offer(plan())
    fleet.check = in_order(fleet, offer)
    fleet.offer(offer)
    fleet.run(HOUR, lambda: len(fleet.begun) == 1)
    fleet.tell("pause", 1_000_001, fleet.nodes[:1])
    fleet.run(HOUR, lambda: len(fleet.running) == 8 and all(node.order for node in fleet.nodes))
    assert all(node.order for node in fleet.nodes)
    begun = len(fleet.begun)  # who had not heard of it may have begun
    fleet.run(3 * PATIENCE, every=60.0)
    assert len(fleet.begun) == begun < 8
    assert {words(node) for node in fleet.nodes if not node.begun} == {"told to wait"}
    fleet.tell("resume", 1_000_002, fleet.nodes[:1])
    fleet.run(2 * HOUR, fleet.all_well)
    assert fleet.all_well()


def test_abort() -> None:
    fleet = Fleet(8, seed=13)
    fleet.offer(an_offer(plan(waves=(50, 100))))
    fleet.run(HOUR, lambda: len(fleet.have_it()) >= 2)
    fleet.tell("abort", 1_000_001)
    begun = {node for _, node in fleet.begun}
    fleet.run(5 * HOUR, every=120.0)
    assert {node for _, node in fleet.begun} == begun
    assert set(fleet.have_it()) == begun
    assert {words(node) for node in fleet.nodes if node not in begun} == {"told not to take it"}


def test_back_to_the_version_before_and_on_again() -> None:
    fleet = Fleet(8, seed=14)
    fleet.offer(an_offer(plan()))
    fleet.run(2 * HOUR, fleet.all_well)
    fleet.tell("back", 1_000_001, fleet.nodes[:1])
    fleet.run(HOUR, lambda: all(node.version == OLD for node in fleet.nodes))
    fleet.run(3 * HOUR, every=120.0)
    assert all(node.version == OLD for node in fleet.nodes)
    assert all(node.begun == 1 for node in fleet.nodes)
    states = {entry.record.state for entry in fleet.nodes[0].table.entries.values()}
    assert states == {State.ABORTED}
    fleet.tell("resume", 1_000_002, fleet.nodes[:1])
    fleet.run(2 * HOUR, fleet.all_well)
    assert fleet.all_well()


def test_a_rejected_bundle_is_tried_again_only_when_told() -> None:
    fleet = Fleet(6, seed=15)
    fleet.bad = lambda node: Why.UNWELL
    fleet.offer(an_offer(plan()))
    fleet.run(2 * HOUR)
    canary = fleet.begun[0][1]
    # The same bundle in another offer: whoever has rejected it does not take it.
    fleet.offer(an_offer(plan(canaries=(host(canary.name),)), 1_000_002))
    fleet.run(2 * HOUR)
    assert len(fleet.begun) == 1
    other = next(node for node in fleet.nodes if node is not canary)
    assert words(other).startswith(f"stopped: canary {canary.name} failed: "), words(other)
    fleet.bad = lambda node: None
    fleet.tell("resume", 1_000_003)
    fleet.run(2 * HOUR, fleet.all_well)
    assert fleet.all_well()
    assert canary.begun == 2


class AnyFleet(RuleBasedStateMachine):
    """Power cuts, partitions, orders and installations by hand at any point; the bundle is good."""

    @initialize(seed=st.integers(0, 1000), canaries=st.integers(1, 2))
    def begin(self, seed: int, canaries: int) -> None:
        self.fleet = Fleet(6, seed, loss=0.2)
        self.plan = plan(canaries=canaries, waves=(50, 100), failures=6)
        self.target = self.fleet.offer(an_offer(self.plan), self.fleet.nodes[:2])
        self.number = self.target.number
        self.canaries = set(self.fleet.row(self.target)[0])
        self.paused = False
        self.fleet.check = self.on_begin

    def on_begin(self, node: FleetNode) -> None:
        if not any(one.ever_well for one in self.fleet.nodes):
            assert node.name in self.canaries, f"{node.name} is no canary"
        order = node.order
        assert order is None or order.order == "resume"

    @rule(minutes=st.integers(1, 12))
    def wait(self, minutes: int) -> None:
        self.fleet.run(60.0 * minutes)

    @rule(at=st.integers(0, 5))
    def cut(self, at: int) -> None:
        self.fleet.cut(self.fleet.nodes[at])

    @rule(at=st.integers(0, 5))
    def cut_and_back(self, at: int) -> None:
        self.fleet.cut(self.fleet.nodes[at])
        self.fleet.power(self.fleet.nodes[at])

    @rule(at=st.integers(0, 5))
    def power(self, at: int) -> None:
        self.fleet.power(self.fleet.nodes[at])

    @rule(at=st.integers(0, 5), version=st.sampled_from([NEW, "0.1.5"]))
    def install(self, at: int, version: str) -> None:
        if self.fleet.nodes[at].install(version):
            self.fleet.nodes[at].reboot()

    @rule(at=st.integers(0, 5))
    def back(self, at: int) -> None:
        if self.fleet.nodes[at].back():
            self.fleet.nodes[at].reboot()

    @rule(part=st.sets(st.integers(0, 5), max_size=3))
    def split(self, part: set[int]) -> None:
        self.fleet.split([], [self.fleet.nodes[at] for at in part])

    @precondition(lambda self: hasattr(self, "fleet"))
    @rule(at=st.integers(0, 5), order=st.sampled_from(["pause", "resume"]))
    def tell(self, at: int, order: str) -> None:
        self.number += 1
        self.fleet.tell(order, self.number, [self.fleet.nodes[at]])

    @invariant()
    def who_waits_says_why(self) -> None:
        for node in getattr(self, "fleet", Fleet(0)).running:
            if node.last is not None and isinstance(node.last.action, Nothing):
                assert node.last.action.why

    def teardown(self) -> None:
        if not hasattr(self, "fleet"):
            return
        fleet = self.fleet
        fleet.split()
        for node in fleet.nodes:
            fleet.power(node)
        fleet.tell("resume", self.number + 1)
        fleet.run(HOUR, fleet.all_well)
        fleet.run(7 * HOUR, fleet.all_well, every=60.0)
        assert fleet.all_well(), [(n.name, words(n), n.disk.journal) for n in fleet.nodes]
        assert {node.version for node in fleet.nodes} == {NEW}
        # The same records everywhere give the same waves and the same end everywhere.
        fleet.run(100 * TICK, lambda: len({n.table.digest() for n in fleet.nodes}) == 1)
        assert len({node.view.waves for node in fleet.nodes}) == 1
        assert {node.view.stopped for node in fleet.nodes} == {""}


TestAnyFleet = AnyFleet.TestCase
TestAnyFleet.settings = settings(
    max_examples=15,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
