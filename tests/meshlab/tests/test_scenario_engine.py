# SPDX-License-Identifier: Apache-2.0
"""Scenarios that are played on an imagined lab, whose clock jumps."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count, groupby
from pathlib import Path
from xml.etree import ElementTree

import pytest

from meshlab.scenario import rehearsal, report
from meshlab.scenario.engine import play
from meshlab.scenario.file import load, parse
from meshlab.scenario.outcome import Line, Outcome, Verdict
from meshlab.scenario.picture import picture
from meshlab.scenario.rehearsal import ImaginedLab, rehearse
from meshlab.scenario.world import World
from meshlab.wire.rpc import Json, Params, RpcError

HEAD = '[scenario]\nname = "a test"\ntimeout = 900\n[topology]\nkind = "line"\nnodes = 3\n'
Answers = Callable[[str, str], tuple[int, str] | None]


class Played:
    """A run on an imagined lab, and what it told."""

    def __init__(self, text: str, folder: Path, *, slack: float = 1.0) -> None:
        self.scenario = parse((HEAD + text).encode(), folder / "test.toml")
        self.folder = folder
        self.slack = slack
        self.answers: Answers | None = None
        self.labs: list[ImaginedLab] = []
        self.told: list[str] = []
        self.make: type[ImaginedLab] = ImaginedLab

    def play(self) -> Outcome:
        async def go() -> Outcome:
            lab = self.make(self.scenario.spec, self.folder, self.answers)
            self.labs.append(lab)
            return await play(
                self.scenario, lab, lambda at, text: self.told.append(f"{at:.0f} {text}"),
                seed=1, folder=self.folder, slack=self.slack, imagined=True,
            )  # fmt: skip

        return rehearse(go())

    @property
    def lab(self) -> ImaginedLab:
        return self.labs[-1]


def step(do: str, *more: str, at: float | None = None) -> str:
    """Return a step; ``links`` and so on stand in ``more``."""
    when = [] if at is None else [f"at = {at}"]
    return "\n".join(["[[step]]", f'do = "{do}"', *when, *more, ""])


def expect(that: str, *more: str, of: str = "step.") -> str:
    return "\n".join([f"[[{of}expect]]", f'that = "{that}"', *more, ""])


CUT = step("cut", 'links = "n2-n3"')
APART = expect("unreachable", "from = 1", "to = 3", "within = 20")


def verdicts(outcome: Outcome) -> list[str]:
    return [str(line.verdict) for line in outcome.lines]


def test_a_cut_link_is_noticed_and_a_restored_one_heals(tmp_path: Path) -> None:
    whole = expect("whole", "within = 20")
    run = Played(CUT + APART + step("restore") + whole, tmp_path)
    outcome = run.play()
    assert outcome.verdict is Verdict.PASSED
    assert run.lab.calls[-2:] == ["link n2 -> n3 restored", "link n3 -> n2 restored"]
    cut, apart, restored, healed = outcome.lines
    assert (cut.begun, cut.ended) == (0, 0)
    assert apart.figures["after_s"] == pytest.approx(rehearsal.NOTICE, abs=1.1)
    assert restored.begun == apart.ended, "a step waits for what is expected of that before"
    assert healed.seconds == pytest.approx(rehearsal.NOTICE, abs=1.1)
    assert [number for number, _ in groupby(one.cluster for one in outcome.lanes["n1"])] == [
        2,
        1,
        2,
    ]
    assert run.told[0] == "0 the mesh has formed after 14.0 s"


def test_steps_have_their_times_or_follow_each_other(tmp_path: Path) -> None:
    text = step("wait", "seconds = 5", 'name = "a"') + step("wait", "seconds = 2")
    text += step("wait", at=30) + step("wait", 'after = "a"', at=3)
    outcome = Played(text, tmp_path).play()
    assert [(one.begun, one.ended) for one in outcome.lines] == [(0, 5), (5, 7), (30, 30), (8, 8)]


def test_a_step_in_the_background_holds_up_nobody(tmp_path: Path) -> None:
    slow = step("move", "node = 3", "path = [[120, 500]]", "speed = 10", "background = true")
    outcome = Played(slow + step("wait") + expect("whole", of=""), tmp_path).play()
    move, wait, whole = outcome.lines
    assert (move.ended, wait.begun) == (50, 0)
    assert whole.begun == 50, "what is expected at the end waits for all steps"


def test_an_expectation_that_is_not_met_fails_the_run_and_the_rest_goes_on(tmp_path: Path) -> None:
    text = (
        step("wait")
        + APART
        + step("crash", "nodes = 2")
        + expect("power", "nodes = 2", 'is = "off"')
    )
    outcome = Played(text, tmp_path).play()
    assert outcome.verdict is Verdict.FAILED
    assert verdicts(outcome) == ["passed", "failed", "passed", "passed"]
    assert outcome.lines[1].seconds == pytest.approx(20, abs=1.1)
    (reason,) = outcome.reasons
    assert reason == "line 9: n1 does not reach n3 within 20 s: n1 reaches n3"


def test_something_that_must_stay_true_fails_when_it_stops(tmp_path: Path) -> None:
    reached = expect("reach", "from = 1", "to = 3", "for = 30", of="")
    outcome = Played(step("cut", 'links = "n1-n2"', at=10) + reached + "at = 0\n", tmp_path).play()
    assert outcome.verdict is Verdict.FAILED
    line = outcome.lines[1]
    assert line.text.startswith("it held for 1")
    assert line.text.endswith("s only: n1 does not reach n3")


def test_what_must_be_true_at_once_may_take_a_clock_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host's clock goes on between two looks at it; that of an imagined lab stands still."""
    reads = count()
    now = property(lambda world: world._loop.time() + 1e-6 * next(reads))
    monkeypatch.setattr(World, "now", now)
    outcome = Played(expect("reach", "from = 1", "to = 3", "for = 5", of=""), tmp_path).play()
    assert outcome.verdict is Verdict.PASSED, outcome.lines


