# SPDX-License-Identifier: Apache-2.0
"""thicket.upkeep.access: what init is told to run, and what a start without the daemon keeps."""

import os
import signal
from pathlib import Path

import pytest

from thicket.base.paths import Paths
from thicket.upkeep import access
from thicket.upkeep.access import Follower
from thicket.upkeep.section import AccessSection

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGm3S2ZKwQ0q8k7xZ2xk9y3m0m6m8nq9cQb4m2Yx5G1c a"
INITTAB = "::sysinit:/etc/init.d/rcS\n::respawn:/usr/bin/thicketd\n"
SSH = "::respawn:/usr/lib/thicket/sshd"
SHELL = "::respawn:sh -l </dev/ttyS0 >/dev/ttyS0 2>&1"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(str(tmp_path))
    for folder in ("etc", "data", "run/thicket", "usr/sbin", "proc/1", "proc/77/fd", "proc/78/fd"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/inittab").write_text(INITTAB)
    (tmp_path / "usr/sbin/dropbear").touch()
    (tmp_path / "run/thicket/serial").write_text(" ttyS0\n")
    return made


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: found.append((pid, number)))
    return found


def follow(paths: Paths, **values: object) -> list[tuple[str, str]]:
    made = Follower(paths)
    made.places.init = 1
    return made.follow(AccessSection(values))


def inittab(paths: Paths) -> str:
    return Path(paths.root + "/etc/inittab").read_text()


class TestCable:
    """What scripts read: whether wired interfaces are brought up, now and at the next start."""

    @pytest.mark.parametrize(
        ("values", "now", "closed"),
        [
            ({}, False, False),
            ({"ssh_keys": KEY}, True, False),
            ({"ssh_keys": KEY, "cable": False}, False, True),
            ({"cable": False}, False, False),
        ],
    )
    def test_it_is_open_where_a_key_may_log_in(
        self,
        paths: Paths,
        killed: list[tuple[int, int]],
        values: dict[str, object],
        now: bool,
        closed: bool,
    ) -> None:
        for before in ({}, {"ssh_keys": KEY}, {"ssh_keys": KEY, "cable": False}):
            follow(paths, **before)
            assert follow(paths, **values) == []
            assert (Path(paths.run) / "cable").exists() is now
            assert (Path(paths.data) / "ssh/no-cable").exists() is closed

    def test_an_uplink_is_no_cable(self, paths: Paths, killed: list[tuple[int, int]]) -> None:
        kept = Path(paths.data) / "ssh/uplink"
        for uplink, keys, there in (
            ("eth0", KEY, "eth0\n"),
            ("wwan0", KEY, "wwan0\n"),
            ("", KEY, None),
            ("eth0", KEY, "eth0\n"),
            ("eth0", "", None),
        ):
            follower = Follower(paths)
            follower.places.init = 1
            assert follower.follow(AccessSection({"ssh_keys": keys}), uplink) == []
            assert (kept.read_text() if kept.exists() else None) == there


