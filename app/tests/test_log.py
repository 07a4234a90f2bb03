# SPDX-License-Identifier: Apache-2.0
"""thicket.log: what reaches the log daemon, and what happens without one."""

import logging
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from patience import PATIENCE

from thicket.base import log


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of its own, so that the test runner's handlers are left alone."""
    made = logging.getLogger("test-of-thicket-log")
    made.propagate = False
    made.setLevel(logging.DEBUG)
    yield made
    for handler in made.handlers[:]:
        made.removeHandler(handler)
        handler.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(str(tmp_path / "log"))
        s.settimeout(PATIENCE)
        yield s


def attach(logger: logging.Logger, path: Path, **limit: float) -> log.SyslogHandler:
    handler = log.SyslogHandler("thicketd", str(path))
    handler.prefix = "thicketd[7]: "
    handler.addFilter(log.Limit(**limit))  # type: ignore[arg-type]
    logger.addHandler(handler)
    return handler


def test_priority_and_tag(logger: logging.Logger, daemon: socket.socket, tmp_path: Path) -> None:
    attach(logger, tmp_path / "log")
    logger.warning("signal %d dBm", -70)
    # RFC 5424 6.2.1: daemon (3) * 8 + warning (4)
    assert daemon.recv(2000) == b"<28>thicketd[7]: signal -70 dBm"
    logger.debug("a")
    logger.error("b")
    assert daemon.recv(2000)[:4] == b"<31>"
    assert daemon.recv(2000)[:4] == b"<27>"


def test_an_exception_is_one_datagram_for_each_line(
    logger: logging.Logger, daemon: socket.socket, tmp_path: Path
) -> None:
    attach(logger, tmp_path / "log")
    try:
        raise ValueError("of no use")
    except ValueError:
        logger.exception("failed")
    lines = [daemon.recv(2000).decode() for _ in range(2)]
    assert lines[0].endswith("failed")
    while "of no use" not in lines[-1]:
        lines.append(daemon.recv(2000).decode())
    assert all(line.startswith("<27>thicketd[7]: ") for line in lines)


def test_control_characters_and_length(
    logger: logging.Logger, daemon: socket.socket, tmp_path: Path
) -> None:
    attach(logger, tmp_path / "log")
    words = " ".join(f"{number}€" for number in range(700))
    logger.info("name \x1b[31m%s", words)
    logger.info("more")
    pieces = []
    while (data := daemon.recv(20000)) != b"<30>thicketd[7]: more":
        assert b"\x1b" not in data
        assert len(data) <= 900
        pieces.append(data.decode().removeprefix("<30>thicketd[7]: "))
    assert "".join(pieces).endswith(words), "a long line goes on in the next datagram"


def test_a_line_without_end_is_cut(
    logger: logging.Logger, daemon: socket.socket, tmp_path: Path
) -> None:
    attach(logger, tmp_path / "log")
    logger.info("%s", "€" * 100_000)
    pieces = [daemon.recv(20000) for _ in range(8)]
    assert max(map(len, pieces)) <= 900
    text = "".join(piece.decode().removeprefix("<30>thicketd[7]: ") for piece in pieces)
    shown, more = text.split(" (and ")
    assert len(shown) > 2000
    assert 0 <= 300_000 - len(shown.encode()) - int(more.split()[0]) < 64


def test_without_a_log_daemon_stderr_has_it_and_a_new_one_is_found(
    logger: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attach(logger, tmp_path / "log")
    logger.info("one")
    assert capsys.readouterr().err == "thicketd[7]: one\n"
    for round_number in range(2):  # the log daemon is restarted once
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.bind(str(tmp_path / "log"))
            s.settimeout(PATIENCE)
            logger.info("round %d", round_number)
            assert s.recv(100).endswith(b"round %d" % round_number)
        (tmp_path / "log").unlink()
    assert capsys.readouterr().err == ""


def test_repetitions_are_limited_and_counted(
    logger: logging.Logger, daemon: socket.socket, tmp_path: Path
) -> None:
    attach(logger, tmp_path / "log", burst=3, window=60.0)
    for n in range(50):
        logger.info("again %d", n)
    logger.info("something else")
    for n in range(3):
        assert daemon.recv(100).endswith(b"again %d" % n)
    assert daemon.recv(100).endswith(b"something else")
    record = logger.makeRecord(logger.name, logging.INFO, "", 0, "again %d", (50,), None)
    record.created += 61  # a minute later
    logger.handle(record)
    assert daemon.recv(100).endswith(b"again 50 (47 like this not logged)")


def test_the_memory_of_repetitions_is_bounded() -> None:
    limit = log.Limit()
    for n in range(10 * limit.KINDS):
        record = logging.LogRecord("n", logging.INFO, "", 0, f"message {n}", None, None)
        assert limit.filter(record)
    assert len(limit._seen) <= limit.KINDS


def test_setup_replaces_handlers_and_sets_the_level(tmp_path: Path) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    flags = logging._srcfile, logging.logThreads, logging.logProcesses, logging.logMultiprocessing
    try:
        log.setup("warning", path=str(tmp_path / "log"))
        assert [type(h) for h in root.handlers] == [log.SyslogHandler]
        assert root.level == logging.WARNING
        log.set_level("debug")
        assert root.level == logging.DEBUG
        assert logging.getLogger("asyncio").level == logging.INFO
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        (
            logging._srcfile,
            logging.logThreads,
            logging.logProcesses,
            logging.logMultiprocessing,
        ) = flags


def test_lines_wait_for_a_log_daemon_that_reads(logger: logging.Logger, tmp_path: Path) -> None:
    """Its queue has room for some ten lines, and a traceback has more."""
    found: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(str(tmp_path / "log"))
        s.settimeout(PATIENCE)
        attach(logger, tmp_path / "log")
        reader = threading.Thread(target=lambda: found.extend(s.recv(100) for _ in range(500)))
        reader.start()
        logger.info("\n".join(f"line {number}" for number in range(500)))
        reader.join(PATIENCE)
    assert [line.rpartition(b" ")[2] for line in found] == [b"%d" % n for n in range(500)]


def test_a_log_daemon_that_stands_still_is_waited_for_once(
    logger: logging.Logger, daemon: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def wait(_r: object, _w: object, _x: object, seconds: float) -> tuple[list[int], ...]:
        waits.append(seconds)
        return [], [], []

    monkeypatch.setattr(select, "select", wait)
    attach(logger, tmp_path / "log")
    logger.info("\n".join(f"line {number}" for number in range(500)))
    assert waits == [log._PATIENCE]
    monkeypatch.undo()
    daemon.setblocking(False)
    kept = 0
    with suppress(BlockingIOError):
        while daemon.recv(100):
            kept += 1
    logger.info("awake")
    assert daemon.recv(100).endswith(b"(%d lines were lost) awake" % (500 - kept))
    logger.info("again")
    assert daemon.recv(100).endswith(b"thicketd[7]: again")
