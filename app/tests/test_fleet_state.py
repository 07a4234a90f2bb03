# SPDX-License-Identifier: Apache-2.0
"""How all nodes of a fleet are: what each tells, what is made of it, and what a person sees."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from daemons import Fleet, NamespaceNode, Secured
from hypothesis import given
from hypothesis import strategies as st
from json_schema import fits
from status_documents import document

from authority.labels import Said
from thicket.cli import fleet as shown
from thicket.cli.cells import fit, pad, width, wrapped
from thicket.cli.main import main
from thicket.control.client import ClientError
from thicket.daemon.fleet_part import device_named
from thicket.distribution.etf import Atom
from thicket.distribution.handshake import DistributionError
from thicket.fleet import view as views
from thicket.fleet.rows import BAD_NEWS, HEALTHS, Facts, Known, counts, rows
from thicket.fleet.view import FleetView, Seen
from thicket.fleet.way import UNKNOWN, ways
from thicket.metrics import machine, summary
from thicket.metrics.gather import Failure, Told
from thicket.metrics.summary import Application, Link, Problem, Summary
from thicket.trust.labels import Entry

SCHEMA = json.loads(Path(__file__).parents[2].joinpath("docs/fleet.schema.json").read_text())
BARE = machine.Machine(1.0, False, None, 1, {}, {}, None, None, {}, {}, None, [])
FULL = BARE._replace(
    load=(0.5, 0.4, 0.3), memory={"MemAvailable": 1 << 29, "MemTotal": 1 << 30},
    data=(1 << 30, 1 << 29, 1 << 29), data_errors=0, temperatures={"a": 40.0, "b": 51.26},
    cards={"mmcblk0": machine.Card(0.3, 1), "mmcblk1": machine.Card(None, 2)},
    undervoltage=False, time=1_800_000_000.1234, synchronised=True,
)  # fmt: skip


def name(number: int) -> str:
    return f"thicket@fd12:3456:789a:1::{number:x}"


def mac(number: int) -> str:
    return f"0274680000{number:02x}"


# -- what a node tells

TEXTS = st.text(max_size=20).filter(str.isprintable)
SUMMARIES = st.builds(
    Summary,
    state=st.sampled_from(("joined", "degraded", "joining")),
    version=st.none() | TEXTS,
    slot=st.none() | TEXTS,
    uptime=st.none() | st.integers(0, 2**53),
    problem=st.none()
    | st.builds(Problem, st.sampled_from(("error", "warning")), TEXTS, TEXTS, TEXTS),
    errors=st.integers(0, 9),
    warnings=st.integers(0, 9),
    load=st.none() | st.floats(0, 1e6),
    cpus=st.none() | st.integers(1, 64),
    temperature=st.none() | st.floats(-50, 150),
    undervoltage=st.none() | st.booleans(),
    memory=st.none() | st.tuples(st.integers(0, 2**40), st.integers(1, 2**40)),
    data=st.none() | st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)),
    data_errors=st.none() | st.integers(0, 99),
    worn=st.none() | st.floats(0, 1.1),
    reserve=st.none() | st.integers(0, 3),
    time=st.none() | st.floats(0, 4e9),
    synchronised=st.none() | st.booleans(),
    applications=st.lists(st.builds(Application, TEXTS, TEXTS), max_size=3).map(tuple),
    mac=st.none() | st.integers(0, 255).map(mac),
    links=st.lists(
        st.builds(
            Link,
            st.integers(0, 255).map(mac),
            st.none() | st.integers(-120, 0),
            st.none() | st.integers(0, 99_999),
        ),
        max_size=4,
    ).map(tuple),
)


def packed(**fields: Any) -> bytes:
    return zlib.compress(json.dumps({"state": "joined", **fields}).encode())


class TestSummary:
    @given(SUMMARIES)
    def test_what_is_packed_comes_back(self, told: Summary) -> None:
        found, size = summary.unpack(summary.pack(told))
        assert found == told
        assert size <= summary.MOST_BYTES

    def test_of_a_node(self) -> None:
        found = summary.summary(document(), FULL)
        assert found == Summary(
            state="joined", version="0.1.0", slot="A", uptime=1234,
            problem=Problem("warning", "identity", "no-chip", "m"), warnings=1, load=0.5, cpus=1,
            temperature=51.3, undervoltage=False, memory=(1 << 19, 1 << 20),
            data=(1 << 19, 1 << 20), data_errors=0, worn=0.3, reserve=2, time=1_800_000_000.123,
            synchronised=True, applications=(Application("sensors", "running"),), mac=mac(1),
            links=(Link(mac(2), -61, 217),),
        )  # fmt: skip
        assert summary.unpack(summary.pack(found))[0] == found

    @pytest.mark.parametrize(("silent", "told"), [(False, 1), (True, 0)])
    def test_a_link_that_is_silent_is_not_told(self, silent: bool, told: int) -> None:
        peers = [{"mac": "02:74:68:00:00:02", "state": "ESTAB", "signal_dbm": -61, "metric": 217,
                  "silent": silent}]  # fmt: skip
        assert len(summary.summary(document(peers=peers), FULL).links) == told

    def test_texts_of_a_node_are_made_visible_and_cut(self) -> None:
        problem = {"part": "p\x1b" * 99, "code": "c" * 99, "message": "\u202e\ud800" * 999,
                   "severity": "error", "since": 1.0}  # fmt: skip
        found = summary.summary(document(problems=[problem] * 3), BARE)
        assert found.errors == 3
        assert summary.unpack(summary.pack(found))[0] == found

    def test_the_largest_is_taken(self) -> None:
        peers = [{"mac": f"02:74:68:00:{n:02x}:01", "state": "ESTAB", "signal_dbm": -n - 1,
                  "metric": 9999 + n} for n in range(120)]  # fmt: skip
        apps = [{"name": "ä" * 90, "state": "running", "starts": 1}] * 99
        found = summary.summary(document(peers=peers, applications=apps), FULL)
        assert len(found.links) == summary.MOST_LINKS
        assert summary.unpack(summary.pack(found))[0] == found

    def test_a_newer_node_may_say_more_and_an_older_one_less(self) -> None:
        assert summary.unpack(packed(colour="red"))[0] == Summary("joined")
        assert summary.unpack(packed(version=None))[0] == Summary("joined")

    @pytest.mark.parametrize(
        "data",
        [
            b"", b"x", packed()[:-3], zlib.compress(b"5"), zlib.compress(b"[" * 9999),
            zlib.compress(b"{}"), zlib.compress(b"\xff"), zlib.compress(b" " * 10_000_000),
            b"x" * (summary.MOST_PACKED + 1), packed(state=5), packed(state="a\x1b[2J"),
            packed(state="x" * 33), packed(version=["x"]), packed(version="a\nb"),
            packed(uptime=-1), packed(uptime=True), packed(uptime=1.5), packed(uptime=2**60),
            packed(problem=["fatal", "a", "b", "c"]), packed(problem=["error", "a", "b"]),
            packed(problem=["error", "a", "b", "c" * 241]), packed(problem="error"),
            packed(problem=["error", "a", "b", "\u202ec"]), packed(problem=[{}, "a", "b", "c"]),
            packed(errors="1"), packed(load=float("nan")), packed(load=float("inf")),
            packed(load=-1), packed(load="1"), packed(cpus=0), packed(temperature=1e999),
            packed(undervoltage=1), packed(memory=[1]), packed(memory=[1, 0]),
            packed(memory={"0": 1}), packed(worn=99), packed(time=1e300),
            packed(applications=[["x"]]), packed(applications=[["x", "y"]] * 33),
            packed(applications=[["\x9b", "running"]]), packed(mac="02:74"), packed(mac="G" * 12),
            packed(links=[[mac(1), -50, 1]] * 100), packed(links=[[mac(1), -500, 1]]),
            packed(links=[[mac(1), -50, -1]]), packed(links=[[5, 1, 1]]), packed(links=5),
        ],
        ids=lambda data: hashlib.sha256(repr(data).encode()).hexdigest()[:8],
    )  # fmt: skip
    def test_nonsense_is_refused(self, data: bytes) -> None:
        with pytest.raises(ValueError):
            summary.unpack(data)

    @given(st.binary(max_size=200))
    def test_garbage_is_refused(self, data: bytes) -> None:
        for garbage in (data, zlib.compress(data)):
            with pytest.raises(ValueError):
                summary.unpack(garbage)


class TestMachine:
    def files(self, root: Path, **texts: str) -> machine.Machine:
        for path, text in texts.items():
            file = root / path.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return machine.read(str(root))

    def test_the_health_of_a_card(self, tmp_path: Path) -> None:
        found = self.files(
            tmp_path,
            sys__block__mmcblk0__device__life_time="0x02 0x0b\n",
            sys__block__mmcblk0__device__pre_eol_info="0x03\n",
            sys__block__mmcblk0boot0__device__pre_eol_info="0x01\n",
            sys__block__mmcblk1__device__life_time="0x00 0x00\n",
            sys__block__mmcblk2__device__life_time="junk\n",
            sys__block__mmcblk2__device__pre_eol_info="0x01\n",
            proc__self__mounts="/dev/mmcblk0p4 /data ext4 rw 0 0\n",
            sys__fs__ext4__mmcblk0p4__errors_count="7\n",
        )
        assert found.cards == {
            "mmcblk0": machine.Card(1.1, 3), "mmcblk2": machine.Card(None, 1)
        }  # fmt: skip
        assert found.data_errors == 7

    @pytest.mark.parametrize(("text", "weak"), [("0\n", False), ("50005\n", True), ("x", None)])
    def test_the_firmware_tells_of_the_supply(
        self, tmp_path: Path, text: str, weak: bool | None
    ) -> None:
        folder = tmp_path / "sys/devices/platform/soc/soc:firmware"
        folder.mkdir(parents=True)
        (folder / "get_throttled").write_text(text)
        assert machine.read(str(tmp_path)).undervoltage is weak


# -- the way


class TestWays:
    def test_the_weakest_link_of_the_best_way(self) -> None:
        links = {
            mac(1): (Link(mac(2), -50, 100), Link(mac(3), -85, 5000)),
            mac(2): (Link(mac(1), -52, 120), Link(mac(3), -60, 200)),
            mac(3): (Link(mac(2), -71, 150), Link(mac(4), -80, 900)),
        }
        found = ways(mac(1), links, {mac(4): 3, mac(9): 5})
        assert [found[mac(n)].hops for n in (2, 3, 4, 9)] == [1, 2, 3, 5]
        weakest = found[mac(3)].weakest
        assert weakest is not None
        assert {weakest.one, weakest.other} == {mac(2), mac(3)}
        assert (weakest.signal, weakest.metric) == (-71, 200), "the worse of both directions"
        last = found[mac(4)].weakest
        assert last is not None
        assert last[2:] == (-80, 900), "one end alone tells of it"
        assert found[mac(9)].weakest is None
        assert mac(1) not in found

    def test_the_radio_knows_the_hops_better(self) -> None:
        links = {mac(1): (Link(mac(2), -50, 100),)}
        assert ways(mac(1), links, {mac(2): 2})[mac(2)].hops == 2

    def test_links_without_figures_count_as_bad_ones(self) -> None:
        links = {
            mac(1): (Link(mac(2), None, None), Link(mac(3), -50, 100)),
            mac(3): (Link(mac(2), -50, UNKNOWN - 101),),
        }
        assert ways(mac(1), links, {})[mac(2)].hops == 2

    @given(
        st.dictionaries(
            st.integers(0, 9).map(mac),
            st.lists(
                st.builds(
                    Link, st.integers(0, 9).map(mac), st.none() | st.integers(-99, 0),
                    st.none() | st.integers(0, 2**32 - 1),
                )
            ).map(tuple),
        )
    )  # fmt: skip
    def test_liars_make_no_endless_ways(self, links: dict[str, tuple[Link, ...]]) -> None:
        found = ways(mac(0), links, {})
        assert mac(0) not in found
        assert all(1 <= way.hops <= 9 for way in found.values())


# -- all nodes


def told(one: Summary, *, age: float = 0.0, took: float = 0.1) -> Told[Summary]:
    return Told(one, took, 1_800_000_000.0, 1000.0 - age)


def facts(**members: Any) -> Facts:
    nodes = [Known(name(1), "self"), Known(name(2), "up"), Known(name(3), "up", 4.0)]
    well = Summary("joined", "0.1.0", uptime=9, time=1_799_999_999.95)
    given: dict[str, Any] = {
        "own": name(1), "nodes": nodes, "told": {node.name: told(well) for node in nodes},
        "failures": {}, "labels": {}, "macs": {}, "paths": {}, "monotonic": 1000.0,
        "synchronised": True, **members,
    }  # fmt: skip
    return Facts(**given)


def row(of: int, made: list[dict[str, Any]]) -> dict[str, Any]:
    return next(one for one in made if one["name"] == name(of))


class TestRows:
    def test_all_is_well(self) -> None:
        made = rows(facts())
        assert [one["health"] for one in made] == ["well"] * 3
        assert counts(made) == dict.fromkeys(HEALTHS, 0) | {"nodes": 3, "well": 3}
        assert row(1, made)["this"]
        assert row(2, made)["clock"] == {
            "synchronised": None, "offset": 0.0, "uncertainty": 0.05
        }  # fmt: skip
        assert row(3, made)["heard"] == 0.0

    def test_links_have_the_names_of_their_other_ends(self) -> None:
        links = (Link(mac(2), -61, 217), Link(mac(9), None, None))
        answers = {name(1): told(Summary("joined", mac=mac(1), links=links))}
        made = rows(facts(told=answers, macs={name(1): mac(1), name(2): mac(2)}))
        assert row(1, made)["links"] == [
            {"node": name(2), "signal_dbm": -61, "metric": 217},
            {"node": mac(9), "signal_dbm": None, "metric": None},
        ]
        assert row(2, made)["links"] is None, "it has told nothing"

    def test_the_worst_comes_first(self) -> None:
        nodes = [Known(name(1), "self"), *(Known(name(n), "up") for n in range(2, 8)),
                 Known(name(8), "away", 77.0),
                 Known(name(9), "connecting", 3.0, "refused")]  # fmt: skip
        answers = {
            name(1): told(Summary("joined")),
            name(2): told(Summary("joined", warnings=1)),
            name(3): told(Summary("degraded", errors=1)),
            name(4): told(Summary("joined", errors=2)),
            name(8): told(Summary("joined")),  # before it went
        }
        failures = {
            name(5): Failure("timeout", "no answer in time"),
            name(6): Failure("refused", "it does not share"),
        }
        made = rows(facts(nodes=nodes, told=answers, failures=failures))
        assert [(int(one["name"][-1]), one["health"]) for one in made] == [
            (4, "problem"), (3, "problem"), (5, "silent"), (8, "away"), (9, "away"),
            (2, "warning"), (6, "untold"), (7, "untold"), (1, "well"),
        ]  # fmt: skip
        assert row(8, made)["state"] is None
        assert row(8, made)["heard"] == 77.0
        assert row(9, made)["why"] == "refused"
        assert row(5, made)["why"] == "no answer in time"
        assert {"problem", "silent", "away"} == BAD_NEWS

    @pytest.mark.parametrize(
        ("told_", "code"),
        [
            ({"undervoltage": True}, "undervoltage"), ({"temperature": 80.0}, "hot"),
            ({"memory": (9, 100)}, "little-memory"), ({"data": (9, 100)}, "little-data"),
            ({"worn": 0.9}, "card-worn"), ({"reserve": 2}, "card-worn"),
            ({"data_errors": 1}, "data-errors"), ({"time": 1_800_000_009.0}, "clock"),
            ({"time": 1.0}, "clock"),
            ({"applications": (Application("x", "waiting"),)}, "application"),
        ],
    )  # fmt: skip
    def test_what_somebody_should_know(self, told_: dict[str, Any], code: str) -> None:
        answers = {name(n): told(Summary("joined")) for n in (1, 3)}
        answers[name(2)] = told(Summary("joined", **told_))
        made = rows(facts(told=answers))
        assert made[0]["name"] == name(2)
        assert made[0]["health"] == "warning"
        assert [one["code"] for one in made[0]["concerns"]] == [code]

    def test_a_clock_is_compared_with_one_that_is_right(self) -> None:
        answers = {name(n): told(Summary("joined", time=5.0)) for n in (1, 2, 3)}
        assert rows(facts(told=answers, synchronised=False))[0]["health"] == "well"
        slow = {**answers, name(2): told(Summary("joined", time=1_800_000_002.0), took=8.0)}
        assert row(2, rows(facts(told=slow)))["concerns"] == [], "it may be right"

    def test_labels_places_and_ways(self) -> None:
        macs = {name(1): mac(1)}
        answers = {
            name(1): told(Summary("joined", mac=mac(1), links=(Link(mac(2), -50, 100),))),
            name(2): told(Summary("joined", mac=mac(2), links=(Link(mac(7), -80, 300),))),
            name(3): told(Summary("joined")),
        }
        labels = {1: Entry(1, "gate", (52.5, 13.25)), 2: Entry(1, "", "roof", "a note")}
        made = rows(facts(told=answers, macs=macs, labels=labels, paths={mac(7): 2}))
        assert row(1, made)["position"] == [52.5, 13.25]
        assert (row(2, made)["label"], row(2, made)["place"]) == (None, "roof")
        assert row(2, made)["way"] == {
            "hops": 1,
            "weakest": {"between": [name(1), name(2)], "signal_dbm": -50, "metric": 100},
        }
        assert row(3, made)["way"] is None
        assert row(1, made)["way"] is None

    def test_who_claims_the_radio_of_another_gets_none(self) -> None:
        macs = {name(1): mac(1), name(2): mac(2)}
        answers = {
            name(1): told(Summary("joined", mac=mac(1), links=(Link(mac(2), -50, 100),))),
            name(2): told(Summary("joined", mac=mac(2))),
            name(3): told(Summary("joined", mac=mac(2), links=(Link(mac(1), -1, 1),))),
        }
        made = rows(facts(told=answers, macs=macs))
        assert row(3, made)["way"] is None
        assert row(2, made)["way"]["weakest"]["between"] == [name(1), name(2)]
        assert row(2, made)["way"]["weakest"]["metric"] == 100

    @given(st.lists(SUMMARIES, min_size=3, max_size=3), st.booleans())
    def test_whatever_they_tell_it_is_as_the_schema_says(
        self, summaries: list[Summary], synchronised: bool
    ) -> None:
        answers = {name(n): told(one) for n, one in enumerate(summaries, 1)}
        made = rows(facts(told=answers, synchronised=synchronised, macs={name(1): mac(0)}))
        whole = {"schema": 1, "node": name(1), "time": 1.0, "counts": counts(made), "dropped": 0,
                 "nodes": made}  # fmt: skip
        fits(json.loads(json.dumps(whole)), SCHEMA)
        for columns in (80, 120, None):
            for line in shown.lines(whole, columns):
                assert columns is None or width(line) <= columns


@pytest.mark.parametrize(
    ("of", "device"),
    [
        ("01236f44e3c6b802ee", 0x6F44E3C6B802), ("software-mac-010203040506", 0x2_0102_0304_0506),
        ("Signer 0001", None), ("Update signer x", None), ("software-x-010203040506", None),
        ("software-mac-01", None), ("", None), ("01" * 30, None), ("software--", None),
    ],
)  # fmt: skip
def test_which_device_a_revoked_name_is(of: str, device: int | None) -> None:
    assert device_named(of) == device


# -- asking


class Members:
    """A cluster whose members answer what the test says."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def request(self, target: Any, request: Any, timeout: float | None = None) -> Any:
        assert (target[0], request) == ("thicket_metrics", "summary")
        self.asked.append(target[1])
        await asyncio.sleep(0.01)
        answer = self.answers[target[1]]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, float):
            await asyncio.sleep(answer)
        return answer


