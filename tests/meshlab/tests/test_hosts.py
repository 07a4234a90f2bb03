# SPDX-License-Identifier: Apache-2.0
"""Nodes on other machines: a program that stands in for ssh, real agents, real QEMUs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

from meshlab.hosts import errors, hosts
from meshlab.hosts.errors import HostsError
from meshlab.hosts.hosts import Host, Hosts
from meshlab.hosts.link import Link
from meshlab.hosts.placement import Capacity, HostSpec, parse_hosts, place, room_for
from meshlab.hosts.remote_parts import RemoteMachine, RemoteParts
from meshlab.hosts.spread import Wanted, spread
from meshlab.image.image_set import ImageSet
from meshlab.lab.real_parts import RealParts
from meshlab.machine.accel import Accel
from meshlab.machine.events import MachineEvent, Reset
from meshlab.machine.qemu import MachineError
from meshlab.machine.spec import CONSOLE_SOCKET
from meshlab.wire.sockets import socket_address

sys.path.insert(0, str(Path(__file__).parent))
from tiny_guest import guest

QEMU = "qemu-system-x86_64"
needs_qemu = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")


# --- which node runs where ----------------------------------------------------------------------


def test_hosts_have_names_and_weights() -> None:
    assert parse_hosts("user@a b=2.5  local ssh://c:2222") == [
        HostSpec("user@a"),
        HostSpec("b", 2.5),
        HostSpec("local"),
        HostSpec("ssh://c:2222"),
    ]


@pytest.mark.parametrize("text", ["", "a a", "a=", "a=0", "a=x", "-oProxyCommand=x", "a=-1", "=2"])
def test_hosts_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(HostsError):
        parse_hosts(text)


def names(count: int) -> list[str]:
    return [f"n{number}" for number in range(1, count + 1)]


def test_nodes_are_placed_in_blocks_by_weight() -> None:
    placed = place(names(6), [Capacity("a", 2, 99), Capacity("b", 4, 99)], {})
    assert list(placed.values()) == ["a", "a", "b", "b", "b", "b"]


def test_no_host_gets_more_than_it_has_room_for() -> None:
    placed = place(names(5), [Capacity("a", 8, 1), Capacity("b", 1, 9)], {})
    assert list(placed.values()) == ["a", "b", "b", "b", "b"]
    with pytest.raises(HostsError, match="room for a 1, b 2"):
        place(names(4), [Capacity("a", 8, 1), Capacity("b", 1, 2)], {})
    assert room_for(100, 128) == 0
    assert room_for(256 + 560, 128) == 2
    assert room_for(256 + 559, 128) == 1


def test_a_chosen_host_counts() -> None:
    hosts = [Capacity("a", 1, 9), Capacity("b", 1, 9)]
    placed = place(names(4), hosts, {"n4": "a", "n1": "b"})
    assert placed == {"n1": "b", "n2": "a", "n3": "b", "n4": "a"}
    with pytest.raises(HostsError, match="no node n9"):
        place(names(4), hosts, {"n9": "a"})
    with pytest.raises(HostsError, match="HOSTS does not name"):
        place(names(4), hosts, {"n1": "c"})
    with pytest.raises(HostsError, match="a has no memory for 2 nodes"):
        place(names(2), [Capacity("a", 1, 1)], {"n1": "a", "n2": "a"})


# --- machines that cannot be used ---------------------------------------------------------------


@pytest.fixture(autouse=True)
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stand in for ssh; give the folder that has one folder for each machine."""
    folder = tmp_path / "there"
    program = [sys.executable, str(Path(__file__).with_name("fake_ssh.py"))]
    monkeypatch.setenv("THICKET_SSH", shlex.join(program))
    monkeypatch.setenv("FAKE_SSH", str(folder))
    monkeypatch.setenv("THICKET_ACCEL", "tcg")
    # What runs there has nothing of this environment's.
    monkeypatch.delenv("PYTHONPATH", raising=False)
    yield folder
    for pid in processes(folder):  # what a test that failed left
        os.kill(pid, signal.SIGKILL)


