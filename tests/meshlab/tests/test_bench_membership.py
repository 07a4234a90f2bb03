# SPDX-License-Identifier: Apache-2.0
"""meshlab.bench.membership: the simulated fleet keeps the promises, and counts what is real."""

from __future__ import annotations

import random

import pytest

from meshlab.bench import membership
from meshlab.bench.membership import Fleet, bench, corner, geometric, grid, memory, size_of
from thicket.distribution import members
from thicket.distribution.etf import Atom, Pid, encode_bare
from thicket.distribution.ledger import BUCKETS, Record
from thicket.distribution.roster import Message, Records, Sum, Sums, Versions, Want, Wish, Wished

NAMES = [f"thicket@fd12:3456:789a:1:0:0:e3c6:{number:x}" for number in range(100)]


@pytest.mark.parametrize("kind", ["grid", "geometric"])
@pytest.mark.parametrize("formed", [False, True])
def test_promises_hold_at_fifty_nodes(
    kind: str, formed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if formed:
        monkeypatch.setattr(membership, "FORMS", 10)
    found = dict(bench(kind, 50, 3, 0.02))
    assert found["false alarms, and losses not seen"] == "0, 0"
    assert found["nodes that never learnt it"] == "0"
    assert float(found["a loss is known by the last neighbour"].split()[0]) < 5
    assert float(found["by half of all, by all"].split()[1]) < 10
    assert found["they are back: whole again"] != "no"
    if not formed:
        assert found["forms (switched on within 10 s)"] != "no"


def test_a_formed_fleet_is_what_others_become() -> None:
    formed = Fleet(grid(36), random.Random(1), 0.0, formed=True)
    grown = Fleet(grid(36), random.Random(1), 0.0, formed=False)
    assert grown.run(120, grown.whole)
    assert formed.whole()
    formed.watching = grown.watching = True
    for fleet in (formed, grown):
        fleet.run(120)
        assert fleet.seen == []
        assert len({node.roster.ledger.total for node in fleet.nodes}) == 1


def test_a_crowd_is_joined_by_few_connections() -> None:
    graph = [set(range(40)) - {at} for at in range(40)]
    fleet = Fleet(graph, random.Random(2), 0.0, formed=False)
    assert fleet.run(120, fleet.whole)
    fleet.run(60)
    assert fleet.degree() < 12
    assert fleet.whole()


def test_graphs_have_one_part() -> None:
    for graph in (grid(50), geometric(50, random.Random(4), degree=3.0)):
        assert len(corner(graph, 50)) == 50
        assert all(at in graph[other] for at, near in enumerate(graph) for other in near)


@pytest.mark.parametrize(
    "message",
    [
        Wished(Wish(True, False)),
        Sum(2**63),
        Sums([2**63] * BUCKETS),
        Versions(list(range(8)), {(name, ""): 7 for name in NAMES}),
        Want([(name, "") for name in NAMES]),
        Records([Record(name, "", 7, b"x" * 200) for name in NAMES]),
        Records([Record(NAMES[0], "pg:pg", 7, b"x" * 10)]),
    ],
)
def test_bytes_are_counted_as_they_are_sent(message: Message) -> None:
    control = (6, Pid(Atom(NAMES[0]), 1, 2, 3), Atom(""), Atom(members.NAME))
    real = len(encode_bare(control)) + len(encode_bare(members.pack(message), text=True))
    assert abs(size_of(message) - membership.AROUND - real) < 30 + 0.1 * real


def test_the_tables_of_a_node_are_small() -> None:
    assert memory(300) < 4096