def viewing(members: Members, count: int = 3, **states: str) -> FleetView:
    def seen() -> Seen:
        nodes = [Known(name(1), "self")]
        nodes += [Known(name(n), states.get(f"n{n}", "up"), 3.0) for n in range(2, count + 1)]
        return Seen(name(1), nodes, {}, {}, {}, True)

    async def own() -> Summary:
        return Summary("joined")

    return FleetView(members, seen, own)


OK, ERROR = Atom("ok"), Atom("error")
WELL = (OK, summary.pack(Summary("joined", "0.1.0")))


@pytest.mark.virtual_time
class TestView:
    async def test_ten_who_look_cost_one_round(self) -> None:
        members = Members({name(2): WELL, name(3): WELL})
        view = viewing(members)
        made = await asyncio.gather(*(view.document() for _ in range(10)))
        assert all(one["counts"]["well"] == 3 for one in made)
        assert members.asked == [name(2), name(3)]
        await asyncio.sleep(views.fresh(3) - 0.5)
        await view.document()
        assert len(members.asked) == 2
        await asyncio.sleep(1.0)
        await view.document(wait=False)
        await asyncio.sleep(0.1)
        assert len(members.asked) == 4
        fits(json.loads(json.dumps(await view.document())), SCHEMA)

    async def test_a_large_fleet_is_asked_less_often(self) -> None:
        members = Members({name(n): WELL for n in range(2, 101)})
        view = viewing(members, 100)
        for _ in range(60):
            made = await view.document(wait=False)
            assert made["counts"]["well"] == 100, "also while they are asked again"
            await asyncio.sleep(1.0)
        assert len(members.asked) <= 3 * 99

    async def test_nodes_that_do_not_answer_are_rows(self) -> None:
        members = Members(
            {
                name(2): 1000.0,
                name(3): DistributionError("noproc", "it is of Erlang"),
                name(4): (ERROR, b"it does not share its numbers (metrics.share)"),
                name(5): OSError("no route to host"),
                name(6): WELL,
            }
        )
        begin = time.monotonic()
        made = await viewing(members, 7, n7="connecting").document()
        assert time.monotonic() - begin <= views.GATHER + 0.1
        found = {int(one["name"][-1]): (one["health"], one["why"]) for one in made["nodes"]}
        assert found == {
            1: ("well", None),
            2: ("silent", "no answer in time"),
            3: ("untold", "it is of Erlang"),
            4: ("untold", "it does not share its numbers (metrics.share)"),
            5: ("silent", "no route to host"),
            6: ("well", None),
            7: ("away", None),
        }
        assert name(7) not in members.asked
        fits(json.loads(json.dumps(made)), SCHEMA)

    async def test_one_answer_that_is_missed_is_not_silence(self) -> None:
        members = Members({name(2): WELL, name(3): WELL})
        view = viewing(members)
        await view.document()
        members.answers[name(2)] = OSError("lost")
        await asyncio.sleep(10)
        made = await view.document()
        assert made["counts"]["well"] == 3
        assert row(2, made["nodes"])["heard"] == 3.0, "its last beacon is younger"
        await asyncio.sleep(views.stale(3))
        assert (await view.document())["counts"]["silent"] == 1

    async def test_its_own_figures_are_read_once_a_second(self) -> None:
        view = viewing(Members({name(2): WELL, name(3): WELL}))
        read = 0
        before = view._own

        async def own() -> Summary:
            nonlocal read
            read += 1
            return await before()

        view._own = own
        await view.document()
        for _ in range(50):
            await view.document(wait=False)
            await asyncio.sleep(0.1)
        assert 4 <= read <= 6

    async def test_a_new_node_is_asked_at_once(self) -> None:
        members = Members({name(2): WELL, name(3): WELL})
        view = viewing(members, 2)
        await view.document()
        view._seen = viewing(members, 3)._seen
        assert (await view.document())["counts"]["well"] == 3

    @pytest.mark.parametrize(
        "answer",
        [
            "words", 5, (OK, "text"), (OK, b""), (OK, b"x" * 99_999), (OK,), (ERROR, "x"),
            (OK, packed(state="\x1b]0;title\x07")), (OK, packed(version="x" * 10_000)),
            (OK, zlib.compress(b" " * 50_000_000)), (OK, zlib.compress(b"[" * 16_000)),
        ],
        ids=lambda data: hashlib.sha256(repr(data).encode()).hexdigest()[:8],
    )  # fmt: skip
    async def test_a_liar_is_dropped_and_counted(self, answer: Any) -> None:
        made = await viewing(Members({name(2): answer, name(3): WELL})).document()
        assert made["dropped"] == 1
        assert row(2, made["nodes"])["health"] == "silent"
        assert row(3, made["nodes"])["health"] == "well"

    async def test_words_of_a_refusal_are_made_harmless(self) -> None:
        refusal = (ERROR, b"\x1b[2J\xff" + b"x" * 100_000)
        made = await viewing(Members({name(2): refusal, name(3): WELL})).document()
        why = row(2, made["nodes"])["why"]
        assert why.isprintable()
        assert len(why) <= 160


