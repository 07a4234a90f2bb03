# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, SIGTERM and a closed terminal at many moments of the desk's commands.

The moments are made certain: a signal comes when the command touches the disk for the Nth time and
every time after that, or when a program that it starts asks for it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_app import index, project
from test_offers import folder, made

from authority import cli, update
from firmware.boards import ROOT
from host import stop
from host.stop import Stopped

__all__ = ("folder", "index", "made", "project")  # fixtures

MOMENTS = 9
"""How many moments of a command are tried."""
EVENTS = {
    "open", "os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate",
    "mmap.__new__", "shutil.rmtree", "subprocess.Popen", "tempfile.mkdtemp",
}  # fmt: skip


class Moments:
    """Counts what the command does with the disk, and signals from one moment on."""

    def __init__(self) -> None:
        self.count = 0
        self.first = -1
        self.number = 0
        self.on = False
        self._main = threading.main_thread().ident
        sys.addaudithook(self._see)

    def begin(self, first: int, number: int) -> None:
        self.count, self.first, self.number, self.on = 0, first, number, True

    def _see(self, event: str, _words: object) -> None:
        if not self.on or event not in EVENTS or threading.get_ident() != self._main:
            return
        if not callable(signal.getsignal(signal.SIGTERM)):
            return  # before or behind the command
        self.count += 1
        if 0 <= self.first < self.count:
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="module")
def moments() -> Moments:
    return Moments()


