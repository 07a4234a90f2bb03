# SPDX-License-Identifier: Apache-2.0
"""The format of the node's state, ``/data/thicket``, and how one becomes the next.

Whoever changes what is kept there so that an older image could not read it, raises the number in
``overlay/usr/share/thicket/data-format`` and adds the step to :data:`STEPS`. A step changes a copy:
what the older image reads stays as it is, for the way back (``overlay/etc/init.d/S35format.sh``).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping

from thicket.base.errors import ThicketError
from thicket.base.files import sync_folder, write_atomically
from thicket.base.paths import Paths

Step = Callable[[str], None]

#: What makes a folder of a format from one of the format before, by its number.
STEPS: Mapping[int, Step] = {}

#: In each folder, except those of format 1.
FILE = "format"
IMAGE = "/usr/share/thicket/data-format"
_NAME = "thicket"


class FormatError(ThicketError):
    """State cannot be migrated; the text says why. What was there is unchanged."""


def of_image(paths: Paths) -> int:
    """Return the format that this image reads and writes."""
    return _number(paths.root + IMAGE)


def of_folder(folder: str) -> int:
    """Return the format of a folder; 1 where it does not say."""
    return _number(f"{folder}/{FILE}")


def migrate(folder: str, target: str, number: int, steps: Mapping[int, Step] = STEPS) -> int:
    """Make ``target`` of a copy of ``folder``, in format ``number``; return the format before.

    It appears as a whole, or not at all.

    :raises FormatError: there is no way, or no room.
    """
    before = of_folder(folder)
    if missing := [n for n in range(before + 1, number + 1) if n not in steps]:
        raise FormatError(f"this image does not know how format {missing[0]} is made")
    new = f"{target}.new"
    try:
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(folder, new, symlinks=True)
        for step in range(before + 1, number + 1):
            steps[step](new)
        write_atomically(f"{new}/{FILE}", f"{number}\n".encode())
        os.sync()
        os.rename(new, target)
        sync_folder(os.path.dirname(target))
    except (OSError, shutil.Error) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise FormatError(f"{target} cannot be made: {error}") from None
    return before


def forget_newer(paths: Paths) -> None:
    """Remove what newer images kept: the one that runs is well, so they are not gone back to."""
    own = of_image(paths)
    for entry in os.scandir(paths.data):
        name, _, number = entry.name.partition(".")
        if name == _NAME and number.isascii() and number.isdecimal() and int(number) > own:
            shutil.rmtree(entry.path, ignore_errors=True)


def _number(path: str) -> int:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            text = file.read(8).strip()
    except OSError:
        return 1
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 4 else 1


def main() -> int:
    """Run ``migrate-data``; the exit status is 0, 1 (the text says why) or 2."""
    if len(sys.argv) != 3:
        print("usage: migrate-data FOLDER NEW-FOLDER", file=sys.stderr)
        return 2
    folder, target = sys.argv[1:]
    try:
        before = migrate(folder, target, of_image(Paths()))
    except FormatError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"a copy of {folder} (format {before})")
    return 0
