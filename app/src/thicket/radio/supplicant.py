# SPDX-License-Identifier: Apache-2.0
"""The wpa_supplicant process: started, watched, stopped, and adopted.

It outlives the daemon on purpose: when the daemon dies and is started again, the mesh goes on
forwarding, and the new daemon takes over the process if it runs with exactly the configuration
that the daemon would give it.
"""

import asyncio
import contextlib
import logging
import os
import select
import signal
import subprocess
from collections.abc import Callable

from thicket.base.errors import CodedError
from thicket.base.files import read, remove, write_atomically
from thicket.base.patience import Allowance, wait_for
from thicket.radio.hang import Doing, doing, facts
from thicket.radio.wpa import Control, ControlError, Event

log = logging.getLogger(__name__)

_SOCKET_SECONDS = 15.0
_ADOPT_SECONDS = 3.0
_TERMINATE_SECONDS = 4.0
_KILL_SECONDS = 3.0
_TAIL_LINES = 4


class SupplicantError(CodedError):
    """wpa_supplicant cannot be run; ``code`` is missing, start or busy."""


def start_time(pid: int) -> str | None:
    """When a process was started, in the kernel's clock ticks.

    Number and start time together name a process for ever.

    :returns: None when there is no such process.
    """
    fields = facts(pid)
    return fields[19] if fields else None  # field 22


