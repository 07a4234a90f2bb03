# SPDX-License-Identifier: Apache-2.0
"""Starting, watching, adopting and ending wpa_supplicant: a stand-in process, and the real one."""

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from patience import PATIENCE

from thicket.radio import hang
from thicket.radio.hang import Doing, doing
from thicket.radio.section import MeshSection
from thicket.radio.supplicant import Process, Supplicant, SupplicantError, start_time
from thicket.radio.wpa import ControlError, Event, configuration

#: A process with wpa_supplicant's options and control socket. What the configuration's comment
#: says decides how it behaves.
STAND_IN = """#!{python} -IS
import os, signal, socket, sys
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
text = open(options["-c"]).read()
if "# refuses" in text:
    print("Line 7: unknown global field 'user_mpm=1'.")
    sys.exit(255)
if "# deaf" in text:
    signal.pause()
if "# stubborn" in text:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
folder = text.split("ctrl_interface=", 1)[1].split("\\n", 1)[0]
os.makedirs(folder, exist_ok=True)
path = folder + "/" + options["-i"]
server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
server.bind(path)
def end(*ignored):
    os.unlink(path)
    os._exit(0)
if "# stubborn" not in text:
    signal.signal(signal.SIGTERM, end)
while True:
    data, sender = server.recvfrom(4096)
    while data == b"PING" and "# spins" in text:
        pass
    server.sendto(b"PONG\\n" if data == b"PING" else b"OK\\n", sender)
    if data == b"TERMINATE":
        end()
"""

CONFIGURATION = "ctrl_interface={directory}/wpa\n{comment}\n"