class TestSsh:
    def test_opens_for_keys(self, paths: Paths, killed: list[tuple[int, int]]) -> None:
        assert follow(paths, ssh_keys=KEY) == []
        assert inittab(paths) == f"{INITTAB}{SSH}\n"
        assert killed == [(1, signal.SIGHUP)]
        for place in ("run/thicket/ssh/authorized_keys", "data/ssh/authorized_keys"):
            file = Path(paths.root) / place
            assert file.read_text() == KEY + "\n"
            # the server refuses keys that others may write
            assert file.stat().st_mode & 0o777 == 0o600
        assert (Path(paths.run) / "ssh").stat().st_mode & 0o022 == 0

    def test_nothing_is_done_twice(self, paths: Paths, killed: list[tuple[int, int]]) -> None:
        follow(paths, ssh_keys=KEY)
        kept = Path(paths.data + "/ssh/authorized_keys")
        before = kept.stat().st_ino
        follow(paths, ssh_keys=KEY)
        assert kept.stat().st_ino == before, "flash wears"
        assert inittab(paths).count("sshd") == 1
        assert len(killed) == 1

    def test_another_key_needs_no_restart(
        self, paths: Paths, killed: list[tuple[int, int]]
    ) -> None:
        follow(paths, ssh_keys=KEY)
        follow(paths, ssh_keys=KEY + "2")
        assert (Path(paths.run) / "ssh/authorized_keys").read_text() == KEY + "2\n"
        assert Path(paths.data + "/ssh/authorized_keys").read_text() == KEY + "2\n"
        assert len(killed) == 1

    def test_closes_without_keys(self, paths: Paths, killed: list[tuple[int, int]]) -> None:
        follow(paths, ssh_keys=KEY)
        (Path(paths.root) / "proc/77/comm").write_text("dropbear\n")
        (Path(paths.root) / "proc/78/comm").write_text("python3\n")
        killed.clear()
        assert follow(paths, ssh_keys="") == []
        assert f"\n#{SSH[1:]}\n" in inittab(paths)
        assert not (Path(paths.run) / "ssh/authorized_keys").exists()
        assert not Path(paths.data + "/ssh/authorized_keys").exists()
        assert sorted(killed) == [(1, signal.SIGHUP), (77, signal.SIGTERM)]
        # and opens again in the same line
        follow(paths, ssh_keys=KEY)
        assert inittab(paths) == f"{INITTAB}{SSH}\n"

    def test_lines_that_others_append_meanwhile_stay(
        self, paths: Paths, killed: list[tuple[int, int]]
    ) -> None:
        follow(paths, ssh_keys=KEY)
        with Path(paths.root + "/etc/inittab").open("a") as file:
            file.write("::respawn:/usr/sbin/hwsim-relay")  # no end of line
        follow(paths, console=True)
        assert inittab(paths).splitlines()[2:] == [
            "#" + SSH[1:],
            "::respawn:/usr/sbin/hwsim-relay",
            SHELL,
        ]

    def test_an_image_without_a_server_says_so(
        self, paths: Paths, killed: list[tuple[int, int]]
    ) -> None:
        (Path(paths.root) / "usr/sbin/dropbear").unlink()
        ((code, message),) = follow(paths, ssh_keys=KEY)
        assert code == "ssh-missing"
        assert "no SSH server" in message
        assert inittab(paths) == INITTAB

    def test_a_full_disk_does_not_lock_out(
        self, paths: Paths, killed: list[tuple[int, int]]
    ) -> None:
        Path(paths.data).rmdir()
        Path(paths.data).write_text("no folder")
        ((code, message),) = follow(paths, ssh_keys=KEY)
        assert code == "ssh-failed"
        assert "ssh" in message
        assert SSH in inittab(paths)
        assert (Path(paths.run) / "ssh/authorized_keys").exists()


class TestConsole:
    def test_opens_and_closes(self, paths: Paths, killed: list[tuple[int, int]]) -> None:
        assert follow(paths, console=True) == []
        assert inittab(paths) == f"{INITTAB}{SHELL}\n"
        marker = Path(paths.data + "/thicket/console")
        assert marker.exists()
        (Path(paths.root) / "proc/77/fd/0").symlink_to("/dev/ttyS0")
        (Path(paths.root) / "proc/78/fd/0").symlink_to("/dev/hvc0")
        killed.clear()
        assert follow(paths, console=False) == []
        assert SHELL not in inittab(paths)
        assert not marker.exists()
        assert sorted(killed) == [(1, signal.SIGHUP), (77, signal.SIGHUP)]

    def test_without_a_port(self, paths: Paths, killed: list[tuple[int, int]]) -> None:
        Path(paths.run + "/serial").write_text("\n")
        ((code, message),) = follow(paths, console=True)
        assert code == "console-missing"
        assert "no serial port" in message

    def test_a_machine_without_that_init_is_left_alone(self, paths: Paths) -> None:
        Path(paths.root + "/etc/inittab").unlink()
        assert Follower(paths).follow(AccessSection()) == []
        assert access.Places(paths).init == 0
