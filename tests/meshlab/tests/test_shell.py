# SPDX-License-Identifier: Apache-2.0
"""The shell driver against a real sh on a real terminal, respawned as a node's init does it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import os
import pty
import random
import select
import shlex
import shutil
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE

from meshlab.machine import shell as shell_module
from meshlab.machine.shell import (
    Result,
    Shell,
    ShellError,
    ShellTimeoutError,
    _argument,
    _Capture,
    _Taken,
)

SHELLS = [["sh"]]
if shutil.which("busybox"):
    SHELLS.append(["busybox", "sh"])


class Guest:
    """What a node is to the driver: QEMU's socket, behind it a terminal with a respawned shell.

    The socket serves one client at a time and the terminal stays when a client leaves, as with
    QEMU's chardev.
    """

    def __init__(self, path: Path, argv: list[str]) -> None:
        self.path = path
        self.argv = argv
        self.pid = 0
        self.pids: list[int] = []
        self.booting = False
        self.delay = 0.0
        """Seconds from the arrival of a line to its reader."""
        self._stop = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(4)
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _spawn(self) -> int:
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ.pop("ENV", None)
            os.environ["PS1"] = "# "
            os.execvp(self.argv[0], self.argv)
        self.pid = pid
        self.pids.append(pid)
        return terminal

    def _serve(self) -> None:
        terminal = -1
        client: socket.socket | None = None
        try:
            while not self._stop:
                if terminal < 0 and not self.booting:
                    terminal = self._spawn()
                wanted: list[socket.socket | int] = [self._wake_read]
                wanted.append(self._listener if client is None else client)
                if terminal >= 0:
                    wanted.append(terminal)
                ready, _, _ = select.select(wanted, [], [], 0.2)
                if self._listener in ready:
                    client, _ = self._listener.accept()
                if client is not None and client in ready:
                    data = self._receive(client)
                    if not data:
                        client.close()
                        client = None
                    time.sleep(self.delay)
                    while data and terminal >= 0:
                        data = data[os.write(terminal, data) :]
                if terminal >= 0 and os.waitpid(self.pid, os.WNOHANG)[0]:
                    # Its background jobs may still hold the terminal, which hangs up all the same.
                    os.close(terminal)
                    terminal = -1
                elif terminal >= 0 and terminal in ready:
                    try:
                        data = os.read(terminal, 4096)
                    except OSError as error:
                        assert error.errno == errno.EIO
                        data = b""
                    if not data:
                        os.close(terminal)
                        terminal = -1
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(self.pid, signal.SIGKILL)
                        os.waitpid(self.pid, 0)
                    elif client is not None:
                        with contextlib.suppress(OSError):
                            client.sendall(data)
        finally:
            if client is not None:
                client.close()
            if terminal >= 0:
                os.close(terminal)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)

    @staticmethod
    def _receive(client: socket.socket) -> bytes:
        try:
            return client.recv(4096)
        except ConnectionResetError:
            return b""

    def crash(self) -> None:
        """Kill the shell; init starts the next."""
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        self._stop = True
        os.write(self._wake_write, b"x")
        self._thread.join()
        self._listener.close()
        os.close(self._wake_read)
        os.close(self._wake_write)


@pytest.fixture(params=SHELLS, ids=lambda argv: argv[0])
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guest]:
    it = Guest(tmp_path / "shell.sock", request.param)
    yield it
    it.close()


@pytest.fixture
async def shell(guest: Guest) -> AsyncIterator[Shell]:
    it = Shell(guest.path, "n1")
    yield it
    await it.close()


class Skip:
    """The event loop's clock, which a test lets go on at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self.seconds = 0.0
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + self.seconds)

    def __call__(self, seconds: float) -> None:
        self.seconds += seconds


async def until(condition: object, what: str, deadline: float = 60.0) -> None:
    assert callable(condition)
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"waited {deadline} s for: {what}"
        await asyncio.sleep(0.02)


async def test_status_and_output(shell: Shell) -> None:
    assert await shell.run("echo hello; echo problem >&2; exit 3") == Result(3, "hello\nproblem\n")
    assert await shell.run("true") == Result(0, "")
    assert await shell.run("printf 'no newline'") == Result(0, "no newline")
    killed = await shell.run("sh -c 'kill -9 $PPID'; echo never")
    assert killed.status == 137
    assert "never" not in killed.output
    assert await shell.run("echo fine") == Result(0, "fine\n")


