# SPDX-License-Identifier: Apache-2.0
"""What this node does about an offer, why, and what a person can do: in words, and as numbers.

The others are told a state and a few words (:mod:`.progress`). A person at the node is told more:
bytes, their rate and the time left where these are known, and the next thing to do.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from thicket.base.headway import measure_text
from thicket.update import show
from thicket.update.journal import UNDER_WAY, Journal
from thicket.update.progress import WHOLE, Progress, Stage, State, Work
from thicket.update.rollout import Facts, Trial, closed, host, identifier, look, unfit

NOTHING: Final = "nothing: it goes on by itself"
HARMLESS: Final = "nothing: a power cut harms nothing, it begins anew then"


class Here(NamedTuple):
    """What only this node knows of its part.

    :ivar record: the newest that it has told; None if it has not told any.
    :ivar fetched: bytes of its patch that are here, and of the whole of it.
    :ivar work: what it makes, checks or writes now.
    :ivar rate: bytes a second of what is being done; None where that is not known.
    :ivar left: seconds until that is done; None where that is not known.
    :ivar later: what hinders it is looked at again by itself.
    :ivar health: seconds for which a new version is on trial.
    """

    record: Progress | None
    journal: Journal = Journal()
    fetched: tuple[int, int] = (0, 0)
    work: Work | None = None
    rate: float | None = None
    left: float | None = None
    later: bool = False
    health: int = 0


class Mine(NamedTuple):
    """What this node does about an offer.

    :ivar state: as in the table; empty where it has not looked at the offer yet.
    :ivar percent: of the whole way; None where that says nothing.
    :ivar words: what it does, or why it does nothing.
    :ivar remedy: what a person can do, or why there is nothing to do; empty where all is done.
    :ivar done: bytes that are done of ``size``; None where they are not known, as are the others.
    :ivar rate: bytes a second.
    :ivar left: seconds.
    """

    state: str
    percent: int | None
    words: str
    remedy: str = ""
    done: int | None = None
    size: int | None = None
    rate: int | None = None
    left: int | None = None


def mine(facts: Facts, here: Here) -> Mine:
    """Return what this node does about the offer."""
    record = here.record
    if record is None or record.offer != identifier(facts.offer):
        return Mine("", None, "it was offered just now", "ask again in some seconds")
    record = _fresh(record, here)
    words, remedy = _told(facts, here, record)
    found = Mine(record.called, show.percent_of(record), words, remedy)
    if record.stage is Stage.NONE and record.state is State.FETCHING:
        done, size = here.fetched
        found = found._replace(done=done, size=size)
    elif here.work is not None and here.work.measured:
        found = found._replace(done=here.work.done, size=here.work.total)
    if found.size is not None and here.rate is not None:
        left = None if here.left is None else int(here.left)
        found = found._replace(rate=int(here.rate), left=left)
    elif record.state is State.DONE and not record.well:
        found = found._replace(left=_to_be_well(facts, record))
    return found._replace(words=found.words + measure_text(*found[-4:]))


def _fresh(record: Progress, here: Here) -> Progress:
    """Return the record with what has got on since it was told: that is done seldom."""
    work, (done, size) = here.work, here.fetched
    gets = record.state in (State.OFFERED, State.FETCHING)
    if work is not None and (gets or record.state is State.INSTALLING):
        state = State.FETCHING if gets else record.state
        return record._replace(state=state, stage=work.stage, done=work.part)
    if gets and done:
        part = min(WHOLE * done // size, WHOLE - 1)
        return record._replace(state=State.FETCHING, stage=Stage.NONE, done=part)
    return record


def _to_be_well(facts: Facts, record: Progress) -> int:
    return facts.offer.plan.well * (WHOLE - record.done) // WHOLE


def _told(facts: Facts, here: Here, record: Progress) -> tuple[str, str]:
    """Return what the node does in words, and what a person can do."""
    bundle = facts.offer.bundle
    what, parts = "bundle", "the patch and from what runs"
    if bundle.application:
        what, parts = "file", "the patch"
    if record.stage is Stage.MAKING:
        return f"it makes the {what} from {parts}", NOTHING
    if record.stage is Stage.CHECKING:
        return f"it compares the whole {what} with what was signed", NOTHING
    resume = "`thicket update order resume" + (
        f" {bundle.application}`" if bundle.application else "`"
    )
    match record.state:
        case State.OFFERED | State.FETCHING if record.why:
            return f"its patch cannot be fetched: {record.why}", "it is tried again every minute"
        case State.OFFERED:
            words = "nothing of its patch is here yet: it comes from the nodes that are connected"
            return words, "nothing; where it stays so, `thicket nodes` shows who is connected"
        case State.FETCHING if here.fetched[0] == here.fetched[1] > 0:
            return "its patch is here, and is written out to the card", NOTHING
        case State.FETCHING:
            return "it gets the patch from the nodes that are connected", NOTHING
        case State.READY:
            return f"it has the {what}, and listens for a minute to what the others tell", NOTHING
        case State.WAITING:
            return _waiting(facts, here, record, resume)
        case State.INSTALLING:
            place = "puts the application into place" if bundle.application else _slot(here)
            return f"it {place}", HARMLESS
        case State.RESTARTING:
            return f"it restarts into slot {here.journal.slot}", NOTHING
        case State.TRIAL:
            words = "it runs on trial, and is kept when all that worked before has worked for"
            words += f" {here.health} s without a break"
            return words, "nothing: where it does not, the node goes back by itself"
        case State.DONE:
            return _done(record)
        case State.FAILED:
            again = f"then offer another version, or {resume} has it tried once more"
            return f"it was left: {record.why}", f"find out why (`thicket status`); {again}"
        case State.REFUSED:
            return _refused(facts, here, record, resume)
        case State.PAUSED:
            return record.why, f"{resume} goes on"
        case State.ABORTED:
            return record.why, f"{resume} has it taken all the same"
        case _:
            return record.why, ""


def _slot(here: Here) -> str:
    return f"writes slot {here.journal.slot}; what runs is not touched"


def _done(record: Progress) -> tuple[str, str]:
    if record.well:
        return record.why or "it runs here, and was well for as long as the plan asks", ""
    if record.why:
        return record.why, "`thicket status` says what does not work"
    return "it runs here, and has to be well for as long as the plan asks", NOTHING


def _waiting(facts: Facts, here: Here, record: Progress, resume: str) -> tuple[str, str]:
    """Return why a node waits, and what a person can do."""
    plan, view = facts.offer.plan, look(facts)
    if here.journal.phase in UNDER_WAY:
        version = here.journal.version
        if here.journal.offer == record.offer:
            return f"it ends what it has begun with version {version}", NOTHING
        return f"version {version} is under way here", f"nothing: it begins when {version} is done"
    if view.stopped:
        return record.why, f"offer another version, or {resume} goes on with this one"
    if facts.node.trial is Trial.CALLED_OFF:
        return (
            record.why,
            "`reboot`; else it restarts by itself, a quarter of an hour after its start",
        )
    if facts.node.trial is Trial.GOES_ON:
        return record.why, "nothing: it begins when that trial has ended"
    if closed(plan, facts.minute):
        if facts.minute is None:
            clock = "give it the time (NTP, or a gateway that knows it)"
            return record.why, f"{clock}, or offer it anew without `--window`"
        return record.why, "nothing: it begins then; to begin now, offer it anew without `--window`"
    known = {host(name) for name in view.seen}
    if not isinstance(plan.canaries, int) and not known.issuperset(plan.canaries):
        return record.why, "switch that node on, or offer it anew with other canaries"
    if view.untried:
        return record.why, "nothing: it begins when a canary is well"
    return record.why, "nothing: it begins when these are well, or without news of them for an hour"


def _refused(facts: Facts, here: Here, record: Progress, resume: str) -> tuple[str, str]:
    """Return why a node does not install it, and what a person can do."""
    misfit = unfit(facts.node, facts.offer)
    if misfit is not None:
        return record.why, misfit.remedy
    if facts.rejected:
        words = f"this bundle was tried here before and left: {record.why}"
        return words, f"find out why (`thicket status`); {resume} has it tried once more"
    if here.later:
        return record.why, "it is tried again every minute"
    return record.why, "make the offer anew (`thicket update offer`), with the whole bundle in it"
