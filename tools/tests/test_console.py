# SPDX-License-Identifier: Apache-2.0
"""Enrolment over a serial console: real terminals with real shells, and everything in between."""

from __future__ import annotations

import os
import pty
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet_for_tests import PREFIX
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

from authority.authority import Authority
from authority.chip import DeskChip
from authority.console import Console
from authority.remote_bus import RemoteBus
from meshlab.chip.state import ChipState, serial_for
from thicket.identity import console_frames
from thicket.identity.bus import BusFaultError
from thicket.identity.console_frames import ANSWER, END, QUESTION, Frame, unpack
from thicket.trust.credentials import enrolled_chain

NODE = """
import sys
from pathlib import Path
from meshlab.chip.atecc608 import Atecc608
from meshlab.chip.state import serial_for
from meshlab.chip.bus import Nak
from thicket.identity.bus import Bus, NotAcknowledgedError
from thicket.base.paths import Paths
from thicket.trust.agent import Agent, serve_console

class Wire(Bus):
    name = "/dev/i2c-9"
    def __init__(self, chip): self.chip = chip
    def write(self, address, data):
        try: self.chip.write(address, data)
        except Nak: raise NotAcknowledgedError(self.name)
    def read(self, address, length):
        try: return self.chip.read(address, length)
        except Nak: raise NotAcknowledgedError(self.name)
    def lock(self, deadline): Path(FOLDER + "/lock").touch()
    def unlock(self): Path(FOLDER + "/lock").unlink()

FOLDER, option, session, *bus = sys.argv[1:]
assert option == "--console" and bus in ([], ["/dev/i2c-9"])
chip = Atecc608(serial_for(1, 1), Path(FOLDER) / "chip.json", scale=0.01)
serve_console(Agent(Wire(chip), Paths(FOLDER)), session)
"""


def shells() -> list[list[str]]:
    found = []
    if shutil.which("busybox"):
        found.append(["busybox", "ash", "-l"])
    found.append(["/bin/sh", "-i"])
    return found


class Machine:
    """A shell on a terminal, and what is between that terminal and ours."""

    def __init__(self, folder: Path, shell: list[str]) -> None:
        (folder / "node.py").write_text(NODE)
        self.agent = f"{sys.executable} {folder}/node.py {folder}"
        self.pid, self._far = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(folder)
                environment = {**os.environ, "PS1": "n-6f44e3c6b802:~# ", "HOME": str(folder)}
                os.execvpe(shell[0], shell, environment)
            finally:
                os._exit(127)
        self._near, slave = pty.openpty()
        tty.setraw(slave)
        self.path = os.ttyname(slave)
        self._slave = slave
        self.from_node: Callable[[bytes], bytes] = lambda data: data
        self.to_node: Callable[[bytes], bytes] = lambda data: data
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._pump)
        self._thread.start()

    def _pump(self) -> None:
        pairs = {self._far: self._near, self._near: self._far}
        while True:
            ready, _, _ = select.select([*pairs, self._stop], [], [])
            if self._stop in ready:
                return
            for one in ready:
                try:
                    data = os.read(one, 4096)
                except OSError:  # the shell has ended
                    return
                data = self.from_node(data) if one == self._far else self.to_node(data)
                while data:
                    data = data[os.write(pairs[one], data) :]

    def typed(self, text: bytes) -> None:
        os.write(self._far, text)

    def close(self) -> None:
        os.write(self._stopped, b"x")
        self._thread.join()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        for descriptor in (self._far, self._near, self._slave, self._stop, self._stopped):
            os.close(descriptor)


@pytest.fixture(params=shells(), ids=" ".join)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path, request.param)
    yield made
    made.close()


@pytest.fixture
def one_machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path, shells()[0])
    yield made
    made.close()


def enroll(machine: Machine, folder: Path) -> None:
    ca = Authority(folder / "fleet", lambda _: "")
    ca.init("far", PREFIX, lab=True)
    console = Console(machine.path, bus="/dev/i2c-9", agent=machine.agent)
    chip = DeskChip(RemoteBus(console), patience=60.0)
    try:
        assert ca.enroll_chip(chip, write=True, show=lambda _: None) == serial_for(1, 1).hex()
        assert enrolled_chain(chip, ca.fleet)
    finally:
        chip.bus.close()
    assert not (folder / "lock").exists()
    state = ChipState.load(folder / "chip.json", serial_for(1, 1))
    assert state.config[86:89] == b"\0\0\xfe"


