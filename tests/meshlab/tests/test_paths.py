# SPDX-License-Identifier: Apache-2.0
"""Paths of the simulator."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from host.cache import cache_root
from meshlab.lab.paths import lab_directory
from meshlab.wire.sockets import MAX_SOCKET_PATH, socket_address


def test_the_cache_is_thickets_own_variable_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("THICKET_CACHE", "/own")
    assert cache_root() == Path("/own")
    monkeypatch.delenv("THICKET_CACHE")
    assert cache_root() == Path("/x/thicket")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/invalid")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_root() == Path("/home/somebody/.cache/thicket")


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a b", "x" * 65, "-n"])
def test_a_lab_name_stays_inside_the_labs_folder(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a lab"):
        lab_directory(name)


def test_a_lab_has_a_directory_of_its_own(tmp_path: Path) -> None:
    assert lab_directory("other", tmp_path) == tmp_path / "labs" / "other"


def _talk(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(socket_address(path))
        listener.listen()
        client.connect(socket_address(path))
        accepted, _ = listener.accept()
        with accepted:
            client.sendall(b"x")
            assert accepted.recv(1) == b"x"
    assert path.is_socket()
    path.unlink()


def test_a_short_path_is_used_as_it_is(tmp_path: Path) -> None:
    path = Path("/run/a.sock")
    assert socket_address(path) == "/run/a.sock"
    _talk(tmp_path / "s")


def test_a_long_path_is_reached_too_also_after_its_directory_was_made_anew(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120)
    for _ in range(2):
        directory.mkdir()
        path = directory / "control.sock"
        assert len(socket_address(path)) <= MAX_SOCKET_PATH
        _talk(path)
        directory.rmdir()


def test_a_name_that_cannot_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too long"):
        socket_address(tmp_path / ("n" * 150))