def test_something_may_come_and_go_until_its_time_is_over(tmp_path: Path) -> None:
    text = step("cut", 'links = "n1-n2"', at=5) + step("restore", at=15)
    reached = expect("reach", "from = 1", "to = 3", "within = 40", "for = 20", "at = 0", of="")
    outcome = Played(text + reached, tmp_path).play()
    assert outcome.verdict is Verdict.PASSED
    assert outcome.lines[2].figures["after_s"] == pytest.approx(18, abs=1.5)


def test_slack_gives_expectations_more_time(tmp_path: Path) -> None:
    text = CUT + APART.replace("20", "1")
    assert Played(text, tmp_path).play().verdict is Verdict.FAILED
    assert Played(text, tmp_path, slack=10).play().verdict is Verdict.PASSED


def test_a_step_that_cannot_be_done_ends_the_run_without_a_result(tmp_path: Path) -> None:
    run = Played(step("power-on", "nodes = 2") + step("wait", "seconds = 100"), tmp_path)
    outcome = run.play()
    assert outcome.verdict is Verdict.ERROR
    assert verdicts(outcome) == ["error", "not run"]
    assert outcome.reasons == ["power on n2: n2 is on already"]
    assert outcome.seconds == 0


def test_a_run_that_takes_too_long_has_no_result(tmp_path: Path) -> None:
    outcome = Played(step("wait", "seconds = 5000"), tmp_path).play()
    assert outcome.verdict is Verdict.ERROR
    assert outcome.reasons == ["not over within 900 s (timeout of [scenario])"]
    assert outcome.seconds == pytest.approx(900 - 14)


def test_a_medium_that_was_late_makes_the_run_invalid(tmp_path: Path) -> None:
    run = Played(step("wait", "seconds = 3"), tmp_path)

    class Late(ImaginedLab):
        async def medium_call(
            self, method: str, params: Params | None = None, *, patience: float = 8.0
        ) -> Json:
            return {"valid": False, "reasons": ["it stood still for 900 ms"]}

    run.make = Late
    outcome = run.play()
    assert verdicts(outcome) == ["passed"]
    assert outcome.verdict is Verdict.ERROR, "an error of the run, not a pass"
    assert outcome.reasons == ["the medium's figures are invalid: it stood still for 900 ms"]