# -- as a table


class TestCells:
    @pytest.mark.parametrize(
        ("text", "columns"),
        [("abc", 3), ("", 0), ("\u6e29\u5ba4", 4), ("cafe\u0301", 4), ("\uff21", 2), ("\xe4", 1)],
    )
    def test_what_a_text_takes(self, text: str, columns: int) -> None:
        assert width(text) == columns
        assert fit(text, columns) == text
        assert width(pad(text, 9)) == width(pad(text, 9, right=True)) == 9

    @given(st.text("ab \u6e29\u0301\xe4", max_size=30), st.integers(0, 20))
    def test_nothing_is_wider_than_its_place(self, text: str, columns: int) -> None:
        assert width(fit(text, columns)) <= columns
        assert all(width(line) <= max(columns, 2) for line in wrapped(text, max(columns, 2)))
        assert "".join(wrapped(text, max(columns, 2))) == re.sub(r"\s", "", text) or " " in text

    def test_times_are_short(self) -> None:
        found = [shown.short(s) for s in (0, 99.9, 100, 5999, 6000, 172_799, 172_800, 3e7)]
        assert found == ["0s", "99s", "1m", "99m", "1h", "47h", "2d", "347d"]


def many(count: int = 12) -> dict[str, Any]:
    """A fleet with everything in it that may happen."""
    nodes = [Known(name(1), "self")] + [Known(name(n), "up", 9.0) for n in range(2, count + 1)]
    nodes += [Known(name(98), "away"), Known(name(99), "connecting", 2.0, "it is revoked")]
    message = "words that go on for longer than a line of a terminal has columns. " * 4
    answers = {}
    for n in range(1, count):
        problem = Problem("error", "radio", "no-radio", message[:240].strip())
        answers[name(n)] = told(
            Summary(
                "degraded" if n == 3 else "joined", f"0.{n % 2}.0", "A", n * 10_000,
                problem if n == 3 else None, int(n == 3), int(n == 3), n / 7, 4, 40.0 + 4 * n,
                n == 4, (n * 100, 1000), (n * 100, 1000), int(n == 5), 0.1, 1, 1.8e9, True,
                (Application("sensors", "running"),), mac(n),
                (Link(mac(n + 1), -50 - n, 100 * n),),
            )
        )  # fmt: skip
    labels = {
        2: Entry(1, "\u6e29\u5ba4" * 16, "p" * 64, "n" * 160),
        3: Entry(1, "cafe\u0301 roof", (1.5, -2.0)),
        4: Entry(1, "x" * 32), 98: Entry(1, "gone"),
    }  # fmt: skip
    failures = {name(count): Failure("timeout", "no answer in time")}
    made = rows(
        facts(nodes=nodes, told=answers, labels=labels, failures=failures, macs={name(1): mac(1)})
    )
    return {"schema": 1, "node": name(1), "time": 1.8e9, "counts": counts(made), "dropped": 2,
            "nodes": made}  # fmt: skip


