# SPDX-License-Identifier: Apache-2.0
"""A node's root shell on its serial console, as a way to the node's enrolment agent.

The console (``[access] console = true``) is a serial adapter here, or a simulated node's socket.
The shell is found by letting it do a sum, which no echo can; it is told to start the agent, and
then question and answer go to and fro as ``identity.frames`` has them. The standard library's
``termios`` does all that is needed; pyserial would bring Windows, which has no part in this.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import socket
import stat
import termios
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from authority.remote_bus import ANSWER_TIME
from thicket.base import jsonlines
from thicket.identity.bus import BusFaultError
from thicket.identity.console_frames import (
    AGAIN,
    ANSWER,
    END,
    PART,
    PART_SIZE,
    QUESTION,
    Frame,
    Lines,
    damaged,
    unpack,
)

AGENT: Final = "python3 -m thicket.trust.agent"

SHELL_TIME: Final = 60.0
"""Seconds until a shell that does not answer is given up. On a busy processor it is slow."""

LOGIN_TIME: Final = 10.0
"""Seconds until it is given up where a login is asked for."""

SHELL_WAIT, LONGEST_SHELL_WAIT = 2.0, 16.0
"""Seconds until a shell is asked again, doubled each time. What it has not read by then is lost, as
the ^C before the next question empties the terminal."""

START_TIME: Final = 120.0
"""Seconds that the agent may take to start; an emulated node is slow."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 4.0
"""Seconds until a question is repeated, doubled each time. Early repetition costs only the line."""


class EndedError(BusFaultError):
    """The agent has ended; the text has what was heard before."""


