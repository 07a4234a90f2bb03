# SPDX-License-Identifier: Apache-2.0
"""What runs on trial is not done, however it came to run: by the rollout or by hand."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)
from rollout_fleet import LATE, NEW, OLD, TICK, Fleet, FleetNode, an_offer, name_of, plan

from thicket.applications.app_state import MOST_TRIALS, NOTHING
from thicket.applications.installed import Current
from thicket.daemon.app_taker import went_on
from thicket.device import boot_record
from thicket.device.boot_record import BootRecord, Slot, Why
from thicket.update import image_taker
from thicket.update import journal as journals
from thicket.update.journal import Journal, Phase
from thicket.update.offer import Offer, Order, Target
from thicket.update.progress import Own, Progress, State, Table
from thicket.update.rollout import SETTLE, Facts, Node, Trial, Verdict, decide, host
from thicket.update.steps import CallOff, Fetch, GoBack, Install, Nothing, Now, Restart, Rollout

HOUR = 3600.0
OTHER = "0.1.5"


# -- images


class Two:
    """A canary, and a node of the wave behind it, which hears all that the canary tells.

    :ivar told: what the canary has told of what is offered, each state once.
    """

    def __init__(self) -> None:
        self.fleet = Fleet(2)
        self.canary, self.second = self.fleet.nodes
        self.plan = plan(canaries=(host(self.canary.name),), well=120, waves=(100,))
        self.fleet.check = self.on_begin
        self.told: list[State] = []
        self.number = 1_000_000

    def on_begin(self, node: FleetNode) -> None:
        """The second node begins once the canary was well."""
        if node is self.second:
            assert self.canary.ever_well, "the canary was never well"

    def offer(self) -> Offer:
        self.number += 10
        return self.fleet.offer(an_offer(self.plan, self.number), self.fleet.nodes)

    def order(self, word: str) -> None:
        self.number += 1
        self.fleet.tell(word, self.number, self.fleet.nodes)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let time go by, and look at what the canary tells."""

        def look() -> bool:
            record = self.record
            if record is not None and self.told[-1:] != [record.state]:
                self.told.append(record.state)
            return until()

        self.fleet.run(seconds, look)
        look()

    @property
    def record(self) -> Progress | None:
        """What the canary tells of the offer in force."""
        told, offer = self.canary.own.newest, self.canary.disk.offer
        return told if told and offer and told.offer == offer.identifier else None

    @property
    def state(self) -> State | None:
        return None if self.record is None else self.record.state

    @property
    def phase(self) -> Phase:
        return self.canary.rollout.journal.phase

    def by_hand(self, version: str = NEW) -> None:
        """The canary is updated by hand, up to the beginning of the trial."""
        assert self.canary.install(version)
        self.canary.reboot()
        self.run(HOUR, lambda: self.canary.up and self.canary.version == version)
        assert self.canary.node.trial is Trial.GOES_ON

    def failed(self, why: str) -> None:
        """The canary tells why it failed, nobody else begins, and nobody tries it again."""
        self.run(2 * HOUR)
        assert self.state is State.FAILED, self.told
        assert self.record is not None
        assert self.record.why == why
        assert State.DONE not in self.told
        assert self.second.begun == 0
        action = self.second.last.action if self.second.last is not None else None
        assert isinstance(action, Nothing)
        assert action.why == f"stopped: canary {self.canary.name} failed: {why}"

    def well(self) -> None:
        """All nodes get the version."""
        self.run(2 * HOUR, self.fleet.all_well)
        assert self.fleet.all_well(), self.told


@pytest.fixture
def two() -> Two:
    return Two()


def test_an_image_on_trial_when_it_is_offered_is_on_trial(two: Two) -> None:
    two.by_hand()
    two.offer()
    two.well()
    assert two.told == [State.TRIAL, State.DONE]
    assert (two.canary.begun, two.second.begun) == (0, 1)


def test_an_image_that_is_installed_by_hand_while_it_is_offered(two: Two) -> None:
    two.offer()
    two.order("pause")
    two.run(10 * TICK)
    two.by_hand()
    two.run(HOUR)
    two.order("resume")
    two.well()
    assert two.told == [State.PAUSED, State.TRIAL, State.DONE]
    assert two.canary.begun == 0


