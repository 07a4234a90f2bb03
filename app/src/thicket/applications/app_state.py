# SPDX-License-Identifier: Apache-2.0
"""What a node keeps of one application's files: which is in force, which is the way back.

Each application has a folder ``/data/apps/NAME`` with its files, at most two, and ``state.json``.
The state is replaced as a whole, and only when the file that it names is on the disk: a power cut
leaves either version. Files that it does not name are of an installation that was cut.

A decision is a function of the state; ``installed`` does it.
"""

from __future__ import annotations

import json
import os
import re
from logging import getLogger
from typing import Any, NamedTuple

from thicket.applications.app_file import ENDING, About
from thicket.base.files import discard, own_folder, read_kept, write_atomically

log = getLogger(__name__)

STATE = "state.json"
MOST_BYTES = 16 * 1024
#: Files that failed and are remembered, the newest ones.
MOST_REJECTED = 8
#: Characters of a reason.
MOST_WORDS = 400
#: Starts on trial that may end without a verdict; one that takes the daemon with it goes back then.
MOST_TRIALS = 3

_FILE = re.compile(r"[0-9A-Za-z.+!-]{1,40}-[0-9a-f]{12}\.app")


class State(NamedTuple):
    """What is kept of one application.

    :ivar current: name of the file in force; empty for what the image has.
    :ivar before: name of the file that was in force and well before it; empty for the image's.
    :ivar trial: how often the current file was started without having been judged; 0 when it was
        judged well.
    :ivar rejected: why a file was left, by its identifier in hexadecimal digits; the oldest first.
    :ivar left: what became of a file that was left, until another one comes; empty for none.
    """

    current: str
    before: str
    trial: int
    rejected: dict[str, str]
    left: str

    def installed(self, file: str) -> State:
        """Return the state after a new file has come, to be tried."""
        if file == self.current:
            return self._replace(trial=1, left="")
        # What never was well is no way back.
        before = self.before if self.trial else self.current
        return self._replace(
            current=file, before="" if before == file else before, trial=1, left=""
        )

    def tried(self) -> State:
        """Return the state before the file on trial is started once more."""
        return self._replace(trial=min(self.trial + 1, MOST_TRIALS)) if self.trial else self

    def well(self) -> State:
        """Return the state after the current file was judged well."""
        return self._replace(trial=0)

    def back(self) -> State:
        """Return the state after the current file was given up for the one before."""
        return self._replace(current=self.before, before="", trial=0)

    def rejecting(self, identifier: str, why: str) -> State:
        """Return the state after the current file was left, which is not tried again by itself."""
        rejected = {one: words for one, words in self.rejected.items() if one != identifier}
        rejected[identifier] = why[:MOST_WORDS]
        while len(rejected) > MOST_REJECTED:
            del rejected[next(iter(rejected))]
        return self.back()._replace(rejected=rejected, left=why[:MOST_WORDS])

    def without_rejected(self, identifier: str) -> State:
        """Return the state after somebody asked for a file to be tried again."""
        left = {one: words for one, words in self.rejected.items() if one != identifier}
        return self._replace(rejected=left)

    @property
    def files(self) -> frozenset[str]:
        """The files that are needed."""
        return frozenset(filter(None, (self.current, self.before)))


NOTHING = State("", "", 0, {}, "")
"""The state of an application that was never installed."""


def file_name(about: About) -> str:
    """Return the name that a file has on the node."""
    return f"{about.version}-{about.identifier.hex()[:12]}{ENDING}"


def load(folder: str) -> State:
    """Return the state in an application's folder; ``NOTHING`` where it is missing or damaged."""
    if os.path.islink(folder):
        return NOTHING
    try:
        return unpack(read_kept(f"{folder}/{STATE}", MOST_BYTES + 1))
    except FileNotFoundError:
        return NOTHING
    except (OSError, ValueError) as error:
        log.warning("%s/%s is not used: %s", folder, STATE, error)
        return NOTHING


def save(folder: str, state: State) -> None:
    """Keep the state.

    :raises OSError: it cannot be written; the old one stays.
    """
    own_folder(folder, 0o700)
    write_atomically(f"{folder}/{STATE}", pack(state), mode=0o600, own=True)


def tidy(folder: str, state: State) -> None:
    """Remove the files that the state does not need; none of a folder that a link points to."""
    if os.path.islink(folder):
        return
    for name in os.listdir(folder):
        if name not in state.files and name != STATE:
            discard(f"{folder}/{name}")


def pack(state: State) -> bytes:
    """Return the file."""
    return json.dumps(state._asdict()).encode() + b"\n"


def unpack(data: bytes) -> State:
    """Return what a file says.

    :raises ValueError: it is damaged.
    """
    if len(data) > MOST_BYTES:
        raise ValueError("too large")
    try:
        members = json.loads(data)
        trial = members["trial"]
        rejected = {_text(name): _text(why) for name, why in members["rejected"].items()}
        state = State(
            _file(members["current"]),
            _file(members["before"]),
            trial,
            rejected,
            _text(members["left"]),
        )
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"damaged: {error!r}") from None
    if type(trial) is not int or not 0 <= trial <= MOST_TRIALS or len(rejected) > MOST_REJECTED:
        raise ValueError("damaged")
    return state


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _file(value: Any) -> str:
    if value and not _FILE.fullmatch(_text(value)):
        raise ValueError("damaged")
    return _text(value)
