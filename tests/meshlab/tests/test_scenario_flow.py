# SPDX-License-Identifier: Apache-2.0
"""The generator of traffic, over this machine's loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from meshlab.scenario import flow
from meshlab.scenario.errors import StepError
from meshlab.scenario.traffic import Flowed, flowed


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "LATE", 0.3)


class Prompt:
    """In place of the modules socket, selectors and time: an end that answers in a millisecond, on
    a host that is never late.

    :param answered: tells whether a datagram of this number is answered.
    """

    AF_INET6 = SOCK_DGRAM = EVENT_READ = 0

    def __init__(self, answered: Callable[[int], bool]) -> None:
        self._answered = answered
        self._now = 1000.0
        self._answers: deque[tuple[float, bytes]] = deque()

    def socket(self, *_: int) -> Prompt:
        return self

    DefaultSelector = socket

    def __enter__(self) -> Prompt:
        return self

    def __exit__(self, *_: object) -> None: ...

    def setblocking(self, _: bool) -> None: ...

    def register(self, *_: object) -> None: ...

    def monotonic(self) -> float:
        return self._now

    def monotonic_ns(self) -> int:
        return round(self._now * 1e9)

    def sendto(self, data: bytes, _: object) -> None:
        if self._answered(flow.HEAD.unpack_from(data)[0]):
            self._answers.append((self._now + 0.001, data))

    def select(self, pause: float) -> bool:
        if self._answers and self._answers[0][0] <= self._now + pause:
            self._now = max(self._now, self._answers[0][0])
            return True
        self._now += pause
        return False

    def recv(self, _: int) -> bytes:
        return self._answers.popleft()[1]


def on_time(answered: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch) -> Flowed:
    """Return what becomes of 20 datagrams, one each 25 ms, of which some are answered."""
    prompt = Prompt(answered)
    with monkeypatch.context() as patched:
        for name in ("socket", "selectors", "time"):
            patched.setattr(flow, name, prompt)
        return sent(1)


def free_port() -> int:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def answering(answers: Callable[[int, bytes], list[bytes]]) -> Iterator[int]:
    """Answer datagrams in a thread; gets a datagram's number, gives what is sent back."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 0))

        def serve() -> None:
            while True:
                data, sender = sock.recvfrom(2048)
                if data == b"end":
                    return
                for each in answers(flow.HEAD.unpack_from(data)[0], data):
                    sock.sendto(each, sender)

        thread = threading.Thread(target=serve)
        thread.start()
        port = int(sock.getsockname()[1])
        try:
            yield port
        finally:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
                other.sendto(b"end", ("::1", port))
            thread.join()


def sent(port: int, seconds: float = 0.5, size: int = 100) -> Flowed:
    return flowed(json.dumps(flow.send("::1", port, 40, size, seconds)))


def test_both_ends_as_programs_as_on_a_node() -> None:
    port, program = free_port(), str(Path(flow.__file__))
    words = [sys.executable, "-S", "-E", program]
    with subprocess.Popen([*words, "answer", str(port), "600"], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"ready\n"
            command = [*words, "send", "::1", str(port), "40", "1400", "0.5"]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        finally:
            other.kill()
    found = flowed(told)
    assert (found.sent, found.answered, found.arrived) == (20, 20, 20)
    assert (found.loss, found.twice, found.disordered) == (0, 0, 0)
    assert 0 < found.median <= found.p95 <= found.slowest


def test_what_is_lost_and_what_comes_twice_is_counted() -> None:
    def answers(number: int, data: bytes) -> list[bytes]:
        return [] if number % 4 == 3 else [data, data] if number == 4 else [data]

    with answering(answers) as port:
        found = sent(port)
    assert (found.sent, found.answered, found.twice) == (20, 15, 1)
    assert found.loss == 25


def test_what_is_lost_between_two_answers_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on_time(lambda number: number not in (5, 6), monkeypatch)
    assert (found.sent, found.answered, found.slowest) == (20, 18, 1)
    assert found.outage == 3 / 40


def test_disorder_is_counted() -> None:
    held: list[bytes] = []

    def answers(number: int, data: bytes) -> list[bytes]:
        if number == 5:
            held.append(data)
            return []
        return [data, *held] if number == 7 else [data]

    with answering(answers) as port:
        found = sent(port)
    assert (found.answered, found.disordered) == (20, 1)


def test_without_an_answer_all_of_the_time_is_an_outage() -> None:
    with answering(lambda number, data: []) as port:
        found = sent(port)
    assert (found.answered, found.loss, found.median) == (0, 100, 0)
    assert found.outage >= 0.5


def test_an_end_without_answers_is_part_of_the_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    found = on_time(lambda number: number < 8, monkeypatch)
    assert found.answered == 8
    # The eighth was sent after seven pauses.
    assert found.outage == round(0.5 - 7 / 40 - 0.001, 3)


def test_short_datagrams_and_strange_ones_are_no_answers() -> None:
    with answering(lambda number, data: [b"x", data]) as port:
        assert sent(port, size=16).answered == 20


@pytest.mark.parametrize("text", ["", "ready", "[]", "null", "{}", '{"sent": 1}', '{"sent": "x"}'])
def test_a_sender_that_says_something_else_is_not_believed(text: str) -> None:
    with pytest.raises(StepError, match="the sender of the traffic said"):
        flowed(text)