def test_a_medium_that_was_late_before_it_was_killed_is_remembered(tmp_path: Path) -> None:
    class Forgetful(ImaginedLab):
        async def formed(self, timeout: float) -> None:
            await super().formed(timeout)
            self.state.medium = {"valid": False, "reasons": ["late"]}

        def kill_medium(self) -> None:
            self.state.medium = {"valid": True}

    text = step("wait", "seconds = 3") + step("kill-medium") + step("wait", "seconds = 3")
    run = Played(text, tmp_path)
    run.make = Forgetful
    assert run.play().reasons == ["the medium's figures are invalid: late"]


def test_a_mesh_that_does_not_form_is_no_result(tmp_path: Path) -> None:
    class Never(ImaginedLab):
        async def formed(self, timeout: float) -> None:
            raise RpcError("failed", f"not formed within {timeout:g} s")

    run = Played(CUT + APART, tmp_path)
    run.make = Never
    outcome = run.play()
    assert outcome.verdict is Verdict.ERROR
    assert outcome.formed_seconds is None
    assert verdicts(outcome) == ["not run", "not run"]
    assert picture(outcome).count("not run") >= 2


def test_what_only_nodes_know_is_skipped_in_a_rehearsal(tmp_path: Path) -> None:
    text = step("command", "nodes = 1", 'run = "date"') + expect(
        "command", "nodes = 1", 'run = "uname"', 'says = "Linux"'
    )
    outcome = Played(text, tmp_path).play()
    assert verdicts(outcome) == ["skipped", "skipped"]
    assert outcome.verdict is Verdict.PASSED


def test_commands_are_judged_by_status_text_and_pattern(tmp_path: Path) -> None:
    def check(*more: str) -> str:
        return expect("command", "nodes = [1, 2]", 'run = "uname -a"', "within = 0", *more)

    text = step("wait") + check("status = 0") + check('says = "n2"') + check('matches = "n[12]"')
    run = Played(text, tmp_path)
    run.answers = lambda name, command: (0, f"Linux {name}\n")
    outcome = run.play()
    assert verdicts(outcome) == ["passed", "passed", "failed", "passed"]
    assert outcome.lines[2].text == "n1: status 0, 'Linux n1'"


def test_a_command_must_end_with_its_status(tmp_path: Path) -> None:
    run = Played(step("command", "nodes = 1", 'run = "false"', "status = 0"), tmp_path)
    run.answers = lambda name, command: (1, "no\n")
    assert run.play().reasons == ["run on n1: false: 'false' on n1 ended with status 1: no"]


SENT = {
    "sent": 100, "refused": 0, "arrived": 98, "answered": 95, "twice": 1, "disordered": 2,
    "outage_s": 3.5, "round_trip_ms": {"median": 4.0, "p95": 20.0, "max": 90.0},
}  # fmt: skip


def test_traffic_flows_in_the_background_and_is_judged(tmp_path: Path) -> None:
    def answers(name: str, command: str) -> tuple[int, str] | None:
        if command.startswith("cat"):
            return 0, "ready\n" if command.endswith("answer") else json.dumps(SENT) + "\n"
        return (0, "") if "meshlab-flow" in command else None

    flow = step(
        "traffic", 'name = "stream"', "from = 1", "to = 3", "seconds = 40", "background = true"
    )
    bounds = expect("traffic", 'step = "stream"', "loss = 5", "latency = 30", of="")
    tight = expect("traffic", 'step = "stream"', "outage = 3", of="")
    run = Played(flow + CUT + APART + bounds + tight, tmp_path)
    run.answers = answers
    outcome = run.play()
    assert [*verdicts(outcome)] == ["passed", "passed", "passed", "passed", "failed"]
    assert outcome.lines[3].text.startswith("95 of 100 answered (5.0 % lost), round trip 4.0 ms")
    assert outcome.lines[3].figures["loss_percent"] == pytest.approx(5)
    assert ("n3", "/run/meshlab-flow.py") in run.lab.files


