# SPDX-License-Identifier: Apache-2.0
"""medium.json, medium-state.json, links and counters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlab.medium.config import (
    ConfigError,
    LinkConfig,
    MediumConfig,
    NodeConfig,
    RadioConfig,
    State,
    load_config,
    load_state,
    parse_config,
    parse_state,
    write_json,
)
from meshlab.medium.fading import Fading
from meshlab.medium.links import Links
from meshlab.medium.stats import Bounds, Histogram, Loss, Stats, verdict

MAC = "02:74:68:00:00:01"


def node(name: str = "n1", **more: Any) -> dict[str, Any]:
    return {"name": name, "radios": [{"mac": MAC}], **more}


def test_what_the_lab_writes() -> None:
    config = parse_config(
        {
            "seed": 7,
            "nodes": [
                node("n1", directory="n1", position=[0, 1.5]),
                {"name": "n2", "radios": [{"mac": MAC, "mesh": False}]},
            ],
            "links": [{"a": "n1", "b": "n2", "snr": 30}],
            "unlinked": "cut",
        }
    )
    assert config.seed == "7"
    assert config.nodes[0].position == (0.0, 1.5)
    assert config.nodes[1].directory == "n2"
    # NL80211_IFTYPE_STATION 2, AP 3, MESH_POINT 7.
    assert config.nodes[0].radios[0].iftype_mask == 0x8C
    assert config.nodes[1].radios[0].iftype_mask == 0x0C


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "expected an object"),
        ({"node": []}, "unknown"),
        ({"nodes": [node(), node()]}, "name of its own"),
        ({"nodes": [node("../x")]}, "not a name"),
        ({"nodes": [{"name": "n1", "radios": [{"mac": "02:74"}]}]}, "no address"),
        ({"nodes": [{"name": "n1", "radios": [{"mac": "03:74:68:00:00:01"}]}]}, "no address"),
        ({"nodes": [{"name": "n1", "radios": [{"mac": MAC, "iftypes": ["nan"]}]}]}, "iftypes"),
        ({"nodes": [node(position=[1])]}, "position"),
        ({"nodes": [node(position=[1, float("nan")])]}, "position"),
        ({"nodes": [node()], "links": [{"a": "n1", "b": "n2", "snr": 1}]}, "no node 'n2'"),
        ({"nodes": [node()], "links": [{"a": "n1", "b": "n1", "snr": 1}]}, "two ends"),
        ({"nodes": [node(), node("n2")], "links": [{"a": "n1", "b": "n2"}]}, "snr"),
        ({"nodes": [node(), node("n2")], "links": [{"a": "n1", "b": "n2", "snr": True}]}, "snr"),
        (
            {
                "nodes": [node(), node("n2")],
                "links": [
                    {"a": "n1", "b": "n2", "snr": 1, "both": False, "fading": "rayleigh"},
                    {"a": "n2", "b": "n1", "snr": 2, "both": False, "fading": "none"},
                ],
            },
            "both directions",
        ),
        ({"unlinked": "far"}, "unlinked"),
        ({"propagation": {"model": "ray"}}, "ray"),
        ({"propagation": {"exponant": 3}}, "exponant"),
        ({"bounds": {"lag": 1}}, "bounds"),
        ({"receiver": {"noise_dbm": "low"}}, "noise_dbm"),
    ],
)
def test_mistakes_are_named(value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "medium.json")
    path = tmp_path / "medium.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        load_config(path)
    path.write_text('{"unlinked": 1}')
    with pytest.raises(ConfigError, match=r"medium\.json: unlinked"):
        load_config(path)


names = st.sampled_from(["n1", "n2", "n3"])
snr_values = st.none() | st.floats(-50, 100)
macs = st.binary(min_size=5, max_size=5).map(lambda b: b"\x02" + b)
radio_configs = st.builds(
    RadioConfig,
    mac=macs,
    iftypes=st.sampled_from([("station", "ap", "mesh"), ("station",)]),
    tx_power_dbm=st.floats(0, 30),
    plugged=st.booleans(),
    promiscuous=st.booleans(),
)
node_configs = st.lists(names, unique=True, max_size=3).flatmap(
    lambda chosen: st.tuples(
        *(
            st.builds(
                NodeConfig,
                name=st.just(name),
                directory=st.just(name),
                radios=st.lists(radio_configs, max_size=2).map(tuple),
                position=st.none() | st.tuples(st.floats(-100, 100), st.floats(-100, 100)),
            )
            for name in chosen
        )
    )
)


fadings = st.sampled_from(
    [
        Fading(),
        Fading("rayleigh", doppler=5),
        Fading("rician", k=9, doppler=0.5, shadowing=4, decorrelation=20),
        Fading(shadowing=6),
    ]
)


@settings(deadline=None)
@given(node_configs, st.text(max_size=5), st.text(max_size=5), fadings, st.none() | fadings)
def test_config_round_trip(
    nodes: tuple[NodeConfig, ...], seed: str, run: str, general: Fading, own: Fading | None
) -> None:
    snr = 12.5 if own is None else None
    links = tuple(LinkConfig(nodes[0].name, n.name, snr, False, own) for n in nodes[1:])
    config = MediumConfig(
        nodes=nodes, links=links, seed=seed, run=run, unlinked="model", fading=general
    )
    assert parse_config(json.loads(json.dumps(config.to_json()))) == config


@settings(deadline=None)
@given(
    st.dictionaries(st.tuples(names, names), snr_values),
    st.dictionaries(st.tuples(names, names), st.floats(0, 1)),
    st.dictionaries(st.tuples(names, names), fadings),
    st.dictionaries(names, st.tuples(st.floats(-9, 9), st.floats(-9, 9))),
    st.dictionaries(st.tuples(names, st.integers(0, 3)), st.booleans()),
    st.sets(names),
    node_configs,
)
def test_state_round_trip(  # noqa: PLR0917 - hypothesis gives them
    overrides: Any,
    losses: Any,
    fadings: Any,
    positions: Any,
    plugged: Any,
    removed: Any,
    nodes: tuple[NodeConfig, ...],
) -> None:
    state = State(
        overrides, losses, fadings, positions, plugged, {n.name: n for n in nodes}, removed
    )
    value = json.loads(json.dumps(state.to_json("r")))
    assert parse_state(value, "r") == state
    assert parse_state(value, "another run") == State()


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"run": "", "overrides": [1]}', '{"run": "", "positions": []}', '{"x": 1}'],
)
def test_a_damaged_state_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "medium-state.json"
    assert load_state(path, "") == State()
    path.write_text(text)
    with pytest.raises(ConfigError, match="medium-state"):
        load_state(path, "")


def test_write_json_leaves_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 2}
    assert list(tmp_path.iterdir()) == [path]


# Links.


def make_links(unlinked: str = "cut") -> Links:
    nodes = tuple(
        NodeConfig(f"n{i}", f"n{i}", (), (50.0 * i, 0.0) if i < 4 else None) for i in range(1, 5)
    )
    links = (LinkConfig("n1", "n2", 25.0), LinkConfig("n2", "n3", 20.0, both=False))
    made = Links(MediumConfig(nodes=nodes, links=links, unlinked=unlinked), State())
    for n in nodes:
        made.add_node(n)
    return made


def snr(links: Links, a: str, b: str) -> float | None:
    return links.hearing(a, b, 20.0, 2412).snr


def test_links_hold_in_the_directions_they_were_given() -> None:
    links = make_links()
    assert (snr(links, "n1", "n2"), snr(links, "n2", "n1")) == (25.0, 25.0)
    assert (snr(links, "n2", "n3"), snr(links, "n3", "n2")) == (20.0, None)
    assert snr(links, "n1", "n3") is None


def test_nodes_without_a_link_may_follow_the_model() -> None:
    links = make_links("model")
    assert snr(links, "n1", "n2") == 25.0
    heard = snr(links, "n1", "n3")
    # 20 dBm, 40.1 dB for the first metre, 30 dB a decade, noise of -91 dBm.
    assert heard == pytest.approx(20 - 40.1 - 60 + 91, abs=0.1)
    assert snr(links, "n1", "n4") is None  # nobody knows where n4 is


def test_changes_are_undone_one_by_one() -> None:
    links = make_links()
    version = links.version
    links.set("n1", "n2", None)
    links.set("n1", "n3", 9.0)
    assert links.version > version
    assert (snr(links, "n1", "n2"), snr(links, "n2", "n1"), snr(links, "n1", "n3")) == (None, 25, 9)
    assert links.hearing("n1", "n2", 20, 2412).state == "cut"
    links.restore("n1", "n2")
    links.restore("n1", "n3")
    assert (snr(links, "n1", "n2"), snr(links, "n1", "n3")) == (25.0, None)


def test_a_moved_node_follows_the_model_and_overrides_still_hold() -> None:
    links = make_links()
    links.move("n2", 51.0, 0.0)
    near = snr(links, "n1", "n2")
    assert near is not None
    assert near > 60
    links.set("n1", "n2", 3.0)
    assert snr(links, "n1", "n2") == 3.0


# Counters.


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=200), st.floats(1, 100))
def test_percentiles_are_at_most_an_eighth_too_high(values: list[float], percent: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    wanted = max(1, -int(-len(values) * percent // 100))
    true = sorted(values)[min(wanted, len(values)) - 1]
    got = histogram.percentile(percent)
    assert true - 2e-6 <= got <= max(true * 1.126, true + 3e-6)
    assert got <= histogram.maximum == max(values)


def test_an_empty_histogram() -> None:
    assert Histogram().summary_ms() == {"p50": 0.0, "p90": 0.0, "p99": 0.0, "max": 0.0}


def test_a_quiet_run_is_valid() -> None:
    stats = Stats()
    stats.losses[Loss.ERROR] = 1000
    stats.losses[Loss.OFF_CHANNEL] = 1000
    for _ in range(200):
        stats.lag.add(0.002)
    stats.lag.add(0.2)
    assert verdict(stats, Bounds(), {"n1": 0}) == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: [s.lag.add(0.08) for _ in range(10)], "late"),
        (lambda s: [s.lag.add(0.001) for _ in range(999)] + [s.lag.add(0.9)], "stood still"),
        (lambda s: s.answer_time.add(1.5), "answer late"),
        (lambda s: s.losses.__setitem__(Loss.HOST_TOO_SLOW, 1), "no answer"),
        (lambda s: s.losses.__setitem__(Loss.BACK_PRESSURE, 2), "did not read"),
        (lambda s: setattr(s, "kernel_overflow", 3), "overflowed"),
    ],
)
def test_a_host_that_does_not_keep_up_spoils_the_run(spoil: Any, words: str) -> None:
    stats = Stats()
    spoil(stats)
    reasons = verdict(stats, Bounds(), {})
    assert len(reasons) == 1
    assert words in reasons[0]


def test_drops_of_a_relay_spoil_the_run() -> None:
    assert verdict(Stats(), Bounds(), {"n1": 0, "n2": 4}) == ["the relay of n2 dropped 4 messages"]


def test_radios_that_do_not_listen_are_no_losses_of_the_air() -> None:
    stats = Stats()
    stats.deliveries = 90
    stats.losses[Loss.ERROR] = 10
    stats.losses[Loss.OFF_CHANNEL] = 500
    assert stats.loss_percent() == 10.0