@pytest.mark.parametrize("offered", ["before", "during"])
def test_an_image_on_trial_by_hand_that_goes_back_has_failed(two: Two, offered: str) -> None:
    two.fleet.bad = lambda _: Why.PANIC
    if offered == "before":
        two.offer()
    two.by_hand()
    if offered == "during":
        two.offer()
    two.failed("its kernel failed: no other node is in the cluster")
    assert two.canary.begun == 0
    two.fleet.bad = lambda _: None
    two.order("resume")
    two.well()
    assert two.canary.begun == 1


def test_a_trial_by_hand_in_which_the_power_is_cut_has_failed(two: Two) -> None:
    two.by_hand()
    two.offer()
    two.run(2 * TICK)
    assert two.state is State.TRIAL
    two.fleet.cut(two.canary)
    two.fleet.power(two.canary)
    words = "it was restarted or lost its power before it was well"
    two.failed(f"{words}: no other node is in the cluster")


def test_the_daemon_starts_anew_in_the_middle_of_a_trial_by_hand(two: Two) -> None:
    two.by_hand()
    two.offer()
    two.run(2 * TICK)
    record, root = two.canary.disk.record, "0b" * 32
    for journal in (Journal(), two.canary.rollout.journal):
        after = journals.after_restart(journal, journals.Start(Slot.B, record, root))
        assert after.phase is journal.phase
    assert two.phase is Phase.TRIAL


def test_a_card_that_was_flashed_with_what_is_offered_is_on_no_trial(two: Two) -> None:
    two.offer()
    two.run(2 * TICK)
    two.canary.flash(NEW)
    two.fleet.meet()
    two.well()
    assert two.told[-1] is State.DONE
    assert State.TRIAL not in two.told
    assert two.canary.begun == 0


@pytest.mark.parametrize("restart", [True, False])
def test_back_by_hand_calls_a_trial_off(two: Two, *, restart: bool) -> None:
    two.offer()
    two.run(HOUR, lambda: two.state is State.TRIAL)
    assert two.canary.back()
    if restart:
        two.canary.reboot()
    else:
        two.run(2 * TICK)
        assert two.state is State.FAILED, "it still runs, and is not kept"
        assert not two.canary.install(OTHER), "that would write to what the firmware starts"
    two.failed("its trial was called off, by hand")
    assert (two.canary.version, two.canary.node.trial) == (OLD, Trial.NONE)
    assert two.canary.disk.record.state_b is not boot_record.State.GOOD
    two.order("resume")
    two.well()


def test_a_slot_on_trial_that_is_marked_as_bad(two: Two) -> None:
    two.by_hand()
    two.offer()
    two.order("resume")
    two.run(2 * TICK)
    two.canary.mark_bad()
    two.failed("its trial was called off, by hand")
    assert two.canary.version == OLD


def test_back_by_hand_after_the_trial(two: Two) -> None:
    two.offer()
    two.run(HOUR, lambda: two.state is State.DONE)
    assert two.canary.back()
    two.canary.reboot()
    two.run(4 * TICK)
    assert two.state is State.FAILED
    assert two.record is not None
    assert two.record.why == "slot A was started instead, by hand"
    # And once more in the other direction: on trial, kept, well.
    two.run(10 * TICK)
    assert two.canary.back()
    two.told.clear()
    two.canary.reboot()
    two.well()
    assert two.told == [State.FAILED, State.TRIAL, State.DONE]
    assert two.canary.rollout.journal.rejected == ()


def test_an_order_to_resume_that_comes_during_a_trial_is_none_to_try_again(two: Two) -> None:
    two.fleet.bad = lambda _: Why.UNWELL
    two.offer()
    two.run(HOUR, lambda: two.state is State.TRIAL)
    two.order("pause")
    two.order("resume")
    two.failed("it started and was not well: no other node is in the cluster")
    assert two.canary.begun == 1


