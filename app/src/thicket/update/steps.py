# SPDX-License-Identifier: Apache-2.0
"""One node's way through an update, step by step: what to do next, and what to tell the others.

Nothing is done here. :meth:`Rollout.step` looks at the facts and returns an action, which the
caller carries out; what came of it is a fact of a later step. Where a step has another journal, it
is written to the disk before the action is begun.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from thicket.update.journal import Journal, Phase
from thicket.update.offer import Offer, Order
from thicket.update.progress import WHOLE, Entry, Own, Progress, Stand, State, Work, short
from thicket.update.rollout import Decision, Facts, Node, Verdict, closed, decide, identifier


class Fetch(NamedTuple):
    """Get a patch of the offer, and rebuild the bundle."""

    offer: Offer


class Install(NamedTuple):
    """Install the bundle of the offer; not again while that goes on."""

    offer: Offer


class Restart(NamedTuple):
    """Restart the node in order, so that the slot is tried."""

    slot: str


class GoBack(NamedTuple):
    """Leave what runs for what ran before; where that is the other slot, the node restarts."""

    slot: str


class CallOff(NamedTuple):
    """Do not start the other slot, which was to be tried: its offer does not count any more."""

    slot: str


class Nothing(NamedTuple):
    """Do nothing. What is being fetched stays where it is.

    :ivar why: in words.
    """

    why: str


Action = Fetch | Install | Restart | GoBack | CallOff | Nothing


class Now(NamedTuple):
    """The facts of one step; those that :class:`thicket.update.rollout.Facts` has as well are
    explained there.

    :ivar offer: the newest one that is for this fleet and signed by an update signer; or None.
    :ivar fetched: how much of the patch is here, in thousandths.
    :ivar fault: why nothing is fetched for now; it is tried again.
    :ivar trouble: why the bundle cannot be had or is not taken: no room, a signer that is revoked.
    :ivar slot: the slot that runs: ``A`` or ``B``.
    :ivar healthy: whether everything that worked before works.
    :ivar time: Unix seconds; 0 where the time is not known.
    :ivar root: dm-verity root hash of the root that runs; empty where it is not known.
    """

    node: Node
    slot: str
    offer: Offer | None
    order: Order | None
    records: Mapping[str, Entry]
    members: Mapping[str, float]
    minute: int | None = None
    fetched: int = 0
    ready: bool = False
    trouble: str = ""
    healthy: bool = True
    time: int = 0
    root: str = ""
    fault: str = ""

    @property
    def here(self) -> int:
        """How far the bundle is here, in thousandths: whole, or three quarters with the patch."""
        return WHOLE if self.ready else self.fetched * 3 // 4


class Step(NamedTuple):
    """What follows from a step.

    :ivar tell: a record for the others, where there is something new.
    :ivar journal: to be kept before anything else is done; None where it is as before.
    """

    action: Action
    tell: Progress | None = None
    journal: Journal | None = None


_FOLLOWS: Final = frozenset({Phase.BEGUN, Phase.ARMED, Phase.TRIAL, Phase.DONE})
"""Phases of a node that has begun with an offer, or runs what is offered."""

_STATES: Final = {
    Verdict.LISTEN: State.READY,
    Verdict.WAIT: State.WAITING,
    Verdict.PAUSE: State.PAUSED,
    Verdict.ABORT: State.ABORTED,
    Verdict.REFUSE: State.REFUSED,
}
"""What a node that has not begun tells by what it decided."""


class Rollout:
    """One node's part in the rollout of offers.

    :param own: makes its records.
    :param journal: as :func:`thicket.update.journal.after_restart` returned it.
    :ivar making: how far the bundle is made from the patch; None while none is.
    :ivar installing: how far the installation is; None while there is none.
    """

    def __init__(self, own: Own, journal: Journal) -> None:
        self.own = own
        self.journal = journal
        self.making: Work | None = None
        self.installing: Work | None = None
        self._since: float | None = None
        self._held: tuple[bytes, bool] = b"", True
        self._well: float | None = None
        self._withdrawn = b""

    # -- what came of an action

    def progress(self, work: Work) -> None:
        """The installation is so far."""
        self.installing = work

    def follow(self, journal: Journal) -> Journal:
        """An action has ended, or something was seen to have happened; return the journal to keep.

        :param journal: how it goes on.
        """
        self.installing = None
        self.journal = journal
        return journal

    def not_installed(self, why: str, order: Order | None) -> Journal:
        """The installation has failed; the running slot is untouched. Return the journal to keep.

        :param order: the newest one about the offer.
        """
        self.installing = None
        number = 0 if order is None else order.number
        self.journal = self.journal.failed(f"it could not be installed: {why}", order=number)
        return self.journal

    def not_left(self, why: str) -> Journal:
        """The node cannot go back to the other slot. Return the journal to keep."""
        self.journal = self.journal.enter(Phase.DONE, f"it cannot go back: {why}")
        return self.journal

    # -- a step

    def step(self, now: float, facts: Now) -> Step:
        """Return what to do now.

        :param now: seconds of a clock that only goes forward.
        """
        before = self.journal
        offer = facts.offer
        if offer is None:
            return Step(self._without_offer(facts.slot))
        if self._withdrawn == identifier(offer):
            self._withdrawn = b""  # it counts again
        self._keep_up(offer, facts.order)
        going = self._going(offer, facts.slot)
        if going is not None:
            action, stand = going
        else:
            action, stand = self._decided(now, offer, facts)
        if facts.order is not None:
            stand = stand._replace(order=facts.order.number)
        changed = self.journal if self.journal != before else None
        mine = facts.records.get(self.own.node)
        self.own.compare(None if mine is None else mine.record)
        return Step(action, self.own.tell(now, stand, len(facts.members)), changed)

    def _without_offer(self, slot: str) -> Action:
        """Return what to do where the offer does not count any more, as its signer is revoked.

        Nobody starts what is not trusted. A trial goes to its end, and so does going back.
        """
        self._withdrawn, journal = self.journal.offer, self.journal
        self._well = None
        if journal.phase is Phase.ARMED:
            return CallOff(journal.slot)
        if journal.phase is Phase.LEAVING and slot != journal.slot:
            return GoBack(journal.slot)
        return Nothing("there is no offer")

    def _keep_up(self, offer: Offer, order: Order | None) -> None:
        """What has begun is part of the newest offer of its bundle, and follows an order to resume:
        one that was given before a failure does not have the bundle tried again behind it."""
        journal, name = self.journal, identifier(offer)
        if journal.phase not in _FOLLOWS or journal.bundle != offer.bundle.sha256:
            return
        if journal.offer != name and journal.phase is not Phase.DONE:
            journal = journal._replace(offer=name, order=0)
        if journal.offer == name:
            number = max(journal.order, _resumed(order))
            self.journal = journal._replace(order=number)

    def _going(self, offer: Offer, slot: str) -> tuple[Action, Stand] | None:
        """Return how an update that has begun goes on; None where there is none.

        What has begun goes to its end, whatever is ordered or offered meanwhile.
        """
        journal = self.journal
        ours = journal.offer == identifier(offer)
        state = State.WAITING
        action: Action = Nothing(f"version {journal.version} is at it")
        work = Work() if self.installing is None else self.installing
        if journal.phase is Phase.BEGUN and self.installing is not None:
            state = State.INSTALLING
        elif journal.phase is Phase.ARMED and journal.offer == self._withdrawn:
            action = CallOff(journal.slot)
        elif journal.phase is Phase.ARMED:
            state, action = State.RESTARTING, Restart(journal.slot)
        elif journal.phase is Phase.TRIAL:
            state, action = State.TRIAL, Nothing("on trial")
        elif journal.phase is Phase.LEAVING:
            state, action = State.ABORTED, GoBack(journal.slot)
            if slot == journal.slot:
                action = Nothing("the version before is on trial")
        else:
            return None
        if not ours:
            return action, Stand(identifier(offer), State.WAITING, 0, f"{journal.version} first")
        stand = Stand(identifier(offer), state, 0, journal.why)
        if state is State.INSTALLING:
            stand = stand._replace(done=work.part, stage=work.stage)
        return action, stand

    def _decided(self, now: float, offer: Offer, facts: Now) -> tuple[Action, Stand]:
        decision = self._decide(now, offer, facts)
        verdict, why = decision.verdict, short(decision.why)
        number = 0 if facts.order is None else facts.order.number
        if verdict is not Verdict.DONE:
            self._well = None
        if verdict is Verdict.DONE:
            return Nothing("it runs"), self._done(now, offer, facts)
        if verdict is Verdict.TRIAL:
            self._enter(offer, Phase.TRIAL, facts.slot, facts)
            return Nothing(why), Stand(identifier(offer), State.TRIAL)
        if verdict is Verdict.BACK:
            other = "B" if facts.slot == "A" else "A"
            self._enter(offer, Phase.LEAVING, other, facts)
            self.journal = self.journal.reject(why, number)._replace(why=why, order=number)
            return GoBack(other), Stand(identifier(offer), State.ABORTED, 0, why)
        if verdict is Verdict.BEGIN:
            other = "B" if facts.slot == "A" else "A"
            self._enter(offer, Phase.BEGUN, other, facts)
            self.journal = self.journal._replace(order=number)
            self.installing = Work()
            return Install(offer), Stand(identifier(offer), State.INSTALLING)
        if verdict is Verdict.FETCH:
            return self._fetch(offer, facts)
        state = _STATES[verdict]
        failed = self.journal.phase is Phase.FAILED and self.journal.bundle == offer.bundle.sha256
        if verdict is Verdict.REFUSE and failed:
            return Nothing(why), Stand(identifier(offer), State.FAILED, 0, why)
        if verdict is Verdict.REFUSE and self.journal.phase is Phase.LEFT:
            state = State.ABORTED
        # 0 is said by nodes that do not tell it.
        here = max(1, facts.here) if state in (State.WAITING, State.PAUSED) else 0
        return Nothing(why), Stand(identifier(offer), state, here, why)

    def _fetch(self, offer: Offer, facts: Now) -> tuple[Action, Stand]:
        if facts.trouble:
            # It is tried again: room may be made.
            return Fetch(offer), Stand(identifier(offer), State.REFUSED, 0, facts.trouble)
        if self.making is not None:
            made = self.making
            stand = Stand(identifier(offer), State.FETCHING, made.part, stage=made.stage)
            return Fetch(offer), stand
        state = State.FETCHING if facts.fetched else State.OFFERED
        part = min(facts.fetched, WHOLE - 1)
        return Fetch(offer), Stand(identifier(offer), state, part, facts.fault)

    def rejection(self, offer: Offer, order: Order | None) -> str:
        """Return why the node does not try a bundle again; empty if it may.

        :param order: the newest one about the offer.
        """
        return self.journal.rejection(offer.bundle.sha256, _resumed(order))

    def _decide(self, now: float, offer: Offer, facts: Now) -> Decision:
        order = facts.order
        held = bool(closed(offer.plan, facts.minute)) or (
            order is not None and order.order != "resume"
        )
        if self._since is None or self._held != (identifier(offer), False) or held:
            self._since = now
        self._held = identifier(offer), held
        return decide(
            Facts(
                offer,
                facts.node,
                facts.records,
                facts.members,
                now,
                self._since,
                facts.minute,
                facts.ready,
                self.rejection(offer, order),
                order,
                self.journal.order if self.journal.offer == identifier(offer) else 0,
            )
        )

    def _done(self, now: float, offer: Offer, facts: Now) -> Stand:
        """Return the stand of a node that runs what is offered, and count how long it is well."""
        if self.journal.offer != identifier(offer) or self.journal.phase is not Phase.DONE:
            self._enter(offer, Phase.DONE, facts.slot, facts)
        why = self.journal.why
        if self.journal.well:
            return Stand(identifier(offer), State.DONE, WHOLE, why)
        if not facts.healthy:
            self._well = None
            return Stand(identifier(offer), State.DONE, 0, why or "something does not work")
        if self._well is None:
            self._well = now
        so_far = now - self._well
        if so_far >= offer.plan.well:
            self.journal = self.journal._replace(well=True)
            return Stand(identifier(offer), State.DONE, WHOLE, why)
        return Stand(identifier(offer), State.DONE, int(so_far * WHOLE / offer.plan.well), why)

    def _enter(self, offer: Offer, phase: Phase, slot: str, facts: Now) -> None:
        """Begin the journal of an offer; what was rejected before stays so."""
        old = self.journal
        same = old.offer == identifier(offer)
        runs = phase in (Phase.TRIAL, Phase.DONE)
        self.journal = Journal(
            identifier(offer),
            offer.bundle.sha256,
            offer.bundle.version,
            phase,
            slot,
            root=facts.root if runs else "",
            since=facts.time,
            tries=old.tries if same else 0,
            order=max(old.order if same else 0, _resumed(facts.order) if runs else 0),
            rejected=old.rejected,
        )


def _resumed(order: Order | None) -> int:
    """Return the number of the newest order, if it is one to resume; else 0."""
    return order.number if order is not None and order.order == "resume" else 0