def host(name: str, tmp_path: Path) -> Host:
    (tmp_path / "lab").mkdir(exist_ok=True)
    return Host(HostSpec(name), "lab-1", tmp_path / "lab", keep=False)


@contextlib.asynccontextmanager
async def opened(name: str, tmp_path: Path) -> AsyncIterator[Host]:
    one = host(name, tmp_path)
    try:
        await one.open()
        yield one
    finally:
        await one.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("refused", "ssh-copy-id refused"),
        ("unknown", "its host key is not known: connect once with `ssh unknown`"),
        ("changed", "its host key is not the one that is known"),
        ("down", "it does not answer"),
        ("closed", "no SSH server listens there"),
        ("nowhere", "there is no host of that name"),
        ("no-python", "apt-get install python3"),
        ("old-python", "its python3 is 3.9.2, and 3.11 or later is needed"),
    ],
)
async def test_a_machine_that_cannot_be_used_says_why(
    name: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(HostsError) as told:
        async with opened(name, tmp_path):
            pass
    assert str(told.value).startswith(f"{name}: ")
    assert words in str(told.value)


async def test_all_machines_that_cannot_be_used_are_told_at_once(tmp_path: Path) -> None:
    specs = [HostSpec("refused"), HostSpec("a"), HostSpec("down")]
    with pytest.raises(HostsError, match=r"(?s)refused: .*\ndown: "):
        async with Hosts(specs, "lab", tmp_path / "lab", keep=False):
            pass


def test_unknown_words_are_passed_on() -> None:
    assert errors.in_words("a", 255, "x\nsomething new\n") == (
        "a: ssh says: x / something new (status 255)"
    )
    assert errors.in_words("a", 1, "") == "a: ssh said nothing (status 1)"
    assert "its disk is full" in errors.in_words("a", 1, "sh: No space left on device")


async def test_there_is_no_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THICKET_SSH", str(tmp_path / "no-such-program"))
    with pytest.raises(HostsError, match=r"a: there is no program .*no-such-program"):
        async with opened("a", tmp_path):
            pass


async def test_what_is_missing_there_is_named(
    tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    # mkfs.fat is where only root's commands are looked for
    for name in ("sh", "setpriv", "cp"):
        (programs / name).symlink_to(str(shutil.which(name)))
    (programs / "python3").symlink_to("/usr/bin/python3")
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(HostsError, match="`apt-get install --no-install-recommends mtools`"):
        async with opened("a", tmp_path):
            pass


# --- the agent ----------------------------------------------------------------------------------


async def test_the_agent_is_sent_once_into_a_folder_of_its_user(
    tmp_path: Path, there: Path
) -> None:
    stamps = []
    for _ in range(2):
        async with opened("a", tmp_path) as one:
            assert one.facts.cores >= 1
            assert one.facts.memory_mib > 0
        folder = there / "a" / "thicket-hosts"
        (agent,) = folder.glob("agent-*.zip")
        stamps.append(agent.stat().st_ino)
    assert stamps[0] == stamps[1]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "labs" / "lab-1").stat().st_mode) == 0o700


async def test_what_was_not_used_for_long_is_removed(tmp_path: Path, there: Path) -> None:
    async with opened("a", tmp_path) as one:
        assert await one.call("missing", ["0" * 64]) == ["0" * 64]
    folder = there / "a" / "thicket-hosts"
    (agent,) = folder.glob("agent-*.zip")
    other = folder / "agent-of-another-version.zip"
    unused = [folder / "images" / ("1" * 64), folder / "labs" / "old" / "lock", other]
    used = [folder / "images" / ("2" * 64), folder / "labs" / "recent" / "lock"]
    long_ago = time.time() - 31 * 86400
    for path in (*unused, *used):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for path in (*unused, agent):
        os.utime(path, (long_ago, long_ago))
    async with opened("a", tmp_path) as one:
        await one.call("missing", [])
    assert not any(path.exists() for path in unused)
    assert not (folder / "labs" / "old").exists()
    assert all(path.exists() for path in (*used, agent))


