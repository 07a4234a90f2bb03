#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Stands in for ssh: ``fake_ssh.py OPTIONS -- HOST COMMAND``.

A host is a folder of its own below $FAKE_SSH, and its command a session of its own, as behind a
real SSH server: it outlives this program, which only carries bytes. Some hosts cannot be used, in
the words that OpenSSH has for it.
"""

import os
import resource
import subprocess
import sys
import threading

SAYS = {
    "refused": "lab@refused: Permission denied (publickey).",
    "unknown": "No ED25519 host key is known for unknown.\nHost key verification failed.",
    "changed": "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed.",
    "down": "ssh: connect to host down port 22: Connection timed out",
    "closed": "ssh: connect to host closed port 22: Connection refused",
    "nowhere": "ssh: Could not resolve hostname nowhere: Name or service not known",
}
#: A python3 of another version, as the first words see it.
OLD = """#!/bin/sh
exec {python} -c "import sys; sys.version_info = (3, 9, 2); sys.version = '3.9.2 (default)'
$2" "$3" "$4"
"""


def carry(source: int, target: int) -> None:
    while data := os.read(source, 65536):
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]
    os.close(target)


def main() -> int:
    at = sys.argv.index("--")
    host, command = sys.argv[at + 1 : at + 3]
    if host in SAYS:
        print(SAYS[host], file=sys.stderr)
        return 255
    home = os.path.join(os.environ["FAKE_SSH"], host)  # noqa: PTH118
    os.makedirs(home, exist_ok=True)  # noqa: PTH103
    environment = {**os.environ, "XDG_CACHE_HOME": home}
    if host == "no-python":
        environment["PATH"] = home
    if host == "old-python":
        stub = os.path.join(home, "python3")  # noqa: PTH118
        with open(stub, "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(OLD.format(python=sys.executable))
        os.chmod(stub, 0o755)  # noqa: PTH101
        environment["PATH"] = f"{home}:{environment['PATH']}"
    if host == "noisy":
        command = f"echo Welcome to noisy; {command}"
    if host == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))
    there = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    assert there.stdin is not None
    assert there.stdout is not None
    threading.Thread(target=carry, args=(0, there.stdin.fileno()), daemon=True).start()
    carry(there.stdout.fileno(), 1)
    return there.wait()


if __name__ == "__main__":
    try:
        code = main()
    except OSError:
        code = 255
    os._exit(code)