@pytest.mark.parametrize("phase", [Phase.BEGUN, Phase.ARMED, Phase.TRIAL])
def test_what_has_begun_is_part_of_a_new_offer_of_the_same_bundle(two: Two, phase: Phase) -> None:
    first = two.offer()
    two.run(HOUR, lambda: two.phase is phase)
    two.told.clear()
    offer = two.offer()
    assert offer.identifier != first.identifier
    two.well()
    states = [State.INSTALLING, State.RESTARTING, State.TRIAL, State.DONE]
    assert two.told == states[-len(two.told) :]
    assert State.TRIAL in two.told
    assert two.canary.begun == 1
    assert two.canary.ever_well == {offer.identifier}


def test_a_new_offer_of_the_same_bundle_hears_of_its_failure(two: Two) -> None:
    two.offer()
    two.run(HOUR, lambda: two.phase is Phase.TRIAL)
    two.fleet.bad = lambda _: Why.UNWELL
    two.offer()
    two.failed("it started and was not well: no other node is in the cluster")


def test_another_version_on_trial_is_waited_for(two: Two) -> None:
    two.offer()
    two.order("pause")
    two.by_hand(OTHER)
    two.canary.ends = two.fleet.now + 10 * SETTLE
    two.order("resume")
    two.run(4 * SETTLE)
    assert two.record is not None
    assert (two.state, two.record.why) == (State.WAITING, f"{OTHER} is on trial here")
    assert two.canary.begun == 0
    two.well()
    assert State.FAILED not in two.told


def test_an_order_to_go_back_waits_for_the_end_of_a_trial_by_hand(two: Two) -> None:
    two.offer()
    two.order("pause")
    two.run(2 * TICK)
    two.by_hand()
    two.order("back")
    two.run(HOUR)
    assert two.told == [State.PAUSED, State.TRIAL, State.ABORTED]
    assert (two.canary.version, two.phase) == (OLD, Phase.LEFT)
    # Somebody puts it back in place by hand; the order was followed already.
    assert two.canary.back()
    two.canary.reboot()
    two.run(HOUR)
    assert two.told[3:] == [State.TRIAL, State.DONE]


def test_an_order_to_go_back_before_which_the_power_is_cut_is_followed(two: Two) -> None:
    two.offer()
    two.well()
    canary = two.canary
    two.order("back")
    canary.rollout.step(
        two.fleet.now,
        Now(canary.node, "B", canary.disk.offer, canary.order, canary.table.entries, {}),
    )
    canary.keep(canary.rollout.journal)
    assert two.phase is Phase.LEAVING
    two.fleet.cut(canary)
    two.fleet.power(canary)
    two.run(HOUR, lambda: two.phase is Phase.LEFT)
    assert (canary.version, two.phase) == (OLD, Phase.LEFT)


def test_going_back_that_somebody_calls_off(two: Two) -> None:
    two.offer()
    two.well()
    two.order("back")
    two.run(HOUR, lambda: two.canary.up and two.canary.version == OLD)
    assert two.canary.back()
    two.canary.reboot()
    two.run(HOUR)
    assert (two.canary.version, two.phase) == (NEW, Phase.DONE)
    assert two.told[-3:] == [State.ABORTED, State.TRIAL, State.DONE]


@pytest.mark.parametrize(("ticks", "phase"), [(1, Phase.BEGUN), (4, Phase.NONE)])
def test_what_nobody_offers_any_more_is_not_started(two: Two, ticks: int, phase: Phase) -> None:
    """Its signer is revoked, and the offer before is in force again soon, or some time later."""
    before = an_offer(plan(canaries=("n-000000000000",)), bundle="0b" * 32)
    two.offer()
    two.run(HOUR, lambda: two.phase is Phase.BEGUN)
    for node in two.fleet.nodes:
        node.disk.offer = None
    two.run(ticks * TICK)
    assert two.phase is phase
    two.fleet.offer(before, two.fleet.nodes)
    two.run(10 * TICK)
    assert two.phase is Phase.NONE
    two.canary.reboot()
    two.run(10 * TICK)
    assert (two.canary.version, two.canary.node.trial) == (OLD, Trial.NONE)


