# SPDX-License-Identifier: Apache-2.0
"""Another passphrase for the mesh: real nodes of a cluster, over radios that the tests play.

The same with real wpa_supplicants is in tests/mesh/test_passphrase.py.
"""

from __future__ import annotations

import asyncio
import io
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from private_network import Network, in_private_network, until

from thicket.base.paths import Paths
from thicket.base.problems import Problems
from thicket.cli import passphrase as command
from thicket.cli.common import BAD, OK, USAGE
from thicket.cli.main import main
from thicket.cluster import passphrase
from thicket.cluster.passphrase import Listener, Passphrase, PassphraseError
from thicket.config.load import load
from thicket.config.schema import Settings
from thicket.control.client import ClientError
from thicket.distribution import Atom, Node
from thicket.radio.section import MeshSection

# Nothing here waits for the kernel or another process.
pytestmark = pytest.mark.virtual_time

OLD, NEW = "the old passphrase", "the new passphrase"
PEER, STRANGER = "02:74:68:00:00:02", "02:74:68:00:00:09"


class Radio:
    """What a :class:`thicket.radio.Mesh` tells of itself."""

    def __init__(self, used: str) -> None:
        self.settings = MeshSection({"security": "sae", "passphrase": used})
        self.applied: list[str | None] = []
        self.refusing: dict[str, int] = {}
        self.linked: set[str] = set()
        self.outdated = False
        self.renewed = 0

    def renew(self) -> None:
        self.outdated = False
        self.renewed += 1

    def apply(self, settings: MeshSection) -> None:
        self.settings = settings
        self.applied.append(settings.passphrase)

    def refused(self) -> dict[str, int]:
        return dict(self.refusing)

    def peers(self) -> set[str]:
        return set(self.linked)


class Host:
    """A daemon as far as the passphrase goes."""

    def __init__(self, root: Path, text: str) -> None:
        self.paths = Paths(str(root))
        Path(self.paths.local).parent.mkdir(parents=True)
        Path(self.paths.local).write_text(text, encoding="utf-8")
        self.settings = load(self.paths).settings
        self.mesh: Any = Radio(OLD)
        self.problems = Problems(lambda: None)
        self.known: list[dict[str, Any]] = []

    def nodes(self) -> list[dict[str, Any]]:
        return self.known

    async def reload(self) -> None:
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
) -> AsyncIterator[tuple[Passphrase, Host, Passphrase, Host]]:
    """Two connected nodes; the second one has ``other_mesh`` in its file."""
    options: dict[str, Any] = {"cookie": "c", "port": 0, "tick_time": 60.0}
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
        await until(lambda: all(n.whereis(Passphrase.NAME) for n in nodes), "both listen")
        yield subjects[0], hosts[0], subjects[1], hosts[1]
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
    with tempfile.TemporaryDirectory() as folder:
        async with two(network, Path(folder)) as (here, mine, _, other):
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
                assert one.mesh.settings.passphrase == OLD, "nothing is used yet"
                assert f'next_passphrase = "{NEW}"' in one.file()
            answer = await here.request({"action": "change"})
            assert len(answer["done"]) == 2
            for one in (mine, other):
                assert one.mesh.settings.passphrase == NEW
                assert one.settings.mesh.next_passphrase == OLD, "until links of the new one stand"
                assert f'passphrase = "{NEW}"  # a remark' in one.file()
            assert (await refusal(here.request({"action": "change"}))).code == "nothing"
            await here.request({"action": "cancel"})
            for one in (mine, other):
                assert one.settings.mesh.next_passphrase == OLD, "there is nothing to cancel"
                one.mesh.linked = {PEER}
            with mock.patch.object(passphrase, "STAND", 0.0):
                await until(
                    lambda: not any(one.settings.mesh.next_passphrase for one in (mine, other)),
                    "the old one is gone",
                    60,
                )
            assert OLD not in mine.file() + other.file()


@in_private_network
async def test_a_change_that_is_dropped(network: Network) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with two(network, Path(folder)) as (here, mine, there, other):
            await here.request({"action": "prepare", "passphrase": NEW, "unencrypted": True})
            assert NEW in other.file()
            await there.request({"action": "cancel"})
            assert NEW not in other.file() + mine.file()
            assert mine.settings.mesh.passphrase == other.settings.mesh.passphrase == OLD


@in_private_network
async def test_a_node_that_cannot_and_one_that_is_no_thicket_node(network: Network) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with two(network, Path(folder), {"security": "open"}) as (here, _, there, _):
            handed = {"action": "prepare", "passphrase": NEW, "unencrypted": True}
            answer = await here.request(handed)
            (why,) = answer["failed"].values()
            assert "open" in why
            assert there._node is not None
            node = there._node
            node.end(node.whereis(Passphrase.NAME))  # type: ignore[arg-type]
            (why,) = (await here.request(handed))["failed"].values()
            assert "no Thicket node" in why


