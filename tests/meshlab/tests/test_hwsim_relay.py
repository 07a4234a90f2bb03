# SPDX-License-Identifier: Apache-2.0
"""hwsim-relay on the host: compiled with sanitizers, on a terminal instead of a virtio port.

The build for the tests speaks to the family ``nlctrl`` (generic netlink's own, in every kernel)
instead of ``MAC80211_HWSIM``, so that the messages go through a real kernel and come back. Message
layouts are those of <linux/netlink.h> and <linux/genetlink.h>. Its clock stands still until a test
moves it (held_clock.c), so no delay of this machine exhausts the relay's patience.
"""

from __future__ import annotations

import contextlib
import os
import pty
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from patience import PATIENCE

from meshlab.lab import shared

CLOCK = Path(__file__).with_name("held_clock.c")
SOURCE = Path(__file__).parents[3] / "package" / "hwsim-relay" / "src"

NETLINK, HELLO, STATS, ERROR = range(4)
MAGIC = b"HWSIMRLY"
STALL = 1000
"""The relay's patience with an incomplete frame in milliseconds (PROTOCOL.md)."""
COUNTERS = [
    "to_kernel",
    "to_host",
    "sessions",
    "queue_full",
    "overruns",
    "truncated",
    "foreign",
    "refused",
    "send_errors",
    "bad_frames",
    "stalls",
    "skipped_bytes",
    "discarded_bytes",
]

GENL_ID_CTRL = 16
CTRL_GETFAMILY = 3
CTRL_NEWFAMILY = 1
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_DUMP = 1, 2, 4, 0x300
NLM_F_CAPPED = 0x100
NLMSG_ERROR, NLMSG_DONE = 2, 3

pytestmark = [
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
    pytest.mark.skipif(shutil.which("make") is None, reason="no make"),
]


def build(directory: Path, *flags: str) -> None:
    """Compile the relay with its own Makefile in ``directory``, which is made."""
    shutil.copytree(SOURCE, directory)
    subprocess.run(
        ["make", "-s", "-C", directory, f"CFLAGS={' '.join(flags)}", "hwsim-relay"],
        check=True,
        env={**os.environ, "CC": "cc"},
    )


@pytest.fixture(scope="session")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The relay for nlctrl, which dies of any memory error or undefined behaviour."""

    def make(directory: Path) -> None:
        build(
            directory,
            "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all",
            """-DRELAY_FAMILY='"nlctrl"' -DRELAY_ASKED='"nothing"' -DRELAY_ASKS=0""",
            """-DRELAY_PORTS='getenv("RELAY_PORTS")' -DRELAY_DEV='getenv("RELAY_DEV")'""",
            f"{CLOCK} -Wl,--wrap=clock_gettime",
        )

    run = shared.run_directory(tmp_path_factory)
    return shared.once(run, "hwsim-relay-tested", make) / "hwsim-relay"


@pytest.fixture(scope="session")
def asking_relay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The relay for nlctrl, which asks that family for all families instead of interfaces."""
    flags = "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all"
    flags += """ -DRELAY_FAMILY='"nlctrl"' -DRELAY_ASKED='"nlctrl"' -DRELAY_ASKS=3"""
    run = shared.run_directory(tmp_path_factory)
    name = "hwsim-relay-asking"
    return shared.once(run, name, lambda directory: build(directory, flags)) / "hwsim-relay"


