# SPDX-License-Identifier: Apache-2.0
"""``meshlab run``, on labs that boot nothing."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from meshlab.cli.main import main
from meshlab.hosts.placement import HostSpec
from meshlab.hosts.spread import Wanted
from meshlab.lab import air
from meshlab.lab.fake import FakeParts
from meshlab.lab.journal import Pace
from meshlab.lab.parts import Parts
from meshlab.scenario import perform
from meshlab.scenario.file import parse
from meshlab.scenario.model import Scenario
from meshlab.scenario.outcome import Verdict

TEXT = """\
[scenario]
name = "Small: one"
[topology]
kind = "full"
nodes = 3
[[step]]
do = "crash"
nodes = 3
[[step.expect]]
that = "cluster"
nodes = [1, 2]
lack = [3]
[[step]]
do = "power-on"
nodes = 3
[[step.expect]]
that = "whole"
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THICKET_CACHE", str(tmp_path))
    monkeypatch.setattr(Pace, "pause", lambda self, nodes, settled: 0.02)
    return tmp_path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(TEXT)
    return path


def test_files_are_checked_without_a_run(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--check", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: 3 nodes, 2 steps, 2 expectations\n"


def test_all_faults_of_all_files_are_told_before_anything_runs(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = file.with_name("bad.toml")
    bad.write_text(TEXT.replace("crash", "crush").replace("full", "fool"))
    assert main(["run", str(file), str(bad), str(file.with_name("none.toml"))]) == 2
    said = capsys.readouterr().err
    assert f'{bad}: line 4: topology kind: must be "line"' in said
    assert f"{file.with_name('none.toml')}: No such file or directory" in said
    assert main(["run", "--repeat", "0", str(file)]) == 2


def test_a_rehearsal_leaves_its_results(
    file: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--rehearse", str(file)]) == 0
    told = capsys.readouterr()
    assert "Small: one: passed, seed 1" in told.out
    assert "step crash n3" in told.err
    folder = cache / "scenarios" / "small-one-imagined"
    assert {path.name for path in folder.iterdir()} == {
        "result.json", "junit.xml", "timeline.svg",
    }  # fmt: skip
    assert json.loads((folder / "result.json").read_text())["imagined"] is True
    file.write_text(TEXT.replace('that = "whole"', 'that = "power"\nnodes = 1\nis = "off"'))
    assert main(["run", "--rehearse", str(file)]) == 1


def test_a_lab_that_cannot_be_built_is_no_result(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--image", "no-such-image", str(file)]) == perform.NO_RESULT
    assert "there is no image 'no-such-image'" in capsys.readouterr().err


def test_all_runs_are_in_one_junit_file(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "all.xml"
    assert main(["run", "--rehearse", "--junit", str(target), str(file), str(file)]) == 0
    assert [suite.get("tests") for suite in ElementTree.parse(target).getroot()] == ["4", "4"]


async def test_a_scenario_is_performed_on_labs_made_anew(file: Path, cache: Path) -> None:
    seeds: list[int] = []

    def parts(scenario: Scenario, seed: int) -> tuple[Parts, dict[str, Parts]]:
        seeds.append(scenario.spec.topology.seed)
        assert scenario.spec.name == "scenario-small-one"
        return FakeParts(), {}

    told: list[str] = []
    scenario = parse(TEXT.encode(), file)
    outcomes = await perform.perform(
        scenario,
        perform.Options(repeat=2, seed=1, same_seed=True),
        parts,
        lambda _, t: told.append(t),
    )
    assert [str(one.verdict) for one in outcomes] == ["passed", "passed"], outcomes[0].reasons
    assert seeds == [1, 1]
    assert told[0] == "run 1 of 2, seed 1"
    assert perform.status_of(outcomes) == 0
    folder = cache / "scenarios" / "small-one"
    assert (folder / "run-2" / "timeline.svg").is_file()
    found = json.loads((folder / "statistics.json").read_text())
    assert [one["verdict"] for one in found["runs"]] == ["passed", "passed"]
    assert [one["passed"] for one in found["figures"]] == [2, 2, 2]


async def test_a_lab_that_cannot_go_on_ends_the_run(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(air, "RESTART_PAUSE", 0.01)

    def parts(scenario: Scenario, seed: int) -> tuple[Parts, dict[str, Parts]]:
        made = FakeParts()
        made.medium_code = "raise SystemExit('no medium')"
        return made, {}

    scenario = parse(TEXT.encode(), file)
    outcomes = await perform.perform(scenario, perform.Options(), parts, lambda _, text: None)
    assert perform.status_of(outcomes) == perform.NO_RESULT
    assert "medium" in outcomes[0].reasons[0]


def test_make_plays_a_scenario() -> None:
    top = Path(__file__).parents[3]
    words = [
        "make",
        "--no-print-directory",
        "-n",
        "qemu-mesh",
        "SCENARIO=a.toml",
        "REPEAT=3",
        "SEED=7",
    ]
    said = subprocess.run(words, cwd=top, capture_output=True, text=True, check=True).stdout
    line = " ".join(said.splitlines()[-1].split())
    assert line == 'bin/meshlab --lab "default" run a.toml --repeat "3" --seed "7"'


async def test_a_scenario_plays_on_several_machines(file: Path) -> None:
    """Here all of them are this one; test_hosts.py has the others."""
    made = FakeParts()
    wanted = Wanted([HostSpec("local")])
    (outcome,) = await perform.perform(
        parse(file.read_bytes(), file),
        perform.Options(hosts=wanted),
        lambda wanted, seed: (made, {}),
        lambda _, text: None,
    )
    assert outcome.verdict is Verdict.PASSED
    assert set(made.starts) == {"n1", "n2", "n3"}


def test_a_machine_that_cannot_be_used_is_no_result(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = [sys.executable, str(Path(__file__).with_name("fake_ssh.py"))]
    monkeypatch.setenv("THICKET_SSH", shlex.join(program))
    monkeypatch.setenv("FAKE_SSH", str(tmp_path / "there"))
    monkeypatch.setattr(perform, "real_parts", lambda *_: (FakeParts(), {}))
    assert main(["run", "--hosts", "refused", str(file)]) == perform.NO_RESULT
    assert "refused: it lets nobody in without a question" in capsys.readouterr().err
    assert main(["run", "--hosts", "a", "--on", "n9=a", str(file)]) == 2
    assert "ON: there is no node n9" in capsys.readouterr().err
    assert main(["run", "--hosts", "a", str(file)]) == perform.NO_RESULT
    assert "n1 boots nothing, so it cannot run on a" in capsys.readouterr().err