class TestTable:
    @pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 120, 200])
    def test_it_fits(self, columns: int) -> None:
        made = shown.lines(many(), columns)
        assert all(width(line) <= columns for line in made), made
        assert "NODE" in made[made.index("") + 1]

    def test_what_a_person_reads(self) -> None:
        whole = many()
        fits(json.loads(json.dumps(whole)), SCHEMA)
        made = shown.lines(whole, 80)
        assert made[0].startswith("14 nodes: ")
        assert "2 answers made no sense" in " ".join(made[:3])
        head, first, *below = made[made.index("") + 1 :]
        assert head.split()[:6] == ["NODE", "STATE", "HEARD", "UP", "HOPS", "LINK"]
        assert first.startswith("cafe\u0301 roof  ")
        assert first.split()[2:4] == ["degraded", "0s"]
        assert below[0].startswith("    PROBLEM (1 more): radio: words that go on")
        assert below[2].endswith("~"), "three lines of it"
        assert not below[3].startswith("    ")
        assert any(line.startswith("gone") and " never " in line for line in made)
        assert any("away" in line for line in made)

    def test_wide_says_all(self) -> None:
        text = "\n".join(shown.lines(many(), 80, wide=True))
        for said in (
            "p" * 64,
            "n" * 160,
            "1.50000, -2.00000",
            "x" * 32,
            "n-000000000003",
            "0.1.0 A",
        ):
            assert said in text

    def test_a_fleet_of_one_without_a_label(self) -> None:
        made = rows(facts(nodes=[Known(name(1), "self")]))
        one = {"counts": counts(made), "nodes": made, "dropped": 0}
        assert shown.lines(one, 80) == [
            "1 node: 1 well",
            "",
            "NODE            STATE   HEARD  UP  HOPS  LINK  LOAD  TEMP  MEM  CLOCK  VERSION",
            "n-000000000001  joined   here  9s     -     -     -     -    -  unset  0.1.0",
        ]
        assert shown.status(one) == 0

    @pytest.mark.parametrize("health", HEALTHS)
    def test_the_exit_status(self, health: str) -> None:
        one = {"counts": dict.fromkeys(HEALTHS, 0) | {health: 1}}
        assert shown.status(one) == int(health in BAD_NEWS)


