# SPDX-License-Identifier: Apache-2.0
"""What an update of one subject changes on this node: a slot of the card, or an application.

``lane`` knows when; a taker knows how. There is one for the image, and the daemon has one for each
application that is offered.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import file_digest
from typing import NamedTuple, Protocol

from thicket.base.errors import CodedError, ThicketError
from thicket.base.files import entries, opened, remove
from thicket.base.headway import Headway
from thicket.update.apply import NEW
from thicket.update.journal import Journal
from thicket.update.offer import Offer, Patch
from thicket.update.progress import Stage, Work
from thicket.update.rollout import Node

SPOILT = "spoilt"

MADE = ".made"
"""What is appended to the name of what was made, until it is judged: nobody begins with it."""


class TakerError(CodedError):
    """What was made cannot be installed, with ``spoilt``: the card has damaged it."""


def judge_fault(path: str, digest: str, error: ThicketError) -> ThicketError:
    """Return why an installation failed; what the card has damaged is removed. Reads all of it.

    :param path: what was to be installed.
    :param digest: its SHA-256 in hexadecimal digits.
    """
    try:
        with opened(path) as file:
            if file_digest(file, "sha256").hexdigest() == digest:
                return error
    except OSError:
        pass  # it cannot be read
    remove(path)
    return TakerError(SPOILT, "the card has damaged what was made of the patch: it is made anew")


def making(follow: Callable[[Work], None], done: int, total: int) -> None:
    """Tell how far the bundle is made, by the work of :func:`thicket.update.rebuild.rebuild`."""
    follow(Work(Stage.MAKING, done, total))


def installing(follow: Callable[[Work], None], headway: Headway) -> None:
    """Tell how far an installation, or the checking before it, is."""
    stage = Stage.CHECKING if headway.state == "checking" else Stage.NONE
    if headway.done is None or headway.size is None:
        follow(Work(stage, headway.percent, 100))
    else:
        follow(Work(stage, headway.done, headway.size, measured=True))


def sweep(folder: str, begin: str, end: str, wanted: str) -> None:
    """Remove what was made, or half made when the power was cut, and is not needed any more.

    :param begin: what the names of such files begin with, and ``end`` what they end with.
    :param wanted: the name of the one that is needed; empty for none.
    """
    for name in entries(folder):
        made = name.removesuffix(NEW).removesuffix(MADE)
        if made.startswith(begin) and made.endswith(end) and made != wanted:
            remove(f"{folder}/{name}")


class Look(NamedTuple):
    """What is seen before a step.

    :ivar slot: ``A`` or ``B``: where the version that runs is; an application has one place, ``A``.
    :ivar ready: whether the bundle that is offered is here, whole and checked.
    :ivar journal: how the journal goes on after what is seen; None where it stays.
    :ivar root: dm-verity root hash of the root that runs; empty where there is none.
    """

    node: Node
    slot: str
    ready: bool
    journal: Journal | None = None
    root: str = ""


class Taker(Protocol):
    """Carries out what was decided. Its methods raise a ThicketError with words for people."""

    def base(self) -> str:
        """What patches for this node are a change of; empty where only the whole is of use."""

    async def look(self, offer: Offer | None, journal: Journal) -> Look:
        """Look at what runs here, and remove what is not needed any more."""

    async def take(
        self, path: str, offer: Offer, patch: Patch, follow: Callable[[Work], None]
    ) -> None:
        """Make what is offered from a patch that is here as a whole, and judge it.

        :param follow: called with how far that is.
        """

    async def install(
        self, offer: Offer, journal: Journal, follow: Callable[[Work], None]
    ) -> Journal:
        """Put into place what :meth:`take` has made, and return the journal that follows.

        :param follow: called with how far that is.
        """

    async def go_back(self, journal: Journal) -> Journal | None:
        """Leave what runs for what ran before; return the journal that follows.

        :returns: None where the node has to restart first.
        """

    async def call_off(self, journal: Journal) -> Journal:
        """Do not start what was installed and is to be tried; return the journal that follows."""

    async def restart(self) -> None:
        """Start the node anew, in order."""

    def healthy(self) -> bool:
        """Whether everything works that worked before."""
