# SPDX-License-Identifier: Apache-2.0
"""OpenSSH's own server on a port of the loopback device, for tests: keys and files of its own."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import time
from pathlib import Path

from patience import PATIENCE

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
MISSING = "there is no sshd: it is in the package openssh-server"


class SshServer:
    """A server whose sessions belong to the user of the test. Use it as ``with``.

    :param directory: Its keys, its configuration and what its sessions keep.
    :ivar host: The name that ``program`` reaches it by.
    """

    def __init__(self, directory: Path, host: str) -> None:
        assert SSHD is not None, MISSING
        self.host = host
        self.home = directory / "cache"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SshServer:
        assert SSHD is not None
        self.home.mkdir(parents=True, mode=0o700)
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        for name in ("host", "user"):
            self._key(name)
        # Bound to the end, so that nobody else is given the port; the server may listen on it.
        self._bound = socket.socket()
        self._bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._bound.bind(("127.0.0.1", 0))
        self._port = self._bound.getsockname()[1]
        here = self._directory
        (here / "authorized").write_bytes((here / "user.pub").read_bytes())
        (here / "sshd.conf").write_text(
            f"ListenAddress 127.0.0.1:{self._port}\n"
            f"HostKey {here}/host\n"
            f"AuthorizedKeysFile {here}/authorized\n"
            f"PidFile none\nUsePAM no\nPasswordAuthentication no\nStrictModes no\n"
            f"PermitRootLogin prohibit-password\n"
            f"AllowTcpForwarding no\nAllowStreamLocalForwarding no\n"
            f"SetEnv XDG_CACHE_HOME={self.home}\n"
        )
        host_key = (here / "host.pub").read_text().split()[:2]
        (here / "known").write_text(f"[127.0.0.1]:{self._port} {' '.join(host_key)}\n")
        with (here / "sshd.log").open("wb") as log:
            self._process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(here / "sshd.conf")], stderr=log
            )
        until = time.monotonic() + PATIENCE
        while not self._listens():
            text = (here / "sshd.log").read_text()
            assert self._process.poll() is None, text
            assert time.monotonic() < until, text
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        self._bound.close()

    def settings(self, *, known: bool = True, key: str = "user") -> str:
        """Return lines of ``ssh_config`` for this server.

        :param known: The client knows its host key.
        :param key: The client's key, a file beside the server's.
        """
        here = self._directory
        return (
            f"Host {self.host}\n  HostName 127.0.0.1\n  Port {self._port}\n"
            f"  User {getpass.getuser()}\n  IdentityFile {here / key}\n  IdentitiesOnly yes\n"
            f"  IdentityAgent none\n"
            f"  UserKnownHostsFile {here / 'known' if known else '/dev/null'}\n"
            f"  GlobalKnownHostsFile /dev/null\n"
        )

    def key(self, name: str) -> str:
        """Make a key that the server does not accept; return its name."""
        self._key(name)
        return name

    def _key(self, name: str) -> None:
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._directory / name)]
        subprocess.run(command, check=True)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), 1).close()
        except OSError:
            return False
        return True


def program(config: Path, *settings: str) -> str:
    """Return the command of a client with these settings and no others: for THICKET_SSH."""
    config.write_text("".join(settings))
    return shlex.join(["ssh", "-F", str(config)])
