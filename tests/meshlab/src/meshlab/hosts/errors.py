# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with another machine."""

from __future__ import annotations

import re

from meshlab.lab.errors import LabError


class HostsError(LabError):
    """A machine that cannot be used. The text names it and says what to do."""


#: What ssh says, and what that means to a person. The first that fits counts.
_WORDS = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the one that is known: find out why before you remove the old one "
        "(`ssh-keygen -R HOST`)",
    ),
    (
        r"Host key verification failed|No .* host key is known",
        "its host key is not known: connect once with `ssh {host}` and check it",
    ),
    (
        r"Permission denied|Too many authentication failures|no mutual signature",
        "it lets nobody in without a question: `ssh-copy-id {host}`, or load the key into "
        "ssh-agent",
    ),
    (r"Could not resolve hostname", "there is no host of that name"),
    (r"Connection refused", "no SSH server listens there"),
    (r"timed out|No route to host|unreachable", "it does not answer: is it on?"),
    (
        r"python3: (command )?not found|python3: No such file",
        "it has no python3: `apt-get install python3` there (3.11 or later)",
    ),
    (r"No space left on device", "its disk is full"),
    (r"Connection (reset|closed) by", "it closed the connection"),
)
_OWN = re.compile(r"^thicket: (.*)$", re.MULTILINE)


def in_words(host: str, status: int | None, said: str) -> str:
    """Return why a machine cannot be used.

    :param host: As the person wrote it.
    :param status: The exit status of ssh; ``None`` while it runs.
    :param said: What it, and the programs there, wrote to standard error.
    """
    if own := _OWN.findall(said):
        text = own[-1]
        return f"{host}: {text}"
    for pattern, words in _WORDS:
        if re.search(pattern, said):
            return f"{host}: {words.format(host=host)}"
    if status == 127:
        return f"{host}: it has no python3: `apt-get install python3` there (3.11 or later)"
    last = [line.strip() for line in said.splitlines() if line.strip()][-2:]
    how = "ssh said nothing" if not last else "ssh says: " + " / ".join(last)
    return f"{host}: {how}" + ("" if status is None else f" (status {status})")
