# SPDX-License-Identifier: Apache-2.0
"""What an installation leaves behind whose daemon was killed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import PATIENCE

from thicket.base.paths import Paths
from thicket.update import leftovers
from thicket.update.judge import InstallError


class Machine:
    """A node whose processes are real ones of this machine, and whose mounts are a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.paths = Paths(str(path))
        self.children: list[subprocess.Popen[bytes]] = []
        self.unmounted = path / "unmounted"
        (path / "proc/self").mkdir(parents=True)
        (path / "bin").mkdir()
        umount = path / "bin/umount"
        umount.write_text(f'#!/bin/sh\necho "$@" >>{self.unmounted}\n')
        umount.chmod(0o755)
        sleep = shutil.which("sleep")
        assert sleep
        shutil.copy(sleep, path / "bin/rauc")

    def rauc(self, *, ours: bool, deaf: bool = False) -> subprocess.Popen[bytes]:
        """Start a process of that name, which may not listen to SIGTERM."""
        mark = {leftovers.MARK: "1"} if ours else {}
        words = [str(self.path / "bin/rauc"), "600"]
        if deaf:
            words = ["/bin/sh", "-c", 'trap \'\' TERM; exec "$0" "$@"', *words]
        child = subprocess.Popen(words, env={"PATH": "/usr/bin:/bin", **mark})
        self.children.append(child)
        link = self.path / "proc" / str(child.pid)
        link.symlink_to(f"/proc/{child.pid}")
        comm = Path(f"/proc/{child.pid}/comm")
        while comm.read_text().strip() != "rauc":  # before exec it is the test, or the shell
            assert child.poll() is None
        return child

    def mount(self, *places: str) -> None:
        lines = [f"/dev/x {place} ext4 rw 0 0\n" for place in ("/", *places, "/data")]
        Path(self.paths.mounts).write_text("".join(lines))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    yield made
    for child in made.children:
        child.kill()
        child.wait()


def test_nothing_was_left(machine: Machine) -> None:
    leftovers.clear(machine.paths)
    machine.mount()
    leftovers.clear(machine.paths)
    assert not machine.unmounted.exists()


def test_mounts_are_put_away_the_last_one_first(machine: Machine) -> None:
    machine.mount("/run/rauc/bundle", "/run/rauc/slot", "/run/rauc2")
    leftovers.clear(machine.paths)
    assert machine.unmounted.read_text() == "-l /run/rauc/slot\n-l /run/rauc/bundle\n"


def test_an_orphan_is_ended(machine: Machine) -> None:
    child = machine.rauc(ours=True)
    leftovers.clear(machine.paths)
    assert child.wait(PATIENCE) == -15


def test_an_orphan_that_does_not_listen_is_killed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "GRACE", 0.2)
    child = machine.rauc(ours=True, deaf=True)
    leftovers.clear(machine.paths)
    assert child.wait(PATIENCE) == -9


def test_what_somebody_runs_by_hand_is_left_alone(machine: Machine) -> None:
    machine.mount("/run/rauc/bundle")
    child = machine.rauc(ours=False)
    with pytest.raises(InstallError, match=f"started by hand \\(process {child.pid}\\)"):
        leftovers.clear(machine.paths)
    assert child.poll() is None
    assert not machine.unmounted.exists()
