# SPDX-License-Identifier: Apache-2.0
"""Programs for FAT file systems in files (mtools, dosfstools), run apart from this process."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from host.errors import HostError

PATIENCE = 600.0
"""Seconds that a program may take."""

PLACES = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where mkfs.fat is; the PATH of a person who is not root often lacks these."""


class ToolMissingError(HostError):
    """A program is not installed; the text says how to install it."""


class ToolTimeoutError(HostError):
    """A program did not end in time."""


class Bounds(NamedTuple):
    """What a program may use, for file systems that nobody vouches for (prlimit).

    :ivar memory: bytes of address space.
    :ivar cpu: seconds of processor time.
    :ivar written: most bytes of a file that it may write, also of its standard output.
    """

    memory: int
    cpu: float
    written: int | None = None


class Result(NamedTuple):
    """How a program ended.

    :ivar status: its exit status; the negative number of a signal that ended it.
    :ivar said: what it wrote to standard error.
    """

    status: int
    output: bytes
    said: str

    @property
    def failed(self) -> bool:
        """Tell whether it failed: mcopy tells of a full disk on standard error only, and ends
        with 0.
        """
        return self.status != 0 or bool(self.said)


def run(
    command: Sequence[str],
    data: bytes = b"",
    *,
    bounds: Bounds | None = None,
    timeout: float = PATIENCE,
    pass_fds: Sequence[int] = (),
) -> Result:
    """Run a program of mtools or dosfstools to its end.

    The person's own settings of mtools have no effect.

    :param data: its standard input.
    :param pass_fds: open files that it reaches as ``/proc/self/fd/N``.
    :raises ToolMissingError: it is not installed.
    :raises ToolTimeoutError: it did not end within ``timeout`` seconds, and was killed.
    """
    words = list(command)
    if bounds is not None:
        limits = [f"--as={bounds.memory}", f"--cpu={bounds.cpu:.0f}", "--core=0"]
        if bounds.written is not None:
            limits.append(f"--fsize={bounds.written}")
        words = ["prlimit", *limits, "--", *words]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MTOOLS")}
    environment |= {
        "PATH": f"{os.environ.get('PATH', os.defpath)}:{PLACES}",
        # Names and sizes in words that are known to those who read them.
        "LC_ALL": "C.UTF-8",
        "MTOOLSRC": os.devnull,
        # The check is of a disk's geometry, which partitions no longer have.
        "MTOOLS_SKIP_CHECK": "1",
    }
    try:
        # A file and not a pipe: the bound on what is written counts for files.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                words,
                input=data,
                stdout=output,
                stderr=subprocess.PIPE,
                check=False,
                env=environment,
                timeout=timeout,
                pass_fds=pass_fds,
            )
            output.seek(0)
            result = Result(done.returncode, output.read(), done.stderr.decode(errors="replace"))
    except FileNotFoundError:
        raise _missing(words[0]) from None
    except subprocess.TimeoutExpired:
        raise ToolTimeoutError(f"{command[0]} did not end within {timeout:g} s") from None
    if bounds is not None and "failed to execute" in result.said:
        raise _missing(command[0])
    return result


def _missing(program: str) -> ToolMissingError:
    if program == "prlimit":
        return ToolMissingError(
            "prlimit is missing: it is part of the package util-linux on Debian and Ubuntu"
        )
    package = "mtools" if not program.startswith("mkfs") else "dosfstools mtools"
    return ToolMissingError(
        f"{program} is missing. Install it with:\n"
        f"    sudo apt-get install --no-install-recommends {package}"
    )
