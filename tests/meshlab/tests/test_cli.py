# SPDX-License-Identifier: Apache-2.0
"""The command, on a lab that boots nothing."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import PATIENCE

from meshlab.cli import common, main
from meshlab.cli.node import command_line
from meshlab.lab.paths import lab_directory
from meshlab.wire.sockets import socket_address

UP = """
import sys
from meshlab.cli import main as cli
from meshlab.lab import journal, lab, real_parts
from meshlab.lab.fake import FakeParts
made = FakeParts()
made.unlinked = set(sys.argv.pop(1).split(",")) - {""}
real_parts.load = lambda image, cache, seed, progress, extras=None, **_: made
journal.Pace.pause = lambda self, nodes, settled: 0.02
formed = lab.Lab.formed
async def when_linked(self, timeout):
    # What is missing then is what was left out, however slow this machine is.
    def settled():
        others = [name for name in self.state.nodes if name not in made.unlinked]
        return all(
            node.status is not None and self.state.peers(name) >= {
                other for other in self.state.expected_peers(name) if other in others
            } - ({name} if name in made.unlinked else set())
            for name, node in self.state.nodes.items() if name in others
        ) and all(self.state.nodes[name].status is not None for name in made.unlinked)
    if made.unlinked:
        await self.wait(settled, 100, "all but the unlinked are through")
    await formed(self, timeout)
lab.Lab.formed = when_linked
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THICKET_CACHE", str(tmp_path))
    monkeypatch.setenv("MESHLAB_COMMAND", "bin/meshlab")
    return tmp_path


def start(*arguments: str, unlinked: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", UP, unlinked, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def running(cache: Path) -> Iterator[Path]:
    """Run a lab of three nodes; yields its directory."""
    with start("up", "--nodes", "3", "--topology", "full") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "try: bin/meshlab pcap" in line:  # the last of the hints
                break
        try:
            yield lab_directory("default")
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=PATIENCE)
    # A lab that was ended by the test itself may meet the signal on its last metres.
    assert process.returncode in (0, 130, -signal.SIGINT)


def test_once_prints_json_and_nothing_else(cache: Path) -> None:
    with start("--lab", "x", "up", "--nodes", "4", "--topology", "full", "--once") as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    found = json.loads(out)
    assert found["formed"] is True
    assert found["lab"] == "x"
    assert [node["name"] for node in found["nodes"]] == ["n1", "n2", "n3", "n4"]
    assert found["nodes"][0]["guest_memory_kib"] == 50000
    assert "the mesh has formed: 4 nodes" in err


def test_once_says_what_is_missing(cache: Path) -> None:
    arguments = ("up", "--nodes", "3", "--topology", "line", "--once", "--timeout", "0.1")
    with start(*arguments, unlinked="n3") as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    found = json.loads(out)
    assert found["formed"] is False
    assert found["nodes"][2]["missing"][0] == "no link with n2"
    assert "not formed within 0.1 s" in err
    assert "n3: no link with n2; does not see n1, n2 in the cluster" in err


