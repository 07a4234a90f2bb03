# SPDX-License-Identifier: Apache-2.0
"""Ends a program that a person, the system, or a closed terminal stops: nothing half-made stays.

The first signal becomes an exception, so that everything that cleans up does. Those that follow
change nothing: who presses Ctrl-C twice does not interrupt the cleaning up.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    import types

T = TypeVar("T")

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WORDS: Final = {
    signal.SIGINT: "stopped by Ctrl-C",
    signal.SIGTERM: "stopped by SIGTERM",
    signal.SIGHUP: "stopped, as its terminal was closed",
}


class Stopped(KeyboardInterrupt):
    """A signal has ended the work; the text says which."""

    def __init__(self, number: int) -> None:
        super().__init__(_WORDS[signal.Signals(number)])
        self.number = number

    @property
    def status(self) -> int:
        """The exit status, as shells have it: 130 for Ctrl-C."""
        return 128 + self.number


class _Course:
    """What has come so far.

    :ivar held: how many blocks put signals off.
    :ivar waiting: the signal that was put off; 0 for none.
    :ivar over: whether a signal has ended the work.
    """

    def __init__(self) -> None:
        self.held = 0
        self.waiting = 0
        self.over = False

    def handle(self, number: int, _frame: types.FrameType | None) -> None:
        """Take a signal."""
        self.waiting = self.waiting or number
        self.end()

    def end(self) -> None:
        """Raise what has come, unless it is put off or was raised."""
        if self.waiting and not self.held and not self.over:
            self.over = True
            raise Stopped(self.waiting)


_courses = [_Course()]
"""The one in force is the last one."""


@contextmanager
def stopping() -> Iterator[None]:
    """Have signals that stop a program raise ``Stopped`` in the block; those that are ignored
    already, as below nohup, stay so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    course = _Course()
    _courses.append(course)
    handlers: dict[int, Any] = {}
    try:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                handlers[number] = signal.signal(number, course.handle)
        yield
    finally:
        for installed, handler in handlers.items():
            signal.signal(installed, handler)
        _courses.remove(course)


@contextmanager
def held() -> Iterator[None]:
    """Put signals off to the end of the block, which is short. Only the main thread gets any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    course = _courses[-1]
    course.held += 1
    try:
        yield
    finally:
        course.held -= 1
        course.end()


@contextmanager
def temporary(prefix: str, folder: Path | None = None) -> Iterator[Path]:
    """Give a folder that is removed with all that is in it, whatever ends the block.

    :param folder: that it is made in; by default where the system has such folders.
    """
    made = ""
    try:
        with held():
            made = tempfile.mkdtemp(prefix=prefix, dir=folder)
        yield Path(made)
    finally:
        if made:
            with held():
                shutil.rmtree(made, ignore_errors=True)


def run(
    words: Sequence[str | Path], *, timeout: float, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program and return what it said; whatever ends the wait ends the program, also a
    signal that comes while it is started.

    :param timeout: in seconds.
    :raises subprocess.TimeoutExpired: it has not ended by then.
    :raises OSError: it cannot be started.
    """
    program = None
    try:
        with held():
            program = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
            )
        said, complaint = program.communicate(timeout=timeout)
    except BaseException:
        if program is not None:
            program.kill()
            with program:  # waits for it
                pass
        raise
    return subprocess.CompletedProcess(words, program.returncode, said, complaint)


def apart(work: Callable[[], T]) -> T:
    """Do work in a thread of its own: a signal is answered even in the middle of a library's call,
    which is left alone then, and ends with the program."""
    results: list[T] = []
    faults: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=run, name="apart", daemon=True)
    thread.start()
    thread.join()
    if faults:
        raise faults[0]
    return results[0]
