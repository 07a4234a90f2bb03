# SPDX-License-Identifier: Apache-2.0
"""Ways in for a person: SSH and a shell on the serial port, as ``[access]`` says.

Init runs both. :class:`Follower` adds their lines to init's table or removes them, and leaves on
``/data`` what ``init.d/S60access.sh`` needs to open them at the next power-on, before or without
the daemon.

A line is switched off by overwriting its first byte (``#`` for ``:``), and new lines are appended,
because the boot scripts may append lines at the same time.
"""

from __future__ import annotations

import contextlib
import os
import signal
from logging import getLogger

from thicket.base.files import sync_folder, write_atomically
from thicket.base.paths import Paths
from thicket.upkeep.section import AccessSection

log = getLogger(__name__)

SSHD = "/usr/lib/thicket/sshd"
_SSH_LINE = f"::respawn:{SSHD}"


class Places:
    """The files and programs below ``paths.root`` that are used here."""

    __slots__ = (
        "cable",
        "closed",
        "console",
        "devices",
        "init",
        "inittab",
        "kept",
        "keys",
        "proc",
        "serial",
        "server",
        "uplink",
    )

    def __init__(self, paths: Paths) -> None:
        root = paths.root
        self.inittab = root + "/etc/inittab"
        self.server = root + "/usr/sbin/dropbear"
        #: the keys that the server reads, and the copy that outlasts a restart
        self.keys = paths.run + "/ssh/authorized_keys"
        self.kept = paths.data + "/ssh/authorized_keys"
        #: SSH at cables: while this runs, and a word that the next start is to do without
        self.cable = paths.run + "/cable"
        self.closed = paths.data + "/ssh/no-cable"
        #: the name of an interface that is no cable, as it leads a gateway into another network
        self.uplink = paths.data + "/ssh/uplink"
        self.console = paths.data + "/thicket/console"
        #: the serial ports that S50devices.sh found
        self.serial = paths.run + "/serial"
        self.devices = root + "/dev"
        self.proc = root + "/proc"
        #: init's process; a daemon in another directory has none
        self.init = 0 if root else 1


class Follower:
    """Opens and closes the ways in."""

    def __init__(self, paths: Paths) -> None:
        self.places = Places(paths)

    def follow(self, settings: AccessSection, uplink: str = "") -> list[tuple[str, str]]:
        """Open and close the ways in as the settings say; blocks on the disk.

        :param uplink: the interface of ``[gateway] uplink``, which is no cable; empty without one.

        :returns: the problems that remain, as (code, message).
        """
        problems: list[tuple[str, str]] = []
        with _told(problems, "ssh-failed", "SSH cannot be set up as configured"):
            self._ssh(settings.ssh_keys, problems)
            self._cable(settings, uplink)
        with _told(problems, "console-failed", "the serial console cannot be set up as configured"):
            self._console(settings.console, problems)
        return problems

    # -- SSH

    def _ssh(self, keys: str, problems: list[tuple[str, str]]) -> None:
        places = self.places
        data = f"{keys}\n".encode() if keys else b""
        if not keys:
            self._close_ssh()
        if keys and not os.path.exists(places.server):
            message = (
                "access.ssh_keys is set, but this image has no SSH server (/usr/sbin/dropbear): "
                "nobody can log in by SSH"
            )
            problems.append(("ssh-missing", message))
        elif keys:
            if _read(places.keys) != data:
                os.makedirs(os.path.dirname(places.keys), mode=0o700, exist_ok=True)
                write_atomically(places.keys, data, mode=0o600, durable=False)
            if self._line(_SSH_LINE, True):
                log.info("SSH is open for %d keys", keys.count("\n") + 1)
        if not keys and os.path.lexists(places.kept):
            os.unlink(places.kept)
            sync_folder(os.path.dirname(places.kept))
        elif keys and _read(places.kept) != data:
            write_atomically(places.kept, data, mode=0o600)

    def _close_ssh(self) -> None:
        # the keys first, so that a server that still runs lets nobody in
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.places.keys)
        if self._line(_SSH_LINE, False):
            log.info("SSH is closed")
            for pid, folder in self._processes():
                if _read(f"{folder}/comm").strip() in {b"dropbear", b"sshd"}:
                    _signal(pid, signal.SIGTERM)

    def _cable(self, settings: AccessSection, uplink: str) -> None:
        """Tell scripts whether wired interfaces are brought up, and which is not."""
        places, keys = self.places, bool(settings.ssh_keys)
        # the uplink first: a script that begins now must not take it for a cable
        _there(places.uplink, f"{uplink}\n" if keys and settings.cable and uplink else None)
        _there(places.cable, "" if keys and settings.cable else None)
        _there(places.closed, "" if keys and not settings.cable else None)

    # -- serial console

    def _console(self, wanted: bool, problems: list[tuple[str, str]]) -> None:
        places = self.places
        terminals = _read(places.serial).decode("ascii", "replace").split()
        for terminal in terminals:
            device = f"/dev/{terminal}"
            line = f"::respawn:sh -l <{device} >{device} 2>&1"
            if self._line(line, wanted):
                log.info("the shell on %s is %s", device, "open" if wanted else "closed")
                if not wanted:
                    self._hang_up(device)
        if wanted and not terminals:
            problems.append(
                ("console-missing", "access.console is set, but there is no serial port")
            )
        _there(places.console, "" if wanted else None)

    def _hang_up(self, device: str) -> None:
        """End what runs on a terminal whose shell is no longer wanted."""
        for pid, folder in self._processes():
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/fd/0") == device:
                    _signal(pid, signal.SIGHUP)

    # -- init

    def _line(self, line: str, wanted: bool) -> bool:
        """Add the line to init's table, or remove it; return whether that was a change."""
        if not wanted and not os.path.exists(self.places.inittab):
            return False  # no init that reads it, as on a developer's machine
        with open(self.places.inittab, "r+b") as table:
            text = table.read()
            on, off = line.encode(), b"#" + line.encode()[1:]
            at = 0
            found: tuple[int, bool] | None = None
            for entry in text.split(b"\n"):
                if entry in {on, off}:
                    found = (at, entry == on)
                    if entry == on:
                        break
                at += len(entry) + 1
            if (found is not None and found[1]) == wanted:
                return False
            if found is not None:
                os.pwrite(table.fileno(), b":" if wanted else b"#", found[0])
            else:
                start = b"" if not text or text.endswith(b"\n") else b"\n"
                with open(self.places.inittab, "ab", buffering=0) as end:
                    end.write(start + on + b"\n")
        if self.places.init:
            os.kill(self.places.init, signal.SIGHUP)
        return True

    def _processes(self) -> list[tuple[int, str]]:
        proc = self.places.proc
        return [(int(n), f"{proc}/{n}") for n in os.listdir(proc) if n.isdecimal()]


@contextlib.contextmanager
def _told(problems: list[tuple[str, str]], code: str, what: str):  # type: ignore[no-untyped-def]
    """Turn an OSError into a problem."""
    try:
        yield
    except OSError as e:
        where = f"{e.filename}: " if e.filename else ""
        problems.append((code, f"{what}: {where}{e.strerror}"))


def _there(path: str, text: str | None) -> None:
    """Have a file with this text, or none."""
    if text is None:
        if os.path.lexists(path):
            os.unlink(path)
            sync_folder(os.path.dirname(path))
    elif not os.path.lexists(path) or _read(path) != text.encode():
        write_atomically(path, text.encode())


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as f:
            return f.read(64 * 1024)
    except OSError:
        return b""


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
