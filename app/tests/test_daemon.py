# SPDX-License-Identifier: Apache-2.0
"""thicket.daemon: its parts composed, supervised and reconfigured; and whole clusters of daemons.

The first half uses fakes for the radio and the cluster. The second half runs real daemons, each in
a network namespace of its own, joined by a bridge in place of the radio medium.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv6Address, IPv6Interface
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from daemons import OPEN, PREFIX, Fleet
from patience import PATIENCE

from thicket.base import supervise
from thicket.base.events import Listener
from thicket.base.fields import MASK
from thicket.base.paths import Paths
from thicket.base.problems import Problems
from thicket.base.supervise import FAILURES, FailingError, Part
from thicket.cluster import membership, radio_watch
from thicket.cluster.names import host_digits
from thicket.config.load import load
from thicket.config.schema import Settings
from thicket.control.client import ClientError, request
from thicket.daemon import cluster_part, daemon
from thicket.daemon.commands import Commands
from thicket.daemon.daemon import Daemon, only_one, stop_radio
from thicket.daemon.discovery_part import DUPLICATE
from thicket.daemon.live import Live
from thicket.daemon.parts import Parts
from thicket.discovery.service import Discovery
from thicket.distribution.atoms import NORMAL
from thicket.distribution.casts import Casts
from thicket.distribution.etf import Atom, Pid
from thicket.distribution.events import ClusterEvent, NodeUp
from thicket.distribution.members import Members
from thicket.distribution.node import Node, NodeInfo
from thicket.distribution.processes import Process
from thicket.distribution.secure import Tls
from thicket.identity.source import Identity
from thicket.radio.events import Joined, RadioEvent
from thicket.radio.radio import Radio
from thicket.radio.scan import ScanError
from thicket.radio.section import MeshSection
from thicket.radio.session import kernel_parameters
from thicket.radio.wpa import configuration

SERIAL = bytes.fromhex("01236f44e3c6b802ee")  # of the published example


class Unheard(Listener[RadioEvent]):
    """A listener that does not listen."""

    def on(self, event: RadioEvent, /) -> None: ...


class FakeMesh(Radio):
    def __init__(self, address: IPv6Interface, listener: Listener[RadioEvent]) -> None:
        self._settings = Settings().mesh
        self.address = address
        self.listener = listener
        self.applied: list[MeshSection] = []
        self.left = False
        self.fails: Exception | None = None
        self.state = "starting"
        self.stations: list[dict[str, Any]] = []
        self.trouble: list[dict[str, Any]] = []
        self.refreshed = 0

    async def run(self) -> None:
        if self.fails is not None:
            raise self.fails
        self.join()
        await asyncio.Event().wait()

    def join(self) -> None:
        self.joined = True
        self.state = "joined"
        self.listener.on(Joined("lo", 1, str(self.address), False))

    announced: Callable[[str], str | None] = staticmethod(lambda link_local: None)
    joined: bool = False
    outdated: bool = False

    @property
    def settings(self) -> MeshSection:
        return self._settings

    def renew(self) -> None:
        raise AssertionError("nobody asks for it here")

    def peers(self) -> set[str]:
        return {one["mac"] for one in self.stations}

    def apply(self, settings: MeshSection, address: IPv6Interface | None = None) -> None:
        self.applied.append(settings)
        self._settings = settings
        if address is not None and address != self.address:
            self.address = address
            self.join()

    def set_doubled(self, macs: set[str]) -> None:
        self.doubled = macs

    def refused(self) -> dict[str, int]:
        return {}

    def links(self) -> list[tuple[IPv6Address | None, float]]:
        return [
            (IPv6Interface(one["address"]).ip, one["inactive_ms"] / 1000)
            for one in self.stations
            if "address" in one
        ]

    async def scan(self) -> list[dict[str, Any]]:
        if not self.joined:
            raise ScanError("not-joined", "the node is not in the mesh, so its radio cannot scan")
        return [{"mac": "02:74:68:00:00:02", "name": "thicket"}]

    async def refresh(self, *, whole: bool = True) -> None:
        self.refreshed += 1

    async def listen(self, seconds: float) -> None:
        pass  # what the stations are is known already

    async def leave(self) -> None:
        self.left = True

    def problems(self) -> list[dict[str, Any]]:
        return self.trouble

    def snapshot(self) -> dict[str, Any]:
        return {
            "radio": {"state": self.state, "interface": "lo"}, "peers": self.stations, "paths": [],
        }  # fmt: skip


class FakeNode(Node):
    def __init__(
        self, settings: Settings, address: IPv6Address, listener: Listener[ClusterEvent]
    ) -> None:
        self.name = f"{settings.cluster.name}@{address}"
        self.cookie = settings.cluster.cookie
        self.listener = listener
        self.started = self.stopped = False
        self.up: list[NodeInfo] = []
        self.registered: dict[str, Process] = {}
        self.connections = {}
        self.scopes = {}
        self.membership = Members(self, listener.on, lambda _name: True)
        self.casts = Casts(self)

    def spelling(self, peer: str) -> str:
        return peer

    def new_pid(self) -> Pid:
        return Pid(Atom(self.name), 1, 0, 1)

    def register(self, name: str, process: Process) -> None:
        self.registered[name] = process

    def end(self, process: Process, reason: Any = NORMAL) -> None:
        self.registered = {n: p for n, p in self.registered.items() if p is not process}

    def recheck(self) -> list[str]:
        return []

    def expect(self, expected: Callable[[str], bool]) -> None:
        self.expected = expected

    async def start(self) -> None:
        self.started = True

    async def stop(self) -> None:
        self.stopped = True
        self.membership.on_stop()

    async def connect(self, peer: str, timeout: float | None = None) -> None:
        self.up.append(NodeInfo(peer, "up", 1.0))
        self.listener.on(NodeUp(peer))

    async def ping(self, peer: str, timeout: float = 5.0) -> float:
        if peer not in [info.name for info in self.up]:
            raise TimeoutError("no answer")
        return 0.005

    def nodes(self) -> list[NodeInfo]:
        return list(self.up)

    def problems(self) -> list[dict[str, Any]]:
        return []

    def statistics(self) -> dict[str, Any]:
        names = ("connected", "accepted", "simultaneous", "abandoned")
        return {**dict.fromkeys(names, 0), "refused": {}}


class FakeParts(Parts):
    interface = "lo"

    def __init__(self) -> None:
        self.who = Identity("chip", SERIAL[2:8], serial=SERIAL, chip={"model": "ATECC608A"})
        self.meshes: list[FakeMesh] = []
        self.made_nodes: list[FakeNode] = []
        self.mesh_fails: Exception | None = None
        self.settings_fail: str | None = None

    async def identity(self, settings: Settings) -> Any:
        await asyncio.sleep(0)
        return self.who

    def prepare_radio(self) -> None:
        pass

    def radio(
        self, settings: Settings, address: IPv6Interface, listener: Listener[RadioEvent]
    ) -> Radio:
        if self.settings_fail:
            raise ValueError(self.settings_fail)
        mesh = FakeMesh(address, listener)
        mesh.fails = self.mesh_fails
        self.meshes.append(mesh)
        return mesh

    def node(
        self,
        settings: Settings,
        address: IPv6Address,
        listener: Listener[ClusterEvent],
        tls: Tls | None,
    ) -> Node:
        node = FakeNode(settings, address, listener)
        self.made_nodes.append(node)
        return node


@pytest.fixture(autouse=True)
def not_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "LATER", 0.0)
    monkeypatch.setattr(cluster_part, "LATER", 0.0)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(str(tmp_path))
    for folder in ("etc/thicket", "proc/self", "data/thicket", "usr/share/thicket"):
        (tmp_path / folder).mkdir(parents=True)
    Path(made.image).write_text(OPEN)
    Path(made.cmdline).write_text("quiet\n")
    return made


class Running:
    def __init__(self, paths: Paths, parts: FakeParts) -> None:
        self.paths = paths
        self.parts = parts
        self.daemon = Daemon(paths, load(paths), parts)
        self.task = asyncio.create_task(self.daemon.run())

    async def until(
        self, condition: Callable[[], object], what: str, seconds: float = PATIENCE
    ) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert not self.task.done(), f"the daemon ended before: {what}"
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
            await asyncio.sleep(0.01)

    @property
    def live(self) -> Live:
        """The parts of a daemon whose identity is known."""
        assert self.daemon.live is not None
        return self.daemon.live

    def in_cluster(self) -> bool:
        """Whether the daemon's part of the cluster runs."""
        return self.daemon.live is not None and self.daemon.live.cluster.session is not None

    def has_discovery(self) -> bool:
        """Whether beacons are sent and received."""
        return self.daemon.live is not None and self.daemon.live.discovery.discovery is not None

    @property
    def discovery(self) -> Discovery:
        """What sends and receives beacons."""
        found = self.live.discovery.discovery
        assert found is not None
        return found

    async def ask(self, method: str, **params: Any) -> Any:
        return await asyncio.to_thread(request, self.paths.control, method, params, PATIENCE)

    def problem(self, code: str) -> dict[str, Any] | None:
        return next((p for p in self.daemon.core.problems.all() if p["code"] == code), None)