async def test_an_interrupted_start_leaves_nothing(tmp_path: Path, there: Path) -> None:
    async def begin() -> None:
        async with Hosts([HostSpec("a"), HostSpec("b")], "lab", tmp_path / "lab", keep=False):
            await asyncio.Event().wait()

    task = asyncio.create_task(begin())
    until = time.monotonic() + PATIENCE
    while not processes(there):
        assert time.monotonic() < until
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(lambda: processes(there))


async def test_a_greeting_of_the_shell_does_no_harm(tmp_path: Path) -> None:
    async with opened("noisy", tmp_path) as one:
        assert one.connected


async def test_an_agent_that_was_left_behind_makes_room(tmp_path: Path) -> None:
    """As when the lab's process is gone, and the network has not told the other side."""
    async with opened("a", tmp_path) as left, opened("a", tmp_path) as one:
        assert one.connected
        assert left._link is not None
        async with asyncio.timeout(PATIENCE):
            await left._link.ended


async def test_a_stopped_end_closes_an_agent_for_good(tmp_path: Path, there: Path) -> None:
    async with opened("a", tmp_path):
        assert processes(there)
    await gone(lambda: processes(there))


# --- nodes there --------------------------------------------------------------------------------


def processes(there: Path) -> list[int]:
    """Return what runs with a file or a folder of the machines that are stood in for."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                where = os.readlink(entry / "cwd")  # noqa: PTH115
                if str(there).encode() in line or where.startswith(str(there)):
                    found.append(int(entry.name))
    return found


def qemus(there: Path) -> list[int]:
    """Return the QEMUs among them."""
    return [pid for pid in processes(there) if b"qemu" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def agent_of(there: Path) -> int:
    """Return the agent among them."""
    return agent_and_guard(there)[0]


def agent_and_guard(there: Path) -> tuple[int, int]:
    """Return the agent among them, and its child, which has the same command line."""
    found = {}
    for pid in processes(there):
        if b"meshlab.hosts.agent" in Path(f"/proc/{pid}/cmdline").read_bytes():
            status = Path(f"/proc/{pid}/status").read_text()
            found[pid] = int(status.partition("PPid:")[2].split()[0])
    (agent,) = set(found) & set(found.values())
    (guard,) = (pid for pid, parent in found.items() if parent == agent)
    return agent, guard


async def gone(what: Callable[[], Sequence[object]]) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError):
            if not what():
                return
        assert time.monotonic() < until, f"still there: {what()}"
        await asyncio.sleep(0.05)


class Bench:
    """A node there."""

    def __init__(self, one: Host, parts: RemoteParts, directory: Path) -> None:
        self.host = one
        self.parts = parts
        self.directory = directory
        self.events: list[MachineEvent] = []
        machine = parts.machine("n1", directory, self.events.append)
        assert isinstance(machine, RemoteMachine)
        self.machine = machine

    async def type(self, letter: bytes) -> None:
        path = socket_address(self.directory / CONSOLE_SOCKET)
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(letter)
        await writer.drain()
        writer.close()

    async def until(self, condition: Callable[[], object], what: str) -> None:
        until = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < until, what
            await asyncio.sleep(0.05)

    def log(self, name: str) -> str:
        path = self.directory / name
        return path.read_text() if path.exists() else ""


def real(tmp_path: Path) -> RealParts:
    (tmp_path / "kernel").write_bytes(guest())
    (tmp_path / "root").write_bytes(bytes(1 << 20))
    image = ImageSet("tiny", tmp_path / "kernel", tmp_path / "root", "quiet", "a tiny guest")
    return RealParts(image, Accel("tcg", "test", "max"), tmp_path, 1)


class Impatient:
    """Both ends have a second of patience, which begins when a test says so: until then the lab has
    an hour, and the agent's guard, which stands still, for ever."""

    SECONDS = 1.0

    def __init__(self, there: Path, patch: pytest.MonkeyPatch) -> None:
        self._guard = 0
        self._link: Link | None = None
        call = Link.call

        async def held(link: Link, method: str, *params: Any, **options: Any) -> Any:
            if self._link is None:
                self._link = link
                link._patience = 3600.0
            if method == "begin":  # tells how patient the guard is
                _, self._guard = agent_and_guard(there)
                os.kill(self._guard, signal.SIGSTOP)
            return await call(link, method, *params, **options)

        patch.setattr(Link, "call", held)

    def begin(self) -> None:
        assert self._link is not None
        self._link._patience = self.SECONDS
        os.kill(self._guard, signal.SIGCONT)


