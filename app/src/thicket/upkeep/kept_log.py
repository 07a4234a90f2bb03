# SPDX-License-Identifier: Apache-2.0
"""The system's log across a restart.

The log is a ring in RAM. Its end is kept on ``/data`` every hour, and when the device is shut down
(``init.d/rcK``); the next start (``init.d/S40state.sh``) puts that aside as the log from before.
What came after the last time that it was kept is lost when the power fails.
"""

from __future__ import annotations

import os
import subprocess

from thicket.base.files import read_kept, write_atomically
from thicket.base.paths import Paths

#: Bytes of the log that are kept, and of what is read from the disk: the ring is not much longer.
KEPT = 96 * 1024
_MOST = 512 * 1024
_SECONDS = 30.0

NOW = "/log/system.txt"
BEFORE = "/log/system-before.txt"


def keep(paths: Paths) -> None:
    """Keep the end of the log on the disk.

    :raises OSError: it cannot be read, or written.
    """
    try:
        done = subprocess.run(["logread"], capture_output=True, check=True, timeout=_SECONDS)
    except subprocess.SubprocessError as e:
        raise OSError(0, str(e)) from None
    os.makedirs(paths.data + "/log", exist_ok=True)
    write_atomically(paths.data + NOW, done.stdout[-KEPT:], mode=0o600)


def before(paths: Paths) -> str | None:
    """Return the log from before the last start; None when there is none."""
    try:
        return read_kept(paths.data + BEFORE, _MOST).decode("utf-8", "replace")
    except OSError:
        return None