def test_a_chip_is_enrolled_over_the_console(machine: Machine, tmp_path: Path) -> None:
    machine.typed(b"echo half a comma")  # somebody left that there
    enroll(machine, tmp_path)
    # and the shell is a person's again, echo and all
    console = Console(machine.path, agent=machine.agent)
    console.close()
    near = os.open(machine.path, os.O_RDWR | os.O_NOCTTY)
    try:
        os.write(near, b"echo alive-$((2+3))\r")
        said, end = b"", time.monotonic() + PATIENCE
        while not (b"alive-5" in said and b"$((2+3))" in said):
            assert select.select([near], [], [], max(0, end - time.monotonic()))[0], said
            said += os.read(near, 4096)
    finally:
        os.close(near)


PRINTK = (
    b"[   12.345678] usb 1-1.2: new high-speed USB device number 4 using dwc_otg\r\n",
    b"\r\n[  99.000001] mesh0: authenticate with 02:00:00:00:01:00\r\n",
    b"[  100.0] random bytes: \x00\xff\xfe\x80 and : ta lookalike\r\n",
)


class Printk:
    """Writes into the middle of what it passes on, as the kernel does."""

    def __init__(self, seed: int, rate: float) -> None:
        self._random = random.Random(seed)
        self._rate = rate
        self.count = 0

    def __call__(self, data: bytes) -> bytes:
        if self._random.random() >= self._rate:
            return data
        self.count += 1
        at = self._random.randrange(len(data) + 1)
        return data[:at] + self._random.choice(PRINTK) + data[at:]


class Noise:
    """Flips, drops and doubles bytes."""

    def __init__(self, seed: int, rate: float) -> None:
        self._random = random.Random(seed)
        self._rate = rate
        self.count = 0

    def __call__(self, data: bytes) -> bytes:
        out = bytearray()
        for byte in data:
            if self._random.random() >= self._rate:
                out.append(byte)
                continue
            self.count += 1
            kind = self._random.randrange(3)
            if kind == 0:
                out.append(byte ^ 1 << self._random.randrange(8))
            elif kind == 1:
                out += bytes((byte, byte))
        return bytes(out)


def test_kernel_messages_in_between_do_no_harm(one_machine: Machine, tmp_path: Path) -> None:
    one_machine.from_node = printk = Printk(1, 0.2)
    enroll(one_machine, tmp_path)
    assert printk.count > 20


def test_a_noisy_line_does_no_harm(one_machine: Machine, tmp_path: Path) -> None:
    console = Console(one_machine.path, bus="/dev/i2c-9", agent=one_machine.agent)
    one_machine.from_node, one_machine.to_node = Noise(1, 0.001), Noise(2, 0.001)
    there, back = one_machine.to_node, one_machine.from_node
    ca = Authority(tmp_path / "fleet", lambda _: "")
    ca.init("far", PREFIX, lab=True)
    chip = DeskChip(RemoteBus(console), patience=120.0)
    try:
        ca.enroll_chip(chip, write=True, show=lambda _: None)
    finally:
        one_machine.from_node = one_machine.to_node = lambda data: data
        chip.bus.close()
    assert there.count > 3
    assert back.count > 3


def test_an_agent_that_was_left_behind(one_machine: Machine) -> None:
    first = Console(one_machine.path, agent=one_machine.agent)
    first._restore()  # as if its process had been killed
    os.close(first._descriptor)
    second = Console(one_machine.path, agent=one_machine.agent)
    assert second.ask({"do": "hello"})["version"]
    second.close()


def test_long_questions_are_cut_into_pieces(one_machine: Machine) -> None:
    console = Console(one_machine.path, agent=one_machine.agent)
    answer = console.ask({"do": "certificates", "pem": "x" * 50_000})
    assert "error" in answer
    console.close()