@pytest.mark.parametrize("ticks", [1, 4])
def test_an_offer_that_counts_again_is_taken(two: Two, ticks: int) -> None:
    """As one whose file the card has damaged, and which the neighbours still have."""
    offer = two.offer()
    two.run(HOUR, lambda: two.phase is Phase.BEGUN)
    two.canary.disk.offer = two.second.disk.offer = None
    two.run(ticks * TICK)
    two.fleet.offer(offer, two.fleet.nodes)
    two.well()


def test_a_trial_goes_to_its_end_when_its_offer_does_not_count_any_more(two: Two) -> None:
    two.offer()
    two.run(HOUR, lambda: two.phase is Phase.TRIAL)
    for node in two.fleet.nodes:
        node.disk.offer = None
    two.run(10 * TICK)
    assert (two.phase, two.canary.version) == (Phase.DONE, NEW)
    two.canary.keep(two.canary.rollout.journal.enter(Phase.LEAVING)._replace(slot="A"))
    two.canary.reboot()
    two.run(HOUR)
    assert (two.phase, two.canary.version) == (Phase.LEFT, OLD)


RUNS = BootRecord(named=Slot.A, trial=Slot.B, phase=boot_record.Phase.RUNS)
KEPT = boot_record.commit(RUNS, Slot.B)
AWAY = boot_record.arm(RUNS, Slot.A, Slot.B)


@pytest.mark.parametrize(
    ("record", "trial", "went"),
    [
        (RUNS, Trial.GOES_ON, None),
        (KEPT, Trial.NONE, Phase.DONE),
        (boot_record.arm(KEPT, Slot.A, Slot.B), Trial.NONE, Phase.DONE),
        (AWAY, Trial.CALLED_OFF, Phase.FAILED),
        (boot_record.leave(RUNS, Slot.B, Why.BY_HAND), Trial.CALLED_OFF, Phase.FAILED),
        (boot_record.late(RUNS, Slot.B), Trial.GOES_ON, None),
        (BootRecord(), Trial.NONE, Phase.DONE),
    ],
)
def test_whether_a_slot_is_on_trial(record: BootRecord, trial: Trial, went: Phase | None) -> None:
    assert image_taker.trial_of(record, Slot.B) is trial
    journal = Journal(bundle="ab", version=NEW, phase=Phase.TRIAL, slot="B")
    after = image_taker.went_on(journal, record, Slot.B)
    assert (after.phase if after else None) is went
    assert image_taker.went_on(journal._replace(slot="A"), record, Slot.B) is None
    assert boot_record.well(record, Slot.B).state_b == (
        record.state_b if trial is not Trial.NONE else boot_record.State.GOOD
    )