class Process:
    """A running process, child or not.

    :param on_exit: is called once, when it has ended.
    :param child: what it was started as, if it is a child.
    :raises ProcessLookupError: there is no such process.
    :ivar status: as it ended; None while it runs, and of a process that is no child.
    :ivar ended: set when it has ended.
    """

    def __init__(
        self, pid: int, on_exit: Callable[[], None], child: "subprocess.Popen[bytes] | None" = None
    ) -> None:
        self.pid = pid
        self.status: int | None = None
        self.ended = asyncio.Event()
        self._child = child
        self._on_exit = on_exit
        self._pidfd = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._exited)

    def _exited(self) -> None:
        if self._child is not None:
            self.status = self._child.poll()
        self.release()
        self.ended.set()
        self._on_exit()

    def release(self) -> None:
        """Stop watching; the process goes on."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    @property
    def running(self) -> bool:
        """Whether it still runs: False once it has ended, noticed by the event loop or not."""
        return self._pidfd >= 0 and not select.select([self._pidfd], [], [], 0)[0]

    def doing(self) -> Doing | None:
        """What it does, see :func:`doing`."""
        return doing(self.pid)

    async def end(self) -> None:
        """Terminate it; kill it when it does not end."""
        for number, seconds in (
            (signal.SIGTERM, _TERMINATE_SECONDS),
            (signal.SIGKILL, _KILL_SECONDS),
        ):
            if self._pidfd < 0:
                return
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
                # one that somebody has stopped takes the first signal when it goes on
                signal.pidfd_send_signal(self._pidfd, signal.SIGCONT)
            await wait_for(self.ended, seconds)
        if not self.ended.is_set():
            log.error("process %d cannot be killed", self.pid)
            self.release()


class Supplicant:
    """wpa_supplicant for one interface.

    :param directory: where its files are.
    :param on_event: is called with its events.
    :param on_exit: is called when it ends by itself.
    :ivar restarts: how often it was started again.
    :ivar adopted: the process was started by a former daemon.
    """

    def __init__(
        self,
        directory: str,
        on_event: Callable[[Event], None],
        on_exit: Callable[[], None],
        program: str = "wpa_supplicant",
        driver: str = "nl80211",
    ) -> None:
        self.directory = directory
        self.control_directory = f"{directory}/wpa"
        self.restarts = 0
        self.adopted = False
        self._program = program
        self._driver = driver
        self._on_event = on_event
        self._on_exit = on_exit
        self._starts = 0
        self._stopping = False
        self._process: Process | None = None
        self._control: Control | None = None
        self._config_path = f"{directory}/wpa_supplicant.conf"
        self._state_path = f"{directory}/supplicant.state"
        self._log_path = f"{directory}/wpa_supplicant.log"

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and not process.ended.is_set() else None

    @property
    def control(self) -> Control:
        """The control socket.

        :raises ControlError: wpa_supplicant does not run.
        """
        if self._control is None:
            raise ControlError("wpa_supplicant is not running")
        return self._control

    def _identity(self, ifindex: int, interface: str, pid: int) -> str:
        return f"{pid} {start_time(pid)} {ifindex} {interface}"

    async def adopt(self, interface: str, ifindex: int, configuration: str) -> bool:
        """Go on with the process that runs for this interface with this configuration: our own,
        or one that a former daemon left.

        :returns: False when there is none, or it does not answer.
        """
        state = read(self._state_path)
        first = (state or "").split(" ", 1)[0]
        if not first.isdecimal():
            return False
        pid = int(first)
        if (
            state != self._identity(ifindex, interface, pid)
            or read(self._config_path) != configuration.strip()
        ):
            return False
        if self._runs() and self.pid == pid and self._control is not None:
            try:
                await self._control.attach()
                return True
            except ControlError as error:
                log.warning("wpa_supplicant (process %d) does not answer: %s", pid, error)
                await self.stop()
                return False
        try:
            self._process = Process(pid, self._exited)
        except (ProcessLookupError, PermissionError):
            return False
        control = self._new_control(interface, self._process)
        try:
            await control.open(_ADOPT_SECONDS, lambda: not self._runs())
        except ControlError as error:
            log.warning("cannot adopt wpa_supplicant (process %d): %s", pid, error)
            control.close()
            await self.stop()
            return False
        self._control = control
        self.adopted = True
        self._starts += 1
        return True

    def reconfigured(self, configuration: str) -> None:
        """Note what the running process was told at its control socket, so that the next daemon
        takes it over, or starts it anew with the same.

        :raises OSError: it cannot be written.
        """
        write_atomically(self._config_path, configuration.encode(), mode=0o600, durable=False)

    def _new_control(self, interface: str, process: Process) -> Control:
        return Control(f"{self.control_directory}/{interface}", self._on_event, process.doing)

    def _runs(self) -> bool:
        return self._process is not None and self._process.running

    async def start(self, interface: str, ifindex: int, configuration: str) -> None:
        """Start a new process.

        :raises SupplicantError: it cannot be started, or does not answer.
        """
        await self.stop()
        await self._end_stray(interface)
        if self._starts:
            self.restarts += 1
        self._starts += 1
        self.adopted = False
        try:
            os.makedirs(self.directory, mode=0o755, exist_ok=True)
            write_atomically(self._config_path, configuration.encode(), mode=0o600, durable=False)
            child = self._spawn(interface)
        except FileNotFoundError:
            raise SupplicantError(
                "missing",
                f"{self._program} is not installed: the mesh needs wpa_supplicant, built with mesh "
                "support",
            ) from None
        except OSError as error:
            raise SupplicantError("start", f"cannot start {self._program}: {error}") from None
        self._process = Process(child.pid, self._exited, child)
        identity = self._identity(ifindex, interface, child.pid)
        write_atomically(self._state_path, f"{identity}\n".encode(), durable=False)
        control = self._new_control(interface, self._process)
        try:
            await control.open(_SOCKET_SECONDS, lambda: not self._runs())
        except ControlError as error:
            control.close()
            exited = not self._runs()
            await self.stop()
            said = self.last_words()
            if exited:
                reason = f"wpa_supplicant ended at once{said}"
            else:
                reason = f"wpa_supplicant hangs at its start: {error}{said}"
            raise SupplicantError("start", reason) from None
        self._control = control

    def _spawn(self, interface: str) -> "subprocess.Popen[bytes]":
        with open(self._log_path, "wb") as output:
            return subprocess.Popen(
                [
                    self._program,
                    "-W",  # it waits until we listen, so that we miss nothing
                    *("-i", interface),
                    *("-D", self._driver),
                    *("-c", self._config_path),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a signal to the daemon's group is not meant for it
            )

    def last_words(self) -> str:
        """The end of what wpa_supplicant printed, to be appended to a message.

        It prints no secrets: those need its option -K.
        """
        lines = [line.strip() for line in (read(self._log_path) or "").splitlines()]
        wanted = [
            line
            for line in lines
            if line
            and not line.startswith(("Successfully initialized", "Note: "))
            and "CTRL-EVENT-" not in line
        ]
        return ": " + "; ".join(wanted[-_TAIL_LINES:]) if wanted else ""

    def exit_reason(self) -> str:
        """How the last process ended, in words."""
        status = self._process.status if self._process is not None else None
        if status is None:
            return "ended"
        if status < 0:
            try:
                return f"was ended by {signal.Signals(-status).name}"
            except ValueError:
                return f"was ended by signal {-status}"
        return f"ended with status {status}"

    def _exited(self) -> None:
        if not self._stopping:
            self._on_exit()

    async def _end_stray(self, interface: str) -> None:
        """End a wpa_supplicant of ours that is not to be adopted.

        That is the one in the state file, or, without that file, the one that answers at our
        control socket.

        :raises SupplicantError: it does not end.
        """
        state = (read(self._state_path) or "").split()
        remove(self._state_path)
        if len(state) >= 2 and state[0].isdecimal() and start_time(int(state[0])) == state[1]:
            with contextlib.suppress(ProcessLookupError):
                stray = Process(int(state[0]), lambda: None)
                log.info("ending the wpa_supplicant (process %d) of an earlier start", stray.pid)
                await stray.end()
        path = f"{self.control_directory}/{interface}"
        if not os.path.exists(path):
            return
        control = Control(path, lambda event: None)
        try:
            await control.open(0.0)
            await control.command("TERMINATE")
        except ControlError:
            remove(path)  # nobody there: left by a process that was killed
            return
        finally:
            control.close()
        allowance = Allowance(_TERMINATE_SECONDS)
        while os.path.exists(path):
            if allowance.over:
                raise SupplicantError(
                    "busy", f"another wpa_supplicant answers at {path} and does not end"
                )
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """End the process, if any."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._stopping = True
            try:
                await self._process.end()
            finally:
                self._stopping = False
            remove(self._state_path)

    def release(self) -> None:
        """Leave the process running for the next daemon."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.release()
