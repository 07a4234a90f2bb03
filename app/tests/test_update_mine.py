# SPDX-License-Identifier: Apache-2.0
"""What a person is told of this node's part: each reason in its own words, with what to do."""

from __future__ import annotations

from typing import Any

import pytest
from rollout_fleet import an_offer, plan
from test_update_rollout import CANARY, OFFER, REST, SECOND, entry, facts, in_stage, well

from thicket.update.journal import Journal, Phase
from thicket.update.mine import Here, Mine, mine
from thicket.update.offer import Offer
from thicket.update.progress import WHOLE, Entry, Stage, State, Work
from thicket.update.rollout import Facts, Node, Trial, decide

ME = SECOND
RESUME = "`thicket update order resume`"


def told(own: Entry, *others: Entry, offer: Offer = OFFER, **more: Any) -> Mine:
    """Return what is told of a node with this record."""
    here = more.pop("here", Here(own.record))
    return mine(facts(ME, own, *others, offer=offer, **more), here)


def waits(*others: Entry, offer: Offer = OFFER, **more: Any) -> Mine:
    """Return what is told of a node that decides to wait."""
    seen: Facts = facts(ME, *others, offer=offer, **more)
    own = entry(ME, State.WAITING, 1000, offer=offer, why=decide(seen).why)
    return told(own, *others, offer=offer, **more)


def test_before_anything_was_looked_at() -> None:
    found = mine(facts(ME), Here(None))
    assert found == Mine("", None, "it was offered just now", "ask again in some seconds")
    other = entry(ME, State.DONE, WHOLE, offer=an_offer(plan(), number=7))
    assert mine(facts(ME), Here(other.record)) == found


