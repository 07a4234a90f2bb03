# SPDX-License-Identifier: Apache-2.0
"""The first words on another machine: given to its ``python3 -c``, so for Python 3.6 and later.

Takes the hash and the size of the agent. Says one line of JSON: whether the agent is there already.
Reads it from its input when it is not, checks it, and becomes it. What is wrong is said in a line
that begins with ``thicket:``. Everything is in a folder that only its user can read.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

FOLDER = "thicket-hosts"
UNUSED_DAYS = 30


def fail(text: str) -> NoReturn:
    sys.stderr.write(f"thicket: {text}\n")
    sys.exit(70)


def main(digest: str, size: int) -> None:
    if sys.version_info < (3, 11):  # noqa: UP036
        fail(f"its python3 is {sys.version.split()[0]}, and 3.11 or later is needed")
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    root = (base if base.is_absolute() else Path.home() / ".cache") / FOLDER
    path = root / f"agent-{digest}.zip"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if root.stat().st_uid != os.getuid():
            fail(f"{root} belongs to somebody else")
        root.chmod(0o700)
        there = path.exists()
        os.write(1, json.dumps({"thicket-agent": digest, "have": there}).encode() + b"\n")
        if not there:
            take(path, digest, size)
        os.utime(path)
        for old in root.glob("agent-*.zip"):
            if time.time() - old.stat().st_mtime > UNUSED_DAYS * 86400:
                old.unlink()
    except OSError as error:
        fail(f"{error.filename or root}: {error.strerror}")
    environment = dict(os.environ, PYTHONPATH=str(path), PYTHONDONTWRITEBYTECODE="1")
    words = [sys.executable, "-s", "-m", "meshlab.hosts.agent", str(root)]
    os.execve(sys.executable, words, environment)


def take(path: Path, digest: str, size: int) -> None:
    data = b""
    while len(data) < size:
        piece = os.read(0, min(65536, size - len(data)))
        if not piece:
            fail("the connection ended before all of the agent had come")
        data += piece
    if hashlib.sha256(data).hexdigest() != digest:
        fail("the agent was damaged on its way")
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(data)
    fresh.replace(path)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