@pytest.fixture
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``used`` for files in use, and ``out``."""
    used = tmp_path / "used"
    used.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(used))
    return tmp_path


def delta(made: Path, out: Path) -> list[str]:
    return ["delta", f"{made}/0.1.0.raucb", f"{made}/0.2.0.raucb", "--out", f"{out}/made.patch"]


def offer(made: Path, out: Path) -> list[str]:
    return ["offer", f"{made}/0.2.0.raucb", "--out", f"{out}/offer"]


def sign(made: Path, out: Path) -> list[str]:
    return ["sign", f"{made}/thicket-x86_64-0.1.0.unsigned", "--out", f"{out}/made.raucb"]


def order(made: Path, out: Path) -> list[str]:
    return ["order", "pause", "--out", f"{out}/pause.order"]


def verify(made: Path, out: Path) -> list[str]:
    return ["verify", f"{made}/0.1.0.raucb"]


def inspect(made: Path, out: Path) -> list[str]:
    return ["inspect", f"{made}/0.1.0.raucb"]


@pytest.mark.parametrize("words", [delta, offer, sign, order, verify, inspect])
def test_a_command_that_is_stopped_leaves_nothing_half_made(
    words: Callable[[Path, Path], list[str]],
    made: Path,
    here: Path,
    moments: Moments,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, used = here / "out", here / "used"

    def run(first: int, number: int = 0) -> tuple[int, set[str], str]:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        capsys.readouterr()
        moments.begin(first, number)
        try:
            status = update.main(words(made, out))
        finally:
            moments.on = False
        assert not list(used.iterdir())
        return status, {str(one.relative_to(out)) for one in out.rglob("*")}, capsys.readouterr()[1]

    run(-1)  # imports everything
    status, whole, _ = run(-1)
    count = moments.count
    assert status == 0
    stopped = 0
    for turn, first in enumerate(range(0, count, -(-count // MOMENTS))):
        number = stop.SIGNALS[turn % len(stop.SIGNALS)]
        status, found, said = run(first, number)
        assert status in (0, 128 + number), said
        assert found in (set(), whole) or status == 0, (first, found)
        if status:
            stopped += 1
            assert said.splitlines()[-1].startswith("thicket update: stopped"), said
            assert "Traceback" not in said
    assert stopped


def test_a_signer_is_made_or_not(
    made: Path,
    here: Path,
    moments: Moments,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever the moment is, the next command works."""
    fleet = here / "fleet"

    def words(*more: str) -> list[str]:
        return ["--folder", str(fleet), "update-signer", *more]

    def run(first: int) -> int:
        shutil.rmtree(fleet, ignore_errors=True)
        shutil.copytree(made / "fleet", fleet)
        moments.begin(first, signal.SIGINT)
        try:
            return cli.main(words("second"))
        finally:
            moments.on = False

    assert run(-1) == 0
    assert run(-1) == 0
    whole = {str(one.relative_to(fleet)) for one in fleet.rglob("*")}
    count = moments.count
    for first in range(0, count, -(-count // MOMENTS)):
        assert run(first) in (0, 130)
        assert {str(one.relative_to(fleet)) for one in fleet.rglob("*")} <= whole
        capsys.readouterr()
        assert cli.main(words("third")) == 0, (first, capsys.readouterr()[1])


PROGRAM = """#!/bin/sh
echo $$ >{pid}
kill -{number} $PPID
exec sleep 600
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_programs_that_were_started_end_too(number: int, folder: Path, here: Path) -> None:
    said = stopped_by_its_program(
        "unsquashfs", number, ["-m", "authority.update", *delta(folder, here)], here
    )
    ends = {signal.SIGINT: "by Ctrl-C", signal.SIGTERM: "by SIGTERM", signal.SIGHUP: "was closed"}
    assert said.endswith(f"{ends[signal.Signals(number)]}\n")


@pytest.mark.skipif(not shutil.which("mksquashfs"), reason="no squashfs-tools")
def test_building_an_application_is_stopped(project: Path, folder: Path, here: Path) -> None:
    words = ["-m", "authority.app", "build", str(project), "--out", str(here / "out")]
    said = stopped_by_its_program("mksquashfs", signal.SIGTERM, words, here)
    assert said.endswith("thicket app: stopped by SIGTERM\n")


def stopped_by_its_program(name: str, number: int, words: list[str], here: Path) -> str:
    """Run one of our programs, which another one stops; return what it says of it."""
    pid, programs, used = here / "pid", here / "programs", here / "used"
    programs.mkdir()
    script = programs / name
    script.write_text(PROGRAM.format(pid=pid, number=number), encoding="utf-8")
    script.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "TMPDIR": str(used),
        "PYTHONPATH": os.pathsep.join(str(ROOT / one) for one in ("app/src", "tools/src")),
    }
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 128 + number, done.stderr
    assert "Traceback" not in done.stderr
    assert not list(used.iterdir())
    assert not list(here.glob("*.patch")) + list(here.rglob(".*.new")) + list(here.rglob("*.app"))
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text(encoding="ascii")), 0)
    return done.stderr


def test_a_library_that_answers_nothing_is_left(folder: Path, here: Path) -> None:
    """zstd indexes an old version for half a minute, in one call."""
    code = (
        "import ctypes, os, signal, sys\n"
        "from authority import deltas, update\n"
        "def pack(*_, **__):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    ctypes.CDLL(None).sleep(600)\n"
        "deltas.zstd.pack = pack\n"
        "sys.exit(update.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *delta(folder, here)],
        capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"TMPDIR": str(here / "used")},
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert done.stderr.endswith("thicket update: stopped by Ctrl-C\n")
    assert "Traceback" not in done.stderr
    assert not [*here.glob("*.patch"), *here.glob(".*"), *(here / "used").iterdir()]


@pytest.fixture
def ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("ignored")
def test_below_nohup_a_closed_terminal_stops_nothing() -> None:
    with stop.stopping():
        os.kill(os.getpid(), signal.SIGHUP)
    with pytest.raises(Stopped, match="by SIGTERM"), stop.stopping():
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_waits_for_the_end_of_what_is_short(tmp_path: Path) -> None:
    done = []
    with pytest.raises(Stopped) as error, stop.stopping():
        with stop.held():
            with stop.held():
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)
                done.append(1)
            done.append(2)
        done.append(3)
    assert (done, error.value.status) == ([1, 2], 130)


def test_work_apart_gives_what_it_gave_here() -> None:
    assert stop.apart(lambda: threading.current_thread().name) == "apart"
    with pytest.raises(ZeroDivisionError):
        stop.apart(lambda: 1 // 0)
