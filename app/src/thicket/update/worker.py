# SPDX-License-Identifier: Apache-2.0
"""The process that does one piece of work for the daemon, which :mod:`.workers` starts.

Standard output has lines ``DONE TOTAL``, in bytes of work, and where it fails a JSON object with
``code`` and ``message``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from thicket.base.errors import ThicketError
from thicket.base.headway import Tell

# Codes of what any work can fail of, see patch.PatchError.
CARD = "card"
NO_MEMORY = "no-memory"
FAILED = "failed"

_DEATH_SIGNAL = 1  # prctl(2): PR_SET_PDEATHSIG


def limit(memory: int) -> None:
    """Have this process end with its parent, take no more memory, and be the first to go.

    :param memory: bytes that it may take, without the page cache.
    """
    import resource

    parent = os.getppid()
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    os.nice(10)
    with suppress(OSError), open("/proc/self/oom_score_adj", "wb") as file:
        file.write(b"1000")


def run(memory: int, work: Callable[[Tell], object]) -> int:
    """Do the work of this process; return its exit status.

    :param memory: see :func:`limit`.
    :param work: raises a ThicketError where it fails.
    """
    limit(memory)
    try:
        work(_print)
    except ThicketError as error:
        from thicket.base import jsonlines

        sys.stdout.buffer.write(jsonlines.pack({"code": error.code, "message": str(error)}))
        sys.stdout.buffer.flush()
        return 1
    return 0


def _print(done: int, total: int) -> None:
    print(done, total, flush=True)
