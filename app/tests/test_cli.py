# SPDX-License-Identifier: Apache-2.0
"""thicket.cli: what people type, what they read, and the exit status."""

import asyncio
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

import thicket
from thicket.base.errors import RequestError
from thicket.base.headway import Headway
from thicket.cli import app as cli_app
from thicket.cli import update as cli_update
from thicket.cli.bar import Bar
from thicket.cli.common import BAD, OK, UNREACHABLE, USAGE
from thicket.cli.main import main
from thicket.cli.show import duration, folded, peers_text, table
from thicket.control.client import ClientError, request
from thicket.control.server import Server

STATUS: dict[str, Any] = {
    "schema": 1,
    "version": "0.1.0",
    "hostname": "n-6f44e3c6b802",
    "state": "joined",
    "problems": [],
    "times": {"daemon": 2.1, "identity": 2.4, "radio": 4.0, "first_peer": 5.5, "first_node": None},
    "restarts": 0,
    "uptime": 4000.0,
    "identity": {
        "source": "chip", "software": False, "serial": "01236f44e3c6b802ee",
        "id": "6f44e3c6b802", "chip": {"model": "ATECC608A"},
    },
    "address": "fd12:3456:789a:1:0:6f44:e3c6:b802",
    "prefix_length": 64,
    "slot": "A",
    "slots": [
        {"name": "A", "state": "good", "runs": True, "trial": False, "why": ""},
        {"name": "B", "state": "untried", "runs": False, "trial": True, "why": ""},
    ],
    "data": {"state": "clean", "message": ""},
    "last_restart": {
        "run": 12, "reason": "panic", "message": "Attempted to kill init!",
        "words": "the kernel failed: Attempted to kill init!",
    },
    "configuration": {"source": "/etc/thicket/thicket.toml", "last_good_used": False},
    "radio": {
        "state": "joined", "phy": "phy0", "interface": "mesh0", "mac": "02:74:68:00:00:01",
        "mesh_id": "thicket", "frequency": 2412, "security": "open", "supplicant": {},
    },
    "peers": [
        {
            "mac": "02:74:68:00:00:02", "address": None, "state": "ESTAB", "signal_dbm": -61,
            "metric": 249, "inactive_ms": 12, "tx_kbps": 54000, "rx_bytes": 1000, "tx_bytes": 9,
        }
    ],
    "paths": [
        {"destination": "02:74:68:00:00:03", "next_hop": "02:74:68:00:00:02", "metric": 500,
         "hops": None},
    ],
    "cluster": {
        "node": "thicket@fd12:3456:789a:1:0:6f44:e3c6:b802",
        "security": "tls",
        "refused": {"revoked": 2},
        "nodes": [
            {"name": "thicket@fd12:3456:789a:1::9", "state": "up", "since": 1.0},
            {"name": "thicket@fd12:3456:789a:1::a", "state": "connecting", "since": None,
             "error": "unreachable", "message": "no route", "attempts": 3},
        ],
    },
    "trust": {
        "state": "ready", "fleet": "acme", "root": "00" * 20, "device": "01236f44e3c6b802ee",
        "software": False, "until": "2026-11-25T10:00:00Z",
        "revocations": {"number": 3, "issued": "2026-11-20T10:00:00Z", "names": 1},
    },
    "discovery": {"heard": [{"address": "fd12:3456:789a:1::9", "age": 1.0, "beacons": 4}]},
    "firewall": {"state": "on", "dropped": {"closed": 2, "beacon_sender": 12}},
    "memory_kib": 20480,
    "cpu_seconds": 1.5,
}  # fmt: skip


