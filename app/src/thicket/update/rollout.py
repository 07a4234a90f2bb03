# SPDX-License-Identifier: Apache-2.0
"""When this node takes an update: its own decision, by the plan, its place in it, and the others.

There is no leader. Every node knows the signed offer, the members, and the newest record of each,
so all come to the same order of nodes and to the same end.

**The order.** Nodes stand in a row by SHA-256 of the offer's identifier and their name: another one
for each offer, the same for all who know the same members. Named canaries stand in front. Whoever
refuses the offer stands nowhere. The first wave is the canaries; each further one reaches up to so
many percent of the row.

**When a wave is open.** Its nodes begin when all nodes of the waves before it are well for as long
as the plan asks, have ended, or are passed over, and when at least one canary got well (as many as
the plan counts, or all that have not failed). A node waits while as many others are at it as its
wave has nodes. When half of the last wave is well, the rollout is complete: who comes later begins
at once.

**Who is passed over.** A node that has not begun, and of which nothing new was heard for
``PATIENCE`` since its wave opened. It takes its turn when it comes back. A canary is waited for: a
counted one until it is forgotten (``progress.KEEP``) and the next in the row is a canary, a named
one until there is a new offer.

**What counts as a failure.** A node that went back, and one that has begun and of which nothing was
heard for ``LOST``. With more of them than the plan allows nobody begins any more. An order to
resume has nodes that went back try once more; what they told before it does not count.

Everything here is a function of facts. Time is in seconds of a clock that only goes forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from hashlib import sha256
from itertools import pairwise
from typing import Final, NamedTuple

from thicket.update.offer import Offer, Order, Plan, clock
from thicket.update.progress import ENDED, KEEP, Entry, Progress, State

PATIENCE: Final = 3600.0
LOST: Final = 3600.0
SETTLE: Final = 60.0
"""Seconds after its start in which a node only listens: what others know has to reach it."""

HEARD: Final = 120.0
"""Seconds after which of a silent node is told for how long it was not heard of."""

NEVER: Final = float("inf")

MOST_NAMED = 3
"""Nodes that words name; of others there is only the number."""


class Verdict(Enum):
    """What a node does next about an offer."""

    #: The version runs here already, and is kept.
    DONE = "done"
    #: It runs here on trial, however it came here.
    TRIAL = "trial"
    #: It never installs it; the words say why.
    REFUSE = "refuse"
    #: It gets the patch.
    FETCH = "fetch"
    #: It has the bundle and listens to what the others tell.
    LISTEN = "listen"
    #: It does not begin yet; the words say why.
    WAIT = "wait"
    #: It begins.
    BEGIN = "begin"
    #: It was told to wait.
    PAUSE = "pause"
    #: It was told not to take it.
    ABORT = "abort"
    #: It was told to go back to the version before.
    BACK = "back"


class Decision(NamedTuple):
    """What a node does next, and why, in words for people."""

    verdict: Verdict
    why: str = ""


class Trial(Enum):
    """Whether what runs here is on trial."""

    #: It is kept: it is what a start starts.
    NONE = "none"
    GOES_ON = "goes on"
    #: It was called off, and the next start is one of the version before.
    CALLED_OFF = "called off"


class Node(NamedTuple):
    """This node.

    :ivar name: as in records (:func:`thicket.update.progress.node_name`).
    :ivar compatible: which bundles it takes.
    :ivar version: the one that runs.
    :ivar bundle: SHA-256 in hexadecimal digits of the bundle that the running slot was written
        from; empty where that is not known, as on a new card.
    :ivar epoch: the lowest one that is taken.
    :ivar made: when what runs was made, in Unix seconds; 0 where that is not known.
    :ivar trial: whether what runs is on trial.
    """

    name: str
    compatible: str
    version: str
    bundle: str = ""
    epoch: int = 0
    made: int = 0
    trial: Trial = Trial.NONE


class Facts(NamedTuple):
    """What a decision is made of.

    :ivar records: newest record of each node, this one's own included.
    :ivar members: seconds since each node was heard of; 0 for those that are connected.
    :ivar now: the time that ``records`` are measured with.
    :ivar since: since when this node knows the offer, listens, and nothing holds up the rollout: no
        order, no window (``steps.Rollout`` keeps it).
    :ivar minute: of the day (UTC); None where the time is not known.
    :ivar ready: whether the bundle is here, whole and checked.
    :ivar rejected: why this node does not try this bundle again; empty if it may.
    :ivar order: the newest order about the offer.
    :ivar obeyed: the number of the order to go back that this node has followed, 0 for none.
    """

    offer: Offer
    node: Node
    records: Mapping[str, Entry]
    members: Mapping[str, float]
    now: float
    since: float
    minute: int | None = None
    ready: bool = False
    rejected: str = ""
    order: Order | None = None
    obeyed: int = 0


def decide(facts: Facts) -> Decision:
    """Return what this node does next; it has not begun."""
    offer, node, order = facts.offer, facts.node, facts.order
    told = "" if order is None else order.order
    running = runs(node, offer) and node.trial is not Trial.CALLED_OFF
    if running and node.trial is Trial.GOES_ON:
        return Decision(Verdict.TRIAL, "on trial")
    if told == "back" and order is not None:
        if running and facts.obeyed < order.number:
            return Decision(Verdict.BACK, "told to go back to the version before")
        if not running:
            return Decision(Verdict.ABORT, "told to go back to the version before")
    if running:
        return Decision(Verdict.DONE)
    if misfit := unfit(node, offer):
        return Decision(Verdict.REFUSE, misfit.words)
    if told == "abort":
        return Decision(Verdict.ABORT, "told not to take it")
    if facts.rejected:
        return Decision(Verdict.REFUSE, facts.rejected)
    if told == "pause":
        return Decision(Verdict.PAUSE, "told to wait")
    view = look(facts)
    if view.stopped:
        return Decision(Verdict.WAIT, view.stopped)
    if node.trial is Trial.CALLED_OFF or (facts.ready and node.trial is Trial.GOES_ON):
        return Decision(Verdict.WAIT, _occupied(node))
    if not facts.ready:
        return Decision(Verdict.FETCH)
    if words := closed(offer.plan, facts.minute):
        return Decision(Verdict.WAIT, words)
    if facts.now - facts.since < SETTLE:
        return Decision(Verdict.LISTEN, "listening to what the others tell")
    if words := turn(view, node.name):
        return Decision(Verdict.WAIT, words)
    return Decision(Verdict.BEGIN)


def runs(node: Node, offer: Offer) -> bool:
    """Return whether what is offered runs here already."""
    if node.bundle:
        return node.bundle == offer.bundle.sha256
    return node.version == offer.bundle.version and node.compatible == offer.bundle.compatible


class Misfit(NamedTuple):
    """Why an offer is not for this node.

    :ivar words: the reason, for everybody.
    :ivar remedy: what a person can do about it.
    """

    words: str
    remedy: str


def unfit(node: Node, offer: Offer) -> Misfit | None:
    """Return why what is offered is not for this node; None if it is."""
    bundle = offer.bundle
    if bundle.compatible != node.compatible:
        return Misfit(
            f"it is for {bundle.compatible}, and this node is {node.compatible}",
            f"nothing; what this node is to get, offer for {node.compatible} beside it",
        )
    if bundle.epoch < node.epoch:
        return Misfit(
            f"its security epoch is {bundle.epoch}, and here {node.epoch} is in force",
            "offer a version that was built with this epoch or a higher one",
        )
    if offer.number < node.made:
        return Misfit(
            f"it was offered before the version that runs here ({node.version}) was made",
            "to have the older version take its place, offer it anew (`thicket update offer`)",
        )
    return None


def _occupied(node: Node) -> str:
    """Return why nothing can be installed beside what runs here."""
    if node.trial is Trial.GOES_ON:
        return f"{node.version} is on trial here"
    return f"the trial of {node.version} was called off: the node has to restart first"


def closed(plan: Plan, minute: int | None) -> str:
    """Return why the plan's window of time is closed; empty if it is open."""
    if plan.window is None:
        return ""
    begin, end = plan.window
    window = f"from {clock(begin)} to {clock(end)} UTC"
    if minute is None:
        return f"the plan is for the time {window}, and this node does not know the time"
    inside = begin <= minute < end if begin < end else minute >= begin or minute < end
    return "" if inside else f"for the time {window}"


