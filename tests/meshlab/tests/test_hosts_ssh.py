# SPDX-License-Identifier: Apache-2.0
"""Nodes on other machines, with OpenSSH itself at both ends of the connection."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from ssh_server import MISSING, SSHD, SshServer, program

from meshlab.hosts.errors import HostsError
from meshlab.hosts.hosts import Hosts
from meshlab.hosts.placement import HostSpec

pytestmark = pytest.mark.skipif(SSHD is None, reason=MISSING)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    with SshServer(tmp_path / "server", "there") as one:
        yield one


async def test_an_agent_answers_through_a_server_that_forwards_nothing(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THICKET_SSH", program(tmp_path / "ssh.conf", server.settings()))
    specs = [HostSpec("there")]
    async with Hosts(specs, "lab", tmp_path / "lab", keep=False) as hosts:
        (capacity,) = hosts.capacities(128)
        assert capacity.weight >= 1
        folder = server.home / "thicket-hosts"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert not list(folder.glob("labs/*/*.sock"))


async def test_an_unknown_host_key_is_not_accepted(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THICKET_SSH", program(tmp_path / "ssh.conf", server.settings(known=False)))
    with pytest.raises(HostsError, match="there: its host key is not known"):
        async with Hosts([HostSpec("there")], "lab", tmp_path / "lab", keep=False):
            pass
    assert not list(server.home.iterdir())


async def test_a_key_that_is_not_accepted_is_said(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = server.key("stranger")
    settings = server.settings(key=stranger)
    monkeypatch.setenv("THICKET_SSH", program(tmp_path / "ssh.conf", settings))
    with pytest.raises(HostsError, match="there: it lets nobody in without a question"):
        async with Hosts([HostSpec("there")], "lab", tmp_path / "lab", keep=False):
            pass