# -- on running nodes


def publish(secured: Secured, node: NamespaceNode) -> dict[str, Any]:
    """What `thicket ca publish` does."""
    held = base64.b64decode(node.ask("labels-export")["labels"])
    _, packed_ = secured.authority.labels.merge([held] if held else [])
    assert packed_ is not None
    return dict(node.ask("labels-import", labels=base64.b64encode(packed_).decode()))


def labelled(node: NamespaceNode) -> bool:
    return bool(node.ask("labels-export")["labels"])


class TestNode:
    def test_a_fleet_with_labels_and_one_that_goes(
        self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        secured = Secured(fleet)
        a, b, c = nodes = [secured.add() for _ in range(3)]
        secretive = secured.add("[metrics]\nshare = false\n")
        fleet.until(lambda: fleet.formed(*nodes, secretive), "four nodes")
        secured.authority.labels.change(
            [
                (a.serial.hex(), Said("Gate", "52.5, 13.25", "key with the porter")),
                (b.serial.hex(), Said("north mast", "roof")),
            ]
        )
        fleet.until(lambda: labelled(a) or True, "it answers")
        assert publish(secured, a) == {"taken": True, "number": 1, "labels": 2}
        assert publish(secured, a)["taken"] is False
        fleet.until(lambda: all(map(labelled, nodes)), "all have labels")

        # Every node resolves them, as all other names.
        for text in ("north mast", "NORTH MAST", b.name, f"n-{b.identity}", b.identity[-3:]):
            assert c.ask("ping", node=text)["node"] == b.name
        assert c.ask("ping", node=b.name.partition("@")[2])["node"] == b.name
        with pytest.raises(ClientError, match="no node is known as 'north'"):
            c.ask("ping", node="north")
        assert a.ask("status")["label"] == "Gate"

        # One asks all.
        monkeypatch.setenv("THICKET_ROOT", str(c.folder))
        assert main(["fleet", "--json"]) == 0
        told_ = json.loads(capsys.readouterr().out)
        fits(told_, SCHEMA)
        assert told_["counts"] | {"well": 0, "warning": 0} == {
            "nodes": 4, "problem": 0, "silent": 0, "away": 0, "warning": 0, "untold": 1, "well": 0
        }  # fmt: skip
        by_label = {one["label"]: one for one in told_["nodes"]}
        assert by_label["Gate"]["position"] == [52.5, 13.25]
        assert by_label["Gate"]["note"] == "key with the porter"
        assert by_label["north mast"]["place"] == "roof"
        assert by_label["north mast"]["state"] == "joined"
        assert abs(by_label["north mast"]["clock"]["offset"]) < 60
        assert main(["fleet"]) == 0
        text = capsys.readouterr().out
        assert "Gate" in text
        assert "does not share" in text
        assert main(["fleet", "--jsn"]) == 2
        capsys.readouterr()

        # A node that goes is away, and one that was never there, but has a label.
        b.stop()
        fleet.until(lambda: b.name not in c.members(), "it is missed")
        secured.add(start=False)
        (missing,) = set(secured.authority.list()["devices"]) - {
            one.serial.hex() for one in (*nodes, secretive)
        }
        secured.authority.labels.change([(missing, Said("well house"))])
        assert publish(secured, a)["number"] == 2
        fleet.until(lambda: c.ask("labels-export") == a.ask("labels-export"), "c has it")
        assert main(["fleet", "--json"]) == 1
        told_ = json.loads(capsys.readouterr().out)
        fits(told_, SCHEMA)
        away = {one["label"]: one["heard"] for one in told_["nodes"] if one["health"] == "away"}
        assert set(away) == {"north mast", "well house"}
        assert away["well house"] is None
        assert away["north mast"] < 300
        with pytest.raises(ClientError):
            c.ask("ping", node="north mast")

        # Who is out of the fleet is missed by nobody.
        out = secured.authority.revocations.revoke([secretive.serial.hex(), missing])
        c.ask("revocations-import", list=base64.b64encode(out).decode())
        fleet.until(lambda: secretive.name not in c.members(), "it is out")
        names = {one["name"] for one in c.ask("fleet")["nodes"]}
        assert names == {a.name, b.name, c.name}

        # What it kept it knows after a start.
        c.stop()
        c.start()
        fleet.until(lambda: c.ask("status")["label"] is None and labelled(c), "c knows them", 60)

    def test_a_live_view_ends_cleanly(self, fleet: Fleet) -> None:
        node = fleet.add()
        fleet.until(lambda: node.ask("status")["cluster"]["node"], "it has a node")
        env = {**os.environ, "THICKET_ROOT": str(node.folder), "PYTHONPATH": ":".join(sys.path)}
        command = [sys.executable, "-m", "thicket", "fleet", "--watch", "--json"]
        with subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as watch:
            assert watch.stdout is not None
            for _ in range(2):
                fits(json.loads(watch.stdout.readline()), SCHEMA)
            watch.send_signal(2)
            _, said = watch.communicate(timeout=60)
        assert (watch.returncode, said) == (130, "")

    def test_a_node_that_nobody_asks_imports_nothing_of_it(self) -> None:
        code = (
            f"import sys; sys.path[:0] = {sys.path!r}\n"
            "import thicket.daemon.daemon, thicket.daemon.live, thicket.distribution\n"
            "rooms = 'thicket.fleet', 'thicket.trust.labels', 'thicket.metrics.summary'\n"
            "print(*(name for name in sys.modules if name.startswith(rooms)))"
        )
        done = subprocess.run(
            [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == []


class TestScreen:
    @pytest.mark.parametrize("size", [(80, 40), (80, 12), (20, 3), (200, 60)])
    def test_it_draws_over_itself_and_leaves_the_terminal_as_it_was(
        self,
        size: tuple[int, int],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size(size))
        screen = shown.Screen()
        screen.draw(None, wide=False)
        screen.draw(many(), wide=False)
        screen.draw(many(), wide=True)
        screen.close()
        said = capsys.readouterr().out
        begin, *drawn = said.split("\x1b[H")
        assert begin == "\x1b[?1049h\x1b[?25l"
        assert drawn[0].startswith("The daemon does not")
        assert said.endswith("\x1b[J\x1b[?25h\x1b[?1049l")
        for one in drawn:
            made = one.partition("\x1b[J")[0].split("\x1b[K\n")[:-1]
            assert len(made) < size[1]
            assert all(width(line) <= size[0] and "\x1b" not in line for line in made)
        assert len(drawn) == 3
        hidden = "more lines: make the terminal higher"
        assert (hidden[: size[0] - 8] in drawn[1]) == (size[1] < 40)