def test_what_a_person_reads_when_it_does_not_work(one_machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(BusFaultError, match=r"agent on the node has ended.*No module named"):
        Console(one_machine.path, agent=f"{sys.executable} -m thicket.trust.nonexistent")
    with pytest.raises(BusFaultError, match="No such file"):
        Console(str(tmp_path / "nothing"))
    (tmp_path / "file").touch()
    with pytest.raises(BusFaultError, match="no serial port"):
        Console(str(tmp_path / "file"))
    with pytest.raises(BusFaultError, match="no speed"):
        Console(one_machine.path, baud=12345)
    near, far = pty.openpty()
    try:
        with pytest.raises(BusFaultError, match=r"nothing answers.*\[access\] console = true"):
            Console(os.ttyname(far), shell_time=0.2)
        getty = threading.Thread(target=_getty, args=(near,))
        getty.start()
        with pytest.raises(BusFaultError, match="a login is asked for"):
            Console(os.ttyname(far), shell_time=5.0)
        os.write(far, b"enough\n")
        getty.join()
    finally:
        os.close(near)
        os.close(far)


def test_a_shell_whose_answers_come_after_the_next_question_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a node whose processor is busy."""
    monkeypatch.setattr("authority.console.SHELL_WAIT", 0.05)
    near, far = pty.openpty()
    tty.setraw(near)
    shell = threading.Thread(target=_one_behind, args=(near,))
    shell.start()
    try:
        with pytest.raises(BusFaultError, match="agent on the node has ended: not found"):
            Console(os.ttyname(far), shell_time=3600.0)
        os.write(far, b"enough\n")
        shell.join()
    finally:
        os.close(near)
        os.close(far)


def _one_behind(terminal: int) -> None:
    """A shell that answers a question when it gets the next one."""
    said, late = b"", b""
    while b"enough" not in said:
        said += os.read(terminal, 4096)
        *lines, said = said.split(b"\n")
        for line in lines:
            asked = re.search(rb"thicket-\$\(\((\d+)\+(\d+)\)\)-(shell|ended)", line)
            if asked is None:
                said = b"enough" if b"enough" in line else said
                continue
            answer = b"thicket-%d-%b\r\n" % (int(asked[1]) + int(asked[2]), asked[3])
            if asked[3] == b"ended":
                late = b"not found\r\n" + answer
            os.write(terminal, late)
            late = answer


def _getty(terminal: int) -> None:
    said = b""
    while b"enough" not in said:
        said += os.read(terminal, 4096)
        os.write(terminal, b"\r\nn-6f44e3c6b802 login: ")


def test_a_simulated_node_s_console_is_a_socket(one_machine: Machine, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    os.chdir(folder)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind("console.sock")
        server.listen()
        os.chdir("/")
        near = os.open(one_machine.path, os.O_RDWR | os.O_NOCTTY)
        joined = threading.Thread(target=lambda: _join(server.accept()[0], near))
        joined.start()
        console = Console(str(folder / "console.sock"), agent=one_machine.agent)
        assert console.ask({"do": "hello"})["version"]
        console.close()
        joined.join()
        os.close(near)
        with pytest.raises(BusFaultError, match="refused"):
            server.close()
            Console(str(folder / "console.sock"))


def _join(line: socket.socket, terminal: int) -> None:
    with line:
        while True:
            ready, _, _ = select.select([line.fileno(), terminal], [], [])
            if line.fileno() in ready:
                data = line.recv(4096)
                if not data:
                    return
                os.write(terminal, data)
            if terminal in ready:
                try:
                    line.sendall(os.read(terminal, 4096))
                except OSError:
                    return


# -- frames


@given(
    st.sampled_from("qmane"),
    st.integers(0, 255),
    st.binary(max_size=2000),
    st.binary(max_size=20).filter(lambda b: b"\n" not in b),
)
def test_a_frame_is_read_as_it_was_written(
    kind: str, number: int, payload: bytes, before: bytes
) -> None:
    frame = Frame(kind, "5be1", number, payload)
    first, line, end = frame.pack().split(b"\n")
    assert (first, end) == (b"", b"")
    assert unpack(line) == unpack(line + b"\r") == unpack(before + line) == frame


@given(st.binary(min_size=1, max_size=40), st.data())
def test_a_damaged_frame_is_none(payload: bytes, data: st.DataObject) -> None:
    line = Frame(QUESTION, "0000", 7, payload).pack().strip(b"\n")
    at = data.draw(st.integers(0, len(line) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != line[at]))
    found = unpack(line[:at] + bytes((byte,)) + line[at + 1 :])
    # a digit of the CRC in capitals, or a blank at the end, is the same message
    assert found is None or found == Frame(QUESTION, "0000", 7, payload)
    assert unpack(line[:-1]) is None


@given(st.lists(st.binary(max_size=80), max_size=10))
def test_anything_may_come(pieces: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    asked: list[bytes] = []

    def answer(question: bytes) -> bytes:
        asked.append(question)
        return b"!"

    with ours, theirs:
        ours.sendall(b"\n".join(pieces) + b"\n")
        for number, again in ((1, 2), (2, 1)):
            ours.sendall(Frame(QUESTION, "1234", number, b"?").pack() * again)
        ours.sendall(Frame(QUESTION, "9999", 3, b"not mine").pack())
        ours.sendall(Frame(END, "0000", 0).pack())
        console_frames.serve_frames("1234", answer, theirs.fileno(), theirs.fileno(), patience=30)
        theirs.close()
        said = [unpack(line) for line in ours.makefile("rb").read().split(b"\n")]
    assert asked == [b"?", b"?"]
    answers = [frame for frame in said if frame is not None and frame.kind == ANSWER]
    assert [frame.number for frame in answers] == [1, 1, 2]


def test_the_agent_ends_when_nobody_asks() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        console_frames.serve_frames(
            "1234", lambda _: b"", theirs.fileno(), theirs.fileno(), patience=0.05
        )


def test_the_command_line_of_the_agent() -> None:
    for words, status in (
        ([], 0),
        (["--console", "xyz"], 2),
        (["a", "b"], 2),
        (["/dev/i2c-250"], 1),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "thicket.trust.agent", *words],
            stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
