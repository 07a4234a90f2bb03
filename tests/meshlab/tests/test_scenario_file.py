# SPDX-License-Identifier: Apache-2.0
"""Scenarios as files: what is read, and what is refused with which words."""

from __future__ import annotations

import time
import tomllib
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshlab.lab.spec import NodeSpec, medium_description, node_config
from meshlab.medium.config import MediumConfig, parse_config
from meshlab.medium.fading import STEADY, Fading
from meshlab.scenario import actions, expectations, guide, keys
from meshlab.scenario.actions import ACTIONS, Cut, Degrade
from meshlab.scenario.errors import ScenarioError
from meshlab.scenario.expectations import CONDITIONS, Reach
from meshlab.scenario.file import parse
from meshlab.scenario.keys import keys_of
from meshlab.scenario.model import Scenario

HEAD = '[scenario]\nname = "a test"\n[topology]\nkind = "line"\nnodes = 3\n'
STEP = '[[step]]\ndo = "cut"\nlinks = "n1-n2"\n'


def read(text: str, folder: Path = Path("/scenarios")) -> Scenario:
    return parse(text.encode(), folder / "test.toml")


def refused(text: str) -> list[str]:
    """Return the faults of a file, without its name."""
    with pytest.raises(ScenarioError) as caught:
        read(text)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(("/scenarios/test.toml: ", "    ")) for line in lines)
    return [line.removeprefix("/scenarios/test.toml: ") for line in lines]


def test_a_small_scenario_is_read() -> None:
    found = read(
        HEAD + STEP + 'name = "first"\n[[step.expect]]\nthat = "reach"\nfrom = 1\nto = ["n2", 3]\n'
        "within = 5\nfor = 2\n"
        '[[step]]\nat = 4\ndo = "degrade"\nlinks = ["n1-n2", "n2-n3"]\nloss = 20\n'
    )
    assert found.head.name == "a test"
    assert found.spec.topology.names == ["n1", "n2", "n3"]
    first, second = found.steps
    assert first.action == Cut((("n1", "n2"),))
    assert (first.name, first.line, second.when.at) == ("first", 6, 4.0)
    assert second.action == Degrade((("n1", "n2"), ("n2", "n3")), loss=20.0)
    (expected,) = first.expectations
    assert expected.condition == Reach(("n1",), ("n2", "n3"))
    assert (expected.within, expected.holds) == (5.0, 2.0)
    assert found.names == ["first", "first, expectation 1", "step 2"]


def test_the_air_of_a_scenario_fades_as_it_says() -> None:
    text = HEAD + 'decoding = "soft"\nfading = "rician doppler=5 shadowing=4"\n' + STEP
    spec = read(text).spec
    air = parse_config(medium_description(spec, "", dict.fromkeys(spec.topology.names, True)))
    assert air.decoding == "soft"
    assert not air.aggregation
    assert air.fading == Fading("rician", doppler=5, shadowing=4)
    assert refused(HEAD + 'fading = "fog"\n' + STEP) == [
        "line 6: topology fading: 'fog': fading is one of none, rayleigh, rician, then any of k=, "
        "doppler=, shadowing=, decorrelation="
    ]


def made_air(text: str) -> MediumConfig:
    spec = read(text).spec
    return parse_config(medium_description(spec, "", dict.fromkeys(spec.topology.names, True)))


def test_links_of_a_scenario_fade_each_as_it_says() -> None:
    own = '[[link]]\nbetween = ["n2-n1", "n1-n3"]\nfading = "rician k=9"\n'
    own += '[[link]]\nbetween = "n2-n3"\nsnr = 12\nfading = "none"\n'
    air = made_air(HEAD + 'fading = "rayleigh"\n' + own + STEP)
    assert {frozenset((link.a, link.b)): (link.snr, link.fading) for link in air.links} == {
        frozenset(("n1", "n2")): (30.0, Fading("rician", k=9)),
        frozenset(("n1", "n3")): (30.0, Fading("rician", k=9)),
        frozenset(("n2", "n3")): (12.0, STEADY),
    }


def test_with_distances_a_link_may_fade_only() -> None:
    text = HEAD.replace('"line"\nnodes = 3', '"distance"')
    text += "".join(f'[[node]]\nname = "n{i}"\nat = [{60 * i}, 0]\n' for i in (1, 2, 3))
    own = '[[link]]\nbetween = "n1-n2"\n'
    (link,) = made_air(text + own + 'fading = "rayleigh"\n').links
    assert (link.snr, link.fading) == (None, Fading("rayleigh"))
    (link,) = made_air(text + own + "snr = 20\n").links
    assert (link.snr, link.fading) == (20.0, None)
    assert refused(text + own) == [
        "line 14: link 1: says nothing: with distance it has snr, fading or both"
    ]