@pytest.fixture(scope="session")
def real_relay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The relay as it is installed."""
    run = shared.run_directory(tmp_path_factory)
    name = "hwsim-relay-installed"
    return shared.once(run, name, lambda directory: build(directory, "-Os")) / "hwsim-relay"


def wait_until(condition: Callable[[], bool], words: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, words
        time.sleep(0.001)


class Host:
    """The medium's end of the stream, and the relay at the other."""

    def __init__(self, program: Path, clock: bool = True, *, raw: bool = True) -> None:
        # Kept open: a terminal that nobody has open looks like one that was hung up.
        self.master, self.slave = pty.openpty()
        if raw:
            # What is sent before the relay has opened it arrives as well.
            tty.setraw(self.slave)
        self.clock = tempfile.NamedTemporaryFile(buffering=0)  # noqa: SIM115 - lives as long
        self.now = 0
        self.move_clock(STALL)
        environment = {**os.environ, "ASAN_OPTIONS": "abort_on_error=0:exitcode=99"}
        if clock:
            environment["RELAY_CLOCK"] = self.clock.name
        self.relay = subprocess.Popen(
            [program, os.ttyname(self.slave)], stderr=subprocess.PIPE, env=environment
        )
        os.set_blocking(self.master, False)
        self.buffer = b""
        self.family = 0
        self.sent = 0
        self.read_before = 0

    def move_clock(self, milliseconds: int) -> None:
        """Let the relay's clock go on; the relay sees it when it wakes."""
        self.now += milliseconds
        os.pwrite(self.clock.fileno(), struct.pack("<q", self.now), 0)

    def send(self, data: bytes, *, reading: bool = True) -> None:
        """Write everything; with ``reading``, keep what the relay says meanwhile."""
        deadline = time.monotonic() + PATIENCE
        while data:
            assert time.monotonic() < deadline, "the relay does not read"
            readers = [self.master] if reading else []
            readable, writable, _ = select.select(readers, [self.master], [], 1)
            if readable:
                self.buffer += os.read(self.master, 65536)
            if writable:
                with contextlib.suppress(BlockingIOError):
                    done = os.write(self.master, data)
                    self.sent += done
                    data = data[done:]

    def settle(self) -> None:
        """Count from here, where the relay has answered everything, what is sent and read."""
        wait_until(self.asleep, "the relay does not come to rest")
        self.sent = 0
        self.read_before = self.bytes_read()

    def rest(self) -> None:
        """Wait until the relay has read what was sent since ``settle`` and waits for more.

        It sleeps nowhere else, and not while answers of the kernel are unread.
        """
        wait_until(
            lambda: self.bytes_read() - self.read_before >= self.sent and self.asleep(),
            "the relay does not come to rest",
        )

    def wake(self) -> None:
        """Let the relay's main loop go round: a stop interrupts epoll_pwait(2), see signal(7)."""
        self.relay.send_signal(signal.SIGSTOP)
        wait_until(lambda: self.state() == "T", "the relay does not stop")
        self.relay.send_signal(signal.SIGCONT)
        wait_until(self.asleep, "the relay does not come to rest")

    def collect(self) -> None:
        """Take everything that the relay, which rests, has written."""
        while self.more(0):
            pass

    def quiet(self) -> None:
        """Wait until the relay has not run for a while.

        One that polls or spins runs within every such while. A slow machine can hide that, but
        cannot make a relay run that has nothing to do.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            before = self.runs()
            time.sleep(0.5)
            if self.runs() == before and self.asleep():
                return
            assert time.monotonic() < deadline, "the relay runs without an occasion"

    def runs(self) -> list[str]:
        """Return how often the relay was given and gave up the processor, and for how long."""
        process = Path("/proc", str(self.relay.pid))
        status = (process / "status").read_text().splitlines()
        switches = [line for line in status if "ctxt_switches" in line]
        return [*switches, *(process / "stat").read_text().rsplit(")", 1)[1].split()[11:13]]

    def more(self, timeout: float) -> bool:
        readable, _, _ = select.select([self.master], [], [], timeout)
        if readable:
            try:
                self.buffer += os.read(self.master, 65536)
            except OSError as error:
                raise AssertionError(f"the relay ended: {self.words()}") from error
        return bool(readable)

    def frame(self, timeout: float = PATIENCE) -> tuple[int, bytes]:
        """Return kind and body of the next frame."""
        deadline = time.monotonic() + timeout
        while len(self.buffer) < 5 or len(self.buffer) < 4 + self._length():
            assert self.more(max(0.0, deadline - time.monotonic())), "the relay says nothing"
        end = 4 + self._length()
        kind, body = self.buffer[4], self.buffer[5:end]
        self.buffer = self.buffer[end:]
        return kind, body

    def _length(self) -> int:
        (length,) = struct.unpack_from("<I", self.buffer)
        assert 1 <= length <= 65536
        return int(length)

    def until(self, kind: int, timeout: float = PATIENCE) -> bytes:
        """Return the body of the next frame of this kind."""
        deadline = time.monotonic() + timeout
        while True:
            got, body = self.frame(deadline - time.monotonic())
            if got == kind:
                return body

    def session(self, nonce: int | None = None) -> dict[str, int]:
        """Begin a session as PROTOCOL.md tells the host to; return the counters."""
        nonce = nonce or random.getrandbits(64) | 1
        self.send(hello(nonce))
        deadline = time.monotonic() + PATIENCE
        pattern = MAGIC + struct.pack("<Q", nonce)
        while (at := self.buffer.find(pattern)) < 0 or len(self.buffer) < at + 16 + 8 * 13:
            assert self.more(max(0.0, deadline - time.monotonic())), "no answer to HELLO"
        start = at - 8
        length, kind, version, self.family = struct.unpack_from("<IBBH", self.buffer, start)
        assert (length, kind, version) == (20 + 8 * len(COUNTERS), HELLO, 1)
        counters = self.buffer[at + 16 : start + 4 + length]
        self.buffer = self.buffer[start + 4 + length :]
        return counted(counters)

    def stats(self) -> dict[str, int]:
        self.send(frame(STATS))
        return counted(self.until(STATS))

    def words(self) -> str:
        self.relay.wait(PATIENCE)
        assert self.relay.stderr is not None
        return self.relay.stderr.read().decode()

    def bytes_read(self) -> int:
        """Count the bytes the relay has taken from its port (netlink's are not in this counter)."""
        text = Path("/proc", str(self.relay.pid), "io").read_text()
        return int(text.split("rchar:", 1)[1].split()[0])

    def state(self) -> str:
        """Return the letter of proc_pid_stat(5)."""
        stat = Path("/proc", str(self.relay.pid), "stat").read_text()
        return stat.rsplit(")", 1)[1].split()[0]

    def asleep(self) -> bool:
        return self.state() == "S"

    def netlink_sockets(self) -> int:
        """Count the relay's netlink sockets (inode numbers of proc_net_netlink against its fds)."""
        inodes = {
            line.split()[9] for line in Path("/proc/net/netlink").read_text().splitlines()[1:]
        }
        count = 0
        for fd in Path("/proc", str(self.relay.pid), "fd").iterdir():
            try:
                target = str(fd.readlink())
            except OSError:
                continue
            count += target.removeprefix("socket:[").rstrip("]") in inodes
        return count

    def hang_up(self) -> None:
        if self.master >= 0:
            os.close(self.master)
        self.master = -1

    def close(self) -> None:
        self.relay.kill()
        self.relay.wait()
        if self.relay.stderr is not None:
            self.relay.stderr.close()
        self.hang_up()
        os.close(self.slave)
        self.clock.close()


@pytest.fixture
def host(relay: Path) -> Iterator[Host]:
    it = Host(relay)
    yield it
    sound = it.relay.poll() != 99
    it.close()
    assert sound, "a sanitizer stopped the relay"


def frame(kind: int, body: bytes = b"") -> bytes:
    return struct.pack("<IB", 1 + len(body), kind) + body


def hello(nonce: int, version: int = 1) -> bytes:
    return struct.pack("<IBBH8sQ", 20, HELLO, version, 0, MAGIC, nonce)


def counted(data: bytes) -> dict[str, int]:
    assert len(data) == 8 * len(COUNTERS)
    return dict(zip(COUNTERS, struct.unpack(f"<{len(COUNTERS)}Q", data), strict=True))


def get_family(
    name: str = "nlctrl", sequence: int = 1, flags: int = NLM_F_REQUEST, kind: int = GENL_ID_CTRL
) -> bytes:
    """A request to generic netlink's controller; its length is no multiple of 4 by chance."""
    attribute = b""
    if name:
        value = name.encode() + b"\0"
        attribute = struct.pack("<HH", 4 + len(value), 2) + value
    body = struct.pack("<BBH", CTRL_GETFAMILY, 1, 0) + attribute
    return struct.pack("<IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def header(message: bytes) -> tuple[int, int, int, int, int]:
    """Return nlmsg_len, nlmsg_type, nlmsg_flags, nlmsg_seq, nlmsg_pid."""
    length, kind, flags, sequence, pid = struct.unpack_from("<IHHII", message)
    return length, kind, flags, sequence, pid


def error_of(body: bytes) -> tuple[int, str]:
    (number,) = struct.unpack_from("<i", body)
    return number, body[4:].decode()


# -- sessions


def test_greets_once_and_answers_hello(host: Host) -> None:
    kind, body = host.frame()
    assert kind == HELLO
    assert body[0] == 1
    assert body[3:11] == MAGIC
    assert body[11:19] == bytes(8), "a greeting has no nonce"
    host.settle()
    for _ in range(3):
        host.move_clock(10 * STALL)
        host.wake()
    host.collect()
    assert host.buffer == b"", "greeted again"
    counters = host.session()
    assert host.family == GENL_ID_CTRL
    assert counters["sessions"] == 1
    assert counters["to_kernel"] == 0


def test_a_serial_line_is_made_raw(relay: Path) -> None:
    host = Host(relay, raw=False)
    try:
        host.frame()  # the relay has opened the line
        every_byte = int.from_bytes(bytes(range(1, 9)), "little")
        controls = int.from_bytes(b"\x03\x04\r\n\x11\x13\x1c\x7f", "little")
        for nonce in (every_byte, controls):
            host.session(nonce)
        assert host.stats()["sessions"] == 2
        assert host.buffer == b"", "nothing comes back that the relay did not say"
    finally:
        host.close()


def test_message_reaches_the_kernel_and_its_answer_comes_back(host: Host) -> None:
    host.session()
    host.send(frame(NETLINK, get_family(sequence=4711)))
    answer = host.until(NETLINK)
    length, kind, _flags, sequence, _pid = header(answer)
    assert (length, kind, sequence) == (len(answer), GENL_ID_CTRL, 4711)
    assert answer[16] == CTRL_NEWFAMILY
    assert b"nlctrl\0" in answer
    stats = host.stats()
    assert stats["to_kernel"] == 1
    assert stats["to_host"] == 1


def test_kernel_errors_travel_without_the_request(host: Host) -> None:
    host.session()
    host.send(frame(NETLINK, get_family("no-such-family", sequence=7)))
    answer = host.until(NETLINK)
    length, kind, flags, sequence, _pid = header(answer)
    (number,) = struct.unpack_from("<i", answer, 16)
    assert (kind, sequence, number) == (NLMSG_ERROR, 7, -2)  # ENOENT
    assert flags & NLM_F_CAPPED
    assert length == 16 + 4 + 16, "NETLINK_CAP_ACK: only the request's header comes back"
    host.send(frame(NETLINK, get_family(sequence=8, flags=NLM_F_REQUEST | NLM_F_ACK)))
    assert header(host.until(NETLINK))[1] == GENL_ID_CTRL
    acknowledgement = host.until(NETLINK)
    assert header(acknowledgement)[1] == NLMSG_ERROR
    assert struct.unpack_from("<i", acknowledgement, 16) == (0,)


def test_with_the_counters_comes_what_the_relay_asks_itself(asking_relay: Path) -> None:
    host = Host(asking_relay, clock=False)
    try:
        host.session()
        for _ in range(3):
            host.send(frame(STATS))
            told = []
            while (got := host.frame())[0] == NETLINK:
                told.append(got[1])
            assert got[0] == STATS
            assert b"nlctrl\0" in b"".join(told)
            assert [header(one)[1] for one in told] == [GENL_ID_CTRL] * (len(told) - 1) + [
                NLMSG_DONE
            ]
            assert {header(one)[3] for one in told} == {0}
            # The dump is over: the host may have one of its own.
            host.send(frame(NETLINK, get_family("", 5, NLM_F_REQUEST | NLM_F_DUMP)))
            while header(one := host.until(NETLINK))[1] != NLMSG_DONE:
                assert header(one)[1] == GENL_ID_CTRL
        assert host.stats()["to_kernel"] == 3
    finally:
        host.close()


def test_many_messages_at_once_keep_their_order(host: Host) -> None:
    host.session()
    host.send(
        b"".join(frame(NETLINK, get_family("x" * (1 + n % 12), sequence=n)) for n in range(300))
    )
    assert [header(host.until(NETLINK))[3] for _ in range(300)] == list(range(300))
    stats = host.stats()
    assert stats["to_kernel"] == 300
    assert stats["send_errors"] == stats["overruns"] == stats["queue_full"] == 0


def test_dump_becomes_one_frame_per_message(host: Host) -> None:
    host.session()
    host.send(frame(NETLINK, get_family("", 9, NLM_F_REQUEST | NLM_F_DUMP)))
    count = 0
    while True:
        message = host.until(NETLINK)
        length, kind, flags, sequence, _pid = header(message)
        assert length == len(message)
        assert sequence == 9
        assert flags & NLM_F_MULTI
        if kind == NLMSG_DONE:
            break
        count += 1
    assert count >= 1


def test_stream_may_arrive_byte_by_byte(host: Host) -> None:
    host.session()
    host.settle()
    for value in frame(NETLINK, get_family(sequence=3)) + frame(STATS):
        host.send(bytes([value]))
        host.rest()
    assert header(host.until(NETLINK))[3] == 3
    assert counted(host.until(STATS))["to_kernel"] == 1


def test_new_hello_begins_a_new_netlink_socket(host: Host) -> None:
    host.session()
    host.send(frame(NETLINK, get_family(sequence=1)))
    first = header(host.until(NETLINK))[4]
    assert host.netlink_sockets() == 1
    assert host.session()["sessions"] == 2
    host.send(frame(NETLINK, get_family(sequence=2)))
    second = header(host.until(NETLINK))[4]
    assert host.netlink_sockets() == 1
    # The kernel gives the process's number to the first socket and another to the second while the
    # first is open; closed before, both get the same.
    assert first == second


def test_other_version_gets_an_error_and_no_session(host: Host) -> None:
    host.send(hello(5, version=2))
    number, text = error_of(host.until(ERROR))
    assert number == 93  # EPROTONOSUPPORT
    assert "version 1" in text
    assert host.netlink_sockets() == 0
    host.session()


# -- refusals


@pytest.mark.parametrize(
    ("message", "number"),
    [
        (get_family(kind=0), 1),  # NLMSG_NOOP
        (get_family(kind=20), 1),  # another family
        (get_family(kind=GENL_ID_CTRL + 1), 1),
        (get_family()[:-1], 22),  # shorter than nlmsg_len says
        (get_family() + b"\0", 22),  # longer
        (get_family() + get_family(kind=20), 22),  # another message hidden behind
        (b"short", 22),
        (b"", 22),
    ],
    ids=lambda value: f"{len(value)}-bytes" if isinstance(value, bytes) else str(value),
)
def test_only_whole_messages_of_the_family_pass(host: Host, message: bytes, number: int) -> None:
    host.session()
    host.send(frame(NETLINK, message))
    assert error_of(host.until(ERROR))[0] == number
    stats = host.stats()
    assert (stats["refused"], stats["to_kernel"], stats["bad_frames"]) == (1, 0, 0)
    host.send(frame(NETLINK, get_family(sequence=6)))
    assert header(host.until(NETLINK))[3] == 6


def test_nothing_passes_without_a_session(host: Host) -> None:
    host.until(HELLO)
    host.settle()
    host.send(frame(NETLINK, get_family()) * 3 + frame(STATS))
    host.rest()
    host.collect()
    assert host.buffer == b""
    counters = host.session()
    assert counters["to_kernel"] == 0
    assert counters["skipped_bytes"] == len(frame(NETLINK, get_family()) * 3 + frame(STATS))


# -- lost framing


@pytest.mark.parametrize(
    "nonsense",
    [
        struct.pack("<IB", 0, 0),
        struct.pack("<IB", 65537, NETLINK),
        struct.pack("<IB", 0xFFFFFFFF, NETLINK),
        struct.pack("<IB", 5, ERROR),
        struct.pack("<IB", 5, 255),
        frame(HELLO, b"not a hello at all"),
        frame(HELLO, b"nineteen bytes long"),
    ],
    ids=bytes.hex,
)
def test_nonsense_is_counted_and_hello_recovers(host: Host, nonsense: bytes) -> None:
    host.session()
    host.send(nonsense)
    assert error_of(host.until(ERROR))[0] == 71  # EPROTO
    greeting = host.until(HELLO)
    assert greeting[11:19] == bytes(8)
    assert host.netlink_sockets() == 0
    host.send(random.Random(1).randbytes(1000))
    counters = host.session()
    assert counters["bad_frames"] == 1
    assert counters["sessions"] == 2


def test_largest_frame_is_accepted(host: Host) -> None:
    host.session()
    message = get_family()[:16]
    body = message + bytes(65535 - len(message))
    body = struct.pack("<I", len(body)) + body[4:]
    host.send(frame(NETLINK, body))
    # The kernel has its own opinion of 65515 bytes of zeroes; the framing stands.
    host.until(NETLINK)
    stats = host.stats()
    assert (stats["bad_frames"], stats["to_kernel"]) == (0, 1)


def test_torn_frame_is_given_up_and_the_hello_behind_it_found(host: Host) -> None:
    host.session()
    # A medium that died in the middle of a frame, and the next one, before the port was seen shut.
    host.settle()
    host.send(frame(NETLINK, bytes(5000))[:100] + hello(77))
    host.rest()
    host.move_clock(STALL)
    host.wake()
    answer = host.until(HELLO)
    assert answer[11:19] == struct.pack("<Q", 77)
    stats = host.stats()
    assert (stats["stalls"], stats["sessions"]) == (1, 2)


def test_torn_frame_is_reported(relay: Path) -> None:
    host = Host(relay, clock=False)
    try:
        host.session()
        host.send(frame(NETLINK, bytes(5000))[:100])
        number, text = error_of(host.until(ERROR))
        assert number == 71  # EPROTO
        assert "incomplete" in text
        assert host.until(HELLO)[11:19] == bytes(8), "it greets again"
        assert host.session()["stalls"] == 1
    finally:
        host.close()


def test_patience_with_a_frame_begins_anew_with_every_piece(host: Host) -> None:
    host.session()
    host.settle()
    data = frame(NETLINK, get_family(sequence=12))
    for part in (data[:3], data[3:20], data[20:-1]):
        host.send(part)
        host.rest()
        host.move_clock(STALL - 1)
        host.wake()
    host.send(data[-1:])
    assert header(host.until(NETLINK))[3] == 12
    assert host.stats()["stalls"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_do_no_harm(host: Host, seed: int) -> None:
    choose = random.Random(seed)
    pieces = [
        lambda: choose.randbytes(choose.randrange(1, 400)),
        lambda: frame(NETLINK, get_family(sequence=choose.getrandbits(32))),
        lambda: frame(NETLINK, choose.randbytes(choose.randrange(60))),
        lambda: frame(choose.randrange(8), choose.randbytes(choose.randrange(40))),
        lambda: hello(choose.getrandbits(64), choose.choice([1, 1, 1, 2])),
        lambda: hello(choose.getrandbits(64))[: choose.randrange(24)],
        lambda: struct.pack(
            "<IB", choose.getrandbits(choose.randrange(1, 33)), choose.randrange(5)
        ),
        lambda: frame(STATS),
    ]
    host.until(HELLO)
    host.settle()
    for _ in range(40):
        host.send(b"".join(choose.choice(pieces)() for _ in range(choose.randrange(1, 40))))
        host.buffer = host.buffer[-200_000:]
    # A torn frame is given up first, and what lies in it may be the beginning of another, or of a
    # HELLO: HELLO is repeated, as PROTOCOL.md demands.
    for _attempt in range(4):
        host.rest()
        host.move_clock(STALL)
        host.wake()
        host.collect()
        host.buffer = b""
        host.send(hello(0xC0FFEE))
        host.rest()
        host.collect()
        if MAGIC + struct.pack("<Q", 0xC0FFEE) in host.buffer:
            break
    else:
        pytest.fail("the relay does not answer HELLO any more")
    host.buffer = b""
    host.session()
    host.send(frame(NETLINK, get_family(sequence=99)))
    assert header(host.until(NETLINK))[3] == 99
    assert host.relay.poll() is None


# -- queues


def test_host_that_does_not_read_costs_counted_drops(host: Host) -> None:
    host.session()
    # Each request brings an answer some six times as long; nobody reads, so the terminal's buffer
    # and then the relay's queue fill up.
    host.settle()
    for _ in range(3000):
        host.send(frame(NETLINK, get_family(sequence=1)), reading=False)
    host.rest()  # reading begins when every request has been answered or dropped
    got = 0
    stats = None
    host.send(frame(STATS))
    while stats is None:
        kind, body = host.frame()
        if kind == NETLINK:
            got += 1
            assert header(body)[0] == len(body), "frames stay whole"
        elif kind == STATS:
            stats = counted(body)
        if kind == NETLINK and got % 500 == 0:
            host.send(frame(STATS))  # the first request may have been dropped as well
    assert stats["to_kernel"] == 3000
    assert stats["queue_full"] > 0
    assert stats["to_host"] + stats["queue_full"] >= 3000
    assert stats["overruns"] == 0


# -- its life


def test_idle_relay_uses_no_time(host: Host) -> None:
    host.session()
    host.stats()
    host.quiet()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_ends(host: Host, number: signal.Signals) -> None:
    host.session()
    host.relay.send_signal(number)
    assert host.relay.wait(PATIENCE) == 0
    unprivileged = "small netlink buffer, hwsim needs CAP_NET_ADMIN"
    assert [line for line in host.words().splitlines() if unprivileged not in line] == []


def test_host_that_vanishes_costs_nothing(host: Host) -> None:
    host.session()
    assert host.netlink_sockets() == 1
    host.hang_up()
    wait_until(lambda: not host.netlink_sockets(), "the netlink socket stays open without a host")
    host.quiet()
    assert host.relay.poll() is None


def test_port_is_found_by_its_name(relay: Path, tmp_path: Path) -> None:
    ports, devices = tmp_path / "ports", tmp_path / "dev"
    ports.mkdir()
    devices.mkdir()
    master, slave = pty.openpty()
    tty.setraw(slave)
    for number, name in enumerate(("other.port", "thicket.hwsim.0"), 1):
        entry = ports / f"vport0p{number}"
        entry.mkdir()
        (entry / "name").write_text(name + "\n")
    (ports / "vport0p3").mkdir()  # a console has no name
    (devices / "vport0p2").symlink_to(os.ttyname(slave))
    environment = {**os.environ, "RELAY_PORTS": str(ports), "RELAY_DEV": str(devices)}
    process = subprocess.Popen([relay, "thicket.hwsim.0"], env=environment)
    try:
        readable, _, _ = select.select([master], [], [], PATIENCE)
        assert readable
        assert MAGIC in os.read(master, 4096)
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


def run(program: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return done.returncode, done.stderr


def test_reasons_not_to_start(real_relay: Path, relay: Path, tmp_path: Path) -> None:
    assert run(real_relay)[0] == 2
    assert run(real_relay, "a", "b")[0] == 2
    assert run(real_relay, "--help")[0] == 2
    status, words = run(real_relay, "thicket.hwsim.9")
    assert (status, "no virtio-serial port is named thicket.hwsim.9" in words) == (3, True)
    status, words = run(real_relay, "/dev/no-such-port")
    assert (status, "cannot open" in words) == (3, True)
    status, words = run(real_relay, str(tmp_path))
    assert (status, "cannot open" in words) == (5, True)


def test_kernel_without_hwsim_is_named(real_relay: Path) -> None:
    if has_family("MAC80211_HWSIM"):
        pytest.skip("this kernel has mac80211_hwsim loaded")
    master, slave = pty.openpty()
    try:
        status, words = run(real_relay, os.ttyname(slave))
    finally:
        os.close(master)
        os.close(slave)
    assert status == 4
    assert "the kernel has no MAC80211_HWSIM family: load the module" in words


def has_family(name: str) -> bool:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16) as netlink:
        netlink.send(get_family(name))
        return header(netlink.recv(8192))[1] == GENL_ID_CTRL


def test_installed_program_is_small(real_relay: Path, tmp_path: Path) -> None:
    stripped = tmp_path / "relay"
    subprocess.run(["strip", "-o", stripped, real_relay], check=True)
    assert stripped.stat().st_size < 32 * 1024


def test_counters_are_documented_in_order() -> None:
    text = (
        (SOURCE.parent / "PROTOCOL.md").read_text().partition("## Counters")[2].partition("## ")[0]
    )
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    documented = [
        row[2].strip(" `") for row in rows if row[1].strip().isdigit() and row[2].count("`") == 2
    ]
    assert documented == COUNTERS