class AnyImage(RuleBasedStateMachine):
    """One canary on which anything is done by hand, and a node that waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.two = Two()
        self.two.offer()
        self.fleet, self.canary = self.two.fleet, self.two.canary
        self.broken = False
        self.fleet.bad = lambda node: Why.UNWELL if self.broken and node is self.canary else None

    @rule(ticks=st.integers(1, 12))
    def wait(self, ticks: int) -> None:
        self.two.run(ticks * TICK)

    @rule(version=st.sampled_from([NEW, OTHER]))
    def install(self, version: str) -> None:
        self.canary.install(version)

    @rule(version=st.sampled_from([NEW, OTHER]))
    def install_and_restart(self, version: str) -> None:
        if self.canary.install(version):
            self.canary.reboot()

    @rule()
    def back(self) -> None:
        self.canary.back()

    @rule()
    def back_and_restart(self) -> None:
        if self.canary.back():
            self.canary.reboot()

    @rule()
    def call_off(self) -> None:
        self.canary.call_off()

    @rule()
    def mark_bad(self) -> None:
        self.canary.mark_bad()

    @rule()
    def reboot(self) -> None:
        self.canary.reboot()

    @rule()
    def cut(self) -> None:
        self.fleet.cut(self.canary)
        self.fleet.power(self.canary)

    @rule(version=st.sampled_from([OLD, NEW]))
    def flash(self, version: str) -> None:
        self.canary.flash(version)
        self.fleet.meet()

    @rule(word=st.sampled_from(["pause", "resume", "abort", "back"]))
    def order(self, word: str) -> None:
        self.two.order(word)

    @rule()
    def offer(self) -> None:
        self.two.offer()

    @rule(broken=st.booleans())
    def spoil(self, *, broken: bool) -> None:
        self.broken = broken

    @invariant()
    def who_waits_says_why(self) -> None:
        step = self.canary.last
        if step is not None and isinstance(step.action, Nothing):
            assert step.action.why

    def teardown(self) -> None:
        self.broken = False
        self.two.run(2 * LATE)
        # What is under way has ended, whatever was done.
        assert self.two.phase not in (Phase.BEGUN, Phase.ARMED, Phase.TRIAL, Phase.LEAVING)
        assert self.canary.node.trial is Trial.NONE
        self.two.order("resume")
        self.two.well()
        assert {node.version for node in self.fleet.nodes} == {NEW}


TestAnyImage = AnyImage.TestCase
TestAnyImage.settings = settings(
    max_examples=30,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


# -- applications

ME, WATCHER = name_of(0), name_of(1)
STEP = 3.0
APP_PLAN = plan(canaries=(host(ME),), well=60, waves=(100,))
CONTENTS = ("one", "two")
NUMBER = 1_000_000


def digest_of(content: str) -> str:
    return sha256(content.encode()).hexdigest()


def of_app(content: str, number: int) -> Offer:
    target = Target("", content, 0, 1000, digest_of(content), "readings")
    return Offer(bytes(20), number, target, (), APP_PLAN)


class AppNode:
    """A node with one application, whose state and journal outlive a restart of the daemon.

    :ivar contents: what is in the files that are installed, by their names.
    :ivar installs: what the rollout has installed.
    :ivar kept_since: since when the version that runs is kept; None on trial.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.disk = journals.pack(Journal())
        self.state = NOTHING
        self.contents: dict[str, str] = {}
        self.offer: Offer | None = None
        self.order: Order | None = None
        self.installs: list[str] = []
        self.fetched = False
        self.starts = 0
        self.ends = self.begins = 0.0
        self.kept_since: float | None = None
        self.table = Table()
        self.start()

    def start(self) -> None:
        self.starts += 1
        self.own = Own(ME, self.starts)
        self.rollout = Rollout(self.own, journals.unpack(self.disk))
        self.writing: Offer | None = None
        self.state = self.state.tried()
        if self.state.trial >= MOST_TRIALS:
            self.leave(f"the daemon ended {MOST_TRIALS} times while it was tried")

    # -- what happens to the application

    def put(self, content: str) -> None:
        file = f"1.0-{digest_of(content)[:12]}.app"
        self.contents[file] = content
        self.state = self.state.without_rejected(file).installed(file)
        self.ends = self.now + 30.0

    def leave(self, why: str) -> None:
        self.state = self.state.rejecting(self.state.current, why)

    def judge(self) -> None:
        if self.state.trial:
            self.state = self.state.well()

    def back(self) -> None:
        if self.state.before:
            self.state = self.state.back()._replace(left="")
        else:
            self.remove()

    def remove(self) -> None:
        self.state = NOTHING

    # -- the daemon

    @property
    def runs(self) -> str:
        return self.contents[self.state.current] if self.state.current else ""

    @property
    def digest(self) -> str:
        return digest_of(self.runs) if self.runs else ""

    @property
    def told(self) -> Progress | None:
        """What it tells of the offer in force."""
        told = self.own.newest
        return told if told and self.offer and told.offer == self.offer.identifier else None

    def says(self, state: State, why: str = "") -> bool:
        """Whether it tells this of the offer in force."""
        told = self.told
        return told is not None and (told.state, told.why) == (state, why)

    @property
    def well(self) -> bool:
        """Whether it tells that it is well with the offer in force."""
        return self.told is not None and self.told.well

    def keep(self, journal: Journal) -> None:
        self.disk = journals.pack(journal)

    def step(self) -> None:
        self.now += STEP
        if self.state.trial and self.now >= self.ends:
            self.judge()
        if self.writing is not None and self.now >= self.begins + 3 * STEP:
            self.put(self.writing.bundle.version)
            self.writing = None
            self.keep(self.rollout.follow(self.rollout.journal.tried()))
        on_trial = self.state.trial > 0
        current = None
        if self.state is not NOTHING:
            current = Current(self.state.current, self.runs, on_trial, self.state.left)
        if self.writing is None:
            after = went_on(self.rollout.journal, self.digest, current)
            if after is not None:
                self.keep(self.rollout.follow(after))
        trial = Trial.GOES_ON if on_trial else Trial.NONE
        node = Node(ME, "", self.runs, self.digest, trial=trial)
        members = {ME: 0.0, WATCHER: 0.0}
        facts = Now(
            node, "A", self.offer, self.order, self.table.entries, members, ready=self.fetched
        )
        done = self.rollout.step(self.now, facts)
        if done.journal is not None:
            self.keep(done.journal)
        if done.tell is not None:
            self.table.take(done.tell, self.now)
        self.check(node)
        match done.action:
            case Fetch():
                self.fetched = True
            case Install(offer) if self.writing is None:
                self.installs.append(offer.bundle.version)
                self.writing, self.begins = offer, self.now
            case GoBack():
                self.back()
                self.keep(self.rollout.follow(self.rollout.journal.kept()))
            case Restart() | CallOff():
                raise AssertionError("nothing of an application is armed")

    def check(self, node: Node) -> None:
        """What is told is so, and the node that waits for this one does not begin too early."""
        running = self.offer is not None and self.digest == self.offer.bundle.sha256
        if not running or node.trial is not Trial.NONE:
            self.kept_since = None
        elif self.kept_since is None:
            self.kept_since = self.now
        told = self.told
        if told is not None and told.state is State.DONE:
            assert self.kept_since is not None, f"on trial: {told}"
        if running and node.trial is Trial.GOES_ON and self.writing is None:
            assert told is not None
            assert told.state is State.TRIAL or self.rollout.journal.phase is Phase.LEAVING, told
        if self.offer is None:
            return
        facts = Facts(
            self.offer,
            Node(WATCHER, "", "0"),
            self.table.entries,
            {ME: 0.0, WATCHER: 0.0},
            self.now,
            self.now - 2 * SETTLE,
            ready=True,
        )
        if decide(facts).verdict is Verdict.BEGIN:
            assert self.kept_since is not None
            assert self.now - self.kept_since >= APP_PLAN.well

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()


