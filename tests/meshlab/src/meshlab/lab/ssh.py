# SPDX-License-Identifier: Apache-2.0
"""SSH into the nodes of a lab: its key pair, and a server at a channel that is plugged into a node.

A node needs no network for it, no configuration, and no daemon: the channel leads to a server on
its loopback, which is started for the first of them, and lets in the lab's key alone. What is in a
lab protects nothing, and its key is a file beside its nodes'.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

from meshlab.lab.errors import LabError

FOLDER = "ssh"
KEY = "id"
CONFIG = "config"

PORT = 2022
"""Where the server listens, on a node's loopback."""
START_PATIENCE = 120.0
"""Seconds, as a node is given them, for the start of the server with a new key."""

_SERVE = """\
for p in dropbear dropbearkey nc; do
  command -v $p >/dev/null || { echo "this image has no $p, which SSH needs"; exit 1; }
done
umask 077
D=/run/thicket/lab-ssh
mkdir -p $D && printf '%s\\n' "$K" >$D/authorized_keys
if [ ! -s $D/host ]; then
  rm -f $D/new
  dropbearkey -t ed25519 -f $D/new >/dev/null 2>&1 && mv $D/new $D/host
fi
P=
[ ! -s $D/pid ] || read -r P <$D/pid
[ -n "$P" ] && kill -0 $P 2>/dev/null ||
  dropbear -s -p [::1]:$N -r $D/host -D $D -P $D/pid || exit 1
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  for n in /sys/class/virtio-ports/*/name; do
    name=
    read -r name 2>/dev/null <$n
    [ "$name" = "$C" ] || continue
    n=${n%/name}
    V=/dev/${n##*/}
    [ -c $V ] || continue
    setsid nc ::1 $N <>$V >&0 2>/dev/null &
    exit 0
  done
  sleep 0.2
done
echo "the kernel does not show $C"
exit 1
"""


def serve_command(channel: str, public_key: str) -> str:
    """Return what a node's shell runs to have an SSH server at a channel.

    :param channel: The name of its virtio port, connected to who will speak SSH.
    :param public_key: The key that is let in, a line of ``authorized_keys``.
    """
    return f"K={shlex.quote(public_key)} C={shlex.quote(channel)} N={PORT}\n{_SERVE}"


def public_key(directory: Path) -> str:
    """Return the key that the nodes of a lab let in; makes the pair where there is none.

    :param directory: The lab's.
    :raises LabError: when it cannot be made.
    """
    folder = directory / FOLDER
    public = folder / f"{KEY}.pub"
    try:
        if not public.exists():
            _make(folder)
        return public.read_text(encoding="ascii").strip()
    except OSError as error:
        raise LabError(f"{public} cannot be read: {error.strerror}") from error


def forget(directory: Path) -> None:
    """Remove the key pair of a lab's earlier run."""
    shutil.rmtree(directory / FOLDER, ignore_errors=True)


def _make(folder: Path) -> None:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise LabError(
            "ssh is missing. Install it with:\n"
            "    sudo apt-get install --no-install-recommends openssh-client"
        )
    folder.mkdir(mode=0o700, exist_ok=True)
    # The public half appears last: who sees it has both.
    fresh = folder / "new"
    for path in (fresh, fresh.with_name("new.pub")):
        path.unlink(missing_ok=True)
    command = [program, "-q", "-t", "ed25519", "-N", "", "-C", "meshlab", "-f", str(fresh)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"ssh-keygen: {done.stderr.strip() or done.returncode}")
    fresh.replace(folder / KEY)
    fresh.with_name("new.pub").replace(folder / f"{KEY}.pub")


def write_config(directory: Path, pipe: list[str]) -> Path:
    """Write what ssh has to know (``ssh -F``) to reach each node by its name; return the file.

    :param directory: The lab's, with a key pair.
    :param pipe: The command that leads to a node whose name is added to it.
    :raises LabError: when it cannot be written.
    """
    path = directory / FOLDER / CONFIG
    # ssh gives this to a shell, after it has put the host's name in place of %h.
    command = shlex.join(pipe).replace("%", "%%")
    text = f"""\
# Written by meshlab: ssh -F {shlex.quote(str(path))} n1
Host *
  User root
  IdentityFile "{directory / FOLDER / KEY}"
  IdentitiesOnly yes
  IdentityAgent none
  ProxyCommand {command} %h
  # The channel leads to this node and to no other, and its host key is a new one at each start.
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  GlobalKnownHostsFile /dev/null
  LogLevel ERROR
  # What is new in key exchange takes an emulated node a second, and nobody listens at a channel.
  KexAlgorithms curve25519-sha256
"""
    try:
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            fresh = path.with_suffix(".new")
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(path)
    except OSError as error:
        raise LabError(f"{path} cannot be written: {error.strerror}") from error
    return path