def test_a_running_lab_is_talked_to(running: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        status = main.main(arguments)
        return status, *capfd.readouterr()

    status, out, _ = run("status")
    assert status == 0
    assert re.search(r"^n3 +up ", out, re.MULTILINE)
    status, out, _ = run("status", "--json")
    assert json.loads(out)["formed"] is True
    assert run("exec", "2", "--", "ls", "a b") == (0, "n2$ ls 'a b'\n", "")
    assert run("exec", "n2", "false") == (3, "n2$ false\n", "")
    assert run("exec", "n2", "echo $HOME; ls")[1] == "n2$ echo $HOME; ls\n"
    assert run("exec", "n2")[0] == 2
    assert run("logs", "n1") == (0, "a\nb\n", "")
    assert run("logs", "1", "--console")[1] == "console of n1\n"
    assert run("link", "n1", "n2", "--cut") == (0, "", "")
    assert "n1 <-> n2 cut" in (running / "events.log").read_text()
    assert run("link", "n1", "n2", "--restore", "--oneway")[0] == 0
    assert "n1 -> n2 restored" in (running / "events.log").read_text()
    assert run("move", "n1", "-5", "2.5")[0] == 0
    assert run("chip", "n1", "fault", "absent")[0] == 0
    status, _, err = run("chip", "n1", "fault", "gone")
    assert (status, err) == (1, "meshlab: 'gone' is no fault: absent, nak\n")
    assert run("radio", "n1", "unplug")[0] == 0
    assert run("config", "n1", "mesh.id=x")[:2] == (0, "n1$ thicket config set mesh.id=x\n")
    assert run("kill", "n3")[0] == 0
    assert run("exec", "n3", "true")[2] == "meshlab: n3 is off: `meshlab power n3 on`\n"
    assert run("console", "n3")[2] == "meshlab: n3 is off: `meshlab power n3 on`\n"
    assert run("power", "n3", "on")[0] == 0
    status, _, err = run("exec", "n7", "true")
    assert (status, err) == (1, "meshlab: there is no node n7: the lab 'default' has n1 to n3\n")
    assert run("ssh", "n7")[2] == "meshlab: there is no node n7: the lab 'default' has n1 to n3\n"
    assert "cp copies from here to a node" in run("cp", "a", "b")[2]
    assert "n1 has no wired port: `meshlab up --cables`" in run("cable", "n1", "--", "true")[2]
    status, _, err = run("--lab", "other", "status")
    assert (status, err.split(":")[1]) == (1, " no lab 'other' is running; running")
    assert json.loads(run("medium")[1])["valid"] is True
    assert run("pcap", "--stop")[0] == 0
    status, out, _ = run("record")
    assert status == 0
    assert 'do = "cut"\nlinks = "n1-n2"' in out
    assert run("record", "-o", str(running / "done.toml")) == (0, "", "")
    assert (running / "done.toml").read_text().count("[[step]]") == out.count("[[step]]")
    assert "File exists" in run("record", "-o", str(running / "done.toml"))[2]
    assert run("save", "../x")[0] == 1
    status, out, _ = run("save", "dry")
    assert (status, out.startswith("saved ")) == (0, True)
    assert "`bin/meshlab up --resume dry`" in out
    assert run("save", "dry")[2].startswith("meshlab: there is a saved lab 'dry' already")
    assert run("saved")[1].startswith("dry: ")
    assert run("down") == (0, "", "")
    assert run("saved", "--remove", "dry")[1].startswith("removed: dry (")
    assert run("saved") == (0, "", "")
    assert not (running / "control.sock").exists()


def test_a_page_that_cannot_be_served_says_why(
    running: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main.main(["web"]) == 1
    assert "npm is missing" in capfd.readouterr().err
    assert main.main(["web", "--plan", "x.png"]) == 2
    assert main.main(["web", "--plan", "x.png", "--corners", "0,0", "1"]) == 1
    assert "'1' is no corner" in capfd.readouterr().err


def test_a_second_lab_says_how_to_have_both(running: Path) -> None:
    with start("up", "--once") as process:
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "already running" in err
    assert "LAB=other" in err


def test_recording_to_a_file_ends_with_ctrl_c(running: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "meshlab", "pcap", "n1", "-w", "mesh.pcapng"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        assert "Ctrl-C ends it" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert (tmp_path / "mesh.pcapng").read_bytes() == b"packets"


def test_recording_to_a_pipe(running: Path) -> None:
    command = [sys.executable, "-m", "meshlab", "pcap", "-w", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(7) == b"packets"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


def test_the_console_is_a_bridge(running: Path) -> None:
    with socket.socket(socket.AF_UNIX) as console:
        console.bind(socket_address(running / "n1" / "console.sock"))
        console.listen()
        command = [sys.executable, "-m", "meshlab", "console", "n1"]
        with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1) as process:
            line, _ = console.accept()
            with line:
                line.sendall(b"login: ")
                assert process.stdin is not None
                assert process.stdout is not None
                assert process.stdout.read(7) == b"login: "
                process.stdin.write(b"ls\n")
                process.stdin.flush()
                assert line.recv(100) == b"ls\n"
            process.communicate(timeout=PATIENCE)
        assert process.returncode == 0


def test_without_a_lab_it_says_how_to_start_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert main.main(["status"]) == 1
    assert "start one with `make qemu-mesh`" in capfd.readouterr().err
    assert main.main(["--lab", "x", "kill", "n1"]) == 1
    assert "`make qemu-mesh LAB=x`" in capfd.readouterr().err
    assert main.main(["--lab", "../x", "status"]) == 1
    assert "not the name of a lab" in capfd.readouterr().err
    assert main.main(["up", "--nodes", "0"]) == 1
    assert "1 to 250 nodes" in capfd.readouterr().err
    assert main.main(["logs", "--console", "n1"]) == 1
    assert "no console log of n1" in capfd.readouterr().err


#: What each command takes.
USES = {
    "up": [],
    "status": [],
    "down": [],
    "exec": ["n1", "true"],
    "console": ["n1"],
    "logs": ["n1"],
    "kill": ["n1"],
    "power": ["n1", "on"],
    "chip": ["n1", "fault", "nak"],
    "config": ["n1", "mesh.id=x"],
    "ssh": ["n1"],
    "pipe": ["n1"],
    "cp": ["a", "n1:b"],
    "cable": [],
    "link": ["n1", "n2", "--cut"],
    "move": ["n1", "1", "2"],
    "radio": ["n1", "plug"],
    "pcap": ["n1"],
    "medium": ["status"],
    "run": ["small.toml"],
    "record": [],
    "save": ["dry"],
    "saved": [],
    "web": [],
}
OPTIONAL = {"pcap", "medium"}
ENDLESS = {"exec", "config", "pcap", "run", "ssh", "cp", "cable"}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["rubbish"],
        ["up", "--topology", "torus"],
        ["link", "a", "b"],
        ["power", "n1", "maybe"],
        *([name] for name, use in USES.items() if use and name not in OPTIONAL),
        *([name, *use, "more"] for name, use in USES.items() if name not in ENDLESS),
        *([name, "--rubbish", *use] for name, use in USES.items()),
    ],
)
def test_wrong_use_is_usage_and_status_2(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(arguments)
    assert caught.value.code == 2
    assert capfd.readouterr().err.startswith("usage: meshlab")


def test_every_command_is_tried() -> None:
    usage = main.parser().format_help()
    assert set(re.findall(r"^    (\w+) ", usage, re.MULTILINE)) == set(USES)


def test_the_command_of_exec() -> None:
    assert command_line(["--", "ip", "a"]) == "ip a"
    assert command_line(["echo $x | wc"]) == "echo $x | wc"
    assert command_line(["--", "sh", "-c", "a; b"]) == "sh -c 'a; b'"


def test_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESHLAB_COMMAND")
    root = Path(main.__file__).resolve().parents[5]
    monkeypatch.chdir(root)
    assert common.own_command() == "bin/meshlab"
    monkeypatch.chdir("/")
    assert common.own_command() in (
        str(root / "bin/meshlab"),
        os.path.relpath(root / "bin/meshlab"),
    )


def test_the_view_gives_the_terminal_back(cache: Path) -> None:
    """A live view on a terminal: it shows the nodes, and Ctrl-C restores the screen."""
    ours, theirs = os.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", UP, "", "up", "--nodes", "2", "--topology", "line"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"},
            start_new_session=True,
        )
        os.close(theirs)
        seen = b""
        deadline = time.monotonic() + PATIENCE
        while "try from another terminal" not in seen.decode(errors="replace"):
            assert time.monotonic() < deadline, seen.decode(errors="replace")
            seen += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # EIO: the last one to have it open has left
                break
            if not data:
                break
            seen += data
        assert process.wait(PATIENCE) == 130
    finally:
        os.close(ours)
    assert b"\x1b[?1049h" in seen
    assert seen.rindex(b"\x1b[?1049l") > seen.rindex(b"\x1b[?1049h")
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")
    assert "●n1" in seen.decode(errors="replace")