async def test_quoting_and_several_lines(shell: Shell) -> None:
    nasty = """'a" $b `c` \\d\\n %s %% ~ #~ {nonce} ö"""
    quoted = nasty.replace("'", "'\\''")
    assert await shell.run(f"printf %s '{quoted}'") == Result(0, nasty)
    script = (
        "x=1\nif [ $x = 1 ]; then\n\techo 'two\\n lines'\nfi\ncat <<END\nhere: a\\b\nEND\nexit 4\n"
    )
    result = await shell.run(script)
    assert result.status == 4
    assert result.output.endswith("lines\nhere: a\\b\n")


async def test_commands_do_not_touch_each_other(shell: Shell) -> None:
    await shell.run("cd /; x=1; alias ls=false; trap 'echo trapped' EXIT; set -e")
    assert await shell.run('echo "$x"; pwd -P; false; echo on') == Result(
        0, f"\n{Path.cwd().resolve()}\non\n"
    )
    assert await shell.run("exec true") == Result(0, "")
    assert await shell.run('read x; echo "[$x]"; cat') == Result(0, "[]\n")


async def test_binary_output_and_what_looks_like_a_marker(shell: Shell) -> None:
    everything = bytes(range(256))
    octal = "".join(f"\\{value:03o}" for value in everything)
    status, output = await shell.run_bytes(f"printf '{octal}'")
    assert (status, output) == (0, everything)
    fake = await shell.run_bytes(r"printf '\036%s>0\036' 0123456789abcdef; exit 5")
    assert fake == (5, b"\x1e0123456789abcdef>0\x1e")


async def test_much_output(shell: Shell) -> None:
    status, output = await shell.run_bytes(
        "i=0; while [ $i -lt 400 ]; do printf '%01000d' $i; i=$((i+1)); done"
    )
    assert status == 0
    assert output == b"".join(b"%01000d" % number for number in range(400))


async def test_too_much_output_is_refused(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_module, "MAX_OUTPUT", 10_000)
    with pytest.raises(ShellError, match="more than 10000 bytes"):
        await shell.run("while :; do echo flood; done")
    assert await shell.run("echo fine") == Result(0, "fine\n")


async def test_stream_delivers_as_it_comes(shell: Shell, tmp_path: Path) -> None:
    pieces: list[bytes] = []
    gate = tmp_path / "gate"
    task = asyncio.create_task(
        shell.stream(f"echo one; until [ -e {gate} ]; do sleep 0.05; done; echo two", pieces.append)
    )
    await until(lambda: b"".join(pieces) == b"one\n", "the first line")
    gate.touch()
    assert await task == 0
    assert b"".join(pieces) == b"one\ntwo\n"