class Watched:
    """A supplicant in a directory, with counted ends."""

    def __init__(self, directory: Path, program: str | None = None, driver: str = "none") -> None:
        self.ends = 0
        self.events: list[Event] = []
        self.subject = Supplicant(
            str(directory),
            self.events.append,
            self._ended,
            program or str(directory / "stand-in"),
            driver,
        )
        self.directory = directory

    def _ended(self) -> None:
        self.ends += 1

    def text(self, comment: str = "") -> str:
        return CONFIGURATION.format(directory=self.directory, comment=comment)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path is short enough for a socket's, with the stand-in in it."""
    with tempfile.TemporaryDirectory(prefix="sup", dir="/tmp") as path:
        program = Path(path) / "stand-in"
        program.write_text(STAND_IN.format(python=sys.executable))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        yield Path(path)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What must succeed has a minute."""
    for name in ("_SOCKET_SECONDS", "_ADOPT_SECONDS", "_KILL_SECONDS"):
        monkeypatch.setattr(f"thicket.radio.supplicant.{name}", 60.0)


@contextlib.asynccontextmanager
async def watched(directory: Path) -> AsyncIterator[Watched]:
    one = Watched(directory)
    try:
        yield one
    finally:
        await one.subject.stop()


async def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        assert loop.time() < deadline, f"{what} has not happened in {seconds} s"
        await asyncio.sleep(0.01)


async def test_start_and_stop(directory: Path) -> None:
    async with watched(directory) as one:
        await one.subject.start("mesh0", 5, one.text())
        pid = one.subject.pid
        assert pid is not None
        assert await one.subject.control.command("PING") == "PONG"
        assert (one.subject.adopted, one.subject.restarts) == (False, 0)
        await one.subject.stop()
        assert one.subject.pid is None
        assert start_time(pid) is None
        assert one.ends == 0, "what we end ourselves is not reported"
        with pytest.raises(ControlError, match="not running"):
            _ = one.subject.control


async def test_the_configuration_is_for_nobody_else(directory: Path) -> None:
    async with watched(directory) as one:
        await one.subject.start("mesh0", 5, one.text("# a secret"))
        path = directory / "wpa_supplicant.conf"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text() == one.text("# a secret")
        assert "secret" not in (directory / "supplicant.state").read_text()


async def test_an_end_is_noticed_and_explained(directory: Path) -> None:
    async with watched(directory) as one:
        await one.subject.start("mesh0", 5, one.text())
        assert one.subject.pid is not None
        os.kill(one.subject.pid, signal.SIGKILL)
        await until(lambda: one.ends == 1, "the notice")
        assert one.subject.pid is None
        assert one.subject.exit_reason() == "was ended by SIGKILL"
        await one.subject.start("mesh0", 5, one.text())
        assert one.subject.restarts == 1


async def test_what_it_complains_of_is_in_the_error(directory: Path) -> None:
    async with watched(directory) as one:
        with pytest.raises(SupplicantError, match="ended at once: Line 7: unknown global") as error:
            await one.subject.start("mesh0", 5, one.text("# refuses"))
        assert error.value.code == "start"
        assert one.subject.pid is None


async def test_one_that_never_listens(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thicket.radio.supplicant._SOCKET_SECONDS", 0.3)
    async with watched(directory) as one:
        with pytest.raises(SupplicantError, match="hangs at its start"):
            await one.subject.start("mesh0", 5, one.text("# deaf"))
        assert one.subject.pid is None


async def test_a_missing_program(directory: Path) -> None:
    one = Watched(directory, program="/no/such/wpa_supplicant")
    with pytest.raises(SupplicantError, match="is not installed") as error:
        await one.subject.start("mesh0", 5, one.text())
    assert error.value.code == "missing"


async def test_one_that_ignores_the_request_to_end(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thicket.radio.supplicant._TERMINATE_SECONDS", 0.2)
    async with watched(directory) as one:
        await one.subject.start("mesh0", 5, one.text("# stubborn"))
        pid = one.subject.pid
        assert pid is not None
        await one.subject.stop()
        assert start_time(pid) is None


# the next daemon


@pytest.mark.parametrize(
    ("comment", "stop", "words"),
    [("", True, "and does nothing"), ("# spins", False, r"of \d+ s of work")],
    ids=["stopped", "in a loop"],
)
async def test_one_that_hangs_is_noticed(
    directory: Path, monkeypatch: pytest.MonkeyPatch, comment: str, stop: bool, words: str
) -> None:
    monkeypatch.setattr(hang, "HANG_SECONDS", 0.3)
    monkeypatch.setattr("thicket.radio.supplicant._TERMINATE_SECONDS", 60.0)
    async with watched(directory) as one:
        await one.subject.start("mesh0", 5, one.text(comment))
        pid = one.subject.pid
        assert pid is not None
        if stop:
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(ControlError, match=rf"did not answer PING within .* s {words}"):
            await one.subject.control.command("PING", timeout=3600)
        await one.subject.stop()
        assert start_time(pid) is None
        assert not (directory / "wpa" / "mesh0").exists(), "it had the time to clean up"


async def test_one_that_gets_no_processor_is_waited_for(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped, which nobody can tell from outside but by its state."""
    monkeypatch.setattr(hang, "HANG_SECONDS", 0.3)
    looks = 0

    def runnable(pid: int) -> Doing:
        nonlocal looks
        looks += 1
        if looks == 10:
            os.kill(pid, signal.SIGCONT)
        return Doing("R", 1.0)

    async with watched(directory) as one:
        await one.subject.start("mesh0", 5, one.text())
        pid = one.subject.pid
        assert pid is not None
        monkeypatch.setattr("thicket.radio.supplicant.doing", runnable)
        os.kill(pid, signal.SIGSTOP)
        assert await one.subject.control.command("PING", timeout=3600) == "PONG"
        assert looks >= 10


def test_what_a_process_does() -> None:
    mine = doing(os.getpid())
    assert mine is not None
    assert mine.state == "R", "it has a processor: it reads this"
    child = subprocess.Popen(["sleep", "60"])
    try:
        deadline = time.monotonic() + PATIENCE
        while (found := doing(child.pid)) is None or found.state != "S":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert found == doing(child.pid)
        os.kill(child.pid, signal.SIGSTOP)
        while doing(child.pid) != found._replace(state="T"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        child.kill()
        child.wait()
    assert doing(child.pid) is None


async def test_the_next_daemon_goes_on_with_the_same_process(directory: Path) -> None:
    async with watched(directory) as first, watched(directory) as second:
        await first.subject.start("mesh0", 5, first.text())
        pid = first.subject.pid
        first.subject.release()
        assert await second.subject.adopt("mesh0", 5, second.text())
        assert (second.subject.pid, second.subject.adopted) == (pid, True)
        assert await second.subject.control.command("PING") == "PONG"
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: second.ends == 1, "the notice")
        assert second.subject.exit_reason() == "ended"