@in_private_network
async def test_hostile_requests(network: Network) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with two(network, Path(folder)) as (here, _, there, other):
            assert here._node is not None
            assert there._node is not None
            name = there._node.name
            before = other.file()
            for request in (
                Atom("what"), (), (Atom("prepare"),), (Atom("prepare"), b"short"),
                (Atom("prepare"), b"\xff" * 20), (Atom("prepare"), b"x" * 64),
                (Atom("prepare"), b'quoted"\nsecurity = "open"'), (Atom("change"), b""),
                (Atom("prepare"), OLD.encode()), (Atom("change"), 7),
            ):  # fmt: skip
                answer = await here._node.request((Passphrase.NAME, name), request, 20.0)
                assert answer[0] == "error", request
            assert other.file() == before
            # told twice, as after a lost answer
            for _ in range(2):
                request = (Atom("change"), NEW.encode())
                assert await here._node.request((Passphrase.NAME, name), request, 20.0) == "ok"
            assert other.settings.mesh.passphrase == NEW


@in_private_network
async def test_requests_at_once_are_bounded(network: Network) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with two(network, Path(folder)) as (here, _, there, _):
            assert here._node is not None
            assert there._node is not None
            await there._writing.acquire()
            name = there._node.name
            message = (Atom("prepare"), NEW.encode())
            waiting = [
                asyncio.create_task(here._node.request((Passphrase.NAME, name), message, 60.0))
                for _ in range(Listener.MOST + 3)
            ]
            await until(lambda: sum(task.done() for task in waiting) == 3, "three are refused")
            there._writing.release()
            answers = await asyncio.gather(*waiting)
            assert answers.count("ok") == Listener.MOST


@in_private_network
async def test_the_links_are_made_anew_in_turn(network: Network) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with two(network, Path(folder)) as (here, mine, there, other):
            turns = []
            for subject, one in ((here, mine), (there, other)):
                subject.look(1000.0)
                assert one.mesh.renewed == 0
                one.mesh.outdated = True
                for now in range(1000, 1100, 2):
                    subject.look(float(now))
                    if one.mesh.renewed:
                        turns.append(now)
                        break
            assert turns == sorted(turns), "in the order of their names"
            assert turns[0] >= 1000 + passphrase.GRACE
            assert turns[1] >= turns[0] + passphrase.TURN
            assert mine.mesh.renewed == other.mesh.renewed == 1


class TestMissed:
    """A node that has the next passphrase, and was not told to change."""

    def subject(self, tmp_path: Path) -> tuple[Passphrase, Host]:
        one = host(tmp_path / "x", next_passphrase=NEW)
        return Passphrase(one), one

    def test_without_refusals_nothing_is_tried(self, tmp_path: Path) -> None:
        subject, one = self.subject(tmp_path)
        one.mesh.refusing = {PEER: 1}
        for now in range(0, 1000, 3):
            subject.look(float(now))
        assert one.mesh.applied == []
        assert one.codes() == {"passphrase-pending"}

    async def test_alone_the_first_link_decides(self, tmp_path: Path) -> None:
        subject, one = self.subject(tmp_path)
        one.mesh.refusing = {PEER: 2}
        subject.look(100.0)
        assert one.mesh.applied == [NEW]
        assert not subject._adopts()
        one.mesh.linked = {STRANGER}
        assert subject._adopts()
        await subject.change()
        assert one.settings.mesh.passphrase == NEW
        subject.look(103.0)
        assert one.codes() == set()

    def test_with_peers_a_link_that_stood_proves_nothing(self, tmp_path: Path) -> None:
        subject, one = self.subject(tmp_path)
        one.mesh.linked = {STRANGER}
        one.mesh.refusing = {PEER: 3}
        subject.look(100.0)
        assert one.mesh.applied == [NEW]
        assert not subject._adopts()
        one.mesh.linked.add("02:74:68:00:00:07")
        assert not subject._adopts()
        one.mesh.linked.add(PEER)
        assert subject._adopts()

    def test_a_stranger_who_never_fits_is_tried_ever_more_seldom(self, tmp_path: Path) -> None:
        subject, one = self.subject(tmp_path)
        one.mesh.linked = {PEER}
        one.mesh.refusing = {STRANGER: 5}
        tried = []
        for now in range(0, 7200, 3):
            before = len(one.mesh.applied)
            subject.look(float(now))
            if len(one.mesh.applied) > before and one.mesh.settings.passphrase == NEW:
                tried.append(now)
        gaps = [b - a for a, b in pairwise(tried)]
        assert gaps == sorted(gaps)
        assert gaps[0] < 120
        assert gaps[-1] > passphrase.REST_AT_MOST
        assert one.mesh.applied.count(OLD) >= len(tried) - 1, "the present one comes back each time"

    def test_a_change_that_ends_otherwise_ends_the_trial(self, tmp_path: Path) -> None:
        subject, one = self.subject(tmp_path)
        one.mesh.refusing = {PEER: 2}
        subject.look(100.0)
        one.settings = Settings({"mesh": {"passphrase": OLD}})
        subject.look(103.0)
        assert not subject._trying
        one.mesh = None
        subject.look(106.0)


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