@asynccontextmanager
async def running(paths: Paths, parts: FakeParts | None = None) -> AsyncIterator[Running]:
    made = Running(paths, parts or FakeParts())
    try:
        yield made
    finally:
        made.daemon.stop()
        await asyncio.wait_for(asyncio.wait({made.task}), PATIENCE)


class TestLife:
    async def test_from_start_to_joined(self, paths: Paths) -> None:
        async with running(paths) as run:
            await run.until(run.in_cluster, "the cluster part runs")
            status = await run.ask("status")
            assert status["state"] == "joined"
            assert status["address"] == f"{PREFIX}:0:6f44:e3c6:b802"
            assert status["prefix_length"] == 64
            assert status["hostname"] == "n-6f44e3c6b802"
            assert status["identity"]["serial"] == SERIAL.hex()
            assert status["cluster"]["node"] == f"thicket@{PREFIX}:0:6f44:e3c6:b802"
            assert status["times"]["radio"] is not None
            assert status["problems"] == []
            assert status["slot"] is None
            assert status["data"] == {"state": "unknown", "message": ""}
            await run.until(Path(run.paths.status).exists, "the document is on disk")
            assert json.loads(Path(run.paths.status).read_text())["schema"] == 1
            await run.until(Path(run.paths.hostname).exists, "the names are there")
            assert Path(run.paths.hostname).read_text() == "n-6f44e3c6b802\n"
            machine_id = Path(run.paths.machine_id).read_text()
            assert machine_id == Path(run.paths.run + "/machine-id").read_text()
            assert re.fullmatch("[0-9a-f]{32}\n", machine_id)
        assert run.task.result() == 0
        assert run.parts.made_nodes[0].stopped
        assert not run.parts.meshes[0].left, "the mesh stays up for the next daemon"

    async def test_a_second_start_of_the_same_boot_is_counted(self, paths: Paths) -> None:
        for expected in (0, 1, 2):
            async with running(paths) as run:
                await run.until(lambda: run.daemon.core.times.values["radio"], "joined")
                assert run.daemon.core.times.restarts == expected

    async def test_signals(self, paths: Paths) -> None:
        async with running(paths) as run:
            await run.until(run.in_cluster, "running")
            Path(paths.device).write_text('[mesh]\nid = "other"\n')
            os.kill(os.getpid(), signal.SIGHUP)
            await run.until(lambda: run.parts.meshes[0].applied, "the radio has new settings")
            os.kill(os.getpid(), signal.SIGTERM)
            assert await asyncio.wait_for(run.task, PATIENCE) == 0

    async def test_stop_radio_leaves_the_mesh_and_ends(self, paths: Paths) -> None:
        async with running(paths) as run:
            await run.until(run.in_cluster, "running")
            mesh = run.parts.meshes[0]
            assert await asyncio.to_thread(stop_radio, paths) == 0
            assert mesh.left
            assert await asyncio.wait_for(run.task, PATIENCE) == 0

    def test_there_is_only_one(self, paths: Paths) -> None:
        first = only_one(paths)
        assert first is not None
        assert only_one(paths) is None
        os.close(first)
        second = only_one(paths)
        assert second is not None
        os.close(second)

    def test_stop_radio_without_a_daemon(
        self, paths: Paths, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert stop_radio(paths) == 1
        assert "does not answer" in capsys.readouterr().err


class TestSupervision:
    @pytest.fixture(autouse=True)
    def short_pauses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(supervise, "PAUSES", (0.01,))

    async def test_a_part_that_fails_is_started_again(
        self, paths: Paths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Part, "SETTLED", 0.05)
        parts = FakeParts()
        parts.mesh_fails = RuntimeError("a fault of the radio part")
        async with running(paths, parts) as run:
            await run.until(lambda: run.problem("part-failed"), "the problem is reported")
            problem = run.problem("part-failed")
            assert problem is not None
            assert "RuntimeError: a fault of the radio part" in problem["message"]
            assert run.daemon.document()["state"] == "degraded"
            parts.mesh_fails = None
            await run.until(run.in_cluster, "it runs")
            await run.until(lambda: not run.problem("part-failed"), "the problem is over")

    async def test_one_that_keeps_failing_ends_the_daemon(self, paths: Paths) -> None:
        parts = FakeParts()
        parts.mesh_fails = RuntimeError("for ever")
        async with running(paths, parts) as run:
            assert await asyncio.wait_for(run.task, PATIENCE) == 1
        assert len(parts.meshes) == FAILURES

    async def test_restart_is_no_failure(self) -> None:
        problems = Problems(lambda: None)
        starts = 0

        async def run() -> None:
            nonlocal starts
            starts += 1
            await asyncio.Event().wait()

        part = Part("p", run, problems)
        for expected in range(1, 10):
            while starts < expected:  # noqa: ASYNC110
                await asyncio.sleep(0)
            part.restart()
        assert problems.all() == []
        await part.stop()
        assert part.task.cancelled()

    async def test_an_end_by_itself_is_a_failure(self) -> None:
        problems = Problems(lambda: None)

        async def run() -> None:
            pass

        part = Part("p", run, problems)
        with pytest.raises(FailingError, match="ended by itself"):
            await asyncio.wait_for(part.task, PATIENCE)

    async def test_a_part_that_does_not_let_go_is_left_behind(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(supervise, "GRACE", 0.05)
        release = asyncio.Event()

        async def run() -> None:
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()

        part = Part("p", run, Problems(lambda: None))
        await asyncio.sleep(0)
        await asyncio.wait_for(part.stop(), PATIENCE)
        release.set()

    async def test_settings_that_the_radio_refuses(self, paths: Paths) -> None:
        parts = FakeParts()
        parts.settings_fail = "channel 36 is not allowed there"
        async with running(paths, parts) as run:
            await run.until(lambda: run.problem("settings"), "reported")
            assert run.daemon.document()["state"] == "degraded"
            parts.settings_fail = None
            Path(paths.device).write_text("[mesh]\nchannel = 6\n")
            await run.ask("reload")
            await run.until(run.in_cluster, "it runs with other settings")
            assert not run.problem("settings")


class TestProblems:
    async def test_a_missing_chip_is_a_warning(
        self, paths: Paths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(daemon, "CHIP_AGAIN", 0.05)
        parts = FakeParts()
        chip = parts.who
        parts.who = Identity("mac", b"abcdef", problem="No security chip answers.")
        async with running(paths, parts) as run:
            await run.until(run.in_cluster, "it joins all the same")
            assert run.daemon.document()["state"] == "joined"
            problem = run.problem("no-chip")
            assert problem is not None
            assert problem["severity"] == "warning"
            address = run.live.me.address
            parts.who = chip
            # It was slow, or the bus was stuck: nobody is there to start the node again.
            assert await asyncio.wait_for(run.task, PATIENCE) == 0
            assert run.live.me.address == address, "the identity stays until the next start"
        async with running(paths, parts) as run:
            await run.until(run.in_cluster, "it joins")
            assert run.live.me.address != address
            assert not run.problem("no-chip")

    async def test_a_chip_with_a_loose_contact_has_the_daemon_start_again_once(
        self, paths: Paths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(daemon, "CHIP_AGAIN", 0.05)
        parts = FakeParts()
        chip = parts.who
        without = Identity("mac", b"abcdef", problem="No security chip answers.")
        for start in range(2):
            parts.who = without
            async with running(paths, parts) as run:
                await run.until(run.in_cluster, "it joins all the same")
                parts.who = chip
                if start == 0:
                    assert await asyncio.wait_for(run.task, PATIENCE) == 0
                else:
                    await run.until(lambda: run.problem("chip-appeared"), "the chip is told of")

    @pytest.mark.parametrize("state", ["absent", "unsuitable", "failed"])
    async def test_no_usable_radio(self, paths: Paths, state: str) -> None:
        async with running(paths) as run:
            await run.until(run.in_cluster, "running")
            run.parts.meshes[0].state = state
            assert run.daemon.document()["state"] == "degraded"

    async def test_a_strange_neighbour_does_not_degrade_a_node_with_peers(
        self, paths: Paths
    ) -> None:
        async with running(paths) as run:
            await run.until(run.in_cluster, "running")
            mesh = run.parts.meshes[0]
            mesh.trouble = [{"part": "radio", "code": "sae-x", "message": "m", "since": 1.0}]
            assert run.daemon.document()["state"] == "degraded"
            mesh.stations = [{"mac": "02:00:00:00:00:01", "state": "ESTAB"}]
            assert run.daemon.document()["state"] == "joined"
            assert run.daemon.document()["problems"][0]["severity"] == "warning"

    async def test_a_faulty_file_is_reported_and_the_last_good_one_used(self, paths: Paths) -> None:
        Path(paths.device).write_text('[mesh]\nid = "good"\n')
        async with running(paths) as run:
            await run.until(Path(paths.last_good).exists, "the good one is kept")
        Path(paths.device).write_text('[mesh]\nid = "bad"\nchannel = 99\n')
        async with running(paths) as run:
            await run.until(run.in_cluster, "running")
            assert run.daemon.core.settings.mesh.id == "good"
            assert run.daemon.document()["state"] == "joined"
            problem = run.problem("invalid")
            assert problem is not None
            assert "mesh.channel = 99" in problem["message"]
            fallback = run.problem("fallback")
            assert fallback is not None
            assert "last good" in fallback["message"]
            Path(paths.device).write_text('[mesh]\nid = "better"\n')
            assert (await run.ask("reload"))["changed"] == ["mesh.id"]
            assert run.daemon.core.problems.all() == []
            assert 'id = "better"' in Path(paths.last_good).read_text()

    async def test_data_that_cannot_be_written(self, paths: Paths) -> None:
        Path(paths.device).write_text("# defaults\n")
        Path(paths.last_good).mkdir()  # in the way
        async with running(paths) as run:
            await run.until(lambda: run.problem("not-kept"), "reported")
            assert run.daemon.document()["state"] == "joined"

    async def test_somebody_with_our_address(self, paths: Paths) -> None:
        async with running(paths) as run:
            await run.until(run.has_discovery, "running")
            found = run.discovery
            own = str(run.live.me.address.ip).encode()
            found.datagram(own, ("fe80::1", 1, 0, 1), 255, time.monotonic())
            await run.ask("status")
            await run.daemon.status.refresh()
            assert run.problem("duplicate-address")
            assert found.duplicate_heard is not None
            found.duplicate_heard -= DUPLICATE
            await run.daemon.status.refresh()
            assert not run.problem("duplicate-address")

    async def test_a_mesh_with_too_many_nodes(self, paths: Paths) -> None:
        async with running(paths) as run:
            await run.until(run.has_discovery, "running")
            found = run.discovery
            found.table.limit = 0
            stranger = f"{PREFIX}::77".encode()
            found.datagram(stranger, ("fe80::1", 1, 0, 1), 255, time.monotonic())
            await run.daemon.status.refresh()
            assert run.problem("too-many-nodes")

    async def test_two_radios_with_one_address_are_named(self, paths: Paths) -> None:
        async with running(paths) as run:
            await run.until(run.has_discovery, "running")
            shared = run.discovery.shared
            nodes = [IPv6Address(f"fd12:3456:789a:1::a{n}") for n in (1, 2, 1)]
            for node in nodes:
                shared.hear("fe80::74:68ff:fe00:2", node, time.monotonic())
            await run.daemon.status.refresh()
            assert run.problem("duplicate-mac")
            (told,) = [
                problem["message"]
                for problem in run.daemon.core.problems.all()
                if problem["code"] == "duplicate-mac"
            ]
            assert "02:74:68:00:00:02" in told
            assert f"{nodes[0]} and {nodes[1]}" in told
            assert "exchanged" in told
            assert run.parts.meshes[0].doubled == {"02:74:68:00:00:02"}
            assert shared.found(time.monotonic() + shared.WINDOW + 1) == {}
            await run.daemon.status.refresh()
            assert not run.problem("duplicate-mac")

    async def test_peers_that_the_radio_does_not_hear_are_asked(self, paths: Paths) -> None:
        """One that is silent is; when all are, every node of the cluster is, too."""

        class Cluster:
            neighbours = None
            looks = 0
            asked: ClassVar[list[IPv6Address | None]] = []

            @property
            def candidates(self) -> dict[int, Any]:
                self.looks += 1  # once in each look
                return {1: SimpleNamespace(up=True)}

            def suspect(self, address: IPv6Address | None = None) -> None:
                self.asked.append(address)

        near, far = IPv6Address("fd12:3456:789a:1::1"), IPv6Address("fd12:3456:789a:1::2")
        cluster: Any = Cluster()

        async def heard(run: Running, *silences: int) -> set[IPv6Address | None]:
            run.parts.meshes[0].stations = [
                {"state": "ESTAB", "address": f"{address}/64", "inactive_ms": silent}
                for address, silent in zip((near, far), silences, strict=True)
            ]
            looks = cluster.looks
            await run.until(lambda: cluster.looks > looks, "a look")
            cluster.asked.clear()
            await run.until(lambda: cluster.looks > looks + 1, "one more look")
            return set(cluster.asked)

        async with running(paths) as run:
            await run.until(
                lambda: run.daemon.live is not None and run.live.radio.mesh is not None, "running"
            )
            watch = asyncio.create_task(
                radio_watch.watch(cluster, lambda: run.live.radio.mesh, 1000, lambda _links: None)
            )
            assert await heard(run, 900, 900) == set()
            assert await heard(run, 1500, 1700) == {far}
            assert await heard(run, 1700, 9000) == {near, far}, "a beacon may be lost"
            assert await heard(run, 2700, 9000) == {near, far, None}
            watch.cancel()

    async def test_an_exception_that_nobody_awaits_is_logged(
        self, paths: Paths, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail() -> None:
            raise RuntimeError("in a callback")

        async with running(paths) as run:
            await run.until(run.in_cluster, "running")
            asyncio.get_running_loop().call_soon(fail)
            await run.until(lambda: "in a callback" in caplog.text, "it is logged")


class TestStarting:
    async def test_every_command_is_answered_while_the_chip_is_read(self, paths: Paths) -> None:
        """A chip may take its time; what needs the identity says so, all else works."""
        read = asyncio.Event()

        class SlowChip(FakeParts):
            async def identity(self, settings: Settings) -> Any:
                await read.wait()
                return await super().identity(settings)

        async with running(paths, SlowChip()) as run:
            await run.until(Path(paths.control).exists, "the control socket is there")
            said: dict[str, str] = {}
            asked: dict[str, dict[str, Any]] = {
                "config-apply": {"text": "[trust]\nchip_required = true\n"},
                "update-install": {"path": "/data/new.raucb"},
            }
            for method in sorted(set(Commands(run.daemon).methods()) - {"stop-radio"}):
                try:
                    await run.ask(method, **asked.get(method, {}))
                except ClientError as error:
                    said[method] = error.code
                else:
                    said[method] = "done"
            ready = {"config", "config-apply", "exec", "nodes", "peers", "reload", "status"}
            assert {method for method, code in said.items() if code == "done"} == ready
            for method in [method for method in said if method.startswith("update-")]:
                assert said.pop(method) in {"no-slots", "bad-params"}
            # It needs a path, and says so first.
            assert said.pop("app-install") in {"starting", "bad-params", "bad-request"}
            assert said.pop("identify") == "no-light"
            assert said.pop("member") == "no-operator"
            assert set(said.values()) == {"done", "not-joined", "starting"}
            read.set()
            await run.until(run.in_cluster, "it joins")
            assert (await run.ask("scan"))["heard"][0]["name"] == "thicket"
            assert run.daemon.core.settings.trust.chip_required
            assert (await run.ask("stop-radio")) == {"left": True}

    async def test_a_node_without_slots_says_what_it_does_not_take(self, paths: Paths) -> None:
        async with running(paths) as run:
            await run.until(Path(paths.control).exists, "the control socket is there")
            for method in ("update-status", "update-offer", "update-order"):
                with pytest.raises(ClientError, match="takes part in no updates of the fleet"):
                    await run.ask(method, folder="/data/in", order="pause")
            with pytest.raises(ClientError, match="in the simulator IMAGE=standin has"):
                await run.ask("update-install", path="/data/new.raucb")

    async def test_the_device_may_be_shut_down_while_the_chip_is_read(self, paths: Paths) -> None:
        class NoChip(FakeParts):
            async def identity(self, settings: Settings) -> Any:
                await asyncio.Event().wait()

        async with running(paths, NoChip()) as run:
            await run.until(Path(paths.control).exists, "the control socket is there")
            assert (await run.ask("stop-radio")) == {"left": False}
            assert await asyncio.wait_for(run.task, PATIENCE) == 0


class TestReload:
    async def test_a_faulty_file_changes_nothing(self, paths: Paths) -> None:
        Path(paths.device).write_text('[mesh]\nid = "good"\n')
        async with running(paths) as run:
            await run.until(run.in_cluster, "running")
            Path(paths.device).write_text('[mesh]\nid = "bad"\nchannel = 99\n')
            answer = await run.ask("reload")
            assert "mesh.channel = 99" in answer["faults"][0]
            assert run.daemon.core.settings.mesh.id == "good"
            assert not run.parts.meshes[0].applied
            assert run.problem("invalid")

    async def test_mesh_settings_go_to_the_running_radio(self, paths: Paths) -> None:
        async with running(paths) as run:
            await run.until(run.in_cluster, "running")
            text = '[mesh]\nsecurity = "sae"\npassphrase = "correct horse"\n'
            answer = await run.ask("config-apply", text=text)
            assert answer["changed"] == ["mesh.security", "mesh.passphrase"]
            assert answer["written"] == paths.local
            (applied,) = run.parts.meshes[0].applied
            assert applied.passphrase == "correct horse"
            assert len(run.parts.meshes) == len(run.parts.made_nodes) == 1, "nothing was restarted"

    async def test_a_faulty_text_is_not_written(self, paths: Paths) -> None:
        async with running(paths) as run:
            await run.until(run.in_cluster, "running")
            with pytest.raises(ClientError, match=r"mesh\.chanel: unknown key"):
                await run.ask("config-apply", text="[mesh]\nchanel = 1\n")
            assert not Path(paths.local).exists()

    async def test_a_new_cookie_makes_a_new_node(self, paths: Paths) -> None:
        async with running(paths) as run:
            await run.until(run.in_cluster, "running")
            await run.ask("config-apply", text='[cluster]\ncookie = "new"\n')
            await run.until(lambda: len(run.parts.made_nodes) == 2, "a second node")
            first, second = run.parts.made_nodes
            assert first.stopped
            assert second.cookie == "new"
            await run.until(lambda: second.started, "it runs")

    async def test_a_new_prefix_moves_everything(self, paths: Paths) -> None:
        async with running(paths) as run:
            await run.until(lambda: run.in_cluster() and run.has_discovery(), "running")
            text = '[address]\nprefix = "fd00:1:2:3::/64"\n'
            await run.ask("config-apply", text=text)
            await run.until(lambda: len(run.parts.made_nodes) == 2, "a second node")
            assert run.parts.made_nodes[1].name == "thicket@fd00:1:2:3:0:6f44:e3c6:b802"
            address = IPv6Address("fd00:1:2:3:0:6f44:e3c6:b802")
            await run.until(
                lambda: run.has_discovery() and run.discovery.address == address,
                "discovery announces the new address",
            )

    async def test_what_only_the_next_start_follows_is_told(self, paths: Paths) -> None:
        async with running(paths) as run:
            await run.until(run.in_cluster, "running")
            text = '[identity]\ni2c_bus = "1"\n[discovery]\ninterval = 9\n[status]\ninterval = 7\n'
            answer = await run.ask("config-apply", text=text)
            assert answer["later"] == ["identity.i2c_bus"]
            assert run.daemon.status.interval == 7
            assert run.discovery.schedule.interval == 9

    async def test_show_masks_secrets(self, paths: Paths) -> None:
        async with running(paths) as run:
            await run.until(run.in_cluster, "running")
            values = (await run.ask("config"))["values"]
            assert values["cluster"]["cookie"] == MASK
            assert values["mesh"]["channel"] == "1"


class TestMeshSettings:
    def test_a_card_without_any_configuration_is_no_open_node(self) -> None:
        mesh = Settings().mesh
        assert (mesh.security, mesh.passphrase_in_use) == ("sae", "")
        with pytest.raises(ValueError, match=r"the radio stays off: write mesh\.passphrase into"):
            Parts().radio(Settings(), IPv6Interface("fd00::1/64"), Unheard())

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("id", "x"), ("channel", 6), ("country", "DE"), ("beacon_interval", 100),
            ("peering_retries", 1), ("peering_timeout", 40), ("max_inactivity", 60), ("ht", False),
            ("max_peers", 5), ("rssi_threshold", -80), ("forwarding", False), ("gate", True),
            ("root_mode", 4), ("width", 40),
        ],
    )  # fmt: skip
    def test_every_key_reaches_the_radio(self, key: str, value: object) -> None:
        """Either wpa_supplicant or the kernel is told something else by it."""

        def told(**values: object) -> tuple[str, dict[str, int]]:
            base = {"security": "open", "channel": 36, "country": "US"}
            mesh = Settings({"mesh": {**base, **values}}).mesh
            return configuration(mesh, "/run/x"), kernel_parameters(mesh)

        assert told(**{key: value}) != told()

    def test_the_passphrase_only_with_sae(self) -> None:
        values = {"security": "open", "passphrase": "correct horse"}
        assert Settings({"mesh": values}).mesh.passphrase_in_use is None
        assert "correct horse" not in configuration(Settings({"mesh": values}).mesh, "/run/x")
        values["security"] = "sae"
        assert Settings({"mesh": values}).mesh.passphrase_in_use == "correct horse"
        assert "correct horse" in configuration(Settings({"mesh": values}).mesh, "/run/x")

    def test_no_key_is_forgotten_here(self) -> None:
        known = {
            "security",
            "passphrase",
            "next_passphrase",  # thicket.cluster.passphrase
            "radio",  # thicket.radio.choose
        }
        marks = TestMeshSettings.test_every_key_reaches_the_radio.pytestmark  # type: ignore[attr-defined]
        known |= {key for key, _ in marks[0].args[1]}
        assert known == set(MeshSection.keys())


class TestNodes:
    @pytest.fixture(autouse=True)
    def no_patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(membership, "PATIENCE", (0.0, 0.01))

    async def test_what_is_heard_gets_connected_and_answers(self, paths: Paths) -> None:
        async with running(paths) as run:
            await run.until(run.in_cluster, "running")
            address = IPv6Address(f"{PREFIX}::77")
            run.live.discovery.heard(address, True)
            await run.until(lambda: run.daemon.core.times.values["first_node"], "connected")
            (node,) = (await run.ask("nodes"))["cluster"]["nodes"]
            assert (node["name"], node["state"]) == (f"thicket@{address}", "up")
            for name in (
                f"thicket@{PREFIX}:0:0:0:0077",
                f"{PREFIX}:0:0:0:0077",
                "n-000000000077",
                "77",
            ):
                assert (await run.ask("ping", node=name))["node"] == f"thicket@{address}"
            with pytest.raises(ClientError, match="known are"):
                await run.ask("ping", node="n-123")
            with pytest.raises(ClientError, match="no answer"):
                await run.ask("ping", node=f"{PREFIX}::78")

    async def test_an_ambiguous_name(self, paths: Paths) -> None:
        async with running(paths) as run:
            await run.until(run.in_cluster, "running")
            for host in ("177", "277"):
                run.live.discovery.heard(IPv6Address(f"{PREFIX}::{host}"), True)
            with pytest.raises(ClientError, match="may be"):
                await run.ask("ping", node="77")

    def test_host_digits(self) -> None:
        assert host_digits(f"thicket@{PREFIX}:0:6f44:e3c6:b802") == "6f44e3c6b802"
        assert host_digits("thicket@nowhere") == ""


# -- real daemons


class TestFleet:
    """Real discovery and real distribution; only the radio is a wire."""

    def test_three_nodes_become_a_cluster(self, fleet: Fleet) -> None:
        nodes = [fleet.add() for _ in range(3)]
        fleet.until(lambda: fleet.formed(*nodes), "all nodes see each other")
        for node in nodes:
            for other in nodes:
                answer = node.ask("ping", node=other.name)
                assert answer["node"] == other.name
        document = nodes[0].ask("status")
        assert document["state"] == "joined"
        assert document["times"]["first_node"] is not None
        assert {h["address"] for h in document["discovery"]["heard"]} <= {
            n.name.partition("@")[2] for n in nodes[1:]
        }
        for node in nodes:
            assert node.stop() == 0, node.log()
            assert "Traceback" not in node.log(), node.log()

    def test_an_application_and_the_command_line(
        self, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The example application on two nodes, asked by the commands that a person types."""
        installed = tmp_path / "thicket_readings-0.1.0.dist-info"
        installed.mkdir()
        (installed / "entry_points.txt").write_text(
            "[thicket.applications]\nreadings = thicket_readings:Readings\n"
        )
        example = Path(__file__).parents[2] / "examples" / "readings"
        paths = [os.environ.get("PYTHONPATH", ""), str(tmp_path), str(example)]
        monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, paths)))
        text = "[application.readings]\ninterval = 0.1\n"
        a, b = fleet.add(text), fleet.add(text)

        def thicket(*words: str) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [sys.executable, "-m", "thicket", *words],
                env={**os.environ, "THICKET_ROOT": str(a.folder)},
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip

        def said(*words: str) -> tuple[int, str]:
            process = thicket(*words)
            output, _ = process.communicate(timeout=PATIENCE)
            return process.returncode, output

        fleet.until(lambda: fleet.formed(a, b), "both see each other")
        fleet.until(
            lambda: said("call", b.name, "readings.summary")[1].find('"nodes": 2') > 0,
            "the application runs on both and shares readings",
            90,
        )
        assert a.ask("status")["applications"] == [
            {"name": "readings", "state": "running", "starts": 1}
        ]
        leader = min(a.name, b.name)
        assert said("call", b.name, "readings.leader") == (0, f'"{leader}"\n')
        status, output = said("call", b.name, "readings.latest", "--json")
        assert json.loads(output)["result"].keys() == {a.name, b.name}
        status, output = said("call", b.name, "os.getpid")
        assert (status, "not exported" in output) == (1, True)
        assert said("call", b.name, "nothing")[0] == 2
        assert said("publish", "readings", '{"kind": "odd"}') == (0, "sent to 2 members\n")
        assert said("publish", "nobody", "1") == (1, "sent to 0 members\n")
        for words, wanted in (
            (("monitor",), f"up    {b.name}"),
            (("monitor", "readings"), '"celsius": '),
        ):
            process = thicket(*words)
            try:
                assert process.stdout is not None
                lines = []
                for line in process.stdout:
                    lines.append(line)
                    if wanted in line:
                        break
                else:
                    pytest.fail(f"{words} ended: {lines}")
            finally:
                process.kill()
                process.wait()
        # Other settings, and wrong ones.
        Path(a.paths.device).write_text("[application.readings]\ninterval = 0\n")
        a.ask("reload")
        fleet.until(
            lambda: any(
                problem["part"] == "application readings" and "interval" in problem["message"]
                for problem in a.ask("status")["problems"]
            ),
            "the wrong setting is told",
        )
        assert fleet.formed(a, b)
        for node in (a, b):
            assert node.stop() == 0, node.log()
            assert "Traceback" not in node.log(), node.log()

    def test_a_killed_daemon_is_noticed_and_comes_back(self, fleet: Fleet) -> None:
        a, b = fleet.add(), fleet.add()
        fleet.until(lambda: fleet.formed(a, b), "both see each other")
        b.stop(signal.SIGKILL)
        # its connections are reset, or vanish with the namespace and only missing ticks tell
        fleet.until(lambda: not a.members(), "a notices", PATIENCE)
        b.start()
        fleet.until(lambda: fleet.formed(a, b), "both see each other again")
        assert b.ask("status")["restarts"] == 1

    def test_another_cookie_stays_outside_until_it_is_corrected(self, fleet: Fleet) -> None:
        a, b = fleet.add(), fleet.add('[cluster]\ncookie = "wrong"\n')

        def refused() -> bool:
            nodes = a.ask("nodes")["cluster"]["nodes"] + b.ask("nodes")["cluster"]["nodes"]
            return any("error" in node for node in nodes)

        fleet.until(lambda: Path(a.paths.control).exists(), "a runs")
        fleet.until(lambda: Path(b.paths.control).exists(), "b runs")
        fleet.until(refused, "the wrong cookie is reported")
        assert not a.members()
        assert not b.members()
        Path(b.paths.device).write_text("# defaults\n")
        b.ask("reload")
        fleet.until(lambda: fleet.formed(a, b), "both see each other")
        assert b.process is not None
        assert b.process.poll() is None, "without a restart of the daemon"

    def test_a_new_prefix_while_running(self, fleet: Fleet) -> None:
        a, b = fleet.add(), fleet.add()
        fleet.until(lambda: fleet.formed(a, b), "both see each other")
        for node in (a, b):
            Path(node.paths.device).write_text('[address]\nprefix = "fd00:9:9:9::/64"\n')
            node.ask("reload")
            node.name = node.name.replace(PREFIX, "fd00:9:9:9")
        fleet.until(lambda: fleet.formed(a, b), "both see each other at their new addresses")


def test_the_guide_names_every_problem_and_method() -> None:
    """docs/node.md promises codes that stay; one that it does not name is not promised."""
    tree = Path(__file__).parents[2]
    guide = (tree / "docs/node.md").read_text(encoding="utf-8")
    parts = sorted((tree / "app/src/thicket/daemon").glob("*.py"))
    source = "".join(path.read_text(encoding="utf-8") for path in parts)
    codes = set(re.findall(r'problems\.report\(\s*[\w."]+,\s*"([\w-]+)"', source))
    assert {"no-chip", "invalid", "duplicate-address", "settings"} <= codes
    methods = set(re.findall(r'"([\w-]+)": self\._on_', source))
    assert {"status", "config-apply"} <= methods
    assert {word for word in codes | methods if f"`{word}`" not in guide} == set()