# -- the order of nodes


@lru_cache(maxsize=4)
def identifier(offer: Offer) -> bytes:
    """Return what stands for an offer; the same as ``Offer.identifier``."""
    return offer.identifier


@lru_cache(maxsize=4)
def row(offer: bytes, plan: Plan, names: frozenset[str]) -> tuple[tuple[str, ...], ...]:
    """Return the waves: the canaries first, which may be none.

    :param offer: the offer's identifier.
    :param names: of all nodes.
    """
    ranked = sorted(names, key=lambda name: sha256(offer + name.encode()).digest())
    if isinstance(plan.canaries, int):
        count = min(plan.canaries, len(ranked))
    else:
        named = frozenset(plan.canaries)
        ranked.sort(key=lambda name: host(name) not in named)
        count = sum(host(name) in named for name in ranked)
    ends = [0, count, *(-(-len(ranked) * percent // 100) for percent in plan.waves)]
    for at in range(1, len(ends)):
        ends[at] = max(ends[at], ends[at - 1])
    return tuple(tuple(ranked[begin:end]) for begin, end in pairwise(ends))


def host(name: str) -> str:
    """Return the host name in the name of a node: what a plan and a configuration call it."""
    return name.partition(".")[0]


# -- what is seen of the others


class Seen(NamedTuple):
    """What counts of another node.

    :ivar record: about this offer, or None.
    :ivar moved: seconds since something changed in what it tells.
    :ivar silent: seconds since it was heard of.
    :ivar well: whether it got well.
    :ivar ended: whether it has not the version and waits for nothing.
    :ivar at_it: whether it has begun and its end is open.
    :ivar lost: whether it has begun and was not heard of since, for too long.
    """

    record: Progress | None
    moved: float
    silent: float
    well: bool = False
    ended: bool = False
    at_it: bool = False
    lost: bool = False

    @property
    def failed(self) -> bool:
        """Whether it went back."""
        return self.record is not None and self.record.state is State.FAILED

    @property
    def why(self) -> str:
        """Its own words."""
        return "" if self.record is None else self.record.why


class View(NamedTuple):
    """The rollout as this node sees it.

    :ivar waves: the names of each wave's nodes, the canaries' first.
    :ivar blocks: for each wave, who has to get well before the next one opens.
    :ivar opened: for each wave, the seconds since it opened; None while it is closed.
    :ivar stopped: why nobody begins any more; empty if they do.
    :ivar untried: why no wave behind the canaries opens; empty if one may.
    """

    waves: tuple[tuple[str, ...], ...]
    seen: Mapping[str, Seen]
    blocks: tuple[tuple[str, ...], ...]
    opened: tuple[float | None, ...]
    stopped: str
    untried: str


def look(facts: Facts) -> View:
    """Return how the rollout stands."""
    plan, seen = facts.offer.plan, see(facts)
    names = frozenset(
        name
        for name, one in seen.items()
        if not one.ended or not refused(one) or name == facts.node.name
    )
    waves = row(identifier(facts.offer), plan, names)
    tried = _tried(plan, seen)
    stopped = _stopped(facts, seen, waves)
    complete = _complete(seen, waves)
    untried = "" if tried or complete else _untried(plan, seen, waves)
    blocks: list[tuple[str, ...]] = []
    opened: list[float | None] = []
    age: float | None = facts.now - facts.since
    for number, wave in enumerate(waves):
        if number == 1 and untried:
            age = None
        opened.append(age)
        blocking, next_age = [], age
        for name in wave if not complete else ():
            waited = number == 0 and not tried
            passed = None if age is None else _passed(seen[name], age, waited=waited)
            if passed is None:
                blocking.append(name)
            elif next_age is not None:
                next_age = min(next_age, passed)
        blocks.append(tuple(blocking))
        age = None if blocking else next_age
    return View(waves, seen, tuple(blocks), tuple(opened), stopped, untried)


def pending(facts: Facts) -> list[str]:
    """Return the nodes that were heard of just now and do not follow the newest order yet."""
    order, offer = facts.order, identifier(facts.offer)
    if order is None:
        return []
    found = [facts.node.name]
    found += [name for name, silent in sorted(facts.members.items()) if silent < HEARD]
    records = {name: entry.record for name, entry in facts.records.items()}
    return [
        name
        for name in dict.fromkeys(found)
        if name not in records or records[name].offer != offer or records[name].order < order.number
    ]


def see(facts: Facts) -> dict[str, Seen]:
    """Return what counts of every node that is known, this one included."""
    offer, now, me = identifier(facts.offer), facts.now, facts.node.name
    resumed = 0
    if facts.order is not None and facts.order.order == "resume":
        resumed = facts.order.number
    seen: dict[str, Seen] = {}
    for name in {*facts.members, *facts.records, me}:
        entry = facts.records.get(name)
        silent = facts.members.get(name, NEVER)
        if entry is not None:
            silent = min(silent, now - entry.heard)
        one = _see(entry, offer, resumed, 0.0 if name == me else silent, now)
        if silent < KEEP or name == me or one.lost or one.failed:
            seen[name] = one
    return seen


def _see(entry: Entry | None, offer: bytes, resumed: int, silent: float, now: float) -> Seen:
    if entry is None:
        return Seen(None, NEVER, silent)
    record, moved = entry.record, now - entry.moved
    if record.offer != offer:
        return Seen(None, moved, silent)
    state = record.state
    if state in ENDED:
        # One that ended before the order to resume tries again when it hears that.
        return Seen(
            None if record.order < resumed else record, moved, silent, ended=record.order >= resumed
        )
    if not record.begun:
        return Seen(record, moved, silent, well=record.well)
    lost = silent >= LOST
    return Seen(record, moved, silent, at_it=not lost, lost=lost)


def refused(seen: Seen) -> bool:
    """Return whether a node does not install it at all."""
    return seen.record is not None and seen.record.state is State.REFUSED


def _tried(plan: Plan, seen: Mapping[str, Seen]) -> bool:
    """Return whether as many nodes got well as the plan counts as canaries.

    Whoever comes later, and stands in front of the row then, asks for no second round.
    """
    if not isinstance(plan.canaries, int):
        return False
    return sum(one.well for one in seen.values()) >= min(plan.canaries, len(seen))


def _complete(seen: Mapping[str, Seen], waves: tuple[tuple[str, ...], ...]) -> bool:
    """Return whether the last wave has been open for long: half of it is well."""
    last = next((wave for wave in reversed(waves) if wave), ())
    well = sum(seen[name].well for name in last)
    return well > 0 and 2 * well >= len(last)


def _passed(seen: Seen, age: float, *, waited: bool) -> float | None:
    """Return since when a node of a wave is not waited for; None while it is.

    :param age: seconds since its wave opened.
    :param waited: it is waited for in any case, if it has not begun.
    """
    if seen.well or seen.ended:
        return min(seen.moved, age)
    if seen.lost:
        return min(seen.silent - LOST, age)
    if waited or seen.at_it:
        return None
    quiet = min(seen.moved, age) - PATIENCE
    return quiet if quiet >= 0 else None


def _stopped(facts: Facts, seen: Mapping[str, Seen], waves: tuple[tuple[str, ...], ...]) -> str:
    """Return why nobody begins any more, by the failures that the plan allows."""
    if all(refused(one) for one in seen.values()):
        # Whoever refuses is no canary, and nobody is left who could be one.
        first = min(seen)
        return f"stopped: every node refuses it; {first}: {seen[first].why}"
    failed = [name for name, one in sorted(seen.items()) if one.lost or one.failed]
    if len(failed) <= facts.offer.plan.failures:
        return ""
    canaries = frozenset(waves[0])
    failed.sort(key=lambda name: name not in canaries)
    first = failed[0]
    words = f"canary {first}" if first in canaries else first
    if seen[first].lost:
        words += " has begun and was not heard of again"
    else:
        words += f" failed: {seen[first].why}"
    return f"stopped: {words}" + (f"; and {len(failed) - 1} more" if len(failed) > 1 else "")


def _untried(plan: Plan, seen: Mapping[str, Seen], waves: tuple[tuple[str, ...], ...]) -> str:
    """Return why nobody but canaries begins: none of them got well. Empty if one did."""
    canaries = list(waves[0])
    if not isinstance(plan.canaries, int):
        known = {host(name): name for name in seen}
        if absent := [name for name in plan.canaries if name not in known]:
            return f"waiting for canary {listed(absent)} (not heard of)"
        canaries = [known[name] for name in plan.canaries]
    if any(seen[name].well for name in canaries):
        return ""
    if waiting := [name for name in canaries if not seen[name].ended]:
        return f"waiting for canary {told(waiting, seen)}"
    return f"stopped: no canary got well; {canaries[0]}: {seen[canaries[0]].why}"


def turn(view: View, name: str) -> str:
    """Return why it is not this node's turn; empty if it is."""
    number = next(at for at, wave in enumerate(view.waves) if name in wave)
    if number > 0 and view.untried:
        return view.untried
    if view.opened[number] is None:
        before = next(blocking for blocking in view.blocks if blocking)
        return f"waiting for {told(before, view.seen)}"
    others = [one for one, seen in view.seen.items() if seen.at_it and one != name]
    if len(others) >= len(view.waves[number]):
        return f"waiting for {told(others, view.seen)}"
    return ""


# -- words


def told(names: tuple[str, ...] | list[str], seen: Mapping[str, Seen]) -> str:
    """Return names of nodes with what is known of each."""
    return listed([f"{name} ({state_of(seen[name])})" for name in names])


def listed(words: list[str]) -> str:
    """Return a few words, and how many more there are."""
    more = len(words) - MOST_NAMED
    return ", ".join(words[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def state_of(seen: Seen) -> str:
    """Return in a few words how far a node is."""
    record = seen.record
    silent = "" if seen.silent < HEARD else ", " + heard(seen.silent)
    if record is None:
        return "says nothing of it" if not silent else silent[2:]
    if record.state is State.DONE and not record.well:
        return f"done, to be well for longer{silent}"
    return record.called + silent


def heard(silent: float) -> str:
    """Return when a node was heard of last."""
    if silent == NEVER:
        return "not heard of"
    if silent < 7200:
        return f"not heard of for {int(silent // 60)} min"
    return f"not heard of for {int(silent // 3600)} h"