@pytest.fixture
def app() -> AppNode:
    made = AppNode()
    made.offer = of_app("one", NUMBER)
    return made


def test_an_application_on_trial_when_it_is_offered_is_on_trial(app: AppNode) -> None:
    app.put("one")
    app.step()
    assert app.says(State.TRIAL)
    app.run(20)
    assert app.says(State.DONE)
    app.run(30)
    assert app.well
    assert app.installs == []


def test_an_application_on_trial_by_hand_that_is_left_has_failed(app: AppNode) -> None:
    app.order = Order(bytes(20), 5, b"", "resume")
    app.put("one")
    app.step()
    app.leave("one: KeyError: 'port'")
    app.run(100)
    assert app.says(State.FAILED, "one: KeyError: 'port'")
    assert app.installs == [], "the order was given before"
    app.order = Order(bytes(20), 6, b"", "resume")
    app.run(100)
    assert app.well
    assert app.installs == ["one"]


@pytest.mark.parametrize(
    ("deed", "words"),
    [
        (AppNode.remove, "it was removed by hand"),
        (AppNode.back, "another version was put in its place by hand"),
        (lambda app: app.put("two"), "another version was put in its place by hand"),
    ],
)
def test_what_a_person_takes_away_stays_away(
    app: AppNode, deed: Callable[[AppNode], None], words: str
) -> None:
    app.put("two")
    app.run(20)
    app.run(100)
    assert app.installs == ["one"]
    app.order = Order(bytes(20), 5, b"", "resume")
    app.run(2)
    deed(app)
    app.run(100)
    assert app.says(State.FAILED, words)
    assert app.installs == ["one"], "the order was given before"


