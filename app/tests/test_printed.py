# SPDX-License-Identifier: Apache-2.0
"""What applications print reaches the log, and nothing else."""

from __future__ import annotations

import asyncio
import io
import logging
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE
from private_network import Network, in_private_network
from test_cluster import a_node

from thicket.applications.api import Application
from thicket.applications.service import Applications
from thicket.base import log, printed
from thicket.base.problems import Problems


class Log:
    """A log daemon: what it was sent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(0.1)
        self._closed = False
        self._found: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while not self._closed:
            try:
                text = self.socket.recv(2000).decode()
            except TimeoutError:
                continue
            priority, _, rest = text.partition(">")
            self._found.put(f"{priority[1:]} {rest.partition(': ')[2]}")

    def _say(self, text: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(text, str(self.path))

    def lines(self) -> list[str]:
        """Return what has come since the last question."""
        self._say(b"<1>: the end")
        found = []
        while (line := self._found.get(timeout=PATIENCE)) != "1 the end":
            found.append(line)
        return found

    def close(self) -> None:
        self._closed = True
        self._reader.join()
        self.socket.close()


@contextmanager
def taking(folder: Path) -> Iterator[Log]:
    """Let what is printed go to a log; no fixture, as the test runner sets streams after those."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    streams = sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__
    made = Log(folder / "log")
    handler = log.SyslogHandler("thicketd", str(folder / "log"))
    handler.addFilter(log.Limit())
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG)
    sys.__stdout__, sys.__stderr__ = io.StringIO(), io.StringIO()  # type: ignore[assignment, misc]
    printed.take()
    try:
        yield made
    finally:
        printed.give_back()
        handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__ = streams  # type: ignore[misc]
        made.close()


def test_lines_of_stdout_and_stderr_are_records_in_order(tmp_path: Path) -> None:
    with taking(tmp_path) as taken:
        logger = logging.getLogger("thicket.test")
        print("one", 1)
        logger.error("two")
        print("three\nfour\r\n\nfive", file=sys.stderr)
        sys.stdout.buffer.write("sechs ä".encode()[:-1])
        sys.stdout.buffer.write("ä\n".encode()[1:])
        assert taken.lines() == [
            "30 printed: one 1",
            "27 two",
            "28 printed: three",
            "28 printed: four",
            "28 printed: five",
            "30 printed: sechs ä",
        ]
        assert not sys.stdout.isatty()


def test_the_beginning_of_a_line_is_neither_lost_nor_late(tmp_path: Path) -> None:
    with taking(tmp_path) as taken:
        print("a beginning", end="")
        assert taken.lines() == []
        logging.getLogger("thicket.test").info("a record")
        assert taken.lines() == ["30 printed: a beginning", "30 a record"]
        print("and", end=" ")
        print("its end")
        assert taken.lines() == ["30 printed: and its end"]

        thread = threading.Thread(target=lambda: sys.stdout.write("of a thread"))
        thread.start()
        thread.join()
        print("own")
        assert taken.lines() == ["30 printed: own"]
        printed.sweep(3600.0)
        assert taken.lines() == []
        printed.sweep(0.0)
        assert taken.lines() == ["30 printed: of a thread"]
        print("x" * 10_000, end="")
        assert "".join(taken.lines()).count("x") == 2 * printed.LONGEST
        printed.give_back()
        assert "".join(taken.lines()).count("x") == 10_000 - 2 * printed.LONGEST


def test_lines_of_threads_do_not_mix(tmp_path: Path) -> None:
    with taking(tmp_path) as taken:
        begin = threading.Barrier(8)

        def write(number: int) -> None:
            begin.wait()
            for _ in range(10):
                for _ in range(5):
                    sys.stdout.write(f"{number}")
                sys.stdout.write("\n")

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lines = taken.lines()
        assert sorted(lines) == sorted(
            f"30 printed: {str(n) * 5}" for n in range(8) for _ in range(10)
        )


