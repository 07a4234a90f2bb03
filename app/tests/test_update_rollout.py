# SPDX-License-Identifier: Apache-2.0
"""One node's decision about an offer, its steps, its journal, and what people see of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_fleet import BUNDLE, NEW, OLD, an_offer, name_of, plan

from thicket.cli.show import table
from thicket.device import boot_record
from thicket.device.boot_record import BootRecord, Slot, Why
from thicket.update import journal as journals
from thicket.update import show
from thicket.update.journal import MOST_REJECTED, MOST_TRIES, Journal, Phase, Rejected, Start
from thicket.update.mine import Here, mine
from thicket.update.offer import Offer, Order
from thicket.update.progress import (
    MOST_WORDS,
    WHOLE,
    Entry,
    Own,
    Progress,
    Stage,
    State,
    Work,
    short,
)
from thicket.update.rollout import (
    LOST,
    PATIENCE,
    SETTLE,
    Decision,
    Facts,
    Node,
    Verdict,
    decide,
    host,
    look,
    pending,
    row,
)
from thicket.update.section import UpdateSection
from thicket.update.steps import Fetch, GoBack, Install, Nothing, Now, Restart, Rollout

NAMES = [name_of(index) for index in range(10)]
OFFER = an_offer(plan(canaries=1, waves=(30, 100)))
CANARY, SECOND, THIRD, *REST = (
    name for wave in row(OFFER.identifier, OFFER.plan, frozenset(NAMES)) for name in wave
)
NOW = 100_000.0


def entry(
    name: str,
    state: State,
    done: int = 0,
    *,
    offer: Offer = OFFER,
    why: str = "",
    order: int = 0,
    ago: float = 10.0,
) -> Entry:
    record = Progress(name, offer.identifier, 1, state, done, why, 0, order)
    return Entry(record, NOW - ago, NOW - ago)


def in_stage(stage: Stage, one: Entry) -> Entry:
    return one._replace(record=one.record._replace(stage=stage))


def well(*names: str, ago: float = 10.0) -> list[Entry]:
    return [entry(name, State.DONE, WHOLE, ago=ago) for name in names]


def facts(
    name: str,
    *entries: Entry,
    offer: Offer = OFFER,
    silent: dict[str, float] | None = None,
    since: float = 1000.0,
    order: tuple[str, int] | None = None,
    **more: object,
) -> Facts:
    members = dict.fromkeys(NAMES, 0.0) | (silent or {})
    found = Facts(
        offer,
        Node(name, "thicket-standin", OLD, epoch=1),
        {one.record.node: one for one in entries},
        members,
        NOW,
        NOW - since,
        ready=True,
        order=None if order is None else Order(bytes(20), order[1], b"", order[0]),
    )
    return found._replace(**more)  # type: ignore[arg-type]


# -- whose turn it is


def test_the_canary_begins_and_the_others_wait_for_it() -> None:
    assert decide(facts(CANARY)) == Decision(Verdict.BEGIN)
    waits = decide(facts(SECOND, entry(CANARY, State.TRIAL)))
    assert waits == Decision(Verdict.WAIT, f"waiting for canary {CANARY} (trial)")
    soon = decide(facts(SECOND, entry(CANARY, State.DONE, 999)))
    assert soon.why == f"waiting for canary {CANARY} (done, to be well for longer)"
    assert decide(facts(SECOND, *well(CANARY))).verdict is Verdict.BEGIN
    last = decide(facts(REST[0], *well(CANARY), entry(SECOND, State.INSTALLING)))
    assert last.why == f"waiting for {SECOND} (installing), {THIRD} (says nothing of it)"
    assert decide(facts(REST[0], *well(CANARY, SECOND, THIRD))).verdict is Verdict.BEGIN


def test_a_node_fetches_and_listens_first() -> None:
    assert decide(facts(CANARY, ready=False)).verdict is Verdict.FETCH
    assert decide(facts(CANARY, since=SETTLE - 1)).verdict is Verdict.LISTEN


def test_not_more_at_once_than_the_wave_has_nodes() -> None:
    others = [entry(name, State.INSTALLING) for name in REST[:2]]
    waits = decide(facts(SECOND, *well(CANARY), *others))
    assert waits.verdict is Verdict.WAIT
    assert waits.why.startswith("waiting for ")
    assert decide(facts(SECOND, *well(CANARY), others[0])).verdict is Verdict.BEGIN


def test_who_does_not_move_is_passed_over_after_its_wave_has_been_open_for_long() -> None:
    ready = [entry(name, State.WAITING, ago=50_000) for name in REST]
    off = {SECOND: 40_000.0}
    early = [*well(CANARY, ago=PATIENCE - 60), *well(THIRD, ago=100), *ready]
    waits = decide(facts(REST[0], *early, silent=off, since=50_000))
    assert waits.why == f"waiting for {SECOND} (not heard of for 11 h)"
    late = [*well(CANARY, ago=PATIENCE + 60), *well(THIRD, ago=100), *ready]
    assert decide(facts(REST[0], *late, silent=off, since=50_000)).verdict is Verdict.BEGIN
    # The time in which nothing went on, as with a pause or a closed window, does not count.
    assert decide(facts(REST[0], *late, silent=off, since=300)).verdict is Verdict.WAIT


def test_a_wave_that_opens_late_opens_the_next_one_later_still() -> None:
    """Nodes that waited for their turn all day are not passed over at once."""
    offer = an_offer(plan(canaries=1, waves=(20, 40, 100)))
    waves = row(offer.identifier, offer.plan, frozenset(NAMES))
    first, second, last = waves[0][0], waves[1][0], waves[3][0]
    known = [entry(first, State.DONE, WHOLE, offer=offer, ago=PATIENCE + 60)]
    known += [entry(n, State.WAITING, offer=offer, ago=50_000) for n in NAMES if n not in waves[0]]
    waits = facts(last, *known, offer=offer, silent={second: 50_000.0}, since=50_000)
    opened = look(waits).opened
    assert opened[2] == 60.0
    assert opened[3] is None
    assert decide(waits).verdict is Verdict.WAIT


def test_a_late_node_begins_at_once_when_the_rollout_is_complete() -> None:
    off = {SECOND: 40_000.0, THIRD: 40_000.0}
    done = well(CANARY, *REST[:-1])
    assert decide(facts(REST[-1], *done, silent=off)).verdict is Verdict.BEGIN
    newcomer = name_of(77)
    assert decide(facts(newcomer, *done, silent=off)).verdict is Verdict.BEGIN


# -- failures


def test_failures_stop_it() -> None:
    failed = entry(CANARY, State.FAILED, why="its kernel failed")
    stopped = decide(facts(SECOND, failed))
    assert stopped == Decision(Verdict.WAIT, f"stopped: canary {CANARY} failed: its kernel failed")
    resumed = decide(facts(SECOND, failed, order=("resume", 5)))
    assert resumed.why == f"waiting for canary {CANARY} (says nothing of it)"
    again = failed._replace(record=failed.record._replace(order=5))
    assert decide(facts(SECOND, again, order=("resume", 5))) == stopped
    lost = entry(CANARY, State.RESTARTING, ago=LOST + 1)
    waits = decide(facts(SECOND, lost, silent={CANARY: LOST + 1}))
    assert waits.why == f"stopped: canary {CANARY} has begun and was not heard of again"
    assert decide(facts(SECOND, lost)).why == f"waiting for canary {CANARY} (restarting)"


def test_no_canary_got_well() -> None:
    offer = an_offer(plan(canaries=(host(CANARY), host(SECOND)), failures=5))
    failed = [entry(name, State.FAILED, why="no peer", offer=offer) for name in (CANARY, SECOND)]
    refused = entry(SECOND, State.REFUSED, why="no room", offer=offer)
    words = f"stopped: no canary got well; {CANARY}: no peer"
    assert decide(facts(THIRD, *failed, offer=offer)).why == words
    assert decide(facts(THIRD, failed[0], refused, offer=offer)).why == words


def test_who_refuses_is_no_canary() -> None:
    refused = entry(CANARY, State.REFUSED, why="it is for thicket-x86_64")
    assert decide(facts(SECOND, refused)).verdict is Verdict.BEGIN


def test_where_all_refuse_nobody_is_waited_for_and_that_is_told() -> None:
    """The next in the row would be the canary, and the next, until none is left."""
    words = "its security epoch is 1, and here 2 is in force"
    refused = [entry(name, State.REFUSED, why=words) for name in NAMES]
    assert look(facts(THIRD, *refused)).stopped == (
        f"stopped: every node refuses it; {min(NAMES)}: {words}"
    )
    assert look(facts(THIRD, *refused[1:])).stopped == ""


# -- what is refused and ordered


def test_what_does_not_fit() -> None:
    node = Node(CANARY, "thicket-standin", OLD, epoch=2)
    low = decide(facts(CANARY, node=node))
    assert low == Decision(Verdict.REFUSE, "its security epoch is 1, and here 2 is in force")
    newer = node._replace(epoch=1, made=OFFER.number + 1)
    assert decide(facts(CANARY, node=newer)) == Decision(
        Verdict.REFUSE, f"it was offered before the version that runs here ({OLD}) was made"
    )
    made = newer._replace(made=OFFER.number)
    assert decide(facts(CANARY, node=made)).verdict is not Verdict.REFUSE
    running = newer._replace(version=NEW)
    assert decide(facts(CANARY, node=running)).verdict is Verdict.DONE, "it is what runs"
    other = decide(facts(CANARY, node=node._replace(compatible="thicket-rpi64", epoch=1)))
    assert other.why == "it is for thicket-standin, and this node is thicket-rpi64"
    assert decide(facts(CANARY, rejected="no peer")) == Decision(Verdict.REFUSE, "no peer")


def test_the_version_that_runs_is_done_at_once() -> None:
    node = Node(CANARY, "thicket-standin", NEW, epoch=2)
    assert decide(facts(CANARY, node=node)).verdict is Verdict.DONE
    assert decide(facts(CANARY, node=node._replace(bundle=BUNDLE))).verdict is Verdict.DONE
    other = node._replace(bundle="0" * 64, epoch=1)
    assert decide(facts(CANARY, node=other)).verdict is Verdict.BEGIN


def test_orders() -> None:
    node = Node(CANARY, "thicket-standin", NEW)
    assert decide(facts(CANARY, order=("pause", 5))).verdict is Verdict.PAUSE
    assert decide(facts(CANARY, order=("abort", 5))).verdict is Verdict.ABORT
    assert decide(facts(CANARY, order=("resume", 5))).verdict is Verdict.BEGIN
    assert decide(facts(CANARY, order=("back", 5))).verdict is Verdict.ABORT
    assert decide(facts(CANARY, order=("back", 5), node=node)).verdict is Verdict.BACK
    assert decide(facts(CANARY, order=("back", 5), node=node, obeyed=5)).verdict is Verdict.DONE
    assert decide(facts(CANARY, order=("pause", 5), node=node)).verdict is Verdict.DONE


@pytest.mark.parametrize(
    ("window", "minute", "opened"),
    [
        ((60, 120), 60, True),
        ((60, 120), 120, False),
        ((1380, 240), 0, True),
        ((1380, 240), 1379, False),
        ((1380, 240), 240, False),
        ((60, 120), None, False),
    ],
)
def test_the_window(window: tuple[int, int], minute: int | None, opened: bool) -> None:
    offer = an_offer(plan(window=window))
    found = decide(
        facts(row(offer.identifier, offer.plan, frozenset(NAMES))[0][0], offer=offer, minute=minute)
    )
    assert (found.verdict is Verdict.BEGIN) is opened
    if minute is None:
        assert found.why.endswith("and this node does not know the time")


@given(st.sets(st.integers(0, 400), min_size=1, max_size=60), st.data())
def test_the_waves_are_a_partition_of_the_nodes(indexes: set[int], data: st.DataObject) -> None:
    names = frozenset(map(name_of, indexes))
    percents = data.draw(st.lists(st.integers(1, 99), max_size=5, unique=True).map(sorted))
    named = data.draw(st.lists(st.sampled_from(sorted(names)), max_size=4, unique=True))
    canaries = tuple(map(host, named)) if named else data.draw(st.integers(0, 80))
    waves = row(bytes(32), plan(canaries, waves=(*percents, 100)), names)
    assert sorted(name for wave in waves for name in wave) == sorted(names)
    assert len(waves[0]) == (len(named) if named else min(int(str(canaries)), len(names)))
    assert waves == row(bytes(32), plan(canaries, waves=(*percents, 100)), frozenset(sorted(names)))


STATES = st.tuples(
    st.integers(0, 15).map(State),
    st.integers(0, WHOLE),
    st.floats(0, 90_000),
    st.integers(0, 9),
    st.integers(0, 15).map(Stage),
)
"""Of newer nodes as well."""


@given(
    states=st.lists(st.none() | STATES, min_size=10, max_size=10),
    silent=st.lists(st.floats(0, 400_000), min_size=10, max_size=10),
    since=st.floats(0, 90_000),
    order=st.none()
    | st.tuples(st.sampled_from(["pause", "resume", "abort", "back"]), st.integers(1, 9)),
    canaries=st.integers(0, 2) | st.just((host(CANARY), "n-000000000001")),
    failures=st.integers(0, 3),
)
def test_whatever_the_others_say_there_is_an_answer_with_words(
    *,
    states: list[tuple[State, int, float, int, Stage] | None],
    silent: list[float],
    since: float,
    order: tuple[str, int] | None,
    canaries: int | tuple[str, ...],
    failures: int,
) -> None:
    offer = an_offer(plan(canaries, failures=failures))
    entries = [
        in_stage(
            state[4],
            entry(name, state[0], state[1], offer=offer, ago=state[2], order=state[3], why="so"),
        )
        for name, state in zip(NAMES, states, strict=True)
        if state is not None
    ]
    seen = facts(
        NAMES[0],
        *entries,
        offer=offer,
        silent=dict(zip(NAMES, silent, strict=True)),
        since=since,
        order=order,
    )
    found = decide(seen)
    assert found.why or found.verdict in (Verdict.BEGIN, Verdict.DONE)
    lines = show.lines(seen)
    sent = json.loads(json.dumps(show.document(seen)))["nodes"]
    assert [show.Line(**one) for one in sent] == lines
    assert all(line.percent is None or 0 <= line.percent <= 100 for line in lines)
    assert show.headline(seen, lines)
    assert table(show.HEADS, show.rows(lines))
    for one in entries:
        told = mine(seen, Here(one.record))
        assert told.state == one.record.called
        assert told.words
        assert told.remedy or one.record.well or one.record.state > max(State)
    if order is not None:
        behind = [one for one in pending(seen) if one in seen.records]
        assert all(seen.records[name].record.order < order[1] for name in behind)


# -- steps


def now(**more: object) -> Now:
    seen = facts(CANARY)
    node = Node(CANARY, "thicket-standin", OLD, epoch=1)
    return Now(node, "A", OFFER, None, seen.records, seen.members)._replace(**more)  # type: ignore[arg-type]


def test_the_way_of_a_canary() -> None:
    rollout = Rollout(Own(CANARY, 1), Journal())
    told = []
    step = rollout.step(0.0, now())
    assert step.action == Fetch(OFFER)
    told.append(step.tell)
    told.append(rollout.step(5.0, now(fetched=400)).tell)
    told.append(rollout.step(10.0, now(ready=True)).tell)
    step = rollout.step(SETTLE, now(ready=True))
    told.append(step.tell)
    assert step.action == Install(OFFER)
    assert step.tell is not None
    assert step.tell.called == "installing", "what older nodes know is told before any stage"
    assert step.journal is not None
    assert (step.journal.phase, step.journal.slot) == (Phase.BEGUN, "B")
    rollout.progress(Work(done=50, total=100))
    assert isinstance(rollout.step(90.0, now(ready=True)).action, Nothing)
    rollout.follow(rollout.journal.armed("0b" * 32))
    step = rollout.step(100.0, now(ready=True))
    told.append(step.tell)
    assert step.action == Restart("B")
    # the restart
    record = BootRecord(trial=Slot.B, phase=boot_record.Phase.RUNS)
    kept = journals.unpack(journals.pack(rollout.journal))
    went_on = journals.after_restart(kept, Start(Slot.B, record, "0b" * 32))
    rollout = Rollout(Own(CANARY, 2), went_on)
    runs = now(node=Node(CANARY, "thicket-standin", NEW), slot="B")
    told.append(rollout.step(0.0, runs).tell)
    rollout.follow(rollout.journal.kept())
    told.append(rollout.step(10.0, runs).tell)
    assert rollout.step(80.0, runs._replace(healthy=False)).tell is not None
    told.append(rollout.step(100.0, runs).tell)
    told.append(rollout.step(100.0 + OFFER.plan.well, runs).tell)
    states = [(one.state, one.done) for one in told if one is not None]
    assert states == [
        (State.OFFERED, 0),
        (State.FETCHING, 400),
        (State.READY, 0),
        (State.INSTALLING, 0),
        (State.RESTARTING, 0),
        (State.TRIAL, 0),
        (State.DONE, 0),
        (State.DONE, 0),
        (State.DONE, WHOLE),
    ]
    again = Rollout(Own(CANARY, 3), rollout.journal).step(0.0, runs)
    assert again.tell is not None
    assert again.tell.well


def test_an_installation_that_fails() -> None:
    rollout = Rollout(Own(CANARY, 1), Journal())
    rollout.step(0.0, now(ready=True))
    rollout.step(SETTLE, now(ready=True))
    rollout.not_installed("the card is full", None)
    step = rollout.step(SETTLE + 1, now(ready=True))
    assert step.tell is not None
    assert step.tell.state is State.FAILED
    assert step.tell.why == "it could not be installed: the card is full"


def test_trouble_with_the_bundle() -> None:
    rollout = Rollout(Own(CANARY, 1), Journal())
    step = rollout.step(0.0, now(trouble="no room on /data"))
    assert step.tell is not None
    assert (step.tell.state, step.tell.why) == (State.REFUSED, "no room on /data")
    assert step.action == Fetch(OFFER)
    step = rollout.step(1.0, now(fetched=400, fault="/data is full"))
    assert step.tell is not None
    assert (step.tell.called, step.tell.done, step.tell.why) == ("fetching", 400, "/data is full")
    assert step.action == Fetch(OFFER), "it is tried again"


def test_what_waits_or_was_told_to_wait_keeps_what_it_has() -> None:
    failed = {REST[0]: entry(REST[0], State.FAILED, why="no peer")}
    pause = Order(bytes(20), 5, b"", "pause")
    for ready, fetched, here in (
        (False, 0, 1),
        (False, 400, 300),
        (False, 1000, 750),
        (True, 0, 1000),
    ):
        rollout = Rollout(Own(CANARY, 1), Journal())
        step = rollout.step(0.0, now(records=failed, fetched=fetched, ready=ready))
        assert step.tell is not None
        assert (step.tell.state, step.tell.done) == (State.WAITING, here)
        step = rollout.step(1.0, now(order=pause, fetched=fetched, ready=ready))
        assert step.tell is not None
        assert (step.tell.state, step.tell.done) == (State.PAUSED, here)
        assert show.percent_of(step.tell) == 40 * here // 1000


def test_what_older_nodes_do_not_tell() -> None:
    """They say 0 while they wait, and mostly have the bundle then. Of one that was told to wait
    nothing is known."""
    assert show.percent_of(entry(CANARY, State.WAITING).record) == 40
    assert show.percent_of(entry(CANARY, State.PAUSED).record) is None


def test_another_offer_waits_for_what_has_begun() -> None:
    rollout = Rollout(Own(CANARY, 1), Journal())
    rollout.step(0.0, now(ready=True))
    rollout.step(SETTLE, now(ready=True))
    bundle = OFFER.bundle._replace(version="0.3.0", sha256="03" * 32)
    newer = OFFER._replace(number=OFFER.number + 1, bundle=bundle)
    step = rollout.step(SETTLE + 1, now(offer=newer))
    assert step.tell is not None
    assert (step.tell.state, step.tell.why) == (State.WAITING, f"{NEW} first")


def test_going_back_by_order_and_a_slot_that_does_not_work() -> None:
    done = Journal(OFFER.identifier, BUNDLE, NEW, Phase.DONE, "B", well=True)
    back = Order(bytes(20), 5, b"", "back")
    runs = now(node=Node(CANARY, "thicket-standin", NEW), slot="B", order=back)
    rollout = Rollout(Own(CANARY, 1), done)
    step = rollout.step(0.0, runs)
    assert step.action == GoBack("A")
    assert step.journal is not None
    assert step.journal.phase is Phase.LEAVING
    bad = BootRecord().marked(Slot.A, boot_record.State.BAD, Why.PANIC)
    stays = journals.after_restart(rollout.journal, Start(Slot.B, bad))
    rollout = Rollout(Own(CANARY, 2), stays)
    step = rollout.step(0.0, runs)
    assert isinstance(step.action, Nothing)
    assert step.tell is not None
    assert step.tell.why == "slot A, which it was to go back to, did not work: its kernel failed"
    rollout = Rollout(Own(CANARY, 3), done)
    rollout.step(0.0, runs)
    rollout.not_left("the other slot is empty")
    step = rollout.step(1.0, runs)
    assert step.tell is not None
    assert step.tell.why == "it cannot go back: the other slot is empty"


# -- the journal


ARMED = Journal(OFFER.identifier, BUNDLE, NEW, Phase.ARMED, "B", root="0b" * 32)


@pytest.mark.parametrize(
    ("why", "start", "expected"),
    [
        (Why.PANIC, {"kernel": "VFS: no root"}, "its kernel failed: VFS: no root"),
        (Why.OVERDUE, {"trial": "there is no peer"}, "it was not well in time: there is no peer"),
        (Why.SILENT, {}, "it was restarted or lost its power before it was well"),
        (
            Why.WATCHDOG,
            {"trial": "the application x does not run", "kernel": "rcu: stall"},
            "the hardware watchdog restarted it, it had stood still: the application x does not "
            "run",
        ),
    ],
    ids=lambda one: one.name if isinstance(one, Why) else "",
)
def test_why_it_went_back(why: Why, start: dict[str, str], expected: str) -> None:
    record = BootRecord().marked(Slot.B, boot_record.State.BAD, why)
    went = journals.after_restart(
        ARMED, Start(Slot.A, record, "0a" * 32, **start, lines=("x" * 1000,) * 50)
    )
    assert went.phase is Phase.FAILED
    assert went.why == expected
    assert len(went.account) == journals.MOST_LINES
    assert went.account[0] == boot_record.WORDS[why]
    assert went.rejection(BUNDLE, 0) == expected
    assert went.rejection(BUNDLE, 1) == ""
    assert went.rejection("00" * 32, 0) == ""
    assert journals.unpack(journals.pack(went)) == went
    assert journals.after_restart(went, Start(Slot.A, record)) == went


def test_the_last_words_of_a_kernel_are_told_once() -> None:
    record = BootRecord().marked(Slot.B, boot_record.State.BAD, Why.PANIC)
    start = Start(Slot.A, record, trial="VFS: no root", kernel="VFS: no root")
    went = journals.after_restart(ARMED, start)
    assert went.account == ("its kernel failed", "kernel: VFS: no root")


def test_the_words_of_a_failure_are_short() -> None:
    record = BootRecord().marked(Slot.B, boot_record.State.BAD, Why.UNWELL)
    went = journals.after_restart(ARMED, Start(Slot.A, record, trial="no " * 1000))
    assert len(went.why.encode()) <= MOST_WORDS
    assert went.why == short(went.why)


def test_an_installation_that_is_cut_off_begins_anew_a_few_times() -> None:
    journal = ARMED._replace(phase=Phase.BEGUN)
    record = boot_record.write_over(BootRecord(), Slot.B)
    for number in range(1, MOST_TRIES):
        journal = journals.after_restart(journal._replace(phase=Phase.BEGUN), Start(Slot.A, record))
        assert (journal.phase, journal.tries) == (Phase.NONE, number)
    journal = journals.after_restart(journal._replace(phase=Phase.BEGUN), Start(Slot.A, record))
    assert journal.phase is Phase.FAILED


def test_a_card_that_was_written_anew_remembers_no_update() -> None:
    went = journals.after_restart(ARMED, Start(Slot.B, BootRecord(), "0c" * 32))
    assert went.phase is Phase.NONE


def test_a_version_that_was_kept_and_fails_later() -> None:
    done = ARMED._replace(phase=Phase.DONE, well=True)
    record = BootRecord().marked(Slot.B, boot_record.State.BAD, Why.FAILED_STARTS)
    went = journals.after_restart(done, Start(Slot.A, record))
    assert (went.phase, went.why) == (Phase.FAILED, boot_record.WORDS[Why.FAILED_STARTS])


@given(
    phase=st.sampled_from(Phase),
    slot=st.sampled_from(["A", "B", ""]),
    running=st.sampled_from([Slot.A, Slot.B]),
    trial=st.sampled_from(Slot),
    states=st.tuples(st.sampled_from(boot_record.State), st.sampled_from(boot_record.State)),
    why=st.sampled_from(Why),
)
def test_after_any_start_there_is_a_way_on(
    *,
    phase: Phase,
    slot: str,
    running: Slot,
    trial: Slot,
    states: tuple[boot_record.State, boot_record.State],
    why: Why,
) -> None:
    record = BootRecord(trial=trial, state_a=states[0], state_b=states[1], why_a=why, why_b=why)
    went = journals.after_restart(ARMED._replace(phase=phase, slot=slot), Start(running, record))
    again = journals.after_restart(went, Start(running, record))
    if phase not in (Phase.BEGUN, Phase.LEAVING):
        assert again == went, "what is found out twice is the same"
    order = Order(bytes(20), 5, b"", "back") if phase is Phase.LEAVING else None
    step = Rollout(Own(CANARY, 1), went).step(0.0, now(slot=running.name, order=order))
    assert step.tell is not None


@given(st.binary(max_size=200) | st.just(b"[" * 5000))
def test_a_damaged_journal_says_that_there_was_no_update(data: bytes) -> None:
    assert journals.unpack(data) == Journal()


@given(st.data())
def test_a_changed_journal_is_read_or_not(data: st.DataObject) -> None:
    members = json.loads(journals.pack(ARMED.failed("why", ("line",), 3)))
    name = data.draw(st.sampled_from(sorted(members)))
    members[name] = data.draw(
        st.none() | st.integers() | st.text() | st.booleans() | st.lists(st.integers() | st.text())
    )
    found = journals.unpack(json.dumps(members).encode())
    assert journals.unpack(journals.pack(found)) == found


def test_the_file(tmp_path: Path) -> None:
    assert journals.load(str(tmp_path)) == Journal()
    journals.keep(str(tmp_path), ARMED)
    assert journals.load(str(tmp_path)) == ARMED


def test_few_rejections_are_remembered() -> None:
    journal = Journal()
    for number in range(20):
        journal = journal._replace(bundle=f"{number:064x}").failed("why", (), number)
    assert len(journal.rejected) == MOST_REJECTED
    assert journal.rejected[-1] == Rejected(f"{19:064x}", "why", 19)
    assert len(journals.pack(journal)) < journals.MOST_BYTES


# -- for people


def test_the_table_for_people() -> None:
    seen = facts(
        SECOND,
        *well(CANARY),
        entry(SECOND, State.INSTALLING, 500),
        entry(THIRD, State.FETCHING, 500),
        entry(REST[0], State.FAILED, why="no peer"),
        silent={REST[1]: 7300.0},
    )
    found = show.lines(seen)
    assert [line.state for line in found[:2]] == ["failed", "silent"]
    assert found[-1].node == CANARY
    assert found[-1].percent == 100
    text = table(show.HEADS, show.rows(found))
    lines = text.splitlines()
    assert lines[0].split() == show.HEADS
    assert lines[1].split() == [REST[0], "2", "failed", "-", "10", "s", "now", "no", "peer"]
    assert [line.split()[2:5] for line in lines if "[#####     ]  57 %" in line] == [
        ["installing", "50", "%"]
    ]
    assert "fetching 50 %    [#         ]  15 %" in text
    assert f"version {NEW}: 1 of 10 nodes have it, 1 failed" in show.headline(seen, found)
    document = show.document(seen)
    assert document["offer"]["version"] == NEW
    assert document["stopped"] == f"stopped: {REST[0]} failed: no peer"


# -- the configuration

CONTROL = UpdateSection.keys()["control"]


def test_who_may_give_orders() -> None:
    both = CONTROL.check(["n-ffffffffffff", "n-6f44e3c6b802", "n-6f44e3c6b802"])
    assert both == ("n-6f44e3c6b802", "n-ffffffffffff")
    assert CONTROL.from_text("n-6f44e3c6b802, n-ffffffffffff") == list(both)
    assert UpdateSection().control == ()
    for wrong in (
        "n-6f44e3c6b802",
        ["n-6F44e3c6b802"],
        ["thicket@n-6f44e3c6b802"],
        [1],
        ["n-1"] * 20,
    ):
        with pytest.raises(ValueError, match="a list of host names of nodes"):
            CONTROL.check(wrong)