def test_a_sender_without_a_word_is_an_error(tmp_path: Path) -> None:
    run = Played(step("traffic", "from = 1", "to = 3", "seconds = 5"), tmp_path)
    run.answers = lambda name, command: (0, "ready\n") if command.startswith("cat") else (0, "")
    outcome = run.play()
    assert outcome.verdict is Verdict.ERROR
    assert "the sender of the traffic said 'ready'" in outcome.reasons[0]


def test_all_kinds_of_faults_reach_the_lab(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text("0 0 0 10 100 0\n")
    text = "".join(
        [
            step("degrade", 'links = "n1-n2"', "snr = 8", "loss = 50", "oneway = true"),
            step("degrade", 'links = "n2-n3"', 'fading = "rayleigh doppler=5"'),
            step("split", "groups = [[1], [2, 3]]"),
            step("restore", 'links = ["n1-n2"]'),
            step("restore"),
            step("move", "node = 3", "path = [[1, 2]]"),
            step("trace", 'file = "trace"', 'format = "bonnmotion"', "nodes = [2]"),
            step("power-off", "nodes = [1, 2]", "pause = 7"),
            step("card", "node = 1", 'text = "[mesh]"'),
            step("power-on", "nodes = [1, 2]"),
            step("power-cycle", "nodes = 3", "down = 2"),
            step("chip", "nodes = 1", 'fault = "absent"'),
            step("pull-radio", "nodes = 2"),
            expect("problem", "nodes = 2", 'part = "radio"', 'says = "no radio"'),
            step("plug-radio", "nodes = 2"),
            expect("no-problem", "nodes = 2"),
            step("config", "nodes = 2", 'set = {"mesh.channel" = 6, "mesh.ht" = true}'),
            step("kill-medium"),
        ]
    )
    run = Played(text, tmp_path)
    outcome = run.play()
    assert outcome.verdict is Verdict.PASSED, outcome.reasons
    wanted = [
        "link n1 -> n2 changed", "link n1 -> n2 changed", "link n2 <-> n3 changed",
        "link n1 <-> n2 cut", "link n1 <-> n2 restored",
        "link n2 -> n3 restored", "link n3 -> n2 restored",
        "n3: moved to 1 m, 2 m", "n2: moved to 100 m, 0 m",
        "n1: switched off", "n2: switched off", "n1: its card was edited", "n1: switched on",
        "n2: switched on", "n3: power cut", "n3: switched on", "n1: chip: absent",
        "n2: radio unplugged", "n2: radio plugged in", "n2: configured", "the medium was killed",
    ]  # fmt: skip
    assert run.lab.calls[3:] == wanted
    assert outcome.lines[7].seconds == 7


def test_a_node_that_walks_away_is_lost(tmp_path: Path) -> None:
    text = """\
[[node]]
name = "n1"
at = [0, 0]
[[node]]
name = "n2"
at = [40, 0]
"""
    text += step("move", "node = 2", "path = [[400, 0]]", "speed = 20") + expect(
        "peers", "nodes = 1", "are = []", "within = 20"
    )
    run = Played("", tmp_path)
    head = '[scenario]\nname = "walk"\n[topology]\nkind = "distance"\n'
    run.scenario = parse((head + text).encode(), tmp_path / "walk.toml")
    outcome = run.play()
    assert outcome.verdict is Verdict.PASSED
    assert outcome.lines[0].seconds == pytest.approx(18)
    assert [n for n, _ in groupby(one.peers for one in outcome.lanes["n1"])] == [1, 0]


def test_a_node_that_is_off_is_in_the_cluster_until_the_others_notice(tmp_path: Path) -> None:
    lost = expect("cluster", "nodes = 1", "lack = 3")
    outcome = Played(step("crash", "nodes = 3") + lost, tmp_path).play()
    assert outcome.lines[1].figures["after_s"] == pytest.approx(rehearsal.NOTICE, abs=0.5)


def test_the_table_tells_all(tmp_path: Path) -> None:
    outcome = Played(CUT + APART, tmp_path).play()
    assert report.table(outcome).splitlines() == [
        "    s    took  what                                       seen",
        "ok  0.0  0.0   cut n2-n3",
        "ok  0.0  3.0     expect n1 does not reach n3 within 20 s  nobody answers",
        "",
        "a test: passed, seed 1, formed in 14.0 s, 3.0 s played, imagined: nothing was booted",
    ]


def test_the_result_is_json_and_junit(tmp_path: Path) -> None:
    outcome = Played(
        CUT + APART + step("wait") + APART.replace("to = 3", "to = 2"), tmp_path
    ).play()
    plain = json.loads(json.dumps(outcome.to_json()))
    assert plain["verdict"] == "failed"
    assert plain["schema"] == 1
    assert plain["lines"][1]["figures"]["after_s"] == 3.0
    assert plain["lanes"]["n3"][0] == {"at": 0.0, "phase": "up", "peers": 1, "cluster": 2}
    assert plain["events"][0]["text"] == "link n2 <-> n3 cut"
    suite = ElementTree.fromstring(report.junit([outcome]))[0]
    assert dict(suite.attrib) | {"timestamp": ""} == {
        "name": "a test", "tests": "4", "failures": "1", "errors": "0", "skipped": "0",
        "time": f"{14 + outcome.seconds:.1f}", "timestamp": "",
    }  # fmt: skip
    failure = suite[3].find("failure")
    assert failure is not None
    assert failure.text == "n1 reaches n2"


def test_an_error_of_the_run_is_a_case_of_its_own() -> None:
    outcome = Outcome("x", "", "x.toml", 1, Verdict.ERROR, ["the medium was \x1b late"])
    suite = ElementTree.fromstring(report.junit([outcome]))[0]
    assert suite.get("errors") == "1"
    error = suite[0].find("error")
    assert error is not None
    assert error.text == "the medium was \\u001b late"


def made(seed: int, verdict: Verdict, after: float, formed: float = 10.0) -> Outcome:
    line = Line("expect", "heals", "it heals", 1, 0, 1, verdict, "", {"after_s": after})
    return Outcome("x", "", "x.toml", seed, verdict, formed_seconds=formed, lines=[line])


def test_repeated_runs_have_statistics() -> None:
    runs = [
        made(1, Verdict.PASSED, 2.0), made(2, Verdict.PASSED, 4.0, 30.0),
        made(3, Verdict.FAILED, 9.0), made(4, Verdict.PASSED, 3.0),
    ]  # fmt: skip
    assert report.statistics_table(runs).splitlines() == [
        "passed  median  worst  figure    what",
        "4/4     10.0    30.0   formed_s  the mesh forms",
        "3/4     3.5     9.0    after_s   heals: it heals",
        "",
        "3 of 4 runs passed (75 %); seeds 1, 2, 3, 4",
    ]


def test_the_picture_is_xml_with_everything_on_it(tmp_path: Path) -> None:
    run = Played(CUT + APART + step("crash", "nodes = 3"), tmp_path)
    outcome = run.play()
    outcome.description = "<script>alert(1)</script> & \x1b[2J"
    drawn = ElementTree.fromstring(picture(outcome).partition("\n")[2])
    texts = "\n".join(drawn.itertext())
    for words in ("a test", "passed, seed 1", "n1", "cut n2-n3", "crash n3", "after 3.0 s"):
        assert words in texts
    assert "<script>" in texts, "as text, not as an element"
    assert not drawn.findall(".//{http://www.w3.org/2000/svg}script")
    assert "\\u001b" in texts
    for element in drawn.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(element.get("x", "0")) + float(element.get("width", "0")) <= 1200.5


# -- the library

LIBRARY = sorted((Path(__file__).parents[3] / "examples" / "scenarios").glob("*.toml"))


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_the_library_is_rehearsed(path: Path, tmp_path: Path) -> None:
    run = Played("", tmp_path)
    run.scenario = load(path)
    outcome = run.play()
    assert outcome.verdict is Verdict.PASSED, report.table(outcome)
    assert outcome.description
    assert sum(line.kind == "expect" and line.verdict is Verdict.PASSED for line in outcome.lines)
    ElementTree.fromstring(picture(outcome).partition("\n")[2])


def test_the_library_has_a_dozen_and_the_guide_names_each() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "scenarios.md").read_text(encoding="utf-8")
    assert len(LIBRARY) >= 12
    for path in LIBRARY:
        assert f"[{path.stem}](../examples/scenarios/{path.name})" in guide
