# SPDX-License-Identifier: Apache-2.0
"""Another passphrase for the mesh: real nodes of a cluster, over radios that the tests play.

The same with real wpa_supplicants is in tests/mesh/test_passphrase.py.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv6Interface
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from patience import PATIENCE
from private_network import Network, in_private_network, until

from thicket.base.paths import Paths
from thicket.base.problems import Problems
from thicket.cli import passphrase as command
from thicket.cli.common import BAD, OK, USAGE
from thicket.cli.main import main
from thicket.cluster import passphrase_judge
from thicket.cluster.passphrase import Host as PassphraseHost
from thicket.cluster.passphrase import Passphrase
from thicket.cluster.passphrase_exchange import NAME, Listener
from thicket.cluster.passphrase_file import PassphraseError
from thicket.cluster.passphrase_judge import Deed, Facts, Judge
from thicket.config.load import load
from thicket.config.schema import Settings
from thicket.control.client import ClientError
from thicket.distribution import Atom, Node
from thicket.radio.radio import Peering
from thicket.radio.section import MeshSection

# Nothing here waits for the kernel or another process.
pytestmark = pytest.mark.virtual_time

OLD, NEW = "the old passphrase", "the new passphrase"
PEER, STRANGER = "02:74:68:00:00:02", "02:74:68:00:00:09"


class Radio(Peering):
    """A radio whose neighbours the tests play."""

    settings = MeshSection({"security": "sae", "passphrase": OLD})
    outdated = False

    def __init__(self, used: str) -> None:
        self.settings = self.settings.replace(passphrase=used)
        self.applied: list[str | None] = []
        self.refusing: dict[str, int] = {}
        self.linked: set[str] = set()
        self.renewed = 0

    def renew(self) -> None:
        self.outdated = False
        self.renewed += 1

    def apply(self, settings: MeshSection, address: IPv6Interface | None = None) -> None:
        self.settings = settings
        self.applied.append(settings.passphrase)

    def refused(self) -> dict[str, int]:
        return dict(self.refusing)

    def peers(self) -> set[str]:
        return set(self.linked)


class Host(PassphraseHost):
    """A daemon as far as the passphrase goes.

    :ivar follows: set unless the node takes long to follow another configuration.
    """

    paths = Paths("/nonexistent")
    settings = Settings({})
    problems = Problems(lambda: None)
    mesh: Radio | None = None

    def __init__(self, root: Path, text: str) -> None:
        self.paths = Paths(str(root))
        Path(self.paths.local).parent.mkdir(parents=True)
        Path(self.paths.local).write_text(text, encoding="utf-8")
        self.settings = load(self.paths).settings
        self.mesh = self.radio = Radio(OLD)
        self.problems = Problems(lambda: None)
        self.known: list[dict[str, Any]] = []
        self.follows = asyncio.Event()
        self.follows.set()

    def nodes(self) -> list[dict[str, Any]]:
        return self.known

    async def reload(self) -> None:
        await self.follows.wait()
        self.settings = load(self.paths).settings
        if self.mesh is not None:
            self.mesh.apply(self.mesh.settings.replace(passphrase=self.settings.mesh.passphrase))

    def codes(self) -> set[str]:
        """The codes of the problems."""
        return {problem["code"] for problem in self.problems.all()}

    def file(self) -> str:
        return Path(self.paths.local).read_text(encoding="utf-8")


def host(root: Path, **mesh: str) -> Host:
    values = {"security": "sae", "passphrase": OLD, **mesh}
    lines = [f'{key} = "{value}"  # a remark' for key, value in values.items()]
    return Host(root, "\n".join(["[mesh]", *lines, ""]))


@asynccontextmanager
async def two(
    network: Network, root: Path, other_mesh: dict[str, str] | None = None
) -> AsyncIterator[list[tuple[Passphrase, Host, Node]]]:
    """Two connected nodes; the second one has ``other_mesh`` in its file."""
    options: dict[str, Any] = {"cookie": "c", "port": 0, "tick_time": 3600}
    nodes = [
        Node(name, address=network.address(number), epmd_port=network.epmd_port, **options)
        for number, name in ((1, "a"), (2, "b"))
    ]
    hosts = [host(root / "a"), host(root / "b", **(other_mesh or {}))]
    subjects = [Passphrase(one) for one in hosts]
    tasks = []
    try:
        for node in nodes:
            await node.start()
            await until(lambda node=node: node.listening, "the node listens")  # type: ignore[misc]
        await nodes[0].connect(nodes[1].name, 30.0)
        for mine, other in ((0, 1), (1, 0)):
            hosts[mine].known = [{"name": nodes[other].name, "state": "up"}]
            tasks.append(asyncio.create_task(subjects[mine].run(nodes[mine])))
        await until(lambda: all(n.whereis(NAME) for n in nodes), "both listen")
        yield list(zip(subjects, hosts, nodes, strict=True))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for node in nodes:
            await node.stop()


async def refusal(attempt: Any) -> PassphraseError:
    with pytest.raises(PassphraseError) as caught:
        await attempt
    return caught.value


@in_private_network
async def test_a_change_on_all_nodes(network: Network) -> None:
    folder = network.folder()
    async with two(network, folder) as ((here, mine, _), (_, other, _)):
        handed = {"action": "prepare", "passphrase": NEW}
        # In clear it is done on demand only, and then nothing has happened before.
        assert (await refusal(here.request(handed))).code == "unencrypted"
        assert other.settings.mesh.next_passphrase == ""
        assert mine.settings.mesh.next_passphrase == ""
        mine.known.append({"name": "t@fd00::9", "state": "connecting"})
        answer = await here.request({**handed, "unencrypted": True})
        assert len(answer["done"]) == 2
        assert (answer["failed"], answer["missing"]) == ({}, ["t@fd00::9"])
        for one in (mine, other):
            assert one.settings.mesh.next_passphrase == NEW
            assert one.settings.mesh.passphrase == OLD
            assert one.radio.settings.passphrase == OLD, "nothing is used yet"
            assert f'next_passphrase = "{NEW}"' in one.file()
        answer = await here.request({"action": "change"})
        assert len(answer["done"]) == 2
        for one in (mine, other):
            assert one.radio.settings.passphrase == NEW
            assert one.settings.mesh.next_passphrase == OLD, "until links of the new one stand"
            assert f'passphrase = "{NEW}"  # a remark' in one.file()
        assert (await refusal(here.request({"action": "change"}))).code == "nothing"
        await here.request({"action": "cancel"})
        for one in (mine, other):
            assert one.settings.mesh.next_passphrase == OLD, "there is nothing to cancel"
            one.radio.linked = {PEER}
        with mock.patch.object(passphrase_judge, "STAND", 0.0):
            await until(
                lambda: not any(one.settings.mesh.next_passphrase for one in (mine, other)),
                "the old one is gone",
                60,
            )
        assert OLD not in mine.file() + other.file()


@in_private_network
async def test_a_change_that_is_dropped(network: Network) -> None:
    folder = network.folder()
    async with two(network, folder) as ((here, mine, _), (there, other, _)):
        await here.request({"action": "prepare", "passphrase": NEW, "unencrypted": True})
        assert NEW in other.file()
        await there.request({"action": "cancel"})
        assert NEW not in other.file() + mine.file()
        assert mine.settings.mesh.passphrase == other.settings.mesh.passphrase == OLD


@in_private_network
async def test_a_node_that_cannot_and_one_that_is_no_thicket_node(network: Network) -> None:
    folder = network.folder()
    async with two(network, folder, {"security": "open"}) as ((here, _, _), (_, _, node)):
        handed = {"action": "prepare", "passphrase": NEW, "unencrypted": True}
        answer = await here.request(handed)
        (why,) = answer["failed"].values()
        assert "open" in why
        node.end(node.whereis(NAME))  # type: ignore[arg-type]
        (why,) = (await here.request(handed))["failed"].values()
        assert "no Thicket node" in why


@in_private_network
async def test_hostile_requests(network: Network) -> None:
    folder = network.folder()
    async with two(network, folder) as ((_, _, here), (_, other, there)):
        where = (NAME, there.name)
        before = other.file()
        for request in (
            Atom("what"), (), (Atom("prepare"),), (Atom("prepare"), b"short"),
            (Atom("prepare"), b"\xff" * 20), (Atom("prepare"), b"x" * 64),
            (Atom("prepare"), b'quoted"\nsecurity = "open"'), (Atom("change"), b""),
            (Atom("prepare"), OLD.encode()), (Atom("change"), 7),
        ):  # fmt: skip
            answer = await here.request(where, request, 20.0)
            assert answer[0] == "error", request
        assert other.file() == before
        # told twice, as after a lost answer
        for _ in range(2):
            request = (Atom("change"), NEW.encode())
            assert await here.request(where, request, 20.0) == "ok"
        assert other.settings.mesh.passphrase == NEW


@in_private_network
async def test_requests_at_once_are_bounded(network: Network) -> None:
    folder = network.folder()
    async with two(network, folder) as ((_, _, here), (_, other, there)):
        other.follows.clear()
        message = (Atom("prepare"), NEW.encode())
        waiting = [
            asyncio.create_task(here.request((NAME, there.name), message, PATIENCE))
            for _ in range(Listener.MOST + 3)
        ]
        await until(lambda: sum(task.done() for task in waiting) == 3, "three are refused")
        other.follows.set()
        answers = await asyncio.gather(*waiting)
        assert answers.count("ok") == Listener.MOST


@in_private_network
async def test_the_links_are_made_anew_in_turn(network: Network) -> None:
    folder = network.folder()
    async with two(network, folder) as ((here, mine, _), (there, other, _)):
        turns = []
        for subject, one in ((here, mine), (there, other)):
            await subject.step(1000.0)
            assert one.radio.renewed == 0
            one.radio.outdated = True
            for now in range(1000, 1100, 2):
                await subject.step(float(now))
                if one.radio.renewed:
                    turns.append(now)
                    break
        assert turns == sorted(turns), "in the order of their names"
        assert turns[0] >= 1000 + passphrase_judge.GRACE
        assert turns[1] >= turns[0] + passphrase_judge.TURN
        assert mine.radio.renewed == other.radio.renewed == 1


class TestJudge:
    """What comes next, by the facts alone."""

    def test_without_a_second_passphrase_there_is_nothing_to_do(self) -> None:
        judge = Judge()
        for now in range(0, 1000, 3):
            assert judge.judge(float(now), Facts(peers={PEER}, refusing={STRANGER})) == []

    def test_old_links_do_not_stand(self) -> None:
        judge = Judge()
        former = Facts(two=True, former=True, peers={PEER})
        for now in range(100):
            assert judge.judge(float(now), former._replace(outdated=True)) == []
        assert judge.judge(100.0, former) == []
        assert judge.judge(99.9 + passphrase_judge.STAND, former) == []
        assert judge.judge(100.0 + passphrase_judge.STAND, former) == [Deed.DROP]

    def test_a_trial_ends_in_time_and_with_the_second_passphrase(self) -> None:
        judge = Judge()
        facts = Facts(two=True, refusing={PEER})
        assert judge.judge(0.0, facts) == [Deed.TRY]
        assert judge.judge(passphrase_judge.TRIAL, facts) == []
        assert judge.judge(passphrase_judge.TRIAL + 1, facts) == [Deed.RETURN]
        assert not judge.trying
        again = passphrase_judge.TRIAL + passphrase_judge.RESTS[0] + 2
        assert judge.judge(again - 1, facts) == []
        assert judge.judge(again, facts) == [Deed.TRY]
        assert judge.trying
        assert judge.judge(again + 1, Facts(peers={PEER})) == []
        assert not judge.trying

    def test_no_links_are_made_anew_during_a_trial(self) -> None:
        judge = Judge()
        facts = Facts(two=True, refusing={PEER}, outdated=True, turn=0)
        assert judge.judge(0.0, facts) == [Deed.TRY]
        for now in range(1, int(passphrase_judge.TRIAL)):
            assert judge.judge(float(now), facts) == []


class TestMissed:
    """A node that has the next passphrase, and was not told to change."""

    def subject(self, tmp_path: Path) -> tuple[Passphrase, Host]:
        one = host(tmp_path / "x", next_passphrase=NEW)
        return Passphrase(one), one

    async def test_without_refusals_nothing_is_tried(self, tmp_path: Path) -> None:
        subject, one = self.subject(tmp_path)
        one.radio.refusing = {PEER: 1}
        for now in range(0, 1000, 3):
            await subject.step(float(now))
        assert one.radio.applied == []
        assert one.codes() == {"passphrase-pending"}

    async def test_alone_the_first_link_decides(self, tmp_path: Path) -> None:
        subject, one = self.subject(tmp_path)
        one.radio.refusing = {PEER: 2}
        await subject.step(100.0)
        assert one.radio.applied == [NEW]
        assert one.settings.mesh.passphrase == OLD
        one.radio.linked = {STRANGER}
        await subject.step(101.0)
        assert one.settings.mesh.passphrase == NEW
        await subject.step(103.0)
        assert one.codes() == set()

    async def test_with_peers_a_link_that_stood_proves_nothing(self, tmp_path: Path) -> None:
        subject, one = self.subject(tmp_path)
        one.radio.linked = {STRANGER}
        one.radio.refusing = {PEER: 3}
        await subject.step(100.0)
        assert one.radio.applied == [NEW]
        await subject.step(101.0)
        assert one.settings.mesh.passphrase == OLD
        one.radio.linked.add("02:74:68:00:00:07")
        await subject.step(102.0)
        assert one.settings.mesh.passphrase == OLD
        one.radio.linked.add(PEER)
        await subject.step(103.0)
        assert one.settings.mesh.passphrase == NEW

    async def test_a_stranger_who_never_fits_is_tried_ever_more_seldom(
        self, tmp_path: Path
    ) -> None:
        subject, one = self.subject(tmp_path)
        one.radio.linked = {PEER}
        one.radio.refusing = {STRANGER: 5}
        tried = []
        for now in range(0, 7200, 3):
            before = len(one.radio.applied)
            await subject.step(float(now))
            if len(one.radio.applied) > before and one.radio.settings.passphrase == NEW:
                tried.append(now)
        gaps = [b - a for a, b in pairwise(tried)]
        assert gaps == sorted(gaps)
        assert gaps[0] < 120
        assert gaps[-1] > passphrase_judge.RESTS[-1]
        assert one.radio.applied.count(OLD) >= len(tried) - 1, (
            "the present one comes back each time"
        )

    async def test_a_change_that_ends_otherwise_ends_the_trial(self, tmp_path: Path) -> None:
        subject, one = self.subject(tmp_path)
        one.radio.refusing = {PEER: 2}
        await subject.step(100.0)
        assert one.radio.applied == [NEW]
        one.settings = Settings({"mesh": {"passphrase": OLD}})
        one.radio.linked = {PEER}
        await subject.step(103.0)
        assert one.radio.applied == [NEW]
        assert OLD in one.file(), "nothing is adopted"
        one.mesh = None
        await subject.step(106.0)


async def test_what_a_passphrase_must_be(tmp_path: Path) -> None:
    one = host(tmp_path / "x")
    subject = Passphrase(one)
    for text in ("", "short", "x" * 64, "tab\tin it"):
        assert (await refusal(subject.prepare(text))).code == "bad-passphrase"
    assert (await refusal(subject.prepare(OLD))).code == "same"
    assert (await refusal(subject.request({"action": "prepare"}))).code == "not-joined"


async def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    one = host(tmp_path / "x")
    Path(one.paths.local).write_text("[mesh\n", encoding="utf-8")
    assert (await refusal(Passphrase(one).prepare(NEW))).code == "not-written"


class TestCommand:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        asked: list[dict[str, Any]] = []
        self.answer: dict[str, Any] = {"done": ["t@fd00::1"], "failed": {}, "missing": []}

        def request(path: str, method: str, params: dict[str, Any], timeout: float) -> Any:
            asked.append(params)
            return self.answer

        monkeypatch.setattr(command, "request", request)
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{NEW}\n"))
        return asked

    def test_from_standard_input(
        self, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["passphrase", "roll"]) == OK
        assert [one["action"] for one in asked] == ["prepare", "change"]
        assert asked[0]["passphrase"] == NEW
        assert asked[0]["unencrypted"] is False
        out = capsys.readouterr().out
        assert "t@fd00::1  has it" in out
        assert NEW not in out

    def test_missing_nodes_stop_it_unless_accepted(
        self, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.answer["missing"] = ["t@fd00::2"]
        assert main(["passphrase", "roll", "--generate"]) == BAD
        assert [one["action"] for one in asked] == ["prepare", "cancel"]
        assert "t@fd00::2  MISSING" in capsys.readouterr().out
        asked.clear()
        assert main(["passphrase", "roll", "--generate", "--accept-missing"]) == OK
        assert [one["action"] for one in asked] == ["prepare", "change"]

    def test_generated(
        self, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["passphrase", "roll", "--generate"]) == OK
        made = asked[0]["passphrase"]
        assert made in capsys.readouterr().out
        assert MeshSection.passphrase.check(made) == made
        assert len({command.generate() for _ in range(100)}) == 100

    def test_finish_and_cancel(self, asked: list[dict[str, Any]]) -> None:
        assert main(["passphrase", "finish"]) == OK
        assert main(["passphrase", "cancel"]) == OK
        assert [one["action"] for one in asked] == ["change", "cancel"]
        self.answer["failed"] = {"t@fd00::2": "no answer"}
        assert main(["passphrase", "finish"]) == BAD

    def test_never_on_the_command_line(
        self, asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["passphrase", "roll", NEW]) == USAGE
        said = capsys.readouterr().err
        assert "never stands on the command line" in said
        assert NEW not in said
        assert main(["passphrase"]) == USAGE
        assert asked == []

    def test_different_when_typed_twice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        typed = iter((NEW, OLD))
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("getpass.getpass", lambda prompt: next(typed))
        with pytest.raises(ClientError, match="not the same"):
            command.read_passphrase()


def test_a_roll_that_stops_says_who_dropped_the_passphrase_again_and_who_did_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: dict[str, dict[str, Any]] = {
        "prepare": {"done": ["t@fd00::1", "t@fd00::2"], "failed": {}, "missing": ["t@fd00::3"]},
        "cancel": {"done": ["t@fd00::1"], "failed": {"t@fd00::2": "no answer"}, "missing": []},
    }

    def request(path: str, method: str, params: dict[str, Any], timeout: float) -> Any:
        return answers[params["action"]]

    monkeypatch.setattr(command, "request", request)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{NEW}\n"))
    assert main(["passphrase", "roll"]) == BAD
    out = capsys.readouterr().out
    assert "Nothing was changed" not in out
    assert "t@fd00::1  dropped it again" in out
    assert "t@fd00::2  NOT: no answer" in out
    assert "Those still have the new passphrase" in out
