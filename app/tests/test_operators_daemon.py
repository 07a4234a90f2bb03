# SPDX-License-Identifier: Apache-2.0
"""Operators and real daemons: ``thicket --via`` as a person types it, through one node to another.

In place of the program ssh stands one that does what ssh and dropbear do together: it runs the
command for the node that is called like its host.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import network_namespace
import pytest
from daemons import PREFIX, Fleet, NamespaceNode, Secured, fleet_in
from patience import PATIENCE

from authority.authority import Authority
from authority.labels import Said
from remote.programs import LEFT

SSH = """#!/bin/sh
# ssh -T root@nN thicket door
[ "$1" = -T ] || exit 99
node=${2#root@}
[ -d "FOLDER/$node" ] || { echo "ssh: Could not resolve hostname $node" >&2; exit 255; }
shift 2
[ "$1" = thicket ] && shift
THICKET_ROOT=FOLDER/$node exec PYTHON -m thicket "$@"
"""


class Desk(NamedTuple):
    """The engineer's machine."""

    folder: Path
    fleet: Fleet
    secured: Secured

    def environment(self, authority: Path | None = None) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "THICKET_CA": str(authority or self.secured.authority.folder),
        }

    def thicket(
        self, *words: str, given: bytes = b"", authority: Path | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "remote.cli", *words],
            env=self.environment(authority),
            input=given,
            capture_output=True,
            check=False,
            timeout=4 * PATIENCE,
        )


@contextmanager
def desk_with(folder: Path, count: int) -> Iterator[tuple[Desk, list[NamespaceNode]]]:
    with fleet_in(folder) as fleet:
        secured = Secured(fleet)
        nodes = [secured.add() for _ in range(count)]
        for node in nodes:
            command = node.folder / "usr" / "bin" / "thicket"
            command.parent.mkdir(parents=True)
            path = os.pathsep.join(sys.path)
            command.write_text(
                f'#!/bin/sh\nPYTHONPATH="{path}" exec {sys.executable} -m thicket "$@"\n'
            )
            command.chmod(0o755)
        (folder / "bin").mkdir()
        ssh = folder / "bin" / "ssh"
        ssh.write_text(SSH.replace("FOLDER", str(folder)).replace("PYTHON", sys.executable))
        ssh.chmod(0o755)
        fleet.until(lambda: fleet.formed(*nodes), "the nodes find each other")
        fleet.until(
            lambda: all(node.ask("status")["operators"] is not None for node in nodes),
            "they let operators in",
        )
        yield Desk(folder, fleet, secured), nodes