def test_the_same_file_once_more_by_hand_is_on_trial_again(app: AppNode) -> None:
    app.put("one")
    app.run(60)
    assert app.well
    app.put("one")
    app.step()
    assert app.says(State.TRIAL)
    app.start()
    app.step()
    assert app.says(State.TRIAL)
    app.run(40)
    assert app.well


def test_the_time_of_being_well_begins_anew_behind_a_trial(app: AppNode) -> None:
    app.put("one")
    app.run(20)
    assert app.says(State.DONE)
    app.put("one")
    app.run(18)
    assert app.says(State.DONE)
    assert not app.well
    app.run(20)
    assert app.well


def test_the_time_of_being_well_is_that_of_what_is_offered(app: AppNode) -> None:
    app.put("one")
    app.run(20)
    assert app.says(State.DONE)
    app.offer = None
    app.put("two")
    app.run(30)
    app.offer = of_app("two", NUMBER + 1)
    app.run(5)
    assert app.says(State.DONE)
    assert not app.well


def test_an_application_that_ends_the_daemon_on_trial_by_hand_has_failed(app: AppNode) -> None:
    app.put("one")
    for _ in range(MOST_TRIALS):
        app.step()
        app.start()
    app.step()
    assert app.says(State.FAILED, f"the daemon ended {MOST_TRIALS} times while it was tried")


class AnyApplication(RuleBasedStateMachine):
    """Anything is done with an application, by hand and by the rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.app = AppNode()
        self.number = NUMBER
        #: Contents that were left or taken away, with the newest order at that time.
        self.left: dict[str, int] = {}

    def step(self) -> None:
        """One step; what was left is not installed again without a new order."""
        app = self.app
        count = len(app.installs)
        app.step()
        for content in app.installs[count:]:
            left = self.left.pop(digest_of(content), None)
            order = app.order
            resumed = order is not None and order.order == "resume" and order.number
            assert left is None or (resumed and resumed > left), "nobody has said so"

    def deed(self, deed: Callable[[], None]) -> None:
        """Do something by which the application may be left."""
        journal, before = self.app.rollout.journal, self.app.digest
        deed()
        tracked = journal.phase in (Phase.TRIAL, Phase.DONE) and journal.bundle == before
        if tracked and self.app.digest != before:
            self.left[before] = self.number

    @rule(content=st.sampled_from(CONTENTS))
    def offer(self, content: str) -> None:
        self.number += 1
        self.app.offer, self.app.order = of_app(content, self.number), None
        self.app.fetched = False

    @rule()
    def revoke(self) -> None:
        self.app.offer = self.app.order = None

    @precondition(lambda self: self.app.offer is not None)
    @rule(word=st.sampled_from(["pause", "resume", "abort", "back"]))
    def order(self, word: str) -> None:
        self.number += 1
        self.app.order = Order(bytes(20), self.number, b"", word)
        self.step()

    @rule(steps=st.integers(1, 30))
    def wait(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    @rule(content=st.sampled_from(CONTENTS))
    def install(self, content: str) -> None:
        self.deed(lambda: self.app.put(content))

    @rule()
    def back(self) -> None:
        self.deed(self.app.back)

    @rule()
    def remove(self) -> None:
        self.deed(self.app.remove)

    @precondition(lambda self: self.app.state.trial > 0)
    @rule()
    def fail(self) -> None:
        self.deed(lambda: self.app.leave("it fails"))

    @rule()
    def restart(self) -> None:
        self.deed(self.app.start)

    @invariant()
    def a_step_changes_nothing_that_is_not_written(self) -> None:
        assert self.app.rollout.journal == journals.unpack(self.app.disk)

    def teardown(self) -> None:
        for _ in range(100):
            self.step()
        phase = self.app.rollout.journal.phase
        assert phase in (Phase.NONE, Phase.DONE, Phase.FAILED, Phase.LEFT), phase
        self.offer("one")
        self.order("resume")
        for _ in range(200):
            self.step()
        assert self.app.well, self.app.told


TestAnyApplication = AnyApplication.TestCase
TestAnyApplication.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
