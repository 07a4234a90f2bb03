# SPDX-License-Identifier: Apache-2.0
"""Whose SSH key a fleet's cards let in: asked for, and nobody only where that was said."""

import base64
import io
import os
from pathlib import Path

import pytest
from fleet_for_tests import PREFIX

from authority import ssh_keys
from authority.authority import Authority
from authority.cli import main as ca_main
from thicket.cli.common import USAGE
from thicket.config.parse import parse

Capture = pytest.CaptureFixture[str]


def ed25519(number: int, comment: str) -> str:
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes([number]) * 32
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} {comment}"


ANNA, BEN = ed25519(1, "anna@laptop"), ed25519(2, "ben@desk")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of somebody with a fleet, an empty ~/.ssh and no agent."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("THICKET_CA", str(tmp_path / "fleet"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    (tmp_path / ".ssh").mkdir()
    Authority(tmp_path / "fleet", lambda _: "").init("acme", PREFIX, lab=True)
    return tmp_path


class Terminal(io.StringIO):
    """Answers of a person at a terminal."""

    def isatty(self) -> bool:
        return True


def made(home: Path, *words: str) -> list[str]:
    """The keys in the file that ``thicket ca config`` makes."""
    out = home / "my.toml"
    assert ca_main(["config", "--out", str(out), *words]) == 0
    keys = parse(out.read_bytes(), "my.toml").access.ssh_keys.splitlines()
    out.unlink()
    return keys


def test_the_one_key_of_the_engineer_is_taken_and_named(home: Path, capsys: Capture) -> None:
    (home / ".ssh/id_ed25519.pub").write_text(ANNA + "\n")
    assert made(home) == [ANNA]
    assert f"may log in to the nodes: {home}/.ssh/id_ed25519.pub" in capsys.readouterr().err


@pytest.mark.parametrize("count", [0, 2])
def test_where_nobody_can_be_asked_it_has_to_be_said(
    home: Path, capsys: Capture, count: int
) -> None:
    for name, key in [("id_ed25519", ANNA), ("work", BEN)][:count]:
        (home / f".ssh/{name}.pub").write_text(key)
    out = home / "my.toml"
    assert ca_main(["config", "--out", str(out)]) == 1
    err = capsys.readouterr().err
    assert "--no-ssh-key" in err
    assert err.count(f"--ssh-key {home}") == count
    assert not out.exists()


def test_files_are_named_on_the_command_line(home: Path) -> None:
    one, both = home / "one.pub", home / "both.pub"
    one.write_text(ANNA)
    both.write_text(f"# the two of us\n{BEN}\n{ANNA}\n")
    assert made(home, "--ssh-key", str(one), "--ssh-key", str(both)) == [ANNA, BEN]


def test_no_key_at_all_is_said_loudly(home: Path, capsys: Capture) -> None:
    (home / ".ssh/id_ed25519.pub").write_text(ANNA)
    assert made(home, "--no-ssh-key") == []
    assert "NOBODY CAN LOG IN" in capsys.readouterr().err
    assert ca_main(["config", "--no-ssh-key", "--ssh-key", "x"]) == USAGE


def test_a_private_key_is_refused_and_its_public_one_named(home: Path, capsys: Capture) -> None:
    private = home / ".ssh/id_ed25519"
    private.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nabcd\n")
    (home / ".ssh/id_ed25519.pub").write_text(ANNA)
    assert ca_main(["config", "--ssh-key", str(private)]) == 1
    out, err = capsys.readouterr()
    assert "is a private key" in err
    assert f"--ssh-key {private}.pub" in err
    assert out == ""


@pytest.mark.parametrize(
    ("answers", "keys"),
    [
        ("\n", [ANNA]),
        ("2\n", [BEN]),
        ("1, 2\n", [ANNA, BEN]),
        ("2 FILE\n", [BEN, ANNA]),
        ("none\n", []),
        ("3\nnowhere.pub\n1\n", [ANNA]),
    ],
)
def test_a_person_is_asked_and_has_the_first_key_by_default(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, answers: str, keys: list[str]
) -> None:
    (home / ".ssh/id_ed25519.pub").write_text(ANNA)
    (home / ".ssh/work.pub").write_text(BEN)
    answers = answers.replace("FILE", str(home / ".ssh/id_ed25519.pub"))
    monkeypatch.setattr("sys.stdin", Terminal(answers))
    assert made(home) == keys
    out, err = capsys.readouterr()
    assert "anna@laptop" in err
    assert "Who may" not in out, "the file may go to standard output"


def test_a_person_without_a_key_is_told_how_to_make_one(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("\n"))
    assert made(home) == []
    err = capsys.readouterr().err
    assert "ssh-keygen" in err
    assert "NOBODY CAN LOG IN" in err


def test_nobody_is_asked_again_for_a_file_that_is_the_same(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (home / ".ssh/id_ed25519.pub").write_text(ANNA)
    (home / ".ssh/work.pub").write_text(BEN)
    out = home / "my.toml"
    monkeypatch.setattr("sys.stdin", Terminal("2\n"))
    assert ca_main(["config", "--out", str(out)]) == 0
    capsys.readouterr()
    assert ca_main(["config", "--out", str(out)]) == 0
    said, err = capsys.readouterr()
    assert "and the same" in said
    assert err == ""


def test_keys_of_the_agent_count_and_unusable_ones_do_not(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".ssh/id_ed25519-cert.pub").write_text("ssh-ed25519-cert-v01@openssh.com AAAA x")
    (home / ".ssh/id_dsa.pub").write_text("ssh-dss AAAA x")
    (home / ".ssh/work.pub").write_text(ANNA)
    tools = home / "bin"
    tools.mkdir()
    agent = tools / "ssh-add"
    agent.write_text(f"#!/bin/sh\necho '{ANNA.replace('laptop', 'agent')}'\necho '{BEN}'\n")
    agent.chmod(0o755)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(home / "agent"))
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    assert ssh_keys.own(home / ".ssh") == [
        (str(home / ".ssh/work.pub"), ANNA),
        ("the SSH agent", BEN),
    ]