class FakeDaemon:
    """A control server in a thread of its own, with answers that a test may change."""

    def __init__(self, path: Path) -> None:
        self.status = json.loads(json.dumps(STATUS))
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.reload: dict[str, Any] = {
            "source": "/etc/thicket/thicket.toml", "changed": ["mesh.id"], "later": [],
            "faults": [],
        }  # fmt: skip
        self.scan: dict[str, Any] = {"heard": []}
        self._loop = asyncio.new_event_loop()
        methods = {
            "status": self._answer("status", lambda: self.status),
            "peers": self._answer("peers", lambda: self.status),
            "nodes": self._answer("nodes", lambda: self.status),
            "scan": self._answer("scan", lambda: self.scan),
            "reload": self._answer("reload", lambda: self.reload),
            "config": self._answer(
                "config", lambda: {"source": "defaults", "values": {"mesh": {"id": '"thicket"'}}}
            ),
            "identify": self._answer("identify", dict),
            "ping": self._ping,
        }
        self._task = self._loop.create_task(Server(str(path), methods).run())
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        while not path.exists():
            assert self._thread.is_alive()

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)

    def _answer(self, name: str, result: Callable[[], Any]) -> Any:
        async def method(params: dict[str, Any]) -> Any:
            self.calls.append((name, params))
            return result()

        return method

    async def _ping(self, params: dict[str, Any]) -> Any:
        if params["node"] == "gone":
            raise RequestError("timeout", "no answer within 5 s")
        if params["node"] == "nobody":
            raise RequestError("unknown-node", "no node is known as 'nobody'")
        return {"node": "thicket@fd12:3456:789a:1::9", "milliseconds": 3.21}

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(PATIENCE)
        self._loop.close()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THICKET_ROOT", str(tmp_path))
    for folder in ("run/thicket", "etc/thicket", "proc/self", "usr/share/thicket"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/cmdline").write_text("quiet\n")
    return tmp_path


@pytest.fixture
def daemon(root: Path) -> Iterator[FakeDaemon]:
    made = FakeDaemon(root / "run/thicket/control.sock")
    yield made
    made.stop()


Capture = pytest.CaptureFixture[str]


class TestShow:
    def test_status_for_people(self, daemon: FakeDaemon, capsys: Capture) -> None:
        assert main(["status"]) == OK
        lines = capsys.readouterr().out.splitlines()
        facts = {line.split(":")[0]: line.partition(":")[2].strip() for line in lines}
        assert facts["State"] == "joined, up for 1 h 6 min"
        assert facts["Identity"] == "ATECC608A, serial number 01236f44e3c6b802ee"
        assert facts["Address"] == "fd12:3456:789a:1:0:6f44:e3c6:b802/64"
        assert facts["Peers"] == "1, signal -61 to -61 dBm"
        assert facts["Cluster"] == "1 other node, 1 being connected, 2 attempts refused"
        assert facts["Fleet"] == (
            "acme, as 01236f44e3c6b802ee (by its chip), until 2026-11-25; 1 revoked"
        )
        assert facts["Slots"] == "A good and runs, B untried and to be tried"
        assert "Update" not in facts, "a daemon of an older version tells nothing of it"
        assert "first peer 5.5 s" in facts["Since power-on"]

    def test_what_a_factory_reset_erased(self, daemon: FakeDaemon, capsys: Capture) -> None:
        daemon.status["factory_reset"] = {"at": "2026-11-30T16:39:37Z", "words": "by the button: 3"}
        assert main(["status"]) == OK
        (line,) = [one for one in capsys.readouterr().out.splitlines() if "Last reset" in one]
        assert line.endswith("2026-11-30T16:39:37Z, by the button: 3")

    def test_updates_for_people(self, daemon: FakeDaemon, capsys: Capture) -> None:
        one = {"subject": "image/thicket-rpi64", "version": "2.0.0", "why": ""}
        app = {"subject": "app/lamp", "version": "3.0", "state": "done", "percent": 100, "why": ""}
        no = {"percent": None, "state": "refused", "why": "/data is full"}
        daemon.status["updates"] = [{**one, "state": "making", "percent": 34}, {**one, **no}, app]
        assert main(["status"]) == OK
        lines = capsys.readouterr().out.splitlines()
        assert [line.partition(":")[2].strip() for line in lines if line[:7] == "Update:"] == [
            "thicket-rpi64 2.0.0: making 34 %; `thicket update status`",
            "thicket-rpi64 2.0.0: refused, /data is full; `thicket update status`",
            "lamp 3.0: done 100 %",
        ]

    def test_a_cluster_with_nothing_but_a_cookie_is_called_so(
        self, daemon: FakeDaemon, capsys: Capture
    ) -> None:
        daemon.status["cluster"].update(security="cookie", refused={})
        daemon.status["trust"].update(fleet=None, device=None, state="no-fleet")
        assert main(["status"]) == OK
        text = capsys.readouterr().out
        assert "1 other node, 1 being connected, PROTECTED BY ITS COOKIE ALONE" in text
        assert "none" in next(line for line in text.splitlines() if line.startswith("Fleet:"))

    def test_problems_come_first_and_set_the_exit_status(
        self, daemon: FakeDaemon, capsys: Capture
    ) -> None:
        daemon.status["problems"] = [
            {"part": "radio", "code": "x", "message": "no radio", "severity": "error",
             "since": 3990.0},
        ]  # fmt: skip
        assert main(["status"]) == BAD
        first = capsys.readouterr().out.splitlines()[0]
        assert first == "PROBLEM: radio: no radio (for 10.0 s)"

    def test_a_warning_is_no_bad_news(self, daemon: FakeDaemon, capsys: Capture) -> None:
        daemon.status["problems"] = [
            {"part": "identity", "code": "no-chip", "message": "m", "severity": "warning",
             "since": 1.0},
        ]  # fmt: skip
        daemon.status["identity"] = {
            "source": "mac", "software": True, "serial": None, "id": "0102", "chip": None,
        }  # fmt: skip
        assert main(["status"]) == OK
        out = capsys.readouterr().out
        assert out.startswith("Warning: identity: m")
        assert "software identity 0102 from mac, not from a chip" in out

    def test_not_joined_is_bad_news(self, daemon: FakeDaemon) -> None:
        daemon.status["state"] = "joining"
        assert main(["status"]) == BAD

    def test_a_daemon_that_knows_nothing_yet(self, daemon: FakeDaemon, capsys: Capture) -> None:
        daemon.status.update(
            hostname="", state="starting", identity=None, address=None, prefix_length=None,
            radio={"state": "starting", "interface": "mesh0"}, peers=[], paths=[],
            cluster={"node": None, "security": "tls", "refused": {}, "nodes": []}, trust=None,
            discovery=None,
            times=dict.fromkeys(STATUS["times"]),
        )  # fmt: skip
        assert main(["status"]) == BAD
        assert main(["peers"]) == OK
        assert main(["nodes"]) == OK
        out = capsys.readouterr().out
        assert "No peers. Radio: starting." in out
        assert "not in a cluster yet (starting)" in out

    def test_peers_are_a_table(self, daemon: FakeDaemon, capsys: Capture) -> None:
        assert main(["peers"]) == OK
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split()[:3] == ["PEER", "ADDRESS", "STATE"]
        assert lines[1].split()[:6] == ["02:74:68:00:00:02", "-", "ESTAB", "open", "-61", "249"]
        assert lines[0].index("STATE") == lines[1].index("ESTAB")
        assert lines[-1].split() == ["02:74:68:00:00:03", "02:74:68:00:00:02", "-", "500"]

    def test_who_is_in_the_air_is_a_table(self, daemon: FakeDaemon, capsys: Capture) -> None:
        def one(**facts: Any) -> dict[str, Any]:
            return {
                "mac": "02:00:00:00:00:01", "frequency": 2412, "kind": "mesh", "name": "thicket",
                "security": "open", "signal_dbm": -60, "peers": 2, "peer": False, **facts,
            }  # fmt: skip

        daemon.scan = {
            "heard": [
                one(peer=True),
                one(security="sae"),
                one(frequency=5180),
                one(kind="access point", name="", peers=None, signal_dbm=None),
            ],
            "radio": STATUS["radio"],
        }
        assert main(["scan"]) == OK
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert lines == [
            "DBM CHANNEL KIND NAME SECURITY ADDRESS",
            "-60 1 mesh, 2 peers thicket open 02:00:00:00:00:01 peer",
            "-60 1 mesh, 2 peers thicket sae 02:00:00:00:00:01 our mesh, but sae and not open",
            "-60 36 mesh, 2 peers thicket open 02:00:00:00:00:01 our mesh, on another channel",
            "- 1 access point (hidden) open 02:00:00:00:00:01",
        ]

    def test_nodes_are_a_table(self, daemon: FakeDaemon, capsys: Capture) -> None:
        assert main(["nodes"]) == OK
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].split()[1:4] == ["this", "node", "-"]
        assert lines[2].split()[:2] == ["thicket@fd12:3456:789a:1::9", "up"]
        assert lines[3].endswith("no route")

    @pytest.mark.parametrize("what", ["status", "peers", "nodes"])
    def test_json(self, daemon: FakeDaemon, capsys: Capture, what: str) -> None:
        assert main([what, "--json"]) == OK
        assert json.loads(capsys.readouterr().out) == STATUS


