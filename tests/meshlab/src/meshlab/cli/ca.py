# SPDX-License-Identifier: Apache-2.0
"""``python -m meshlab.cli.ca``: ``thicket ca`` in a checkout, which enrols virtual chips too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from authority import cli
from thicket.cli.main import guarded

if TYPE_CHECKING:
    from authority.chip import DeskChip


def main(words: list[str]) -> int:
    """Run ``thicket ca`` with these arguments; the exit status."""
    return cli.main(words, open_chip=_open_chip)


def _open_chip(path: Path) -> DeskChip:
    from meshlab.chip.driver import open_chip

    return open_chip(path)


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