@pytest.fixture
def impatient(there: Path, monkeypatch: pytest.MonkeyPatch) -> Impatient:
    return Impatient(there, monkeypatch)


@contextlib.asynccontextmanager
async def node(tmp_path: Path, deadline: float | None = None) -> AsyncIterator[Bench]:
    one = host("a", tmp_path)
    if deadline is not None:
        one.deadline = deadline
    try:
        parts = await RemoteParts.make(
            one, real(tmp_path), "0", keep=False, tell=lambda _text: None
        )
        directory = tmp_path / "lab" / "n1"
        directory.mkdir()
        parts.chip(directory, parts.serial(1, 1))
        parts.disks(directory, "[mesh]\n")
        yield Bench(one, parts, directory)
    finally:
        await one.close()


@needs_qemu
async def test_a_node_there_is_as_one_here(tmp_path: Path, there: Path) -> None:
    async with node(tmp_path) as bench:
        machine = bench.machine
        await machine.start()
        assert machine.running
        assert len(qemus(there)) == 1
        await bench.until(lambda: "ready1" in bench.log("console.log"), "its console is in the log")
        await bench.type(b"r")
        await bench.until(
            lambda: any(isinstance(event, Reset) for event in bench.events), "it restarts"
        )
        await bench.until(lambda: "ready2" in bench.log("console.log"), "and says so")
        await bench.until(lambda: machine.own_kib() > 0, "its memory is known")
        # The first word may be of a QEMU that has not worked for one tick of its clock.
        await bench.until(lambda: machine.cpu_seconds() > 0, "and its processor time")
        await bench.type(b"o")
        async with asyncio.timeout(PATIENCE):
            assert await machine.wait() == 0
        assert not machine.running
        assert not (bench.directory / CONSOLE_SOCKET).exists()


@needs_qemu
async def test_power_that_is_cut_there_comes_back(tmp_path: Path, there: Path) -> None:
    async with node(tmp_path) as bench:
        await bench.machine.start()
        machine = bench.machine
        machine.kill()
        async with asyncio.timeout(PATIENCE):
            assert await machine.wait() == -signal.SIGKILL
        await gone(lambda: qemus(there))
        again = Bench(bench.host, bench.parts, bench.directory)
        await again.machine.start()
        await again.until(lambda: "ready1" in again.log("console.log"), "it says something")
    await gone(lambda: processes(there))


@needs_qemu
async def test_a_machine_that_does_not_start_says_why(tmp_path: Path, there: Path) -> None:
    async with node(tmp_path) as bench:
        for image in (there / "a" / "thicket-hosts" / "images").iterdir():
            image.unlink()
        with pytest.raises(MachineError, match=r"a: n1: there is no .*thicket-hosts/images/"):
            await bench.machine.start()
        assert not bench.machine.running