async def test_timeout_ends_the_command_and_leaves_a_usable_shell(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shell.ready(60)
    skip = Skip(monkeypatch)
    mark = tmp_path / "pid"
    seen = bytearray()

    def heard(data: bytes) -> None:
        seen.extend(data)
        if b"begun" in seen:
            skip(1000)

    command = f"sh -c 'echo $$ >{mark}; echo begun; exec sleep 600'"
    with pytest.raises(ShellTimeoutError, match="not finished after 1000 s") as caught:
        await shell.run(command, 1000, heard)
    assert b"begun" in caught.value.output
    assert await shell.run("echo fine") == Result(0, "fine\n")
    await until(lambda: not alive(int(mark.read_text())), "the end of the command")


async def test_timeout_of_a_command_that_ignores_interrupts(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shell.ready(60)
    skip = Skip(monkeypatch)
    mark = tmp_path / "pid"
    command = f"sh -c 'echo $$ >{mark}; echo begun; while :; do sleep 1; done'"
    with pytest.raises(ShellTimeoutError) as caught:
        await shell.run(f"trap '' INT QUIT TERM HUP; {command}", 1000, lambda _: skip(1000))
    assert "not finished after 1000 s" in str(caught.value)
    assert await shell.run("echo fine") == Result(0, "fine\n")
    await until(lambda: not alive(int(mark.read_text())), "the end of the command")


async def test_cancelled_command_is_ended(shell: Shell, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    task = asyncio.create_task(shell.run(f"sh -c 'echo $$ >{mark}; exec sleep 600'", PATIENCE))
    await until(lambda: mark.exists() and mark.read_text(), "the command")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await shell.run("echo fine") == Result(0, "fine\n")
    await until(lambda: not alive(int(mark.read_text())), "the end of the command")


async def test_callers_take_turns(shell: Shell) -> None:
    async def count(name: int) -> str:
        return (await shell.run(f"for i in 1 2 3; do echo {name}; done")).output

    outputs = await asyncio.gather(*(count(n) for n in range(8)))
    assert outputs == [f"{n}\n" * 3 for n in range(8)]


async def test_busy_shell_says_so(shell: Shell) -> None:
    await shell.ready(60)
    task = asyncio.create_task(shell.run("sleep 60", PATIENCE))
    await asyncio.sleep(0)
    with pytest.raises(ShellError, match="busy with another command"):
        await shell.run("true", 0.2)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_background_processes_do_not_hold_the_command(shell: Shell) -> None:
    result = await shell.run("(sleep 600 </dev/null >/dev/null 2>&1 & echo $!)", PATIENCE)
    assert result.status == 0
    pid = int(result.output)
    assert alive(pid)
    os.kill(pid, signal.SIGKILL)


async def test_read_file(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "st atus.json"
    assert await shell.read_file(str(path)) is None
    text = '{"back\\\\slash": " spaces  and %s $x `y` \'", "long": "' + "z" * 3000 + '"}'
    path.write_text(text + "\nsecond line\n")
    assert await shell.read_file(str(path)) == text
    path.write_text("without newline")
    assert await shell.read_file(str(path)) == "without newline"
    path.write_text("")
    assert await shell.read_file(str(path)) is None


async def test_a_reader_that_was_killed_is_replaced(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    assert await shell.read_file(str(path)) == "one"
    if shutil.which("busybox"):
        gone = "kill -KILL $Q; while kill -0 $Q 2>/dev/null; do sleep 0.1; done"
        assert (await shell.run(gone, PATIENCE)).status == 0
    assert await shell.read_file(str(path), 60.0) == "one"


async def test_read_if_changed(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert await shell.read_if_changed(str(path)) is None
    path.write_text("one\n")
    os.utime(path, (1, 1))  # older than any stamp: unchanged once it was read
    await shell.close()
    assert await shell.read_if_changed(str(path)) == "one"
    assert await shell.read_if_changed(str(path)) is None
    path.write_text("two\n")
    os.utime(path, (time.time() + 60, time.time() + 60))
    assert await shell.read_if_changed(str(path)) == "two"
    # As old as its stamp or newer: it may have changed again.
    assert await shell.read_if_changed(str(path)) == "two"


async def test_a_file_is_read_in_large_pieces(shell: Shell, guest: Guest, tmp_path: Path) -> None:
    """The status of a node is read every second, and a call of a guest's kernel is emulated."""
    path = tmp_path / "status.json"
    path.write_text("x" * 8000 + "\n")
    await shell.ready(60)

    def calls() -> int:
        """How often the shell has asked the kernel to read."""
        facts = Path(f"/proc/{guest.pid}/io").read_text()
        return int(facts.partition("syscr: ")[2].split()[0])

    for read in (shell.read_file, shell.read_if_changed):
        before = calls()
        assert await read(str(path)) == "x" * 8000
        assert calls() - before < 500, "the line of the command is read byte by byte, no more"


async def test_push_and_pull(shell: Shell, tmp_path: Path) -> None:
    content = random.Random(7).randbytes(50_000) + b"\x03\x04\x1e"
    path = tmp_path / "fi'le"
    await shell.push(str(path), content)
    assert path.read_bytes() == content
    assert await shell.pull(str(path)) == content
    await shell.push(str(path), b"")
    assert path.read_bytes() == b""
    with pytest.raises(ShellError, match=r"writing /nowhere/x: .*"):
        await shell.push("/nowhere/x", b"abc")
    with pytest.raises(ShellError, match=r"reading /nowhere/x: .*"):
        await shell.pull("/nowhere/x")
    assert await shell.run("echo fine") == Result(0, "fine\n")


async def test_push_that_is_cancelled(shell: Shell, tmp_path: Path) -> None:
    await shell.ready(60)
    path = tmp_path / "file"
    task = asyncio.create_task(shell.push(str(path), b"x" * 300_000, 30))
    await until(path.exists, "the beginning")
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert await shell.run("echo fine", 40) == Result(0, "fine\n")


async def test_respawned_shell_is_opened_again(
    shell: Shell, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell_module, "_START_PATIENCE", 1.0)
    assert await shell.run("echo one") == Result(0, "one\n")
    shells = len(guest.pids)
    guest.crash()
    await until(lambda: len(guest.pids) > shells, "a new shell")
    assert await shell.run("echo two", PATIENCE) == Result(0, "two\n")


async def test_a_node_that_is_slower_than_the_first_attempts_is_waited_for(
    shell: Shell, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await shell.run("echo one") == Result(0, "one\n")
    monkeypatch.setattr(shell_module, "_START_PATIENCE", 0.02)
    guest.delay = 0.1
    assert await shell.run("echo two", PATIENCE) == Result(0, "two\n")


async def test_a_shell_that_takes_long_to_start_is_not_ended_again_and_again(
    shell: Shell, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """^C ends one that has not started yet, whatever is typed behind it."""
    monkeypatch.setattr(shell_module, "_OPENING_PATIENCE", 0.5)
    monkeypatch.setattr(shell_module, "_OPENING_SILENCE", 0.05)
    guest.argv = ["sh", "-c", f"sleep 0.5; exec {shlex.join(guest.argv)}"]
    guest.crash()
    await shell.ready(120)
    assert await shell.run("echo one", PATIENCE) == Result(0, "one\n")


async def test_reset_ends_a_running_command(shell: Shell, guest: Guest, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    task = asyncio.create_task(shell.run(f"touch {mark}; sleep 600", 600))
    await until(mark.exists, "the command")
    guest.crash()
    shell.reset("the node has restarted")
    with pytest.raises(ShellError, match="n1: the node has restarted"):
        await task
    assert await shell.run("echo again", PATIENCE) == Result(0, "again\n")


async def test_reset_in_the_moment_in_which_a_command_begins(shell: Shell, guest: Guest) -> None:
    await shell.ready(60)
    wire = shell._wire
    assert wire is not None
    hear = wire.data_received

    def hear_and_reset(data: bytes) -> None:
        hear(data)
        if b"<" in data:  # the mark that a command begins
            wire.data_received = hear  # type: ignore[method-assign]
            guest.crash()
            shell.reset("the node has restarted")

    wire.data_received = hear_and_reset  # type: ignore[method-assign]
    with pytest.raises(ShellError, match="n1: the node has restarted"):
        await shell.run("sleep 600", PATIENCE)


async def test_next_client_inherits_a_usable_shell(guest: Guest, tmp_path: Path) -> None:
    first = Shell(guest.path, "first")
    mark = tmp_path / "pid"
    task = asyncio.create_task(
        first.stream(f"sh -c 'echo $$ >{mark}; while :; do echo noise; sleep 0.01; done'", _nothing)
    )
    await until(lambda: mark.exists() and mark.read_text(), "the command")
    # The first client dies: nothing is tidied up.
    assert first._wire is not None
    assert first._wire.transport is not None
    first._wire.transport.abort()
    with pytest.raises(ShellError, match="closed"):
        await task
    shells = len(guest.pids)
    second = Shell(guest.path, "second")
    assert await second.run("echo mine", PATIENCE) == Result(0, "mine\n")
    await until(lambda: not alive(int(mark.read_text())), "the end of the first client's command")
    assert len(guest.pids) == shells, "init had to start another shell"
    await second.close()
    await first.close()


async def test_torn_line_of_an_earlier_client_is_not_run(guest: Guest, tmp_path: Path) -> None:
    first = Shell(guest.path, "first")
    await first.ready(60)
    assert first._wire is not None
    assert first._wire.transport is not None
    first._wire.transport.write(b"touch " + bytes(tmp_path / "made"))
    await asyncio.sleep(0.1)
    await first.close()
    second = Shell(guest.path, "second")
    assert await second.run("echo mine", PATIENCE) == Result(0, "mine\n")
    await second.close()
    assert not (tmp_path / "made").exists()


async def test_waits_for_a_node_that_boots(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "shell.sock", "n1")
    with pytest.raises(ShellError, match=r"there is no .*shell.sock: the node's machine is not"):
        await shell.ready(0.3)
    with pytest.raises(ShellError, match="cannot connect"):
        await shell.run("true")
    task = asyncio.create_task(shell.ready(60))
    guest = Guest(tmp_path / "shell.sock", ["sh"])
    try:
        guest.booting = False
        await task
        assert await shell.run("echo up") == Result(0, "up\n")
    finally:
        await shell.close()
        guest.close()


async def test_short_calls_to_a_slow_node_do_not_disturb_its_start(tmp_path: Path) -> None:
    # Every call gives up long before the node's shell is up; what was typed is what one call types.
    typed = bytearray()

    async def node(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            typed.extend(data)
        writer.close()

    async with await asyncio.start_unix_server(node, tmp_path / "shell.sock"):
        shell = Shell(tmp_path / "shell.sock", "n1")
        for _ in range(10):
            with pytest.raises(ShellError, match="did not answer"):
                await shell.read_file("/run/status", 0.1)
        await until(lambda: typed, "the node to read")
        assert typed.count(b"\x03") == 1
        await shell.close()


async def test_silent_node_is_reported(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "shell.sock"))
        listener.listen(1)
        shell = Shell(tmp_path / "shell.sock", "n1")
        with pytest.raises(ShellError, match=r"n1: the shell did not answer within 0\.5 s"):
            await shell.run("true", 0.5)
        await shell.close()


async def test_machine_that_ends_is_reported(guest: Guest, shell: Shell) -> None:
    await shell.ready(60)
    task = asyncio.create_task(shell.run("sleep 600", 600))
    await asyncio.sleep(0.1)
    threading.Thread(target=guest.close).start()
    with pytest.raises(ShellError, match="closed the shell"):
        await task
    guest.close = lambda: None  # type: ignore[method-assign]


def test_a_command_without_a_way_through_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        _argument("a\0b")


@settings(deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(1, 50)), st.integers(0, 255))
def test_capture_is_independent_of_how_the_stream_is_cut(
    output: bytes, cuts: list[int], status: int
) -> None:
    asyncio.run(_check_capture(output, cuts, status))


async def _check_capture(output: bytes, cuts: list[int], status: int) -> None:
    nonce = "0011223344556677"
    got = bytearray()
    capture = _Capture(nonce, got.extend)
    head = b"\x1e%s<" % nonce.encode()
    tail = b"\x1e%s>%d\x1e" % (nonce.encode(), status)
    # Noise before that begins like a marker, and output that does.
    stream = b"noise\x1e0011" + head + output + b"\x1e0011223344556677" + tail + b"more"
    position = 0
    for cut in [*cuts, len(stream)]:
        capture.feed(stream[position : position + cut])
        position += cut
    assert bytes(got) == output + b"\x1e0011223344556677"
    assert capture.status.result() == status


def alive(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _nothing(_data: bytes) -> None:
    pass


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def typed(queue: asyncio.Queue[bytes]) -> AsyncIterator[bytes]:
    """Input of somebody who types; nothing more after b""."""
    while piece := await queue.get():
        yield piece


class TestInput:
    async def test_large_and_binary_input_arrives_as_it_is(self, shell: Shell) -> None:
        data = random.Random(1).randbytes(300_000) + b"\x03\x04\x1e\n #~\n" + bytes(range(256))
        out = bytearray()
        assert await shell.stream("base64", out.extend, 120, pieces_of(data[:7], data[7:])) == 0
        assert base64.b64decode(out) == data
        assert (await shell.run("echo next", PATIENCE)).output == "next\n"

    async def test_its_end_is_an_end_of_file(self, shell: Shell) -> None:
        out = bytearray()
        assert (
            await shell.stream("cat; echo over; exit 3", out.extend, 60, pieces_of(b"no newline"))
            == 3
        )
        assert out == b"no newlineover\n"
        out.clear()
        assert await shell.stream("cat; echo over", out.extend, 60, pieces_of()) == 0
        assert out == b"over\n"

    async def test_it_is_answered_while_it_goes_on(self, shell: Shell) -> None:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        out = bytearray()
        command = "while read -r x; do echo got $x; done; echo end"
        running = asyncio.create_task(shell.stream(command, out.extend, 120, typed(queue)))
        for word in (b"one", b"two"):
            queue.put_nowait(word + b"\n")
            await until(lambda answer=b"got " + word + b"\n": answer in out, "the answer")
            assert not running.done()
        queue.put_nowait(b"")
        assert await running == 0
        assert out.endswith(b"got two\nend\n")

    async def test_a_command_that_does_not_read_it_ends_all_the_same(
        self, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shell_module, "_PLACE", str(tmp_path))
        assert await shell.stream("true", _nothing, 60, pieces_of(bytes(500_000))) == 0
        out = bytearray()
        command = "head -c 5; echo"
        assert await shell.stream(command, out.extend, 60, pieces_of(b"x" * 500_000)) == 0
        assert out == b"xxxxx\n"
        await shell.run("true", PATIENCE)
        assert list(tmp_path.glob(".shell-input-*")) == []

    async def test_one_that_hangs_amid_its_input_is_ended(self, shell: Shell) -> None:
        await shell.ready(60)
        with pytest.raises(ShellTimeoutError):
            await shell.stream("sleep 1000", _nothing, 5, pieces_of(bytes(500_000)))
        assert (await shell.run("echo next", PATIENCE)).output == "next\n"


@settings(deadline=None)
@given(st.lists(st.sampled_from([b"\x1d", b"a", b"n", b"\x1e", b"\x1dn\x1d", b"\x1dn"])), st.data())
def test_marks_of_input_are_taken_out_wherever_the_stream_is_cut(
    parts: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(parts)
    out = bytearray()
    taken = _Taken("n", out.extend)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        taken.feed(stream[start:end])
    taken.feed(b"z")
    wanted = (stream + b"z").split(b"\x1dn\x1d")
    assert out == b"".join(wanted)
    assert taken.marks._value == len(wanted) - 1