def test_threads_that_end_in_a_line_are_bounded(tmp_path: Path) -> None:
    with taking(tmp_path) as taken:
        for number in range(200):
            thread = threading.Thread(target=lambda n=number: sys.stdout.write(f"<{n}>"))
            thread.start()
            thread.join()
        stream = sys.stdout
        assert isinstance(stream, printed.Printed)
        assert len(stream._begun) <= 65
        printed.sweep(0.0)
        text = "".join(line.removeprefix("30 ") for line in taken.lines())
        assert all(f"<{number}>" in text for number in range(200))


def test_a_log_that_fails_is_no_recursion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with taking(tmp_path) as taken:

        def fail(*_: object) -> None:
            print("the log fails")
            raise ValueError("no log")

        monkeypatch.setattr(log.SyslogHandler, "_line", fail)
        print("a line")
        logging.getLogger("thicket.test").error("a record")
        sys.stderr.write("another\n")
        assert taken.lines() == []
        aside = sys.__stderr__.getvalue() + sys.__stdout__.getvalue()  # type: ignore[union-attr]
        assert aside.count("could not be logged: ValueError") >= 3
        assert aside.count("the log fails") == 3
        monkeypatch.undo()


def test_without_a_log_daemon_lines_go_to_the_real_stderr(tmp_path: Path) -> None:
    with taking(tmp_path):
        (tmp_path / "log").unlink()
        print("a line")
        assert "printed: a line\n" in sys.__stderr__.getvalue()  # type: ignore[union-attr]
        sys.__stderr__.close()  # type: ignore[union-attr]
        print("nobody can hear this")


def test_a_storm_of_lines_is_limited_and_counted(tmp_path: Path) -> None:
    with taking(tmp_path) as taken:
        for number in range(1000):
            print(number)
        assert len(taken.lines()) == printed.BURST


def test_programs_are_started_as_before(tmp_path: Path) -> None:
    with taking(tmp_path), (tmp_path / "console").open("w") as console:
        stream = sys.stdout
        assert isinstance(stream, printed.Printed)
        stream.original = console
        subprocess.run(["echo", "of a program"], stdout=sys.stdout, check=True)
        assert (tmp_path / "console").read_text() == "of a program\n"
        stream.original = None
        with pytest.raises(io.UnsupportedOperation):
            sys.stdout.fileno()


def test_failures_of_threads_are_logged(tmp_path: Path) -> None:
    with taking(tmp_path) as taken:
        thread = threading.Thread(target=lambda: dict[int, int]()[1])
        hook, threading.excepthook = threading.excepthook, threading.__excepthook__
        try:
            thread.start()
            thread.join()
        finally:
            threading.excepthook = hook
        text = "\n".join(taken.lines())
        assert "28 printed: KeyError: 1" in text


@in_private_network
async def test_the_lines_of_an_application_have_its_name(network: Network) -> None:
    class Talking(Application):
        async def start(self) -> None:
            self.node.export("talk.plain")(self.talk)
            self.node.export("talk.thread", thread=True)(self.talk)
            print("starts")

        async def run(self) -> None:
            await asyncio.to_thread(print, "of a thread")
            await asyncio.Event().wait()

        def talk(self) -> None:
            print("is called")

    lines: list[tuple[int, str]] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append((record.levelno, record.getMessage()))

    logging.getLogger("thicket.base.printed").addHandler(Kept())
    logging.getLogger().setLevel(logging.INFO)
    printed.take()
    async with a_node(network, "a", 1) as a:
        applications = Applications(a, {}, Problems(lambda *_: None), {"talking": lambda: Talking})
        running = asyncio.create_task(applications.run())
        end = time.monotonic() + PATIENCE
        while len(lines) < 2:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        await a.call(a.name, "talk.plain", timeout=PATIENCE)
        await a.call(a.name, "talk.thread", timeout=PATIENCE)
        running.cancel()
        await asyncio.wait({running})
    print("nobody's")
    printed.give_back()
    name = "application talking: "
    expected: Any = ["starts", "of a thread", "is called", "is called"]
    assert lines == [
        *((logging.INFO, name + line) for line in expected),
        (logging.INFO, "printed: nobody's"),
    ]
