# SPDX-License-Identifier: Apache-2.0
"""Records of progress: one form, numbers that grow, and tables that come to be the same."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thicket.identity.address import SOURCES
from thicket.update import progress
from thicket.update.progress import (
    BURST,
    KEEP,
    MAX_SIZE,
    MAX_SUMMARY,
    MOST_NODES,
    MOST_WORDS,
    NAMES,
    WHOLE,
    Members,
    Own,
    Progress,
    RecordError,
    Stage,
    Stand,
    State,
    Table,
    called,
    node_name,
    short,
    split_name,
)

NODE = "n-6f44e3c6b802"
OFFER = b"o" * 32
RECORDS = st.builds(
    Progress,
    st.builds(node_name, st.sampled_from(SOURCES), st.binary(min_size=6, max_size=6)),
    st.binary(min_size=32, max_size=32),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 15).map(State),
    st.integers(0, WHOLE),
    st.text(st.characters(exclude_categories=["Cs"])).map(short),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, 15).map(Stage),
)


def record(
    number: int = 1, state: State = State.READY, node: str = NODE, done: int = 0
) -> Progress:
    return Progress(node, OFFER, number, state, done)


def test_the_form_of_a_record() -> None:
    """The bytes do not change by accident: nodes of another version read them."""
    one = Progress(NODE, OFFER, 0x0102030405060708, State.FAILED, 999, "why", 3600, 0x0A0B0C0D)
    assert progress.pack(one).hex() == (
        "6f" * 32 + "00" + "6f44e3c6b802" + "0102030405060708" + "0a0b0c0d" + "08" + "03e7"
        "00000e10" + "03" + "776879"
    )
    assert progress.unpack(progress.pack(one)) == one


def test_nodes_of_other_versions() -> None:
    """A record of an older node has no stage; what a newer one adds is kept and shown as it is."""
    packed = bytearray(progress.pack(record(1, State.FETCHING)))
    assert packed[51] == 1
    for where, name in (
        (0x11, "making"),
        (0x24, "checking"),
        (0x0C, "state-12"),
        (0x51, "fetching-5"),
    ):
        packed[51] = where
        one = progress.unpack(bytes(packed))
        assert one.called == name
        assert progress.pack(one) == packed
    assert len(tuple(State)) == 12, "a number of a newer node is no state that there is"
    # What it is about for the rollout stands in the state, whatever the stage is.
    packed[51] = 0xF0 | State.INSTALLING
    assert progress.unpack(bytes(packed)).begun


def test_the_guide_explains_what_a_node_may_say() -> None:
    guide = (Path(__file__).parents[2] / "docs/updating.md").read_text("utf-8")
    _, _, rest = guide.partition("| a node says | it |\n")
    table, _, _ = rest.partition("\n\n")
    said = [
        name for line in table.splitlines() for name in re.findall("`([a-z]+)`", line.split("|")[1])
    ]
    assert sorted(set(said)) == sorted(NAMES)
    assert called(State.INSTALLING, Stage.CHECKING) == "checking"


@given(RECORDS)
def test_what_is_packed_is_read(one: Progress) -> None:
    packed = progress.pack(one)
    assert len(packed) <= MAX_SIZE
    assert progress.unpack(packed) == one


@given(st.binary(max_size=MAX_SIZE + 1) | RECORDS.map(progress.pack), st.data())
def test_anything_else_is_refused(data: bytes, draw: st.DataObject) -> None:
    if data:
        at = draw.draw(st.integers(0, len(data) - 1))
        data = data[:at] + draw.draw(st.binary(max_size=2)) + data[at + 1 :]
    try:
        one = progress.unpack(data)
    except RecordError as error:
        assert str(error)
    else:
        assert progress.pack(one) == data


@given(st.text())
def test_words_are_short_and_visible(text: str) -> None:
    line = short(text)
    assert len(line.encode()) <= MOST_WORDS
    assert line.isprintable()
    assert short(line) == line


def test_names() -> None:
    assert split_name("n-010203040506.mac") == (2, bytes((1, 2, 3, 4, 5, 6)))
    for wrong in (
        "n-0102",
        "n-0102030405067",
        "x-010203040506",
        "n-010203040506.wifi",
        "n-A10203040506",
    ):
        with pytest.raises(ValueError, match=r"n-|not in tuple|tuple\.index|fromhex"):
            split_name(wrong)


# -- this node's own


def test_a_record_is_made_when_there_is_something_new() -> None:
    own = Own(NODE, 7)
    first = own.tell(0.0, Stand(OFFER, State.OFFERED))
    assert first is not None
    assert first.number > 7 << Own.COUNT
    assert own.tell(1.0, Stand(OFFER, State.OFFERED)) is None
    fetching = own.tell(2.0, Stand(OFFER, State.FETCHING, 10))
    assert fetching is not None
    assert (fetching.number, fetching.age) == (first.number + 1, 0)
    assert own.tell(3.0, Stand(OFFER, State.FETCHING, 20)) is None
    later = own.tell(12.0, Stand(OFFER, State.FETCHING, 30))
    assert later is not None
    assert later.age == 10
    assert own.tell(13.0, Stand(OFFER, State.FETCHING, 30, "slowly")) is not None
    assert own.tell(14.0, Stand(OFFER, State.FETCHING, 30, "slowly", order=4)) is not None
    again = own.tell(14.0 + Own.RENEW, Stand(OFFER, State.FETCHING, 30, "slowly", order=4))
    assert again is not None
    making = own.tell(30.0 + Own.RENEW, Stand(OFFER, State.FETCHING, 30, stage=Stage.MAKING))
    assert making is not None
    assert (making.age, making.called) == (0, "making")


def test_many_nodes_tell_less_often_how_much_is_done() -> None:
    own = Own(NODE, 1)
    own.tell(0.0, Stand(OFFER, State.FETCHING, 0))
    assert own.tell(200.0, Stand(OFFER, State.FETCHING, 500), nodes=500) is None
    assert own.tell(200.0, Stand(OFFER, State.DONE), nodes=500) is not None
    assert own.tell(201.0, Stand(OFFER, State.DONE, WHOLE), nodes=500) is not None


def test_numbers_grow_over_starts_and_over_a_lost_disk() -> None:
    table, own = Table(), Own(NODE, 5)
    for now in range(5):
        told = own.tell(float(now), Stand(OFFER, State(now)))
        assert told is not None
        assert table.take(told, float(now))
    restarted = Own(NODE, 6)
    told = restarted.tell(9.0, Stand(OFFER, State.DONE))
    assert told is not None
    assert table.take(told, 9.0)
    lost = Own(NODE, 1)
    told = lost.tell(10.0, Stand(OFFER, State.OFFERED))
    assert told is not None
    assert not table.take(told, 10.0)
    lost.compare(table.entries[NODE].record)
    told = lost.tell(11.0, Stand(OFFER, State.OFFERED))
    assert told is not None
    assert table.take(told, 11.0)
    lost.compare(told)
    assert lost.tell(12.0, Stand(OFFER, State.OFFERED)) is None
    lost.compare(None)
    again = lost.tell(13.0, Stand(OFFER, State.OFFERED))
    assert again is not None
    assert again.number > told.number


# -- the table


def test_only_what_is_newer_is_taken() -> None:
    table = Table()
    assert table.take(record(3), 0.0)
    assert not table.take(record(3), 1.0)
    assert not table.take(record(2, State.DONE), 1.0)
    assert table.take(record(4), 2.0)
    assert table.entries[NODE].moved == 0.0
    assert table.take(record(5, State.DONE), 3.0)
    assert table.entries[NODE].moved == 3.0


def test_two_records_with_one_number_end_the_same_everywhere() -> None:
    lies = [record(1, State.DONE), record(1, State.FAILED)]
    here, there = Table(), Table()
    for one in lies:
        here.take(one, 0.0)
    for one in reversed(lies):
        there.take(one, 0.0)
    assert here.entries[NODE].record == there.entries[NODE].record


def test_a_node_that_sends_too_much_is_held_back_and_costs_the_others_nothing() -> None:
    table = Table()
    taken = sum(table.take(record(number), 0.0) for number in range(1000))
    assert taken == BURST
    assert table.dropped == 1000 - BURST
    assert table.take(record(1, node="n-000000000001"), 0.0)
    assert table.take(record(2000), 10.0)


def test_a_full_table_keeps_who_is_in_it() -> None:
    table = Table()
    for number in range(MOST_NODES + 10):
        table.take(record(1, node=node_name("chip", number.to_bytes(6, "big"))), 0.0)
    assert len(table.entries) == MOST_NODES
    assert node_name("chip", bytes(6)) in table.entries
    assert len(table.summary()) == MAX_SUMMARY
    assert table.lacking(table.summary()) == []


@given(st.lists(st.lists(RECORDS, max_size=8), min_size=2, max_size=2))
def test_tables_that_are_compared_become_the_same(records: list[list[Progress]]) -> None:
    here, there = Table(), Table()
    for table, known in zip((here, there), records, strict=True):
        for one in known:
            table.take(one, 0.0)
    for entry in here.lacking(there.summary()):
        there.take(entry.record, 0.0)
    for entry in there.lacking(here.summary()):
        here.take(entry.record, 0.0)
    assert here.digest() == there.digest()


@given(st.binary(max_size=200))
def test_any_summary(data: bytes) -> None:
    table = Table()
    table.take(record(5), 0.0)
    try:
        assert len(table.lacking(data)) <= 1
    except RecordError as error:
        assert str(error)


# -- the members


def test_members_are_kept_for_days_in_which_this_node_runs() -> None:
    members = Members()
    members.hear([NODE], 0.0)
    members.hear(["n-000000000001"], KEEP - 10)
    kept = progress.pack_members(members.ages(KEEP - 5))
    assert set(members.ages(KEEP + 5)) == {"n-000000000001"}
    again = Members(progress.unpack_members(kept), 1000.0)
    assert again.ages(1000.0) == {NODE: KEEP - 5, "n-000000000001": 5.0}
    assert set(again.ages(1006.0)) == {"n-000000000001"}


def test_members_are_bounded_and_a_damaged_file_is_read_as_far_as_it_goes() -> None:
    members = Members()
    members.hear((node_name("chip", n.to_bytes(6, "big")) for n in range(2 * MOST_NODES)), 0.0)
    assert len(members.ages(0.0)) == MOST_NODES
    noise = random.Random(1).randbytes(300)
    assert progress.unpack_members(noise + f"\n{NODE} 5\n{NODE}x 6\n{NODE} -1\n".encode()) == {
        NODE: 5
    }