class TestPing:
    def test_pong(self, daemon: FakeDaemon, capsys: Capture) -> None:
        assert main(["ping", "n-9"]) == OK
        assert capsys.readouterr().out == "pong from thicket@fd12:3456:789a:1::9 in 3.2 ms\n"

    def test_pang(self, daemon: FakeDaemon, capsys: Capture) -> None:
        assert main(["ping", "gone"]) == BAD
        assert capsys.readouterr().out == "pang: no answer within 5 s\n"

    def test_nobody(self, daemon: FakeDaemon, capsys: Capture) -> None:
        assert main(["ping", "nobody"]) == BAD
        assert "no node is known" in capsys.readouterr().err


class TestUsage:
    @pytest.mark.parametrize(
        "words",
        [
            [], ["frobnicate"], ["status", "x"], ["ping"], ["ping", "a", "b"], ["ping", "-c", "a"],
            ["ping", "-c", "0", "a"], ["ping", "-x"], ["config"], ["config", "x"],
            ["config", "check"], ["config", "set"], ["config", "show", "x"], ["reload", "x"],
        ],
    )  # fmt: skip
    def test_wrong(self, root: Path, capsys: Capture, words: list[str]) -> None:
        assert main(words) == USAGE
        assert "thicket help" in capsys.readouterr().err

    def test_help_names_every_command(self, capsys: Capture) -> None:
        assert main(["help"]) == OK
        out = capsys.readouterr().out
        for word in ("status", "peers", "nodes", "ping", "config show", "reload", "version"):
            assert f"  {word}" in out

    def test_a_command_of_the_engineers_machine(self, capsys: Capture) -> None:
        assert main(["ca", "help"]) == USAGE
        assert "engineer's machine only: bin/thicket ca" in capsys.readouterr().err

    def test_version(self, capsys: Capture) -> None:
        assert main(["version"]) == OK
        assert capsys.readouterr().out == f"thicket {thicket.__version__}\n"

    @pytest.mark.parametrize("words", [["status"], ["peers"], ["ping", "a"], ["reload"]])
    def test_without_a_daemon(self, root: Path, capsys: Capture, words: list[str]) -> None:
        assert main(words) == UNREACHABLE
        assert "logread" in capsys.readouterr().err