def test_ht_is_for_the_nodes_and_the_air() -> None:
    spec = read(HEAD + "[mesh]\nht = true\n" + STEP).spec
    air = medium_description(spec, "", dict.fromkeys(spec.topology.names, True))
    assert parse_config(air).aggregation
    assert node_config(spec, NodeSpec())["mesh"]["ht"] is True


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "[scenario] is missing: it has at least name, a text"),
        (HEAD + "[nodes]\n", "line 6: nodes: unknown table 'nodes'; did you mean node?"),
        (HEAD + "size = 3\n", "line 6: topology size: unknown key 'size'; there are "),
        (HEAD.replace("line", "lines"), "topology kind: must be "),
        (HEAD.replace("nodes = 3", ""), "line 3: topology: nodes is missing: how many"),
        (
            HEAD + '[[step]]\ndo = "kut"\n',
            "line 7: step 1 do: unknown word 'kut'; did you mean cut",
        ),
        (HEAD + STEP + "at = -1\n", "line 9: step 1 at: must be a number of seconds from 0 to"),
        (
            HEAD + STEP + "link = 1\n",
            "line 9: step 1 link: unknown key 'link'; did you mean links?",
        ),
        (HEAD + '[[step]]\ndo = "cut"\n', "line 6: step 1: links is missing: it is a link such as"),
        (
            HEAD + STEP.replace("n2", "n9"),
            "line 8: step 1 links: 'n9' is no node: the nodes are n1 to n3",
        ),
        (HEAD + STEP.replace("n2", "n1"), "'n1-n1': a link has two different ends"),
        (
            HEAD + STEP + '[[step.expect]]\nthat = "command"\nnodes = 1\nrun = "true"\n',
            "line 9: step 1 expect 1: command needs status, says or matches",
        ),
        (
            HEAD
            + STEP
            + STEP
            + '[[step.expect]]\nthat = "reach"\nfrom = 1\nto = 2\nwithin = "x"\n',
            "line 16: step 2 expect 1 within: must be a number of seconds",
        ),
        (
            HEAD + '[[expect]]\nthat = "problem"\nnodes = 1\nsays = "("\n',
            "line 9: expect 1 says: is no regular expression of Python",
        ),
        (HEAD + STEP + 'after = "later"\n', "step 1 after: unknown name 'later'"),
        (HEAD + STEP + 'name = "a"\nafter = "a"\n', "step 1 after: waits for itself"),
        (
            HEAD + STEP + 'name = "a"\nafter = "b"\n' + STEP + 'name = "b"\n',
            "step 1 after: waits for itself",
        ),
        (
            HEAD + STEP + 'name = "a"\n' + STEP + 'name = "a"\n',
            "line 13: step 2 name: the name 'a'",
        ),
        (HEAD + "[config.mesh]\nchanel = 6\n", "line 7: config mesh chanel: unknown key"),
        (HEAD + "[config.mesh]\nchannel = 7000\n", "line 7: config mesh channel: must be a Wi-Fi"),
        (
            HEAD + '[[node]]\nname = "n2"\n[node.config.cluster]\ntick_time = "x"\n',
            "line 9: node 1 config cluster tick_time: must be",
        ),
        (
            HEAD + '[[expect]]\nthat = "traffic"\nstep = "x"\nloss = 1\n',
            "line 8: expect 1 step: 'x' is no step that lets traffic flow; there are none",
        ),
        (
            '[scenario]\nname = "x"\n[topology]\nkind = "distance"\n[[node]]\nname = "barn"\n',
            "line 6: node 1 name: node 1 is named n1, in this order, not 'barn'",
        ),
        (
            '[scenario]\nname = "x"\n[topology]\nkind = "distance"\n[[node]]\nname = "n1"\n',
            "n1 needs `at`",
        ),
        (HEAD + STEP.replace("n1-n2", "n1-n2-n3"), "must be a link such as"),
        (HEAD + '[[step]]\ndo = "chip"\nnodes = 1\nfault = "broken"\n', "is not a fault of a chip"),
        (HEAD + '[[step]]\ndo = "trace"\nfile = "no"\nformat = "ns2"\n', "'no' is no file in"),
        (HEAD + "[[step]\n", "line 6"),
        (HEAD + "step = 3\n[a.b]\n", "step"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text: str, wanted: str) -> None:
    assert any(wanted in line for line in refused(text)), refused(text)


