# SPDX-License-Identifier: Apache-2.0
"""What helps somebody to find a fault of a node who cannot look at it: an archive without secrets.

Every part has its time and its length; one that cannot be had is told in its place. Values of
secret settings are masked as in ``thicket config show``, and what is left of them in other texts,
such as a log, is replaced.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable
from typing import Any

from thicket.base.fields import MASK
from thicket.base.paths import Paths
from thicket.config.load import load
from thicket.control.client import ClientError, request
from thicket.upkeep import kept_log, last_run

#: Bytes of one part, its last ones.
MOST = 512 * 1024
#: Seconds for one program.
_SECONDS = 15.0
#: Secrets shorter than this are words that texts have anyway.
_SHORTEST = 6

#: What programs tell, by the name of the file in the archive.
PROGRAMS: dict[str, tuple[str, ...]] = {
    "log.txt": ("logread",),
    "kernel.txt": ("dmesg",),
    "addresses.txt": ("ip", "-s", "address"),
    "routes.txt": ("ip", "-6", "route", "show", "table", "all"),
    "radio.txt": ("iw", "dev"),
    "stations.txt": ("iw", "dev", "mesh0", "station", "dump"),
    "firewall.txt": ("nft", "list", "table", "inet", "thicket"),
    "space.txt": ("df", "-k"),
    "processes.txt": ("ps", "w"),
    "modules.txt": ("lsmod",),
}
#: Files of the system.
FILES = {
    "cmdline.txt": "/proc/cmdline",
    "memory.txt": "/proc/meminfo",
    "mounts.txt": "/proc/self/mounts",
    "interrupts.txt": "/proc/interrupts",
    "os-release.txt": "/etc/os-release",
    "model.txt": "/proc/device-tree/model",
}
#: Methods of the daemon.
METHODS = {
    "status.json": "status",
    "updates.json": "update-status",
    "applications.json": "app-list",
}


def pack(paths: Paths) -> bytes:
    """Return the archive, a ``tar.gz``."""
    hide = _hider(paths)
    parts: dict[str, Callable[[], str]] = {
        "settings.txt": lambda: _settings(paths),
        "restarts.json": lambda: json.dumps(last_run.read(paths), indent=1),
        "log-before.txt": lambda: kept_log.before(paths) or "there is none\n",
    }
    for name, method in METHODS.items():
        parts[name] = lambda method=method: _method(paths, method)  # type: ignore[misc]
    for name, words in PROGRAMS.items():
        parts[name] = lambda words=words: _program(words)  # type: ignore[misc]
    for name, path in FILES.items():
        parts[name] = lambda path=path: _file(paths.root + path)  # type: ignore[misc]
    for path in _crashes(paths):
        parts[f"crashes/{os.path.basename(path)}"] = lambda path=path: _file(path)  # type: ignore[misc]
    out = io.BytesIO()
    folder = f"support-{os.uname().nodename}"
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=6) as archive:
        for name, read in parts.items():
            data = hide(_tried(read))[-MOST:]
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mtime = len(data), int(time.time())
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def _tried(read: Callable[[], str]) -> str:
    try:
        return read()
    except ClientError as e:
        return f"not to be had: {e}\n"
    except subprocess.SubprocessError as e:
        return f"not to be had: {e}\n"
    except OSError as e:
        return f"not to be had: {e.filename}: {e.strerror}\n"


def _hider(paths: Paths) -> Callable[[str], bytes]:
    """Return what replaces the values of secret settings in a text."""
    settings = load(paths).settings
    secrets = sorted(
        {
            value
            for _, section in settings.sections()
            for key, value in section.items()
            if key.secret and isinstance(value, str) and len(value) >= _SHORTEST
        },
        key=len,
        reverse=True,
    )

    def hide(text: str) -> bytes:
        for secret in secrets:
            text = text.replace(secret, MASK)
        return text.encode("utf-8", "replace")

    return hide


def _settings(paths: Paths) -> str:
    from thicket.base.fields import show_value

    loaded = load(paths)
    lines = [f"# {loaded.source}"]
    for name, section in loaded.settings.sections():
        lines.append(f"[{name}]")
        lines += [f"{key.name} = {show_value(key, value)}" for key, value in section.items()]
    return "\n".join([*lines, *(f"# {finding}" for finding in loaded.findings), ""])


def _method(paths: Paths, method: str) -> str:
    answer: Any = request(paths.control, method, {}, timeout=_SECONDS)
    return json.dumps(answer, indent=1) + "\n"


def _program(words: tuple[str, ...]) -> str:
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=_SECONDS
    )
    return done.stdout.decode("utf-8", "replace")


def _file(path: str) -> str:
    with open(path, "rb") as file:
        return file.read(MOST).decode("utf-8", "replace")


def _crashes(paths: Paths) -> Iterable[str]:
    folder = f"{paths.data}/log"
    try:
        names = sorted(name for name in os.listdir(folder) if name.startswith("crash-"))
    except OSError:
        return []
    return [f"{folder}/{name}" for name in names]
