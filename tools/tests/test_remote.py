# SPDX-License-Identifier: Apache-2.0
"""``thicket --via``: words, ways, and what a terminal's escape is."""

from __future__ import annotations

from ipaddress import IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote import cli, ways
from remote.errors import RemoteError
from remote.files import atomic
from remote.programs import Escape


@given(st.lists(st.binary(max_size=6)))
def test_what_is_typed_passes_however_it_comes(pieces: list[bytes]) -> None:
    one, whole = Escape(), Escape()
    found = b"".join(one.passed(piece) for piece in pieces if not one.left)
    assert (found, one.left) == (whole.passed(b"".join(pieces)), whole.left)
    if b"~" not in b"".join(pieces):
        assert found == b"".join(pieces)


@pytest.mark.parametrize(
    ("typed", "passed", "left"),
    [
        (b"~.", b"", True),
        (b"ls\r~.more", b"ls\r", True),
        (b"a~.", b"a~.", False),
        (b"\n~~.", b"\n~.", False),
        (b"\r~x\r", b"\r~x\r", False),
        (b"\r~\r~.", b"\r~\r", True),
    ],
)
def test_a_tilde_and_a_dot_leave_at_the_beginning_of_a_line(
    typed: bytes, passed: bytes, left: bool
) -> None:
    escape = Escape()
    assert (escape.passed(typed), escape.left) == (passed, left)


def test_ways() -> None:
    assert str(ways.chosen("192.0.2.7")) == "root@192.0.2.7"
    assert str(ways.chosen("me@host")) == "me@host"
    way = ways.chosen("tls:[fd12::7%eth0]:9200")
    assert (way.address, str(way)) == (IPv6Address("fd12::7"), "[fd12::7%eth0]:9200")
    assert str(ways.chosen("tls:fd12::7")) == "[fd12::7]:9102"
    for wrong in ("tls:", "tls:host", "tls:192.0.2.7", "tls:[fd12::7]x", "tls:[fd12::7]:x"):
        with pytest.raises(RemoteError):
            ways.chosen(wrong)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["status"], "--via HOST, or --cable, tells"),
        (["--via"], "--via needs a value"),
        (["--via", "h", "--lab", "x", "status"], "--lab"),
        (["--via", "h", "--node", "a", "status", "b"], "two nodes"),
        (["--via", "h", "cp", "a"], "cp needs"),
        (["--via", "h", "cp", "a", "b"], "copies from here to a node"),
        (["--via", "h", "run", "n"], "run needs"),
        (["--via", "h", "shell", "n", "x"], "shell takes only"),
        (["--via", "h", "update", "install"], "needs a FILE"),
    ],
)
def test_words_that_will_not_do(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    assert says in capsys.readouterr().err


def test_help_is_shown_without_a_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help"]) == 0
    assert "usage: thicket --via HOST" in capsys.readouterr().out


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), atomic(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_text() == "before"
    with atomic(path) as file:
        file.write(b"whole")
    assert path.read_text() == "whole"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