def test_an_operator_runs_commands_on_a_far_node_through_a_near_one(tmp_path: Path) -> None:
    with desk_with(tmp_path, 2) as (desk, (near, far)):
        desk.secured.authority.operators.make("alice", days=30)
        host = f"n-{far.identity}"

        done = desk.thicket("--via", "n1", "--node", host, "status", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["hostname"] == host

        # the node as a word, by its last digits, and by its address
        for word in (far.identity[-3:], far.name.partition("@")[2], far.name):
            done = desk.thicket("--via", "root@n1", "status", word, "--json")
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["hostname"] == host

        # and by its label, which the near node cannot give to another one
        labels = desk.secured.authority.labels
        labels.change([(far.serial.hex(), Said(label="north mast"))])
        _, packed = labels.merge([])
        assert packed is not None
        near.ask("labels-import", labels=b64encode(packed).decode())
        done = desk.thicket("--via", "n1", "status", "North Mast", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["hostname"] == host

        # without a node it is the first one, for which ssh is enough
        done = desk.thicket("--via", "n1", "status", "--json", authority=tmp_path / "nothing")
        assert json.loads(done.stdout)["hostname"] == f"n-{desk.fleet.nodes[0].identity}"

        # streams and status are the program's own
        words = ("--via", "n1", "run", host, "--")
        done = desk.thicket(
            *words, "sh", "-c", "cat; echo odd >&2; exit 7", given=b"\0\xff" * 99999
        )
        assert (done.returncode, done.stdout, done.stderr) == (7, b"\0\xff" * 99999, b"odd\n")
        assert desk.thicket(*words, "no-such-program").returncode == 127

        # who reads no more ends it without a word
        reading = subprocess.Popen(
            [sys.executable, "-m", "remote.cli", *words, "yes"],
            env=desk.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert reading.stdout is not None
        assert reading.stdout.readline() == b"y\n"
        reading.stdout.close()
        assert reading.stderr is not None
        assert reading.stderr.read() == b""
        reading.wait(PATIENCE)

        # both nodes tell who did what
        assert "operator alice: sh ..." in far.log()
        assert re.search(r"root: on to thicket@", desk.fleet.nodes[0].log())


def test_the_files_of_a_command_are_those_of_the_engineers_machine(tmp_path: Path) -> None:
    with desk_with(tmp_path, 2) as (desk, (_near, far)):
        desk.secured.authority.operators.make("alice")
        host = f"n-{far.identity}"
        settings = tmp_path / "new.toml"
        settings.write_text(Path(far.paths.device).read_text() + '[log]\nlevel = "warning"\n')
        done = desk.thicket("--via", "n1", "--node", host, "config", "apply", str(settings))
        assert done.returncode == 0, done.stderr
        assert 'level = "warning"' in Path(far.paths.local).read_text()

        bundle = tmp_path / "v2.raucb"
        bundle.write_bytes(os.urandom(200_000))
        # However the file is written: the node is told of its own copy.
        named = f"{tmp_path}/./{bundle.name}"
        done = desk.thicket("--via", "n1", "--node", host, "update", "install", named)
        assert done.returncode == 1
        assert b"no bundle can be installed" in done.stderr  # there is no card
        assert not list((Path(far.paths.data) / "thicket" / "incoming").iterdir())
        offered = desk.thicket("--via", "n1", "update", "offer", str(tmp_path))
        assert (offered.returncode, b"update send" in offered.stderr) == (2, True)

        note = tmp_path / "note.txt"
        note.write_bytes(os.urandom(300_000))
        there = tmp_path / "there"
        there.mkdir()
        done = desk.thicket("--via", "n1", "cp", str(note), f"{host}:{there}")
        assert done.returncode == 0, done.stderr
        assert (there / "note.txt").read_bytes() == note.read_bytes()
        back = tmp_path / "back.txt"
        done = desk.thicket("--via", "n1", "cp", f"{host}:{there}/note.txt", str(back))
        assert done.returncode == 0, done.stderr
        assert back.read_bytes() == note.read_bytes()
        done = desk.thicket("--via", "n1", "cp", f"{host}:{there}/missing", str(tmp_path / "no"))
        assert done.returncode == 1
        assert not (tmp_path / "no").exists()

        # So is the time; here the node only says what it is told.
        (far.folder / "usr" / "bin" / "thicket").write_text('#!/bin/sh\necho "$@"\n')
        done = desk.thicket("--via", "n1", "--node", host, "app", "install", named, "--again")
        copy = r"app install \S+/data/thicket/incoming//?\w+/v2.raucb --again\n"
        assert re.fullmatch(copy, done.stdout.decode()), done
        done = desk.thicket("--via", "n1", "--node", host, "time", "set")
        said = re.fullmatch(r"time set (\S+)Z\n", done.stdout.decode())
        assert said is not None, done
        told = datetime.fromisoformat(said[1]).replace(tzinfo=UTC)
        assert abs(datetime.now(UTC) - told) < timedelta(seconds=4 * PATIENCE)


def test_who_is_no_operator_is_not_let_in(tmp_path: Path) -> None:
    with desk_with(tmp_path, 2) as (desk, (_near, far)):
        words = ("--via", "n1", "status", f"n-{far.identity}")
        done = desk.thicket(*words)
        assert done.returncode == 1
        assert b"`thicket ca operator NAME` makes one" in done.stderr

        other = Authority(tmp_path / "other", lambda _: "")
        other.init("other", desk.secured.authority.fleet.network, lab=True)
        other.operators.make("mallory")
        done = desk.thicket(*words, authority=other.folder)
        assert done.returncode == 1
        assert b"is not of fleet 'other'" in done.stderr

        done = desk.thicket("--via", "nowhere", "status")
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"Could not resolve hostname nowhere" in done.stderr
        assert b"ssh to root@nowhere ended with status 255" in done.stderr
        desk.secured.authority.operators.make("alice")
        done = desk.thicket("--via", "n1", "status", "n-000000000000")
        assert done.returncode == 1
        assert b"000000000000" in done.stderr, done.stderr


def test_a_revocation_ends_what_an_operator_has_open(tmp_path: Path) -> None:
    with desk_with(tmp_path, 2) as (desk, (near, far)):
        authority = desk.secured.authority
        authority.operators.make("alice")
        authority.operators.make("bob")
        authority.operators.hand_over("alice", tmp_path / "alices")
        words = ["--via", "n1", "run", f"n-{far.identity}", "--", "sh", "-c", "echo on; sleep 999"]
        running = subprocess.Popen(
            [sys.executable, "-m", "remote.cli", *words],
            env=desk.environment(tmp_path / "alices"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == b"on\n"
            assert far.ask("status")["operators"]["connected"][0]["operator"] == "alice"
            authority.revocations.revoke(authority.revocations.full_names(["alice"]))
            near.ask("revocations-import", list=b64encode(authority.revocations.packed).decode())
            _, said = running.communicate(timeout=PATIENCE)
            assert running.returncode == 1
            assert b"has ended" in said
        finally:
            running.kill()
        done = desk.thicket(
            "--via", "n1", "status", f"n-{far.identity}", authority=tmp_path / "alices"
        )
        assert done.returncode == 1
        assert b"revoked: Operator alice" in done.stderr
        done = desk.thicket("--via", "n1", "--operator", "bob", "status", f"n-{far.identity}")
        assert done.returncode == 0, done.stderr


def test_a_machine_that_reaches_a_node_needs_no_ssh(tmp_path: Path) -> None:
    with desk_with(tmp_path, 2) as (desk, (near, far)):
        desk.secured.authority.operators.make("alice")
        network_namespace.ip(f"addr add {PREFIX}::d/64 dev medium nodad")
        (tmp_path / "bin" / "ssh").unlink()
        near_address, far_address = (node.name.partition("@")[2] for node in (near, far))
        for via, words, node in (
            (f"tls:{near_address}", (), near),
            (f"tls:[{near_address}]:9102", ("--node", far_address), far),
            (f"tls:{far_address}", (), far),
        ):
            done = desk.thicket("--via", via, *words, "status", "--json")
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["hostname"] == f"n-{node.identity}"
        # Through the near one there is TLS in TLS, and much may go through it.
        copying = ("--via", f"tls:{near_address}", "run", far_address, "--", "cat")
        done = desk.thicket(*copying, given=b"\xff\0" * 500_000)
        assert (done.returncode, done.stdout) == (0, b"\xff\0" * 500_000), done.stderr
        done = desk.thicket("--via", f"tls:[{near_address}]:9", "status")
        assert done.returncode == 1
        assert b"Connection refused" in done.stderr, done.stderr


def test_a_shell_has_a_terminal(tmp_path: Path) -> None:
    with desk_with(tmp_path, 2) as (desk, (_near, far)):
        desk.secured.authority.operators.make("alice")
        ours, theirs = pty.openpty()
        running = subprocess.Popen(
            [sys.executable, "-m", "remote.cli", "--via", "n1", "shell", f"n-{far.identity}"],
            env={**desk.environment(), "TERM": "vt100"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        said = b""

        def until(text: bytes) -> None:
            nonlocal said
            end = time.monotonic() + PATIENCE
            while text not in said:
                ready, _, _ = select.select([ours], [], [], max(0.0, end - time.monotonic()))
                assert ready, said
                said += os.read(ours, 4096)

        try:
            os.write(ours, b"echo $TERM; test -t 0 && echo has-a-$((40+2))\n")
            until(b"vt100")
            until(b"has-a-42")
            # A shell that has just forked may lose the signal; the inner one dies of it.
            os.write(ours, b"sh -c 'echo asleep-$((40+1)); exec sleep 999'\n")
            until(b"asleep-41")
            os.write(ours, b"\3")  # Ctrl-C ends the program there
            until(b"^C")
            os.write(ours, b"echo after-$((6*7))\n")
            until(b"after-42")
            os.write(ours, b"exec sleep 999\r")
            os.write(ours, b"~")
            os.write(ours, b".")  # leaves a node that does not answer
            assert running.wait(PATIENCE) == LEFT
        finally:
            running.kill()
            os.close(ours)


@pytest.mark.parametrize("program", ["erl", "iex"])
def test_an_operators_erlang_is_a_member(tmp_path: Path, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    with desk_with(tmp_path, 2) as (desk, (near, far)):
        desk.secured.authority.operators.make("alice")
        erlang = (
            f"true = net_kernel:connect_node('{far.name}'),"
            f"pong = net_adm:ping('{near.name}'),"
            'io:format("members ~p~n", [lists:sort(nodes())]),'
            f"{{error, {{badrpc, _}}}} = {{error, rpc:call('{far.name}', os, cmd, [\"id\"])}},"
            "receive go -> ok after 300 -> ok end,"
            'io:format("self ~s~n", [node()]), halt(5).'
        )
        words: tuple[str, ...]
        if program == "erl":
            words = ("erl", "-noshell", "-eval", erlang)
        else:
            words = ("iex", "-e", f"{{:ok, t, _}} = :erl_scan.string('{_quoted(erlang)}'); "
                     "{:ok, e} = :erl_parse.parse_exprs(t); :erl_eval.exprs(e, [])")  # fmt: skip
        done = desk.thicket("--via", "n1", *words)
        assert done.returncode == 5, (done.stdout, done.stderr)
        members = f"members['{near.name}','{far.name}']"
        assert members in "".join(done.stdout.decode().split()), done.stdout
        name = re.search(rf"self ({program}-\d+@\S+)", done.stdout.decode())
        assert name is not None
        assert f"{name[1]} is up" in far.log()
        desk.fleet.until(lambda: f"{name[1]} is down" in far.log(), "it has gone")
        desk.fleet.until(lambda: far.members() == {near.name}, "it is no member any more")


def _quoted(erlang: str) -> str:
    return erlang.replace("\\", "\\\\").replace("'", "\\'")
