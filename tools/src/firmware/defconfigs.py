# SPDX-License-Identifier: Apache-2.0
"""Writes ``configs/thicket_*_defconfig``: ``python -m firmware.defconfigs [--check]``."""

from __future__ import annotations

import sys

from firmware import boards
from firmware.fragments import defconfig, defconfig_path


def stale() -> list[str]:
    """Return the boards whose checked-in configuration is not what their fragments say."""
    found = []
    for name in boards.names():
        board = boards.load(name)
        path = defconfig_path(board)
        if not path.is_file() or path.read_text() != defconfig(board):
            found.append(name)
    return found


def main() -> int:
    """Entry point; the exit status."""
    names = stale()
    if sys.argv[1:] == ["--check"]:
        for name in names:
            print(f"{name}: `make defconfigs` was not run after a change of the fragments")
        return 1 if names else 0
    for name in names:
        board = boards.load(name)
        path = defconfig_path(board)
        path.write_text(defconfig(board))
        print(path.relative_to(board.root))
    return 0


if __name__ == "__main__":
    sys.exit(main())