class Console:
    """A ``Channel`` (``authority.remote_bus``) to the agent that it starts in a shell.

    :ivar name: the path of the console.
    """

    def __init__(
        self,
        path: str,
        *,
        bus: str | None = None,
        baud: int = 115200,
        agent: str = AGENT,
        shell_time: float = SHELL_TIME,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Find the shell and start the agent there.

        :param path: a serial port, or the socket of a simulated node.
        :param bus: the device of the node that the agent serves, or None.
        :param baud: speed of a serial port.
        :param shell_time: seconds until a shell that does not answer is given up.
        :raises BusFaultError: when there is no answer; the text says what to look at.
        """
        self.name = path
        self._clock = clock
        self._session = secrets.token_hex(2)
        self._number = 0
        self._heard: list[str] = []
        self._ended: str | None = None
        self._descriptor, self._restore = _open(path, baud)
        self._lines = Lines(self._descriptor, clock=clock)
        try:
            self._find_shell(shell_time)
            try:
                self._start(agent, bus)
            except EndedError:  # the line was noisy when the command went over it, perhaps
                self._find_shell(shell_time)
                self._start(agent, bus)
        except BaseException:
            self.close()
            raise

    # -- the shell

    def _find_shell(self, seconds: float) -> None:
        self._ended = None
        begin = self._clock()
        deadline, wait = begin + seconds, SHELL_WAIT
        interrupt = b""
        wanted: list[bytes] = []  # the answer to an earlier question may come late
        while True:
            # The end, for an agent that somebody left here; ^U, for what somebody began to type;
            # from the second time on ^C, for a program that somebody left running.
            one, two = secrets.randbelow(10**6), secrets.randbelow(10**6)
            wanted.append(f"thicket-{one + two}-shell".encode())
            self._send(
                Frame(END, self._session, 0).pack()
                + interrupt
                + b"\x15\n"
                + f" echo thicket-$(({one}+{two}))-shell\n".encode()
            )
            until = min(deadline, self._clock() + wait)
            while (line := self._line(until)) is not None:
                if any(answer in line for answer in wanted):
                    return
                self._hear(line)
            now = self._clock()
            login = now >= begin + min(seconds, LOGIN_TIME) and self._login_asked()
            if login or now >= deadline:
                raise BusFaultError(self._no_shell())
            interrupt = b"\x03"
            wait = min(2 * wait, LONGEST_SHELL_WAIT)

    def _login_asked(self) -> bool:
        return any("login:" in text for text in self._heard[-3:])

    def _no_shell(self) -> str:
        self._hear(self._lines.rest())
        heard = " | ".join(self._heard[-3:])
        if "login:" in heard:
            return (
                f"{self.name}: a login is asked for there; on a node with [access] console = true "
                "a root shell answers"
            )
        if heard:
            return f"{self.name}: no shell answers there, but: {heard}"
        return (
            f"{self.name}: nothing answers. Is the node on, does its thicket.toml have "
            "[access] console = true, are RX and TX crossed and GND connected, and is no other "
            "program at this console?"
        )

    def _start(self, agent: str, bus: str | None) -> None:
        one, two = secrets.randbelow(10**6), secrets.randbelow(10**6)
        self._ended = f"thicket-{one + two}-ended"
        self._heard.clear()
        self._send(
            f" {agent} --console {self._session}{' ' + bus if bus else ''}; "
            f"echo thicket-$(({one}+{two}))-ended\n".encode()
        )
        answer = self.ask({"do": "hello"}, START_TIME)
        if "version" not in answer:
            raise BusFaultError(f"{self.name}: not an agent of Thicket's: {answer}")

    # -- questions

    def ask(self, request: dict[str, Any], seconds: float = ANSWER_TIME) -> dict[str, Any]:
        """See ``Channel``."""
        text = jsonlines.pack(request)[:-1]  # a frame has an end of its own
        parts = [text[at : at + PART_SIZE] for at in range(0, len(text), PART_SIZE)]
        for part in parts[:-1]:
            self._exchange(PART, part, seconds)
        said = self._exchange(QUESTION, parts[-1], seconds)
        try:
            return jsonlines.unpack(said)
        except ValueError as error:
            raise BusFaultError(f"{self.name}: not an answer of an agent: {error}") from None

    def _exchange(self, kind: str, payload: bytes, seconds: float) -> bytes:
        self._number = self._number % 255 + 1
        question = Frame(kind, self._session, self._number, payload).pack()
        deadline, wait = self._clock() + seconds, FIRST_WAIT
        while True:
            self._send(question)
            until = min(deadline, self._clock() + wait)
            while (line := self._line(until)) is not None:
                frame = unpack(line)
                if frame is None:
                    self._hear(line)
                    if damaged(line):
                        break
                elif frame.session == self._session:
                    if (frame.kind, frame.number) == (ANSWER, self._number):
                        return frame.payload
                    if frame.kind == AGAIN:
                        break
            if self._clock() >= deadline:
                raise BusFaultError(
                    f"{self.name}: no answer within {seconds:g} s"
                    + (f"; the last that was heard: {self._heard[-1]}" if self._heard else "")
                )
            wait = min(2 * wait, LONGEST_WAIT)

    def _hear(self, line: bytes) -> None:
        text = "".join(c for c in line.decode(errors="replace") if c.isprintable()).strip()
        if text and not damaged(line):
            self._heard = [*self._heard[-9:], text[:200]]
        if self._ended is not None and self._ended in text:
            said = [
                heard for heard in self._heard if self._ended not in heard and "$((" not in heard
            ]
            words = " | ".join(said[-3:]) or "silently"
            self._ended = None
            raise EndedError(f"{self.name}: the agent on the node has ended: {words}")

    # -- bytes

    def _line(self, deadline: float) -> bytes | None:
        try:
            return self._lines.next(deadline)
        except (EOFError, OSError) as error:
            raise BusFaultError(
                f"{self.name}: the console is gone ({getattr(error, 'strerror', None) or 'closed'})"
            ) from None

    def _send(self, data: bytes) -> None:
        deadline = self._clock() + ANSWER_TIME
        while data:
            wait = max(0.0, deadline - self._clock())
            _, ready, _ = select.select([], [self._descriptor], [], wait)
            if not ready:
                raise BusFaultError(f"{self.name}: it takes nothing (flow control?)")
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise BusFaultError(
                    f"{self.name}: the console is gone ({error.strerror})"
                ) from None

    def close(self) -> None:
        """End the agent, so that the shell is a person's again."""
        if self._descriptor < 0:
            return
        with contextlib.suppress(BusFaultError):
            for _ in range(3 if self._ended is not None else 0):
                self._send(Frame(END, self._session, 0).pack())
                until = self._clock() + 2.0
                with contextlib.suppress(BusFaultError):  # how _hear says that it has ended
                    while (line := self._line(until)) is not None:
                        self._hear(line)
                    continue
                break
        self._restore()
        os.close(self._descriptor)
        self._descriptor = -1


def _open(path: str, baud: int) -> tuple[int, Callable[[], None]]:
    """Return a descriptor of the console, and what puts its settings back."""
    try:
        if stat.S_ISSOCK(Path(path).stat().st_mode):
            return _connect(path), lambda: None
        descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BusFaultError(f"{path}: {error.strerror or error}") from None
    try:
        before = termios.tcgetattr(descriptor)
        speed = getattr(termios, f"B{baud}", None)
        if speed is None:
            raise BusFaultError(f"{path}: {baud} is no speed of a serial port")
        # One reader only: two would each get half of what comes.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.ioctl(descriptor, termios.TIOCEXCL)
        tty.setraw(descriptor, termios.TCSANOW)
        settings = termios.tcgetattr(descriptor)
        settings[2] &= ~(termios.PARENB | termios.CSTOPB | termios.CRTSCTS | termios.HUPCL)
        settings[2] |= termios.CS8 | termios.CREAD | termios.CLOCAL
        settings[4] = settings[5] = speed
        termios.tcsetattr(descriptor, termios.TCSANOW, settings)
        termios.tcflush(descriptor, termios.TCIFLUSH)
    except BlockingIOError:
        os.close(descriptor)
        raise BusFaultError(f"{path} is in use by another program") from None
    except termios.error as error:
        os.close(descriptor)
        raise BusFaultError(f"{path} is no serial port: {error.args[-1]}") from None
    except BusFaultError:
        os.close(descriptor)
        raise

    def restore() -> None:
        with contextlib.suppress(OSError, termios.error):
            fcntl.ioctl(descriptor, termios.TIOCNXCL)
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)

    return descriptor, restore


def _connect(path: str) -> int:
    # A simulator's path may be longer than the address of a socket can be (unix(7): 108 bytes).
    folder = os.open(Path(path).parent, os.O_PATH | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.connect(f"/proc/self/fd/{folder}/{Path(path).name}")
            line.setblocking(False)
            return line.detach()
    finally:
        os.close(folder)