def test_all_faults_are_told_at_once_in_their_order() -> None:
    faults = refused(HEAD + "size = 1\n" + STEP + "at = -1\nlinked = 1\n")
    assert [line.partition(":")[0] for line in faults] == ["line 6", "line 10", "line 11"]


def test_a_scenario_with_traffic_opens_its_ports_on_all_nodes() -> None:
    own = '[[node]]\nname = "n2"\n[node.config.firewall]\nallow = ["tcp/80"]\n'
    text = HEAD + own + '[[step]]\ndo = "traffic"\nfrom = 1\nto = 2\nseconds = 5\n'
    found = read(text)
    assert found.spec.config["firewall"]["allow"] == ["udp/5001-5032"]
    assert found.spec.nodes["n2"].config["firewall"]["allow"] == ["tcp/80", "udp/5001-5032"]
    assert "firewall" not in read(HEAD + STEP).spec.config


def test_applications_are_configured_by_their_own_sections() -> None:
    found = read(HEAD + "[config.application.readings]\ninterval = 2.0\n")
    assert found.spec.config == {"application.readings": {"interval": 2.0}}


def test_every_verb_and_word_says_what_it_does() -> None:
    for record in (*ACTIONS.values(), *CONDITIONS.values()):
        assert (record.__doc__ or "").rstrip().endswith(".")
        for key in keys_of(record):
            assert key.help
            assert key.kind.words


# -- any input

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.booleans(), st.integers(), st.floats(allow_nan=True), st.text(max_size=20),
        st.sampled_from(["n1", "n1-n2", "all", "formed", "ns2", "running", "absent"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)  # fmt: skip
AROUND = keys.Around(("n1", "n2", "n3"), Path("/scenarios"))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(st.data())
def test_any_value_is_taken_or_refused(data: st.DataObject) -> None:
    record = data.draw(st.sampled_from([*ACTIONS.values(), *CONDITIONS.values()]))
    names = [key.name for key in keys_of(record)]
    table = {name: data.draw(VALUES) for name in names if data.draw(st.booleans())}
    faults: list[keys.Fault] = []
    made = keys.read(record, table, ("step", 0), AROUND, faults)
    assert (made is None) == bool(faults)
    if made is not None:
        assert isinstance(made, actions.Action | expectations.Condition)
        assert made.words
    assert all("\n" not in fault.message[:40] for fault in faults)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    for whole in (text, HEAD + text, HEAD + STEP + text):
        with suppress(ScenarioError):
            parse(whole.encode("utf-8", "surrogatepass"), Path("/scenarios/test.toml"))


@pytest.mark.parametrize(
    "text",
    [
        "a." * 30000 + "b = 1\n",
        HEAD + STEP * 1500,
        HEAD + "[[expect]]\n" * 5000,
        HEAD + '[[step]]\ndo = "split"\ngroups = [' + '["n1"],' * 7000 + "]\n",
        HEAD + "[scenario.x]\n" + "y = [" + "[" * 2000 + "]" * 2000 + "]\n",
        HEAD + '[[step]]\ndo = "move"\nnode = 1\npath = [' + "[0,0]," * 9000 + "]\n",
        "[scenario]\nname = " + "9" * 60000,
    ],
    ids=["parts", "steps", "tables", "groups", "deep", "path", "digits"],
)
def test_time_and_memory_are_bounded(text: str) -> None:
    text = text[: 60 << 10]
    tracemalloc.start()
    begun = time.process_time()
    with suppress(ScenarioError):
        read(text)
    took, (_, peak) = time.process_time() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 15
    assert peak < 64 << 20


def test_a_file_that_is_too_large_is_refused() -> None:
    assert "larger than" in refused("#" * (2 << 20))[0]


def test_tomllib_reads_what_the_tests_begin_with() -> None:
    assert tomllib.loads(HEAD + STEP)["step"][0]["do"] == "cut"


def test_the_guide_has_the_keys_as_they_are() -> None:
    """If it fails: ``python -m meshlab.scenario.guide docs/scenarios.md``."""
    text = (Path(__file__).parents[3] / "docs" / "scenarios.md").read_text(encoding="utf-8")
    assert guide.written(text) == text
    assert text.count("<!-- keys: ") == len(guide.TABLES)