@needs_qemu
@pytest.mark.parametrize("victim", ["agent", "ssh"])
async def test_nothing_is_left_when_an_end_of_the_connection_is_killed(
    victim: str, tmp_path: Path, there: Path
) -> None:
    async with node(tmp_path) as bench:
        await bench.machine.start()
        connection = bench.host._connection
        assert connection is not None
        disk = there / "a" / "thicket-hosts" / "labs" / "lab-1" / "n1" / "data.img"
        inode = disk.stat().st_ino
        if victim == "ssh":
            connection.process.kill()
        else:
            os.kill(agent_of(there), signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            assert await bench.machine.wait() is None
        assert "a is out of reach: the connection was closed" in bench.log("qemu.log")
        await gone(lambda: qemus(there))
        again = Bench(bench.host, bench.parts, bench.directory)
        await again.machine.start()
        assert again.machine.running
        assert disk.stat().st_ino == inode, "the node has lost its disk"
    await gone(lambda: processes(there))


@needs_qemu
async def test_a_connection_that_swallows_everything_is_ended_on_both_sides(
    tmp_path: Path, there: Path, impatient: Impatient
) -> None:
    """As with the lid closed, or a network that is gone without a word."""
    async with node(tmp_path, Impatient.SECONDS) as bench:
        await bench.machine.start()
        connection = bench.host._connection
        assert connection is not None
        os.kill(connection.process.pid, signal.SIGSTOP)
        impatient.begin()
        await gone(lambda: qemus(there))
        async with asyncio.timeout(PATIENCE):
            assert await bench.machine.wait() is None
        assert "a is out of reach: " in bench.log("qemu.log")
    await gone(lambda: processes(there))


@needs_qemu
async def test_an_agent_that_is_stopped_does_not_keep_its_machines(
    tmp_path: Path, there: Path, impatient: Impatient
) -> None:
    async with node(tmp_path, Impatient.SECONDS) as bench:
        await bench.machine.start()
        os.kill(agent_of(there), signal.SIGSTOP)
        impatient.begin()
        await gone(lambda: processes(there))
        async with asyncio.timeout(PATIENCE):
            assert await bench.machine.wait() is None


async def test_an_image_that_finds_no_room_says_so(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(8 << 20))
    async with opened("full", tmp_path) as one:
        with pytest.raises(HostsError, match="full: an image cannot be stored there: File too"):
            await one.store([("0" * 64, large)], lambda _text: None)


async def test_an_image_that_changed_on_its_way_is_not_used(tmp_path: Path, there: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"text")
    async with opened("a", tmp_path) as one:
        with pytest.raises(HostsError, match="damaged"):
            await one.store([("0" * 64, file)], lambda _text: None)
    assert not list((there / "a" / "thicket-hosts" / "images").iterdir())


@needs_qemu
async def test_a_lab_is_spread_over_machines_and_this_one(tmp_path: Path, there: Path) -> None:
    parts = dict.fromkeys(names(4), real(tmp_path))
    said: list[str] = []
    wanted = Wanted([HostSpec("local", 1), HostSpec("a", 1), HostSpec("b", 1)], {"n4": "local"})
    lab = ("lab", tmp_path / "lab")
    async with spread(wanted, lab, parts, keep=False, tell=said.append) as found:
        places = [found.others[name].place for name in names(4)]
        assert places == ["", "a", "b", ""]
    assert any(line.startswith("a: kernel is sent") for line in said)
    said.clear()
    async with spread(wanted, lab, parts, keep=False, tell=said.append):
        assert not any("is sent" in line for line in said), "images are sent once"
    await gone(lambda: processes(there))


def test_a_long_way_makes_a_run_invalid(tmp_path: Path) -> None:
    class Far(Host):
        def late_ms(self) -> float:
            return 80.0

    (tmp_path / "host-far.log").write_text("of the run before")
    all_of_them = Hosts([HostSpec("far")], "lab", tmp_path, keep=False)
    assert all_of_them.reasons() == []
    assert (tmp_path / "host-far.log.1").read_text() == "of the run before"
    all_of_them.all = [Far(HostSpec("far"), "lab", tmp_path, keep=False)]
    assert all_of_them.reasons() == [
        "the way to far takes 80 ms once in a hundred (bound 50): "
        "frames come late there, or from there"
    ]
    assert hosts.LATE_BOUND_MS == 50