class TestConfig:
    def file(self, root: Path, text: str) -> str:
        path = root / "new.toml"
        path.write_text(text)
        return str(path)

    def test_check(self, root: Path, capsys: Capture) -> None:
        assert main(["config", "check", self.file(root, "[mesh]\nchannel = 6\n")]) == OK
        assert capsys.readouterr().out.endswith("is right.\n")
        bad = self.file(root, "[mesh]\nchannel = 66\nid = 1\n")
        assert main(["config", "check", bad]) == BAD
        assert capsys.readouterr().err.count("\n") == 2
        assert main(["config", "check", str(root / "none")]) == BAD
        assert "cannot read" in capsys.readouterr().err

    def test_apply_writes_and_reloads(
        self, root: Path, daemon: FakeDaemon, capsys: Capture
    ) -> None:
        assert main(["config", "apply", self.file(root, '[mesh]\nid = "a"\n')]) == OK
        assert (root / "data/thicket/thicket.toml").read_text() == '[mesh]\nid = "a"\n'
        assert [name for name, _ in daemon.calls] == ["reload"]
        assert "changed: mesh.id" in capsys.readouterr().out

    def test_apply_without_a_daemon(self, root: Path, capsys: Capture) -> None:
        assert main(["config", "apply", self.file(root, "# defaults\n")]) == OK
        assert "not running" in capsys.readouterr().out

    @pytest.mark.parametrize("verb", ["apply", "show"])
    def test_a_daemon_that_is_late_is_not_one_that_does_not_run(
        self, verb: str, root: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def soon(path: str, method: str, params: dict[str, Any], timeout: float = 0.0) -> Any:
            return request(path, method, params, 0.1)

        monkeypatch.setattr("thicket.cli.config.request", soon)
        words = {"apply": [self.file(root, "# defaults\n")], "show": []}[verb]
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(root / "run/thicket/control.sock"))
            silent.listen()
            assert main(["config", verb, *words]) == UNREACHABLE
        said = capsys.readouterr()
        assert "did not answer within" in said.err
        assert "not running" not in said.out

    def test_set_and_unset(self, root: Path, daemon: FakeDaemon, capsys: Capture) -> None:
        assert main(["config", "set", "mesh.id=a b", "mesh.channel=11"]) == OK
        written = root / "data/thicket/thicket.toml"
        assert written.read_text() == '[mesh]\nid = "a b"\nchannel = 11\n'
        assert main(["config", "unset", "mesh.channel"]) == OK
        assert written.read_text() == '[mesh]\nid = "a b"\n'

    def test_set_refuses_all_faults_at_once_and_writes_nothing(
        self, root: Path, daemon: FakeDaemon, capsys: Capture
    ) -> None:
        words = ["mesh.channel=x", "mesh.chanel=1", "mesh.passphrase=geheim1", "log.level=loud"]
        assert main(["config", "set", *words]) == BAD
        err = capsys.readouterr().err
        assert err.count("\n") == 4
        assert "did you mean mesh.channel?" in err
        assert "geheim1" not in err
        assert not (root / "data").exists()
        assert daemon.calls == []

    def test_set_checks_the_file_as_a_whole(
        self, root: Path, daemon: FakeDaemon, capsys: Capture
    ) -> None:
        assert main(["config", "set", "mesh.security=sae"]) == BAD
        assert "mesh.passphrase: is missing" in capsys.readouterr().err
        assert not (root / "data").exists()

    def test_a_secret_from_standard_input(
        self, root: Path, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("correct horse\n"))
        assert main(["config", "set", "mesh.security=sae", "mesh.passphrase"]) == OK
        written = (root / "data/thicket/thicket.toml").read_text()
        assert 'passphrase = "correct horse"' in written

    @pytest.mark.parametrize(
        "text",
        [
            "tcp/8080,udp/5000-5009",
            "tcp/8080 udp/5000-5009",
            "tcp/8080, udp/5000-5009",
            '["tcp/8080", "udp/5000-5009"]',
            "['tcp/8080','udp/5000-5009',]",
            "[tcp/8080, udp/5000-5009]",
        ],
    )
    def test_a_list_is_set_as_people_write_one(
        self, root: Path, daemon: FakeDaemon, text: str
    ) -> None:
        """As words, and as the message and the file show it, with its quotes or without."""
        assert main(["config", "set", f"firewall.allow={text}"]) == OK
        written = (root / "data/thicket/thicket.toml").read_text()
        assert written == '[firewall]\nallow = ["tcp/8080", "udp/5000-5009"]\n'

    @pytest.mark.parametrize("text", ["n-6f44e3c6b802", '["n-6f44e3c6b802"]'])
    def test_what_the_message_of_a_list_shows_is_taken(
        self, root: Path, daemon: FakeDaemon, capsys: Capture, text: str
    ) -> None:
        assert main(["config", "set", "update.control=[nobody]"]) == BAD
        assert 'such as ["n-6f44e3c6b802"]' in capsys.readouterr().err
        assert main(["config", "set", f"update.control={text}"]) == OK
        written = (root / "data/thicket/thicket.toml").read_text()
        assert written == '[update]\ncontrol = ["n-6f44e3c6b802"]\n'
        for empty in ("", "[]"):
            assert main(["config", "set", f"update.control={empty}"]) == OK
            assert "control = []" in (root / "data/thicket/thicket.toml").read_text()

    @pytest.mark.parametrize(
        ("text", "value"),
        [("30", 30), ("30%", 30), ("30 %", 30), (" 30 ", 30)],
    )
    def test_a_number_may_say_its_unit(
        self, root: Path, daemon: FakeDaemon, text: str, value: int
    ) -> None:
        assert main(["config", "set", f"update.air_share={text}"]) == OK
        assert f"air_share = {value}\n" in (root / "data/thicket/thicket.toml").read_text()

    @pytest.mark.parametrize(
        "word",
        ["update.health_time=1m", "update.health_time=1_00", "update.health_time=٣٠",
         "update.air_share=0.2", "update.air_share=20 s", "update.health_time=60.0"],
    )  # fmt: skip
    def test_no_unit_is_guessed(
        self, root: Path, daemon: FakeDaemon, capsys: Capture, word: str
    ) -> None:
        assert main(["config", "set", word]) == BAD
        assert "must be a whole number from" in capsys.readouterr().err
        assert not (root / "data").exists()

    def test_a_choice_in_quotes_as_its_message_shows_it(
        self, root: Path, daemon: FakeDaemon
    ) -> None:
        assert main(["config", "set", 'log.level="debug"']) == OK
        assert 'level = "debug"' in (root / "data/thicket/thicket.toml").read_text()

    def test_blanks_around_the_sign_and_a_key_twice(
        self, root: Path, daemon: FakeDaemon, capsys: Capture
    ) -> None:
        assert main(["config", "set", "mesh.id", "=", "a"]) == USAGE
        assert "KEY=VALUE is one word, without blanks around =" in capsys.readouterr().err
        assert main(["config", "set", "mesh.channel=1", "mesh.channel=6"]) == BAD
        assert "stands there twice" in capsys.readouterr().err
        assert not (root / "data").exists()

    def test_a_person_is_asked_for_a_value(
        self,
        root: Path,
        daemon: FakeDaemon,
        capsys: Capture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        terminal = io.StringIO("greenhouse\n")
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", terminal)
        assert main(["config", "set", "mesh.id"]) == OK
        assert "mesh.id: " in capsys.readouterr().err
        asked: list[str] = []

        def ask(words: str) -> str:
            asked.append(words)
            return "geheim12"

        monkeypatch.setattr("getpass.getpass", ask)
        assert main(["config", "set", "mesh.security=sae", "mesh.passphrase"]) == OK
        assert asked == ["mesh.passphrase: "]  # and nothing of what is typed is shown

        def nothing(_: str) -> str:
            raise EOFError

        monkeypatch.setattr("getpass.getpass", nothing)
        assert main(["config", "set", "mesh.passphrase"]) == BAD
        assert "nothing was typed" in capsys.readouterr().err

    def test_set_on_a_broken_file_says_how_to_replace_it(self, root: Path, capsys: Capture) -> None:
        (root / "etc/thicket/thicket.toml").write_text("[mesh")
        assert main(["config", "set", "mesh.id=a"]) == BAD
        assert "config apply" in capsys.readouterr().err

    def test_reload_that_found_faults(self, daemon: FakeDaemon, capsys: Capture) -> None:
        daemon.reload["faults"] = ["thicket.toml: mesh.channel = 66: must be ..."]
        assert main(["reload"]) == BAD
        assert "mesh.channel" in capsys.readouterr().err

    def test_show_from_the_daemon_and_without_it(
        self, root: Path, daemon: FakeDaemon, capsys: Capture
    ) -> None:
        assert main(["config", "show"]) == OK
        assert capsys.readouterr().out == '# in force, from defaults\n\n[mesh]\nid = "thicket"\n'

    def test_show_without_a_daemon_masks_secrets(self, root: Path, capsys: Capture) -> None:
        (root / "etc/thicket/thicket.toml").write_text('[cluster]\ncookie = "geheim"\n')
        assert main(["config", "show"]) == OK
        out = capsys.readouterr().out
        assert "geheim" not in out
        assert 'cookie = "********"' in out

    def test_default_is_a_valid_file(self, root: Path, capsys: Capture) -> None:
        assert main(["config", "default"]) == OK
        assert main(["config", "check", self.file(root, capsys.readouterr().out)]) == OK


def test_common_commands_import_little() -> None:
    """What counts is CPU time on a slow device; the imports are what it goes into."""
    code = "import sys, thicket.cli.main; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    assert "json" in loaded
    unwanted = {"asyncio", "argparse", "logging", "tomllib", "ipaddress", "subprocess", "difflib"}
    assert not unwanted & loaded


def test_a_reader_that_goes_away(root: Path) -> None:
    """``thicket help | head -1`` ends quietly."""
    done = subprocess.run(
        f"{sys.executable} -m thicket help | head -1", shell=True, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout == "usage: thicket COMMAND\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (60, "1 min 0 s"), (7325, "2 h 2 min"), (90000, "1 d 1 h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_path_that_is_being_looked_for_is_not_shown_as_one() -> None:
    path = {"destination": "02:74:68:00:00:03", "next_hop": "00:00:00:00:00:00",
            "metric": 0, "hops": 0, "expires_ms": 0, "active": False}  # fmt: skip
    text = peers_text({**STATUS, "paths": [path]})
    assert "02:74:68:00:00:03  being looked for" in text
    assert "00:00:00:00:00:00" not in text


class TestLockout:
    def config(self, root: Path, text: str, *words: str) -> int:
        file = root / "new.toml"
        file.write_text(text)
        return main(["config", *words] if words else ["config", "apply", str(file)])

    def test_who_takes_the_last_way_in_away_is_told(self, root: Path, capsys: Capture) -> None:
        assert self.config(root, "[access]\nconsole = true\n") == OK
        assert "NOBODY" not in capsys.readouterr().err
        assert self.config(root, "", "set", "mesh.channel=6") == OK
        assert "NOBODY" not in capsys.readouterr().err
        assert self.config(root, "", "set", "access.console=false") == OK
        assert "NOBODY CAN GET INTO THIS NODE" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        *("status", "peers", "nodes", "ping", "call", "publish", "monitor", "reload", "help"),
        *(f"config {verb}" for verb in ("", "check", "apply", "set", "unset", "show", "default")),
        *(f"revocations {verb}" for verb in ("", "import", "export")),
        *(f"passphrase {verb}" for verb in ("", "roll", "finish", "cancel", "import")),
        *(f"ca {verb}" for verb in ("", "init", "signer", "enroll", "root", "config", "node")),
        *(f"ca {verb}" for verb in ("revoke", "publish", "list", "passphrase", "passphrase roll")),
        "no-such-command",
    ],
)
def test_nothing_too_much_and_rubbish_get_words_and_a_status(
    command: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a person starts it; all at once, for an interpreter takes its time to begin."""
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.setenv("THICKET_CA", str(root / "fleet"))
    monkeypatch.setenv("THICKET_CA_PASSPHRASE", "not asked for")
    tries: list[subprocess.Popen[str]] = []
    for words in ([], ["a", "b", "c", "d", "e"], ["--rubbish"], ["\udcff\x1b[2J", "@", "-"]):
        tries.append(
            subprocess.Popen(
                [sys.executable, "-m", "thicket", *command.split(), *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for started in tries:
        out, err = started.communicate(timeout=PATIENCE)
        assert "Traceback" not in err, err
        assert "\x1b[2J" not in out + err
        assert started.returncode in (0, 1, 2, 3), err
        assert started.returncode == 0 or err, started.args


def test_the_command_of_the_checkout_is_the_same(tmp_path: Path) -> None:
    """A second copy of the module raised what the first one did not catch."""
    done = subprocess.run(
        [Path(__file__).parents[2] / "bin" / "thicket", "ca", "passphrase"],
        env={**os.environ, "THICKET_CA": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "passphrase needs roll, finish or cancel" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["app"],
        ["app", "install"],
        ["app", "install", "a", "b"],
        ["app", "install", "a", "--json"],
        ["app", "list", "a"],
        ["app", "back"],
        ["app", "build", "a"],
    ],
)
def test_app_is_used_wrongly(words: list[str], capsys: Capture) -> None:
    assert main(words) == USAGE
    assert "app" in capsys.readouterr().err


def test_the_list_of_what_is_installed() -> None:
    from thicket.cli.app import list_text

    one: dict[str, Any] = {
        "name": "lamp", "version": "1.0", "number": 1, "signer": "Update signer release",
        "applications": ["lamp"], "trial": True, "before": True, "left": None,
    }  # fmt: skip
    none: dict[str, Any] = {
        "name": "x", "version": None, "number": None, "signer": None, "applications": [],
        "trial": False, "before": False, "left": "2.0: OSError: no lamp",
    }  # fmt: skip
    assert list_text([one, none]) == (
        "NAME  VERSION  STATE         BEFORE  SIGNER\n"
        "lamp  1.0      on trial      yes     Update signer release\n"
        "x     -        not in force  -       -\n"
        "x: a version was left: 2.0: OSError: no lamp"
    )


def test_a_full_disk_below_the_output(root: Path) -> None:
    """``thicket help >FILE``, where FILE does not fit."""
    with Path("/dev/full").open("w", encoding="ascii") as full:
        done = subprocess.run(
            [sys.executable, "-m", "thicket", "help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    assert (done.returncode, done.stderr) == (
        BAD,
        "thicket: what is printed: No space left on device\n",
    )


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (("revocations", "import"), "a list of revocations is needed; `thicket revocations exp"),
        (("passphrase", "import"), "a change of the passphrase is needed; `thicket ca passph"),
    ],
)
def test_the_wrong_file_to_import(
    words: tuple[str, ...], needed: str, root: Path, capsys: Capture
) -> None:
    """It is told here, without asking the daemon."""
    for contents, kind in ((b"", "an empty file"), (b"hello", "a text"), (b"hsqs", "a squashfs")):
        file = root / "given"
        file.write_bytes(contents)
        assert main([*words, str(file)]) == BAD
        said = capsys.readouterr().err
        assert f"{file}: this is {kind}" in said
        assert needed in said
    assert main([*words, str(root)]) == BAD
    assert f"cannot read {root}: Is a directory" in capsys.readouterr().err


class TestUpdate:
    """``thicket update`` on a node, by a person who mistypes."""

    @pytest.mark.parametrize("word", ["sign", "verify", "inspect", "delta", "send", "help"])
    def test_what_the_desk_does(self, root: Path, capsys: Capture, word: str) -> None:
        assert main(["update", word]) == USAGE
        said = capsys.readouterr().err
        assert f"update {word} runs on the engineer's machine only: bin/thicket update" in said

    def test_help_behind_a_command(self, root: Path, capsys: Capture) -> None:
        assert main(["update", "install", "--help"]) == OK
        assert "usage: thicket COMMAND" in capsys.readouterr().out

    def test_an_order_that_is_none(self, root: Path, capsys: Capture) -> None:
        assert main(["update", "order", "stop"]) == USAGE
        said = capsys.readouterr().err
        assert "there is no order 'stop', only pause, resume, abort, back, and no file of" in said
        assert main(["update", "order", str(root)]) == USAGE
        assert "(Is a directory)" in capsys.readouterr().err
        (root / "pause.order").write_text("hello")
        assert main(["update", "order", str(root / "pause.order"), "lamp"]) == USAGE
        assert "a signed order says itself what it is about, not 'lamp'" in capsys.readouterr().err

    def test_what_is_wrong_with_a_signed_order_is_said_of_its_file(
        self, root: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(_control: str, _method: str, _params: object, **_: float) -> None:
            raise ClientError("bad-order", "this is a text, and ... is needed")

        monkeypatch.setattr(cli_update, "request", refuse)
        file = root / "pause.order"
        file.write_text("hello")
        assert main(["update", "order", str(file)]) == BAD
        assert f"{file}: this is a text" in capsys.readouterr().err
        assert main(["update", "order", "pause"]) == BAD
        assert "thicket: this is a text" in capsys.readouterr().err
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello")))
        assert main(["update", "order", "-"]) == BAD
        assert "standard input: this is a text" in capsys.readouterr().err

    def test_a_signed_order_from_the_desk_comes_through_ssh(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`ssh NODE thicket update order - < pause.order`, and no file is left on the node."""
        given: list[object] = []

        def take(_control: str, method: str, params: object, **_: float) -> list[object]:
            given.append((method, params))
            return []

        monkeypatch.setattr(cli_update, "request", take)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\x30\x82 signed")))
        assert main(["update", "order", "-"]) == OK
        assert given == [("update-order", {"signed": "MIIgc2lnbmVk"})]
        assert main(["update", "order", "-", "lamp"]) == USAGE

    @pytest.mark.parametrize("words", [("update", "offer"), ("app", "install")])
    def test_it_is_the_file_that_was_given(
        self,
        root: Path,
        capsys: Capture,
        monkeypatch: pytest.MonkeyPatch,
        words: tuple[str, str],
    ) -> None:
        said = "it is signed for another fleet"

        def refuse(_control: str, _method: str, _params: object, **_: float) -> None:
            raise ClientError("other-fleet", said)

        for module in (cli_update, cli_app):
            monkeypatch.setattr(module, "request", refuse)
        assert main([*words, "given"]) == BAD
        assert capsys.readouterr().err == "thicket: given: it is signed for another fleet\n"
        said = "/data is full"
        assert main([*words, "given"]) == BAD
        assert capsys.readouterr().err == "thicket: /data is full\n"

    def test_a_bar_is_drawn_on_a_terminal_and_nowhere_else(
        self, root: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ends = Headway("failed", words="it is not signed")._asdict()

        def answers() -> Iterator[object]:
            yield {"began": True}
            for percent in (0, 50):
                yield Headway("writing", percent, words="root \x1b[2J")._asdict()
            yield ends

        monkeypatch.setattr(cli_update, "_LOOK", 0.0)
        screen = io.StringIO()
        monkeypatch.setattr(screen, "isatty", lambda: True)
        for stream in (screen, None):
            answer = answers()
            monkeypatch.setattr(cli_update, "request", lambda *_a, _of=answer, **_k: next(_of))
            with pytest.MonkeyPatch.context() as patched:
                if stream is not None:
                    patched.setattr(sys, "stdout", stream)
                assert main(["update", "install", "new.raucb"]) == BAD
        drawn = screen.getvalue()
        assert f"\r\x1b[K[{'.' * 20}]   0 %  root \\u001b[2J" in drawn
        assert drawn.endswith("\r\x1b[K")
        printed = capsys.readouterr().out
        assert printed.splitlines() == [
            f"[{'.' * 20}]   0 %  root \\u001b[2J",
            f"[{'#' * 10}{'.' * 10}]  50 %  root \\u001b[2J",
        ]


@pytest.mark.parametrize("columns", [20, 33, 80])
def test_a_bar_is_drawn_anew_in_one_line(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    Bar().show(Headway("writing", 50, words="root\x1b[2J" * 40)._asdict())
    drawn = screen.getvalue().removeprefix("\r\x1b[K")
    assert len(drawn) == columns - 1
    assert drawn.isprintable()


@pytest.mark.parametrize("width", [None, 200, 80, 40, 20, 1])
def test_words_stand_below_a_row_that_is_too_long(width: int | None) -> None:
    heads = ["NODE", "STATE", "WHY"]
    why = "stopped: n-5b4758eb1eab failed: the radio is not in the mesh, and no peer was heard of"
    rows = [["n-5b4758eb1eab", "failed", why], ["n-9df13325b9b5", "done", ""]]
    lines = folded(heads, rows, width).splitlines()
    if width in {None, 200}:
        assert lines == table(heads, rows).splitlines()
        return
    assert width is not None
    first, row, *words, last = lines
    assert (first.split(), last.split()) == (heads[:-1], rows[1][:-1])
    assert row == "n-5b4758eb1eab  failed"
    assert " ".join(line.strip() for line in words) == why
    assert max(map(len, words)) <= max(width, 20)


class TestByHand:
    @pytest.mark.parametrize(
        ("words", "seconds"),
        [([], 30.0), (["--for", "5s"], 5.0), (["--for", "2min"], 120.0), (["--for", "0"], 0.0)],
    )
    def test_identify(self, daemon: FakeDaemon, words: list[str], seconds: float) -> None:
        assert main(["identify", *words]) == OK
        assert daemon.calls == [("identify", {"seconds": seconds})]

    @pytest.mark.parametrize(
        "words", [["n2"], ["--for"], ["--for", "long"], ["--for", "2h"], ["--for", "3601"]]
    )
    def test_identify_what_cannot_be_meant(self, root: Path, words: list[str]) -> None:
        assert main(["identify", *words]) == USAGE

    @pytest.fixture
    def reboots(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> list[list[str]]:
        called: list[list[str]] = []

        def run(words: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
            called.append(words)
            return subprocess.CompletedProcess(words, 0)

        monkeypatch.setattr(subprocess, "run", run)
        (root / "data/apps").mkdir(parents=True)
        (root / "data/apps/lamp.app").write_text("x")
        return called

    def test_a_reset_is_asked_for(
        self, root: Path, reboots: list[list[str]], capsys: Capture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr("sys.stdin", io.StringIO("no\n"))
        assert main(["factory-reset"]) == BAD
        assert "erases: 1 file, 4.0 KiB: apps/lamp.app 4.0 KiB" in capsys.readouterr().out
        assert not (root / "data/reset/request").exists()
        assert reboots == []
        monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
        assert main(["factory-reset"]) == OK
        assert (root / "data/reset/request").exists()
        assert reboots == [["reboot"]]

    def test_a_reset_without_a_question(self, root: Path, reboots: list[list[str]]) -> None:
        assert main(["factory-reset", "--no"]) == USAGE
        assert main(["factory-reset", "--yes"]) == OK
        assert reboots == [["reboot"]]

    def test_a_reset_that_cannot_be_done(
        self, root: Path, reboots: list[list[str]], capsys: Capture
    ) -> None:
        (root / "run/thicket/data").write_text("readonly write-protected\n")
        assert main(["factory-reset", "--yes"]) == BAD
        assert "can only be read" in capsys.readouterr().err
        assert reboots == []