async def test_going_on_with_ones_own_is_no_adoption(directory: Path) -> None:
    async with watched(directory) as one:
        await one.subject.start("mesh0", 5, one.text())
        pid = one.subject.pid
        assert await one.subject.adopt("mesh0", 5, one.text())
        assert (one.subject.pid, one.subject.adopted) == (pid, False)


@pytest.mark.parametrize(
    ("interface", "ifindex", "comment"),
    [("mesh0", 5, "# other"), ("mesh0", 6, ""), ("mesh1", 5, "")],
)
async def test_another_configuration_or_interface_needs_another_process(
    directory: Path, interface: str, ifindex: int, comment: str
) -> None:
    async with watched(directory) as first, watched(directory) as second:
        await first.subject.start("mesh0", 5, first.text())
        pid = first.subject.pid
        first.subject.release()
        assert not await second.subject.adopt(interface, ifindex, second.text(comment))
        await second.subject.start(interface, ifindex, second.text(comment))
        assert second.subject.pid not in (None, pid)
        assert pid is not None
        assert start_time(pid) is None, "the old one has been ended"


async def test_a_process_whose_state_file_was_lost_is_ended(directory: Path) -> None:
    async with watched(directory) as first, watched(directory) as second:
        await first.subject.start("mesh0", 5, first.text())
        pid = first.subject.pid
        first.subject.release()
        (directory / "supplicant.state").unlink()
        assert not await second.subject.adopt("mesh0", 5, second.text())
        await second.subject.start("mesh0", 5, second.text())
        assert second.subject.pid not in (None, pid)


@pytest.mark.parametrize("state", ["", "nonsense", "1 2 3", "99999999 1 5 mesh0", "\0", "-1 0 5 x"])
async def test_any_state_file_is_survived(directory: Path, state: str) -> None:
    async with watched(directory) as one:
        (directory / "supplicant.state").write_text(state)
        assert not await one.subject.adopt("mesh0", 5, one.text())
        await one.subject.start("mesh0", 5, one.text())
        assert one.subject.pid is not None


async def test_a_stale_socket_is_no_obstacle(directory: Path) -> None:
    async with watched(directory) as one:
        await one.subject.start("mesh0", 5, one.text())
        assert one.subject.pid is not None
        os.kill(one.subject.pid, signal.SIGKILL)
        await until(lambda: one.ends == 1, "the notice")
        assert (directory / "wpa" / "mesh0").exists()
        await one.subject.start("mesh0", 5, one.text())
        assert await one.subject.control.command("PING") == "PONG"


async def test_processes() -> None:
    ends: list[int] = []
    with pytest.raises(ProcessLookupError):
        Process(0x3FFFFFFF, lambda: ends.append(1))
    me = Process(os.getpid(), lambda: ends.append(1))
    assert me.running
    me.release()
    assert not me.running
    assert not ends
    assert start_time(os.getpid()) == start_time(os.getpid()) is not None


# the real one


async def test_the_real_one_is_started_adopted_and_ended(directory: Path) -> None:
    program = shutil.which("wpa_supplicant", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if program is None:
        pytest.skip("needs wpa_supplicant (package wpasupplicant)")
    first, second = (Watched(directory, program) for _ in range(2))
    text = configuration(
        MeshSection({"security": "sae", "passphrase": "correct horse"}),
        first.subject.control_directory,
    )
    try:
        await first.subject.start("lo", 1, text)
        pid = first.subject.pid
        await until(lambda: first.events, "an event")
        first.subject.release()
        assert await second.subject.adopt("lo", 1, text)
        assert second.subject.pid == pid
        await second.subject.control.attach()
        assert await second.subject.control.command("PING") == "PONG"
        assert "correct horse" not in (directory / "wpa_supplicant.log").read_text()
        await second.subject.stop()
        assert pid is not None
        assert start_time(pid) is None
    finally:
        await second.subject.stop()


async def test_the_real_one_says_what_it_dislikes(directory: Path) -> None:
    program = shutil.which("wpa_supplicant", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if program is None:
        pytest.skip("needs wpa_supplicant (package wpasupplicant)")
    one = Watched(directory, program)
    with pytest.raises(SupplicantError, match="nonsense"):
        await one.subject.start("lo", 1, one.text("nonsense=1"))
    with pytest.raises(SupplicantError, match="no-such-interface"):
        broken = Watched(directory, program, driver="nl80211")
        await broken.subject.start("no-such-interface", 1, one.text())