def meshlab(
    *arguments: str, stdin: int | None = None, data: bytes | None = None
) -> tuple[int, str, str]:
    """Run the command as a program, with an input; its status, output and errors."""
    done = subprocess.run(
        [sys.executable, "-m", "meshlab", *arguments],
        stdin=stdin,
        input=data,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_exec_passes_its_standard_input(running: Path, tmp_path: Path) -> None:
    assert meshlab("exec", "n1", "cat", data=b"a\nb") == (0, "a\nb", "")
    file = tmp_path / "input"
    file.write_text("from a file")
    with file.open("rb") as opened:
        assert meshlab("exec", "n1", "cat", stdin=opened.fileno())[1] == "from a file"
    assert meshlab("exec", "n1", "cat", stdin=subprocess.DEVNULL)[1] == "n1$ cat\n"
    assert meshlab("exec", "-n", "n1", "cat", data=b"unread")[1] == "n1$ cat\n"


def test_exec_passes_large_and_binary_input_as_it_is(running: Path) -> None:
    data = bytes(range(256)) * 12_000
    done = subprocess.run(
        [sys.executable, "-m", "meshlab", "exec", "n1", "cat"],
        input=data,
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout == data


def test_exec_answers_while_its_input_goes_on(running: Path) -> None:
    terminal, end = pty.openpty()
    for given in (subprocess.PIPE, end):
        # A terminal is read by the job that it belongs to.
        own = ["setsid", "--ctty", "--wait"] if given == end else []
        with subprocess.Popen(
            [*own, sys.executable, "-m", "meshlab", "exec", "n1", "cat"],
            stdin=given,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            writer = terminal if process.stdin is None else process.stdin.fileno()
            for word in (b"one\n", b"two\n"):
                os.write(writer, word)
                assert process.stdout.readline() == word
                assert process.poll() is None
            if process.stdin is None:
                os.write(terminal, b"\x04")  # Ctrl-D
            else:
                process.stdin.close()
            assert process.wait(PATIENCE) == 0
    os.close(terminal)
    os.close(end)


def test_exec_ends_with_its_command_while_somebody_may_still_type(running: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "meshlab", "exec", "n1", "false"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.wait(PATIENCE) == 3


def test_exec_ends_quietly_when_nobody_reads_its_output_any_more(running: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "meshlab", "exec", "n1", "yes"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(4) == b"y\ny\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 0
    assert meshlab("exec", "n2", "true", stdin=subprocess.DEVNULL)[0] == 0, "the lab goes on"


def test_fading_is_judged_before_the_lab_is_asked(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["link", "n1", "n2", "--fading=rayleigh speed=3"])
    assert "'speed=3': fading is one of none, rayleigh, rician" in capfd.readouterr().err


@pytest.mark.parametrize("loss", ["150", "-1", "nan"])
def test_a_loss_is_a_percentage(loss: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.main(["link", "n1", "n2", f"--loss={loss}"]) == 2
    assert f"--loss {loss}: a loss is 0 to 100 percent" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("n2", "--node n2: it is NODE=IMAGE or NODE=IMAGE@MACHINE"),
        ("n2=", "it is NODE=IMAGE"),
        ("n2=rpi64@", "it is NODE=IMAGE"),
        ("n9=rpi64", "--node n9=rpi64: the nodes are n1 to n5"),
        ("1=rpi64", "--node 1=rpi64: n1 has an image already"),
    ],
)
def test_a_node_of_another_kind_is_one_of_the_nodes(
    option: str, words: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "meshlab.lab.real_parts.load", lambda *_, **__: pytest.fail("something was made")
    )
    assert main.main(["up", "--node", "n1=lab", "--node", option]) == 2
    assert words in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hosts", "a a"], "HOSTS: a is there twice"),
        (["--hosts=-oProxyCommand=x"], "is no host: write user@host"),
        (["--hosts", "a", "--on", "n9=a"], "ON: there is no node n9: they are n1 to n5"),
        (["--hosts", "a", "--on", "1=b"], "ON: n1 is to run on b, which HOSTS does not name"),
        (["--hosts", "a", "--on", "n1"], "--on n1: it is NODE=HOST"),
        (["--on", "n1=a"], "--on needs --hosts"),
    ],
)
def test_machines_that_make_no_sense_are_refused_before_anything_is_made(
    options: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "meshlab.lab.real_parts.load", lambda *_, **__: pytest.fail("something was made")
    )
    assert main.main(["up", *options]) == 2
    assert words in capfd.readouterr().err


def test_an_application_that_is_none_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("meshlab.lab.real_parts.load", lambda *_: pytest.fail("something was made"))
    assert main.main(["up", "--application", "/nonexistent"]) == 2
    assert "/nonexistent: no application to install, it is no directory" in capfd.readouterr().err
    assert main.main(["up", "--application", str(tmp_path)]) == 2
    assert "it has no pyproject.toml" in capfd.readouterr().err