def test_it_runs_already() -> None:
    found = told(entry(ME, State.DONE, WHOLE))
    assert (found.state, found.percent, found.remedy) == ("done", 100, "")
    assert found.words == "it runs here, and was well for as long as the plan asks"
    early = told(entry(ME, State.DONE, 500))
    assert (early.percent, early.left) == (95, OFFER.plan.well // 2)
    assert early.words == "it runs here, and has to be well for as long as the plan asks, 60 s left"
    ill = told(entry(ME, State.DONE, 0, why="something does not work"))
    assert ill.words == "something does not work, 2 min left"
    assert ill.remedy == "`thicket status` says what does not work"


def test_on_trial() -> None:
    own = entry(ME, State.TRIAL)
    found = told(own, here=Here(own.record, health=60))
    assert found.words == (
        "it runs on trial, and is kept when all that worked before has worked for 60 s without a "
        "break"
    )
    assert found.remedy == "nothing: where it does not, the node goes back by itself"


@pytest.mark.parametrize(
    ("node", "words", "remedy"),
    [
        (
            {"compatible": "thicket-rpi64"},
            "it is for thicket-standin, and this node is thicket-rpi64",
            "nothing; what this node is to get, offer for thicket-rpi64 beside it",
        ),
        (
            {"epoch": 2},
            "its security epoch is 1, and here 2 is in force",
            "offer a version that was built with this epoch or a higher one",
        ),
        (
            {"made": OFFER.number + 1},
            "it was offered before the version that runs here (0.1.0) was made",
            "to have the older version take its place, offer it anew (`thicket update offer`)",
        ),
    ],
)
def test_what_is_not_for_this_node(node: dict[str, Any], words: str, remedy: str) -> None:
    me = Node(ME, "thicket-standin", "0.1.0", epoch=1)._replace(**node)
    assert decide(facts(ME, node=me)).why == words
    found = told(entry(ME, State.REFUSED, why=words), node=me)
    assert (found.state, found.percent, found.words, found.remedy) == (
        "refused",
        None,
        words,
        remedy,
    )


def test_what_was_rejected_before() -> None:
    found = told(entry(ME, State.REFUSED, why="no peer"), rejected="no peer")
    assert found.words == "this bundle was tried here before and left: no peer"
    assert found.remedy == f"find out why (`thicket status`); {RESUME} has it tried once more"
    failed = told(entry(ME, State.FAILED, why="no peer"), rejected="no peer")
    assert failed.words == "it was left: no peer"
    assert failed.remedy == (
        f"find out why (`thicket status`); then offer another version, or {RESUME} has it tried "
        "once more"
    )


def test_what_cannot_be_had() -> None:
    own = entry(ME, State.REFUSED, why="/data is full: remove something from it")
    found = told(own, here=Here(own.record, later=True))
    assert (found.words, found.remedy) == (own.record.why, "it is tried again every minute")
    full = told(entry(ME, State.OFFERED, why="/data is full: remove something from it"))
    assert full.words == "its patch cannot be fetched: /data is full: remove something from it"
    assert full.remedy == "it is tried again every minute"
    own = entry(ME, State.REFUSED, why="a damaged patch")
    assert told(own).remedy == (
        "make the offer anew (`thicket update offer`), with the whole bundle in it"
    )


def test_it_waits_for_others() -> None:
    found = waits(entry(CANARY, State.TRIAL))
    assert found.words == f"waiting for canary {CANARY} (trial)"
    assert found.remedy == "nothing: it begins when a canary is well"
    assert found.percent == 40
    checks = in_stage(Stage.CHECKING, entry(CANARY, State.INSTALLING))
    assert waits(checks).words == f"waiting for canary {CANARY} (checking)"
    second = entry(SECOND, State.TRIAL)
    last = facts(REST[0], *well(CANARY), second)
    own = entry(REST[0], State.WAITING, 1000, why=decide(last).why)
    behind = mine(last, Here(own.record))
    assert behind.words.startswith(f"waiting for {SECOND} (trial), ")
    assert behind.remedy == (
        "nothing: it begins when these are well, or without news of them for an hour"
    )
    named = an_offer(plan(canaries=("n-000000000001",)))
    absent = waits(offer=named)
    assert absent.words == "waiting for canary n-000000000001 (not heard of)"
    assert absent.remedy == "switch that node on, or offer it anew with other canaries"


def test_it_waits_for_a_window() -> None:
    late = an_offer(plan(window=(60, 120)))
    found = waits(offer=late, minute=600)
    assert found.words == "for the time from 01:00 to 02:00 UTC"
    assert found.remedy == (
        "nothing: it begins then; to begin now, offer it anew without `--window`"
    )
    lost = waits(offer=late)
    assert "this node does not know the time" in lost.words
    assert lost.remedy.startswith("give it the time (NTP, or a gateway that knows it), or ")


def test_it_is_stopped_and_told_to_wait() -> None:
    found = waits(entry(REST[0], State.FAILED, why="no peer"))
    assert found.words == f"stopped: {REST[0]} failed: no peer"
    assert found.remedy == f"offer another version, or {RESUME} goes on with this one"
    paused = told(entry(ME, State.PAUSED, 300, why="told to wait"), order=("pause", 5))
    assert (paused.percent, paused.words, paused.remedy) == (
        12,
        "told to wait",
        f"{RESUME} goes on",
    )
    aborted = told(entry(ME, State.ABORTED, why="told not to take it"), order=("abort", 5))
    assert aborted.remedy == f"{RESUME} has it taken all the same"
    app = OFFER._replace(bundle=OFFER.bundle._replace(compatible="", application="lamp"))
    of_app = told(entry(ME, State.PAUSED, 300, offer=app, why="told to wait"), offer=app)
    assert of_app.remedy == "`thicket update order resume lamp` goes on"


def test_another_version_is_under_way() -> None:
    own = entry(ME, State.WAITING, why="0.1.5 first")
    journal = Journal(b"another", "", "0.1.5", Phase.TRIAL, "B")
    found = told(own, here=Here(own.record, journal))
    assert found.words == "version 0.1.5 is under way here"
    assert found.remedy == "nothing: it begins when 0.1.5 is done"


@pytest.mark.parametrize(
    ("trial", "words", "remedy"),
    [
        (
            Trial.GOES_ON,
            "0.1.5 is on trial here",
            "nothing: it begins when that trial has ended",
        ),
        (
            Trial.CALLED_OFF,
            "the trial of 0.1.5 was called off: the node has to restart first",
            "`reboot`; else it restarts by itself, a quarter of an hour after its start",
        ),
    ],
)
def test_what_somebody_has_begun_by_hand(trial: Trial, words: str, remedy: str) -> None:
    found = waits(node=Node(ME, "thicket-standin", "0.1.5", epoch=1, trial=trial))
    assert (found.words, found.remedy) == (words, remedy)


def test_what_was_begun_with_an_offer_that_does_not_count_any_more() -> None:
    own = entry(ME, State.WAITING)
    journal = Journal(OFFER.identifier, "", "0.2.0", Phase.ARMED, "B")
    found = told(own, here=Here(own.record, journal))
    assert found.words == "it ends what it has begun with version 0.2.0"
    assert found.remedy == "nothing: it goes on by itself"


def test_bytes_rate_and_time_left() -> None:
    own = entry(ME, State.FETCHING, 100)
    here = Here(own.record, fetched=(3482, 8908), rate=1234.5, left=4.4)
    found = told(own, here=here)
    assert found.words == (
        "it gets the patch from the nodes that are connected: 3.4 KiB of 8.7 KiB, 1.2 KiB/s, 4 s "
        "left"
    )
    # What it told the others is older.
    assert (found.percent, found.done, found.size, found.rate, found.left) == (
        11,
        3482,
        8908,
        1234,
        4,
    )
    assert told(own, here=here._replace(left=None)).words.endswith("1.2 KiB/s")
    assert told(own, here=here._replace(rate=None)).words.endswith("3.4 KiB of 8.7 KiB")
    # It has begun meanwhile, and so has the making of the bundle.
    began = told(
        entry(ME, State.OFFERED), here=here._replace(record=entry(ME, State.OFFERED).record)
    )
    assert (began.state, began.words) == ("fetching", found.words)
    whole = told(own, here=here._replace(fetched=(8908, 8908), rate=None))
    assert whole.words == "its patch is here, and is written out to the card: 8.7 KiB of 8.7 KiB"
    made = here._replace(work=Work(Stage.MAKING, 1, 10))
    assert told(own, here=made).state == "making"
    nothing = entry(ME, State.OFFERED)
    assert told(nothing).percent == 0
    assert "`thicket nodes` shows who is connected" in told(nothing).remedy


def test_what_is_made_checked_and_written() -> None:
    own = in_stage(Stage.MAKING, entry(ME, State.FETCHING, 100))
    making = Here(own.record, fetched=(8908, 8908), work=Work(Stage.MAKING, 50, 100), rate=9.0)
    found = told(own, here=making)
    assert (found.state, found.percent) == ("making", 35)
    assert found.words == "it makes the bundle from the patch and from what runs"
    assert found.size is None, "parts of its work are no bytes of the bundle"
    own = in_stage(Stage.CHECKING, entry(ME, State.INSTALLING))
    work = Work(Stage.CHECKING, 10 << 20, 40 << 20, measured=True)
    found = told(own, here=Here(own.record, work=work, rate=float(1 << 20), left=30.0))
    assert (found.state, found.percent) == ("checking", 41)
    assert found.words == (
        "it compares the whole bundle with what was signed: 10.0 MiB of 40.0 MiB, 1.0 MiB/s, 30 s "
        "left"
    )
    own = entry(ME, State.INSTALLING, 100)
    journal = Journal(OFFER.identifier, "", "", Phase.BEGUN, "B")
    found = told(own, here=Here(own.record, journal, work=Work(done=50, total=100), rate=1.0))
    assert (found.state, found.percent) == ("installing", 57)
    assert found.words == "it writes slot B; what runs is not touched"
    own = entry(ME, State.RESTARTING)
    assert told(own, here=Here(own.record, journal)).words == "it restarts into slot B"
