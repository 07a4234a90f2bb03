# SPDX-License-Identifier: Apache-2.0
"""Whether every byte of a bundle is the one that was signed: asked before a slot is written.

RAUC finds out as well, but block by block while it writes, when half of the slot is lost. This is a
process of its own, as it may take minutes (:mod:`.workers`); its arguments are what was signed, so
that it takes nothing from the file on trust.
"""

from __future__ import annotations

import os
import sys

from thicket.base.files import from_disk, opened
from thicket.base.headway import Tally, Tell
from thicket.update import bundle as bundles
from thicket.update import worker
from thicket.update.bundle import Bundle
from thicket.update.errors import BundleError
from thicket.update.manifest import Verity

USAGE = "usage: contents MEMORY FILE CONTENTS ROOT SALT SIZE"


class UnreadableError(BundleError):
    """The file, or the disk that it is on, does not give all bytes."""

    code = "unreadable"


def arguments(path: str, found: Bundle) -> list[str]:
    """Return the words that :func:`main` takes behind the first.

    :param found: what was read of the file, and is signed by somebody whose word counts.
    """
    named = found.verity
    return [os.path.abspath(path), str(found.contents), named.root, named.salt, str(named.size)]


def check(path: str, contents: int, named: Verity, tell: Tell = lambda _done, _total: None) -> None:
    """Compare every byte with what was signed, as the disk has them.

    :param contents: as in :class:`.bundle.Bundle`, and so is ``named`` (its ``verity``).
    :raises BundleError: they differ, or cannot be read.
    """
    work = Tally(contents, tell)
    try:
        with opened(path) as file:
            from_disk(file.fileno())
            bundles.check_contents(file, contents, named, work.add)
    except OSError as error:
        raise UnreadableError(
            f"it cannot be read behind byte {work.done} ({error.strerror}): what it is on fails, "
            "or was taken out. Copy it again, to something else"
        ) from None


def main(words: list[str]) -> int:
    """Run the process; the exit status is 0, 1 or 2.

    :param words: see ``USAGE``.
    """
    if len(words) != len(USAGE.split()) - 2:
        print(USAGE, file=sys.stderr)
        return 2
    memory, path, contents, root, salt, size = words
    named = Verity(root, salt, int(size))
    return worker.run(int(memory), lambda tell: check(path, int(contents), named, tell))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
