# SPDX-License-Identifier: Apache-2.0
"""Programs that must not outlive the simulator that started them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence


def tied(command: Sequence[str], nice: int = 0) -> list[str]:
    """Return a command line that runs ``command`` and is killed when its parent dies.

    ``setpriv`` (util-linux) sets the parent-death signal, prctl(2) ``PR_SET_PDEATHSIG``, which
    stays in force over execve(2); so even a simulator ended by SIGKILL leaves nothing running. The
    process identifier is that of ``command`` itself. The "parent" is the *thread* that starts the
    program: start it from one that lives as long as the program should.

    :param nice: is added to the program's niceness, which anybody may raise (nice(2)).
    :raises FileNotFoundError: when setpriv is not installed.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise FileNotFoundError(
            "setpriv is not installed: it is part of the package util-linux on Debian and Ubuntu"
        )
    prefix = [setpriv, "--pdeathsig", "KILL", "--"]
    if nice:
        prefix += ["nice", "-n", str(nice)]
    return [*prefix, *command]
