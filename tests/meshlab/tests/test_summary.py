# SPDX-License-Identifier: Apache-2.0
"""When a mesh has formed, and what is missing until then."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlab.lab import summary, topology
from meshlab.lab.state import Event, Kind, LabState, address_from_serial, canonical, news

LabMaker = Callable[..., LabState]


@pytest.mark.parametrize("kind", topology.KINDS)
def test_a_whole_mesh_lacks_nothing(make_lab: LabMaker, kind: str) -> None:
    lab = make_lab(kind, 7)
    assert summary.missing(lab) == {}
    assert summary.in_words(lab) == []
    assert summary.summarise(lab)["formed"] is True


def test_a_mesh_that_has_not_started(make_lab: LabMaker) -> None:
    lab = make_lab(formed=False)
    assert summary.missing(lab)["n1"] == ["has not been started yet"]
    lab.nodes["n1"].power, lab.nodes["n1"].started = "running", 10.0
    assert summary.missing(lab)["n1"] == ["its daemon has not answered 32 s after power-on"]


def test_a_node_that_has_not_joined_says_why(make_lab: LabMaker) -> None:
    lab = make_lab()
    status = lab.nodes["n2"].status
    assert status is not None
    status["state"] = "joining"
    status["problems"] = [{"part": "radio", "code": "sae", "message": "wrong passphrase"}]
    assert summary.missing(lab, ["n2"]) == {
        "n2": ["has not joined: its daemon is joining (wrong passphrase)"]
    }


def test_both_sides_must_have_the_link(make_lab: LabMaker) -> None:
    lab = make_lab()
    status = lab.nodes["n2"].status
    assert status is not None
    status["peers"][0]["state"] = "OPN_SNT"
    assert summary.missing(lab) == {"n2": ["no link with n1"]}


def test_everybody_must_see_everybody(make_lab: LabMaker) -> None:
    lab = make_lab("line", 4)
    status = lab.nodes["n1"].status
    assert status is not None
    status["cluster"]["nodes"][1]["state"] = "connecting"
    status["cluster"]["nodes"].pop()
    assert summary.in_words(lab) == ["n1: does not see n3, n4 in the cluster"]


def test_the_address_is_the_chips(make_lab: LabMaker) -> None:
    lab = make_lab()
    status = lab.nodes["n3"].status
    assert status is not None
    status["address"] = "fd12:3456:789a:1::5"
    (words,) = summary.missing(lab)["n3"]
    assert words.startswith("has the address fd12:3456:789a:1::5, its chip gives fd12:")
    row = summary.summarise(lab)["nodes"][2]
    assert row["address_as_expected"] is False
    # The same address in other words is the same address.
    status["address"] = lab.nodes["n3"].expected_address.upper() + "/64"  # type: ignore[union-attr]
    assert summary.missing(lab) == {}
    status["identity"]["software"] = True
    assert "software identity" in summary.in_words(lab)[0]
    lab.nodes["n3"].chip_fault = "absent"
    assert summary.missing(lab) == {}, "what was broken on purpose is not missing"


def test_a_dead_node_is_missed_by_the_others_and_a_switched_off_one_is_not(
    make_lab: LabMaker,
) -> None:
    lab = make_lab("line", 3)
    lab.nodes["n3"].power, lab.nodes["n3"].reason = "died", "QEMU ended with status 1"
    assert summary.missing(lab) == {"n3": ["died: QEMU ended with status 1"]}
    lab.nodes["n3"].power = "off"
    assert summary.missing(lab) == {}


def test_what_the_medium_cuts_is_not_expected(make_lab: LabMaker) -> None:
    lab = make_lab("line", 4)
    lab.links["n2", "n3"].snr_back = None
    assert lab.expected_peers("n2") == {"n1"}
    assert lab.expected_cluster("n1") == {"n2"}
    lab.links["n2", "n3"].snr_back = 5.0
    assert lab.expected_peers("n2") == {"n1"}, "too weak to count on"
    lab.links["n2", "n3"].snr_back = 20.0
    assert lab.expected_cluster("n1") == {"n2", "n3", "n4"}


def test_nodes_of_another_mesh_or_cluster_are_not_expected(make_lab: LabMaker) -> None:
    lab = make_lab("line", 3)
    lab.nodes["n3"].mesh = "other"
    assert lab.expected_peers("n3") == set()
    assert lab.expected_cluster("n1") == {"n2"}
    lab.nodes["n3"].mesh = ""
    lab.nodes["n3"].cluster = "other"
    assert lab.expected_peers("n3") == {"n2"}
    assert lab.expected_cluster("n1") == {"n2"}


def test_a_peer_is_known_by_the_address_its_interface_really_has(make_lab: LabMaker) -> None:
    lab = make_lab("line", 2)
    for node in lab.nodes.values():
        assert node.status is not None
    lab.nodes["n2"].status["radio"]["mac"] = "0A:00:00:00:00:02"  # type: ignore[index]
    lab.nodes["n1"].status["peers"][0]["mac"] = "0a:00:00:00:00:02"  # type: ignore[index]
    assert summary.missing(lab) == {}


def test_the_summary_is_json_and_complete(make_lab: LabMaker) -> None:
    lab = make_lab("grid", 12)
    value = json.loads(json.dumps(summary.summarise(lab)))
    assert value["schema"] == 2
    assert value["accel"] == "tcg"
    assert value["formed_seconds"] == 31.5
    assert value["medium"]["valid"] is True
    assert [node["name"] for node in value["nodes"]] == [f"n{i}" for i in range(1, 13)]
    first = value["nodes"][0]
    assert first["boot_seconds"] == 4.2
    assert first["first_peer_seconds"] == 7.75
    assert first["address"] == first["address_expected"]
    assert first["address_as_expected"] is True
    assert first["peers"] == first["peers_expected"] == ["n2", "n5"]
    assert len(first["cluster"]) == 11
    assert first["cpu_seconds_to_joined"] == 4.12
    assert first["host_memory_kib"] == 120 * 1024


def test_a_lab_survives_its_description(make_lab: LabMaker) -> None:
    lab = make_lab("ring", 5)
    lab.events.append(Event(1.0, Kind.PEER, "text", "n1"))
    again = LabState.from_json(json.loads(json.dumps(lab.to_json())))
    assert again == lab
    with pytest.raises(ValueError, match="schema 9"):
        LabState.from_json({**lab.to_json(), "schema": 9})


def test_half_a_status_is_not_a_crash(make_lab: LabMaker) -> None:
    lab = make_lab("line", 2)
    odd: list[dict[str, Any]] = [
        {},
        {"peers": None},
        {"peers": [3]},
        {"radio": []},
        {"cluster": {"nodes": {}}},
    ]
    for status in [*odd, {"state": "joined", "identity": None, "times": {"daemon": "x"}}]:
        lab.nodes["n1"].status = status
        assert summary.missing(lab)
        assert json.dumps(summary.summarise(lab))


# Address from reference values: the serial number of a chip in a published boot log, and the
# address its author gives the device (group 0bc3 shows the lost leading zero's place).
@pytest.mark.parametrize(
    ("serial", "address"),
    [
        ("01236f44e3c6b802ee", "fd12:3456:789a:1:0:6f44:e3c6:b802"),
        ("01230bc300000001ee", "fd12:3456:789a:1:0:bc3:0:1"),
    ],
)
def test_the_hosts_own_address_arithmetic(serial: str, address: str) -> None:
    assert address_from_serial("fd12:3456:789a:1::/64", bytes.fromhex(serial)) == address
    wide = address_from_serial("fd12:3456:789a::/48", bytes.fromhex(serial))
    assert wide.startswith("fd12:3456:789a::")
    with pytest.raises(ValueError, match="9 bytes"):
        address_from_serial("fd12:3456:789a:1::/64", b"12345678")


def test_canonical_addresses() -> None:
    assert canonical("FD12:0:0::0001/64") == "fd12::1"
    assert canonical(None) is None
    assert canonical("nonsense") == "nonsense"


@given(st.permutations([f"n{i}" for i in range(1, 25)] + ["02:00:00:00:00:01"]))
def test_names_are_ordered_by_number(names: list[str]) -> None:
    expected = [f"n{i}" for i in range(1, 25)] + ["02:00:00:00:00:01"]
    assert summary.in_order(names) == expected


def test_news(make_lab: LabMaker) -> None:
    lab = make_lab("line", 3)
    whole = lab.nodes["n2"].status
    assert whole is not None
    macs, nodes = lab.by_mac(), lab.by_cluster_name()

    def told(old: dict[str, object] | None, new: dict[str, object]) -> list[str]:
        return [f"{kind}: {text}" for kind, text in news("n2", old, new, macs, nodes)]

    assert told(whole, whole) == []
    assert told(None, whole) == [
        "boot: daemon started 4.2 s after power-on",
        f"identity: is {lab.nodes['n2'].expected_address} (from its chip)",
        "radio: joined mesh 'thicket' 5.1 s after power-on",
        "peer: link with n1, -61 dBm",
        "peer: link with n3, -61 dBm",
        "cluster: sees n1 in the cluster",
        "cluster: sees n3 in the cluster",
    ]
    problem = {"part": "radio", "code": "gone", "message": "the radio was unplugged"}
    poor = {**whole, "peers": whole["peers"][:1], "radio": {"state": "absent"}}
    poor |= {"problems": [problem], "cluster": {**whole["cluster"], "nodes": []}}
    assert told(whole, poor) == [
        "trouble: radio absent",
        "lost: link with n3 is gone",
        "lost: no longer sees n1 in the cluster",
        "lost: no longer sees n3 in the cluster",
        "trouble: the radio was unplugged",
    ]
    again = told(poor, whole)
    assert "well: solved: the radio was unplugged" in again
    assert "radio: joined mesh 'thicket'" in again, "it says no time: that of the start is another"


def cut(lab: LabState, a: str, b: str) -> None:
    lab.links[a, b].snr = lab.links[a, b].snr_back = None


def divide(lab: LabState) -> None:
    """Cut a line of four in its middle, and let all nodes know it."""
    cut(lab, "n2", "n3")
    for name, far in (("n2", "n3"), ("n3", "n2")):
        status = lab.nodes[name].status
        assert status is not None
        mac = lab.nodes[far].radio_mac
        status["peers"] = [peer for peer in status["peers"] if peer["mac"] != mac]


def test_a_mesh_in_two_parts_has_not_formed(make_lab: LabMaker) -> None:
    lab = make_lab("line", 4)
    assert lab.split() == []
    divide(lab)
    assert summary.missing(lab) == {}, "each half is whole by itself"
    found = summary.summarise(lab)
    assert found["formed"] is False
    assert found["well"] is False
    assert found["troubles"] == ["the mesh is in 2 parts: n1, n2 | n3, n4"]


def test_nodes_of_different_meshes_are_no_parts_of_one(make_lab: LabMaker) -> None:
    lab = make_lab("line", 4)
    for name in ("n3", "n4"):
        lab.nodes[name].mesh = "another"
    assert len(lab.parts()) == 2
    assert lab.split() == []


def test_a_node_that_is_switched_off_is_no_part(make_lab: LabMaker) -> None:
    lab = make_lab("line", 4)
    lab.nodes["n4"].power = "off"
    assert lab.split() == []


@pytest.mark.parametrize(
    ("change", "phase", "words"),
    [
        ({"state": "degraded"}, "degraded", "n2: degraded"),
        (
            {"problems": [{"part": "application", "code": "failed", "message": "it fails"}]},
            "problem",
            "n2: joined (it fails)",
        ),
    ],
)
def test_a_node_with_a_problem_is_not_up(
    make_lab: LabMaker, change: dict[str, Any], phase: str, words: str
) -> None:
    lab = make_lab("line", 4)
    assert summary.well(lab)
    status = lab.nodes["n2"].status
    assert status is not None
    status |= change
    found = summary.summarise(lab)
    assert found["nodes"][1]["phase"] == phase
    assert found["formed"] is True
    assert found["well"] is False
    assert found["troubles"] == [words]
