# SPDX-License-Identifier: Apache-2.0
"""Programs that build images: logs, failures, and what happens to them when a build ends early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import PATIENCE

from host.errors import CancelledError, HostError
from host.run import LOG_TAIL, Runner, tail


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has waited for yet (a zombie) does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_output_goes_to_the_log_and_to_the_listener(tmp_path: Path) -> None:
    lines: list[str] = []
    log = tmp_path / "log"
    runner = Runner()
    runner.run(["sh", "-c", "echo one; echo $X >&2"], log, what="x", env={"X": "two"})
    runner.run(["sh", "-c", "echo three; pwd"], log, what="x", cwd=tmp_path, on_line=lines.append)
    assert lines == ["three", str(tmp_path)]
    text = log.read_text()
    assert text.startswith("$ sh -c 'echo one; echo $X >&2'\none\ntwo\n$ sh")


def test_a_failure_says_what_and_shows_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(HostError) as caught:
        Runner().run(["sh", "-c", "seq 100; exit 7"], log, what="counting")
    text = str(caught.value)
    assert text.startswith("counting failed: sh ended with exit status 7.")
    assert "\n100\n" in text
    assert f"\n{100 - LOG_TAIL}\n" not in text
    assert text.endswith(f"The whole output is in {log}")


@pytest.mark.parametrize("nice", [0, 3])
def test_a_missing_program_is_named(tmp_path: Path, nice: int) -> None:
    with pytest.raises(HostError, match="no-such-program"):
        Runner(nice).run(["no-such-program"], tmp_path / "log", what="x")


def test_others_come_first(tmp_path: Path) -> None:
    lines: list[str] = []
    Runner(3).run(["nice"], tmp_path / "log", what="x", on_line=lines.append)
    assert lines == [str(min(os.nice(0) + 3, 19))]


def test_tail_of_no_file(tmp_path: Path) -> None:
    assert tail(tmp_path / "none") == ""


def test_cancel_ends_a_program_and_its_children(tmp_path: Path) -> None:
    runner = Runner()
    errors: list[BaseException] = []
    pids = tmp_path / "pids"

    def work() -> None:
        try:
            script = f"sleep 600 & echo $$ $! > {pids}.new; mv {pids}.new {pids}; wait"
            runner.run(["sh", "-c", script], tmp_path / "log", what="sleeping")
        except HostError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    until(pids.exists)
    shell, child = map(int, pids.read_text().split())
    assert alive(shell)
    assert alive(child)
    runner.cancel()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert isinstance(errors[0], CancelledError)
    until(lambda: not alive(shell) and not alive(child))
    with pytest.raises(CancelledError):
        runner.run(["true"], tmp_path / "log", what="too late")


def test_programs_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = (
        "import sys; from pathlib import Path; from host.run import Runner\n"
        f"Runner().run([sys.executable, '-c', {_SLEEPER!r}, {str(pids)!r}], "
        f"Path({str(tmp_path / 'log')!r}), what='x')"
    )
    builder = subprocess.Popen([sys.executable, "-c", program])
    until(pids.exists)
    pid = int(pids.read_text())
    assert alive(pid)
    os.kill(builder.pid, signal.SIGKILL)
    builder.wait(60)
    until(lambda: not alive(pid))


_SLEEPER = """
import os, sys, time
from pathlib import Path
new = Path(sys.argv[1] + ".new")
new.write_text(str(os.getpid()))
new.rename(sys.argv[1])
time.sleep(600)
"""
